"""The headers of a checkpoint's files: what they say, and what is not believed of them."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from doctor.codec import CodecError, decode, encode
from doctor.consumers.checkpoint import headers_in
from doctor.fit.headers import tensors_of
from doctor.fit.sizes import NotKnown
from doctor.fit.verdict import Tensor
from doctor.model import Missing
from doctor.probes.checkpoint import CheckpointHeaders
from doctor.safetensors import Header, TensorRow
from doctor.tape import Recorder, Tape, load_tape
from doctor.target import Live
from tests.conftest import Environment, facts_of
from tests.headers import header_of, published, write_checkpoint, write_file
from tests.real_stack.verdicts import values_of

ROW = {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16]}
LATER = ("gpus=later", "archs=9.0")


def damage(path: Path) -> str | None:
    header = Live().tensors(path)
    assert header is not None
    assert (header.damage is None) == bool(header.rows)
    return header.damage


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = [
        Tensor("model.norm.weight", "F32", (8,)),
        Tensor("model.scale", "F32", ()),
        Tensor("model.layers.0.mlp.up_proj.weight", "F8_E4M3", (16, 8)),
    ]
    write_checkpoint(tmp_path, tensors)
    assert tensors_of(headers_in(Live(), tmp_path)) == tuple(tensors)


def test_a_whole_model_is_a_few_rows(tmp_path: Path) -> None:
    """The 9,445 tensors of GLM-4.7-Flash in 48 files, as a snapshot holds them."""
    tensors = published(values_of("zai-org/GLM-4.7-Flash"))
    random.Random(0).shuffle(tensors[:4000])  # noqa: S311 - no secret
    write_checkpoint(tmp_path, tensors, 48)
    rows = headers_in(Live(), tmp_path)
    assert len(json.dumps(encode(rows))) < 100_000
    made = tensors_of(rows)
    assert sum(t.shape[0] if ".experts." in t.name else 1 for t in made) == len(tensors)
    assert len(made) < 2000


def test_experts_stand_together(tmp_path: Path) -> None:
    names = [f"layers.{n}.experts.{e}.up_proj.weight" for n in range(3) for e in range(5)]
    write_checkpoint(tmp_path, [Tensor(name, "BF16", (4, 2)) for name in names])
    rows = headers_in(Live(), tmp_path)
    assert rows == (TensorRow("layers.0-2.experts.0-4.up_proj.weight", "BF16", (4, 2)),)
    assert tensors_of(rows) == tuple(
        Tensor(f"layers.{n}.experts.up_proj.weight", "BF16", (5, 4, 2)) for n in range(3)
    )


@pytest.mark.parametrize(
    ("header", "size", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1", 0, "not-json"),
        (b"[]", 0, "not-json"),
        (b"[" * 5000 + b"]" * 5000, 0, "not-json"),
        ({"a": 1}, 0, "tensors"),
        ({"a": {**ROW, "shape": ["2", "4"]}}, 16, "tensors"),
        ({"a": {**ROW, "shape": [-2, -4]}}, 16, "tensors"),
        ({"a": {**ROW, "shape": [True, 8]}}, 16, "tensors"),
        ({"a": {**ROW, "shape": [1] * 99}}, 16, "tensors"),
        ({"a": {**ROW, "shape": [1 << 60, 4]}}, 16, "tensors"),
        ({"a": {**ROW, "dtype": "INT4"}}, 16, "tensors"),
        ({"a": {**ROW, "data_offsets": [0, 16, 32]}}, 16, "tensors"),
        ({"a": {**ROW, "data_offsets": ["0", "16"]}}, 16, "tensors"),
        ({"a.0-9.b": ROW}, 16, "tensors"),
        ({"a" * 9999: ROW}, 16, "tensors"),
        ({"a": {**ROW, "shape": [4, 4]}}, 16, "offsets"),
        ({"a": ROW, "b": {**ROW, "data_offsets": [8, 24]}}, 24, "offsets"),
        ({"a": ROW, "b": {**ROW, "data_offsets": [32, 48]}}, 48, "offsets"),
        ({"a": {**ROW, "data_offsets": [16, 0]}}, 16, "offsets"),
        ({"a": ROW}, 99, "offsets"),
        ({"a": ROW}, 15, "cut"),
    ],
)
def test_what_is_no_header_is_not_believed(
    tmp_path: Path, header: Any, size: int, said: str
) -> None:
    write_file(tmp_path / "model.safetensors", header, size)
    assert damage(tmp_path / "model.safetensors") == said
    with pytest.raises(CodecError) as raised:
        headers_in(Live(), tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("length", [0, 1, 2 << 30, (1 << 64) - 1])
def test_a_header_of_any_length_is_not_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(3 << 30)
    assert damage(path) == "length"


def test_a_million_tensors_are_too_many(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    row = b'"%06d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    rows = b",".join(row % number for number in range(400_000))
    began = time.process_time()
    write_file(path, b"{" + rows + b"}", 0)
    assert damage(path) == "not-json"
    assert time.process_time() - began < 5


def test_names_that_are_made_to_take_long_do_not(tmp_path: Path) -> None:
    """Experts of which every second one is there, and names of numbers."""
    rows = [TensorRow(f"layers.0.experts.{2 * n}.up_proj", "U8", (0,)) for n in range(100_000)]
    began = time.process_time()
    assert len(tensors_of(rows)) == len(rows)
    nothing = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    numbers = {f"{n}{'.1' * 200}": nothing for n in range(20_000)}
    write_file(tmp_path / "model.safetensors", numbers)
    assert damage(tmp_path / "model.safetensors") == "tensors"
    assert time.process_time() - began < 10


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CodecError, match="cannot be read"):
        headers_in(Live(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CodecError, match="cannot be read"):
        headers_in(Live(), tmp_path)


def test_links_of_the_cache_are_followed(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    write_file(blob, header_of([Tensor("a", "U8", (3,))]))
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert headers_in(Live(), tmp_path) == (TensorRow("a", "U8", (3,)),)


def test_a_model_with_files_on_their_way_says_nothing(tmp_path: Path) -> None:
    tensors = [Tensor(f"layers.{n}.up_proj.weight", "BF16", (4, 2)) for n in range(6)]
    write_checkpoint(tmp_path, tensors, 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CodecError, match="not all"):
        headers_in(Live(), tmp_path)


def test_two_tensors_of_one_name_are_not_added_up() -> None:
    row = TensorRow("layers.0-3.up_proj.weight", "BF16", (4, 2))
    with pytest.raises(NotKnown, match="twice"):
        tensors_of((row, TensorRow("layers.3.up_proj.weight", "F16", (4, 2))))
    experts = "layers.0.experts.{}.up_proj.weight"
    with pytest.raises(NotKnown, match="twice"):
        tensors_of(TensorRow(experts.format(n), "BF16", (4, 2)) for n in ("0-4", "4-5"))


@pytest.mark.parametrize(
    "row",
    [
        TensorRow("layers.0-999999.experts.0-9.up_proj.weight", "BF16", (4, 2)),
        TensorRow(".".join(["0-999999"] * 50), "BF16", (4, 2)),
        TensorRow("a", "BF16", (-4, 2)),
        TensorRow("a", "BF16", (1 << 60,)),
    ],
)
def test_a_snapshot_that_was_changed_is_not_believed(row: TensorRow) -> None:
    with pytest.raises(NotKnown):
        tensors_of((row,))


def test_a_snapshot_holds_the_headers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [Tensor(f"layers.{n}.w", "BF16", (4, 2)) for n in range(6)], 2)
    recorder = Recorder(Live({}))
    read = headers_in(recorder, tmp_path)
    said = json.loads(json.dumps(recorder.recording("vllm-doctor 0.7.0", "/python", "option")))
    assert headers_in(Tape(load_tape(said)), tmp_path) == read
    assert decode(Header, encode(Header(read))) == Header(read)


def test_the_headers_of_the_served_model_are_a_fact(server: Environment, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_checkpoint(folder, [Tensor("a", "U8", (3,))])
    sets = (*LATER, f"model={folder}")
    facts = facts_of(server, sets=sets)
    assert facts.get(CheckpointHeaders).rows == (TensorRow("a", "U8", (3,)),)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Missing, match="no safetensors files"):
        facts_of(server, sets=sets).get(CheckpointHeaders)
