"""GPUs by name, and sizes as people write them."""

from __future__ import annotations

from collections import Counter

import pytest

from doctor.errors import UsageError
from doctor.fit.amounts import bytes_of
from doctor.fit.gpus import KnownGpu, gpu_named, known_gpus
from doctor.fit.sizes import GIB

ROWS = known_gpus()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_found_by_each_of_its_names_and_says_its_source(row: KnownGpu) -> None:
    for name in (row.name, *row.keys, row.keys[0].upper(), row.keys[0].replace("-", " ")):
        assert gpu_named(name) == row
    assert len(row.source) > 8
    assert row.memory.name == row.name
    assert row.memory.capability is not None
    assert 70 <= row.memory.capability <= 121


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_total_is_below_what_is_on_the_box(row: KnownGpu) -> None:
    assert 0.9 * row.box <= row.memory.total / GIB < row.box


def test_no_name_is_two_gpus() -> None:
    keys = Counter(key for row in ROWS for key in row.keys)
    assert not [key for key, times in keys.items() if times > 1]


def test_the_shared_memory_of_a_spark_is_known_as_such() -> None:
    assert gpu_named("gb10").memory.unified
    assert [row.name for row in ROWS if row.memory.unified] == ["NVIDIA GB10"]


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("h100-80gb", 79.18),
        ("H100", 79.18),
        ("NVIDIA H100 80GB HBM3", 79.18),
        ("RTX 4090 24GB", 23.52),
        ("geforce-rtx-3060", 11.62),
        ("nvidia a100-sxm4-80gb", 79.14),
        ("Tesla T4", 14.56),
    ],
)
def test_a_name_is_taken_as_people_write_it(name: str, gib: float) -> None:
    assert gpu_named(name).memory.total == round(gib * GIB)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("a100", "a100-80gb, a100-40gb"),
        ("v100", "v100-16gb, v100-32gb"),
        ("5060ti", "5060-ti-8gb, 5060-ti-16gb"),
        ("h1000", "h100"),
        ("rtx 4090 laptop", "rtx-4090"),
    ],
)
def test_a_name_that_nobody_knows_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError) as said:
        gpu_named(name)
    assert f"--gpu {name}: unknown GPU; did you mean {near}" in str(said.value)


@pytest.mark.parametrize("name", ["", "-", "banana", "x" * 100_000, "\x1b[31m", "４０９０"])
def test_nonsense_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UsageError) as said:
        gpu_named(name)
    assert "\n" not in str(said.value)
    assert "--gpu-memory" in str(said.value)
    assert len(str(said.value)) < 300


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("79.18GiB", round(79.18 * GIB)),
        ("79.18 gib", round(79.18 * GIB)),
        ("80GB", 80 * 10**9),
        ("512MiB", 512 << 20),
        ("85899345920", 85899345920),
        ("85899345920 bytes", 85899345920),
        ("0GiB", 0),
        ("-0.5GiB", -GIB // 2),
        ("1TiB", 1 << 40),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "GiB", "abc", "80G", "8 0GiB", "1e9", "nan", "inf", "0x10", "1.5", "--1GiB"),
        *("1,5GiB", "99999999999GiB", "9" * 5000, "1" * 17 + "B", "８０GiB", "80GiB;", "+1GiB"),
    ],
)
def test_nonsense_is_no_size(text: str) -> None:
    with pytest.raises(UsageError) as said:
        bytes_of(text)
    assert len(str(said.value)) < 200
