"""`vllm-doctor explain` as a person and as a program meets it: what it prints, its exit codes, what
it makes of a log that is none, and what this machine says to it."""

from __future__ import annotations

import fcntl
import gzip
import json
import lzma
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from doctor.logs.source import Log
from doctor.report.explained import explained_schema
from doctor.report.formats import FORMS
from tests.conftest import (
    DOCTOR,
    HANG,
    SYSTEM,
    Said,
    must_fit,
    run_doctor,
    run_inside,
    vllm_environment,
    wait_for,
)
from tests.corpus import HEALTHY, UNRECOGNISED, Logged, logs

NOTHING, RECOGNISED, USAGE, UNKNOWN = 0, 1, 2, 3
LOGS = {one.name: one for one in logs()}
KV = next(one for one in LOGS.values() if one.folder == "kv-cache-too-small" and one.is_real)
START = b"(APIServer pid=1) INFO 11-25 10:00:00 [utils.py:278] non-default args: {'model': 'm'}\n"
READY = b"(APIServer pid=1) INFO:     Application startup complete.\n"
KILLED = b"start.sh: line 3:    11 Killed                  vllm serve m\n"


def explain(*words: str | Path) -> Said:
    return run_inside("explain", "--no-live", *words)


def told(*words: str | Path) -> dict[str, Any]:
    said = explain("--format", "json", *words)
    report: dict[str, Any] = json.loads(said.out)
    must_fit(report, explained_schema)
    codes = {"explained": RECOGNISED, "nothing-found": NOTHING}
    assert said.code == codes.get(report["verdict"], UNKNOWN)
    return report


