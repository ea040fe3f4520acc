"""Whatever it is given, the doctor ends with one clear sentence and the documented exit code:
0 healthy, 1 findings, 2 usage, 3 could not tell. Never with a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import (
    BASE_PYTHON,
    DOCTOR,
    HANG,
    HANGS,
    SYSTEM,
    Environment,
    Said,
    bare_environment,
    cpu_environment,
    gone,
    run_doctor,
    run_inside,
    script,
    wait_for,
)

HEALTHY, FINDINGS, USAGE, UNKNOWN = 0, 1, 2, 3
ON_CPU = ("--set", "device=cpu")
LATER = ("--set", "gpus=later", "--set", "archs=9.0")


def ends_with_a_sentence(said: Said, code: int, *words: str) -> None:
    """One line on stderr that holds the words, nothing on stdout, and the exit code."""
    assert (said.code, said.out) == (code, ""), said
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("vllm-doctor: ")
    for word in words:
        assert word in said.err
    assert len(said.err) < 600


def judged(said: Said, code: int) -> dict[str, Any]:
    """The report: JSON alone on stdout, nothing on stderr, its exit code that of the process."""
    assert (said.code, said.err) == (code, ""), said
    assert said.report["exit_code"] == code
    return said.report


class TestPython:
    """`--python` and the interpreters behind it."""

    def test_one_that_does_not_exist_is_named(self) -> None:
        ends_with_a_sentence(
            run_inside("diagnose", "--python", "/nowhere/bin/python"), USAGE, "/nowhere/bin/python"
        )

    def test_a_folder_without_python_is_named(self, tmp_path: Path) -> None:
        said = run_inside("diagnose", "--python", tmp_path)
        ends_with_a_sentence(said, USAGE, f"{tmp_path}/bin/python")

    def test_an_environment_whose_python_is_gone_is_to_be_made_anew(self, tmp_path: Path) -> None:
        link = tmp_path / "bin/python"
        link.parent.mkdir()
        link.symlink_to("/gone/python3.12")
        said = run_inside("diagnose", "--python", tmp_path)
        ends_with_a_sentence(said, USAGE, "/gone/python3.12", "recreate the environment")

    def test_a_file_that_cannot_be_executed_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "python"
        file.write_text("")
        ends_with_a_sentence(run_inside("diagnose", "--python", file), USAGE, "not executable")

    def test_a_loop_of_links_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "python").symlink_to(tmp_path / "python")
        ends_with_a_sentence(run_inside("diagnose", "--python", tmp_path / "python"), USAGE)

    @pytest.mark.parametrize("value", ["", " ", "\n", "~", "-"])
    def test_an_odd_value_is_refused(
        self, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        ends_with_a_sentence(run_inside("diagnose", "--python", value), USAGE)

    @pytest.mark.parametrize(
        ("what_it_does", "words"),
        [
            ("exit 0", "not a working Python"),
            ("exit 1", "not a working Python"),
            ("echo hello", "not a working Python"),
            ("echo 'cannot open shared library' >&2; exit 127", "cannot open shared library"),
            (r"printf '\377\376\000\033[31mred' >&2; exit 1", "not a working Python"),
            ("head -c 20000000 /dev/zero | tr '\\0' x", "not a working Python"),
            ("head -c 20000000 /dev/zero | tr '\\0' x >&2; exit 1", "not a working Python"),
            ("kill -SEGV $$", "not a working Python"),
            ("kill -KILL $$", "not a working Python"),
        ],
    )
    def test_what_is_no_python_is_refused(
        self, tmp_path: Path, what_it_does: str, words: str
    ) -> None:
        fake = script(tmp_path / "bin/python", what_it_does)
        ends_with_a_sentence(run_inside("diagnose", "--python", fake), USAGE, str(fake), words)

    @pytest.mark.parametrize(
        "answer",
        ["{", "[]", "null", '{"python": 1}', '{"version": "three"}', "[" * 200_000, '"\\ud800"'],
        ids=lambda a: a[:12],
    )
    def test_one_that_garbles_its_answer_is_refused(self, tmp_path: Path, answer: str) -> None:
        (tmp_path / "answer").write_text(answer)
        body = f"echo $VLLM_DOCTOR_MARK; cat {tmp_path}/answer; echo; echo $VLLM_DOCTOR_MARK"
        fake = script(tmp_path / "bin/python", body)
        ends_with_a_sentence(run_inside("diagnose", "--python", fake), USAGE, str(fake))

    def test_one_that_hangs_could_not_be_told(self, tmp_path: Path) -> None:
        fake = script(tmp_path / "bin/python", HANGS)
        said = run_doctor("diagnose", "--python", fake, hanging=fake)
        ends_with_a_sentence(said, UNKNOWN, str(fake), "did not end within")

    def test_one_that_never_stops_printing_fills_neither_disk_nor_memory(
        self, tmp_path: Path
    ) -> None:
        """What is read of a child is bounded; what it writes meanwhile has to be bounded too."""
        printed = tmp_path / "printed"
        prints = f"head -c 400000000 /dev/zero; : > {printed}\n{HANGS}"
        fake = script(tmp_path / "bin/python", prints)
        watched = subprocess.Popen(
            [str(DOCTOR), "diagnose", "--python", str(fake)], env=SYSTEM, stderr=subprocess.DEVNULL
        )
        sizes: list[int] = []

        def is_done() -> bool:
            sizes.append(_held_open(watched.pid))
            return printed.exists() or watched.poll() is not None

        try:
            wait_for(is_done)
        finally:
            watched.send_signal(signal.SIGINT)
            watched.wait(HANG)
        assert max(sizes) < 100 << 20, f"{max(sizes) >> 20} MiB"

    def test_a_name_with_terminal_escapes_does_not_drive_the_terminal(self, tmp_path: Path) -> None:
        said = run_doctor("diagnose", "--python", tmp_path / "\x1b[2J\x07evil\nsecond line")
        ends_with_a_sentence(said, USAGE, "evil")
        assert "\x1b" not in said.err


def _held_open(pid: int) -> int:
    """Bytes of the files that a process holds open, those without a name included."""
    total = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            seen = link.stat()
            total += seen.st_size if stat.S_ISREG(seen.st_mode) else 0
    return total


class TestNames:
    """Paths that are not UTF-8, or that a shell would take apart."""

    def test_a_path_that_is_not_utf8_is_judged_and_shown_escaped(self, tmp_path: Path) -> None:
        prefix = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        cpu_environment(prefix)
        said = run_doctor("diagnose", "--format", "json", "--python", prefix, *ON_CPU)
        assert judged(said, HEALTHY)["target"]["prefix"].endswith("/caf\\xe9")
        said = run_doctor("diagnose", "-v", "--python", os.fsencode(prefix), *ON_CPU)
        assert (said.code, said.err) == (HEALTHY, "")
        assert "/caf\\xe9/bin/python" in said.out

    def test_findings_about_a_path_that_is_not_utf8_are_shown(self, tmp_path: Path) -> None:
        prefix = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        bare_environment(prefix)
        for form in ("text", "json"):
            said = run_doctor("diagnose", "--format", form, "--python", prefix, *ON_CPU)
            assert (said.code, said.err) == (FINDINGS, "")
            assert "vllm-missing" in said.out

    def test_a_snapshot_of_a_path_that_is_not_utf8_is_judged_alike(self, tmp_path: Path) -> None:
        prefix = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        cpu_environment(prefix)
        tape = tmp_path / "tape.json"
        written = run_doctor("snapshot", "--python", prefix, "-o", tape, *ON_CPU)
        assert written.code == 0, written.err
        said = run_doctor("diagnose", "--from", tape, "--format", "json", *ON_CPU)
        judged(said, HEALTHY)

    @pytest.mark.parametrize("name", ["with space", "it's $HOME;`id`", 'a "größe"'])
    def test_the_commands_of_a_repair_survive_a_shell(self, tmp_path: Path, name: str) -> None:
        one = bare_environment(tmp_path / name)
        said = run_doctor("diagnose", "-v", "--python", one.prefix, *ON_CPU)
        assert (said.code, said.err) == (FINDINGS, "")
        (command,) = (line for line in said.out.splitlines() if "pip install" in line)
        words = shlex.split(command)
        assert words[:5] == ["uv", "pip", "install", "--python", str(one.python)]
        assert words[5].startswith("vllm")


class TestMetadata:
    """Half-deleted and unreadable `*.dist-info`."""

    def test_metadata_that_are_gone_make_an_incomplete_installation(
        self, server: Environment
    ) -> None:
        (server.site / "vllm-0.22.0.dist-info/METADATA").unlink()
        said = run_doctor("diagnose", "--format", "json", "--python", server.prefix, *ON_CPU)
        report = judged(said, FINDINGS)
        assert report["primary"] == "vllm-missing"
        message = said.outcome("vllm-missing")["findings"][0]["message"]
        assert message == f"the installation of vLLM 0.22.0 in {server.prefix} is incomplete"

    def test_a_distribution_without_its_package_is_incomplete(self, server: Environment) -> None:
        (server.site / "vllm").rename(server.site / "~llm")
        said = run_doctor("diagnose", "--format", "json", "--python", server.prefix, *ON_CPU)
        assert judged(said, FINDINGS)["primary"] == "vllm-missing"

    @pytest.mark.parametrize("kind", ["folder", "loop", "fifo", "dangling", "binary", "empty"])
    def test_metadata_that_cannot_be_read_are_no_crash(
        self, server: Environment, kind: str
    ) -> None:
        for name in ("torch-2.11.0", "triton-3.6.0"):
            _make_odd(server.site / f"{name}.dist-info/METADATA", kind)
        _make_odd(server.site / "torch/version.py", kind)
        _make_odd(server.site / "odd.pth", kind)
        said = run_doctor("diagnose", "--format", "json", "--python", server.prefix, *LATER)
        report = judged(said, FINDINGS)
        assert not [o["id"] for o in report["outcomes"] if o["verdict"] == "crashed"]

    @pytest.mark.parametrize("kind", ["loop", "empty"])
    def test_a_dist_info_that_is_no_folder_is_no_crash(
        self, cpu_server: Environment, kind: str
    ) -> None:
        _make_odd(cpu_server.site / "triton-3.9.0.dist-info", kind)
        said = run_doctor("diagnose", "--format", "json", "--python", cpu_server.prefix, *ON_CPU)
        judged(said, HEALTHY)

    def test_a_name_without_a_version_is_passed_over(self, cpu_server: Environment) -> None:
        for name in ("odd.dist-info", "-1.dist-info", "odd-.dist-info", "odd-one.two.dist-info"):
            (cpu_server.site / name).mkdir()
        (cpu_server.site / os.fsdecode(b"caf\xe9-1.0.dist-info")).mkdir()
        said = run_doctor("diagnose", "--format", "json", "--python", cpu_server.prefix, *ON_CPU)
        judged(said, HEALTHY)

    def test_of_two_versions_the_whole_one_is_judged(self, cpu_server: Environment) -> None:
        (cpu_server.site / "vllm-0.9.0.dist-info").mkdir()
        (cpu_server.site / "vllm-0.30.0.dist-info").mkdir()
        said = run_doctor("diagnose", "--format", "json", "--python", cpu_server.prefix, *ON_CPU)
        judged(said, HEALTHY)

    def test_an_empty_prefix_is_told_from_a_missing_vllm(self, bare: Environment) -> None:
        bare.site.rmdir()
        said = run_doctor("diagnose", "--format", "json", "--python", bare.prefix, *ON_CPU)
        assert judged(said, said.code)["exit_code"] in (FINDINGS, UNKNOWN)


def _make_odd(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to("/nowhere/at/all")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\0\xff\xfe\n= (" * 100 if kind == "binary" else b"")


class TestToolkit:
    """CUDA_HOME and what stands where an nvcc should be."""

    def diagnose(
        self, server: Environment, env: Mapping[str, str] | None = None, hanging: Path | None = None
    ) -> Said:
        return run_doctor(
            *("diagnose", "--format", "json", "--python", server.prefix, *LATER),
            env=env,
            hanging=hanging,
        )

    @pytest.mark.parametrize(
        "value", ["/usr/local/cuda:/opt/cuda", ":/usr/local/cuda", " ", "'/opt/cuda'"]
    )
    def test_a_cuda_home_that_is_no_folder_is_found(
        self, shared_server: Environment, value: str
    ) -> None:
        said = self.diagnose(shared_server, {"CUDA_HOME": value})
        assert judged(said, FINDINGS)["primary"] == "cuda-home-bad-path"

    @pytest.mark.parametrize(
        ("what_it_does", "words"),
        [
            (r"printf '\377\376 garbage \033[31m'", "garbage"),
            ("exit 3", "3"),
            ("kill -SEGV $$", ""),
            ("head -c 20000000 /dev/zero", ""),
        ],
    )
    def test_an_nvcc_that_does_not_answer_is_found(
        self, shared_server: Environment, tmp_path: Path, what_it_does: str, words: str
    ) -> None:
        script(tmp_path / "bin/nvcc", what_it_does)
        said = self.diagnose(shared_server, {"CUDA_HOME": str(tmp_path)})
        report = judged(said, FINDINGS)
        assert said.found() & {"nvcc-missing", "cuda-home-bad-path"}
        assert words in json.dumps(report)
        assert not [o for o in report["outcomes"] if o["verdict"] == "crashed"]

    def test_an_nvcc_that_hangs_is_found_and_said_to_hang(
        self, shared_server: Environment, tmp_path: Path
    ) -> None:
        nvcc = script(tmp_path / "bin/nvcc", HANGS)
        said = self.diagnose(shared_server, {"CUDA_HOME": str(tmp_path)}, nvcc)
        judged(said, FINDINGS)
        assert "did not end within" in said.out

    @pytest.mark.parametrize("kind", ["folder", "dangling", "empty", "fifo"])
    def test_an_nvcc_that_cannot_be_started_is_found(
        self, shared_server: Environment, tmp_path: Path, kind: str
    ) -> None:
        (tmp_path / "bin").mkdir()
        _make_odd(tmp_path / "bin/nvcc", kind)
        said = self.diagnose(shared_server, {"CUDA_HOME": str(tmp_path)})
        judged(said, FINDINGS)
        assert said.found() & {"nvcc-missing", "cuda-home-bad-path"}

    def test_a_compiler_that_hangs_is_found_and_said_to_hang(
        self, shared_server: Environment, tmp_path: Path
    ) -> None:
        slow = script(tmp_path / "slow-cc", HANGS)
        said = self.diagnose(shared_server, {"CC": str(slow)}, slow)
        judged(said, FINDINGS)
        assert "did not end within" in json.dumps(said.outcome("c-compiler-missing"))

    @pytest.mark.parametrize(
        "env",
        [
            {"CC": "'unclosed", "NVCC_APPEND_FLAGS": "-ccbin 'unclosed", "CXX": "'"},
            {"CC": "ccache gcc", "FLASHINFER_NVCC": "nvcc --flag", "CXX": " "},
            {
                "FLASHINFER_CUDA_ARCH_LIST": "nine ten 9.0a+PTX",
                "FLASHINFER_EXTRA_CUDAFLAGS": '-I"unclosed -I',
                "NVCC_PREPEND_FLAGS": "-ccbin",
            },
            {"LD_LIBRARY_PATH": "::/dev/null:/nowhere:\udce9", "TRITON_LIBCUDA_PATH": "/dev/null"},
            {"PYTHONPATH": ":/dev/null:/nowhere:", "CUDA_VISIBLE_DEVICES": ",,\udce9,-1"},
            {"HOME": "relative/\udce9", "CUDA_HOME": "\udce9"},
        ],
        ids=ascii,
    )
    def test_odd_variables_crash_no_rule(
        self, shared_server: Environment, env: Mapping[str, str]
    ) -> None:
        said = self.diagnose(shared_server, env)
        assert said.code in (HEALTHY, FINDINGS, UNKNOWN)
        report = judged(said, said.code)
        assert not [o for o in report["outcomes"] if o["verdict"] == "crashed"]


class TestTape:
    """`--from FILE`."""

    def judge(self, tape: Path | str) -> Said:
        return run_inside("diagnose", "--from", tape)

    def test_the_command_itself_says_it_and_no_more(self, tmp_path: Path) -> None:
        tape = tmp_path / "tape.json"
        tape.write_text('{"schema_version": 1, "runs": [{"argv": ["/usr')
        ends_with_a_sentence(run_doctor("diagnose", "--from", tape), USAGE, "truncated")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "not valid JSON"),
            (b"hello", "not valid JSON"),
            (b"\xff\xfe\x00", "not valid JSON"),
            (b'{"schema_version": 1, "runs": [{"argv": ["/usr', "truncated"),
            (b"[" * 50_000, "not valid JSON"),
            (b'{"schema_version": 1, "python": ' + b'{"a":' * 50_000, "not valid JSON"),
            (b"[]", "not a snapshot"),
            (b"null", "not a snapshot"),
            (b"{}", "not a snapshot"),
            (b'{"schema_version": "1"}', "not a snapshot"),
            (b'{"schema_version": 99}', "newer vllm-doctor"),
            (b'{"schema_version": 1}', "is missing"),
            (b'{"schema_version": true}', ""),
            (b'{"schema_version": 1, "python": "p", "nonsense": 1}', "nonsense"),
            (
                b'{"schema_version": 1, "tool": "t", "python": 3, "found_by": "", "env": {}}',
                "python",
            ),
        ],
        ids=lambda v: v[:24] if isinstance(v, bytes) else "",
    )
    def test_what_is_no_snapshot_is_refused(
        self, tmp_path: Path, content: bytes, words: str
    ) -> None:
        tape = tmp_path / "tape.json"
        tape.write_bytes(content)
        ends_with_a_sentence(self.judge(tape), USAGE, f"--from {tape}", words)

    def test_one_cut_off_anywhere_is_refused(self, tmp_path: Path, server: Environment) -> None:
        whole = run_doctor("snapshot", "--python", server.prefix, "-o", "-", *ON_CPU).out
        tape = tmp_path / "tape.json"
        for share in (0.1, 0.5, 0.99):
            tape.write_text(whole[: int(len(whole) * share)])
            ends_with_a_sentence(self.judge(tape), USAGE, "truncated")

    def test_one_of_500_mb_is_refused_unread(self, tmp_path: Path) -> None:
        tape = tmp_path / "tape.json"
        with tape.open("wb") as file:
            file.truncate(500_000_000)
        said = _within_memory(1 << 30, "diagnose", "--from", str(tape))
        ends_with_a_sentence(said, USAGE, "larger than")

    def test_a_device_without_end_is_refused(self) -> None:
        said = _within_memory(1 << 30, "diagnose", "--from", "/dev/zero")
        ends_with_a_sentence(said, USAGE, "--from /dev/zero")

    def test_a_folder_or_nothing_is_refused(self, tmp_path: Path) -> None:
        ends_with_a_sentence(self.judge(tmp_path), USAGE, "is a directory")
        ends_with_a_sentence(self.judge(tmp_path / "none"), USAGE, "no such file")

    def test_one_that_holds_no_answer_could_not_be_told(self, tmp_path: Path) -> None:
        tape = tmp_path / "tape.json"
        empty = {
            "schema_version": 1,
            "tool": "t",
            "python": "/p",
            "found_by": "--python",
            "env": {},
        }
        tape.write_text(json.dumps(empty))
        ends_with_a_sentence(self.judge(tape), UNKNOWN, "this snapshot does not contain")

    def test_one_that_lacks_some_answers_says_which(
        self, tmp_path: Path, server: Environment
    ) -> None:
        whole = run_doctor("snapshot", "--python", server.prefix, "-o", "-", *ON_CPU)
        recording = whole.report
        recording["search"] = {}
        tape = tmp_path / "tape.json"
        tape.write_text(json.dumps(recording))
        said = run_doctor("diagnose", "--from", tape, "--format", "json", *ON_CPU)
        report = judged(said, UNKNOWN)
        whys = [o["why"] for o in report["outcomes"] if o["verdict"] == "unknown"]
        assert whys
        assert all(why.startswith("this snapshot does not contain") for why in whys)

    def test_a_snapshot_has_its_own_python(self, tmp_path: Path) -> None:
        said = run_doctor("diagnose", "--from", tmp_path, "--python", "/usr/bin/python3")
        ends_with_a_sentence(said, USAGE, "own python")


def _within_memory(bytes_of_memory: int, *arguments: str) -> Said:
    """The doctor where no more memory than this can be had."""
    ran = subprocess.run(
        ["prlimit", f"--as={bytes_of_memory}", str(DOCTOR), *arguments],
        env=SYSTEM,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    return Said(ran.returncode, ran.stdout, ran.stderr)


class TestProfile:
    """The profile's keys; every one that does not fit is in test_profile.py."""

    @pytest.mark.parametrize(
        "value", ["tensor_paralel_size=1", "port=abc", "device=tpu", "port", "needs.x=1"]
    )
    def test_a_set_that_does_not_fit_names_its_key(self, value: str) -> None:
        said = run_doctor("diagnose", "--python", "/nowhere", "--set", value)
        ends_with_a_sentence(said, USAGE, "--set", value.partition("=")[0])

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("model = 'm'\ntensor_paralel_size = 1", "tensor_paralel_size"),
            ("model = 'm'\nport = true", "port"),
        ],
    )
    def test_a_file_that_does_not_fit_is_named_with_its_key(
        self, tmp_path: Path, text: str, words: str
    ) -> None:
        file = tmp_path / "profile.toml"
        file.write_text(text)
        said = run_doctor("diagnose", "--python", "/nowhere", "--profile", file)
        ends_with_a_sentence(said, USAGE, f"--profile {file}", words)

    def test_a_name_that_is_none_lists_the_built_in_ones(self, tmp_path: Path) -> None:
        said = run_doctor("diagnose", "--profile", "glm-9")
        ends_with_a_sentence(said, USAGE, "glm-9", "glm-4.7-flash")
        ends_with_a_sentence(run_doctor("diagnose", "--profile", tmp_path), USAGE, str(tmp_path))

    def test_values_that_fit_are_taken(self, shared_cpu_server: Environment) -> None:
        sets = ("port=8100", "env.A=b=c", "archs=8.0, 9.0", "max_model_len=", "needs.vllm=0.22.1")
        options = [word for one in sets for word in ("--set", one)]
        target = ("--format", "json", "--python", shared_cpu_server.prefix)
        judged(run_doctor("diagnose", *target, *ON_CPU, *options), HEALTHY)


