"""The room for a download, of real file systems that have none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from doctor.download.origin import DownloadError
from doctor.download.room import existing, must_have_room

_CHECK = """
import sys
from pathlib import Path
from doctor.download.origin import DownloadError
from doctor.download.room import must_have_room
try:
    must_have_room(Path(sys.argv[1]) / "not/there", int(sys.argv[2]), int(sys.argv[3]))
except DownloadError as error:
    print(error)
"""
_SHELL = ("unshare", "-m", "sh", "-ec")
_MOUNT = 'options=$1; shift; mount -t tmpfs -o "$options" none "$1"; shift; exec "$@"'


def said(folder: Path, options: str, needs: int, files: int) -> str:
    """What is said of the room in a file system of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounts a file system")
    tried = subprocess.run(
        [*_SHELL, _MOUNT, "sh", options, str(folder), "true"], capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip("may not mount such a file system")
    words = [sys.executable, "-c", _CHECK, str(folder), str(needs), str(files)]
    ran = subprocess.run(
        [*_SHELL, _MOUNT, "sh", options, str(folder), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout


def test_room_enough_is_no_matter(tmp_path: Path) -> None:
    assert said(tmp_path, "size=8m,nr_inodes=16", 4 << 20, 1) == ""


def test_a_disk_that_does_not_take_the_bytes_is_told_with_both(tmp_path: Path) -> None:
    told = said(tmp_path, "size=8m,nr_inodes=16", 9 << 20, 1)
    assert told.startswith(f"9.4 MB are missing, and {tmp_path} has 8.4 MB free")


def test_a_disk_without_inodes_is_told_though_it_takes_the_bytes(tmp_path: Path) -> None:
    told = said(tmp_path, "size=8m,nr_inodes=16", 1 << 20, 20)
    assert told.startswith(f"20 files are missing, and {tmp_path} has 15 inodes free")


def test_a_disk_for_reading_alone_is_told(tmp_path: Path) -> None:
    assert "read-only file system" in said(tmp_path, "ro", 1 << 20, 1)


def test_nothing_is_left_and_nothing_is_written_where_there_is_room(tmp_path: Path) -> None:
    must_have_room(tmp_path / "a/b", 16 << 20, 3)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DownloadError, match="are missing"):
        must_have_room(tmp_path, 1 << 60, 3)


def test_a_folder_that_will_be_made_lies_where_the_nearest_one_is(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert existing(tmp_path / "a/b/c") == tmp_path
    assert existing(tmp_path / "link/hub") == tmp_path
