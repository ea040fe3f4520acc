"""Swaps: what is changed by renames goes back from wherever it was cut off."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doctor.repair import swap
from doctor.repair.manifest import Swap
from doctor.repair.swap import SwapError

NAMES = st.sampled_from(["a", "b", "sub/a", "sub/b", "sub/deep/c", "x.py", "sub/x.py"])
TREE = st.dictionaries(NAMES, st.binary(max_size=3), max_size=6)


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    """Nothing here waits for a disk: hundreds of changes are made."""
    return in_memory


class Cut(BaseException):
    """Where the power went."""


def grow(root: Path, tree: dict[str, bytes]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, data in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def seen(root: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder, and every empty folder."""
    found: dict[str, bytes | str] = {}
    for at, folders, files in os.walk(root):
        for name in [*files, *folders]:
            path = Path(at) / name
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = f"-> {path.readlink()}"
            elif path.is_file():
                found[key] = path.read_bytes()
            elif not any(path.iterdir()):
                found[key] = "empty"
    return found


def planned(at: Path, before: dict[str, bytes], new: dict[str, bytes], gone: list[str]) -> Swap:
    grow(at / "root", before)
    grow(at / "new", new)
    return swap.plan(at / "root", at / "new", at / "aside", gone)


@given(TREE, TREE, st.lists(NAMES, max_size=3))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_forward_puts_the_new_in_and_the_old_out_and_back_undoes_it(
    tmp_path: Path, before: dict[str, bytes], new: dict[str, bytes], gone: list[str]
) -> None:
    at = Path(tempfile.mkdtemp(dir=tmp_path))
    made = planned(at, before, new, gone)
    was = seen(at / "root")
    swap.forward(made)
    kept = {n: d for n, d in before.items() if n not in gone and n not in new}
    assert seen(at / "root") == {**kept, **new}
    assert swap.back(made) == []
    assert seen(at / "root") == was
    assert swap.still_different(made) == []


def cut_at(number: int, monkeypatch: pytest.MonkeyPatch, after: bool) -> Callable[[], None]:
    """Lets the power go at the n-th change of the filesystem; returns what turns it on again."""
    count = 0
    real: dict[str, Callable[..., Any]] = {
        name: getattr(os, name) for name in ("replace", "unlink", "mkdir", "rmdir")
    }

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **words: Any) -> Any:
            nonlocal count
            count += 1
            if count == number and not after:
                raise Cut
            made = real[name](*args, **words)
            if count == number:
                raise Cut
            return made

        return call

    for name in real:
        monkeypatch.setattr(os, name, wrapped(name))

    return monkeypatch.undo


