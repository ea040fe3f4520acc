"""The doctor's own pip as the tool, where uv cannot run: slower, and never the target's old one."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.version import Version

from doctor.model import Text
from doctor.repair.index import NOWHERE, PackageIndex
from doctor.repair.installer import (
    Move,
    ToolError,
    Wanted,
    name_of,
    requirements_file,
    run,
    show_installed,
)
from doctor.target import must_read

_FIRST = Version("22.3")  # the first with `--python`, and `--report` is of 22.2
_REPORT_MOST = 256 << 20  # bytes; it holds the whole description of each package


@dataclass(frozen=True)
class Pip:
    """The pip of the interpreter `own`, as a doctor.repair.installer.Tool."""

    own: Path

    def resolve(
        self, wanted: Wanted, index: PackageIndex, shell: Mapping[str, str], seconds: int
    ) -> tuple[tuple[Move, ...], str]:
        env = _variables(index, shell)
        patience = ("--timeout", str(seconds), "--retries", "1")
        rows = self._report(env, wanted, wanted.pinned, wanted.roots, *patience)
        # pip installs all of them anew or none: these are asked for by themselves.
        known = {_name(row) for row in rows}
        again = [r for r in wanted.roots if name_of(r) in set(wanted.reinstall) - known]
        if again:
            alone = ("--ignore-installed", "--no-deps")
            rows += self._report(env, wanted, (), again, *alone, *patience)
        installed = {
            name_of(dist.metadata["Name"]): dist.version
            for dist in metadata.distributions(path=[str(p) for p in wanted.site_packages])
        }
        moves = tuple(
            Move(name, installed.get(name), str(row["metadata"]["version"]))
            for name, row in sorted((_name(row), row) for row in rows)
        )
        files = [(_name(r), str(r["metadata"]["version"]), _hashes(r)) for r in rows]
        return moves, requirements_file(sorted(files))

    def newest(
        self,
        python: Path,
        version: Version,
        requirements: Sequence[str],
        index: PackageIndex,
        shell: Mapping[str, str],
    ) -> Version:
        alone = ("--ignore-installed", "--no-deps")
        asked = Wanted(python, version, (), tuple(requirements))
        (row,) = self._report(_variables(index, shell), asked, (), requirements, *alone)
        return Version(row["metadata"]["version"])

    def _report(
        self,
        env: Mapping[str, str],
        wanted: Wanted,
        held: Sequence[str],
        roots: Sequence[str],
        *options: str,
    ) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="vllm-doctor-") as scratch:
            constraints, report = Path(scratch) / "held.txt", Path(scratch) / "report.json"
            constraints.write_text("".join(f"{row}\n" for row in held), encoding="utf-8")
            site = Path(scratch) / "site-packages"
            show_installed(wanted.site_packages, site)
            (site / "pip").symlink_to(_own_pip())
            # `pip --python` would start the target with its `.pth` lines and sitecustomize.
            run(
                [
                    *(str(wanted.python), "-I", "-S", "-B", "-c", _FROM, str(site)),
                    *("--no-input", *_QUIET, "install", "--dry-run", "--quiet"),
                    *("--report", str(report), "--only-binary", ":all:"),
                    *("--constraint", str(constraints), *options, "--", *roots),
                ],
                env,
            )
            rows: list[dict[str, Any]] = json.loads(must_read(report, _REPORT_MOST))["install"]
            return rows

    def stage(
        self,
        python: Path,
        requirements: Path,
        index: PackageIndex,
        shell: Mapping[str, str],
        into: Path,
        progress: Callable[[int], None],
    ) -> None:
        self._pip(
            _variables(index, shell),
            python,
            *("install", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
            *("--ignore-installed", "--no-compile", "--no-warn-script-location"),
            *("--prefix", str(into), "-r", str(requirements)),
        )

    def check(self, python: Path, shell: Mapping[str, str]) -> frozenset[str]:
        try:
            self._pip(_variables(NOWHERE, shell), python, "check")
        except ToolError as error:
            return frozenset(error.tail.splitlines())
        return frozenset()

    def make_environment(self, base: str, prefix: Path, shell: Mapping[str, str]) -> None:
        """A virtual environment without pip, made by that interpreter itself. Raises ToolError."""
        run([base, "-I", "-m", "venv", "--without-pip", str(prefix)], shell)

    def cache(self, shell: Mapping[str, str]) -> Path:
        """The folder in which it unpacks what it downloads."""
        return Path(shell.get("TMPDIR") or tempfile.gettempdir())

    def _pip(
        self,
        env: Mapping[str, str],
        python: Path,
        *words: str,
    ) -> str:
        command = [str(self.own), "-I", "-m", "pip", "--python", str(python), "--no-input"]
        return run([*command, *_QUIET, *words], env)


_QUIET = ("--disable-pip-version-check", "--no-color")
# Starts pip from a folder, in an interpreter that knows no other site-packages.
_FROM = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from pip._internal.cli.main import main; sys.exit(main())"
)


def _own_pip() -> Path:
    """The package folder of the pip beside the doctor, which is pure Python."""
    spec = importlib.util.find_spec("pip")
    if spec is None or spec.origin is None:
        raise ToolError(Text("not asked: there is no pip beside the doctor"))
    return Path(spec.origin).parent


def find_pip() -> Pip | None:
    """The pip beside the doctor, if it is recent enough to work on another interpreter."""
    if importlib.util.find_spec("pip") is None:
        return None
    return Pip(Path(sys.executable)) if Version(metadata.version("pip")) >= _FIRST else None


def _variables(index: PackageIndex, shell: Mapping[str, str]) -> dict[str, str]:
    """The index as pip is told it: nothing of its own configuration counts twice."""
    env = {n: v for n, v in index.variables(shell).items() if not n.startswith(("PIP_", "UV_"))}
    env["PIP_CONFIG_FILE"] = "/dev/null"
    for name, value in (
        ("PIP_INDEX_URL", index.url),
        ("PIP_EXTRA_INDEX_URL", " ".join(index.extra)),
        ("PIP_FIND_LINKS", " ".join(index.find_links)),
        ("PIP_NO_INDEX", "1" if index.no_index else None),
        ("PIP_CERT", index.cert),
        ("PIP_CLIENT_CERT", index.client_cert),
    ):
        if value:
            env[name] = value
    return env


def _name(row: Mapping[str, Any]) -> str:
    return name_of(str(row["metadata"]["name"]))


def _hashes(row: Mapping[str, Any]) -> list[str]:
    hashes = row.get("download_info", {}).get("archive_info", {}).get("hashes", {})
    return [hashes["sha256"]] if "sha256" in hashes else []
