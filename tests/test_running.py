"""Who runs out of an environment or builds in a cache: found among real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from doctor.repair import running
from doctor.repair.running import Process
from tests.conftest import (
    BASE_PYTHON,
    PYTHON_FOLDER,
    SYSTEM,
    Environment,
    bare_environment,
    shared_library,
    wait_for,
)

SLEEP = "import time; print('up', flush=True); time.sleep(86400)"


@contextlib.contextmanager
def running_as(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    executable: Path | None = None,
) -> Iterator[int]:
    """A process that has said a word and then waits; its pid."""
    with subprocess.Popen(
        [os.fspath(word) for word in command],
        executable=executable,
        env={**SYSTEM, **(env or {})},
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == b"up\n"
            yield child.pid
        finally:
            child.kill()


def pids(found: tuple[Process, ...]) -> set[int]:
    return {p.pid for p in found}


def users(prefix: Path) -> set[int]:
    return pids(running.users(prefix, ignore_own=False))


def builders(folder: Path) -> set[int]:
    return pids(running.builders(folder, ignore_own=False))


@pytest.fixture
def torch(bare: Environment) -> Path:
    """An extension of torch's in the environment, which can be loaded."""
    return shared_library(bare.site / "torch/_C.so")


def load(library: Path) -> str:
    return f"import ctypes; ctypes.CDLL({str(library)!r}); {SLEEP}"


class TestUsers:
    def test_a_python_of_the_environment_uses_it(self, bare: Environment) -> None:
        with running_as(bare.python, "-c", SLEEP) as pid:
            assert pid in users(bare.prefix)
            assert pid not in users(bare.prefix.parent / "other")

    def test_a_relative_name_is_one_below_the_current_directory(self, bare: Environment) -> None:
        with running_as("bin/python", "-c", SLEEP, cwd=bare.prefix) as pid:
            assert pid in users(bare.prefix)

    def test_a_bare_name_is_the_one_on_the_path_it_was_started_with(
        self, bare: Environment
    ) -> None:
        env = {"PATH": f"{bare.prefix}/bin:/usr/bin:/bin"}
        with running_as("python", "-c", SLEEP, env=env, executable=bare.python) as pid:
            assert pid in users(bare.prefix)

    def test_a_console_script_is_known_by_its_interpreter(self, bare: Environment) -> None:
        tool = bare.prefix / "bin/vllm"
        tool.write_text(f"#!{bare.python}\n{SLEEP}\n", encoding="utf-8")
        tool.chmod(0o755)
        with running_as(tool, "serve", "m") as pid:
            (one,) = (p for p in running.users(bare.prefix, ignore_own=False) if p.pid == pid)
            assert str(one) == f"python vllm serve m (pid {pid})"

    def test_a_process_under_another_name_is_known_by_what_it_has_loaded(
        self, bare: Environment, torch: Path
    ) -> None:
        # As vLLM's engine: its title is its own, its executable the interpreter below the venv.
        title = "VLLM::EngineCore"
        with running_as(title, "-c", load(torch), executable=BASE_PYTHON) as pid:
            assert pid in users(bare.prefix)

    def test_what_is_loaded_counts_also_where_its_file_is_gone(
        self, bare: Environment, torch: Path
    ) -> None:
        with running_as(BASE_PYTHON, "-c", load(torch)) as pid:
            torch.unlink()
            assert pid in users(bare.prefix)

    def test_an_environment_that_is_reached_by_a_link_is_the_same(
        self, bare: Environment, torch: Path
    ) -> None:
        link = bare.prefix.parent / "current"
        link.symlink_to(bare.prefix)
        with (
            running_as(bare.python, "-c", SLEEP) as by_name,
            running_as(BASE_PYTHON, "-c", load(torch)) as by_file,
            running_as(link / "bin/python", "-c", SLEEP) as by_link,
        ):
            assert {by_file, by_link} <= users(bare.prefix)
            assert {by_name, by_file, by_link} <= users(link)

    def test_a_tool_from_a_wheel_uses_it(self, bare: Environment) -> None:
        tool = bare.site / "ray/core/raylet"
        tool.parent.mkdir(parents=True)
        shutil.copy("/bin/sh", tool)
        with running_as(tool, "-c", "echo up; read line") as pid:
            assert pid in users(bare.prefix)

    def test_others_do_not(self, bare: Environment, torch: Path) -> None:
        """An editor on one of its files, a shell in it, a Python beside it, a longer name."""
        longer = bare_environment(bare.prefix.with_name(bare.prefix.name + "-2"))
        script = "echo up; read line"
        with (
            running_as("/bin/sh", "-c", script, bare.prefix / "bin/activate") as editor,
            running_as("/bin/sh", "-c", script, cwd=bare.prefix) as shell,
            running_as(BASE_PYTHON, "-c", SLEEP, cwd=bare.prefix) as beside,
            running_as(longer.python, "-c", SLEEP) as other,
        ):
            assert not {editor, shell, beside, other} & users(bare.prefix)

    def test_of_a_prefix_that_the_whole_machine_shares_only_what_serves_counts(
        self, tmp_path: Path
    ) -> None:
        site = tmp_path / "usr/lib" / PYTHON_FOLDER / "site-packages"
        served = shared_library(site / "torch/lib/libtorch.so")
        apt = shared_library(site / "apt_pkg.so")
        (tmp_path / "usr/bin").mkdir()
        python = tmp_path / "usr/bin/python3"
        python.symlink_to(BASE_PYTHON)
        with (
            running_as(python, "-c", load(served)) as server,
            running_as(python, "-c", load(apt)) as tool,
        ):
            found = users(tmp_path / "usr")
            assert server in found
            assert tool not in found

    def test_in_condas_bin_only_a_python_counts(self, tmp_path: Path) -> None:
        (tmp_path / "conda-meta").mkdir()
        (tmp_path / "bin").mkdir()
        shutil.copy("/bin/sh", tmp_path / "bin/tmux")
        (tmp_path / "bin/python3").symlink_to(BASE_PYTHON)
        with (
            running_as(tmp_path / "bin/tmux", "-c", "echo up; read line") as terminal,
            running_as(tmp_path / "bin/python3", "-c", SLEEP) as python,
        ):
            found = users(tmp_path)
            assert python in found
            assert terminal not in found

    def test_the_doctor_itself_and_its_family_are_none(self, bare: Environment) -> None:
        with running_as(bare.python, "-c", SLEEP) as child:
            assert child not in pids(running.users(bare.prefix))
        # This one runs out of the environment that the tests run in.
        own = Path(sys.prefix)
        assert os.getpid() in users(own)
        assert os.getpid() not in pids(running.users(own))

    def test_a_secret_on_a_command_line_is_not_shown(self, bare: Environment) -> None:
        script = bare.prefix / "serve.py"
        script.write_text(SLEEP, encoding="utf-8")
        with running_as(bare.python, "-u", script, "a\x1b[2J", "--api-key", "geheim") as pid:
            (one,) = (p for p in running.users(bare.prefix, ignore_own=False) if p.pid == pid)
            assert one.name == r"python serve.py a\x1b[2J"


