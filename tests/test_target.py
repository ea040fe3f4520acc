"""The machine under judgement: nothing of the target runs, nothing is written, no question makes
the doctor hang or raise, and a recording answers as the machine did."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from doctor import target as machine
from doctor.codec import CodecError, encode
from doctor.diagnose import Question, diagnose
from doctor.engine import Facts, load_rules
from doctor.exits import UNKNOWN
from doctor.model import Rule, os_reason
from doctor.probes.interpreter import FoundBy, Where
from doctor.profile import DEFAULT_PROFILE, Profile, ServeRequest, load_profile
from doctor.shipped import rules_folder
from doctor.snapshot import ask_everything, shareable
from doctor.tape import NotRecorded, Recorder, Recording, Tape, load_tape
from doctor.target import Live, Ran, Target, TooLarge, must_read, read_regular, run_child
from tests import stand_ins
from tests.conftest import (
    BASE_PYTHON,
    DOCTOR,
    HANG,
    SYSTEM,
    Environment,
    gone,
    not_for_ever,
    run_doctor,
    script,
    shared_library,
    vllm_environment,
    wait_for,
)

LATER = ("--set", "gpus=later", "--set", "archs=9.0")


class TestIsolation:
    """Everything that a target could run is laid out; after a diagnosis, none of it has run."""

    @pytest.fixture
    def marker(self, tmp_path: Path) -> Path:
        return tmp_path / "marker"

    @pytest.fixture
    def hostile(self, tmp_path: Path, marker: Path) -> Environment:
        """A real venv with vLLM, in which every way of running code on start leaves a mark."""
        made = Environment(tmp_path / "venv")
        command = [str(BASE_PYTHON), "-m", "venv", "--without-pip", "--system-site-packages"]
        subprocess.run([*command, str(made.prefix)], check=True)
        other = vllm_environment(tmp_path / "other")
        for path in other.site.iterdir():
            path.rename(made.site / path.name)
        mark = f"open({str(marker)!r}, 'a').write(__name__)\n"
        for name in ("sitecustomize.py", "usercustomize.py", "json.py", "site.py", "encodings.py"):
            (made.site / name).write_text(mark)
        for name in ("torch", "vllm", "flashinfer", "transformers", "triton", "click", "packaging"):
            (made.site / name).mkdir(exist_ok=True)
            (made.site / name / "__init__.py").write_text(mark)
        (made.site / "evil.pth").write_text(f"import sys; {mark}")
        (made.site / "tabbed.pth").write_text(f"import\tsys; {mark}")
        (made.site / "vllm-0.22.0.dist-info/entry_points.txt").write_text("[x]\ny = torch:z\n")
        return made

    def test_the_traps_are_armed(self, hostile: Environment, marker: Path) -> None:
        subprocess.run([hostile.python, "-c", "import torch"], env=SYSTEM, check=True)
        assert marker.exists()

    @pytest.mark.parametrize(
        "command", [("diagnose",), ("diagnose", *LATER), ("snapshot", "-o", "-")], ids=" ".join
    )
    def test_nothing_of_the_target_runs(
        self, hostile: Environment, marker: Path, command: tuple[str, ...]
    ) -> None:
        said = run_doctor(*command, "--python", hostile.prefix)
        assert "Traceback" not in said.err
        assert not marker.exists()

    def test_nothing_of_an_active_target_runs_either(
        self, hostile: Environment, marker: Path
    ) -> None:
        env = {"VIRTUAL_ENV": str(hostile.prefix), "PATH": f"{hostile.prefix}/bin:/usr/bin:/bin"}
        said = run_doctor("diagnose", *LATER, env=env)
        assert "(VIRTUAL_ENV)" in said.out
        assert not marker.exists()

    def test_nothing_of_the_users_site_runs(
        self, hostile: Environment, tmp_path: Path, marker: Path
    ) -> None:
        ask = [str(hostile.python), "-I", "-c", "import site; print(site.getusersitepackages())"]
        env = {"HOME": str(tmp_path / "home")}
        asked = subprocess.run(ask, env=SYSTEM | env, capture_output=True, text=True, check=True)
        marker.unlink(missing_ok=True)
        user = Path(asked.stdout.strip().splitlines()[-1])
        user.mkdir(parents=True, exist_ok=True)
        for name in ("usercustomize.py", "json.py"):
            (user / name).write_text(f"open({str(marker)!r}, 'a')\n")
        (user / "evil.pth").write_text(f"import os; open({str(marker)!r}, 'a')\n")
        run_doctor("diagnose", *LATER, "--python", hostile.prefix, env=env)
        assert not marker.exists()

    def booby_trapped(self, folder: Path, marker: Path, *more: str) -> Path:
        """A folder whose modules, called like what the doctor imports, leave a mark."""
        folder.mkdir()
        for name in ("json", "click", "packaging", "dataclasses", "torch", "pynvml", *more):
            mark = f"open({str(marker)!r}, 'a').write({name!r})\n"
            (folder / f"{name}.py").write_text(mark)
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(mark)
        return folder

    def test_nothing_of_the_current_folder_runs(
        self, shared_cpu_server: Environment, tmp_path: Path, marker: Path
    ) -> None:
        here = self.booby_trapped(tmp_path / "here", marker, "doctor", "doctor.cli")
        options = ("--python", shared_cpu_server.prefix, "--set", "device=cpu")
        said = run_doctor("diagnose", *options, cwd=here)
        assert (said.code, said.err) == (0, "")
        assert not marker.exists()

    def test_nothing_of_pythonpath_runs(
        self, shared_server: Environment, tmp_path: Path, marker: Path
    ) -> None:
        """It is the server's, and is judged; an old `packaging` there must not break the doctor."""
        path = self.booby_trapped(tmp_path / "path", marker)
        options = ("--python", shared_server.prefix, *LATER, "--format", "json")
        said = run_doctor("diagnose", *options, env={"PYTHONPATH": str(path)})
        assert not marker.exists()
        assert said.report["verdict"] == "findings"

    def test_what_the_doctor_starts_takes_nothing_of_pythonpath(
        self, shared_server: Environment, tmp_path: Path, marker: Path
    ) -> None:
        """The doctor itself isolated, its children have to be so on their own account."""
        for name in ("json", "ctypes", "pynvml", "sitecustomize"):
            (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'a')\n")
        env = {**SYSTEM, "PYTHONPATH": str(tmp_path)}
        options = ["diagnose", "--python", str(shared_server.prefix)]
        ran = subprocess.run(
            [sys.executable, "-I", str(DOCTOR), *options],
            env=env,
            capture_output=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (1, b"")
        assert not marker.exists()

    def test_python_variables_do_not_reach_the_question(
        self, shared_server: Environment, tmp_path: Path, marker: Path
    ) -> None:
        start = tmp_path / "start.py"
        start.write_text(f"open({str(marker)!r}, 'a')\n")
        names = (
            "PYTHONSTARTUP",
            "PYTHONINSPECT",
            "PYTHONWARNINGS",
            "PYTHONHOME",
            "PYTHONPLATLIBDIR",
        )
        ran = subprocess.run(
            [sys.executable, "-I", str(DOCTOR), "diagnose", "--python", shared_server.prefix],
            env={**SYSTEM, **dict.fromkeys(names, str(start))},
            capture_output=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (1, b"")
        assert not marker.exists()


class TestNothingIsWritten:
    @pytest.mark.parametrize("command", ["diagnose", "diagnose --deep", "rules", "snapshot -o -"])
    def test_target_home_and_folder_are_left_as_they_were(
        self, server: Environment, tmp_path: Path, command: str
    ) -> None:
        home, here, rules, temporary = (tmp_path / n for n in ("home", "cwd", "rules", "tmp"))
        for folder in (home, here, rules, temporary):
            folder.mkdir()
        (rules / "site.py").write_text(
            "from doctor import Severity, Stage, rule\n"
            "@rule('site', Severity.INFO, Stage.SHELL)\n"
            "def site() -> None:\n    '''Title.\n\n    More.'''\n"
        )
        script(here / "nvcc", "exit 0")
        words = command.split()
        before = listing(tmp_path)
        options = () if words[0] == "rules" else ("--python", server.prefix, *LATER)
        env = {"HOME": str(home), "TMPDIR": str(temporary), "CUDA_HOME": str(here)}
        said = run_doctor(*words, *options, "--rules", rules, env=env, cwd=here)
        assert said.code in (0, 1)
        after = listing(tmp_path)
        if "--deep" in words:  # what is proven is proven in a folder there, which is removed again
            before[str(temporary)] = after[str(temporary)]
        assert after == before

    def test_the_doctors_own_package_gets_no_bytecode_of_rules(self, server: Environment) -> None:
        before = listing(rules_folder())
        run_doctor("diagnose", "--python", server.prefix, *LATER)
        assert listing(rules_folder()) == before


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every path below: its kind and mode, size and time of change."""
    made = {}
    for path in [folder, *folder.rglob("*")]:
        seen = path.lstat()
        made[str(path)] = (seen.st_mode, seen.st_size, seen.st_mtime_ns)
    return made


class TestChildren:
    """What a child does is a value."""

    def test_one_that_ends_well(self) -> None:
        ran = run_child(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], 10, {})
        assert ran == Ran(3, "out\n", "err\n")

    def test_one_that_does_not_exist_or_cannot_be_started(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("#!/nowhere/interpreter\n")
        (tmp_path / "file").chmod(0o755)
        for argv in (["/nowhere"], [str(tmp_path)], [str(tmp_path / "file")], ["a\0b"], [""]):
            ran = run_child(argv, 10, {})
            assert ran.code is None
            assert ran.failure

    def test_variables_that_no_process_can_have_are_a_failure(self) -> None:
        for env in ({"a=b": "c"}, {"a": "b\0c"}):
            assert run_child(["/bin/true"], 10, env).failure

    def test_one_that_is_killed(self) -> None:
        assert run_child(["/bin/sh", "-c", "kill -SEGV $$"], 10, {}).code == -11

    def test_one_that_hangs_is_ended_with_all_that_it_started(self, tmp_path: Path) -> None:
        line = f"sleep 86400 & echo $! > {tmp_path}/pid; echo begun; exec sleep 86400"
        ran, seconds = hung(line, tmp_path / "pid")
        assert ran == Ran(None, "begun\n", failure=f"did not end within {seconds:g} s")
        wait_for(lambda: gone(int((tmp_path / "pid").read_text())))

    def test_one_that_ignores_being_asked_is_ended(self, tmp_path: Path) -> None:
        line = f"trap '' TERM; echo $$ > {tmp_path}/pid; echo begun; while :; do sleep 0.05; done"
        hung(line, tmp_path / "pid")
        wait_for(lambda: gone(int((tmp_path / "pid").read_text())))

    def test_what_one_leaves_running_does_not_keep_the_doctor_waiting(self, tmp_path: Path) -> None:
        line = f"sleep 86400 & echo $! > {tmp_path}/pid; echo done"
        with not_for_ever():
            assert run_child(["/bin/sh", "-c", line], 2 * HANG, SYSTEM) == Ran(0, "done\n")
        wait_for(lambda: gone(int((tmp_path / "pid").read_text())))

    def test_one_that_asks_gets_no_answer(self) -> None:
        assert run_child(["/bin/cat"], 10, {}) == Ran(0)

    def test_output_is_cut_and_need_not_be_utf8(self) -> None:
        ran = run_child(
            ["/bin/sh", "-c", r"printf 'caf\351'; head -c 3000000 /dev/zero"], 10, SYSTEM
        )
        assert ran.out.startswith("caf\\xe9\0")
        assert len(ran.out) <= (1 << 20) + 3


def hung(line: str, begun: Path) -> tuple[Ran, float]:
    """What came of a shell's line that does not end, and after how many seconds: the first of these
    in which it got as far as to write `begun` and say so."""
    for seconds in (0.3, 2.0, 20.0):
        begun.unlink(missing_ok=True)
        with not_for_ever():
            ran = run_child(["/bin/sh", "-c", line], seconds, SYSTEM)
        if ran.out:
            return ran, seconds
    raise AssertionError("it never began")


class TestLive:
    """No question hangs or raises, whatever lies at the path."""

    @pytest.fixture
    def odd(self, tmp_path: Path) -> Mapping[str, Path]:
        made = {n: tmp_path / n for n in ("folder", "fifo", "loop", "dangling", "missing", "file")}
        made["folder"].mkdir()
        os.mkfifo(made["fifo"])
        made["loop"].symlink_to(made["loop"])
        made["dangling"].symlink_to(tmp_path / "gone")
        made["file"].write_bytes(b"caf\xe9 13.0\n")
        return {
            **made,
            "below a file": made["file"] / "x",
            "not utf8": Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9")),
            "nul": tmp_path / "a\0b",
            "long": tmp_path / ("x" * 300),
            "deep": Path("/" + "x/" * 3000),
            "device": Path("/dev/zero"),
            "terminal": Path("/dev/tty"),
            "kernel": Path("/proc/self/mem"),
            "empty": Path(),
        }

    @pytest.mark.parametrize(
        "kind",
        [
            *("folder", "fifo", "loop", "dangling", "missing", "below a file", "not utf8", "nul"),
            *("long", "deep", "device", "terminal", "kernel", "empty"),
        ],
    )
    def test_what_is_no_file_reads_as_none(self, odd: Mapping[str, Path], kind: str) -> None:
        live, path = Live({}), odd[kind]
        with not_for_ever():
            assert live.read(path) is None
            assert live.search(path, "x") is None
            assert live.elf(path) is None
            assert not live.executable(path)
            live.stat(path)
            live.listdir(path)
            live.realpath(path)

    @pytest.mark.parametrize(
        "kind", ["folder", "fifo", "loop", "dangling", "nul", "long", "device", "kernel", "empty"]
    )
    def test_what_is_no_regular_file_is_refused_without_waiting(
        self, odd: Mapping[str, Path], kind: str
    ) -> None:
        with not_for_ever():
            assert read_regular(odd[kind], 100) is None
            with pytest.raises(OSError, match=r".") as refused:
                must_read(odd[kind], 100)
        assert os_reason(refused.value)

    def test_a_missing_file_can_be_told_from_an_unreadable_one(
        self, odd: Mapping[str, Path]
    ) -> None:
        with pytest.raises(FileNotFoundError):
            must_read(odd["missing"], 100)
        with pytest.raises(IsADirectoryError):
            must_read(odd["folder"], 100)
        with pytest.raises(OSError, match="Not a regular file"):
            must_read(odd["fifo"], 100)

    def test_a_file_is_read_whole_or_refused_by_its_size(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"12345")
        assert read_regular(path, 5) == b"12345"
        with pytest.raises(TooLarge, match=f"^{path} is larger than 4 bytes"):
            read_regular(path, 4)
        with path.open("wb") as file:
            file.truncate(2 << 30)  # without a block on the disk
        with pytest.raises(TooLarge, match="larger than 4 MiB"):
            must_read(path, 4 << 20)
        with pytest.raises(TooLarge):
            read_regular(Path("/proc/self/status"), 10)  # says that it is empty

    def test_descriptors_are_not_leaked(self, odd: Mapping[str, Path]) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for path in odd.values():
            for ask in (Live({}).read, Live({}).stat):
                try:
                    ask(path)
                except OSError:
                    continue
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    @pytest.mark.parametrize(
        "pattern",
        [
            "(?m)^abc",
            "(?m)^abc(d)",
            "(?ms)^abc.*d",
            "(?m)^abcd*",
            "(?m)^abc{2}",
            "(?m)^abc|d",
            "(?m)^ab",
            "(?m)^a-b: (c)",
            r"(?m)^abc\s(d)",
            "(?m)^(abc)$",
        ],
    )
    @given(text=st.text("abcd-: \n", max_size=30))
    def test_what_begins_a_line_is_found_as_re_finds_it(
        self, tmp_path_factory: pytest.TempPathFactory, pattern: str, text: str
    ) -> None:
        for shape in (text, f"abcd{text}", f"{text}\nabc{text}", f"xabc\nabc{text}\n\nabcd d"):
            path = tmp_path_factory.getbasetemp() / "lines"
            path.write_text(shape)
            assert Live({}).search(path, pattern) == tuple(re.findall(pattern, shape))

    def test_a_file_is_read_searched_and_described(self, odd: Mapping[str, Path]) -> None:
        live, path = Live({}), odd["file"]
        assert live.read(path) == b"caf\xe9 13.0\n"
        assert live.read(path, 3) == b"caf"
        assert live.search(path, r"(\d+)\.") == ("13",)
        assert live.search(path, r"caf.") == ("caf\\xe9",)
        assert live.search(path, "nothing") == ()
        stat = live.stat(path)
        assert stat is not None
        assert (stat.kind, stat.size, stat.uid) == ("file", 10, os.geteuid())

    def test_the_environment_is_a_copy_of_the_shells(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_DOCTOR_TEST", "before")
        live = Live()
        monkeypatch.setenv("VLLM_DOCTOR_TEST", "after")
        assert live.env["VLLM_DOCTOR_TEST"] == "before"


QWEN = (
    "model=Qwen/Qwen3-8B",
    "needs.architecture=Qwen3ForCausalLM",
    "needs.model_type=qwen3",
    "needs.attention_heads=32",
    "needs.weights_gib=15.3",
)


@pytest.fixture(scope="module")
def rules() -> tuple[Rule, ...]:
    return load_rules(rules_folder())


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-ins of the driver's libraries."""
    return stand_ins.build(tmp_path_factory.mktemp("driver"))


class TestTape:
    """A recording answers as the machine did."""

    def outcomes(self, target: Any, where: Where, profile: Profile, rules: tuple[Rule, ...]) -> Any:
        report = diagnose(Facts(target, (where, ServeRequest(profile))), rules, Question("p"))
        shown = [
            (o.rule.id, o.verdict, str(o.why), [encode(f.message) for f in o.findings], o.severity)
            for o in report.outcomes
        ]
        evidence = [[str(e) for f in o.findings for e in f.evidence] for o in report.outcomes]
        skipped = [(n.rule.id, str(n.why)) for n in report.not_checked]
        return shown, evidence, skipped, report.exit_code, report.primary and report.primary.rule.id

    def made(self, tmp_path: Path, driver: Path, broken: str) -> tuple[Environment, dict[str, str]]:
        """A home with an environment, a toolkit and a driver, and one thing wrong."""
        home = tmp_path / "alice"
        one = vllm_environment(home / "venv")
        env = {
            **SYSTEM,
            **stand_ins.environment(driver, gpus=2),
            "HOME": str(home),
            "CUDA_HOME": str(home / "cuda"),
        }
        toolkit(home / "cuda")
        if broken == "torch":
            (one.site / "torch-2.11.0.dist-info").rename(one.site / "torch-2.9.0.dist-info")
            (one.site / "torch/version.py").write_text("__version__ = '2.9.0'\ncuda = '12.8'\n")
        elif broken == "vllm":
            (one.site / "vllm-0.22.0.dist-info/METADATA").unlink()
        elif broken == "not utf8":
            (one.site / "torch/version.py").write_bytes(b"__version__ = '2.9'  # caf\xe9\n")
            (one.site / os.fsdecode(b"caf\xe9.pth")).write_bytes(b"/caf\xe9\n")
        elif broken == "cache":
            op = home / ".cache/flashinfer/0.6.11.post2/90a/cached_ops/sampling/sampling.so"
            shared_library(op, needed=("libcudart.so.12",))
        elif broken == "driver":
            env["STAND_IN_CUDA"] = "12020"
        return one, env

    @pytest.mark.parametrize("broken", ["", "torch", "vllm", "not utf8", "cache", "driver"])
    def test_a_redacted_recording_is_judged_as_the_machine_was(
        self, tmp_path: Path, rules: tuple[Rule, ...], driver: Path, broken: str
    ) -> None:
        one, env = self.made(tmp_path, driver, broken)
        where = Where(one.python, FoundBy.OPTION)
        # Recorded for a profile that asks the least, and judged for others.
        tape = self.snapshot(Live(env), where, load_profile(DEFAULT_PROFILE, ["device=cpu"]))
        assert tape.python == "/home/user/venv/bin/python"

        for sets in ([], ["gpus=later", "archs=9.0"], ["device=cpu"]):
            each = load_profile(DEFAULT_PROFILE, sets)
            live = self.outcomes(Live(env), where, each, rules)
            again = self.outcomes(Tape(tape), Where(Path(tape.python), FoundBy.OPTION), each, rules)
            assert again == _renamed(live, env["HOME"])

    def snapshot(self, target: Target, where: Where, profile: Profile) -> Recording:
        recorder = Recorder(target)
        asked = ask_everything(Facts(recorder, (where, ServeRequest(profile))))
        made = recorder.recording("t 0.5.0", str(where.python), where.how, None, asked)
        return load_tape(json.loads(json.dumps(shareable(made, target.env["HOME"]))))

    @pytest.mark.parametrize("made_for", [(), ("device=cpu",), ("gpus=later",), ("model=",)])
    def test_one_snapshot_answers_for_every_profile(
        self, tmp_path: Path, driver: Path, rules: tuple[Rule, ...], made_for: tuple[str, ...]
    ) -> None:
        one, env = self.made(tmp_path, driver, "")
        where = Where(one.python, FoundBy.OPTION)
        tape = self.snapshot(Live(env), where, load_profile(DEFAULT_PROFILE, made_for))
        where = Where(Path(tape.python), FoundBy.OPTION)
        for sets in (
            (),
            QWEN,
            ("device=cpu",),
            ("gpus=later", "archs=9.0"),
            *(("gpus=later", f"archs={arch}") for arch in ("8.9", "10.0", "12.0")),
            ("gpus=later", "archs=10.0", *QWEN),
            ("model=",),
            ("tensor_parallel_size=4",),
            ("moe_backend=triton",),
        ):
            facts = Facts(Tape(tape), (where, ServeRequest(load_profile(DEFAULT_PROFILE, sets))))
            report = diagnose(facts, rules, Question("p"))
            whys = {str(row.why) for row in report.outcomes}
            whys |= {str(row.why) for row in report.not_checked}
            assert not [why for why in whys if "does not contain" in why], sets
            assert not [why for why in whys if "recorded by" in why], sets
            assert report.exit_code != UNKNOWN, sets

    def test_what_only_a_proof_asks_for_is_in_no_snapshot(
        self, tmp_path: Path, driver: Path
    ) -> None:
        one, env = self.made(tmp_path, driver, "")
        tape = self.snapshot(
            Live(env), Where(one.python, FoundBy.OPTION), load_profile(DEFAULT_PROFILE)
        )
        assert not {"Proof", "Imports", "CuInit"} & set(tape.asked or ())
        assert {"Packages", "QuantizationMethods", "EveryGpu"} <= set(tape.asked or ())

    def test_a_snapshot_keeps_to_its_schema(self, tmp_path: Path, driver: Path) -> None:
        one, env = self.made(tmp_path, driver, "cache")
        taken = run_doctor("snapshot", "--python", one.prefix, "-o", "-", env=env)
        schema = run_doctor("schema", "snapshot").report
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(taken.report, schema)
        assert taken.err == ""

    def test_a_report_keeps_to_its_schema(self, tmp_path: Path, driver: Path) -> None:
        schema = run_doctor("schema").report
        jsonschema.Draft202012Validator.check_schema(schema)
        for broken in ("torch", "vllm", "cache"):
            one, env = self.made(tmp_path / broken, driver, broken)
            said = run_doctor("diagnose", "--format", "json", "--python", one.prefix, env=env)
            jsonschema.validate(said.report, schema)

    def test_what_was_not_recorded_cannot_be_told(self) -> None:
        empty = {
            "schema_version": 1,
            "tool": "t",
            "python": "/p",
            "found_by": "--python",
            "env": {},
        }
        tape, path = Tape(load_tape(empty)), Path("/nowhere")
        for ask in (tape.read, tape.listdir, tape.stat, tape.executable, tape.realpath, tape.elf):
            with pytest.raises(NotRecorded, match="this snapshot does not contain /nowhere"):
                ask(path)
        for question in (lambda: tape.search(path, "x"), lambda: tape.run("gcc")):
            with pytest.raises(NotRecorded):
                question()

    def test_a_newer_recording_asks_for_a_newer_doctor(self) -> None:
        with pytest.raises(CodecError, match=r"version 2, but this one reads up to 1; use a newer"):
            load_tape({"schema_version": 2})

    def test_a_recording_is_judged_by_a_doctor_that_is_installed_elsewhere(
        self, tmp_path: Path, driver: Path
    ) -> None:
        one, env = self.made(tmp_path, driver, "")
        text = run_doctor("snapshot", "--python", one.prefix, "-o", "-", env=env).out
        package = Path(sys.modules["doctor"].__file__ or "").parent
        assert str(package) not in text
        assert sys.prefix not in text


def toolkit(root: Path) -> None:
    """A small CUDA 13.0 toolkit: an nvcc that says so, and the headers that are looked for."""
    script(
        root / "bin/nvcc",
        "case $1 in --list-gpu-arch) echo compute_90;; --dryrun) exit 0;; "
        "*) echo 'Cuda compilation tools, release 13.0, V13.0.88';; esac",
    )
    for name in ("cuda_runtime.h", "cuda_fp16.h", "cuda_fp8.h", "cooperative_groups.h", "curand.h"):
        (root / "include").mkdir(parents=True, exist_ok=True)
        (root / "include" / name).write_text("")
    (root / "include/curand_kernel.h").write_text("")
    (root / "include/cuda_runtime_api.h").write_text("#define CUDART_VERSION  13000\n")
    (root / "include/crt").mkdir()
    (root / "include/crt/host_config.h").write_text("#if __GNUC__ > 15\n")
    shared_library(root / "lib64/libcudart.so")
    shared_library(root / "lib64/stubs/libcuda.so")


def _renamed(value: Any, home: str) -> Any:
    """What the machine said, with the home called as a recording calls it."""
    if isinstance(value, str):
        return value.replace(home, "/home/user")
    if isinstance(value, (list, tuple)):
        return type(value)(_renamed(v, home) for v in value)
    return value


def test_a_childs_death_is_the_kernels_business() -> None:
    """The number that is handed to prctl is the kernel's own."""
    header = Path("/usr/include/linux/prctl.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    assert f"#define PR_SET_PDEATHSIG  {machine._PR_SET_PDEATHSIG} " in header.read_text()
    assert ctypes.CDLL(None).prctl


@pytest.mark.parametrize("descriptors", [True, False])
def test_a_child_is_waited_for_with_and_without_process_descriptors(
    monkeypatch: pytest.MonkeyPatch, descriptors: bool
) -> None:
    """Kernels before 5.3 have none."""
    if not descriptors:
        monkeypatch.delattr(os, "pidfd_open")
    made = run_child(("/bin/sh", "-c", "echo out; exit 3"), 10, {})
    assert (made.code, made.out, made.failure) == (3, "out\n", None)
    made = run_child(("/bin/sh", "-c", "echo $$; exec sleep 60"), 0.2, {"PATH": "/bin:/usr/bin"})
    assert (made.code, made.failure) == (None, "did not end within 0.2 s")
    assert not Path(f"/proc/{made.out.strip()}").exists()
