"""Fixtures over the stand-ins: an index of small wheels, and environments installed from it.

`conftest.py` loads them for every test: pytest_plugins = ["tests.stand_ins.fixtures"].
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from uv import find_uv_bin

from tests.conftest import DOCTOR, SYSTEM, Environment, Said, run_doctor
from tests.real_stack import isolate
from tests.stand_ins import index as indexes
from tests.stand_ins.index import Index
from tests.stand_ins.wheels import vllm_world

VLLM = "vllm==0.22.0"
FOR_H100 = ("--set", "gpus=later", "--set", "archs=9.0")  # whatever this machine has
# FlashInfer takes it unchecked, so that no toolkit of this machine is found.
BAD_CUDA_HOME = {"CUDA_HOME": "/nowhere/cuda"}
_HIDDEN = frozenset(("which", "nvcc", "ninja"))


@dataclass(frozen=True)
class Bench:
    """What installs and repairs are made with: `home` is nobody's and holds uv's cache, `path` a
    PATH on which no toolkit is found."""

    home: Path
    path: str

    def shell(self, index: str, environment: Environment, **more: str) -> dict[str, str]:
        """The variables of a shell that has this environment activated and pip configured for this
        index. No toolkit of this machine is found in it, as on a machine that has none."""
        return {
            **SYSTEM,
            "PATH": f"{environment.prefix}/bin:{self.path}",
            "HOME": str(self.home),
            "UV_CACHE_DIR": str(self.home / "uv"),
            "PIP_INDEX_URL": index,
            **more,
        }

    def doctor(
        self, command: str, *words: str, index: str, environment: Environment, **more: str
    ) -> Said:
        """`vllm-doctor COMMAND --python ENVIRONMENT WORDS` in such a shell."""
        about = ("--python", environment.prefix)
        shell = self.shell(index, environment, **more)
        return run_doctor(command, *about, *words, env=shell)

    def uv(self, *words: str | Path, index: str, **more: str) -> subprocess.CompletedProcess[str]:
        """uv itself, which asks this index and no other; its exit status is the caller's to read.
        It gives up at once, but for `more`."""
        env = {
            **SYSTEM,
            "HOME": str(self.home),
            "UV_CACHE_DIR": str(self.home / "uv"),
            "UV_DEFAULT_INDEX": index,
            "UV_NO_CONFIG": "1",
            "UV_HTTP_RETRIES": "0",
            "UV_PYTHON_DOWNLOADS": "never",
            **more,
        }
        command = [find_uv_bin(), "--color", "never", *words]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=60, check=False
        )

    def environment(self, prefix: Path, *requirements: str, index: str) -> Environment:
        """A fresh virtual environment without pip, with these installed."""
        ran = self.uv("venv", "--python", sys.executable, prefix, index=index)
        assert ran.returncode == 0, ran.stderr
        made = Environment(prefix)
        if requirements:
            self.install(made, *requirements, index=index)
        return made

    def install(self, environment: Environment, *words: str, index: str) -> None:
        """`uv pip install WORDS` in it; fails the test where uv does."""
        about = ("--python", environment.python)
        ran = self.uv("pip", "install", *about, *words, index=index)
        assert ran.returncode == 0, ran.stderr


def copied(environment: Environment, prefix: Path) -> Environment:
    """The same environment at another place, with files of its own. The scripts in its bin still
    start the python that they were installed for."""
    shutil.copytree(environment.prefix, prefix, symlinks=True)
    return Environment(prefix)


def path_without_toolkit(folder: Path) -> str:
    """A PATH that has all of the system's programs but ninja, nvcc, and `which`, without which
    FlashInfer looks for no nvcc: neither on PATH nor in /usr/local/cuda."""
    folder.mkdir(parents=True)
    for place in SYSTEM["PATH"].split(os.pathsep):
        for program in Path(place).iterdir():
            link = folder / program.name
            if program.name not in _HIDDEN and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


def isolated_doctor(*arguments: str | Path, env: dict[str, str]) -> Said:
    """`vllm-doctor ARGUMENTS` where this machine's own toolkit cannot be seen: nvcc-missing. On a
    machine that cannot hide it, CUDA_HOME is a place that is not there: cuda-home-bad-path."""
    if isolate.impossible():
        return run_doctor(*arguments, env={**BAD_CUDA_HOME, **env})
    ran = isolate.run([DOCTOR, *arguments], {**SYSTEM, **env}, timeout=60)
    return Said(ran.code, ran.out, ran.err)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of `vllm_world`. A test that wants others puts them into a folder of its own and
    serves both."""
    return vllm_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def index(world: Path) -> Iterator[Index]:
    """An index of these wheels, the test's own: what it was asked, and what goes wrong with it."""
    with indexes.serve(world) as served:
        yield served


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    at = tmp_path_factory.mktemp("bench")
    (at / "home").mkdir()
    return Bench(at / "home", path_without_toolkit(at / "programs"))


@pytest.fixture(scope="session")
def reference(world: Path, bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`uv pip install vllm==0.22.0` and nothing else: for tests that only read it."""
    with indexes.serve(world) as served:
        return bench.environment(
            tmp_path_factory.mktemp("reference") / "venv", VLLM, index=served.url
        )


@pytest.fixture
def broken(reference: Environment, tmp_path: Path) -> Environment:
    """The same, the test's own."""
    return copied(reference, tmp_path / "venv")
