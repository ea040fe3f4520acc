"""Compiles, links and loads one kernel in a temporary folder, and removes the folder.

Arguments: the python that loads it, torch's CUDA runtime (or ""), `--compile` and nvcc's command,
`--link` and the linker's. Prints the stage that failed or "ok", then seconds and whether an empty
libcuda.so stood in for the driver's, then what the failed stage printed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time

# cooperative_groups, CCCL's version check (any cuda/std header makes it) and curand: what
# FlashInfer's sampler asks of a toolkit. cub would take three times as long and ask no more.
SOURCE = """\
#include <cooperative_groups.h>
#include <cuda/std/type_traits>
#include <cuda.h>
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
  CUdevice device;
  probe<float><<<1, 32>>>(out, 42);
  return cuDeviceGet(&device, 0) + (int)cudaGetLastError();
}
"""

# The loader finds torch's runtime the way torch's own libraries do, before the kernel asks for it.
LOAD = """\
import ctypes, sys
for path in sys.argv[2:]:
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
ctypes.CDLL(sys.argv[1])
"""


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def run(command, folder):
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.returncode, done.stdout.decode("utf-8", "backslashreplace")


def stages(folder, python, runtime, compile_command, link_command):
    source, made, library = (os.path.join(folder, n) for n in ("probe.cu", "probe.o", "probe.so"))
    with open(source, "w", encoding="utf-8") as file:
        file.write(SOURCE)
    preload = [runtime] if runtime and os.path.exists(runtime) else []
    stand_in = None
    if not has_driver():
        stand_in = os.path.join(folder, "libcuda.so")
        command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", stand_in, "-x", "c"]
        with open(os.path.join(folder, "stand_in.c"), "w", encoding="utf-8") as file:
            file.write("int cuDeviceGet(int *device, int ordinal) { return 100; }\n")
        run([*command, file.name], folder)
        preload.append(stand_in)
    yield "compile", [*compile_command, "-c", source, "-o", made], stand_in
    extra = ["-L" + folder] if stand_in else []
    yield "link", [link_command[0], made, *link_command[1:], *extra, "-o", library], stand_in
    yield "load", [python, "-I", "-S", "-B", "-c", LOAD, library, *preload], stand_in


def main(arguments):
    began = time.perf_counter()
    python, runtime = arguments[:2]
    cut = arguments.index("--link")
    compile_command, link_command = arguments[3:cut], arguments[cut + 1 :]
    failed, output, stand_in = "ok", "", None
    with tempfile.TemporaryDirectory(prefix="vllm-doctor-") as folder:
        for name, command, stand_in in stages(
            folder, python, runtime, compile_command, link_command
        ):
            try:
                code, output = run(command, folder)
            except OSError as error:
                code, output = 127, str(error)
            if code != 0:
                failed = name
                output = "%s\n" % output if output else "exit code %d\n" % code
                break
    print(failed)
    print("%.3f" % (time.perf_counter() - began), "stand-in" if stand_in else "")
    print(output if failed != "ok" else "")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed
    main(sys.argv[1:])
