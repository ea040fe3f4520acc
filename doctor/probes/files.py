"""The files of the model that is to be served, as they lie on this machine."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from doctor.codec import CodecError
from doctor.consumers.checkpoint import DAMAGED, INDEX, MISTRALS_INDEX, named_by_index
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
_IS_POINTER = Text("is a pointer of Git LFS, not the file itself")
_OF = re.compile(r"(.*)-(?a:(\d{5,6})-of-(\d{5,6}))(\.safetensors|\.bin)")
_SHARDS_MOST = 10_000
_AUTO = ("", "auto")
_FORMATS = ("hf", "mistral", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer")
# What trainers leave behind (filter_files_not_needed_for_inference).
_NOT_WEIGHTS = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
)


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
    """Nothing is said of formats other than safetensors and PyTorch's own, which are not read."""
    said = arguments.values.get("load_format") or ""
    if isinstance(said, str) and said not in (*_AUTO, *_FORMATS):
        raise NotApplicable(Text("--load-format {format} is not judged", format=said))
    place = model_place(target, request, arguments, env)
    listed = target.listdir(place.folder) if place.folder else ()
    names = frozenset(listed or ())
    weights, odd = _judged(target, place.folder, names, str(said)) if place.folder else ((), ())
    parts = tuple(_parts(target, place))
    return ModelFiles(
        place.name,
        place.folder,
        place.repository,
        place.revision,
        weights,
        odd,
        len(parts),
        sum(parts),
        sum(_sizes(target, place.folder, weights)) if place.folder else 0,
        listed is not None,
    )


def _judged(
    target: Target, folder: Path, names: frozenset[str], form: str
) -> tuple[tuple[str, ...], tuple[OddFile, ...]]:
    """The files that vLLM chooses, and the odd ones of them (default_loader.py of 0.22.0 and
    0.33.0): those of the first kind of which there is one, safetensors as their index has them. An
    index that it would stop at is one of them."""
    index, found = _first_kind(names, form)
    weights, odd = found | set(_counted(found)), []
    if index in names:
        try:
            weights = named_by_index(target, folder / index) or weights
        except CodecError as error:
            odd.append(_odd_index(target, folder / index, error.why))
    looked = (_odd(target, folder / name, names) for name in sorted(weights))
    odd += [one for one in looked if one is not None]
    return tuple(sorted({*weights, *(one.path.name for one in odd)})), tuple(odd)


def _first_kind(names: Collection[str], form: str) -> tuple[str, frozenset[str]]:
    """Its files, and the name of the index that is asked about them, "" where none is."""
    seen = [name for name in names if not name.startswith(".")]  # as glob does: ._* of a Mac
    own = frozenset(name for name in seen if re.fullmatch(r"consolidated.*\.safetensors", name))
    if form == "mistral" or (own and form in _AUTO):
        return MISTRALS_INDEX, own
    endings = (".safetensors", ".bin", ".pt") if form in (*_AUTO, "hf") else (".safetensors",)
    for ending in endings:
        found = frozenset(name for name in seen if name.endswith(ending))
        if found and ending != ".safetensors":
            return "", frozenset(name for name in found if not name.endswith(_NOT_WEIGHTS))
        if found:
            return INDEX, found
    return INDEX, frozenset()


def _odd_index(target: Target, path: Path, why: Text) -> OddFile:
    data = target.read(path, _POINTER_MOST)
    if data is None:
        return OddFile(path, "unreadable", why)
    if data.startswith(_POINTER):
        return OddFile(path, "pointer", _IS_POINTER)
    return OddFile(path, "damaged", why)


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
        return OddFile(path, "pointer", _IS_POINTER)
    if path.suffix != ".safetensors":
        return None
    header = target.tensors(path)
    if header is None:
        return OddFile(path, "unreadable", Text("cannot be read"))
    # Rows that the doctor does not know, such as a new dtype: a newer safetensors may load them.
    if header.damage in (None, "tensors"):
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
