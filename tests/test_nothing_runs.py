"""No code of the target runs in a command that only looks: not its `.pth` lines, its sitecustomize,
its packages, and of its compilers only what tells their version."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from doctor.probes.toolkit import Toolkits
from tests.conftest import SYSTEM, Environment, Said, facts_of, script
from tests.stand_ins.fixtures import FOR_H100, Bench, copied
from tests.stand_ins.index import Index

pytestmark = pytest.mark.hardening

# Without PYTHONPATH and the user's own site-packages, which a console script obeys before any line
# of ours; `-c` where the doctor has to do without uv.
DOCTOR = (sys.executable, "-I", "-m", "doctor")
WITHOUT_UV = (
    *(sys.executable, "-I", "-c"),
    "import sys; sys.modules['uv'] = None; sys.argv[0] = 'vllm-doctor'; "
    "from doctor.cli import main; main()",
)


@dataclass(frozen=True)
class Planted:
    """An environment in which everything that Python would run leaves a mark in a folder."""

    bench: Bench
    index: Index
    one: Environment
    folder: Path

    @property
    def marks(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "marks").iterdir())

    @property
    def shell(self) -> dict[str, str]:
        planted = str(self.folder / "path")
        return {
            **self.bench.shell(self.index.url, self.one),
            "HOME": str(self.folder / "home"),
            "UV_CACHE_DIR": str(self.folder / "cache"),
            "PYTHONPATH": planted,
            "PYTHONSTARTUP": f"{planted}/sitecustomize.py",
        }

    def __call__(self, *words: str, start: tuple[str, ...] = DOCTOR) -> Said:
        ran = subprocess.run(
            [*start, *words],
            env=self.shell,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in ran.stderr
        return Said(ran.returncode, ran.stdout, ran.stderr)

    def on_the_target(self, command: str, *words: str) -> Said:
        return self(command, "--python", str(self.one.prefix), *words)


def plant(folder: Path, marks: Path, where: str) -> None:
    """All that `site` runs out of a folder of packages, and two packages of the target's."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("sitecustomize.py", "usercustomize.py", "vllm/__init__.py", "torch/__init__.py"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # uv's may be a link into its cache
        path.write_text(
            _mark(marks, f"{where} {name.removesuffix('/__init__.py').removesuffix('.py')}")
        )
    (folder / "zz.pth").write_text(_mark(marks, f"{where} pth"))


def _mark(marks: Path, name: str) -> str:
    return f"import os; os.close(os.open({str(marks / name)!r}, os.O_CREAT | os.O_WRONLY))\n"


@pytest.fixture
def planted(bench: Bench, index: Index, reference: Environment, tmp_path: Path) -> Planted:
    one = copied(reference, tmp_path / "venv")
    settings = one.prefix / "pyvenv.cfg"
    text = settings.read_text()
    settings.write_text(text.replace("system-site-packages = false", "system-site-packages = true"))
    (tmp_path / "marks").mkdir()
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    user = tmp_path / f"home/.local/lib/{python}/site-packages"
    for folder, name in ((one.site, "venv"), (user, "user"), (tmp_path / "path", "path")):
        plant(folder, tmp_path / "marks", name)
    return Planted(bench, index, one, tmp_path)


def test_what_is_planted_would_run(planted: Planted) -> None:
    command = [str(planted.one.python), "-c", "import vllm, torch"]
    subprocess.run(command, env=planted.shell, check=True)
    alone = {name: value for name, value in planted.shell.items() if name != "PYTHONPATH"}
    subprocess.run(command, env=alone, check=True)
    names = ("pth", "sitecustomize", "usercustomize", "vllm", "torch")
    assert {f"venv {n}" for n in names} | {"user pth"} <= {*planted.marks}
    assert {f"path {n}" for n in names if n != "pth"} <= {*planted.marks}