A_RULE = '''
from doctor import Fact, Finding, Severity, Stage, Text, rule
from doctor.probes.wheels import Packages

@rule("{id}", Severity.{severity}, Stage.SHELL)
def one(packages: {needs}):
    """A site's own rule.

    It explains itself.
    """
    {body}
'''


def a_rule(
    body: str = "return None",
    *,
    id: str = "site-rule",
    severity: str = "ERROR",
    needs: str = "Packages",
) -> str:
    return A_RULE.format(body=body, id=id, severity=severity, needs=needs)


class TestRules:
    """`--rules DIR`: what a site adds cannot break the doctor, or hide what it found."""

    def diagnose(self, server: Environment, folder: Path, *texts: str, form: str = "json") -> Said:
        for i, text in enumerate(texts):
            (folder / f"site{i}.py").write_text(text, encoding="utf-8")
        options = ("--python", server.prefix, "--rules", folder, *ON_CPU)
        return run_doctor("diagnose", "--format", form, *options)

    @pytest.mark.parametrize(
        ("texts", "words"),
        [
            ((), "contains no rules"),
            (("def broken(:",), "SyntaxError"),
            (("raise SystemExit(0)",), "cannot be loaded"),
            ((a_rule(), a_rule()), "site-rule"),
            ((a_rule(id="vllm-missing"),), "vllm-missing"),
        ],
    )
    def test_a_folder_that_cannot_be_loaded_is_refused(
        self, shared_cpu_server: Environment, tmp_path: Path, texts: tuple[str, ...], words: str
    ) -> None:
        said = self.diagnose(shared_cpu_server, tmp_path, *texts)
        ends_with_a_sentence(said, USAGE, "--rules", words)

    def test_a_folder_that_is_none_is_refused(
        self, shared_cpu_server: Environment, tmp_path: Path
    ) -> None:
        for folder in (tmp_path / "none", DOCTOR):
            said = run_doctor("diagnose", "--python", shared_cpu_server.prefix, "--rules", folder)
            ends_with_a_sentence(said, USAGE, str(folder))

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("raise ValueError('over')", "ValueError"),
            ("raise SystemExit(0)", "SystemExit"),
            ("return 'a text'", "Finding"),
            ("return Finding(Text('{value} is not given'))", "value"),
        ],
    )
    def test_a_rule_that_breaks_is_named_and_hides_nothing(
        self, shared_cpu_server: Environment, tmp_path: Path, body: str, words: str
    ) -> None:
        said = self.diagnose(shared_cpu_server, tmp_path, a_rule(body))
        assert (said.code, said.err) == (UNKNOWN, ""), said
        outcome = said.outcome("site-rule")
        assert outcome["verdict"] == "crashed"
        assert words in outcome["why"]
        assert len([o for o in said.report["outcomes"] if o["verdict"] == "ok"]) > 5

    def test_what_a_broken_rule_says_does_not_drive_the_terminal(
        self, shared_cpu_server: Environment, tmp_path: Path
    ) -> None:
        text = a_rule("raise ValueError('over\\x1b[2J here')")
        said = self.diagnose(shared_cpu_server, tmp_path, text, form="text")
        assert (said.code, said.err) == (UNKNOWN, "")
        assert re.search(r"the check crashed: ValueError: over.* here", said.out)
        assert "site-rule" in said.out
        assert "\x1b" not in said.out

    def test_a_fact_without_a_probe_is_named(
        self, shared_cpu_server: Environment, tmp_path: Path
    ) -> None:
        text = a_rule(needs="Weather").replace("\n@rule", "\nclass Weather(Fact): ...\n\n@rule")
        said = self.diagnose(shared_cpu_server, tmp_path, text)
        judged(said, UNKNOWN)
        assert said.outcome("site-rule")["why"] == "no probe returns Weather"

    def test_a_rule_that_finds_something_counts(
        self, shared_cpu_server: Environment, tmp_path: Path
    ) -> None:
        body = "return Finding(Text('{n} packages', n=len(packages.installed)))"
        said = self.diagnose(shared_cpu_server, tmp_path, a_rule(body))
        assert judged(said, FINDINGS)["primary"] == "site-rule"

    def test_a_rule_that_prints_does_not_spoil_the_json(
        self, shared_cpu_server: Environment, tmp_path: Path
    ) -> None:
        said = self.diagnose(shared_cpu_server, tmp_path, a_rule("print('noise')"))
        assert said.code == HEALTHY
        assert said.report["verdict"] == "healthy"


