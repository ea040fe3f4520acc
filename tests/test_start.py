"""The first moments of every command, and what it needs to start: signals, descriptors, a current
directory, and an import path that is its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from doctor.exits import FINDINGS, HEALTHY, UNKNOWN, USAGE
from tests.conftest import DOCTOR, SYSTEM, Environment, Said, run_doctor

# The console script in a process that gets a real signal at the n-th import after the doctor's own
# first line, and says how many imports there were.
SIGNALLED = """
import os, sys
number, at, count, script = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
del sys.argv[:4]
seen = -1

def heard(event, arguments):
    global seen
    if event != "import" or (seen < 0 and arguments[0] != "signal"):
        return
    seen += 1
    if seen == at:
        os.kill(os.getpid(), number)

text = open(script).read()
sys.addaudithook(heard)
try:
    exec(compile(text, script, "exec"), {"__name__": "__main__"})
finally:
    at = -1
    with open(count, "w") as file:
        file.write(str(seen))
"""
COMMANDS: Sequence[Sequence[str]] = (
    ("diagnose", "--set", "device=cpu"),
    ("explain", os.fspath(Path(__file__).parent.parent / "README.md"), "--no-live"),
    ("fit", "Qwen/Qwen3-32B", "--gpu", "h100", "--vllm-version", "0.33.0"),
    ("fix", "--format", "json"),
    ("undo", "--list"),
    ("launch", "--dry-run", "--set", "device=cpu"),
    ("env",),
    ("rules", "show", "nvcc-missing"),
    ("snapshot", "-o", "-"),
    ("schema",),
    ("--version",),
)
BY_NAME = pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0].lstrip("-"))


def signalled(
    number: int, at: int, count: Path, command: Sequence[str], server: Environment
) -> Said:
    program = [sys.executable, "-c", SIGNALLED, str(number), str(at), str(count), str(DOCTOR)]
    return run_doctor(*command, env={"VIRTUAL_ENV": str(server.prefix)}, program=program)


@BY_NAME
def test_ctrl_c_at_any_import_is_one_line_and_130(
    command: Sequence[str], shared_cpu_server: Environment, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    said = signalled(2, -2, count, command, shared_cpu_server)
    assert said.code in (HEALTHY, FINDINGS, UNKNOWN), said
    imports = int(count.read_text())
    assert imports > 20
    places = {imports // 3, 2 * imports // 3}
    if command is COMMANDS[0]:  # also the first ones, in which the guard itself is made
        places |= {0, 1, 2, *range(3, imports, imports // 8)}
    for at in sorted(places):
        said = signalled(2, at, count, command, shared_cpu_server)
        assert (said.code, said.err.strip()) == (
            130,
            "vllm-doctor: interrupted; nothing was changed",
        ), (at, said)


@pytest.mark.parametrize("number", [1, 15])
def test_other_signals_end_a_start_without_a_word(
    number: int, shared_cpu_server: Environment, tmp_path: Path
) -> None:
    for at in (3, 30, 60):
        said = signalled(number, at, tmp_path / "count", ("diagnose",), shared_cpu_server)
        assert said.code in (128 + number, -number), said
        assert (said.out, said.err) == ("", "")


def test_a_shell_that_ignores_ctrl_c_for_a_background_job_is_obeyed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SIGNALLED, "2", "40", str(tmp_path / "count"), str(DOCTOR)]
    ran = subprocess.run(
        ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *words, "rules"],
        env=SYSTEM,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (HEALTHY, "")


def test_an_installation_that_cannot_be_imported_is_said_in_a_sentence(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['click'] = None\nfrom doctor.__main__ import main\n"
        "sys.argv = ['vllm-doctor', 'rules']\nmain()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (UNKNOWN, "", 1)
    assert ran.stderr.startswith("vllm-doctor: cannot be started: ")
    assert "click" in ran.stderr


@BY_NAME
def test_few_descriptors_end_in_a_documented_code_and_a_sentence(
    command: Sequence[str], shared_cpu_server: Environment
) -> None:
    said = started(few(8), command, shared_cpu_server)
    assert said.code in (HEALTHY, FINDINGS, UNKNOWN, 78), said
    assert "Traceback" not in said.err
    assert "Exception ignored" not in said.err
    if not said.out and said.code == UNKNOWN:
        assert said.err.startswith("vllm-doctor: ")
        assert said.err.count("\n") == 1
        assert "too many open files" in said.err.lower()


def test_a_file_that_could_not_be_opened_is_not_taken_for_one_that_is_not_there(
    shared_cpu_server: Environment,
) -> None:
    command = ("diagnose", "--format", "json", "--set", "device=cpu")
    for descriptors in range(7, 14):
        said = started(few(descriptors), command, shared_cpu_server)
        if said.out:
            assert said.found() <= {"model-not-downloaded"}, descriptors


@BY_NAME
def test_without_a_current_directory_a_command_works(
    command: Sequence[str], shared_cpu_server: Environment, tmp_path: Path
) -> None:
    said = started(gone(tmp_path), command, shared_cpu_server)
    assert said.code in (HEALTHY, FINDINGS, UNKNOWN), said
    assert "was removed" not in said.err


@pytest.mark.parametrize(
    "command",
    [
        ("diagnose", "--python", "venv"),
        ("env", "--python", "venv"),
        ("fix", "--python", "venv", "--apply"),
        ("fix", "--python", "venv", "--create", "--apply"),
        ("undo", "--python", "venv"),
        ("launch", "--python", "venv"),
        ("snapshot", "--python", "venv", "-o", "-"),
        ("explain", "log"),
        ("diagnose", "--from", "tape.json"),
        ("rules", "--rules", "more"),
    ],
    ids=" ".join,
)
def test_a_relative_path_without_a_current_directory_is_a_usage_error(
    command: Sequence[str], shared_cpu_server: Environment, tmp_path: Path
) -> None:
    said = started(gone(tmp_path), command, shared_cpu_server)
    assert (said.code, said.out, said.err.count("\n")) == (USAGE, "", 1), said
    assert said.err.startswith("vllm-doctor: ")


def few(descriptors: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


def gone(tmp_path: Path) -> Callable[[], None]:
    """Takes the current directory away from the process that calls it."""

    def remove() -> None:
        folder = tmp_path / "gone"
        folder.mkdir()
        os.chdir(folder)
        folder.rmdir()

    return remove


def started(before: Callable[[], None], command: Sequence[str], server: Environment) -> Said:
    return run_doctor(*command, env={"VIRTUAL_ENV": str(server.prefix)}, before=before)


class TestPythonPath:
    """What the server would import is judged and not obeyed."""

    def plant(self, folder: Path, *names: str) -> tuple[dict[str, str], Path]:
        """Modules that leave a mark when they are imported: (variables, the mark)."""
        mark = folder / "mark"
        folder.mkdir()
        for name in names:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"open({str(mark)!r}, 'a').write({name!r})\n")
        return {"PYTHONPATH": str(folder)}, mark

    def test_of_the_script_no_module_of_it_becomes_the_doctors_own(
        self, shared_cpu_server: Environment, tmp_path: Path
    ) -> None:
        # Not `re` and what that imports: a script of pip's imports it before the doctor.
        names = ("click.py", "packaging/__init__.py", "json.py", "signal.py", "re2.py", "psutil.py")
        env, mark = self.plant(tmp_path / "path", *names)
        said = run_doctor(
            *("diagnose", "--python", shared_cpu_server.prefix, "--set", "device=cpu"), env=env
        )
        assert said.code in (HEALTHY, FINDINGS), said
        assert not mark.exists(), mark.read_text()

    def test_isolated_nothing_of_it_runs_and_it_is_judged_all_the_same(
        self, shared_cpu_server: Environment, tmp_path: Path
    ) -> None:
        names = ("doctor/__init__.py", "re.py", "sitecustomize.py", "usercustomize.py")
        env, mark = self.plant(tmp_path / "path", *names)
        (tmp_path / "path/torch").mkdir()
        (tmp_path / "path/torch/__init__.py").write_text("")
        info = tmp_path / "path/torch-2.0.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.0.0\n")
        words = ("--format", "json", "--python", str(shared_cpu_server.prefix))
        said = run_doctor(
            *("diagnose", *words, "--set", "device=cpu"),
            env=env,
            program=[sys.executable, "-I", "-m", "doctor"],
        )
        assert not mark.exists(), mark.read_text()
        assert (said.code, said.err) == (FINDINGS, "")
        assert str(tmp_path / "path") in said.out
