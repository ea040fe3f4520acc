"""Asks the NVIDIA driver who it is, in a child process: a driver that crashes or hangs takes only
this process with it. Runs in the doctor's own interpreter and prints one JSON object.

libcuda is opened the way torch does (dlopen by its soname, in the server's environment), NVML
through nvidia-ml-py. With the word "init" it calls cuInit and nothing else: that can take seconds.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def mapped(name: str) -> "str | None":
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            if name in line:
                return "/" + line.rstrip("\n").partition("/")[2]
    return None


def libcuda() -> "dict[str, Any]":
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {"error": str(error)}
    answer: "dict[str, Any]" = {"path": mapped("libcuda.so")}
    number = ctypes.c_int()
    try:
        if library.cuDriverGetVersion(ctypes.byref(number)) == 0:
            answer["version"] = number.value
    except AttributeError as error:
        answer["error"] = str(error)
    return answer


def initialised() -> "dict[str, Any]":
    try:
        return {"code": ctypes.CDLL("libcuda.so.1").cuInit(0)}
    except AttributeError:
        return {}


def text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def told(call: "Callable[[], Any]") -> Any:
    """What a call answers; None where this driver or this GPU does not support it."""
    import pynvml

    try:
        return call()
    except (pynvml.NVMLError, AttributeError, ValueError):
        return None


def processes(nvml: Any, handle: Any) -> "list[dict[str, Any]] | None":
    """Who has something on the GPU; None where NVML lists nobody's."""
    compute = told(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    if compute is None:
        return None
    clients = told(lambda: nvml.nvmlDeviceGetMPSComputeRunningProcesses(handle))
    drawing = told(lambda: nvml.nvmlDeviceGetGraphicsRunningProcesses(handle))
    rows: "dict[int, dict[str, Any]]" = {}  # who computes and draws stands in two lists
    for one, computes in ((compute, True), (clients, True), (drawing, False)):
        for row in one or ():
            made = rows.setdefault(row.pid, {"pid": row.pid, "held": None, "computes": computes})
            if made["held"] is None and row.usedGpuMemory is not None:
                made["held"] = int(row.usedGpuMemory)
    return [rows[pid] for pid in sorted(rows)][:PROCESSES_MOST]


PROCESSES_MOST = 256


def device(nvml: Any, index: int) -> "dict[str, Any]":
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    # Unified memory: the GPU has none of its own.
    memory = told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    newer = told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2))
    mig = told(lambda: nvml.nvmlDeviceGetMigMode(handle))
    return {
        "index": index,
        "name": text(nvml.nvmlDeviceGetName(handle)),
        "uuid": text(nvml.nvmlDeviceGetUUID(handle)),
        "capability": "%d.%d" % tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        "total": int(memory.total) if memory else None,
        "free": int(memory.free) if memory else None,
        "reserved": int(newer.reserved) if newer else None,
        "mode": told(lambda: int(nvml.nvmlDeviceGetComputeMode(handle))),
        "mig": None if mig is None else bool(mig[0]),
        "processes": processes(nvml, handle),
    }


def nvml() -> "dict[str, Any]":
    try:
        # Asked before pynvml is imported, which takes longer than to find no library.
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        return {"error": str(error)}
    import pynvml  # ours: where it is broken, this child fails and nothing is said of the driver

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return {
            "driver": text(pynvml.nvmlSystemGetDriverVersion()),
            "devices": [device(pynvml, i) for i in range(count)],
        }
    except pynvml.NVMLError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    # The answer leaves by a descriptor of its own: a driver that writes to stdout cannot garble it.
    out = os.dup(1)
    os.dup2(2, 1)
    deep = "init" in sys.argv
    answer = initialised() if deep else {"libcuda": libcuda(), "nvml": nvml()}
    os.write(out, json.dumps(answer).encode())
