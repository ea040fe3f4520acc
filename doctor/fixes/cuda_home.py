"""A CUDA home of links over the target's wheels, which lack what a linker asks for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from doctor.model import Installer, Step


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
