"""What a model's folder says of it: the files that vLLM reads there before any weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from doctor.codec import CodecError, parse_json
from doctor.model import Text
from doctor.safetensors import Damage, TensorRow
from doctor.target import Target

CONFIG = "config.json"
_QUANTIZATION = "hf_quant_config.json"
INDEX = "model.safetensors.index.json"
MISTRALS_INDEX = "consolidated.safetensors.index.json"
_MOST = 8 << 20  # bytes; that of nvidia/MiniMax-M3-NVFP4, which lists every layer, has 5.6 million
_MOST_LISTS = 1 << 18
_INDEX_MOST = 64 << 20  # bytes; that of DeepSeek-V3, of 91,991 tensors, has 8.9 million
_PLAIN = r"(?a:\w[\w.-]{0,254})"
_TOTAL = rb'"total_size":\s*(\d{1,18})\b'
_SHARD = r"(.*)-(\d{1,6})-of-(\d{1,6})\.safetensors"
DAMAGED: dict[Damage, Text] = {
    "length": Text("is not a safetensors file: its header would be longer than it can be"),
    "not-json": Text("has a header that is not JSON"),
    "tensors": Text("has a header with rows that are not tensors, or too many"),
    "offsets": Text("has a header whose offsets do not fit its tensors"),
    "cut": Text("ends before its last tensor: it is not downloaded to its end"),
}


class DamagedHeader(CodecError):
    """A file of weights that no server could load, whatever else is downloaded."""


def configuration_in(target: Target, folder: Path) -> dict[str, Any]:
    """The values of its config.json. What ModelOpt wrote into hf_quant_config.json before 0.31 is
    its `quantization_config` (get_config of vLLM). Raises CodecError with one sentence."""
    values = _table(target, folder / CONFIG)
    apart = folder / _QUANTIZATION
    if values.get("quantization_config") is None and _is_file(target, apart):
        return {**values, "quantization_config": _table(target, apart)}
    return values


def _table(target: Target, path: Path) -> dict[str, Any]:
    try:
        return json_table(_text(target, path))
    except CodecError as error:
        raise CodecError("", Text("{path} {why}", path=path, why=error.why)) from None


def json_table(data: bytes | str) -> dict[str, Any]:
    """The JSON object. Raises CodecError."""
    values = parse_json(data, _MOST_LISTS)
    if not isinstance(values, dict):
        raise CodecError("", Text("is not a JSON object"))
    return values


def _text(target: Target, path: Path) -> bytes:
    stat = target.stat(path)
    if stat is None and _is_file(target, path.with_name("params.json")):
        raise CodecError("", Text("is not there; params.json, of Mistral's format, is not read"))
    if stat is None or stat.kind != "file":
        raise CodecError("", Text("is not there") if stat is None else Text("is not a file"))
    if stat.size > _MOST:
        raise CodecError("", Text("is larger than {most} MiB", most=_MOST >> 20))
    data = target.read(path, _MOST)
    if data is None:
        raise CodecError("", Text("cannot be read"))
    return data


def _is_file(target: Target, path: Path) -> bool:
    stat = target.stat(path)
    return stat is not None and stat.kind == "file"


def bytes_in(target: Target, folder: Path) -> int | None:
    """The size of its weights in safetensors: what their index adds up, also where they are still
    on their way, else that of the files; None where that is not all of them."""
    names = target.listdir(folder) or ()
    if INDEX in names:
        # The total stands at the beginning; the names of the tensors take megabytes.
        found = re.search(_TOTAL, target.read(folder / INDEX, 4096) or b"")
        if found:
            return int(found[1])
    stats = [target.stat(folder / name) for name in _shards(names)]
    sizes = [stat.size for stat in stats if stat is not None]
    return sum(sizes) if sizes and len(sizes) == len(stats) else None


def shards_of_index(target: Target, folder: Path) -> frozenset[str]:
    """The files that the index of its safetensors names; none where it has none that can be
    read."""
    try:
        return named_by_index(target, folder / INDEX)
    except CodecError:
        return frozenset()


def named_by_index(target: Target, path: Path) -> frozenset[str]:
    """The files of its own folder that an index names: no more than names, since a folder may come
    from anywhere. None where there is no such index, as where it is larger than any is. Raises
    CodecError with one sentence where no server could read it."""
    data = target.read(path, _INDEX_MOST)
    if data is None and _is_file(target, path):
        raise CodecError("", Text("cannot be read"))
    if data is None or len(data) == _INDEX_MOST:
        return frozenset()
    places = json_table(data).get("weight_map")
    if not isinstance(places, dict):
        raise CodecError("", Text("has no weight_map"))
    names = set(map(str, places.values()))
    return frozenset(name for name in names if re.fullmatch(_PLAIN, name))


def headers_in(target: Target, folder: Path) -> tuple[TensorRow, ...]:
    """What the headers of its *.safetensors files say, of all of them. Raises CodecError with one
    sentence where one cannot be read, or not all are there."""
    shards = _shards(target.listdir(folder) or ())
    if not shards:
        why = Text("{folder} has no safetensors files, or not all of a model's", folder=folder)
        raise CodecError("", why)
    rows: list[TensorRow] = []
    for shard in shards:
        header = target.tensors(folder / shard)
        if header is None:
            raise CodecError("", Text("{path} cannot be read", path=folder / shard))
        if header.damage is not None:
            why = Text("{path} {why}", path=folder / shard, why=DAMAGED[header.damage])
            raise (CodecError if header.damage == "cut" else DamagedHeader)("", why)
        rows += header.rows
    return tuple(rows)


def _shards(names: tuple[str, ...]) -> list[str]:
    """The files of the weights; [] where some are not there."""
    if "model.safetensors" in names:
        return ["model.safetensors"]
    found = [shard for name in names if (shard := re.fullmatch(_SHARD, name))]
    kinds = {(shard[1], shard[3]) for shard in found}
    complete = len(kinds) == 1 and len(found) == int(found[0][3])
    return [shard[0] for shard in found] if complete else []
