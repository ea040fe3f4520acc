"""The CUDA home of links that an earlier fix made."""

from __future__ import annotations

from pathlib import Path

from doctor.consumers.flashinfer import cuda_home_searched
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, NotApplicable, Text
from doctor.probes.environment import HOME, LaunchEnv
from doctor.probes.interpreter import Interpreter
from doctor.target import Target

STUB = Path("lib64/stubs/libcuda.so")


@dataclass(frozen=True)
class HomeOfLinks(Fact):
    """`dangling`: links that a compiler or linker would follow to nothing; `stand_in`: libcuda.so
    is the empty library that is put there where no driver is."""

    folder: Path
    dangling: tuple[Path, ...] = ()
    stand_in: bool = False


@probe
def home_of_links(target: Target, env: LaunchEnv, interpreter: Interpreter) -> HomeOfLinks:
    """Not applicable where FlashInfer would not take a folder of ours."""
    found = cuda_home_searched(target, env).path
    ours = interpreter.prefix / HOME
    if found is None or Path(found).parent != ours:
        raise NotApplicable(Text("no CUDA home that a fix made is in use"))
    folder = Path(found)
    # What links by its name, without a version: the linker looks for no other.
    names = [Path(n) for n in target.listdir(folder) or ()]
    names += [
        Path("lib64") / n for n in target.listdir(folder / "lib64") or () if n.endswith(".so")
    ]
    names += [STUB.parent / n for n in target.listdir(folder / STUB.parent) or ()]
    stub = folder / STUB
    return HomeOfLinks(
        folder=folder,
        dangling=tuple(n for n in names if target.stat(folder / n) is None),
        stand_in=target.stat(stub) is not None
        and target.realpath(stub) == target.realpath(folder) / STUB,
    )
