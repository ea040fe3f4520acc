"""Measure which pip CUDA 13 compiler parts compile together: rules/tables/compiler-parts.toml.

pip gives the CUDA compiler in four wheels with no versions between them, so an environment may
hold any mix of minors. Each mix here is really compiled, with the flags FlashInfer's JIT uses.

    python tests/benchmarks/compiler_parts.py           measure every mix, write the table
    python tests/benchmarks/compiler_parts.py --check   measure every same-minor mix again

Needs uv, gcc and 2.1 GB in $VLLM_DOCTOR_LAB (default ~/.cache/vllm-doctor-lab); 3 to 5 minutes.
Exits 1 when --check differs from the table, 2 when something could not be measured.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen

TABLE = Path(__file__).parents[2] / "rules" / "tables" / "compiler-parts.toml"
LIMIT_S = 120.0
AT_ONCE = 2
FLASHINFER = "flashinfer-python==0.6.11.post2"
CURAND = "nvidia-curand==10.4.0.35"  # the one torch 2.11 pins, beside whatever compiler
DISTRIBUTIONS = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime")
VERSIONS = {  # the newest patch of every minor there is, in the order of DISTRIBUTIONS
    "13.0": ("13.0.88", "13.0.88", "13.0.88", "13.0.96"),
    "13.1": ("13.1.115", "13.1.115", "13.1.115", "13.1.80"),
    "13.2": ("13.2.86", "13.2.86", "13.2.86", "13.2.86"),
    "13.3": ("13.3.73", "13.3.73", "13.3.73", "13.3.29"),
    "13.4": ("13.4.92", "13.4.92", "13.4.92", "13.4.92"),
    "13.5": ("13.5.37", "13.5.37", "13.5.37", "13.5.37"),
}
Mix = tuple[str, ...]  # the minor of each part, in this order
PARTS = ("nvcc", "nvvm", "crt", "headers")
SAME_MINOR: list[Mix] = [(minor,) * 4 for minor in VERSIONS]
FULLY_MIXED = ("13.0", "13.2", "13.5")

SOURCE = """\
#include <cooperative_groups.h>
#include <cuda/std/type_traits>
#include <curand.h>
#include <curand_kernel.h>
template <typename T>
__global__ void draw(T* out, unsigned long long seed) {
  static_assert(cuda::std::is_floating_point<T>::value, "a draw is a real number");
  const auto rank = cooperative_groups::this_grid().thread_rank();
  curandStatePhilox4_32_10_t state;
  curand_init(seed, rank, 0, &state);
  out[rank] = static_cast<T>(curand_uniform(&state));
}
curandStatus_t launch(float* out) {
  draw<float><<<1, 32>>>(out, 42);
  return cudaGetLastError() == cudaSuccess ? CURAND_STATUS_SUCCESS : CURAND_STATUS_LAUNCH_FAILURE;
}
"""

# From flashinfer's jit/cpp_ext.py, jit/core.py, compilation_context.py: all that SOURCE feels.
CCCL = ("cub", "libcudacxx/include", "thrust")
FLAGS = shlex.split("""
    -DPy_LIMITED_API=0x03090000 -D_GLIBCXX_USE_CXX11_ABI=1
    --compiler-options=-fPIC --expt-relaxed-constexpr -static-global-template-stub=false
    -DFLASHINFER_ENABLE_FP8_E8M0 -DFLASHINFER_ENABLE_FP4_E2M1
    -std=c++17 --threads=1 -use_fast_math -DFLASHINFER_ENABLE_F16 -DFLASHINFER_ENABLE_BF16
    -DFLASHINFER_ENABLE_FP8_E4M3 -DFLASHINFER_ENABLE_FP8_E5M2 -DNDEBUG -O3
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a
""")


class CannotMeasure(Exception):
    """A mix gave no verdict: a tool hung, or is not the one meant, or its error is not known."""


def all_mixes() -> list[Mix]:
    """Return every mix that the table holds, sorted."""
    mixes: set[Mix] = {*SAME_MINOR, *itertools.product(FULLY_MIXED, repeat=4)}
    for pair in itertools.pairwise(SAME_MINOR):
        for mix, other in (pair, pair[::-1]):
            mixes.update((*mix[:i], other[i], *mix[i + 1 :]) for i in range(4))
    return sorted(mixes)


def install(folder: Path) -> dict[str, Path]:
    """Return the folder of each wheel, alone, by "name==version"; made with uv on first use."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = itertools.chain.from_iterable(VERSIONS.values())
    wanted = [f"{d}=={v}" for d, v in zip(itertools.cycle(DISTRIBUTIONS), rows, strict=False)]
    wheels = {name: folder / name for name in [*wanted, CURAND, FLASHINFER]}
    uv = [found] if (found := shutil.which("uv")) else [sys.executable, "-m", "uv"]
    for name, home in wheels.items():
        if not home.exists():
            print(f"installing {name}", flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                argv = [*uv, "pip", "install", "--no-deps", "--python", sys.executable, name]
                subprocess.run([*argv, "--quiet", "--target", f"{scratch}/wheel"], check=True)
                Path(scratch, "wheel").rename(home)  # last: a killed install is never half taken
    return wheels


def assemble(home: Path, wheels: list[Path]) -> None:
    """Make `home` a CUDA_HOME of links; FileExistsError tells of a file that two wheels own."""
    for folder in ("bin", "include", "nvvm"):
        # A real folder, full of links: nvcc's TOP is bin/.., which of a linked bin is the wheel.
        (home / folder).mkdir(parents=True)
        for entry in itertools.chain.from_iterable(w.glob(f"{folder}/*") for w in wheels):
            (home / folder / entry.name).symlink_to(entry)


def run(argv: list[str], home: Path) -> tuple[int, str]:
    """Return exit status and output of a command run in `home`; CannotMeasure after LIMIT_S."""
    # A fresh environment: CPATH, NVCC_PREPEND_FLAGS and their like change what is measured.
    env = {"PATH": f"{home}/bin:{os.environ['PATH']}", "LC_ALL": "C"}
    env |= dict.fromkeys(("CUDA_HOME", "TMPDIR"), str(home))
    with Popen(
        argv, cwd=home, env=env, stdout=PIPE, stderr=STDOUT, text=True, start_new_session=True
    ) as nvcc:
        try:
            output, _ = nvcc.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(nvcc.pid, signal.SIGKILL)  # its children hold the pipe as well
            raise CannotMeasure(f"{argv[0]} ran for more than {LIMIT_S:.0f} s") from None
    return nvcc.returncode, output


def parts_used(dry_run: str) -> list[Path]:
    """Return the ptxas, cicc, crt and headers that `nvcc --dryrun` names, links followed."""
    settings = dict(re.findall(r"^#\$ (\w+)=(.*)$", dry_run, re.MULTILINE))
    preprocess = re.findall(r"^#\$ (gcc .* -E .*)$", dry_run, re.MULTILINE)[-1]
    folders = re.findall(r"-(?:I|isystem )(\S+)", " ".join(shlex.split(preprocess)))

    def included(name: str) -> str:
        return next((f for i in folders if Path(f := f"{i}/{name}").exists()), f"no {name}")

    ptxas = shutil.which("ptxas", path=settings["PATH"]) or "no ptxas"
    crt, headers = included("crt/host_runtime.h"), included("cuda_runtime_api.h")
    return [Path(f).resolve() for f in (ptxas, settings["CICC_PATH"] + "/cicc", crt, headers)]


def core_of_error(output: str) -> str:
    """Return what the first telling line says: which tool and why, no paths, under 90 long."""
    pattern = r"^(ptxas|nvcc|Command-line)?.*?\b((?:fatal )?error|fatal)\s*: (.+)$"
    if not (match := re.search(pattern, output, re.MULTILINE)):
        raise CannotMeasure(f"no error in {output!r}")
    tool, kind, text = match.groups()
    core = text if text.startswith("#error") else f"{tool or ''} {kind}: {text}"
    return textwrap.shorten(re.sub(r"(?<!\w)/\S*/", "", core), 89, placeholder=" ...")


def measure(wheels: dict[str, Path], folder: Path, mix: Mix) -> str | None:
    """Return None when `mix` compiles, else the core of its first error; print either.

    Raises CannotMeasure when nvcc would not take every part from the wheel that `mix` names.
    """
    home, name = folder / "-".join(mix), "/".join(mix)
    pins = [f"{DISTRIBUTIONS[i]}=={VERSIONS[minor][i]}" for i, minor in enumerate(mix)]
    owners = [wheels[pin].resolve() / "nvidia/cu13" for pin in pins]
    assemble(home, [*owners, wheels[CURAND] / "nvidia/cu13"])
    (home / "draw.cu").write_text(SOURCE)
    argv = [f"{home}/bin/nvcc", "--generate-dependencies-with-compile", "-MF", "draw.o.d"]
    argv += [f"-I{wheels[FLASHINFER]}/flashinfer/data/cccl/{part}" for part in CCCL]
    argv += ["-isystem", f"{home}/include", *FLAGS, "-c", "draw.cu", "-o", "draw.o"]

    status, dry_run = run([*argv, "--dryrun"], home)
    if status:
        raise CannotMeasure(f"{name}: {dry_run}")
    for owner, file in zip(owners, parts_used(dry_run), strict=True):
        if owner not in file.parents:
            raise CannotMeasure(f"{name} would take {file}, not the one in {owner}")
    start = time.monotonic()
    status, output = run(argv, home)
    error = core_of_error(output) if status else None
    print(f"{name} {time.monotonic() - start:5.1f} s  {error or 'compiles'}", flush=True)
    return error


def measure_all(root: Path, mixes: list[Mix]) -> dict[str, str | None]:
    """Return `measure` of each mix by the mix's name, measured AT_ONCE at a time."""
    wheels = install(root / "wheels")
    with tempfile.TemporaryDirectory(dir=root) as scratch, ThreadPoolExecutor(AT_ONCE) as pool:
        pending = [pool.submit(measure, wheels, Path(scratch), mix) for mix in mixes]
        try:
            return {"/".join(m): p.result() for m, p in zip(mixes, pending, strict=True)}
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or leaving would first compile all the rest
            raise


def row(mix: str, error: str | None) -> str:
    """Return the line of the table that says this result."""
    return f"{json.dumps(mix)} = {json.dumps(error)}" if error else f"    {json.dumps(mix)},"


def table(results: dict[str, str | None]) -> str:
    """Return the table's TOML text."""
    gcc = subprocess.run(["gcc", "-dumpfullversion"], check=True, stdout=PIPE, text=True).stdout
    libc, cpu = os.confstr("CS_GNU_LIBC_VERSION"), platform.machine()
    flags = f"FlashInfer {FLASHINFER.partition('==')[2]} flags"
    lines = [
        "# Which minors of the pip CUDA 13 compiler parts compile together, a mix in the order of",
        "# `parts`. Each was really compiled, to an object file, with exactly the wheels below.",
        "# Made, and to be made again, by: python tests/benchmarks/compiler_parts.py",
        f"measured = {datetime.date.today().isoformat()}",
        f'with = "gcc {gcc.strip()}, {libc}, {cpu}, {flags}"',
        f"parts = {json.dumps(PARTS)}",
        "compiles = [",
        *(row(mix, error) for mix, error in results.items() if not error),
        "]\n\n[wheels]",
        *(f'"{minor}" = "{"/".join(versions)}"' for minor, versions in VERSIONS.items()),
        "\n[fails]",
        *(row(mix, error) for mix, error in results.items() if error),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, then write the table or compare with it; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure which CUDA 13 compiler parts compile.")
    parser.add_argument("--check", action="store_true", help="compare same-minor mixes only")
    check: bool = parser.parse_args().check
    lab = Path(os.environ.get("VLLM_DOCTOR_LAB") or "~/.cache/vllm-doctor-lab").expanduser()
    try:
        results = measure_all(lab / "parts", SAME_MINOR if check else all_mixes())
        if not check:
            TABLE.write_text(table(results))
            return 0
        said = TABLE.read_text().splitlines()
    except (CannotMeasure, OSError, subprocess.CalledProcessError) as error:
        print(f"compiler_parts: {error}", file=sys.stderr)
        return 2
    for mix in (differing := [m for m, error in results.items() if row(m, error) not in said]):
        print(f"{mix}: the table says otherwise", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
