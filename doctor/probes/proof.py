"""The verdict proven: a small kernel compiled, linked and loaded as FlashInfer would do it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from packaging.version import Version

from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text
from doctor.probes.driver import DeepAsked
from doctor.probes.environment import LaunchEnv, child_env
from doctor.probes.host import HostCompilers, split_flags
from doctor.probes.interpreter import Interpreter
from doctor.probes.jit import Jit
from doctor.probes.libraries import Runtimes
from doctor.probes.toolkit import Toolkit, Toolkits
from doctor.probes.wheels import FlashInfer
from doctor.redact import redact
from doctor.target import OWN, OWN_PYTHON, Ran, Target
from doctor.trust import NotTrusted

# Where no GPU is visible: one architecture of each code path that vLLM's users have.
_DEFAULT_ARCHS = ("80", "90a")
_TIMEOUT = 120.0


@dataclass(frozen=True)
class Proof(Fact):
    """What the test build came to. `stage` is where it failed; `ids` the ailments that its output
    names; `stand_in` that an empty libcuda.so stood in for the driver's; seconds of wall time;
    `doubt`: why it is not sure that the server builds anything."""

    ok: bool
    stage: Literal["compile", "link", "load"] | None = None
    archs: tuple[str, ...] = ()
    seconds: float = 0.0
    output: str = ""
    line: str = ""
    ids: tuple[str, ...] = ()
    stand_in: bool = False
    doubt: Text | None = None


@probe
def proof(
    target: Target,
    asked: DeepAsked,
    env: LaunchEnv,
    toolkits: Toolkits,
    jit: Jit,
    flashinfer: FlashInfer,
    interpreter: Interpreter,
    hosts: HostCompilers,
    runtimes: Runtimes,
) -> Proof:
    """One child does the three steps in a temporary folder of its own (see _proof.py)."""
    if not asked.asked:
        raise NotApplicable(Text("no test build was asked for (--deep)"))
    found = toolkits.found
    if found is None or found.nvcc is None:
        raise Missing(
            Text("there is no nvcc to build with"), ("nvcc-missing", "cuda-home-bad-path")
        )
    if hosts.cxx.compiler is None:
        raise Missing(Text("there is no C++ compiler to link with"), ("c-compiler-missing",))
    archs = jit.archs_of(found.nvcc) or _DEFAULT_ARCHS
    for path in _started_by_nvcc(found):
        if why := target.distrust(path):
            raise NotTrusted(why)
    ran = target.run(
        OWN_PYTHON,
        "-I",
        "-S",
        "-B",
        OWN + "probes/_proof.py",
        str(interpreter.python),
        str(runtimes.own.path) if runtimes.own else "",
        "--compile",
        str(found.compiler),
        *compile_flags(env, found.root, found.nvcc, archs, flashinfer, interpreter),
        "--link",
        str(hosts.cxx.compiler.path),
        *hosts.cxx.compiler.arguments,
        "-shared",
        f"-L{found.root}/lib64",
        f"-L{found.root}/lib64/stubs",
        *(f"-l{name}" for name in jit.libraries),
        *split_flags(env.get("FLASHINFER_EXTRA_LDFLAGS") or ""),
        timeout=_TIMEOUT,
        env=child_env(env),
    )
    return dataclasses.replace(_read(ran, archs), doubt=jit.doubt)


def _started_by_nvcc(kit: Toolkit) -> Iterator[Path]:
    """What nvcc starts, and reads besides the headers, of its own."""
    bin_folder = (kit.top or kit.root) / "bin"
    for name in ("nvcc", "nvcc.profile", "cudafe++", "ptxas", "fatbinary", "nvlink", "bin2c"):
        yield bin_folder / name
        yield kit.compiler.parent / name
    yield from (bin_folder / "../nvvm/bin/cicc", bin_folder / "../nvvm/libdevice/libdevice.10.bc")


def compile_flags(
    env: LaunchEnv,
    root: Path,
    nvcc: Version,
    archs: tuple[str, ...],
    flashinfer: FlashInfer,
    interpreter: Interpreter,
) -> list[str]:
    """nvcc's arguments as FlashInfer 0.6 builds them (flashinfer/jit/cpp_ext.py and core.py)."""
    data = flashinfer.root / "data"
    cccl = (data / "cccl/cub", data / "cccl/libcudacxx/include", data / "cccl/thrust")
    system = [
        interpreter.include,
        *([] if root == Path("/usr") else [root / "include"]),
        data / "include",
        data / "csrc",
        data / "cutlass/include",
        data / "cutlass/tools/util/include",
        data / "spdlog/include",
    ]
    cc = env.get("CC")
    return [
        *(["-ccbin", cc] if cc is not None else []),
        "-DPy_LIMITED_API=0x03090000",
        "-D_GLIBCXX_USE_CXX11_ABI=1",
        *(f"-I{folder}" for folder in cccl),
        *(word for folder in system for word in ("-isystem", str(folder))),
        "--compiler-options=-fPIC",
        "--expt-relaxed-constexpr",
        *(["-static-global-template-stub=false"] if nvcc >= Version("12.8") else []),
        *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs),
        "-DFLASHINFER_ENABLE_FP8_E8M0",
        "-DFLASHINFER_ENABLE_FP4_E2M1",
        "-std=c++17",
        # FlashInfer says 1; the objects are the same, two architectures just take half as long.
        "--threads=2",
        "-use_fast_math",
        "-DNDEBUG",
        "-O3",
        *split_flags(env.get("FLASHINFER_EXTRA_CUDAFLAGS") or ""),
    ]


_STAGES: dict[str, Literal["compile", "link", "load"]] = {
    "compile": "compile",
    "link": "link",
    "load": "load",
}


def _read(ran: Ran, archs: tuple[str, ...]) -> Proof:
    from doctor.signatures import ids_of  # with its regular expressions, for a proof alone

    if ran.code is None:
        raise Missing(Text("the test build {why}", why=ran.failure))
    stage, _, rest = ran.out.partition("\n")
    first, _, output = rest.partition("\n")
    seconds, _, stand_in = first.partition(" ")
    if stage == "unable" or "No space left on device" in output:
        why = (output.strip() or first).splitlines()[0][:300]
        raise Missing(Text("nothing can be built or loaded in a temporary folder: {why}", why=why))
    if stage not in ("ok", *_STAGES):
        raise Missing(Text("the test build did not run: {why}", why=redact(ran.err.strip())[-200:]))
    failed = _STAGES.get(stage)
    ids, line = ids_of(output) if failed else ((), "")
    if failed == "load":
        ids = ()  # what a log says of vLLM's own library is not true of this kernel
    return Proof(
        ok=failed is None,
        stage=failed,
        archs=archs,
        seconds=float(seconds),
        output=redact(output)[-4000:],
        line=line,
        ids=ids,
        stand_in=stand_in == "stand-in",
    )
