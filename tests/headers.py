"""Checkpoints that are nothing but headers: true ones, before data that take no room on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from doctor.consumers.model_config import ConfigJson
from doctor.fit.checkpoints import Loading, checkpoint_of
from doctor.fit.verdict import Tensor
from doctor.safetensors import bits_of


def header_of(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """What a file with these tensors says before its data."""
    said: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * (bits_of(tensor.dtype) or 0) // 8
        row = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        said[tensor.name] = row
    return said


def write_file(path: Path, header: Any, size: int | None = None) -> None:
    """A file with this header (bytes as they are) and room for its data; `size`: of that room."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    if size is None:
        ends = (row["data_offsets"][1] for row in header.values() if "data_offsets" in row)
        size = max(ends, default=0)
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + size)


def write_checkpoint(folder: Path, tensors: Sequence[Tensor], shards: int = 1) -> None:
    """The *.safetensors files of a model, with the names that transformers gives them."""
    if shards == 1:
        write_file(folder / "model.safetensors", header_of(tensors))
        return
    each = -(-len(tensors) // shards)
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        write_file(folder / name, header_of(tensors[number * each : (number + 1) * each]))


def published(config: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of a checkpoint of this config.json as its maker publishes it: in bfloat16, each
    expert by itself, nothing merged."""
    made: list[Tensor] = []
    for tensor in checkpoint_of(ConfigJson(config), Loading(2)):
        made += _apart(tensor)
    return made


def _apart(tensor: Tensor) -> Iterable[Tensor]:
    if ".experts." not in tensor.name or len(tensor.shape) != 3:
        return (tensor,)
    before, after = tensor.name.split(".experts.")
    experts, rows, columns = tensor.shape
    names = [after]
    if after.startswith("gate_up_proj"):
        rows //= 2
        names = [after.replace("gate_up", half) for half in ("gate", "up")]
    return [
        Tensor(f"{before}.experts.{number}.{name}", tensor.dtype, (rows, columns))
        for number in range(experts)
        for name in names
    ]
