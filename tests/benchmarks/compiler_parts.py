"""Measure which pip CUDA 13 compiler parts compile together: rules/tables/compiler-parts.toml.

pip gives the CUDA compiler in four wheels with no versions between them, so an environment may
hold any mix of minors. Each mix here is really compiled, with the flags FlashInfer's JIT uses.

    python tests/benchmarks/compiler_parts.py           measure every mix, write the table
    python tests/benchmarks/compiler_parts.py --check   measure every same-minor mix again

Needs uv, gcc, and 4 GB under $VLLM_DOCTOR_LAB (default ~/.cache/vllm-doctor-lab). Takes 5 to 10
minutes on two cores. Exit status: 0, 1 when --check differs from the table, 2 when a measurement
could not be made (then no table is written).
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
from typing import NamedTuple

TABLE = Path(__file__).parents[2] / "rules" / "tables" / "compiler-parts.toml"
DISTRIBUTIONS = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime")

# The newest patch of every minor on 2026-11-23, in the order of DISTRIBUTIONS.
VERSIONS = {
    "13.0": ("13.0.88", "13.0.88", "13.0.88", "13.0.96"),
    "13.1": ("13.1.115", "13.1.115", "13.1.115", "13.1.80"),
    "13.2": ("13.2.86", "13.2.86", "13.2.86", "13.2.86"),
    "13.3": ("13.3.73", "13.3.73", "13.3.73", "13.3.29"),
    "13.4": ("13.4.92", "13.4.92", "13.4.92", "13.4.92"),
    "13.5": ("13.5.37", "13.5.37", "13.5.37", "13.5.37"),
}
FULLY_MIXED = ("13.0", "13.2", "13.5")
FLASHINFER = "0.6.11.post2"
CURAND = "10.4.0.35"  # the one torch 2.11 pins; its headers are the same beside every compiler
LIMIT_S = 120.0
AT_ONCE = 2

SOURCE = """\
#include <cooperative_groups.h>
#include <cuda/std/type_traits>
#include <curand.h>
#include <curand_kernel.h>

namespace cg = cooperative_groups;

template <typename T>
__global__ void draw(T* out, unsigned long long seed) {
  static_assert(cuda::std::is_floating_point<T>::value, "a draw is a real number");
  const auto rank = cg::this_grid().thread_rank();
  curandStatePhilox4_32_10_t state;
  curand_init(seed, rank, 0, &state);
  out[rank] = static_cast<T>(curand_uniform(&state));
}

curandStatus_t launch(float* out, unsigned long long seed, cudaStream_t stream) {
  draw<float><<<1, 32, 0, stream>>>(out, seed);
  return cudaGetLastError() == cudaSuccess ? CURAND_STATUS_SUCCESS : CURAND_STATUS_LAUNCH_FAILURE;
}
"""

# flashinfer 0.6.11.post2: jit/cpp_ext.py, jit/core.py and compilation_context.py. Left out: include
# folders this source reads nothing from.
FLAGS = """
    -DPy_LIMITED_API=0x03090000 -D_GLIBCXX_USE_CXX11_ABI=1
    --compiler-options=-fPIC --expt-relaxed-constexpr -static-global-template-stub=false
    -DFLASHINFER_ENABLE_FP8_E8M0 -DFLASHINFER_ENABLE_FP4_E2M1
    -std=c++17 --threads=1 -use_fast_math -DFLASHINFER_ENABLE_F16 -DFLASHINFER_ENABLE_BF16
    -DFLASHINFER_ENABLE_FP8_E4M3 -DFLASHINFER_ENABLE_FP8_E5M2 -DNDEBUG -O3
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a
""".split()
CCCL = ("cub", "libcudacxx/include", "thrust")


class CannotMeasure(Exception):
    """A mix gave no verdict: a tool is missing, hung, or is not the one meant."""


class Mix(NamedTuple):
    """The minor of each part, such as "13.0"."""

    nvcc: str
    nvvm: str
    crt: str
    headers: str

    def __str__(self) -> str:
        return "/".join(self)


class Lab(NamedTuple):
    """Where the installed wheels lie, each an `nvidia/cu13` folder but for FlashInfer's data."""

    parts: dict[tuple[str, str], Path]  # by (distribution, minor)
    curand: Path
    flashinfer_data: Path


def same_minor_mixes() -> list[Mix]:
    """Return one mix per minor, all four parts of that minor."""
    return [Mix(*[minor] * 4) for minor in VERSIONS]


