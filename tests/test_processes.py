"""Who holds the GPUs: real processes that call themselves what vLLM's do, seen through the real
/proc, and a driver's library that lists them; an engine whose server was really killed, ended by
the real command."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from doctor.fixes import EndProcess
from doctor.fixes.processes import ProcessesEnded, _not_ended
from doctor.probes import processes
from doctor.probes.driver import ProcessOnGpu
from doctor.probes.processes import Holder, ProcessTable
from doctor.repair.context import RepairContext
from doctor.repair.errors import StageError
from doctor.repair.manifest import Effect
from doctor.target import Live
from tests import stand_ins
from tests.conftest import BASE_PYTHON, SYSTEM, Environment, Said, run_doctor, wait_for

# Starts a process that calls itself by its first word, and says its number.
SPAWN = """
import ctypes, json, os, subprocess, sys, time

def spawn(title, code, *words):
    child = subprocess.Popen(
        [title, "-I", "-S", "-c", code, *words], executable=sys.argv[1], stdout=subprocess.PIPE
    )
    return [child.pid, json.loads(child.stdout.readline())]
"""
WAIT = "import time; print('[]', flush=True); time.sleep(86400)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAIT
ENGINE = SPAWN + "print(json.dumps(spawn({worker!r}, {code!r}, sys.argv[1])), flush=True)\n{then}"
SERVER = SPAWN + "print(json.dumps(spawn({engine!r}, {code!r}, sys.argv[1])), flush=True)\n{then}"
STAY = "time.sleep(86400)"


@dataclasses.dataclass(frozen=True)
class Tree:
    """What was started: the number of each, and how its server is killed."""

    server: int
    engine: int
    worker: int

    def kill_server(self) -> None:
        """As systemd or docker does, without a word to its engine."""
        parent = _parent(self.engine)
        os.kill(self.server, signal.SIGKILL)
        wait_for(lambda: _parent(self.engine) != parent)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(") ")[2].split()[0] not in ("Z", "X")


@pytest.fixture(scope="module")
def reaper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that is no Python's, and takes in orphans."""
    made = tmp_path_factory.mktemp("reaper") / "reaper"
    source = Path(stand_ins.__file__).parent / "reaper.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", made, source], check=True)
    return made


