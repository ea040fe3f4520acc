"""Repairs of real broken environments: healed, proven by FlashInfer's own build, and undone."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.real_stack import lab
from tests.real_stack.conftest import MakeEnvironment, MakeHome
from tests.real_stack.place import Place
from tests.real_stack.repairs import (
    Broken,
    assert_first_fix_is_torchs_own_toolkit,
    copy_of,
    manifest,
    network,
    versions,
    without_bytecode,
)

pytestmark = pytest.mark.real_stack

CORE = ("torch", "vllm", "triton", "flashinfer_python", "flashinfer_cubin")
REPLACED = ("nvidia_cuda_nvcc", "nvidia_nvvm", "nvidia_cuda_crt", "transformers")


Break = Callable[[Place], Broken]


@pytest.fixture
def broken(tmp_path: Path) -> Break:
    """Gives a place whose environment is a copy, its variables leading into the copy."""

    def make(place: Place) -> Broken:
        target = copy_of(place.target, tmp_path / "env")
        old, new = str(place.target.prefix), str(target.prefix)
        moved = {name: value.replace(old, new) for name, value in place.env.items()}
        env: Mapping[str, str] = {**moved, **network()}
        return Broken(replace(place, target=target, env=env, home=tmp_path))

    return make


def test_the_reference_environment_is_healed_builds_and_is_put_back(
    cuda_home_unset: Place, broken: Break
) -> None:
    one = broken(cuda_home_unset)
    was, had = manifest(one.target.prefix), versions(one.target)

    fixed = one.fix("--apply")
    assert fixed.outcomes == {"install": "healed", "cuda-home": "healed", "environment": "healed"}
    assert fixed.code == 0, fixed.data
    assert fixed.data["deep"]["ok"], fixed.data["deep"]
    have = versions(one.target)
    assert {n: have[n] for n in CORE} == {n: had[n] for n in CORE}
    assert all(have[n] != had[n] for n in REPLACED)
    knows = (
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as names\n"
        "print('glm4_moe_lite' in names)"
    )
    assert one.place.python(knows).out.strip() == "True"

    variables = one.variables()
    paths = ("CPATH", "LIBRARY_PATH", "LD_LIBRARY_PATH")
    assert not [name for name in paths if name in variables and name not in one.place.env]
    in_shell = one.place.having(CUDA_HOME=variables["CUDA_HOME"], PATH=variables["PATH"])
    built = in_shell.build_sampling()
    assert built.code == 0, built.text
    shutil.rmtree(one.place.home / ".cache")

    healthy = manifest(one.target.prefix)
    again = one.fix("--apply")
    assert set(again.outcomes.values()) == {"already-healed"}
    assert again.data["plan"] == []
    assert again.code == 0
    assert manifest(one.target.prefix) == healthy

    undone = one.run("undo")
    assert undone.code == 0, undone.text
    assert without_bytecode(manifest(one.target.prefix)) == without_bytecode(was)
    assert not (one.target.prefix / "share/vllm-doctor").exists()


@pytest.mark.parametrize(
    "name",
    [
        "cuda_home_at_the_wheels",
        "half_repaired",
        "coherent_wheels",
        "wrapper_on_path",
        "machine_toolkit_without_curand",
        "cuda_12_nvcc_beside",
    ],
)
def test_each_broken_state_is_healed_and_put_back(
    name: str, request: pytest.FixtureRequest, broken: Break
) -> None:
    one = broken(request.getfixturevalue(name))
    was = manifest(one.target.prefix)
    fixed = one.fix("--apply")
    assert fixed.code == 0, (fixed.data["results"], fixed.errors, fixed.err)
    assert fixed.data["deep"]["ok"]
    assert set(fixed.outcomes.values()) == {"healed"}
    undone = one.run("undo")
    assert undone.code == 0, undone.text
    assert manifest(one.target.prefix) == was


def test_modules_that_an_older_cuda_python_wrote_over_are_put_back(
    folder_of_links: Place, broken: Break
) -> None:
    one = broken(folder_of_links)
    healthy = one.place.diagnose()
    assert "files-overwritten" not in healthy.ids("found"), healthy.said("files-overwritten")
    had = "import cuda.bindings.runtime as r; print(hasattr(r, 'cudaLibrary_t'))"
    assert one.place.python(had).out.strip() == "True"
    lab.put_in(one.target, "cuda-python==12.6.2.post1")
    assert one.place.python(had).out.strip() == "False"
    was = manifest(one.target.prefix)
    assert "files-overwritten" in one.place.diagnose().errors

    fixed = one.fix("--apply")
    assert fixed.code == 0, (fixed.data["results"], fixed.errors, fixed.err)
    assert fixed.outcomes == {"install": "healed"}
    assert one.place.python(had).out.strip() == "True"
    undone = one.run("undo")
    assert undone.code == 0, undone.text
    assert without_bytecode(manifest(one.target.prefix)) == without_bytecode(was)


def test_the_first_fix_is_the_toolkit_of_torchs_own_cuda_release(
    cuda_home_unset: Place, broken: Break
) -> None:
    assert_first_fix_is_torchs_own_toolkit(broken(cuda_home_unset))


def test_a_torch_that_lost_a_library_is_installed_anew_only_with_consent(
    torch_not_importable: Place, broken: Break
) -> None:
    one = broken(torch_not_importable)
    was = manifest(one.target.prefix)
    left = one.fix("--apply")
    assert "vllm-torch-abi-mismatch" in {w["id"] for w in left.data["withheld"]}
    assert left.code == 1
    one.run("undo")
    assert manifest(one.target.prefix) == was
    fixed = one.fix("--apply", "--allow", "core")
    assert fixed.code == 0, (fixed.data["results"], fixed.errors, fixed.err)
    assert one.run("undo").code == 0
    assert manifest(one.target.prefix) == was


def test_an_environment_is_made_from_nothing_and_unmade(
    environment: MakeEnvironment, new_home: MakeHome, two_h100: dict[str, str], tmp_path: Path
) -> None:
    environment(lab.REFERENCE)  # so that what is fetched is fetched once
    target = lab.Environment(tmp_path / "vllm-env")
    one = Broken(Place(target, new_home(), {**two_h100, **network()}))
    fixed = one.fix("--apply", "--create", "--set", f"needs.vllm={lab.VLLM.removeprefix('vllm')}")
    assert fixed.code == 0, (fixed.data["results"], fixed.errors, fixed.err)
    assert fixed.data["deep"]["ok"]
    have = versions(target)
    assert have["vllm"] == "0.22.0"
    assert have["nvidia_cuda_nvcc"].startswith("13.0.")
    assert one.run("undo").code == 0
    assert not target.prefix.exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_doctor_killed_while_it_installs_leaves_before_or_after(
    seed: int, cuda_home_unset: Place, broken: Break
) -> None:
    """At a random instant; the boundaries one by one are in the ordinary tests."""
    one = broken(cuda_home_unset)
    was = manifest(one.target.prefix)
    words = one.command("fix", "--apply", "--mirror", "default")
    instant = random.Random(seed).uniform(1.5, 9.0)  # noqa: S311 - an instant, no secret
    script = f'"$@" >/dev/null 2>&1 & doctor=$!; sleep {instant:.2f}; kill -9 $doctor; wait'
    one.place.run("bash", "-c", script, "killed", *words)
    time.sleep(0.5)  # its installer dies with it
    undone = one.run("undo")
    assert undone.code == 0, undone.text
    assert manifest(one.target.prefix) == was, f"killed after {instant:.2f} s"
