"""`vllm-doctor launch`: what it starts, what it refuses, what it has proven, and how it ends.

The server is a script in the environment's own bin folder that writes down how it was started and
which signals reached it; it lies where `vllm` does, and everything around it is real.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from doctor import profile as profiles
from doctor.diagnose import Question
from doctor.engine import Facts, load_rules
from doctor.errors import UsageError
from doctor.model import Rule, Text, Verdict
from doctor.probes.environment import HOME, HUB_SWITCH, HUB_TOKENS, NETRC, SAVED
from doctor.probes.interpreter import FoundBy, Interpreter, Where
from doctor.probes.toolkit import HEADERS
from doctor.probes.vllm_names import VllmOptions
from doctor.profile import Profile, ServeRequest
from doctor.serve.argv import argv, difference, shown_command
from doctor.serve.errors import LaunchError, WrongArguments
from doctor.serve.gate import JudgedStart, judge_start
from doctor.shipped import rules_folder
from doctor.target import Live
from tests.conftest import (
    BASE_PYTHON,
    DOCTOR,
    HANG,
    HANGS,
    SYSTEM,
    Environment,
    Said,
    bare_environment,
    facts_of,
    gone,
    run_doctor,
    script,
    toolkit_files,
    vllm_environment,
    wait_for,
)

ON_CPU = ("--set", "device=cpu")
REFUSED = 78
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")

SERVER = """
import json, os, signal, sys, time

def note(**said):
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps(said) + "\\n")

def came(number, frame):
    note(signal=signal.Signals(number).name)
    if number in (signal.SIGTERM, signal.SIGHUP):
        sys.exit(int(os.environ.get("ENDS", "0")))