@contextlib.contextmanager
def started(
    reaper: Path,
    *command: str | Path,
    worker: str = "VLLM::Worker_TP0",
    code: str = WAIT,
    engine: str = "VLLM::EngineCore",
) -> Iterator[Tree]:
    """A server below the reaper, `command` and then its program, with an engine and a worker."""
    inner = ENGINE.format(worker=worker, code=code, then=STAY)
    program = SERVER.format(engine=engine, code=inner, then=STAY)
    words = [*command] if command else [BASE_PYTHON, "-c", program]
    words = [program if word == "PROGRAM" else word for word in words]
    with subprocess.Popen(
        [str(reaper), *map(str, words), str(BASE_PYTHON)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=SYSTEM,
    ) as child:
        assert child.stdout is not None
        engine_pid, (worker_pid, _) = json.loads(child.stdout.readline())
        made = Tree(_parent(engine_pid), engine_pid, worker_pid)
        try:
            yield made
        finally:
            for pid in (made.server, made.engine, made.worker, child.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def served(environment: Environment, reaper: Path, *options: str, **more: str) -> Iterator[Tree]:
    """As `vllm serve` runs out of an environment: python, and the script."""
    script = environment.prefix / "bin/vllm"
    script.write_text("import sys; del sys.argv[1:-1]\nexec(open(__file__ + '.program').read())")
    inner = ENGINE.format(worker="VLLM::Worker_TP0", code=more.get("code", WAIT), then=STAY)
    program = SERVER.format(engine="VLLM::EngineCore", code=inner, then=STAY)
    Path(f"{script}.program").write_text(program)
    words: list[str | Path] = [environment.python, script, "serve", "org/m", *options]
    with started(reaper, *words) as made:
        yield made


def seen(pid: int, prefix: Path | None = None, held: int = 1 << 30) -> Holder:
    return ProcessTable(Live({}), prefix).holder(0, ProcessOnGpu(pid, held))


class TestWhoIsThere:
    def test_a_process_is_told_with_its_user_and_when_it_began(self, reaper: Path) -> None:
        with started(reaper) as made:
            one = seen(made.engine)
        assert (one.seen, one.own, one.uid) == (True, True, os.geteuid())
        assert one.command == "VLLM::EngineCore"
        assert one.began is not None
        assert abs(time.time() - one.began) < 60

    def test_a_server_that_lives_is_known_by_environment_and_port(
        self, bare: Environment, reaper: Path
    ) -> None:
        with served(bare, reaper, "--port", "8123") as made:
            for pid in (made.engine, made.worker):
                one = seen(pid, bare.prefix)
                assert one.server is not None
                assert (one.server.pid, one.server.here, one.server.port) == (
                    made.server,
                    True,
                    8123,
                )
                assert one.orphan is None
            other = seen(made.engine, bare.prefix / "another").server
            assert other is not None
            assert not other.here

    @pytest.mark.parametrize(
        ("options", "port"),
        [
            ((), 8000),
            (("--port=8123",), 8123),
            (("--api-key", "k", "--port", "8123"), 8123),
            (("--config", "serve.yaml"), None),
        ],
    )
    def test_the_port_of_a_server(
        self, bare: Environment, reaper: Path, options: tuple[str, ...], port: int | None
    ) -> None:
        with served(bare, reaper, *options) as made:
            server = seen(made.engine, bare.prefix).server
        assert server is not None
        assert server.port == port

    def test_no_secret_of_a_command_line_is_told(self, bare: Environment, reaper: Path) -> None:
        with served(bare, reaper, "--api-key", "hunter2-hunter2") as made:
            assert seen(made.server).command == "python vllm serve org/m"

    def test_what_a_process_calls_itself_cannot_drive_a_terminal(self, reaper: Path) -> None:
        with started(reaper, worker="VLLM::\x1b[2J\nroot") as made:
            assert seen(made.worker).command == "VLLM::\\x1b[2J\\x0aroot"

    def test_a_process_that_is_not_there_is_told_as_not_visible(self) -> None:
        assert seen((1 << 22) + 1) == Holder(0, (1 << 22) + 1, 1 << 30)

    def test_in_a_container_a_number_is_believed_only_with_the_driver_loaded(
        self, reaper: Path, driver: Path
    ) -> None:
        class Inside(Live):
            def realpath(self, path: Path) -> Path:
                if path == Path("/proc/self/ns/pid"):
                    return Path("/proc/7/ns/pid:[4026532999]")
                return super().realpath(path)

        loads = f"import ctypes; ctypes.CDLL({str(driver / 'libcuda.so.1')!r}); " + WAIT
        with started(reaper, code=loads) as made:
            table = ProcessTable(Inside({}))
            assert table.holder(0, ProcessOnGpu(made.worker)).seen
            assert not table.holder(0, ProcessOnGpu(made.engine)).seen

    @pytest.mark.parametrize("mask", ["ShdPnd", "SigPnd"])
    def test_a_pending_sigkill_is_seen(
        self, mask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "7"
        folder.mkdir()
        (folder / "stat").write_text(f"7 (a) b) D 1 {'0 ' * 17}99 0\n")
        (folder / "status").write_text(f"Name:\ta\nUid:\t5\t5\t5\t5\n{mask}:\t0000000000000100\n")
        monkeypatch.setattr(processes, "_PROC", tmp_path)
        one = ProcessTable(Live({})).seen(7)
        assert one is not None
        assert (one.killed, one.state, one.uid, one.name) == (True, "D", 5, "a) b")

    @pytest.mark.parametrize("stat", ["", "7", "7 (a) D", "7 (a) D x" + " 0" * 30, "\xff" * 9])
    def test_what_is_no_row_of_proc_is_no_process(
        self, stat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7/stat").write_text(stat)
        monkeypatch.setattr(processes, "_PROC", tmp_path)
        assert not ProcessTable(Live({})).holder(0, ProcessOnGpu(7)).seen

    def test_a_time_that_is_none_is_not_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7/stat").write_text(f"7 (a) S 1 {'0 ' * 17}{'9' * 19} 0\n")
        (tmp_path / "stat").write_text("btime 1764500000\n")
        (tmp_path / "self/ns").mkdir(parents=True)
        (tmp_path / "self/ns/pid").symlink_to("pid:[4026531836]")
        monkeypatch.setattr(processes, "_PROC", tmp_path)
        one = ProcessTable(Live({})).holder(0, ProcessOnGpu(7))
        assert (one.seen, one.began) == (True, None)


class TestOrphans:
    def test_an_engine_whose_server_was_killed_is_one_with_its_workers(
        self, bare: Environment, reaper: Path
    ) -> None:
        with served(bare, reaper) as made:
            made.kill_server()
            for pid in (made.engine, made.worker):
                one = seen(pid, bare.prefix)
                assert one.server is None
                assert one.orphan is not None
                assert one.orphan.pid == made.engine
                assert one.orphan.reachable

    def test_a_server_that_init_has_taken_in_lives(self, bare: Environment, reaper: Path) -> None:
        """Its parent is process 1, or a supervisor: that proves nothing."""
        with served(bare, reaper) as made:
            assert _parent(made.server) != os.getpid()
            assert seen(made.engine).orphan is None

    def test_a_script_that_uses_the_library_is_left_alone(self, reaper: Path) -> None:
        with started(reaper) as made:
            one = seen(made.engine)
        assert (one.server, one.orphan) == (None, None)

    def test_one_that_a_program_of_pythons_has_taken_in_is_not_proven(self, reaper: Path) -> None:
        """It may be who started it."""
        adopt = (
            "import ctypes, subprocess, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
            "subprocess.run(sys.argv[1:])\nimport time; time.sleep(86400)"
        )
        words = (BASE_PYTHON, "-c", adopt, BASE_PYTHON, "-c", "PROGRAM")
        with started(reaper, *words) as made:
            made.kill_server()
            assert seen(made.engine).orphan is None
            os.kill(_parent(made.engine), signal.SIGKILL)

    @pytest.mark.parametrize("title", ["VLLM::APIServer_0", "VLLM::Something", "engine"])
    def test_what_is_no_engine_is_none(self, reaper: Path, title: str) -> None:
        with started(reaper, engine=title) as made:
            made.kill_server()
            assert seen(made.engine).orphan is None

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
    def test_an_engine_of_another_user_is_none(self, reaper: Path) -> None:
        code = "import os; os.setuid(65534); " + WAIT
        with started(reaper, worker="VLLM::Worker", code=code, engine="VLLM::EngineCore") as made:
            made.kill_server()
            os.kill(made.engine, signal.SIGKILL)
            wait_for(lambda: _parent(made.worker) != made.engine)
            one = seen(made.worker)
            assert (one.own, one.orphan) == (False, None)


NOWHERE = cast(RepairContext, None)
"""To end a process asks nothing of the environment."""


class TestEnding:
    def effect(self, pid: int, started: int | None = None) -> Effect:
        one = ProcessTable(Live({})).seen(pid)
        at = started if started is not None else one.started if one else 0
        return Effect("end it", None, {"pid": str(pid), "started": str(at), "title": "x"})

    def test_an_orphan_ends_with_all_that_it_has_started(self, reaper: Path) -> None:
        with started(reaper) as made:
            made.kill_server()
            ProcessesEnded().carry_out(self.effect(made.engine), NOWHERE)
            assert not alive(made.engine)
            assert not alive(made.worker)

    def test_what_does_not_listen_is_killed(
        self, reaper: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("doctor.fixes.processes._PATIENCE", 1.0)
        with started(reaper, code=STUBBORN) as made:
            made.kill_server()
            ProcessesEnded().carry_out(self.effect(made.engine), NOWHERE)
            assert not alive(made.worker)

    def test_without_descriptors_of_processes_as_well(
        self, reaper: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(os, "pidfd_open")
        with started(reaper) as made:
            made.kill_server()
            ProcessesEnded().carry_out(self.effect(made.engine), NOWHERE)
            assert not alive(made.engine)

    def test_as_many_descriptors_as_there_are(
        self, reaper: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        opened = os.pidfd_open

        def far(pid: int) -> int:
            near = opened(pid)
            made = fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, 2000)
            os.close(near)
            return made

        monkeypatch.setattr(os, "pidfd_open", far)
        monkeypatch.setattr("doctor.fixes.processes._PATIENCE", 1.0)
        try:
            with started(reaper, code=STUBBORN) as made:
                made.kill_server()
                ProcessesEnded().carry_out(self.effect(made.engine), NOWHERE)
                assert not alive(made.worker)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_one_whose_threads_outlive_the_first_has_not_ended(self) -> None:
        code = (
            "import ctypes, threading, time\n"
            "threading.Thread(target=time.sleep, args=(60,)).start()\n"
            "ctypes.CDLL(None).pthread_exit(None)"
        )
        child = subprocess.Popen([BASE_PYTHON, "-c", code])
        descriptor = os.pidfd_open(child.pid)
        try:
            wait_for(lambda: (one := ProcessTable(Live({})).seen(child.pid)) and one.state == "Z")
            one = ProcessTable(Live({})).seen(child.pid)
            assert one is not None
            assert _not_ended([(one, descriptor)], 0) == [(one, descriptor)]
            child.kill()
            assert _not_ended([(one, descriptor)], 60) == []
        finally:
            os.close(descriptor)
            child.kill()
            child.wait()

    def test_another_process_that_has_got_the_number_is_left_alone(self, reaper: Path) -> None:
        with started(reaper) as made:
            made.kill_server()
            ProcessesEnded().carry_out(self.effect(made.engine, started=1), NOWHERE)
            assert alive(made.engine)

    def test_one_that_is_no_orphan_is_left_alone(self, bare: Environment, reaper: Path) -> None:
        with served(bare, reaper) as made:
            for pid in (made.engine, made.worker, made.server):
                with pytest.raises(StageError, match="not proven to be an orphan"):
                    ProcessesEnded().carry_out(self.effect(pid), NOWHERE)
            assert alive(made.engine)

    def test_one_that_has_ended_by_itself_is_no_failure(self) -> None:
        ProcessesEnded().carry_out(self.effect((1 << 22) + 1), NOWHERE)

    def test_the_line_for_a_person_ends_that_process_and_no_other(self, reaper: Path) -> None:
        with started(reaper) as made:
            made.kill_server()
            orphan = seen(made.engine).orphan
            assert orphan is not None
            step = EndProcess(orphan.pid, orphan.started, orphan.title)
            other = dataclasses.replace(step, started=1)
            for one in (other, step):
                (line,) = one.commands(None)  # type: ignore[arg-type]
                code = subprocess.run(["sh", "-c", line], check=False).returncode
                assert code == (0 if one is step else 1)
            wait_for(lambda: not alive(made.engine))


# The whole command, and a driver that lists who is there.


@dataclasses.dataclass(frozen=True)
class Machine:
    """An environment, and a driver that a scenario describes."""

    environment: Environment
    driver: Path
    scenario: Path

    def shows(self, *lines: str, gpus: int = 1) -> dict[str, str]:
        self.scenario.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return stand_ins.environment(self.driver, gpus=gpus, scenario=self.scenario)

    def diagnose(self, *lines: str, gpus: int = 1, words: tuple[str, ...] = ()) -> Said:
        about = ("--set", "tensor_parallel_size=1", "--set", "port=8000", *words)
        env = self.shows(*lines, gpus=gpus)
        about = ("--python", str(self.environment.python), *about, "--format", "json")
        return run_doctor("diagnose", *about, env=env)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_ins.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def machine(server: Environment, driver: Path, tmp_path: Path) -> Machine:
    return Machine(server, driver, tmp_path / "scenario")


def findings(said: Said, id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = said.outcome(id)["findings"]
    return found


def errors(said: Said) -> set[str]:
    return {
        one["id"]
        for one in said.report["outcomes"]
        if one["verdict"] == "found" and one["severity"] == "error"
    }


BELOW, ORPHAN = "gpu-memory-below-utilization", "orphan-engine-holds-gpu"


def test_a_process_that_holds_the_gpu_is_named(machine: Machine, reaper: Path) -> None:
    with started(reaper, worker="train") as made:
        said = machine.diagnose(f"0 process {made.worker} 70000")
        (found,) = findings(said, BELOW)
        assert BELOW in errors(said)
        assert f"GPU 0: train (pid {made.worker}, " in found["evidence"][0]
        assert "holds 68.4 GiB" in found["evidence"][0]


def test_a_running_server_of_this_environment_and_port_is_no_fault(
    machine: Machine, reaper: Path
) -> None:
    free = errors(machine.diagnose())
    with served(machine.environment, reaper, "--port", "8000") as made:
        said = machine.diagnose(f"0 process {made.worker} 75000")
        (found,) = findings(said, BELOW)
        assert found["message"] == f"GPU 0: in use by the running server, pid {made.server}"
        assert said.outcome(BELOW)["severity"] == "info"
        assert errors(said) == free
        other = machine.diagnose(f"0 process {made.worker} 75000", words=("--set", "port=8001"))
        assert errors(other) == {*free, BELOW}


def test_an_orphan_is_ended_by_the_fix_and_only_with_a_consent(
    machine: Machine, reaper: Path
) -> None:
    with served(machine.environment, reaper) as made:
        made.kill_server()
        env = machine.shows(f"0 process {made.worker} 75000")
        place = ("--python", machine.environment.python, "--only", ORPHAN)
        about = (*place, "--set", "tensor_parallel_size=1", "--set", "model=")
        shown = run_doctor("fix", *about, env=env)
        assert f"end VLLM::EngineCore (pid {made.engine})" in shown.out
        assert "--allow processes" in shown.out
        withheld = run_doctor("fix", *about, "--apply", "--format", "json", env=env)
        (left,) = withheld.report["withheld"]
        assert (left["id"], left["allow"]) == (ORPHAN, "processes")
        assert alive(made.engine)
        done = run_doctor(
            "fix", *about, "--apply", "--allow", "processes", "--format", "json", env=env
        )
        (result,) = done.report["results"]
        assert result["outcome"] == "healed", done.err
        assert not alive(made.engine)
        assert not alive(made.worker)
        again = run_doctor("undo", "--python", machine.environment.python)
        assert "cannot be undone" in again.err


def test_one_call_that_a_driver_does_not_support_leaves_the_others(
    machine: Machine, reaper: Path
) -> None:
    with started(reaper, worker="train") as made:
        said = machine.diagnose(
            f"0 process {made.worker} 70000",
            "* fail nvmlDeviceGetComputeRunningProcesses_v3 3",
            "* fail nvmlDeviceGetComputeMode 3",
            "* fail nvmlDeviceGetMigMode 3",
            "* fail nvmlDeviceGetMemoryInfo_v2 25",
        )
    (found,) = findings(said, BELOW)
    assert found["evidence"] == ["GPU 0: the driver lists no process on it"]
    reasons = {one["id"]: one["why"] for one in said.report["not_checked"]}
    assert reasons[ORPHAN] == "the driver does not list the processes on a GPU"
    assert "compute mode" in reasons["gpu-busy-exclusive-mode"]
    assert "MIG" in reasons["mig-enabled"]


def test_modes_and_unlike_gpus_are_found(machine: Machine) -> None:
    said = machine.diagnose("0 mode 2", "0 name NVIDIA L4", "1 mig 1", gpus=2)
    assert findings(said, "gpu-busy-exclusive-mode")[0]["message"].endswith("mode PROHIBITED")
    assert "NVIDIA L4" in findings(said, "mixed-gpus-order")[0]["message"]


def test_a_driver_that_hangs_amid_its_answers_is_no_answer(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from doctor.engine import Facts
    from doctor.model import Missing
    from doctor.probes.driver import InstalledDriver
    from doctor.probes.environment import LaunchEnv

    class Impatient(Live):
        def run(self, *argv: str, timeout: float = 10.0, env: Any = None) -> Any:
            return super().run(*argv, timeout=min(timeout, 2.0), env=env)

    env = machine.shows("0 hang nvmlDeviceGetComputeRunningProcesses_v3")
    launch = LaunchEnv({"PATH": "/usr/bin:/bin", **env})
    with pytest.raises(Missing, match="did not end within 2 s"):
        Facts(Impatient(), (launch,)).get(InstalledDriver)


def test_a_snapshot_has_who_is_there_and_no_name_of_a_user(
    machine: Machine, reaper: Path, tmp_path: Path
) -> None:
    made_at = tmp_path / "snapshot.json"
    with started(reaper, worker="train") as made:
        env = machine.shows(f"0 process {made.worker} 70000")
        place = ("--python", machine.environment.python)
        said = run_doctor("snapshot", *place, "-o", made_at, env=env)
        assert said.code == 0, said.err
    recorded = json.loads(made_at.read_text(encoding="utf-8"))
    assert set(recorded["search"]["/etc/passwd"].values()) == {None}
    about = ("--from", made_at, "--set", "tensor_parallel_size=1", "--format", "json")
    judged = run_doctor("diagnose", *about)
    (found,) = findings(judged, BELOW)
    assert f"train (pid {made.worker}, uid {os.geteuid()}" in found["evidence"][0]