def log(folder: Path, data: bytes, name: str = "server.log") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def unread(pipe: IO[bytes]) -> int:
    """Bytes that the other end has still to read (tty_ioctl(2), pipe(7))."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("logged", list(LOGS.values())[::7], ids=lambda one: one.name)
def test_the_report_is_of_its_schema_and_the_exit_code_that_of_its_verdict(logged: Logged) -> None:
    said = explain("--format", "json", logged.path)
    report = json.loads(said.out)
    must_fit(report, explained_schema)
    codes = {"explained": RECOGNISED, "unrecognised": UNKNOWN, "symptom": UNKNOWN}
    codes["nothing-found"] = NOTHING
    assert (report["verdict"], said.code) == (logged.verdict, codes[logged.verdict])
    assert report["source"]["bytes"] == len(logged.data)
    assert report["source"]["path"] == str(logged.path)


def test_a_finding_says_where_what_how_much_and_what_to_do() -> None:
    report = told(KV.path)
    (finding, *rest) = report["findings"]
    assert (finding["id"], finding["role"], finding["severity"]) == (
        "kv-cache-too-small",
        "primary",
        "error",
    )
    line = KV.data.split(b"\n")[finding["line"] - 1].decode()
    assert finding["excerpt"][:80] in line
    assert finding["values"]["estimate"] == "262144"
    commands = [step["line"] for fix in finding["fixes"] for step in fix["steps"]]
    assert "vllm serve ... --max-model-len 262144" in commands
    assert finding["confirmed"] is None
    assert {one["role"] for one in rest} <= {"contributing", "symptom"}


def test_the_text_names_the_cause_first_and_the_command() -> None:
    said = explain(KV.path)
    assert said.code == RECOGNISED
    assert said.out.index("✗ kv-cache-too-small  PRIMARY") < said.out.index(
        "--max-model-len 262144"
    )
    assert ": ValueError: To serve at least one request" in said.out
    assert "~ engine-core-failed" in said.out


def test_an_unknown_failure_is_quoted_with_its_file_and_the_level_above() -> None:
    report = told(LOGS[f"{UNRECOGNISED}/attribute-error"].path)
    assert report["unrecognised"] == {
        "line": 18,
        "exception": "AttributeError: 'Glm4MoeLiteDecoderLayer' object has no attribute "
        "'turbo_gate'",
        "raised_in": "/opt/vllm-env/lib/python3.12/site-packages/acme_plugin/hooks.py:41 in patch",
        "called_from": "/opt/vllm-env/lib/python3.12/site-packages/vllm/v1/executor/"
        "multiproc_executor.py:837 in worker_main",
        "logged_at": "multiproc_executor.py:870",
        "file": str(LOGS[f"{UNRECOGNISED}/attribute-error"].path),
    }
    assert report["primary"] is None
    said = explain(LOGS[f"{UNRECOGNISED}/attribute-error"].path)
    assert said.code == UNKNOWN
    assert "? unrecognised failure" in said.out
    assert "hooks.py:41 in patch" in said.out


def test_of_a_chain_in_two_ranks_the_first_exception_is_quoted() -> None:
    report = told(LOGS[f"{UNRECOGNISED}/two-ranks-chained"].path)
    assert report["unrecognised"]["exception"] == "KeyError: 'node1'"
    assert report["unrecognised"]["raised_in"] == "/srv/plugins/quota.py:12 in lease"


def test_a_healthy_log_gives_exit_code_0_and_says_why() -> None:
    ready = next(o for o in LOGS.values() if o.folder == HEALTHY and READY.strip()[-28:] in o.data)
    said = explain(ready.path)
    assert (said.code, said.err) == (NOTHING, "")
    assert "Nothing found: the server became ready" in said.out


class TestAttempts:
    def test_the_last_start_counts_and_an_earlier_one_is_mentioned(self, tmp_path: Path) -> None:
        report = told(log(tmp_path, START + KILLED + START + READY))
        assert (report["verdict"], report["attempts"]) == ("nothing-found", 2)
        file = str(tmp_path / "server.log")
        assert report["earlier"] == [{"file": file, "line": 2, "id": "host-oom-killed"}]

    def test_a_failure_after_a_healthy_start_is_one_of_the_running_server(
        self, tmp_path: Path
    ) -> None:
        report = told(log(tmp_path, START + READY + KILLED))
        assert (report["primary"], report["attempts"]) == ("host-oom-killed", 1)

    def test_what_a_start_survives_is_no_failure_of_it(self, tmp_path: Path) -> None:
        first = next(o for o in LOGS.values() if o.folder == "nvcc-missing" and o.is_real)
        report = told(log(tmp_path, START + first.data + START.replace(b"INFO", b"DEBUG") + READY))
        assert report["verdict"] == "nothing-found"

    def test_what_was_survived_once_may_be_fatal_the_next_time(self, tmp_path: Path) -> None:
        told_off = b"(APIServer pid=1) ERROR 11-25 10:01:00 [serving_chat.py:1] "
        oom = b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has "
        oom += b"a total capacity of 79.19 GiB of which 1.21 GiB is free.\n"
        served = (
            b'(APIServer pid=1) INFO:     10.0.0.5:1 - "POST /v1/completions HTTP/1.1" 200 OK\n'
        )
        dead = b"(EngineCore pid=2) ERROR 11-25 10:09:00 [core.py:1] "
        survived = START + READY + told_off + oom + served * 3
        before = told(log(tmp_path, survived))
        assert before["verdict"] == "nothing-found"
        assert [f["id"] for f in before["findings"]] == ["cuda-oom-serving"]
        report = told(log(tmp_path, survived + dead + oom))
        assert report["primary"] == "cuda-oom-serving"
        assert report["findings"][0]["line"] == 7

    def test_a_crash_loop_ends_in_its_last_failure(self, tmp_path: Path) -> None:
        report = told(log(tmp_path, (START + KILLED) * 3))
        assert (report["primary"], report["attempts"], len(report["earlier"])) == (
            "host-oom-killed",
            3,
            2,
        )


class TestWhatIsGiven:
    @pytest.mark.parametrize(
        ("name", "words"),
        [("absent.log", "no such file"), (".", "holds no file"), ("/dev/zero", "neither a file")],
    )
    def test_no_log(self, tmp_path: Path, name: str, words: str) -> None:
        said = explain(tmp_path / name)
        assert (said.code, said.out, said.err.count("\n")) == (USAGE, "", 1)
        assert said.err.startswith("vllm-doctor: ")
        assert words in said.err

    def test_an_empty_file_tells_nothing(self, tmp_path: Path) -> None:
        said = explain(log(tmp_path, b""))
        assert (said.code, said.out) == (UNKNOWN, "")
        assert "is empty" in said.err

    def test_a_binary_is_no_log(self) -> None:
        said = explain("/bin/sh")
        assert (said.code, said.out) == (USAGE, "")
        assert "is not a text file" in said.err

    @pytest.mark.parametrize("suffix", ["gz", "xz"])
    def test_a_packed_log(self, tmp_path: Path, suffix: str) -> None:
        pack = gzip.compress if suffix == "gz" else lzma.compress
        report = told(log(tmp_path, pack(KV.data), f"server.log.{suffix}"))
        assert (report["primary"], report["source"]["bytes"]) == (KV.primary, len(KV.data))

    @pytest.mark.parametrize("suffix", ["gz", "xz"])
    def test_a_packed_log_that_is_cut_off_is_judged_as_far_as_it_goes(
        self, tmp_path: Path, suffix: str
    ) -> None:
        pack = gzip.compress if suffix == "gz" else partial(lzma.compress, preset=0)
        filler = os.urandom(3 << 20).hex().encode()
        data = pack(KV.data + filler)[:-1000]
        report = told(log(tmp_path, data, f"server.log.{suffix}"))
        assert report["primary"] == KV.primary
        assert "cut off or damaged after" in report["notes"][0]

    def test_a_packed_log_in_which_nothing_is_left_cannot_be_told_from(
        self, tmp_path: Path
    ) -> None:
        said = explain(log(tmp_path, gzip.compress(b"all is well\n" * 1000)[:-9], "a.gz"))
        assert (said.code, said.out) == (UNKNOWN, "")
        assert "cut off" in said.err

    def test_what_powershell_writes(self, tmp_path: Path) -> None:
        report = told(log(tmp_path, KV.data.decode().encode("utf-16")))
        line = told(KV.path)["findings"][0]["line"]
        assert (report["primary"], report["findings"][0]["line"]) == (KV.primary, line)

    def test_a_file_that_grows_ends_where_it_ended(self, tmp_path: Path) -> None:
        path = log(tmp_path, START * 20_000 + KILLED)
        size = path.stat().st_size
        source = Log(str(path))
        for _ in source.blocks():
            with path.open("ab") as file:
                file.write(START)
        assert source.size == size < path.stat().st_size
        assert f"only the first {size} bytes" in str(source.notes[0])

    def test_a_pipe(self) -> None:
        ran = subprocess.run(
            [str(DOCTOR), "explain", "--no-live", "--format", "json", "-"],
            input=KV.data,
            capture_output=True,
            env=SYSTEM,
            check=False,
        )
        assert (ran.returncode, json.loads(ran.stdout)["primary"]) == (RECOGNISED, KV.primary)

    def test_ctrl_c_on_a_pipe_explains_what_was_read_until_then(self) -> None:
        with subprocess.Popen(
            [str(DOCTOR), "explain", "--no-live", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=SYSTEM,
        ) as child:
            assert child.stdin
            assert child.stdout
            child.stdin.write(KV.data)  # far less than a block: it must not be lost
            child.stdin.flush()
            pipe = child.stdin
            wait_for(lambda: not unread(pipe))
            child.send_signal(signal.SIGINT)
            out = child.stdout.read().decode()
            assert child.wait(HANG) == RECOGNISED
        assert "kv-cache-too-small  PRIMARY" in out
        assert "interrupted; only what was read until then was analysed" in out

    def test_a_terminal_is_asked_for_the_log(self) -> None:
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [str(DOCTOR), "explain", "--no-live", "-"],
            stdin=theirs,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=SYSTEM,
        ) as child:
            os.write(ours, KILLED + b"\x04")
            out, err = child.communicate(timeout=HANG)
        os.close(ours)
        os.close(theirs)
        assert b"paste the log" in err
        assert b"host-oom-killed" in out

    def test_no_log_is_named(self) -> None:
        said = run_doctor("explain")
        assert said.code == USAGE
        assert "Missing argument 'FILE|FOLDER|-...'" in said.err


class TestTheTerminalIsSafe:
    @pytest.mark.parametrize("form", FORMS)
    def test_nothing_of_the_log_drives_it(self, tmp_path: Path, form: str) -> None:
        nasty = "ValueError: \x1b]0;owned\x07 \x1b[2J \x9b31m \u202e evil \r gone\n".encode()
        said = explain("--format", form, log(tmp_path, START + nasty))
        assert said.code == UNKNOWN
        assert "evil" in said.out
        shown = json.dumps(json.loads(said.out), ensure_ascii=False) if form == "json" else said.out
        assert not [c for c in shown if not (c.isprintable() or c == "\n")]

    def test_a_name_of_the_file_is_no_exception(self, tmp_path: Path) -> None:
        said = explain(log(tmp_path, START + KILLED, "a\x1b[31mb\n.log"))
        assert "\x1b" not in said.out

    @pytest.mark.parametrize("form", FORMS)
    def test_secrets_are_not_repeated(self, tmp_path: Path, form: str) -> None:
        text = START + b"ValueError: bad token hf_abcdefghijklmnopqrstuvwx\n"
        said = explain("--format", form, log(tmp_path, text))
        assert "hf_***" in said.out
        assert "abcdefgh" not in said.out


class TestThisMachine:
    """What the rules of the same ids say now."""

    @pytest.fixture
    def python(self, tmp_path: Path) -> Path:
        return vllm_environment(tmp_path / "env").python

    def test_it_still_has_the_fault_and_is_told_how_to_repair_it(self, python: Path) -> None:
        logged = next(o for o in LOGS.values() if o.folder == "cuda-home-bad-path" and o.is_real)
        said = run_doctor(
            "explain",
            logged.path,
            "--python",
            python,
            "--set",
            "gpus=later",
            "--set",
            "archs=9.0",
            env={"CUDA_HOME": "/nowhere"},
        )
        assert said.code == RECOGNISED
        assert "this machine still has it" in said.out
        target = f"--python {python} --set gpus=later --set archs=9.0"
        assert f"vllm-doctor fix --apply {target} --only cuda-home-bad-path\n" in said.out

    def test_a_program_is_told_the_same(self, python: Path) -> None:
        logged = next(o for o in LOGS.values() if o.folder == "cuda-home-bad-path" and o.is_real)
        said = run_doctor(
            "explain",
            logged.path,
            "--python",
            python,
            "--format",
            "json",
            "--set",
            "gpus=later",
            "--set",
            "archs=9.0",
            env={"CUDA_HOME": "/nowhere"},
        )
        assert said.report["findings"][0]["confirmed"] is True
        target = f"--python {python} --set gpus=later --set archs=9.0"
        command = f"{DOCTOR} fix --apply {target} --only cuda-home-bad-path"
        assert said.report["command"] == command
        assert said.report["findings"][0]["fixes"]

    def test_it_no_longer_has_the_fault(self, python: Path) -> None:
        logged = next(o for o in LOGS.values() if o.folder == "tp-not-dividing-heads" and o.is_real)
        said = run_doctor("explain", logged.path, "--python", python, "--set", "gpus=later")
        assert (said.code, "this machine no longer has it" in said.out) == (RECOGNISED, True)

    def test_without_an_environment_a_log_is_explained_all_the_same(self, tmp_path: Path) -> None:
        said = run_doctor("explain", KV.path, env={"VIRTUAL_ENV": str(tmp_path / "gone")})
        assert (said.code, "kv-cache-too-small" in said.out) == (RECOGNISED, True)

    def test_a_wrong_python_is_wrong_use(self, tmp_path: Path) -> None:
        said = run_doctor("explain", KV.path, "--python", tmp_path / "absent")
        assert (said.code, said.out) == (USAGE, "")


class TestSignaturesOfASite:
    ROW = """
