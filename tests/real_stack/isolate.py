"""Runs a command in a mount namespace, where this machine's own CUDA toolkit cannot be seen.

There `/usr/local` holds what it holds outside, but for `cuda*`, `bin/nvcc` and the other tools of
a toolkit; as `/usr/local/cuda` it may hold a folder of the test's choice. The environment is the
one given and nothing else.
"""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SYSTEM_PATH = "/usr/bin:/bin"

_SCRIPT = r"""
set -eu
scratch=$1 toolkit=$2
shift 2
outside=$scratch/local
mkdir "$outside" "$scratch/toolkit"

show() {  # show SOURCE PLACE: SOURCE appears at PLACE, a link as a link
    if [ -L "$1" ]; then
        cp -P -- "$1" "$2"
    elif [ -d "$1" ]; then
        mkdir -- "$2"
        mount --rbind -- "$1" "$2"
    elif [ -e "$1" ]; then
        : > "$2"
        mount --bind -- "$1" "$2"
    fi
}

mount --rbind /usr/local "$outside"
if [ -n "$toolkit" ]; then  # before /usr/local is covered, for it may lie there
    mount --rbind -- "$toolkit" "$scratch/toolkit"
fi
mount -t tmpfs -o mode=755 none /usr/local
for entry in "$outside"/*; do
    case ${entry##*/} in
        cuda*) ;;
        bin) mkdir /usr/local/bin ;;
        *) show "$entry" "/usr/local/${entry##*/}" ;;
    esac
done
for entry in "$outside"/bin/*; do
    case ${entry##*/} in
        nvcc | __nvcc_device_query | bin2c | cudafe++ | fatbinary | nvlink | ptxas | cuobjdump) ;;
        *) show "$entry" "/usr/local/bin/${entry##*/}" ;;
    esac
done
if [ -n "$toolkit" ]; then
    show "$scratch/toolkit" /usr/local/cuda
fi
exec "$@"
"""


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit status (124 where it ran past its time) and its two outputs."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def run(
    command: list[str | Path],
    env: Mapping[str, str],
    *,
    toolkit: Path | None = None,
    timeout: float = 600,
    cwd: Path | None = None,
) -> Ran:
    """Runs a command without this machine's toolkit.

    A given `toolkit` folder is seen as /usr/local/cuda there; `timeout` is in seconds.
    """
    with tempfile.TemporaryDirectory(prefix="isolate-") as scratch:
        argv: list[str | Path] = [*_unshare(), "sh", "-c", _SCRIPT, "isolate", scratch]
        argv += [str(toolkit) if toolkit else "", *command]
        try:
            ran = subprocess.run(
                argv,
                env={"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", **env},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            return Ran(124, _text(late.stdout), _text(late.stderr))
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@functools.cache
def impossible() -> str | None:
    """Why no command can be isolated on this machine; None where it can."""
    try:
        probe = run(["sh", "-c", "test ! -e /usr/local/cuda"], {}, timeout=30)
    except OSError as error:
        return f"no mount namespace: {error}"
    if probe.code:
        return f"no mount namespace: {probe.text.strip() or 'unshare failed'}"
    return None


def _unshare() -> list[str]:
    # The user namespace is what lets an ordinary user mount.
    return ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]


def _text(output: bytes | str | None) -> str:
    # TimeoutExpired carries bytes even where text was asked for.
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
