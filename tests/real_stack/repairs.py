"""Places whose environment may be repaired, and what a repair left in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.real_stack import isolate, lab
from tests.real_stack.place import DOCTOR, Place


def network() -> dict[str, str]:
    """What this machine needs to reach its index, and uv's cache, since a new home has none."""
    named = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    kept = {n: v for n, v in os.environ.items() if n in named or n.lower().endswith("_proxy")}
    pip = {n: v for n, v in os.environ.items() if n.startswith(("PIP_", "UV_"))}
    return {**kept, **pip, "UV_CACHE_DIR": str(lab.uv_cache())}


def copy_of(environment: lab.Environment, where: Path) -> lab.Environment:
    """The lab's environment once more, its files linked: a repair moves files and changes none."""
    try:
        subprocess.run(["cp", "-al", str(environment.prefix), str(where)], check=True)
    except subprocess.CalledProcessError:  # another filesystem
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(environment.prefix, where, symlinks=True)
    return lab.Environment(where)


def manifest(prefix: Path) -> dict[str, str]:
    """Every file and link below a folder: kind, size and time or target; empty folders as well."""
    found = {}
    for at, folders, files in os.walk(prefix):
        for name in [*files, *folders]:
            path = Path(at) / name
            key = str(path.relative_to(prefix))
            stat = path.lstat()
            if path.is_symlink():
                found[key] = f"link {path.readlink()}"
            elif path.is_file():
                found[key] = f"file {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
            elif not any(path.iterdir()):
                found[key] = "empty folder"
    return found


def versions(target: lab.Environment) -> dict[str, str]:
    """What is installed, read as pip reads it."""
    infos = (p.name.removesuffix(".dist-info") for p in target.site_packages.glob("*.dist-info"))
    return dict(info.rpartition("-")[::2] for info in infos)


@dataclass(frozen=True)
class Fixed:
    code: int
    data: dict[str, Any]
    err: str

    @property
    def outcomes(self) -> dict[str, str]:
        return {r["action"]: r["outcome"] for r in self.data["results"]}

    @property
    def errors(self) -> set[str]:
        return {
            o["id"]
            for o in self.data["outcomes"]
            if o["verdict"] == "found" and o["severity"] == "error"
        }


@dataclass(frozen=True)
class Broken:
    """A place that may be repaired: its environment is its own."""

    place: Place

    @property
    def target(self) -> lab.Environment:
        return self.place.target

    def command(self, *words: str) -> list[str | Path]:
        return [DOCTOR, *words, "--python", str(self.target.prefix)]

    def run(self, *words: str) -> isolate.Ran:
        ran = self.place.run(*self.command(*words))
        assert "Traceback" not in ran.err, ran.err
        return ran

    def fix(self, *options: str) -> Fixed:
        ran = self.run("fix", "--format", "json", "--mirror", "default", *options)
        try:
            return Fixed(ran.code, json.loads(ran.out), ran.err)
        except ValueError:
            raise AssertionError(f"exit {ran.code}, no JSON:\n{ran.text}") from None

    def variables(self) -> dict[str, str]:
        """What `vllm-doctor env` prints, as a shell takes it."""
        shell = f'eval "$({DOCTOR} env --python {self.target.prefix})"; env -0'
        ran = self.place.run("sh", "-c", shell)
        assert ran.code == 0, ran.text
        return dict(row.split("=", 1) for row in ran.out.split("\0") if "=" in row)


def without_bytecode(found: dict[str, str]) -> dict[str, str]:
    """What FlashInfer's build had Python compile of other distributions is not the doctor's."""
    return {path: what for path, what in found.items() if "__pycache__" not in path}


def assert_first_fix_is_torchs_own_toolkit(one: Broken) -> None:
    """The plan for a machine without a toolkit: the wheels of the CUDA release that torch is built
    for, a CUDA home over them, and the variables that lead to it."""
    release = one.place.python("import torch; print(torch.version.cuda)").out.strip()
    steps = [step for action in one.fix().data["plan"] for step in action["steps"]]
    installs = [step for step in steps if step["kind"] == "pip-install"]
    rest = [step for step in steps if step not in installs]
    asked = [r for step in installs for r in step["requirements"]]
    (toolkit,) = (r for r in asked if r.startswith("cuda-toolkit["))
    assert toolkit.partition("==")[2].startswith(f"{release}."), toolkit
    assert [(step["kind"], step.get("name")) for step in rest] == [
        ("cuda-home", None),
        ("set-variable", "CUDA_HOME"),
        ("prepend-path", "PATH"),
    ]