COMMANDS = (
    ("diagnose", *FOR_H100),
    ("fix", *FOR_H100),
    ("fix", *FOR_H100, "--format", "json"),
    ("fix", *FOR_H100, "--script", "-"),
    ("snapshot", *FOR_H100, "-o", "-"),
    ("launch", *FOR_H100, "--dry-run"),
    ("env",),
    ("undo",),
    ("undo", "--list"),
    ("undo", "--purge"),
    ("explain", "fixtures/logs/kv-cache-too-small/real-vllm-0.22.0-cpu.log"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_that_looks_runs_nothing_of_the_target(
    planted: Planted, command: tuple[str, ...]
) -> None:
    name, *words = command
    words = [str(Path(__file__).parents[1] / w) if w.startswith("fixtures") else w for w in words]
    said = planted.on_the_target(name, *words)
    assert said.code in (0, 1, 3, 78), said.err
    assert planted.marks == []


def test_neither_do_the_rules(planted: Planted) -> None:
    assert planted("rules").code == 0
    assert planted("rules", "show", "nvcc-missing").code == 0
    assert planted.marks == []


def test_a_plan_by_pip_runs_nothing_of_the_target_either(planted: Planted) -> None:
    words = ("fix", "--python", str(planted.one.prefix), *FOR_H100)
    by_uv, by_pip = planted(*words), planted(*words, start=WITHOUT_UV)
    if "there is no uv" in by_pip.err:
        pytest.skip("the tests' environment has no pip")
    assert "13.5.37 → 13.0.88" in by_pip.out, by_pip.err
    rows = [[row for row in one.out.splitlines() if "→" in row] for one in (by_uv, by_pip)]
    assert rows[0] == rows[1]
    assert planted.marks == []


def test_an_active_environment_is_started_no_other_way(planted: Planted) -> None:
    env = {**planted.shell, "VIRTUAL_ENV": str(planted.one.prefix)}
    subprocess.run([*DOCTOR, "diagnose", *FOR_H100], env=env, capture_output=True, check=False)
    assert planted.marks == []


class TestCompilers:
    """Those of the target are asked for their version; those of the machine say more."""

    LOG = 'echo "$(basename $0) $*" >> {log}\n'
    GCC = (
        "echo 'x86_64-conda-linux-gnu-cc (conda-forge gcc 13.3.0-1) 13.3.0'; "
        "echo 'Copyright (C) 2023 Free Software Foundation, Inc.'"
    )
    NVCC = "echo 'Cuda compilation tools, release 13.0, V13.0.88'"

    @pytest.fixture
    def log(self, server: Environment, tmp_path: Path) -> Path:
        log = tmp_path / "log"
        kit = server.prefix / "kit"
        for path, text in (
            (server.prefix / "bin/gcc", self.GCC),
            (server.prefix / "bin/c++", self.GCC),
            (kit / "bin/nvcc", self.NVCC),
            (kit / "nvvm/bin/cicc", self.NVCC),
        ):
            script(path, self.LOG.format(log=log) + text)
        return log

    def run(self, one: Environment, *words: str) -> Said:
        ran = subprocess.run(
            [*DOCTOR, "diagnose", "--python", one.prefix, *FOR_H100, "--format", "json", *words],
            env={
                **SYSTEM,
                "PATH": f"{one.prefix}/bin:{SYSTEM['PATH']}",
                "CUDA_HOME": f"{one.prefix}/kit",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return Said(ran.returncode, ran.stdout, ran.stderr)

    def test_those_below_the_prefix_are_asked_for_their_version_alone(
        self, server: Environment, log: Path
    ) -> None:
        said = self.run(server)
        assert sorted(log.read_text().splitlines()) == [
            "c++ --version",
            "gcc --version",
            "nvcc --version",
        ]
        assert said.outcome("c-compiler-missing")["verdict"] == "ok"
        assert said.outcome("nvcc-too-old-for-arch")["verdict"] == "ok"
        assert said.outcome("nvvm-ptxas-skew")["verdict"] == "unknown"

    def test_a_wrapper_of_the_targets_is_read_and_not_run(
        self, server: Environment, log: Path
    ) -> None:
        """It would say where nvcc is with --dryrun."""
        real = f"{server.prefix}/kit/bin/nvcc"
        script(server.prefix / "bin/nvcc", f'exec {real} "$@"')
        path = {"PATH": f"{server.prefix}/bin:{SYSTEM['PATH']}", "CUDA_HOME": ""}
        found = facts_of(server, {**path, "CUDA_PATH": str(server.prefix)}).get(Toolkits).found
        assert found is not None
        assert (found.wrapper, found.top) == (True, server.prefix / "kit")
        assert {row for row in log.read_text().splitlines() if "nvcc" in row} == {"nvcc --version"}

    def test_conda_knows_which_cicc_it_installed(self, server: Environment, log: Path) -> None:
        records = server.prefix / "conda-meta"
        records.mkdir()
        (records / "cuda-nvvm-tools-13.0.88-h4bc722e_0.json").write_text("{}")
        assert self.run(server).outcome("nvvm-ptxas-skew")["verdict"] == "ok"