def all_mixes() -> list[Mix]:
    """Return every mix the table holds, sorted, each once."""
    mixes = set(same_minor_mixes())
    mixes.update(Mix(*minors) for minors in itertools.product(FULLY_MIXED, repeat=4))
    for pair in itertools.pairwise(VERSIONS):
        for minor, neighbour in (pair, pair[::-1]):
            for part in Mix._fields:
                mixes.add(Mix(*[minor] * 4)._replace(**{part: neighbour}))
    return sorted(mixes)


def install(folder: Path, distribution: str, version: str) -> Path:
    """Return the folder of the one installed wheel, installing it with uv on first use."""
    home = folder / f"{distribution}-{version}"
    if not home.exists():
        print(f"installing {distribution} {version}", flush=True)
        uv = shutil.which("uv")
        argv = [uv] if uv else [sys.executable, "-m", "uv"]
        argv += ["pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            target = Path(scratch, "wheel")
            subprocess.run([*argv, "--target", target, f"{distribution}=={version}"], check=True)
            target.rename(home)  # last, so that a killed install is never taken for a whole one
    return home


def install_all(folder: Path) -> Lab:
    """Return the lab with every wheel of VERSIONS, cuRAND and FlashInfer in place."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        (distribution, minor): install(folder, distribution, version) / "nvidia" / "cu13"
        for minor, versions in VERSIONS.items()
        for distribution, version in zip(DISTRIBUTIONS, versions, strict=True)
    }
    curand = install(folder, "nvidia-curand", CURAND) / "nvidia" / "cu13"
    flashinfer = install(folder, "flashinfer-python", FLASHINFER)
    return Lab(parts, curand, flashinfer / "flashinfer" / "data")


def assemble(home: Path, nvcc: Path, nvvm: Path, crt: Path, headers: Path, curand: Path) -> None:
    """Make `home` a CUDA_HOME of links; a file that two wheels own raises FileExistsError."""
    owners = {"bin": (nvcc,), "nvvm": (nvvm,), "include": (nvcc, nvvm, crt, headers, curand)}
    for name, wheels in owners.items():
        # A real folder: nvcc finds TOP as bin/.., which through a linked bin is the wheel itself.
        (home / name).mkdir(parents=True)
        for wheel in wheels:
            for entry in (wheel / name).iterdir():
                (home / name / entry.name).symlink_to(entry)


def run(argv: list[str], home: Path) -> tuple[int, str]:
    """Return the exit status and all output of `argv`, run in `home` with it as CUDA_HOME."""
    # Only these: CPATH, NVCC_PREPEND_FLAGS and their like would make it another measurement.
    path = f"{home / 'bin'}:{os.environ.get('PATH', os.defpath)}"
    env = {"PATH": path, "CUDA_HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C"}
    with subprocess.Popen(
        argv,
        cwd=home,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            # nvcc's children hold the pipe as well, so the whole group has to go.
            os.killpg(process.pid, signal.SIGKILL)
            raise CannotMeasure(f"{argv[0]} took more than {LIMIT_S:.0f} s") from None
    return process.returncode, output


def parts_used(dry_run: str) -> dict[str, Path]:
    """Return the real file each part is taken from, by what `nvcc --dryrun` printed."""
    settings = dict(re.findall(r"^#\$ (\w+)=(.*)$", dry_run, re.MULTILINE))
    commands = re.findall(r"^#\$ (gcc .*-E .*)$", dry_run, re.MULTILINE)
    includes: list[str] = []
    for flag, value in itertools.pairwise(shlex.split(commands[-1])):
        if flag.startswith("-I") and flag != "-I":
            includes.append(flag[2:])
        elif flag in ("-I", "-isystem"):
            includes.append(value)

    def included(name: str) -> str:
        return next(str(Path(i, name)) for i in includes if Path(i, name).exists())

    found = {
        "nvcc": shutil.which("ptxas", path=settings["PATH"]) or "",
        "nvvm": settings["CICC_PATH"] + "/cicc",
        "crt": included("crt/host_runtime.h"),
        "headers": included("cuda_runtime_api.h"),
    }
    return {part: Path(file).resolve() for part, file in found.items()}


def core_of_error(output: str) -> str:
    """Return what the first telling line of a failed compile says, without paths, under 90 long."""
    pattern = r"^(ptxas|nvcc|Command-line)?.*?\b(fatal error|fatal|error)\s*: (.+)$"
    match = re.search(pattern, output, re.MULTILINE)
    if match is None:
        raise CannotMeasure(f"no error line in {output!r}")
    tool, kind, text = match.groups()
    if not text.startswith("#error"):
        text = f"{tool or ''} {kind}: {text}"
    text = re.sub(r"(?<!\w)/\S*/", "", text)
    return textwrap.shorten(text, 89, placeholder=" ...")


def measure(lab: Lab, folder: Path, mix: Mix) -> str | None:
    """Return None when `mix` compiles, else the core of its first error; print the result.

    Raises CannotMeasure when nvcc would take a part from elsewhere, or ran past LIMIT_S.
    """
    home = folder / "-".join(mix)
    wheels = [lab.parts[key].resolve() for key in zip(DISTRIBUTIONS, mix, strict=True)]
    assemble(home, *wheels, lab.curand)
    source = home / "draw.cu"
    source.write_text(SOURCE)
    includes = [f"-I{lab.flashinfer_data / 'cccl' / name}" for name in CCCL]
    includes += ["-isystem", str(home / "include")]
    argv = [str(home / "bin" / "nvcc"), "--generate-dependencies-with-compile", "-MF", "draw.o.d"]
    argv += [*includes, *FLAGS, "-c", str(source), "-o", "draw.o"]

    used = parts_used(run([*argv, "--dryrun"], home)[1])
    for wheel, (part, file) in zip(wheels, used.items(), strict=True):
        if wheel not in file.parents:
            raise CannotMeasure(f"{mix}: {part} is taken from {file}, not from {wheel}")
    start = time.monotonic()
    status, output = run(argv, home)
    error = core_of_error(output) if status else None
    print(f"{mix}  {time.monotonic() - start:4.1f} s  {error or 'compiles'}", flush=True)
    shutil.rmtree(home)
    return error


def measure_all(lab: Lab, folder: Path, mixes: list[Mix]) -> dict[str, str | None]:
    """Return each mix's result (see `measure`) by its name, in the order given."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        pending = [pool.submit(measure, lab, folder, mix) for mix in mixes]
        try:
            return {str(mix): p.result() for mix, p in zip(mixes, pending, strict=True)}
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or leaving would first compile all the rest
            raise


def machine() -> str:
    """Return what the results depend on besides the wheels."""
    gcc = subprocess.run(["gcc", "-dumpfullversion"], check=True, capture_output=True, text=True)
    libc = os.confstr("CS_GNU_LIBC_VERSION")
    return f"gcc {gcc.stdout.strip()}, {libc}, {platform.machine()}, FlashInfer {FLASHINFER} flags"


def table(results: dict[str, str | None]) -> str:
    """Return the TOML text of the table."""
    lines = [
        "# Which minors of the pip CUDA 13 compiler parts compile together; a mix is written in the",
        "# order of `parts`. Each line is a real compile (of a .cu to a .o, not linked) of the exact",
        "# wheels below. To make it again: python tests/benchmarks/compiler_parts.py",
        f"measured = {datetime.date.today().isoformat()}",
        f"with = {json.dumps(machine())}",
        f"parts = {json.dumps(Mix._fields)}",
        "compiles = [",
        *(f"    {json.dumps(mix)}," for mix, error in sorted(results.items()) if error is None),
        "]",
        "",
        "[wheels]",
        *(f"{json.dumps(minor)} = {json.dumps('/'.join(VERSIONS[minor]))}" for minor in VERSIONS),
        "",
        "[fails]",
        *(f"{json.dumps(mix)} = {json.dumps(e)}" for mix, e in sorted(results.items()) if e),
    ]
    return "\n".join(lines) + "\n"


def committed() -> dict[str, str | None]:
    """Return the committed table's results; read by line, as Python 3.10 has no tomllib."""
    text = TABLE.read_text()
    results: dict[str, str | None] = dict.fromkeys(re.findall(r'^    "(.+)",$', text, re.MULTILINE))
    _, _, fails = text.partition("[fails]\n")
    results.update({m: json.loads(e) for m, e in re.findall(r'"(.+?)" = (".+")\n', fails)})
    return results


def main() -> int:
    """Measure, then write the table or compare with it; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure which CUDA 13 compiler parts compile.")
    parser.add_argument("--check", action="store_true", help="compare same-minor mixes only")
    check: bool = parser.parse_args().check
    root = Path(os.environ.get("VLLM_DOCTOR_LAB") or "~/.cache/vllm-doctor-lab").expanduser()
    try:
        lab = install_all(root / "parts" / "wheels")
        with tempfile.TemporaryDirectory(dir=root / "parts") as scratch:
            mixes = same_minor_mixes() if check else all_mixes()
            results = measure_all(lab, Path(scratch), mixes)
        if not check:
            TABLE.write_text(table(results))
            return 0
        known = committed()
    except (CannotMeasure, OSError, subprocess.CalledProcessError) as error:
        print(f"compiler_parts: {error}", file=sys.stderr)
        return 2
    differing = {mix: error for mix, error in results.items() if known.get(mix, "") != error}
    for mix, error in differing.items():
        was = known[mix] or "compiles" if mix in known else "absent"
        print(f"{mix}: now {error or 'compiles'}; the table says {was}", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