names = NAMES
blocked = [n for n in names if getattr(signal, n) in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
ignored = [n for n in names if signal.getsignal(getattr(signal, n)) == signal.SIG_IGN]
for name in names:
    if name not in ignored:
        signal.signal(getattr(signal, name), came)
note(argv=sys.argv[1:], env=dict(os.environ), pid=os.getpid(), group=os.getpgrp(),
     cwd=os.getcwd(), blocked=blocked, ignored=ignored)
if "SAYS" in os.environ:
    print(os.environ["SAYS"], sys.stdin.readline().strip(), flush=True)
if "EXITS" in os.environ:
    sys.exit(int(os.environ["EXITS"]))
if "DIES" in os.environ:
    if os.environ["DIES"] != "9":
        signal.signal(int(os.environ["DIES"]), signal.SIG_DFL)
    os.kill(os.getpid(), int(os.environ["DIES"]))
while True:
    time.sleep(0.05)  # pause() would miss what comes just before it, and never answer
""".replace("NAMES", repr(SIGNALS))


def add_server(one: Environment) -> Path:
    """The stand-in for `vllm`; as installers write it, it names the environment's python."""
    return script(one.prefix / "bin/vllm", SERVER, str(one.python))


@pytest.fixture
def served(cpu_server: Environment) -> Environment:
    """An environment that is healthy on the CPU, with a server that writes down what it gets."""
    add_server(cpu_server)
    return cpu_server


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record"


def records(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []


def signals(path: Path) -> list[str]:
    return [row["signal"] for row in records(path) if "signal" in row]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextlib.contextmanager
def running(
    one: Environment, record: Path, *options: str | Path, wrapper: tuple[str, ...] = (), **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The doctor with its server; both are gone afterwards."""
    command = [*wrapper, str(DOCTOR), "launch", "--python", str(one.prefix), *ON_CPU]
    with subprocess.Popen(
        [*command, *map(str, options)],
        env={**SYSTEM, "RECORD": str(record), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as doctor:
        try:
            wait_for(lambda: records(record) or doctor.poll() is not None)
            assert records(record), doctor.communicate()
            yield doctor
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(doctor.pid, signal.SIGKILL)


def run(one: Environment, record: Path, *options: str | Path, **env: str) -> Said:
    """A launch whose server ends by itself."""
    base = ("launch", "--python", one.prefix, *ON_CPU)
    return run_doctor(*base, *options, env={"RECORD": str(record), **env})


# The command line.


def interpreter(one: Environment) -> Interpreter:
    return facts_of(one).get(Interpreter)


def words(one: Environment, profile: Profile, *extra: str) -> tuple[str, ...]:
    return argv(Live({}), interpreter(one), profile, extra)


class TestArgv:
    def test_it_is_the_profiles_own_command(self, served: Environment) -> None:
        made = words(served, profiles.load_profile(profiles.DEFAULT_PROFILE), "--enforce-eager")
        assert shlex.join(made) == (
            f"{served.prefix}/bin/vllm serve zai-org/GLM-4.7-Flash "
            "--served-model-name glm-4.7-flash --host 0.0.0.0 --port 8099 "
            "--tensor-parallel-size 2 --max-model-len 32768 --gpu-memory-utilization 0.9 "
            "--reasoning-parser glm45 --tool-call-parser glm47 --enable-auto-tool-choice "
            "--enforce-eager"
        )

    def test_what_a_profile_leaves_open_is_left_to_vllm(self, served: Environment) -> None:
        made = words(served, Profile("org/name", host="127.0.0.1", port=1))
        assert made[1:] == (
            *("serve", "org/name", "--host", "127.0.0.1", "--port", "1"),
            *("--tensor-parallel-size", "1", "--gpu-memory-utilization", "0.9"),
        )

    def test_a_value_that_looks_like_an_option_is_none(self, served: Environment) -> None:
        assert "--served-model-name=--x" in words(served, Profile("m", served_model_name="--x"))
        with pytest.raises(WrongArguments, match="taken for an option"):
            words(served, Profile("--config=x"))

    @pytest.mark.parametrize(
        ("extra", "setting"),
        [
            ("--port=1", "port"),
            ("--port", "port"),
            ("--tensor-parallel-size", "tensor_parallel_size"),
            ("--tensor_parallel_size=4", "tensor_parallel_size"),
            ("--tensor-par", "tensor_parallel_size"),
            ("-tp", "tensor_parallel_size"),
            ("-tp=4", "tensor_parallel_size"),
            ("-tp4", "tensor_parallel_size"),
            ("--max-model-len", "max_model_len"),
            ("--model=other", "model"),
            ("--no-enable-auto-tool-choice", "enable_auto_tool_choice"),
            ("--disable-auto-tool-choice", "enable_auto_tool_choice"),
            ("--no-disable-auto-tool-choice", "enable_auto_tool_choice"),
            ("--device-memory-utilization=0.5", "gpu_memory_utilization"),
        ],
    )
    def test_what_was_judged_is_not_changed_behind_its_back(
        self, served: Environment, extra: str, setting: str
    ) -> None:
        with pytest.raises(WrongArguments, match=f"use --set {setting}="):
            words(served, Profile("m"), "--enforce-eager", extra)

    @pytest.mark.parametrize(
        "extra",
        ["--model-impl", "--reasoning-parser-plugin", "-O3", "--hf-overrides", "-q", "--api-key"],
    )
    def test_other_options_are_vllms(self, served: Environment, extra: str) -> None:
        assert words(served, Profile("m"), extra, "x")[-2:] == (extra, "x")

    @pytest.mark.parametrize(
        ("extra", "why"),
        [
            (("--enforce-eagre",), "no option --enforce-eagre.*; did you mean --enforce-eag"),
            (("--swap-space", "4"), "no option --swap-space; vLLM 0.17.1 was the last that had it"),
            (("--enforce-eager", "--no-such=1"), "the installed vLLM has no option --no-such"),
            (("-z",), "the installed vLLM has no option -z"),
        ],
    )
    def test_an_option_that_this_vllm_does_not_have_is_refused(
        self, served: Environment, extra: tuple[str, ...], why: str
    ) -> None:
        options = facts_of(served).get(VllmOptions).names
        with pytest.raises(WrongArguments, match=why):
            argv(Live({}), interpreter(served), Profile("m"), extra, options)

    @pytest.mark.parametrize(
        "extra",
        [
            ("--enforce_eager", "--hf-overrides.a.b", "-1", "-qawq"),
            ("--reasoning-parser-plug", "a -b", "--no-enforce-eager"),
            ("--enforce-eager", "--", "--no-such"),
        ],
    )
    def test_what_vllm_would_understand_is_passed_on(
        self, served: Environment, extra: tuple[str, ...]
    ) -> None:
        options = facts_of(served).get(VllmOptions).names
        made = argv(Live({}), interpreter(served), Profile("m"), extra, options)
        assert made[-len(extra) :] == extra

    def test_an_option_of_the_profile_is_not_passed_to_a_vllm_without_it(
        self, served: Environment
    ) -> None:
        options = ("--host", "--port", "--gpu-memory-utilization")
        with pytest.raises(LaunchError, match="--tensor-parallel-size") as error:
            argv(Live({}), interpreter(served), Profile("m"), (), options)
        assert not isinstance(error.value, WrongArguments)

    def test_a_plugins_option_is_passed_on_where_somebody_said_so(
        self, served: Environment, record: Path
    ) -> None:
        """Exit code 2 with its name; none is refused with the name of the rule accepted."""
        refused = run(served, record, "--dry-run", "--", "--ascend-only", "1")
        assert refused.code == 2
        assert "the installed vLLM has no option --ascend-only" in refused.err
        accept = ("--dry-run", "--accept", "unknown-server-option", "--", "--ascend-only", "1")
        assert "--ascend-only 1" in run(served, record, *accept).out

    def test_a_word_that_is_no_option_is_a_slip(self, served: Environment) -> None:
        with pytest.raises(WrongArguments, match="--set model="):
            words(served, Profile("m"), "org/other")

    def test_the_script_beside_the_python_comes_first(self, bare: Environment) -> None:
        elsewhere = Environment(bare.prefix / "other")
        other = script(elsewhere.prefix / "bin/vllm", "", str(bare.python))
        beside = add_server(bare)
        there = replace(interpreter(bare), prefix=elsewhere.prefix)
        assert argv(Live({}), there, Profile("m"))[0] == str(beside)
        beside.unlink()
        assert argv(Live({}), there, Profile("m"))[0] == str(other)
        script(other, "exec somebodys-own-wrapper")
        assert argv(Live({}), there, Profile("m"))[0] == str(other)

    @pytest.mark.parametrize(
        "head",
        [
            "#!{base}\n",
            "#!/gone/bin/python\n",
            "#!/bin/sh\n'''exec' \"{base}\" \"$0\" \"$@\"\n' '''\n",
            "#!/bin/sh\n'''exec' \"/gone away/bin/python\" \"$0\" \"$@\"\n' '''\n",
        ],
    )
    def test_a_script_of_another_environment_is_passed_over(
        self, bare: Environment, head: str
    ) -> None:
        """As in an environment that was moved or copied: it would start what was not judged."""
        one = script(bare.prefix / "bin/vllm", "")
        one.write_text(head.format(base=BASE_PYTHON))
        assert words(bare, Profile("m"))[:2] == (str(bare.python), "-c")

    def test_a_script_with_a_long_path_is_the_environments_own(self, tmp_path: Path) -> None:
        one = bare_environment(tmp_path / "a folder with spaces")
        text = f"#!/bin/sh\n'''exec' \"{one.python}\" \"$0\" \"$@\"\n' '''\n"
        script(one.prefix / "bin/vllm", "").write_text(text)
        assert words(one, Profile("m"))[0] == str(one.prefix / "bin/vllm")

    def test_without_a_script_the_module_runs_and_nothing_of_the_current_folder(
        self, cpu_server: Environment, record: Path, tmp_path: Path
    ) -> None:
        main = "def main():\n    import runpy\n    runpy.run_path(%r)\n"
        (tmp_path / "server.py").write_text(SERVER)
        package = cpu_server.site / "vllm/entrypoints/cli"
        package.mkdir(parents=True)
        for folder in (package, package.parent):
            (folder / "__init__.py").write_text("")
        (package / "main.py").write_text(main % str(tmp_path / "server.py"))
        here = tmp_path / "here"
        (here / "vllm").mkdir(parents=True)
        (here / "vllm/__init__.py").write_text("open('trap', 'w')")
        (here / "json.py").write_text("open('trap', 'w')")
        options = ("launch", "--python", cpu_server.prefix, *ON_CPU)
        env = {"RECORD": str(record), "EXITS": "4"}
        said = run_doctor(*options, env=env, cwd=here)
        assert said.code == 4, said.err
        assert records(record)[0]["argv"][:2] == ["serve", "zai-org/GLM-4.7-Flash"]
        assert records(record)[0]["cwd"] == str(here)
        assert not (here / "trap").exists()


class TestShown:
    def test_secrets_are_hidden(self) -> None:
        key = "hf_" + "a" * 24
        made = shown_command(
            ("vllm", "--api-key", "one", "two", "--x", "a b", f"--y={key}", "--hf-token=z")
        )
        assert made == "vllm --api-key '***' '***' --x 'a b' '--y=hf_***' '--hf-token=***'"

    def test_the_difference_is_a_shells_and_without_secrets(self) -> None:
        shell = {"A": "1", "GONE": "x", "SAME": "s"}
        server = {"A": "two words", "HF_TOKEN": "z", "SAME": "s", "URL": "http://me:pw@host/"}
        assert list(difference(shell, server)) == [
            "export A='two words'",
            "unset GONE",
            "export HF_TOKEN='***'",
            "export URL='http://***@host/'",
        ]


# Running.


class TestStart:
    def test_the_server_gets_what_was_judged_and_its_code_is_ours(
        self, served: Environment, record: Path
    ) -> None:
        (served.prefix / SAVED).parent.mkdir(parents=True)
        variables = {
            "CUDA_HOME": {"value": "/ours"},
            "PATH": {"value": "/ours/bin", "prepend": True},
            "CUDA_PATH": {"value": None, "instead_of": ["/bad"]},
        }
        kept = {"schema_version": 1, "variables": variables}
        (served.prefix / SAVED).write_text(json.dumps(kept))
        said = run(served, record, "--", "--enforce-eager", CUDA_PATH="/bad", OWN="x y", EXITS="7")
        assert said.code == 7, said.err
        (got,) = records(record)
        assert got["argv"][0] == "serve"
        assert got["argv"][-1] == "--enforce-eager"
        wanted = {**SYSTEM, "RECORD": str(record), "OWN": "x y", "EXITS": "7"}
        wanted |= {"CUDA_HOME": "/ours", "PATH": f"/ours/bin:{SYSTEM['PATH']}"}
        wanted |= {"HF_ENDPOINT": "https://hf-mirror.com", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        wanted |= {NETRC: os.devnull}
        got["env"].pop("LC_CTYPE", None)  # of Python itself, where the locale is C
        assert got["env"] == wanted

    def test_its_output_and_input_are_the_servers(self, served: Environment, record: Path) -> None:
        ran = subprocess.run(
            [DOCTOR, "launch", "--python", served.prefix, *ON_CPU],
            env={**SYSTEM, "RECORD": str(record), "SAYS": "hello", "EXITS": "0"},
            input="you\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG,
        )
        assert (ran.returncode, ran.stdout) == (0, "hello you\n")
        of_token, starts = ran.stderr.splitlines()
        assert "the server gets no Hugging Face token" in of_token
        judged = "healthy, with warnings (model-not-downloaded)"
        assert starts.startswith(f"vllm-doctor: {judged}; starting {served.prefix}/bin/vllm ")

    def test_a_descriptor_that_was_handed_down_reaches_the_server(
        self, cpu_server: Environment
    ) -> None:
        """As systemd hands down listening sockets."""
        read, write = os.pipe()
        script(cpu_server.prefix / "bin/vllm", f"echo through > /dev/fd/{write}")
        command = [str(DOCTOR), "launch", "--python", str(cpu_server.prefix), *ON_CPU]
        ran = subprocess.run(command, pass_fds=[write], env=SYSTEM, check=False)
        os.close(write)
        with os.fdopen(read) as file:
            assert (ran.returncode, file.read()) == (0, "through\n")

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
    def test_a_death_by_a_signal_is_told_as_a_shell_does(
        self, served: Environment, record: Path, number: signal.Signals
    ) -> None:
        assert run(served, record, DIES=str(int(number))).code == 128 + number

    def test_it_is_in_our_process_group_and_blocks_and_ignores_nothing(
        self, served: Environment, record: Path
    ) -> None:
        with running(served, record) as doctor:
            (got,) = records(record)
            assert (got["group"], got["blocked"], got["ignored"]) == (doctor.pid, [], [])
            assert got["pid"] != doctor.pid

    def test_what_nohup_ignores_stays_ignored(self, served: Environment, record: Path) -> None:
        with running(served, record, wrapper=("nohup",)) as doctor:
            assert records(record)[0]["ignored"] == ["SIGHUP"]
            doctor.send_signal(signal.SIGHUP)
            doctor.send_signal(signal.SIGUSR1)
            wait_for(lambda: signals(record))
            assert signals(record) == ["SIGUSR1"]

    def test_signals_that_were_blocked_reach_the_server(
        self, served: Environment, record: Path
    ) -> None:
        block = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {15, 2}); "
        block += "os.execv(sys.argv[1], sys.argv[1:])"
        with running(served, record, wrapper=(sys.executable, "-c", block)):
            assert records(record)[0]["blocked"] == []

    def test_an_exec_makes_the_doctor_the_server(self, served: Environment, record: Path) -> None:
        with running(served, record, "--exec", ENDS="6") as doctor:
            (got,) = records(record)
            assert (got["pid"], got["blocked"]) == (doctor.pid, [])
            doctor.terminate()
            assert doctor.wait(HANG) == 6

    @pytest.mark.parametrize("options", [(), ("--exec",)])
    def test_a_server_that_cannot_be_started_is_told(
        self, cpu_server: Environment, record: Path, options: tuple[str, ...]
    ) -> None:
        one = script(cpu_server.prefix / "bin/vllm", "", "/gone/bin/interpreter")
        said = run(cpu_server, record, *options)
        assert (said.code, said.out) == (REFUSED, "")
        assert f"{one} cannot be started: no such file or directory" in said.err
        assert "Traceback" not in said.err


class TestSignals:
    @pytest.mark.parametrize("name", SIGNALS)
    def test_what_a_process_sends_to_the_doctor_is_passed_on(
        self, served: Environment, record: Path, name: str
    ) -> None:
        with running(served, record, ENDS="9") as doctor:
            doctor.send_signal(getattr(signal, name))
            wait_for(lambda: signals(record))
            assert signals(record) == [name]
            if name not in ("SIGTERM", "SIGHUP"):
                assert doctor.poll() is None
                doctor.terminate()
            assert doctor.wait(HANG) == 9
            assert gone(records(record)[0]["pid"])

    def test_each_of_many_is_passed_on(self, served: Environment, record: Path) -> None:
        with running(served, record) as doctor:
            for count in range(1, 6):
                doctor.send_signal(signal.SIGUSR2)
                wait_for(lambda count=count: len(signals(record)) == count)  # type: ignore[misc]
            assert signals(record) == ["SIGUSR2"] * 5

    def test_a_server_that_stops_and_goes_on_is_no_server_that_ended(
        self, served: Environment, record: Path
    ) -> None:
        with running(served, record, ENDS="3") as doctor:
            pid = records(record)[0]["pid"]
            os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGCONT)
            doctor.send_signal(signal.SIGUSR1)  # heard by one that attends to a server still
            wait_for(lambda: signals(record))
            assert doctor.poll() is None
            doctor.terminate()
            assert doctor.wait(HANG) == 3

    def test_a_doctor_that_is_killed_takes_the_server_with_it(
        self, served: Environment, record: Path
    ) -> None:
        with running(served, record) as doctor:
            pid = records(record)[0]["pid"]
            doctor.kill()
            wait_for(lambda: gone(pid))
            assert signals(record) == ["SIGTERM"]

    def test_before_the_server_runs_it_ends_the_doctor(
        self, cpu_server: Environment, tmp_path: Path
    ) -> None:
        """While it judges there is nobody to pass a signal on to."""
        script(cpu_server.prefix / "bin/vllm", f"touch {tmp_path}/started")
        script(tmp_path / "cc", f"touch {tmp_path}/asked\n{HANGS}")
        command = [str(DOCTOR), "launch", "--python", str(cpu_server.prefix), *ON_CPU]
        env = {**SYSTEM, "CC": str(tmp_path / "cc")}
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE) as doctor:
            wait_for((tmp_path / "asked").exists)
            doctor.terminate()
            assert doctor.wait(HANG) == 143
        assert not (tmp_path / "started").exists()

    def test_an_orphan_is_reaped_where_the_doctor_is_the_first_process(
        self, cpu_server: Environment, tmp_path: Path
    ) -> None:
        """As in a container whose entry point it is."""
        if subprocess.run(["unshare", "-pf", "true"], check=False).returncode:
            pytest.skip("no process namespace here")
        orphan = f"(sh -c 'echo $$ > {tmp_path}/pid' &)"
        reaped = f"until read pid < {tmp_path}/pid && [ ! -e /proc/$pid ]; do sleep 0.02; done"
        script(cpu_server.prefix / "bin/vllm", f"{orphan}\n{reaped} 2>/dev/null; echo reaped")
        command = ["unshare", "-pf", "--mount-proc", str(DOCTOR), "launch", "--python"]
        ran = subprocess.run(
            [*command, str(cpu_server.prefix), *ON_CPU],
            env=SYSTEM,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG,
        )
        assert ran.stdout == "reaped\n", ran.stderr


class TestTerminal:
    """In the foreground of a terminal, whose keys reach the whole process group."""

    @contextlib.contextmanager
    def session(
        self, one: Environment, record: Path, leads: bool, **env: str
    ) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
        """(the terminal's other end, the session's leader): the doctor, or the shell before it."""
        doctor = [str(DOCTOR), "launch", "--python", str(one.prefix), *ON_CPU]
        shell = ["/bin/sh", "-c", f"trap : INT QUIT; {shlex.join(doctor)}; exit $?"]
        command = doctor if leads else shell
        master, slave = pty.openpty()

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        with subprocess.Popen(
            command,
            env={**SYSTEM, "RECORD": str(record), **env},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=take_terminal,  # noqa: PLW1509 - no other thread runs here
        ) as leader:
            os.close(slave)
            try:
                wait_for(lambda: records(record))
                yield master, leader
            finally:
                with contextlib.suppress(OSError):
                    os.close(master)
                for row in records(record)[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(row["group"], signal.SIGKILL)

    @pytest.mark.parametrize("leads", [True, False])
    @pytest.mark.parametrize(("key", "name"), [(b"\x03", "SIGINT"), (b"\x1c", "SIGQUIT")])
    def test_a_key_reaches_the_server_once(
        self, served: Environment, record: Path, leads: bool, key: bytes, name: str
    ) -> None:
        with self.session(served, record, leads, ENDS="5") as (terminal, leader):
            os.write(terminal, key)
            wait_for(lambda: signals(record))
            # One too many would be there before the next one, which the doctor passes on.
            os.kill(parent(records(record)[0]["pid"]), signal.SIGUSR1)
            wait_for(lambda: "SIGUSR1" in signals(record))
            assert signals(record).count(name) == 1
            if leads:
                leader.terminate()
                assert leader.wait(HANG) == 5

    @pytest.mark.parametrize("leads", [True, False])
    def test_a_terminal_that_is_closed_hangs_the_server_up(
        self, served: Environment, record: Path, leads: bool
    ) -> None:
        """The kernel tells the session's leader alone; a shell passes it on when it ends."""
        with self.session(served, record, leads) as (terminal, _):
            os.close(terminal)
            wait_for(lambda: gone(records(record)[0]["pid"]))
            assert "SIGHUP" in signals(record)


# Refusing.


class TestRefusal:
    def test_an_error_ends_with_the_report_and_without_a_server(
        self, served: Environment, record: Path
    ) -> None:
        (served.site / "vllm-0.22.0+cpu.dist-info").rename(served.site / "gone")
        said = run(served, record)
        assert (said.code, said.out, records(record)) == (REFUSED, "", [])
        assert "vllm-missing  PRIMARY CAUSE" in said.err
        assert said.err.splitlines()[-1] == "vllm-doctor: not started: vllm-missing"

    def test_what_cannot_be_told_is_refused_as_well(
        self, served: Environment, record: Path
    ) -> None:
        (served.prefix / SAVED).mkdir(parents=True)
        said = run(served, record)
        assert (said.code, said.out, records(record)) == (REFUSED, "", [])
        assert "not started: inconclusive: " in said.err
        assert "environment.json cannot be read" in " ".join(said.err.split())

    def test_a_rule_that_crashes_is_refused_as_well(
        self, served: Environment, record: Path, tmp_path: Path
    ) -> None:
        rule = (
            "from doctor import Severity, Stage, rule\n"
            "from doctor.profile import Profile\n"
            "@rule('own', Severity.INFO, Stage.SHELL)\n"
            "def own(profile: Profile) -> None:\n    '''It breaks.\n\n    Always.\n    '''\n"
            "    raise RuntimeError('broken')\n"
        )
        (tmp_path / "rules").mkdir()
        (tmp_path / "rules/own.py").write_text(rule)
        said = run(served, record, "--rules", tmp_path / "rules")
        assert (said.code, records(record)) == (REFUSED, [])
        assert "not started: inconclusive: own" in said.err

    def test_a_warning_is_told_and_no_reason(
        self, served: Environment, record: Path, tmp_path: Path
    ) -> None:
        rule = (
            "from doctor import Finding, Severity, Stage, Text, rule\n"
            "from doctor.profile import Profile\n"
            "@rule('own', Severity.WARNING, Stage.SHELL)\n"
            "def own(profile: Profile) -> Finding:\n    '''It warns.\n\n    Always.\n    '''\n"
            "    return Finding(Text('look out'))\n"
        )
        (tmp_path / "rules").mkdir()
        (tmp_path / "rules/own.py").write_text(rule)
        said = run(served, record, "--rules", tmp_path / "rules", EXITS="0")
        assert said.code == 0
        assert "healthy, with warnings (model-not-downloaded, own); starting" in said.err

    @pytest.mark.parametrize("options", [(), ("--exec",), ("--dry-run",)])
    def test_not_while_another_doctor_is_at_work(
        self, served: Environment, record: Path, options: tuple[str, ...]
    ) -> None:
        lock = served.prefix / HOME / "lock"
        lock.parent.mkdir(parents=True)
        lock.write_text("4711\n")
        with lock.open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            said = run(served, record, *options)
            assert (said.code, said.out, records(record)) == (75, "", [])
            assert said.err == (
                f"vllm-doctor: another vllm-doctor (pid 4711) is changing {served.prefix}; "
                "use --wait to wait for it\n"
            )
        assert run(served, record, EXITS="0").code == 0

    @pytest.mark.parametrize("options", [(), ("--exec",)])
    def test_a_server_that_runs_holds_no_lock(
        self, served: Environment, record: Path, options: tuple[str, ...]
    ) -> None:
        lock = served.prefix / HOME / "lock"
        lock.parent.mkdir(parents=True)
        lock.write_text("")
        with running(served, record, *options), lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_a_lock_that_is_a_link_or_a_folder_is_none(
        self, served: Environment, record: Path, tmp_path: Path
    ) -> None:
        lock = served.prefix / HOME / "lock"
        lock.parent.mkdir(parents=True)
        os.mkfifo(tmp_path / "fifo")
        lock.symlink_to(tmp_path / "fifo")
        assert run(served, record, EXITS="0").code == 0
        lock.unlink()
        lock.mkdir()
        assert run(served, record, EXITS="0").code == 0

    @pytest.mark.parametrize(
        "options",
        [
            ("--force",),
            ("--yes",),
            ("--enforce-eager",),
            ("zai-org/GLM-4.7-Flash",),
            ("--", "zai-org/GLM-4.7-Flash"),
            ("--", "--port", "1"),
            ("--set", "tensor_paralel_size=1"),
            ("--profile", "nowhere"),
            ("--allow", "errors"),
        ],
    )
    def test_wrong_use_is_told(
        self, served: Environment, record: Path, options: tuple[str, ...]
    ) -> None:
        said = run(served, record, *options)
        assert (said.code, said.out, records(record)) == (2, "", [])
        assert said.err

    def test_a_python_that_is_none_is_wrong_use_and_one_that_hangs_is_refused(
        self, tmp_path: Path
    ) -> None:
        assert run_doctor("launch", "--python", "/nowhere").code == 2
        assert run_doctor("launch", "--python", "/bin/true").code == 2
        script(tmp_path / "bin/python", HANGS)
        said = run_doctor("launch", "--python", tmp_path, hanging=tmp_path)
        assert (said.code, said.out) == (REFUSED, "")


class TestDryRun:
    def test_it_prints_what_would_run_and_starts_nothing(
        self, served: Environment, record: Path
    ) -> None:
        (served.prefix / SAVED).parent.mkdir(parents=True)
        variables = {
            "CUDA_HOME": {"value": "/our home"},
            "CUDA_PATH": {"value": None, "instead_of": ["/bad"]},
        }
        kept = {"schema_version": 1, "variables": variables}
        (served.prefix / SAVED).write_text(json.dumps(kept))
        said = run(served, record, "--dry-run", "--", "--api-key", "mine", CUDA_PATH="/bad")
        lines = said.out.splitlines()
        assert (said.code, len(said.err.splitlines()), records(record)) == (0, 1, [])
        assert lines[:-1] == [
            "export CUDA_HOME='/our home'",
            "unset CUDA_PATH",
            "export HF_ENDPOINT=https://hf-mirror.com",
            "export HF_HUB_DISABLE_IMPLICIT_TOKEN=1",
            "export NETRC=/dev/null",
        ]
        assert lines[-1].startswith(f"{served.prefix}/bin/vllm serve zai-org/GLM-4.7-Flash ")
        assert lines[-1].endswith("--api-key '***'")

    def test_where_a_start_would_be_refused_it_says_so(
        self, served: Environment, record: Path
    ) -> None:
        (served.site / "torch/version.py").unlink()
        said = run(served, record, "--dry-run")
        assert said.code == REFUSED
        assert said.out.splitlines()[-1].startswith(f"{served.prefix}/bin/vllm serve ")
        assert "a start would be refused: " in said.err
        assert len(said.err.splitlines()) == 1


# Tokens, and variables of the person's own.

MIRROR = "https://hf-mirror.com"
TOKENS = dict.fromkeys(HUB_TOKENS, "not-a-real-one")


class TestTokens:
    """A token is for the hub, and not for whoever mirrors it."""

    def got(self, served: Environment, record: Path, *options: str, **env: str) -> dict[str, str]:
        said = run(served, record, *options, EXITS="0", **env)
        assert said.code == 0, said.err
        (one,) = records(record)
        assert ("no Hugging Face token" in said.err) == (HUB_SWITCH in one["env"])
        return dict(one["env"])

    def test_the_profiles_mirror_gets_none(self, served: Environment, record: Path) -> None:
        env = self.got(served, record, **TOKENS, **{HUB_SWITCH: "0"}, OTHER="kept")
        assert (env["HF_ENDPOINT"], env[HUB_SWITCH]) == (MIRROR, "1")
        assert not set(TOKENS) & set(env)
        assert env["OTHER"] == "kept"

    def test_nor_a_login_of_a_netrc(self, served: Environment, record: Path) -> None:
        """Which requests sends by itself, also the one for any host."""
        env = self.got(served, record, "--set", "env.NETRC=/asked", NETRC="/of/the/shell")
        assert env[NETRC] == os.devnull

    def test_one_that_the_person_names_for_it_is_no_exception(
        self, served: Environment, record: Path
    ) -> None:
        env = self.got(served, record, "--set", "env.HF_TOKEN=not-a-real-one")
        assert "HF_TOKEN" not in env

    @pytest.mark.parametrize(
        ("options", "shell"),
        [
            ((), {"HF_ENDPOINT": "https://hub.example"}),
            (("--set", "env.HF_ENDPOINT=https://hub.example"), {}),
            (("--set", "env.HF_ENDPOINT=https://hub.example"), {"HF_ENDPOINT": MIRROR}),
            (("--set", "env.HF_ENDPOINT="), {"HF_ENDPOINT": MIRROR}),
            (("--set", "env.HF_ENDPOINT="), {}),
        ],
    )
    def test_where_the_person_chose_the_hub_it_gets_theirs(
        self, served: Environment, record: Path, options: tuple[str, ...], shell: dict[str, str]
    ) -> None:
        env = self.got(served, record, *options, **TOKENS, **shell)
        assert env.items() >= TOKENS.items()
        assert NETRC not in env
        chosen = None if options[-1:] == ("env.HF_ENDPOINT=",) else "https://hub.example"
        assert env.get("HF_ENDPOINT") == chosen

    def test_a_variable_that_is_set_empty_is_taken_out(
        self, served: Environment, record: Path
    ) -> None:
        env = self.got(served, record, "--set", "env.OWN=", "--set", "env.NEVER=", OWN="x")
        assert not {"OWN", "NEVER"} & set(env)

    def test_a_dry_run_names_them_without_their_values(
        self, served: Environment, record: Path
    ) -> None:
        said = run(served, record, "--dry-run", **TOKENS)
        assert {f"unset {name}" for name in TOKENS} <= set(said.out.splitlines())
        assert "not-a-real-one" not in said.out + said.err
        assert "--set env.HF_ENDPOINT=" in said.err

    def test_what_the_person_set_is_judged_as_it_is_launched(self, served: Environment) -> None:
        options = ("--set", "device=cpu", "--set", "env.VLLM_USE_FLASHINFER_SAMPLER=true")
        said = run_doctor("diagnose", "--python", served.prefix, *options, "--format", "json")
        assert "variable-unreadable" in said.found()

    def test_no_profile_says_that_the_person_chose(self, tmp_path: Path) -> None:
        path = tmp_path / "p.toml"
        path.write_text('model = "x"\n[env_asked]\nHF_ENDPOINT = "https://mirror.example"\n')
        with pytest.raises(UsageError, match="env_asked"):
            profiles.load_profile(str(path))


# Proving.


@dataclass(frozen=True)
class Place:
    """An environment with a small toolkit that really makes objects, of nothing, with cc."""

    one: Environment
    env: Mapping[str, str]
    rules: tuple[Rule, ...]

    @property
    def toolkit(self) -> Path:
        return self.one.prefix.parent / "toolkit"

    @property
    def builds(self) -> int:
        """How often nvcc has compiled."""
        log = self.one.prefix / "builds"
        return len(log.read_text().splitlines()) if log.exists() else 0

    @property
    def proofs(self) -> Path:
        return self.one.prefix / HOME / "proofs.json"

    def judge(
        self,
        *sets: str,
        prove: bool = True,
        env: Mapping[str, str] | None = None,
        foreign: bool = False,
        accept: Collection[str] = (),
    ) -> JudgedStart:
        profile = profiles.load_profile(
            profiles.DEFAULT_PROFILE, ("gpus=later", "archs=9.0", *sets)
        )
        told: list[Text] = []
        builds = self.builds
        made = judge_start(
            Facts(
                Live({**self.env, **(env or {})}, foreign),
                (Where(self.one.python, FoundBy.OPTION), ServeRequest(profile)),
            ),
            self.rules,
            Question("it", accept=accept),
            prove=prove,
            tell=told.append,
        )
        assert told or self.builds == builds
        return made


NVCC = """
case $1 in
--list-gpu-arch) echo compute_90; echo compute_100;;
--dryrun) echo "#\\$ TOP={toolkit}" >&2;;
--version) echo 'Cuda compilation tools, release 13.0, V13.0.88';;
*) for last; do :; done; echo "$last" >> {prefix}/builds
   {breaks}
   exec cc -fPIC -x c -c /dev/null -o "$last";;
esac
"""


def add_nvcc(one: Environment, breaks: str = "") -> None:
    text = NVCC.format(toolkit=one.prefix.parent / "toolkit", prefix=one.prefix, breaks=breaks)
    script(one.prefix.parent / "toolkit/bin/nvcc", text)


@pytest.fixture(scope="module")
def rules() -> tuple[Rule, ...]:
    return load_rules(rules_folder())


@pytest.fixture
def place(tmp_path: Path, rules: tuple[Rule, ...]) -> Place:
    one = vllm_environment(tmp_path / "venv")
    kit = one.prefix.parent / "toolkit"
    add_nvcc(one)
    toolkit_files(kit)
    script(one.prefix / "bin/ninja", "")
    env = {**SYSTEM, "PATH": f"{one.prefix}/bin:{SYSTEM['PATH']}", "CUDA_HOME": str(kit)}
    return Place(one, env, rules)


class TestProof:
    def test_a_toolchain_is_proven_once(self, place: Place) -> None:
        assert place.judge().refused is None
        assert place.builds == 1
        assert len(json.loads(place.proofs.read_text())["proven"]) == 1
        made = place.judge()
        assert (made.refused, made.unproven, place.builds) == (None, False, 1)

    def test_what_an_empty_libcuda_stood_in_for_is_proven_as_well(self, place: Place) -> None:
        proof = place.judge().report.proof
        assert proof is not None
        assert (proof.ok, proof.stand_in) == (True, True)
        assert place.judge().report.proof is None

    def test_a_changed_part_is_proven_again(self, place: Place) -> None:
        place.judge()
        parts = ("bin/nvcc", "bin/ptxas", "nvvm/bin/cicc", "lib64/libcudart.so")
        headers = (f"include/{name}" for name in HEADERS)
        for count, part in enumerate((*parts, "lib64/stubs/libcuda.so", *headers), start=2):
            os.utime(place.toolkit / part, (1, 1))
            place.judge()
            assert place.builds == count, part
        place.judge()
        assert place.builds == count

    def test_a_part_that_another_link_leads_to_is_proven_again(self, place: Place) -> None:
        place.judge()
        part = place.toolkit / "bin/ptxas"
        stat = part.stat()
        other = place.toolkit / "bin/other"
        shutil.copy2(part, other)
        part.unlink()
        part.symlink_to(other)
        assert part.stat().st_mtime_ns == stat.st_mtime_ns
        place.judge()
        assert place.builds == 2

    @pytest.mark.parametrize(
        ("sets", "env"),
        [
            (("archs=9.0,10.0",), {}),
            ((), {"NVCC_APPEND_FLAGS": "-lineinfo"}),
            ((), {"CXX": "g++"}),
            ((), {"CPATH": "/opt/include"}),
            ((), {"LD_LIBRARY_PATH": "/opt/lib"}),
        ],
    )
    def test_another_toolchain_is_another_proof_and_the_first_one_stays(
        self, place: Place, sets: tuple[str, ...], env: dict[str, str]
    ) -> None:
        place.judge()
        assert place.judge(*sets, env=env).refused is None
        place.judge()
        place.judge(*sets, env=env)
        assert place.builds == 2

    def test_another_cuda_home_over_the_same_files_is_another_proof(
        self, place: Place, tmp_path: Path
    ) -> None:
        """FlashInfer rebuilds where the string changes."""
        place.judge()
        (tmp_path / "link").symlink_to(place.toolkit)
        place.judge(env={"CUDA_HOME": str(tmp_path / "link")})
        assert place.builds == 2

    def test_another_flashinfer_is_another_proof(self, place: Place) -> None:
        place.judge()
        site = place.one.site
        for path in sorted(site.glob("flashinfer_*.dist-info")):
            path.rename(site / path.name.replace("0.6.11.post2", "0.6.12"))
        metadata = site / "vllm-0.22.0.dist-info/METADATA"
        metadata.write_text(metadata.read_text().replace("0.6.11.post2", "0.6.12"))
        assert place.judge().refused is None
        assert place.builds == 2

    def test_a_file_that_cannot_be_read_proves_nothing_and_is_made_anew(self, place: Place) -> None:
        place.judge()
        odd = ["", "{", "[]", '{"proven": 1}', '{"proven": {"a": "b"}}', '{"more": 1}', "\0"]
        for builds, content in enumerate(odd, start=2):
            place.proofs.write_text(content)
            assert place.judge().refused is None
            assert place.builds == builds, content
        place.judge()
        assert place.builds == builds

    def test_a_file_that_a_link_leads_to_proves_nothing_and_is_not_written_through(
        self, place: Place, tmp_path: Path
    ) -> None:
        place.judge()
        elsewhere = tmp_path / "elsewhere.json"
        shutil.move(place.proofs, elsewhere)
        text = elsewhere.read_text()
        place.proofs.symlink_to(elsewhere)
        place.judge()
        assert (place.builds, elsewhere.read_text()) == (2, text)
        assert not place.proofs.is_symlink()

    def test_nothing_is_written_behind_a_folder_that_is_a_link(
        self, place: Place, tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        place.proofs.parent.parent.mkdir()
        place.proofs.parent.symlink_to(tmp_path / "elsewhere")
        assert place.judge().refused is None
        assert list((tmp_path / "elsewhere").iterdir()) == []

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_a_file_of_another_user_proves_nothing(self, place: Place) -> None:
        place.judge()
        os.chown(place.proofs, 12345, 12345)
        place.judge()
        assert place.builds == 2

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_root_leaves_nothing_in_the_way_of_the_prefixs_owner(self, place: Place) -> None:
        os.chown(place.one.prefix, 12345, 12345)
        assert place.judge(foreign=True).refused is None
        assert not place.proofs.parent.exists()

    def test_where_nothing_can_be_written_it_is_not_remembered_and_no_fault(
        self, place: Place
    ) -> None:
        (place.one.prefix / "share").write_text("no folder")
        assert place.judge().refused is None
        assert place.judge().refused is None
        assert place.builds == 2

    def test_only_the_newest_are_kept(self, place: Place) -> None:
        old = {"schema_version": 1, "proven": {f"k{i}": float(i) for i in range(100)}}
        place.proofs.parent.mkdir(parents=True)
        place.proofs.write_text(json.dumps(old))
        place.judge()
        kept = json.loads(place.proofs.read_text())["proven"]
        assert len(kept) == 32
        assert "k99" in kept
        assert "k0" not in kept
        assert [p.name for p in place.proofs.parent.iterdir()] == ["proofs.json"]

    def test_a_build_that_fails_is_refused_and_not_remembered(self, place: Place) -> None:
        add_nvcc(place.one, breaks="echo 'error: no such thing' >&2; exit 1")
        for builds in (1, 2):
            made = place.judge()
            assert str(made.refused) == "deep-check-failed"
            assert place.builds == builds
        assert not place.proofs.exists()

    def test_a_build_that_cannot_be_made_is_refused(self, place: Place, tmp_path: Path) -> None:
        broken = script(tmp_path / "c++", 'case "$*" in *stand_in*) exit 1;; esac; exec c++ "$@"')
        made = place.judge(env={"CXX": str(broken)})
        assert made.refused is not None
        assert "deep-check-failed" in str(made.refused)
        assert not place.proofs.exists()

    def test_errors_are_told_before_anything_is_built(self, place: Place) -> None:
        (place.toolkit / "include/curand.h").unlink()
        made = place.judge()
        assert str(made.refused) == "cuda-headers-missing"
        assert place.builds == 0

    def test_a_build_that_fails_is_no_obstacle_where_it_was_accepted(self, place: Place) -> None:
        add_nvcc(place.one, breaks="echo 'error: no such thing' >&2; exit 1")
        assert str(place.judge().refused) == "deep-check-failed"
        assert place.judge(accept=("deep-check-failed",)).refused is None
        assert not place.proofs.exists()

    def test_what_cannot_be_built_at_all_is_accepted_by_that_name(self, place: Place) -> None:
        (place.toolkit / "bin/nvcc").unlink()
        found = {o.rule.id for o in place.judge().report.outcomes if o.verdict is Verdict.FOUND}
        made = place.judge(accept=found)
        assert made.refused is not None
        assert "--accept deep-check-failed" in str(made.refused)
        assert place.judge(accept={*found, "deep-check-failed"}).refused is None

    def test_a_dry_run_builds_nothing_and_says_that_a_start_would(self, place: Place) -> None:
        made = place.judge(prove=False)
        assert (made.refused, made.unproven, place.builds) == (None, True, 0)
        assert place.judge().refused is None
        assert place.judge(prove=False).unproven is False

    def test_where_nothing_is_compiled_the_imports_alone_are_proven(self, place: Place) -> None:
        off = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_USE_FLASHINFER_MOE_FP16": "0"}
        assert place.judge(prove=False, env=off).unproven is True
        assert place.judge(env=off).refused is None
        assert place.builds == 0
        assert place.judge(prove=False, env=off).unproven is False

    def test_an_import_that_dies_is_refused_and_not_remembered(self, place: Place) -> None:
        (place.one.site / "flashinfer/__init__.py").write_text("raise AttributeError('gone')")
        assert str(place.judge().refused) == "import-fails"
        assert not place.proofs.exists()
        assert place.judge(accept=("import-fails",)).refused is None
        assert not place.proofs.exists()

    def test_packages_that_were_installed_anew_are_proven_anew(self, place: Place) -> None:
        place.judge()
        assert place.judge(prove=False).unproven is False
        os.utime(place.one.site / "torch-2.11.0.dist-info/RECORD", (1, 1))
        assert place.judge(prove=False).unproven is True
        assert place.judge().refused is None
        place.one.install("cuda-python", "12.6.2.post1")
        assert place.judge(prove=False).unproven is True

    def test_as_a_command(self, place: Place, record: Path) -> None:
        add_server(place.one)
        options = ("launch", "--python", place.one.prefix, "--set", "gpus=later")
        env = {**place.env, "RECORD": str(record), "EXITS": "0"}
        first = run_doctor(*options, "--set", "archs=9.0", env=env)
        again = run_doctor(*options, "--set", "archs=9.0", env=env)
        assert (first.code, again.code, place.builds) == (0, 0, 1)
        assert "verifying: a test build" in first.err
        assert "proving" not in again.err
        assert "GPU checks were skipped" in again.err
        add_nvcc(place.one, breaks="echo 'error: no such thing' >&2; exit 1")
        said = run_doctor(*options, "--set", "archs=9.0", env=env)
        assert (said.code, said.out, len(records(record))) == (REFUSED, "", 2)
        assert "✗ test build" in said.err
        assert said.err.splitlines()[-1] == "vllm-doctor: not started: deep-check-failed"
