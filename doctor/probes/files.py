"""The files of the model that is to be served, as they lie on this machine."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from doctor.consumers.checkpoint import DAMAGED, INDEX, shards_of_index
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, NotApplicable, Text
from doctor.probes.arguments import ServerArguments
from doctor.probes.configuration import ModelPlace, model_place
from doctor.probes.environment import LaunchEnv
from doctor.profile import ServeRequest
from doctor.target import Target

FileFault = Literal["missing", "broken-link", "pointer", "cut", "damaged", "unreadable"]

_POINTER_MOST = 1024  # bytes; git-lfs takes no larger one for a pointer (its docs/spec.md)
_POINTER = b"version https://git-lfs.github.com/spec/v1"
_OF = re.compile(r"(.*)-(?a:(\d{5,6})-of-(\d{5,6}))(\.safetensors|\.bin)")
_SHARDS_MOST = 10_000
_FORMATS = ("", "auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer")


@dataclass(frozen=True)
class OddFile:
    """A file of weights that vLLM cannot load."""

    path: Path
    fault: FileFault
    why: Text


@dataclass(frozen=True)
class ModelFiles(Fact):
    """`folder`: where the model's files are, None where this machine has none; `repository`: what
    the hub's cache has of it, None where a folder is served; `weights`: the files that vLLM would
    load, those included that are to be there and are not; `odd`: those of them that it cannot;
    `parts`, `parts_size`: files that were, or are, on their way, and their bytes; `size`: bytes of
    the `weights` that are here; `listed`: whether
    the folder, where there is one, says what it holds."""

    since: ClassVar[str] = "0.8.0"
    dispensable: ClassVar[bool] = True  # vLLM looks itself, and fetches
    name: str = ""
    folder: Path | None = None
    repository: Path | None = None
    revision: str = ""
    weights: tuple[str, ...] = ()
    odd: tuple[OddFile, ...] = ()
    parts: int = 0
    parts_size: int = 0
    size: int = 0
    listed: bool = True

    def of(self, *faults: FileFault) -> tuple[OddFile, ...]:
        return tuple(one for one in self.odd if one.fault in faults)


@probe
def model_files(
    target: Target, request: ServeRequest, arguments: ServerArguments, env: LaunchEnv
) -> ModelFiles:
    """By the order in which vLLM chooses (default_loader.py of 0.22.0 and 0.33.0): safetensors, of
    Mistral's own names first, as the index has them; else .bin, else .pt, which are not looked
    into."""
    said = arguments.values.get("load_format")
    if isinstance(said, str) and said not in _FORMATS:
        raise NotApplicable(Text("--load-format {format} is not judged", format=said))
    place = model_place(target, request, arguments, env)
    listed = target.listdir(place.folder) if place.folder else ()
    names = listed or ()
    weights = tuple(_weights(target, place.folder, names)) if place.folder else ()
    odd = (_odd(target, place.folder / name, names) for name in weights if place.folder)
    parts = tuple(_parts(target, place))
    return ModelFiles(
        place.name,
        place.folder,
        place.repository,
        place.revision,
        weights,
        tuple(one for one in odd if one is not None),
        len(parts),
        sum(parts),
        sum(_sizes(target, place.folder, weights)) if place.folder else 0,
        listed is not None,
    )


def _weights(target: Target, folder: Path, names: Collection[str]) -> Iterator[str]:
    """Those of the first kind of which there is one; with those that the index or the other names
    say there are."""
    own = [name for name in names if re.fullmatch(r"consolidated.*\.safetensors", name)]
    if own:
        yield from sorted(own)
        return
    indexed = shards_of_index(target, folder) if INDEX in names else frozenset()
    if indexed:
        yield from sorted(indexed)
        return
    for ending in (".safetensors", ".bin", ".pt"):
        found = {n for n in names if n.endswith(ending) and not n.startswith(_NOT_WEIGHTS)}
        if found:
            yield from sorted(found | set(_counted(found)))
            return


# What trainers leave behind (filter_files_not_needed_for_inference).
_NOT_WEIGHTS = ("training_args.", "optimizer.", "scheduler.", "scaler.", "trainer_state.")


def _counted(names: Collection[str]) -> Iterator[str]:
    """The files that NAME-00001-of-00048 says there are."""
    for found in {(m[1], m[3], m[4]) for name in names if (m := _OF.fullmatch(name))}:
        stem, last, ending = found
        if int(last) <= _SHARDS_MOST:
            width = len(last)
            yield from (f"{stem}-{n:0{width}}-of-{last}{ending}" for n in range(1, int(last) + 1))


def _odd(target: Target, path: Path, names: Collection[str]) -> OddFile | None:
    stat = target.stat(path)
    if stat is None and path.name not in names:
        return OddFile(path, "missing", Text("is not there"))
    if stat is None:
        return OddFile(path, "broken-link", Text("links to nothing"))
    if stat.kind != "file":
        return OddFile(path, "damaged", Text("is not a file"))
    if stat.size < _POINTER_MOST and (target.read(path, _POINTER_MOST) or b"").startswith(_POINTER):
        return OddFile(path, "pointer", Text("is a pointer of Git LFS, not the file itself"))
    if path.suffix != ".safetensors":
        return None
    header = target.tensors(path)
    if header is None:
        return OddFile(path, "unreadable", Text("cannot be read"))
    if header.damage is None:
        return None
    return OddFile(path, "cut" if header.damage == "cut" else "damaged", DAMAGED[header.damage])


def _sizes(target: Target, folder: Path, weights: Collection[str]) -> Iterator[int]:
    for name in weights:
        stat = target.stat(folder / name)
        yield stat.size if stat is not None and stat.kind == "file" else 0


def _parts(target: Target, place: ModelPlace) -> Iterator[int]:
    """Bytes of each file on its way into the hub's cache."""
    if place.repository is not None:
        blobs = place.repository / "blobs"
        for name in target.listdir(blobs) or ():
            stat = target.stat(blobs / name) if name.endswith(".incomplete") else None
            if stat is not None:
                yield stat.size
