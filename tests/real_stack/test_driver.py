"""What torch and vLLM really see of a driver and its GPUs, and what `diagnose` says of it.

The environment is a repaired one, so that nothing but the driver is wrong.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.real_stack import lab

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real_stack.place import Place

pytestmark = pytest.mark.real_stack

PLATFORM = "from vllm.platforms import current_platform as p; print(type(p).__name__)"
USE_A_GPU = "import torch; torch.zeros(1).cuda()"
NEED_A_GPU = {
    "driver-lib-invisible",
    "driver-too-old",
    "tp-exceeds-visible-gpus",
    "gpu-memory-too-small",
}


@pytest.fixture(scope="module")
def no_driver(folder_of_links: Place) -> Place:
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin") or "ldconfig"
    known = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False)
    if "libcuda.so.1" in known.stdout:
        pytest.skip("this machine has a driver of its own")
    return replace(folder_of_links, env={"CUDA_HOME": folder_of_links.env["CUDA_HOME"]})


def test_vllm_takes_the_stand_in_for_a_cuda_machine(folder_of_links: Place) -> None:
    assert folder_of_links.python(PLATFORM).out.strip() == "NvmlCudaPlatform"


def test_vllm_sees_no_platform_where_there_is_no_driver(no_driver: Place) -> None:
    assert no_driver.python(PLATFORM).out.strip() == "UnspecifiedPlatform"


def test_no_driver_is_the_primary_cause_where_gpus_are_expected(no_driver: Place) -> None:
    report = no_driver.diagnose()
    assert report.errors == {"driver-lib-invisible"}
    assert (report.code, report.data["primary"]) == (1, "driver-lib-invisible")
    assert report.ids("unknown") | report.ids("crashed") == set()
    assert NEED_A_GPU - {"driver-lib-invisible"} <= set(report.not_checked)


def test_an_image_for_gpus_to_come_is_judged_and_proven_without_a_driver(no_driver: Place) -> None:
    report = no_driver.diagnose("--set", "gpus=later", "--set", "archs=9.0", "--deep")
    assert report.errors == set()
    assert (report.code, report.data["verdict"]) == (0, "healthy")
    assert set(report.not_checked) >= NEED_A_GPU
    assert (report.deep["ran"], report.deep["ok"]) == (True, True)
    assert len(report.deep["archs"]) == 1


def test_deep_says_so_where_an_empty_libcuda_stands_in_for_the_driver(
    no_driver: Place, tmp_path: Path
) -> None:
    links = lab.folder_of_links(no_driver.target, tmp_path)
    shutil.rmtree(links / "lib64" / "stubs")
    place = no_driver.having(CUDA_HOME=str(links))
    deep = place.diagnose("--set", "gpus=later", "--deep").deep
    assert (deep["ran"], deep["ok"]) == (True, True)
    assert deep["stand_in"] is True


def test_torch_refuses_a_driver_of_cuda_12(folder_of_links: Place) -> None:
    ran = folder_of_links.having(STAND_IN_CUDA="12080").python(USE_A_GPU)
    assert "The NVIDIA driver on your system is too old (found version 12080)." in ran.err


def test_a_driver_of_cuda_12_is_too_old(folder_of_links: Place) -> None:
    old = folder_of_links.having(STAND_IN_CUDA="12080", STAND_IN_DRIVER_VERSION="570.195.03")
    report = old.diagnose()
    assert report.errors == {"driver-too-old"}
    assert "570.195.03" in report.said("driver-too-old")


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"STAND_IN_GPUS": "1"}, id="one GPU in the machine"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "1"}, id="one of two GPUs visible"),
    ],
)
def test_two_ranks_need_two_visible_gpus(folder_of_links: Place, variables: dict[str, str]) -> None:
    report = folder_of_links.having(**variables).diagnose()
    assert report.errors >= {"tp-exceeds-visible-gpus"}
    assert report.data["primary"] == "tp-exceeds-visible-gpus"


def test_half_of_the_weights_must_fit_each_gpu(folder_of_links: Place) -> None:
    small = folder_of_links.having(STAND_IN_MEMORY_MIB="24564", STAND_IN_NAME="NVIDIA L4")
    assert small.diagnose().errors == {"gpu-memory-too-small"}
