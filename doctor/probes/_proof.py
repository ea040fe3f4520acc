"""Compiles, links and loads one kernel in a temporary folder, and removes the folder.

Arguments: the python that loads it, torch's CUDA runtime (or ""), `--compile` and nvcc's command,
`--link` and the linker's. Prints the stage that failed or "ok", then seconds and whether an empty
libcuda.so stood in for the driver's, then what the failed stage printed.
"""

import ctypes
import glob
import os
import signal
import subprocess
import sys
import tempfile
import time

# cooperative_groups, CCCL's version check (any cuda/std header makes it) and curand: what
# FlashInfer's sampler asks of a toolkit. cub would take three times as long and ask no more. No
# function of the driver is called: an empty libcuda.so is enough to link with, here and there.
SOURCE = """\
#include <cooperative_groups.h>
#include <cuda/std/type_traits>
#include <cuda_fp16.h>
#include <curand.h>
#include <curand_kernel.h>
#include <curand_philox4x32_x.h>

template <typename T>
__global__ void probe(T* out, unsigned long long seed) {
  static_assert(cuda::std::is_same<T, float>::value, "");
  auto block = cooperative_groups::this_thread_block();
  curandStatePhilox4_32_10_t state;
  curand_init(seed, block.thread_rank(), 0, &state);
  out[block.thread_rank()] = curand_uniform(&state) + __half2float(__float2half(1.0f));
}

extern "C" int vllm_doctor_probe(float* out) {
  probe<float><<<1, 32>>>(out, 42);
  return (int)cudaGetLastError();
}
"""

# The loader finds torch's runtime the way torch's own libraries do, before the kernel asks for it.
LOAD = """\
import ctypes, sys
try:
    for path in sys.argv[2:]:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(sys.argv[1])
except OSError as error:
    sys.exit(str(error))
"""


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def nvrtc(runtime: str) -> "list[str]":
    """torch's own, which a server has loaded before any kernel: beside its runtime, or in the
    folder of the wheel that it has to itself for CUDA 12."""
    folder = os.path.dirname(runtime)
    folders = (folder, os.path.join(folder, "../../cuda_nvrtc/lib"))
    return [path for at in folders for path in glob.glob(os.path.join(at, "libnvrtc.so.[0-9]*"))]


def run(command: "list[str]", folder: str) -> "tuple[int, str]":
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.returncode, done.stdout.decode("utf-8", "backslashreplace")


def stand_in(folder: str, compiler: "list[str]") -> "tuple[str | None, str]":
    """(an empty libcuda.so to link with, what went wrong). It is loaded here and now: where a
    folder allows neither building nor loading (noexec, full, not there), a kernel that cannot be
    built in it says nothing about the toolkit."""
    source, library = os.path.join(folder, "stand_in.c"), os.path.join(folder, "libcuda.so")
    with open(source, "w", encoding="utf-8") as file:
        file.write("extern int vllm_doctor_stand_in;\n")
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, "-x", "c", source]
    code, output = run([*compiler, *flags], folder)
    if code != 0:
        return None, output
    try:
        loader = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
        code, output = run([sys.executable, "-I", "-S", "-c", loader, library], folder)
    except OSError as error:
        return None, str(error)
    return (library, "") if code == 0 else (None, output.strip().rpartition("\n")[2])


def prove(folder: str, arguments: "list[str]") -> "tuple[str, str, bool]":
    """(the stage that failed, "unable" or "ok"; what it printed; libcuda had a stand-in)."""
    python, runtime = arguments[:2]
    middle = arguments.index("--link")
    compile_command, link_command = arguments[3:middle], arguments[middle + 1 :]
    cut = link_command.index("-shared")  # what stands before it is the compiler
    source, made, library = (os.path.join(folder, n) for n in ("probe.cu", "probe.o", "probe.so"))
    with open(source, "w", encoding="utf-8") as file:
        file.write(SOURCE)
    empty, trouble = stand_in(folder, link_command[:cut])
    if empty is None:
        return "unable", "%s: %s" % (folder, trouble), False
    driver = has_driver()
    if driver:
        os.remove(empty)
    brought = [runtime, *(nvrtc(runtime) if "-lnvrtc" in link_command else [])]
    preload = [p for p in (*brought, "" if driver else empty) if p and os.path.exists(p)]
    search = [] if driver else ["-L" + folder]
    for stage, command in (
        ("compile", [*compile_command, "-c", source, "-o", made]),
        ("link", [*link_command[:cut], made, *link_command[cut:], *search, "-o", library]),
        ("load", [python, "-I", "-S", "-B", "-c", LOAD, library, *preload]),
    ):
        try:
            code, output = run(command, folder)
        except OSError as error:
            code, output = 127, str(error)
        if code != 0:
            return stage, output or "exit code %d" % code, not driver
    return "ok", "", not driver


def main(arguments: "list[str]") -> None:
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="vllm-doctor-") as folder:
            stage, output, stood_in = prove(folder, arguments)
    except OSError as error:
        stage, output, stood_in = "unable", str(error), False
    print(stage)
    print("%.3f" % (time.perf_counter() - began), "stand-in" if stood_in else "")
    # The end says what failed; all of it may be more than our parent reads.
    print(output[-100000:])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed
    main(sys.argv[1:])
