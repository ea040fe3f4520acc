"""The room that there is for a model that is still to be downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from doctor.codec import CodecError, decode
from doctor.consumers.checkpoint import json_table
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text
from doctor.probes.files import ModelFiles
from doctor.profile import ServeRequest
from doctor.target import OWN, OWN_PYTHON, Target


@dataclass(frozen=True)
class DownloadRoom(Fact):
    """Of the file system on which the hub's cache is, or will be: `place`, the nearest folder that
    is there; `free` bytes for this user; `inodes` that are free, None where the file system does
    not count them; `writable`: whether this user may make files in `place`."""

    since: ClassVar[str] = "0.8.0"
    dispensable: ClassVar[bool] = True
    place: Path
    free: int
    inodes: int | None = None
    writable: bool = True


@probe
def download_room(target: Target, request: ServeRequest, files: ModelFiles) -> DownloadRoom:
    """Asked of the kernel (statvfs(3)), where there is anything to fetch, and the hub was asked how
    much that is."""
    if not request.online:
        raise NotApplicable(Text("the size of the files is asked with --online"))
    if files.repository is None or (files.weights and not files.of("missing", "broken-link")):
        raise NotApplicable(Text("nothing is to be downloaded"))
    words = (OWN_PYTHON, "-I", "-B", OWN + "probes/_room.py", str(files.repository))
    ran = target.run(*words)
    try:
        made: DownloadRoom = decode(DownloadRoom, json_table(ran.out))
    except CodecError:
        why = ran.failure or "no answer"
        raise Missing(
            Text("the room in {folder}: {why}", folder=files.repository, why=why)
        ) from None
    return made
