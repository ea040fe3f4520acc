"""A CUDA home of links over the target's wheels, which lack what a linker asks for."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from doctor.fixes.base import Kind
from doctor.frozen import dataclass
from doctor.model import Installer, Step, Text

if TYPE_CHECKING:
    from doctor.repair.action import Action, Changed
    from doctor.repair.context import RepairContext
    from doctor.repair.manifest import Swap


@dataclass(frozen=True)
class CudaHome(Step):
    """Makes `home`, a folder of links to the toolkit in the wheels at `wheels`.

    What pip owns is not touched: the wheels have no `lib64`, no library without a version in its
    name (`libcudart.so`, `libnvrtc.so`) and no libcuda to link with, and this folder has them.
    `libcuda` is the driver's library, or None where there is none: an empty library with its soname
    then stands in for the linker.
    """

    home: Path
    wheels: Path
    libcuda: Path | None = None
    kind: ClassVar[str] = "cuda-home"

    def __str__(self) -> str:
        return f"make {self.home}, a CUDA home of links to {self.wheels}"

    def commands(self, installer: Installer) -> tuple[str, ...]:
        quoted = shlex.quote
        if self.libcuda:
            stub = f'ln -s {quoted(str(self.libcuda))} "$home/lib64/stubs/libcuda.so"'
        else:
            stub = (
                "cc -shared -Wl,-soname,libcuda.so.1 -x c /dev/null "
                '-o "$home/lib64/stubs/libcuda.so"'
            )
        return (
            f"wheels={quoted(str(self.wheels))}",
            f"home={quoted(str(self.home))}",
            'mkdir -p "$home/lib64/stubs"',
            # Of an older one: a link that is left would lead to nothing, or be written through.
            'find "$home" -type l -delete; rm -f "$home/lib64/stubs/libcuda.so"',
            'for part in bin include nvvm cccl; do if [ -e "$wheels/$part" ]; '
            'then ln -s "$wheels/$part" "$home/$part"; fi; done',
            'ln -s "$wheels"/lib/*.so* "$home/lib64/"',
            'for f in "$wheels"/lib/lib*.so.*; do '
            'name=${f##*/}; ln -sf "$f" "$home/lib64/${name%%.so.*}.so"; done',
            'ln -s lib64 "$home/lib"',
            stub,
        )


class CudaHomes(Kind):
    """Folders of relative links over the wheels."""

    name = "cuda-home"
    title = Text("make a CUDA home of links over the wheels")
    order = 20  # over what was installed
    sweeps = True

    def takes(self, step: Step) -> bool:
        return isinstance(step, CudaHome)

    def changes(self, action: Action) -> Iterable[Changed]:
        from doctor.repair.action import Changed

        for step in _homes(action):
            yield Changed(str(step.home), None, str(step.wheels))

    def prepare(self, context: RepairContext, action: Action, folder: Path) -> Swap:
        from doctor.repair import swap

        new = folder / "new"
        away: list[str] = []
        for step in _homes(action):
            _links(context, step, new / step.home.relative_to(context.prefix))
            away += _ours(step.home, context.prefix)
        return swap.plan(context.prefix, new, folder / "aside", away)


def _homes(action: Action) -> Iterator[CudaHome]:
    return (step for step in action.steps if isinstance(step, CudaHome))


_SHARED = re.compile(r"(lib.+\.so)\.[\d.]+")


def _links(context: RepairContext, step: CudaHome, folder: Path) -> None:
    """Links as seen from where the folder will stand. `bin`, `include` and `nvvm` are the wheels'
    own; nvcc works from the name it is called by, so that it takes this folder for its own."""
    from doctor.redact import redact
    from doctor.repair.errors import StageError
    from doctor.trust import NotTrusted

    (folder / "lib64/stubs").mkdir(parents=True)

    def link(name: str, to: Path) -> None:
        at = step.home / name
        inside = to.is_relative_to(context.prefix)
        (folder / name).symlink_to(os.path.relpath(to, at.parent) if inside else to)

    for part in ("bin", "include", "nvvm", "cccl"):
        if (step.wheels / part).exists():
            link(part, step.wheels / part)
    unversioned = set()
    for library in sorted((step.wheels / "lib").glob("*.so*")):
        link(f"lib64/{library.name}", library)
        match = _SHARED.fullmatch(library.name)
        # libnvrtc.so is libnvrtc.so.13, not libnvrtc.alt.so.13: the plain name of each its own.
        if match and match[1] not in unversioned and not (step.wheels / "lib" / match[1]).exists():
            unversioned.add(match[1])
            (folder / "lib64" / match[1]).symlink_to(library.name)
    (folder / "lib").symlink_to("lib64")
    stub = folder / "lib64/stubs/libcuda.so"
    if step.libcuda:
        stub.symlink_to(step.libcuda)
    elif compiler := context.compiler:
        words = ("-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null", "-o", str(stub))
        try:
            ran = context.target.run(*compiler, *words, timeout=60)
        except NotTrusted as refused:
            raise StageError(refused.reason) from None
        if not ran.ok:
            why = redact(ran.failure or ran.err.strip())[-300:]
            raise StageError(Text("cannot link a stub libcuda.so: {why}", why=why))


def _ours(home: Path, prefix: Path) -> Iterator[str]:
    """What stands in an older home of links; a file that we would not make stays."""
    for at, names, files in os.walk(home):
        for name in [*names, *files]:
            path = Path(at) / name
            if path.is_symlink() or path.relative_to(home) == Path("lib64/stubs/libcuda.so"):
                yield str(path.relative_to(prefix))