[[signature]]
id = "quota-service-down"
literal = "quota.LeaseError"
pattern = "quota\\\\.LeaseError: (?P<why>.+)"
message = "the quota service gives no lease: {why}"
printed_by = "acme"

[[ailment]]
id = "quota-service-down"
title = "The quota service does not answer"
explanation = "Ask the platform team."
[[ailment.fix]]
title = "start it ({why})"
commands = ["systemctl start quota"]
"""

    def test_a_value_is_one_word_of_a_command_of_the_doctors_own(self, tmp_path: Path) -> None:
        (tmp_path / "signatures").mkdir()
        row = self.ROW.replace("systemctl start quota", "vllm-doctor launch --set env.WHY={why}")
        (tmp_path / "signatures" / "site.toml").write_text(row)
        said = told(log(tmp_path, b"quota.LeaseError: it's --rules /tmp\n"), "--rules", tmp_path)
        (fix,) = said["findings"][0]["fixes"]
        assert shlex.split(fix["commands"][0])[-2:] == ["--set", "env.WHY=it's --rules /tmp"]

    def test_they_add_to_ours(self, tmp_path: Path) -> None:
        (tmp_path / "signatures").mkdir()
        (tmp_path / "signatures" / "site.toml").write_text(self.ROW)
        unknown = LOGS[f"{UNRECOGNISED}/two-ranks-chained"]
        said = explain("--rules", tmp_path, unknown.path)
        assert said.code == RECOGNISED
        assert "the quota service gives no lease: no lease" in said.out
        assert "systemctl start quota" in said.out
        assert told("--rules", tmp_path, KV.path)["primary"] == KV.primary

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ('literal = "quota.LeaseError"', 'literal = "x"', "4 or more ASCII characters"),
            ("(?P<why>.+)", "(?P<why>.+", "pattern"),
            ("(?P<why>.+)", "(?<!a)(?P<why>.+)", "pattern"),
            ('printed_by = "acme"', 'printed_by = "acme"\nrole = "villain"', "role"),
            ('printed_by = "acme"', 'printed_by = "acme"\ncolour = "red"', "colour"),
            ("[[signature]]", "[[signature", "signatures"),
        ],
    )
    def test_what_is_wrong_with_them_is_said(
        self, tmp_path: Path, old: str, new: str, words: str
    ) -> None:
        (tmp_path / "signatures").mkdir()
        path = tmp_path / "signatures" / "site.toml"
        path.write_text(self.ROW.replace(old, new, 1))
        said = explain("--rules", tmp_path, KV.path)
        assert (said.code, said.out) == (USAGE, "")
        assert words in said.err
        assert "site.toml" in said.err


def test_an_ailment_of_logs_alone_has_its_page_and_a_slip_is_told() -> None:
    said = run_inside("rules", "show", "kv-cache-too-small")
    assert (said.code, "KV cache" in said.out) == (0, True)
    slip = run_inside("rules", "show", "kv-cache-to-small")
    assert (slip.code, "did you mean kv-cache-too-small?" in slip.err) == (USAGE, True)


TRACEBACK = (
    b"Traceback (most recent call last):\n  File \"a.py\", line 3, in f\n    g()\nKeyError: 'x'\n"
)
BANNER = b"INFO 05-01 10:00:01 [api_server.py:1043] vLLM API server version 0.8.5\n"
ALIKE = b"".join(
    b"INFO 05-01 10:00:0%d [weight_utils.py:265] Using format rank %d\n" % (i, i) for i in range(3)
)
HELLO = b"(APIServer pid=2) INFO 05-01 10:00:02 [a.py:1] hello\n"
QUOTED = b"(EngineCore pid=2) INFO 05-01 10:00:02 [log.py:1] 'Application startup complete.'\n"


@pytest.mark.parametrize(
    "data",
    {
        "under lines that are alike": BANNER + ALIKE + TRACEBACK,
        "a crash under lines that are alike": BANNER + ALIKE + b"Segmentation fault\n",
        "a loop of short starts": (BANNER + TRACEBACK) * 4,
        "while another process works on": BANNER + TRACEBACK + HELLO * 6,
        "half a character of JSON": rb'{"message":"ValueError: \ud800"}',
        "a level is all that is said": b"CRITICAL 05-01 10:00:02 [launcher.py:99] it is dead\n",
        "somebody quotes the ready line": BANNER + TRACEBACK + QUOTED,
        "uvicorn's own words": b"ERROR:    Application startup failed. Exiting.\n",
        "a signal": b"ERROR 05-01 10:00:02 [core.py:1] Failed core proc(s): {'E': -11}\n",
        "the loader": b"python3: symbol lookup error: /x/_C.so: undefined symbol\n",
        "the allocator": b"free(): invalid pointer\nAborted\n",
        "the container's engine": b"docker: Error response from daemon: no such image\n",
        "an option": b"Error: No such option: --foo\n",
        "no message": b"MemoryError\n",
        "a request that failed": READY
        + b"ERROR 05-01 10:00:03 [serving_chat.py:200] ValueError: too long\n"
        + b'INFO:     10.0.0.5:1 - "POST /v1/completions HTTP/1.1" 400 Bad Request\n',
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_a_failure_is_never_taken_for_health(tmp_path: Path, data: tuple[str, bytes]) -> None:
    said = explain(log(tmp_path, data[1]))
    assert said.code == UNKNOWN, said.out


@pytest.mark.parametrize(
    "data",
    {
        "what breaks after a stop": READY + b"INFO:     Shutting down\n" + TRACEBACK,
        "a request after which others were answered": READY
        + b"ERROR 05-01 10:00:03 [serving_chat.py:200] ValueError: too long\n"
        + b'INFO:     10.0.0.5:1 - "POST /v1/completions HTTP/1.1" 200 OK\n' * 3,
    }.items(),
    ids=lambda item: item[0],
)
def test_health_is_never_taken_for_a_failure(tmp_path: Path, data: tuple[str, bytes]) -> None:
    said = explain(log(tmp_path, data[1]))
    assert said.code == NOTHING, said.out


@pytest.mark.parametrize("magic", [b"\x28\xb5\x2f\xfd", b"BZh9", b"PK\x03\x04"])
def test_a_log_that_is_packed_otherwise_is_not_taken_for_health(
    tmp_path: Path, magic: bytes
) -> None:
    said = explain(log(tmp_path, magic + os.urandom(3000)))
    assert (said.code, "unpack it first" in said.err) == (USAGE, True)


def test_noise_is_no_log(tmp_path: Path) -> None:
    said = explain(log(tmp_path, os.urandom(300_000)))
    assert (said.code, said.out) == (USAGE, "")