class TestOutput:
    """Where it writes to: files, pipes, terminals of any locale."""

    @pytest.mark.parametrize("place", ["none/tape.json", ".", "", "/proc/version", "/dev/full"])
    def test_a_snapshot_that_cannot_be_written_is_refused(
        self, shared_cpu_server: Environment, tmp_path: Path, place: str
    ) -> None:
        options = ("--python", shared_cpu_server.prefix, "-o", place, *ON_CPU)
        ends_with_a_sentence(run_doctor("snapshot", *options, cwd=tmp_path), USAGE, "--output")

    def test_a_reader_that_leaves_early_ends_it_quietly(
        self, shared_cpu_server: Environment
    ) -> None:
        line = shlex.join(
            [str(DOCTOR), "diagnose", "-v", "--python", str(shared_cpu_server.prefix)]
        )
        ran = _shell(f"{line} --set device=cpu | head -1")
        assert ran.err == ""
        assert ran.out.startswith("Judged ")

    @pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-"])
    def test_closed_descriptors_are_no_crash(
        self, shared_cpu_server: Environment, closed: str
    ) -> None:
        line = shlex.join([str(DOCTOR), "diagnose", "--python", str(shared_cpu_server.prefix)])
        ran = _shell(f"{line} --set device=cpu {closed}")
        assert ran.code == HEALTHY, ran
        assert "Traceback" not in ran.err

    def test_a_full_disk_is_said(self, shared_cpu_server: Environment) -> None:
        line = shlex.join([str(DOCTOR), "diagnose", "--python", str(shared_cpu_server.prefix)])
        ran = _shell(f"{line} --set device=cpu > /dev/full")
        assert ran.code not in (HEALTHY, FINDINGS)
        assert "Traceback" not in ran.err
        assert "no space left" in ran.err.lower()

    @pytest.mark.parametrize(
        "env",
        [
            {"LANG": "C"},
            {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            {"PYTHONIOENCODING": "ascii"},
            {"PYTHONIOENCODING": "latin-1:strict"},
            {"PYTHONIOENCODING": "utf-16"},
            {"LC_ALL": "xx_YY.nonsense"},
        ],
        ids=str,
    )
    def test_any_locale_gets_its_report(
        self, shared_cpu_server: Environment, env: Mapping[str, str]
    ) -> None:
        options = ("--python", shared_cpu_server.prefix, *ON_CPU)
        said = run_doctor("diagnose", *options, env=env)
        assert (said.code, said.err) == (HEALTHY, "")
        assert "wheels" in said.out.replace("\0", "")

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict"])
    def test_json_needs_no_locale(self, shared_cpu_server: Environment, encoding: str) -> None:
        options = ("--format", "json", "--python", shared_cpu_server.prefix, *ON_CPU)
        judged(run_doctor("diagnose", *options, env={"PYTHONIOENCODING": encoding}), HEALTHY)

    def test_json_is_one_document_and_no_colour(self, server: Environment) -> None:
        said = run_doctor("diagnose", "--format", "json", "--python", server.prefix)
        judged(said, FINDINGS)
        assert said.out.count("\n") == 1
        assert said.out.isascii()

    @pytest.mark.parametrize(
        "arguments",
        [
            ("diagnose", "--format", "yaml"),
            ("diagnose", "--nonsense"),
            ("diagnose", "surplus"),
            ("nonsense",),
            ("snapshot",),
            ("schema", "nonsense"),
            ("rules", "show"),
            ("diagnose", "--fail-on", "never"),
            ("diagnose", "--allow", "everything"),
        ],
        ids=" ".join,
    )
    def test_a_wrong_command_line_is_a_usage_error(self, arguments: tuple[str, ...]) -> None:
        said = run_inside(*arguments)
        assert (said.code, said.out) == (USAGE, "")
        assert "Error: " in said.err
        assert "Traceback" not in said.err

    def test_an_ailment_that_does_not_exist_gets_a_guess(self) -> None:
        said = run_inside("rules", "show", "nvcc-mising")
        ends_with_a_sentence(said, USAGE, "did you mean nvcc-missing?")
        ends_with_a_sentence(run_inside("rules", "show", "weather"), USAGE, "weather")


def _shell(line: str, **env: str) -> Said:
    ran = subprocess.run(
        ["/bin/sh", "-c", line],
        env={**SYSTEM, **env},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    return Said(ran.returncode, ran.stdout, ran.stderr)


class TestPoorMachine:
    """What a container or a cron job does not have."""

    @pytest.mark.parametrize(
        "env",
        [
            {"HOME": ""},
            {"HOME": "/nowhere"},
            {"PATH": ""},
            {"PATH": "/nowhere:/dev/null:"},
            {"LD_LIBRARY_PATH": "/nowhere"},
            {"TMPDIR": "/nowhere"},
            {"TERM": "nonsense", "COLUMNS": "0", "LINES": "x"},
        ],
        ids=str,
    )
    def test_a_report_is_made_all_the_same(
        self, shared_server: Environment, env: Mapping[str, str]
    ) -> None:
        said = run_doctor("diagnose", "--python", shared_server.prefix, *LATER, env=env)
        assert (said.code, said.err) == (FINDINGS, ""), said

    def test_no_variable_at_all_is_enough(self, shared_server: Environment) -> None:
        ran = subprocess.run(
            [str(DOCTOR), "diagnose", "--format", "json", "--python", str(shared_server.prefix)],
            env={},
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )
        judged(Said(ran.returncode, ran.stdout, ran.stderr), FINDINGS)

    def test_no_which_means_that_flashinfer_finds_no_nvcc(
        self, shared_server: Environment, tmp_path: Path
    ) -> None:
        """FlashInfer starts `which`; slim images lack it, whatever else is on PATH."""
        script(tmp_path / "nvcc", "exit 0")
        options = ("--format", "json", "--python", shared_server.prefix, *LATER)
        said = run_doctor("diagnose", *options, env={"PATH": str(tmp_path)})
        judged(said, FINDINGS)
        assert "no `which`" in json.dumps(said.outcome("nvcc-missing"))

    def test_a_folder_that_is_gone_can_be_stood_in(
        self, shared_cpu_server: Environment, tmp_path: Path
    ) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        line = shlex.join([str(DOCTOR), "diagnose", "--python", str(shared_cpu_server.prefix)])
        ran = _shell(f"cd {gone}; rmdir {gone}; {line} --set device=cpu")
        assert (ran.code, ran.err) == (HEALTHY, "")

    def test_few_descriptors_and_little_memory_are_no_traceback(
        self, shared_cpu_server: Environment
    ) -> None:
        def poor() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))

        ran = subprocess.run(
            [str(DOCTOR), "diagnose", "--python", str(shared_cpu_server.prefix), *ON_CPU],
            env=SYSTEM,
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
            preexec_fn=poor,
        )
        assert "Traceback" not in ran.stderr
        assert ran.returncode in (HEALTHY, FINDINGS, USAGE, UNKNOWN)