class TestBuilders:
    @pytest.fixture
    def op(self, tmp_path: Path) -> Path:
        folder = tmp_path / "90a/cached_ops/sampling"
        folder.mkdir(parents=True)
        (folder.parent / "tmp").mkdir()
        (folder.parent / "page").mkdir()
        return folder

    def test_one_that_stands_in_it(self, op: Path) -> None:
        with running_as("/bin/sh", "-c", "echo up; read line", cwd=op) as pid:
            assert pid in builders(op)
            assert pid in builders(op.parent)
            assert pid not in builders(op.parent / "page")

    @pytest.mark.parametrize("form", ["{}", "{}/sampling.cuda.o", "-o{}/sampling.so"])
    def test_one_that_names_it(self, op: Path, form: str) -> None:
        word = form.format(op)
        with running_as("/bin/sh", "-c", "echo up; read line", "nvcc", word) as pid:
            assert pid in builders(op)

    def test_one_that_names_a_longer_name(self, op: Path) -> None:
        words = (f"{op}_v2/x.o", f"{op}.so")
        with running_as("/bin/sh", "-c", "echo up; read line", "nvcc", *words) as pid:
            assert pid not in builders(op)

    def test_a_ninja_that_builds_many_from_above(self, op: Path, tmp_path: Path) -> None:
        ninja = tmp_path / "ninja"
        shutil.copy("/bin/sh", ninja)
        with running_as(ninja, "-c", "echo up; read line", cwd=op.parent) as pid:
            assert pid in builders(op)
        with running_as("/bin/sh", "-c", "echo up; read line", cwd=op.parent) as pid:
            assert pid not in builders(op)

    def test_a_server_that_has_loaded_it(self, op: Path) -> None:
        library = shared_library(op / "sampling.so")
        with running_as(BASE_PYTHON, "-c", load(library)) as pid:
            assert pid in builders(op)
            assert pid not in builders(op.parent / "page")

    def test_one_that_holds_its_lock_or_waits_for_it(self, op: Path) -> None:
        lock = op.parent / "tmp/sampling.lock"
        hold = f"import fcntl; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        wait = f"print('up', flush=True); {hold}"
        with running_as("python", "-c", hold + SLEEP, executable=BASE_PYTHON) as holder:
            assert holder in builders(op)
            assert holder not in builders(op.parent / "page")
            with running_as("python", "-c", wait, executable=BASE_PYTHON) as waiter:
                wait_for(lambda: waiter in builders(op))

    def test_a_lock_alone_can_be_asked_for(self, op: Path) -> None:
        lock = op.parent / "tmp/page.lock"
        hold = f"f = open('tmp/page.lock', 'w'); {SLEEP}"
        with running_as(BASE_PYTHON, "-c", hold, cwd=op.parent) as pid:
            assert pid in builders(lock)

    def test_nobody_and_nothing(self, op: Path) -> None:
        assert builders(op) == set()
        assert builders(op / "not there") == set()


def test_it_takes_no_longer_than_to_read_a_few_times_what_the_processes_tell(
    bare: Environment,
) -> None:
    with contextlib.ExitStack() as many:
        shell = ("/bin/sh", "-c", "echo up; read line")
        pids = [many.enter_context(running_as(*shell)) for _ in range(250)]
        running.users(bare.prefix)
        began = time.process_time()
        running.users(bare.prefix)
        running.builders(bare.prefix)
        took = time.process_time() - began
        began = time.process_time()
        for pid in pids:
            for name in ("maps", "environ", "cmdline", "stat"):
                Path(f"/proc/{pid}/{name}").read_bytes()
        assert took < 10 * (time.process_time() - began)
