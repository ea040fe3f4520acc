"""The stand-ins of the driver's libraries answer the real pynvml as a machine with GPUs does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests import stand_ins

if TYPE_CHECKING:
    from pathlib import Path

ASK_NVML = """
import json
import pynvml as nvml

def refusal(call, *given):
    try:
        call(*given)
    except nvml.NVMLError as error:
        return str(error)

nvml.nvmlInit()
count = nvml.nvmlDeviceGetCount()
gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
memory = [nvml.nvmlDeviceGetMemoryInfo(gpu) for gpu in gpus]
memory_v2 = [nvml.nvmlDeviceGetMemoryInfo(gpu, version=nvml.nvmlMemory_v2) for gpu in gpus]
answers = {
    "driver": nvml.nvmlSystemGetDriverVersion(),
    "cuda": nvml.nvmlSystemGetCudaDriverVersion_v2(),
    "names": [nvml.nvmlDeviceGetName(gpu) for gpu in gpus],
    "uuids": [nvml.nvmlDeviceGetUUID(gpu) for gpu in gpus],
    "capabilities": [nvml.nvmlDeviceGetCudaComputeCapability(gpu) for gpu in gpus],
    "mig": [nvml.nvmlDeviceGetMigMode(gpu) for gpu in gpus],
    "memory": [[m.total, m.free, m.used] for m in memory],
    "memory_v2": [[m.total, m.free, m.used] for m in memory_v2],
    "one too many": refusal(nvml.nvmlDeviceGetHandleByIndex, count),
}
nvml.nvmlShutdown()
answers["after shutdown"] = refusal(nvml.nvmlDeviceGetCount)
print(json.dumps(answers))
"""

ASK_CUDA = """
import ctypes, json

cuda = ctypes.CDLL("libcuda.so.1")
version, count, said = ctypes.c_int(), ctypes.c_int(), ctypes.c_char_p()
code = cuda.cuInit(0)
cuda.cuDriverGetVersion(ctypes.byref(version))
cuda.cuDeviceGetCount(ctypes.byref(count))
cuda.cuGetErrorString(code, ctypes.byref(said))
print(json.dumps([code, version.value, count.value, said.value.decode()]))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_ins.build(tmp_path_factory.mktemp("a driver"))


def ask(script: str, env: dict[str, str]) -> Any:
    """What a script run with the stand-ins prints as JSON."""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout)


def test_pynvml_sees_the_machine_that_the_variables_describe(driver: Path) -> None:
    env = stand_ins.environment(
        driver, gpus=2, name="Test GPU", cc="12.1", memory_mib=24576, free_mib=1024, mig=1
    )
    mib = 1024 * 1024
    answers = ask(ASK_NVML, {**env, "STAND_IN_DRIVER_VERSION": "570.1", "STAND_IN_CUDA": "12080"})
    assert answers == {
        "driver": "570.1",
        "cuda": 12080,
        "names": ["Test GPU"] * 2,
        "uuids": [f"GPU-00000000-0000-4000-8000-00000000000{index}" for index in (0, 1)],
        "capabilities": [[12, 1]] * 2,
        "mig": [[1, 1]] * 2,
        "memory": [[24576 * mib, 1024 * mib, 23552 * mib]] * 2,
        "memory_v2": [[24576 * mib, 1024 * mib, 23552 * mib]] * 2,
        "one too many": "Invalid Argument",
        "after shutdown": "Uninitialized",
    }


def test_pynvml_sees_one_free_h100_where_nothing_is_said(driver: Path) -> None:
    answers = ask(ASK_NVML, stand_ins.environment(driver))
    assert answers["names"] == ["NVIDIA H100 80GB HBM3"]
    assert answers["driver"] == "580.95.05"
    total, free, used = answers["memory"][0]
    assert (total, used) == (free, 0)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"gpus": 2}, [0, 13000, 2, "no error"]),
        ({"gpus": 0}, [100, 13000, 0, "no CUDA-capable device is detected"]),
        (
            {"cuinit": 803, "cuda": 12080},
            [803, 12080, 0, "system has unsupported display driver / cuda driver combination"],
        ),
    ],
)
def test_libcuda_answers_and_refuses_as_a_driver_does(
    driver: Path, settings: dict[str, object], answer: list[object]
) -> None:
    assert ask(ASK_CUDA, stand_ins.environment(driver, **settings)) == answer


def test_nvml_refuses_with_the_code_it_is_given(driver: Path) -> None:
    script = """
import json, pynvml
try:
    pynvml.nvmlInit()
except pynvml.NVMLError as error:
    print(json.dumps(error.value))
"""
    assert ask(script, stand_ins.environment(driver, nvml_init=18)) == 18