class TestInterrupt:
    """Ctrl-C, and a supervisor's SIGTERM: one line, and no child left behind."""

    def interrupted(
        self, start: Callable[[Path], list[str]], tmp_path: Path, number: signal.Signals
    ) -> tuple[int, str, int]:
        """(exit code, stderr, pid of the child that hung)."""
        pid_file = tmp_path / "pid"
        doctor = subprocess.Popen(
            start(pid_file),
            env={**SYSTEM, "PATH": f"{tmp_path / 'hung'}:/usr/bin:/bin"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: pid_file.exists() and pid_file.read_text())
        doctor.send_signal(number)
        _, err = doctor.communicate(timeout=HANG)
        return doctor.returncode, err, int(pid_file.read_text())

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_while_the_interpreter_is_asked(self, tmp_path: Path, number: signal.Signals) -> None:
        fake = tmp_path / "bin/python"

        def start(pid_file: Path) -> list[str]:
            script(fake, f"echo $$ > {pid_file}\n{HANGS}")
            return [str(DOCTOR), "diagnose", "--python", str(fake)]

        code, err, child = self.interrupted(start, tmp_path, number)
        assert "Traceback" not in err
        assert code not in (HEALTHY, FINDINGS, UNKNOWN)
        wait_for(lambda: gone(child))
        if number is signal.SIGINT:
            assert (code, err.strip()) == (130, "vllm-doctor: interrupted; nothing was changed")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_while_a_compiler_is_asked_in_the_background(
        self, tmp_path: Path, shared_server: Environment, number: signal.Signals
    ) -> None:
        def start(pid_file: Path) -> list[str]:
            script(tmp_path / "hung/gcc", f"echo $$ > {pid_file}\n{HANGS}")
            return [str(DOCTOR), "diagnose", "--python", str(shared_server.prefix), *LATER]

        code, err, child = self.interrupted(start, tmp_path, number)
        assert "Traceback" not in err
        assert code not in (HEALTHY, FINDINGS, UNKNOWN)
        wait_for(lambda: gone(child))
        if number is signal.SIGINT:
            assert (code, err.strip()) == (130, "vllm-doctor: interrupted; nothing was changed")


def test_every_name_of_the_interpreter_is_the_one_that_runs_these_tests() -> None:
    """What the builders link to is a base interpreter, not this environment's."""
    assert not (BASE_PYTHON.parent.parent / "pyvenv.cfg").exists()
    assert sys.version_info[:2] == tuple(
        map(int, BASE_PYTHON.name.removeprefix("python").split("."))
    )


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ("nvcc-mising", "did you mean nvcc-missing?"),
        ("nvcc-missing,zzz", "--only zzz: unknown rule"),
    ],
)
def test_an_ailment_that_no_rule_has_cannot_be_repaired_alone(only: str, words: str) -> None:
    said = run_inside("fix", "--only", only)
    ends_with_a_sentence(said, USAGE, words)