BEFORE = {"a": b"1", "sub/b": b"2", "sub/deep/c": b"3", "kept/d": b"4"}
NEW = {"a": b"11", "sub/e": b"5", "fresh/folder/f": b"6"}
GONE = ["sub/b", "sub/deep/c"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, 19))
def test_a_change_cut_off_anywhere_goes_back_whole(
    number: int, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(tmp_path, BEFORE, NEW, GONE)
    was = seen(tmp_path / "root")
    on_again = cut_at(number, monkeypatch, after)
    try:
        swap.forward(made)
    except Cut:
        pass
    finally:
        on_again()
    assert swap.back(made) == []
    assert seen(tmp_path / "root") == was


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, 41))
def test_going_back_may_be_cut_off_anywhere_too(
    number: int, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(tmp_path, BEFORE, NEW, GONE)
    was = seen(tmp_path / "root")
    swap.forward(made)
    on_again = cut_at(number, monkeypatch, after)
    try:
        swap.back(made)
    except Cut:
        pass
    finally:
        on_again()
    assert swap.back(made) == []
    assert seen(tmp_path / "root") == was


def test_the_cuts_above_reach_the_last_rename_of_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(tmp_path, BEFORE, NEW, GONE)
    on_again = cut_at(18, monkeypatch, after=False)
    swap.forward(made)
    on_again()
    on_again = cut_at(40, monkeypatch, after=False)
    swap.back(made)
    on_again()


def test_what_a_person_changed_since_is_left_and_named(tmp_path: Path) -> None:
    made = planned(tmp_path, BEFORE, NEW, GONE)
    swap.forward(made)
    (tmp_path / "root/a").write_bytes(b"mine")
    (tmp_path / "root/sub/b").write_bytes(b"mine too")
    assert [str(line) for line in swap.back(made)] == [
        f"{tmp_path}/root/{name} was modified since; left untouched" for name in ("a", "sub/b")
    ]
    assert (tmp_path / "root/a").read_bytes() == b"mine"
    assert (tmp_path / "root/sub/b").read_bytes() == b"mine too"
    assert (tmp_path / "aside/a").read_bytes() == b"1", "the old one is not lost"
    assert (tmp_path / "root/sub/deep/c").read_bytes() == b"3", "everything else is back"


def test_what_a_person_deleted_since_is_put_back(tmp_path: Path) -> None:
    made = planned(tmp_path, BEFORE, NEW, GONE)
    was = seen(tmp_path / "root")
    swap.forward(made)
    (tmp_path / "root/a").unlink()
    (tmp_path / "root/sub/e").unlink()
    assert swap.back(made) == []
    assert seen(tmp_path / "root") == was


def test_the_same_bytes_written_anew_are_no_change(tmp_path: Path) -> None:
    made = planned(tmp_path, BEFORE, NEW, GONE)
    swap.forward(made)
    (tmp_path / "root/a").unlink()
    (tmp_path / "root/a").write_bytes(b"11")
    assert swap.back(made) == []
    assert (tmp_path / "root/a").read_bytes() == b"1"


def test_the_very_file_comes_back_also_where_the_new_one_had_the_same_bytes(tmp_path: Path) -> None:
    """Bytecode knows its module by the time of its last change."""
    made = planned(tmp_path, {"a": b"same"}, {"a": b"same"}, [])
    inode = (tmp_path / "root/a").stat().st_ino
    swap.forward(made)
    assert (tmp_path / "root/a").stat().st_ino != inode
    assert swap.back(made) == []
    assert (tmp_path / "root/a").stat().st_ino == inode


def test_bytecode_goes_with_its_module_and_the_old_bytecode_comes_back(tmp_path: Path) -> None:
    before = {"m.py": b"1", "__pycache__/m.cpython-312.pyc": b"old", "__pycache__/n.pyc": b"n"}
    grow(tmp_path / "root", before)
    grow(tmp_path / "new", {"m.py": b"2", "pkg/__init__.py": b""})
    gone = ["m.py", *swap.bytecode_of(tmp_path / "root", ["m.py"])]
    made = swap.plan(tmp_path / "root", tmp_path / "new", tmp_path / "aside", gone)
    was = seen(tmp_path / "root")
    swap.forward(made)
    assert "__pycache__/m.cpython-312.pyc" not in seen(tmp_path / "root")
    later = {"__pycache__/m.cpython-312.pyc": b"new", "pkg/__pycache__/__init__.cpython.pyc": b""}
    grow(tmp_path / "root", later)
    assert swap.back(made) == []
    assert seen(tmp_path / "root") == was


def test_links_are_moved_as_links(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"not ours")
    grow(tmp_path / "root", {})
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    grow(tmp_path / "new", {})
    (tmp_path / "new/link").symlink_to("elsewhere")
    made = swap.plan(tmp_path / "root", tmp_path / "new", tmp_path / "aside", [])
    swap.forward(made)
    assert (tmp_path / "root/link").readlink() == Path("elsewhere")
    swap.back(made)
    assert (tmp_path / "root/link").readlink() == tmp_path / "outside"
    assert (tmp_path / "outside").read_bytes() == b"not ours"


@pytest.mark.parametrize("path", ["../outside", "sub/../../outside", "/etc/passwd", "out/outside"])
def test_a_path_that_leads_out_of_the_root_is_refused(tmp_path: Path, path: str) -> None:
    """A RECORD may list anything; `out` is a link."""
    grow(tmp_path, {"outside": b"", "elsewhere/outside": b""})
    grow(tmp_path / "root", {})
    grow(tmp_path / "new", {})
    (tmp_path / "root/out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SwapError, match="leads out of"):
        swap.plan(tmp_path / "root", tmp_path / "new", tmp_path / "aside", [path])


def test_staged_files_are_not_put_through_a_link_out_of_the_root(tmp_path: Path) -> None:
    grow(tmp_path / "elsewhere", {})
    grow(tmp_path / "root", {})
    (tmp_path / "root/nvidia").symlink_to(tmp_path / "elsewhere")
    grow(tmp_path / "new", {"nvidia/file": b""})
    with pytest.raises(SwapError, match="leads out of"):
        swap.plan(tmp_path / "root", tmp_path / "new", tmp_path / "aside", [])


OURS = "share/vllm-doctor"


@pytest.mark.parametrize(
    "path",
    ["", "/lock", "/proofs.json", "/runs/20260101-000000/journal.json", "/cuda-x/a", "/new"],
)
@pytest.mark.parametrize("way", ["staged", "taken out", "staged through a link"])
def test_no_change_reaches_into_the_doctors_own_folder(tmp_path: Path, path: str, way: str) -> None:
    """The data files of a wheel may be called anything, and a RECORD may list anything."""
    root = grow(tmp_path / "root", {f"{OURS}/kept": b"1"})
    (root / "way").symlink_to("share")
    name = f"{OURS}{path}" if way != "staged through a link" else f"way/vllm-doctor{path}"
    new = grow(tmp_path / "new", {name: b"2"} if way != "taken out" else {})
    gone = [name] if way == "taken out" else []
    with pytest.raises(SwapError, match="is the doctor's own"):
        swap.plan(root, new, tmp_path / "aside", gone)


@pytest.mark.parametrize("path", ["/environment.json", "/cuda-13.0/bin"])
def test_what_fixes_keep_there_is_changed_like_anything(tmp_path: Path, path: str) -> None:
    grow(tmp_path / "root", {})
    grow(tmp_path / "new", {f"{OURS}{path}": b"1"})
    made = swap.plan(tmp_path / "root", tmp_path / "new", tmp_path / "aside", [])
    swap.forward(made)
    assert seen(tmp_path / "root") == {f"{OURS}{path}": b"1"}


@pytest.mark.parametrize("when", ["forward", "back"])
def test_a_folder_that_has_become_a_link_is_not_followed(tmp_path: Path, when: str) -> None:
    """Between the look and the deed: everything on the way is opened, never resolved."""
    made = planned(tmp_path, BEFORE, NEW, GONE)
    if when == "back":
        swap.forward(made)
    (tmp_path / "root/sub").rename(tmp_path / "elsewhere")
    (tmp_path / "root/sub").symlink_to(tmp_path / "elsewhere")
    was = seen(tmp_path / "elsewhere")
    if when == "forward":
        with pytest.raises(NotADirectoryError):
            swap.forward(made)
    left = swap.back(made)
    assert seen(tmp_path / "elsewhere") == was
    assert (tmp_path / "root/sub").is_symlink()
    assert all(str(line).endswith("was modified since; left untouched") for line in left)


def test_a_pipe_in_the_way_is_refused(tmp_path: Path) -> None:
    grow(tmp_path / "root", {})
    grow(tmp_path / "new", {"a": b""})
    os.mkfifo(tmp_path / "root/a")
    with pytest.raises(SwapError, match="neither a file nor a link"):
        swap.plan(tmp_path / "root", tmp_path / "new", tmp_path / "aside", [])


@pytest.fixture
def across_filesystems(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A rename between two folders fails as between two filesystems; within one it works."""
    real = os.replace

    def replace(source: str, place: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if not os.path.samestat(os.fstat(src_dir_fd), os.fstat(dst_dir_fd)):
            raise OSError(errno.EXDEV, "Invalid cross-device link", source)
        real(source, place, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "replace", replace)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("across_filesystems")
def test_across_filesystems_it_copies(tmp_path: Path) -> None:
    made = planned(tmp_path, BEFORE, NEW, GONE)
    was = seen(tmp_path / "root")
    swap.forward(made)
    assert (tmp_path / "root/a").read_bytes() == b"11"
    assert swap.back(made) == []
    assert seen(tmp_path / "root") == was


@pytest.mark.usefixtures("across_filesystems")
@pytest.mark.parametrize("number", range(1, 12))
def test_a_copy_cut_off_goes_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    made = planned(tmp_path, BEFORE, NEW, GONE)
    was = seen(tmp_path / "root")
    count = 0
    real = os.unlink

    def unlink(*args: Any, **words: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Cut
        real(*args, **words)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", unlink)
        with contextlib.suppress(Cut):
            swap.forward(made)
    assert swap.back(made) == []
    assert seen(tmp_path / "root") == was
