"""The ELF reader against real files, and against files that are none."""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doctor import elf
from doctor.elf import Elf
from doctor.target import Live
from tests.conftest import not_for_ever, shared_library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_library(
        tmp_path_factory.mktemp("elf") / "libx.so.1",
        needed=("libcudart.so.13", "libcuda.so.1"),
        soname="libx.so.1",
        rpath="$ORIGIN/../lib:/opt/lib",
    )


def test_what_the_linker_wrote_is_read(library: Path) -> None:
    assert Live({}).elf(library) == Elf(
        bits=64,
        needed=("libcudart.so.13", "libcuda.so.1"),
        soname="libx.so.1",
        rpath="$ORIGIN/../lib:/opt/lib",
    )


def test_a_runpath_is_no_rpath(tmp_path: Path) -> None:
    """ld.so searches a DT_RPATH before LD_LIBRARY_PATH and a DT_RUNPATH after it."""
    made = Live({}).elf(shared_library(tmp_path / "lib.so", runpath="/opt/lib"))
    assert made == Elf(64, runpath="/opt/lib")


def test_a_library_that_needs_nothing_is_still_one(tmp_path: Path) -> None:
    assert Live({}).elf(shared_library(tmp_path / "lib.so")) == Elf(64)


def test_a_library_with_megabytes_of_names_is_read(tmp_path: Path) -> None:
    """libtorch_cuda.so has 4 MB of them, libtorch_cpu.so 5 MB."""
    names = (f"{'n' * 900}{i}" for i in range(1500))
    source = "".join(f"int {name};\n" for name in names)
    made = Live({}).elf(shared_library(tmp_path / "l.so", needed=("libz9.so.1",), source=source))
    assert made == Elf(64, needed=("libz9.so.1",))


def test_a_program_is_read_as_well() -> None:
    made = Live({}).elf(Path(sys.executable))
    assert made is not None
    assert "libc.so.6" in made.needed


def test_a_32_bit_file_says_so() -> None:
    """No segment at all, as in an object file."""
    header = b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 3, 3, 1, *[0] * 10)
    assert elf.parse(io.BytesIO(header.ljust(64, b"\0"))) == Elf(32)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "text", "empty", "loop"])
def test_what_is_no_elf_file_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind != "missing":
        path.write_bytes(b"INPUT ( -lcudart )" if kind == "text" else b"")
    with not_for_ever():
        assert Live({}).elf(path) is None


def test_a_file_cut_off_anywhere_is_read_or_none(library: Path) -> None:
    whole = library.read_bytes()
    for length in range(0, len(whole), 97):
        made = elf.parse(io.BytesIO(whole[:length]))
        assert made is None or made.bits == 64


@settings(deadline=None)
@given(st.binary(max_size=512))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    elf.parse(io.BytesIO(data))


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([1, 2]))
def test_no_bytes_behind_an_elf_header_make_it_raise(data: bytes, bits: int) -> None:
    elf.parse(io.BytesIO(b"\x7fELF" + bytes([bits, 1, 1]) + data))


@settings(deadline=None)
@given(st.data())
def test_no_damage_to_a_real_file_makes_it_raise(library: Path, data: st.DataObject) -> None:
    damaged = bytearray(library.read_bytes())
    size = len(damaged)
    for _ in range(data.draw(st.integers(1, 8))):
        # Headers, segments and the dynamic section hold the numbers that lead elsewhere.
        at = data.draw(st.one_of(st.integers(0, 600), st.integers(0, size - 1)))
        damaged[min(at, size - 1)] = data.draw(st.integers(0, 255))
    elf.parse(io.BytesIO(bytes(damaged)))


def test_a_header_that_lies_about_its_segments_is_no_whole_file(library: Path) -> None:
    for size, count in ((0, 0xFFFF), (0xFFFF, 0xFFFF), (1, 2)):
        damaged = bytearray(library.read_bytes())
        struct.pack_into("<HH", damaged, 54, size, count)
        assert elf.parse(io.BytesIO(bytes(damaged))) is None
