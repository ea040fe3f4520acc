"""The real vLLM imported by `diagnose --deep`: whole, and with a broken pair of packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from uv import find_uv_bin

from tests.real_stack import lab
from tests.real_stack.conftest import MakeEnvironment, MakeHome
from tests.real_stack.place import Place, Report

pytestmark = pytest.mark.real_stack

NO_DRIVER = ("--deep", "--set", "gpus=later", "--set", "archs=9.0")
# What uv resolves from vLLM 0.32 on: the old cuda-python overwrites modules of cuda-bindings, and
# the compiler of CUTLASS's DSL asks one of them for what it had not yet.
BROKEN_PAIR = (
    "cuda-python==12.6.2.post1",
    "nvidia-cutlass-dsl==4.8.0",
    "nvidia-cutlass-dsl-libs-base==4.8.0",
    "nvidia-cutlass-dsl-libs-core==4.8.0",
    "nvidia-cutlass-dsl-libs-cu13==4.8.0",
)


def outcomes(report: Report) -> dict[str, set[str]]:
    made: dict[str, set[str]] = {}
    for row in report.deep["imports"]["modules"]:
        made.setdefault(row["outcome"], set()).add(row["module"])
    return made


def test_all_that_a_start_imports_is_good_where_no_driver_is(
    environment: MakeEnvironment, new_home: MakeHome, links: Path
) -> None:
    place = Place(environment(lab.COHERENT), new_home(), {"CUDA_HOME": str(links)})
    report = place.diagnose(*NO_DRIVER)
    made = outcomes(report)
    assert set(made) <= {"ok", "caught", "not-checked"}
    assert made["ok"] >= {
        "flashinfer",
        "vllm.v1.attention.backends.flashinfer",
        "vllm.v1.worker.gpu_worker",
        "vllm.model_executor.models.glm4_moe_lite",
        "vllm.distributed.device_communicators.flashinfer_all_reduce",
        "tilelang",
    }
    assert (report.code, report.errors) == (0, set())
    assert list(place.home.iterdir()) == []


def test_what_needs_a_gpu_counts_for_nothing_under_a_stand_in_of_the_driver(
    folder_of_links: Place,
) -> None:
    report = folder_of_links.diagnose("--deep")
    assert set(outcomes(report)) <= {"ok", "caught", "not-checked"}
    assert (report.code, report.errors) == (0, set())


@pytest.fixture
def broken_pair(environment: MakeEnvironment) -> Iterator[lab.Environment]:
    """The coherent environment in links, but for what the pair changes: the lab's own files are
    shared with uv's cache and stay as they are."""
    whole = environment(lab.COHERENT)
    with tempfile.TemporaryDirectory(dir=lab.folder(), prefix="broken-pair-") as folder:
        made = lab.Environment(Path(folder) / "venv")
        shutil.copytree(whole.prefix, made.prefix, symlinks=True, copy_function=os.link)
        for name in ("cuda", "nvidia_cutlass_dsl"):
            shutil.rmtree(made.site_packages / name)
            shutil.copytree(whole.site_packages / name, made.site_packages / name, symlinks=True)
        command = [find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--reinstall"]
        subprocess.run([*command, "--python", str(made.python), *BROKEN_PAIR], check=True)
        yield made


def test_a_broken_pair_that_every_check_of_metadata_takes_for_good(
    broken_pair: lab.Environment, new_home: MakeHome, links: Path
) -> None:
    place = Place(broken_pair, new_home(), {"CUDA_HOME": str(links)})
    report = place.diagnose(*NO_DRIVER)
    assert report.code == 1
    assert report.deep["ok"] is True
    assert "flashinfer" in outcomes(report)["died"]
    said = report.said("files-overwritten")
    assert "importing flashinfer fails: AttributeError: module 'cuda.bindings.runtime'" in said
    assert "cutlass_dsl/cuda_library_adapter.py:" in said
