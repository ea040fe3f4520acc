"""The environment the server would get, what it would find there: programs, kernels, the driver."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from doctor.consumers import flashinfer
from doctor.engine import Facts
from doctor.model import Missing, NotApplicable
from doctor.probes.driver import Driver, Gpus, gpus
from doctor.probes.environment import SAVED, LaunchEnv, which
from doctor.probes.jit import Jit
from doctor.probes.kernel_cache import KernelCache
from doctor.target import Live
from tests import stand_ins
from tests.conftest import (
    FLASHINFER,
    Environment,
    facts_of,
    run_doctor,
    script,
    shared_library,
)

HERE: tuple[str, ...] = ("gpus=here",)
UUID = "GPU-00000000-0000-4000-8000-00000000000"  # of a stand-in's GPU, but for its number


def launch(one: Environment, env: Mapping[str, str] | None = None, *sets: str) -> LaunchEnv:
    return facts_of(one, env, sets).get(LaunchEnv)


def save(one: Environment, **variables: Any) -> None:
    """What an earlier fix kept for this target."""
    path = one.prefix / SAVED
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema_version": 1, "variables": variables}))


class TestLaunchEnv:
    def test_it_is_the_shells_where_nothing_was_saved(self, bare: Environment) -> None:
        made = launch(bare, {"CUDA_HOME": "/opt/cuda"})
        assert made.get("CUDA_HOME") == "/opt/cuda"
        assert made.differs == ()

    def test_the_profile_fills_in_what_the_shell_does_not_say(self, bare: Environment) -> None:
        assert launch(bare).get("HF_ENDPOINT") == "https://hf-mirror.com"
        made = launch(bare, {"HF_ENDPOINT": "https://huggingface.co"})
        assert made.get("HF_ENDPOINT") == "https://huggingface.co"
        assert made.differs == ()

    @pytest.mark.parametrize(
        ("shell", "result", "differs"),
        [
            (None, "/ours", True),
            ("", "/ours", True),
            ("/bad", "/ours", True),
            ("/theirs", "/theirs", False),
            ("/ours", "/ours", False),
        ],
    )
    def test_a_saved_value_beats_only_what_was_judged_bad(
        self, bare: Environment, shell: str | None, result: str, differs: bool
    ) -> None:
        save(bare, CUDA_HOME={"value": "/ours", "instead_of": ["/bad"]})
        made = launch(bare, {} if shell is None else {"CUDA_HOME": shell})
        assert made.get("CUDA_HOME") == result
        assert made.differs == (("CUDA_HOME",) if differs else ())

    @pytest.mark.parametrize(
        ("shell", "result"),
        [
            (None, "/ours/lib"),
            ("", "/ours/lib"),
            ("/a:/b", "/ours/lib:/a:/b"),
            (":/a::", "/ours/lib:/a"),
            ("/a:/ours/lib", "/a:/ours/lib"),
            ("/ours/lib/sub", "/ours/lib:/ours/lib/sub"),
        ],
    )
    def test_a_saved_folder_is_put_before_the_others_once(
        self, bare: Environment, shell: str | None, result: str
    ) -> None:
        save(bare, LD_LIBRARY_PATH={"value": "/ours/lib", "prepend": True})
        env = {} if shell is None else {"LD_LIBRARY_PATH": shell}
        assert launch(bare, env).get("LD_LIBRARY_PATH") == result

    @pytest.mark.parametrize(
        ("shell", "result"),
        [
            (None, "/ours:/more"),
            ("/a", "/ours:/more:/a"),
            ("/a:/more", "/ours:/a:/more"),
            ("/a:/more:/ours", "/a:/more:/ours"),
        ],
    )
    def test_of_several_saved_folders_those_are_put_in_front_that_are_not_there(
        self, bare: Environment, shell: str | None, result: str
    ) -> None:
        save(bare, CPATH={"value": "/ours:/more", "prepend": True})
        made = launch(bare, {} if shell is None else {"CPATH": shell})
        assert made.get("CPATH") == result
        assert made.differs == (("CPATH",) if shell != result else ())

    @pytest.mark.parametrize(
        ("shell", "result", "differs"),
        [
            (None, None, False),
            ("/bad", None, True),
            ("/worse", None, True),
            ("/theirs", "/theirs", False),
            ("", "", False),
        ],
    )
    def test_only_a_value_that_was_judged_bad_is_taken_out(
        self, bare: Environment, shell: str | None, result: str | None, differs: bool
    ) -> None:
        save(bare, CUDA_PATH={"value": None, "instead_of": ["/bad", "/worse"]})
        made = launch(bare, {} if shell is None else {"CUDA_PATH": shell})
        assert made.get("CUDA_PATH") == result
        assert ("CUDA_PATH" in made.vars) == (result is not None)
        assert made.differs == (("CUDA_PATH",) if differs else ())

    def test_an_empty_value_that_was_judged_bad_is_taken_out(self, bare: Environment) -> None:
        """vLLM and FlashInfer break on some variables that are set and empty."""
        name = "VLLM_USE_FLASHINFER_SAMPLER"
        save(bare, **{name: {"value": None, "instead_of": [""]}})
        assert name not in launch(bare, {name: ""}).vars
        assert launch(bare, {name: "0"}).get(name) == "0"

    @pytest.mark.parametrize("value", ["/ours", "", None])
    def test_only_a_list_of_folders_is_prepended_to(
        self, bare: Environment, value: str | None
    ) -> None:
        save(bare, CUDA_HOME={"value": value, "prepend": True}, PATH={"value": "", "prepend": True})
        made = launch(bare, {"CUDA_HOME": "/theirs"})
        assert (made.get("CUDA_HOME"), made.differs) == ("/theirs", ())

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_what_was_saved_and_may_not_be_read_is_not_taken_for_nothing(
        self, bare: Environment
    ) -> None:
        save(bare, CUDA_HOME={"value": "/ours"})
        (bare.prefix / SAVED).chmod(0)
        with pytest.raises(Missing, match=r"environment\.json cannot be read"):
            launch(bare)

    def test_a_folder_in_the_place_of_what_was_saved_cannot_be_read(
        self, bare: Environment
    ) -> None:
        (bare.prefix / SAVED).mkdir(parents=True)
        with pytest.raises(Missing, match=r"environment\.json cannot be read"):
            launch(bare)

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", '{"nonsense": 1}', '{"variables": {"A": "b"}}', "[" * 100_000, "\xff"],
        ids=lambda t: t[:12],
    )
    def test_what_was_saved_and_cannot_be_read_is_not_taken_for_nothing(
        self, bare: Environment, text: str
    ) -> None:
        save(bare)
        (bare.prefix / SAVED).write_bytes(text.encode("latin-1"))
        with pytest.raises(Missing, match=r"environment\.json cannot be read"):
            launch(bare)

    def test_a_file_that_a_link_leads_to_is_not_ours(self, bare: Environment) -> None:
        save(bare, CUDA_HOME={"value": "/theirs"})
        (bare.prefix / SAVED).rename(bare.prefix / "elsewhere.json")
        (bare.prefix / SAVED).symlink_to(bare.prefix / "elsewhere.json")
        assert launch(bare).get("CUDA_HOME") is None

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_a_file_that_another_user_planted_is_not_ours(self, bare: Environment) -> None:
        save(bare, CUDA_HOME={"value": "/theirs"})
        os.chown(bare.prefix / SAVED, 12345, 12345)
        assert launch(bare).get("CUDA_HOME") is None

    def test_a_variable_that_no_fix_sets_is_not_taken(self, bare: Environment) -> None:
        save(bare, LD_PRELOAD={"value": "/tmp/evil.so"}, CUDA_HOME={"value": "/ours"})
        made = launch(bare)
        assert (made.get("LD_PRELOAD"), made.get("CUDA_HOME")) == (None, "/ours")

    def test_saved_variables_that_the_shell_lacks_are_told(self, cpu_server: Environment) -> None:
        save(cpu_server, CUDA_HOME={"value": "/ours"})
        options = ("--python", cpu_server.prefix, "--set", "device=cpu")
        said = run_doctor("diagnose", "--format", "json", *options)
        (finding,) = said.outcome("shell-env-not-loaded")["findings"]
        assert finding["message"] == "`vllm serve` started from this shell would not see CUDA_HOME"
        assert (said.code, said.report["verdict"]) == (0, "healthy")


class TestWhich:
    """As a process with this environment finds a program (execvp)."""

    def test_it_agrees_with_which(self, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        script(first / "folder/nothing", "")
        script(first / "text", "").chmod(0o644)
        script(second / "text", "")
        script(second / "folder", "")
        env = {"PATH": f"/nowhere:{first}::{second}:/usr/bin:/bin"}
        for name in ("text", "folder", "sh", "no-such-program"):
            command = ["/usr/bin/which", name]
            said = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            found = which(Live(env), LaunchEnv(env), name)
            assert str(found or "") == said.stdout.strip()

    def test_a_name_with_a_slash_is_itself(self, tmp_path: Path) -> None:
        one = script(tmp_path / "tool", "")
        assert which(Live({}), LaunchEnv({}), str(one)) == one
        assert which(Live({}), LaunchEnv({}), str(tmp_path / "none")) is None


class TestJit:
    """Whether FlashInfer compiles, and for what."""

    def jit(self, one: Environment, *sets: str, **env: str) -> Jit:
        return facts_of(one, env, sets or ("gpus=later", "archs=9.0")).get(Jit)

    def why_not(self, one: Environment, *sets: str, **env: str) -> Missing:
        with pytest.raises(Missing) as error:
            self.jit(one, *sets, **env)
        return error.value

    @pytest.mark.parametrize(
        ("capability", "name"),
        [
            ((7, 5), "75"),
            ((8, 0), "80"),
            ((8, 9), "89"),
            ((9, 0), "90a"),
            ((10, 0), "100a"),
            ((10, 3), "103a"),
            ((12, 0), "120f"),
            ((12, 1), "121a"),
        ],
    )
    def test_architectures_are_called_as_flashinfer_does(
        self, capability: tuple[int, int], name: str
    ) -> None:
        assert flashinfer.known_arch(capability, Version("13.0")) == name

    def test_for_gpus_to_come_the_profile_is_asked(self, shared_server: Environment) -> None:
        made = self.jit(shared_server, "gpus=later", "archs=9.0,8.0,9.0")
        assert (made.archs, made.asked_by) == (("80", "90a"), "the profile")

    def test_a_list_in_the_environment_decides(self, shared_server: Environment) -> None:
        made = self.jit(shared_server, FLASHINFER_CUDA_ARCH_LIST="8.0 9.0a 12.0f nonsense")
        assert (made.archs, made.asked_by) == (("80", "90a", "120f"), "FLASHINFER_CUDA_ARCH_LIST")
        assert made.unreadable == ("nonsense",)

    @pytest.mark.parametrize("value", ["", "9.0;10.0", "9.0,10.0", "90", "9.0  10.0"])
    def test_a_list_on_which_flashinfer_breaks_is_told(
        self, shared_server: Environment, value: str
    ) -> None:
        assert self.jit(shared_server, FLASHINFER_CUDA_ARCH_LIST=value).unreadable

    def test_a_server_on_the_cpu_compiles_nothing(self, shared_server: Environment) -> None:
        assert isinstance(self.why_not(shared_server, "device=cpu"), NotApplicable)

    def test_a_sampler_that_is_off_compiles_nothing_below_blackwell(
        self, shared_server: Environment
    ) -> None:
        off = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
        why = self.why_not(shared_server, "gpus=later", "archs=8.0", **off)
        assert isinstance(why, NotApplicable)
        assert "is off" in str(why.reason)
        hopper = ("gpus=later", "archs=9.0")
        why = self.why_not(shared_server, *hopper, **off, VLLM_USE_FLASHINFER_MOE_FP16="0")
        assert isinstance(why, NotApplicable)
        # vLLM has FlashInfer compile GLM's experts on Hopper, whatever the sampler.
        assert self.jit(shared_server, *hopper, **off).libraries == ("cudart", "cuda", "nvrtc")
        made = self.jit(shared_server, "gpus=later", "archs=10.0", VLLM_USE_FLASHINFER_SAMPLER="0")
        assert made.archs == ("100a",)

    def test_turing_is_the_first_gpu_with_a_sampler(self, shared_server: Environment) -> None:
        assert isinstance(self.why_not(shared_server, "gpus=later", "archs=7.0"), NotApplicable)
        assert self.jit(shared_server, "gpus=later", "archs=7.5").archs == ("75",)

    def test_ready_made_kernels_of_the_same_version_need_no_compiler(
        self, server: Environment
    ) -> None:
        info = server.install("flashinfer-jit-cache", f"{FLASHINFER}+cu130")
        assert isinstance(self.why_not(server), NotApplicable)
        info.rename(info.with_name("flashinfer_jit_cache-0.6.10+cu130.dist-info"))
        assert self.jit(server).archs == ("90a",)

    def test_a_version_that_only_begins_alike_is_another(self, server: Environment) -> None:
        """0.6.1 is not 0.6.11."""
        old = server.site / f"flashinfer_python-{FLASHINFER}.dist-info"
        old.rename(server.site / "flashinfer_python-0.6.1.dist-info")
        server.install("flashinfer-jit-cache", "0.6.11+cu130")
        assert self.jit(server).archs == ("90a",)

    def test_a_torch_without_cuda_is_explained(self, server: Environment) -> None:
        (server.site / "torch/version.py").write_text("__version__ = '2.11.0+cpu'\ncuda = None\n")
        assert self.why_not(server).explained_by == ("torch-cpu-build",)

    def test_a_gpu_that_cannot_be_asked_leaves_the_architectures_open(
        self, shared_server: Environment
    ) -> None:
        assert self.jit(shared_server, *HERE).archs == ()


class TestKernelCache:
    """FlashInfer's cache: what it built earlier, for what, and with which toolkit."""

    def op(
        self,
        base: Path,
        name: str,
        *needed: str,
        archs: str = "90a",
        version: str = FLASHINFER,
        home: str | None = "/usr/local/cuda",
    ) -> Path:
        folder = base / ".cache/flashinfer" / version / archs / "cached_ops" / name
        folder.mkdir(parents=True)
        if home:
            lines = (
                f"ninja_required_version = 1.3\ncuda_home = {home}\nnvcc = $cuda_home/bin/nvcc\n"
            )
            (folder / "build.ninja").write_text(lines)
        if needed:
            shared_library(folder / f"{name}.so", needed=needed)
        return folder

    def cache(self, one: Environment, **env: str) -> KernelCache:
        return facts_of(one, env).get(KernelCache)

    def test_every_op_of_every_architecture_is_listed(
        self, shared_server: Environment, tmp_path: Path
    ) -> None:
        one = self.op(tmp_path, "sampling", "libcudart.so.12", "libc.so.6")
        two = self.op(tmp_path, "page", "libcudart.so.13", archs="80_90a", home="/opt/cuda 13")
        made = self.cache(shared_server, HOME=str(tmp_path))
        assert made.folder == tmp_path / ".cache/flashinfer" / FLASHINFER
        rows = {(o.name, o.folder, o.cuda_home, o.library, o.cudart) for o in made.ops}
        assert rows == {
            ("sampling", one, "/usr/local/cuda", True, 12),
            ("page", two, "/opt/cuda 13", True, 13),
        }
        assert all(o.built > 0 for o in made.ops)

    def test_one_that_was_never_finished_has_no_library(
        self, shared_server: Environment, tmp_path: Path
    ) -> None:
        self.op(tmp_path, "sampling")
        self.op(tmp_path, "bare", home=None)
        rows = {o.name: o for o in self.cache(shared_server, HOME=str(tmp_path)).ops}
        assert not rows["sampling"].library
        assert (rows["sampling"].cuda_home, rows["bare"].cuda_home) == ("/usr/local/cuda", None)

    @pytest.mark.parametrize("content", [b"", b"\x7fELF", b"no library at all"])
    def test_one_that_is_cut_off_says_nothing_of_its_runtime(
        self, shared_server: Environment, tmp_path: Path, content: bytes
    ) -> None:
        folder = self.op(tmp_path, "sampling")
        (folder / "sampling.so").write_bytes(content)
        (one,) = self.cache(shared_server, HOME=str(tmp_path)).ops
        assert (one.library, one.cudart) == (True, None)

    def test_locks_other_versions_and_stray_files_are_no_ops(
        self, shared_server: Environment, tmp_path: Path
    ) -> None:
        folder = self.op(tmp_path, "sampling", "libcudart.so.13")
        (folder.parent / "tmp").mkdir()
        self.op(tmp_path, "old", "libcudart.so.12", version="0.6.8")
        (tmp_path / ".cache/flashinfer" / FLASHINFER / "flashinfer_jit.log").write_text("x")
        assert [o.name for o in self.cache(shared_server, HOME=str(tmp_path)).ops] == ["sampling"]

    def test_a_base_of_its_own_comes_before_the_home(
        self, shared_server: Environment, tmp_path: Path
    ) -> None:
        self.op(tmp_path / "base", "sampling", "libcudart.so.13")
        env = {"HOME": str(tmp_path / "home"), "FLASHINFER_WORKSPACE_BASE": str(tmp_path / "base")}
        assert [o.name for o in self.cache(shared_server, **env).ops] == ["sampling"]

    def test_an_empty_cache_is_no_fault(self, shared_server: Environment, tmp_path: Path) -> None:
        assert self.cache(shared_server, HOME=str(tmp_path)).ops == ()
        with pytest.raises(Missing) as error:
            self.cache(shared_server)
        assert isinstance(error.value, NotApplicable)

    def test_only_the_stale_op_is_to_be_set_aside(
        self, shared_server: Environment, tmp_path: Path
    ) -> None:
        stale = self.op(tmp_path, "sampling", "libcudart.so.12")
        self.op(tmp_path, "page", "libcudart.so.13")
        options = ("--python", shared_server.prefix, "--set", "gpus=later", "--set", "archs=9.0")
        env = {"HOME": str(tmp_path), "CUDA_HOME": "/usr/local/cuda"}
        said = run_doctor("diagnose", "--format", "json", *options, env=env)
        (finding,) = said.outcome("flashinfer-stale-cache")["findings"]
        (step,) = finding["fixes"][0]["steps"]
        assert step == {"kind": "set-aside", "path": str(stale)}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins of libcuda.so.1 and libnvidia-ml.so.1."""
    return stand_ins.build(tmp_path_factory.mktemp("driver with space"))


@pytest.fixture(scope="module")
def two_gpus(shared_server: Environment, libraries: Path) -> Driver:
    return facts_of(shared_server, stand_ins.environment(libraries, gpus=2), HERE).get(Driver)


class TestDriver:
    """The driver's libraries as the loader finds them in the server's environment."""

    def facts(self, one: Environment, env: Mapping[str, str]) -> Facts:
        return facts_of(one, env, HERE)

    def test_two_gpus(self, shared_server: Environment, libraries: Path) -> None:
        env = stand_ins.environment(libraries, gpus=2, cc="9.0", memory_mib=81559, free_mib=500)
        made = self.facts(shared_server, env).get(Driver)
        assert made.libcuda.error is None
        assert made.nvml.error is None
        assert made.libcuda.path == libraries / "libcuda.so.1"
        assert (made.libcuda.cuda, made.nvml.driver) == (Version("13.0"), "580.95.05")
        assert [d.index for d in made.nvml.devices] == [0, 1]
        one = made.nvml.devices[0]
        assert (one.name, one.capability) == ("NVIDIA H100 80GB HBM3", "9.0")
        assert (one.total, one.free) == (81559 << 20, 500 << 20)

    @pytest.mark.parametrize(
        ("choice", "shown"),
        [
            (None, [0, 1]),
            ("0,1", [0, 1]),
            ("1,0", [1, 0]),
            ("1", [1]),
            (" 1 , 0 ", [1, 0]),
            ("", []),
            ("-1", []),
            ("0,-1,1", [0]),
            ("0,2,1", [0]),
            ("2", []),
            ("nonsense", []),
            (f"{UUID}1", [1]),
            (f"{UUID}1,{UUID}0", [1, 0]),
            (f"{UUID}0,{UUID}0", []),
            ("GPU-0000", []),
            ("0,0", []),
            ("1,0,1", []),
            ("0gpu,1gpu", [0, 1]),
            ("+1", [1]),
            ("GPU-ffff", []),
            ("0,,1", [0]),
            ("\u0661", []),
            ("\u00b2", []),
        ],
    )
    def test_cuda_visible_devices_is_read_as_cuda_reads_it(
        self, two_gpus: Driver, choice: str | None, shown: list[int]
    ) -> None:
        """As torch's imitation has it (torch/cuda/__init__.py, _parse_visible_devices): a number
        ends where its digits do, and an entry that comes twice shows none at all."""
        env = LaunchEnv({} if choice is None else {"CUDA_VISIBLE_DEVICES": choice})
        made = gpus(two_gpus, env)
        assert [d.index for d in made.visible] == shown
        assert made.installed == 2

    def test_fewer_gpus_than_ranks_is_found(
        self, shared_server: Environment, libraries: Path
    ) -> None:
        env = {**stand_ins.environment(libraries, gpus=2), "CUDA_VISIBLE_DEVICES": "1"}
        said = run_doctor("diagnose", "--format", "json", "--python", shared_server.prefix, env=env)
        (finding,) = said.outcome("tp-exceeds-visible-gpus")["findings"]
        assert finding["message"] == "tensor_parallel_size=2 needs 2 GPUs; CUDA sees 1"

    def test_a_driver_without_gpus(self, shared_server: Environment, libraries: Path) -> None:
        env = stand_ins.environment(libraries, gpus=0)
        assert self.facts(shared_server, env).get(Gpus) == Gpus((), 0)

    def test_an_old_driver_is_found(self, shared_server: Environment, libraries: Path) -> None:
        env = stand_ins.environment(libraries, gpus=2, cuda=12040, driver_version="550.54.15")
        said = run_doctor("diagnose", "--format", "json", "--python", shared_server.prefix, env=env)
        assert said.report["primary"] == "driver-too-old"
        (finding,) = said.outcome("driver-too-old")["findings"]
        assert (
            finding["message"]
            == "the NVIDIA driver supports CUDA up to 12.4; torch needs CUDA 13.0"
        )

    @pytest.mark.parametrize("version", ["580.95.05", "580.65", "nonsense", ""])
    def test_any_version_of_a_driver_is_no_crash(
        self, shared_server: Environment, libraries: Path, version: str
    ) -> None:
        env = stand_ins.environment(libraries, gpus=2, driver_version=version)
        said = run_doctor("diagnose", "--format", "json", "--python", shared_server.prefix, env=env)
        assert not [o for o in said.report["outcomes"] if o["verdict"] == "crashed"]

    def test_none(self, shared_server: Environment) -> None:
        made = self.facts(shared_server, {"LD_LIBRARY_PATH": "/nowhere"}).get(Driver)
        assert "libcuda.so.1" in (made.libcuda.error or "")
        assert "libnvidia-ml.so.1" in (made.nvml.error or "")

    def test_one_without_nvml(
        self, shared_server: Environment, libraries: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "libcuda.so.1").symlink_to(libraries / "libcuda.so.1")
        env = {"LD_LIBRARY_PATH": str(tmp_path)}
        made = self.facts(shared_server, env).get(Driver)
        assert made.libcuda.error is None
        assert "libnvidia-ml.so.1" in (made.nvml.error or "")
        said = run_doctor("diagnose", "--format", "json", "--python", shared_server.prefix, env=env)
        (finding,) = said.outcome("driver-lib-invisible")["findings"]
        assert "not NVML" in finding["message"]

    def test_nvml_that_refuses_says_why(self, shared_server: Environment, libraries: Path) -> None:
        """After an update of the driver without a reboot: code 18, a mismatch of versions."""
        env = stand_ins.environment(libraries, gpus=2, nvml_init=18)
        made = self.facts(shared_server, env).get(Driver)
        assert "mismatch" in (made.nvml.error or "").lower()

    @pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF"])
    def test_an_empty_placeholder_is_no_driver(
        self, shared_server: Environment, tmp_path: Path, content: bytes
    ) -> None:
        """Some containers leave empty files where the driver's would be mounted."""
        for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
            (tmp_path / name).write_bytes(content)
        env = {"LD_LIBRARY_PATH": str(tmp_path)}
        made = self.facts(shared_server, env).get(Driver)
        assert "libcuda.so.1" in (made.libcuda.error or "")
        said = run_doctor("diagnose", "--format", "json", "--python", shared_server.prefix, env=env)
        assert "driver-lib-invisible" in said.found()

    def test_a_library_of_that_name_that_is_no_driver(
        self, shared_server: Environment, tmp_path: Path
    ) -> None:
        """A toolkit's stub, for one, has no cuDriverGetVersion that works, or none at all."""
        shared_library(tmp_path / "libcuda.so.1", soname="libcuda.so.1")
        env = {"LD_LIBRARY_PATH": str(tmp_path)}
        made = self.facts(shared_server, env).get(Driver)
        assert "cuDriverGetVersion" in (made.libcuda.error or "")

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("__builtin_trap();", "code -"),
            ("*(volatile int *)0 = 1;", "code -11"),
            ("_exit(0);", "cannot be read"),
            ("_exit(7);", "code 7"),
            ("for (;;) sleep(1);", "did not end within"),
            ("abort();", "code -6"),
        ],
    )
    def test_one_that_breaks_while_it_is_loaded_breaks_nothing_else(
        self, shared_server: Environment, tmp_path: Path, body: str, words: str
    ) -> None:
        """What only waits for a dead driver has to be told, not fine and not found."""
        source = (
            "void _exit(int); void abort(void); unsigned sleep(unsigned);\n"
            f"__attribute__((constructor)) static void begin(void) {{ {body} }}\n"
        )
        shared_library(tmp_path / "libcuda.so.1", soname="libcuda.so.1", source=source)
        said = run_doctor(
            *("diagnose", "--format", "json", "--python", shared_server.prefix),
            env={"LD_LIBRARY_PATH": str(tmp_path)},
            hanging="_driver.py" if "sleep" in body else None,
        )
        outcome = said.outcome("driver-lib-invisible")
        assert outcome["verdict"] == "unknown"
        assert words in outcome["why"]
        assert not [o for o in said.report["outcomes"] if o["verdict"] == "crashed"]
        assert len([o for o in said.report["outcomes"] if o["verdict"] == "ok"]) > 5

    def test_one_that_prints_garbles_nothing(
        self, shared_server: Environment, tmp_path: Path, libraries: Path
    ) -> None:
        source = (
            "int puts(const char *); int cuDriverGetVersion(int *v) { *v = 13000; return 0; }\n"
            '__attribute__((constructor)) static void begin(void) { puts("{noise"); }\n'
        )
        shared_library(tmp_path / "libcuda.so.1", soname="libcuda.so.1", source=source)
        env = stand_ins.environment(libraries)
        env["LD_LIBRARY_PATH"] = f"{tmp_path}:{libraries}"
        made = self.facts(shared_server, env).get(Driver)
        assert made.libcuda.cuda == Version("13.0")
        assert len(made.nvml.devices) == 1

    @pytest.mark.parametrize("sets", [("device=cpu",), ("gpus=later", "archs=9.0")])
    def test_no_driver_is_looked_for_where_no_gpu_is(
        self, shared_server: Environment, tmp_path: Path, sets: tuple[str, ...]
    ) -> None:
        source = (
            "int creat(const char *, int);\n"
            f'__attribute__((constructor)) void b(void) {{ creat("{tmp_path}/marker", 384); }}\n'
        )
        shared_library(tmp_path / "libcuda.so.1", soname="libcuda.so.1", source=source)
        options = [word for one in sets for word in ("--set", one)]
        env = {"LD_LIBRARY_PATH": str(tmp_path)}
        run_doctor("diagnose", "--python", shared_server.prefix, *options, env=env)
        assert not (tmp_path / "marker").exists()
        with pytest.raises(Missing) as error:
            facts_of(shared_server, env, sets).get(Driver)
        assert isinstance(error.value, NotApplicable)


def test_the_loader_is_the_one_of_the_servers_environment(
    shared_server: Environment, libraries: Path
) -> None:
    """What an earlier fix saved counts for the driver's libraries as well."""
    env = stand_ins.environment(libraries, gpus=1)
    path = env.pop("LD_LIBRARY_PATH")
    save(shared_server, LD_LIBRARY_PATH={"value": path, "prepend": True})
    try:
        made = facts_of(shared_server, env, HERE).get(Driver)
    finally:
        (shared_server.prefix / SAVED).unlink()
    assert made.libcuda.error is None
    assert made.libcuda.path == libraries / "libcuda.so.1"
