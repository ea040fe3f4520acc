"""What is held against its hash: what cannot be read is not called wrong, and so is not removed."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from doctor.download.hub import HubOrigin
from doctor.download.origin import DownloadError, ListedFile, Listing
from doctor.download.verify import Proven, verify
from doctor.probes.environment import LaunchEnv
from doctor.target import Live

COMMIT = "0" * 40
DATA = b"x" * 3_000_000
GOOD = ListedFile("a/good", len(DATA), hashlib.sha256(DATA).hexdigest())
GIT = ListedFile("git", 2, blob="9e26dfeeb6e641a33dae4961196235bdb965b21b")  # of {}
Proves = Callable[..., tuple[Proven, ...]]


def _unheard(more: int) -> None:
    """What was read is nobody's business."""


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    folder = tmp_path / f"models--org--model/snapshots/{COMMIT}"
    (folder / "a").mkdir(parents=True)
    (folder / "a/good").write_bytes(DATA)
    (folder / "git").write_bytes(b"{}")
    return folder


@pytest.fixture
def proves(tmp_path: Path) -> Proves:
    env = LaunchEnv(vars={})
    origin = HubOrigin(Live({}), env, Path(sys.executable), "org/model", "main", tmp_path)
    listing = Listing("org/model", "main", COMMIT, ())

    def prove(*files: ListedFile, read: Callable[[int], None] = _unheard) -> tuple[Proven, ...]:
        return verify(origin, listing, files, read)

    return prove


def test_each_is_held_against_its_own_kind_of_hash(snapshot: Path, proves: Proves) -> None:
    read: list[int] = []
    made = proves(GOOD, GIT, read=read.append)
    assert [(one.state, one.present) for one in made] == [("ok", len(DATA)), ("ok", 2)]
    assert sum(read) == len(DATA) + 2


def test_whatever_is_not_the_file_is_told_apart(snapshot: Path, proves: Proves) -> None:
    os.mkfifo(snapshot / "fifo")
    (snapshot / "folder").mkdir()
    (snapshot / "circle").symlink_to("circle")
    (snapshot / "cut").write_bytes(DATA[:9])
    (snapshot / "long").write_bytes(DATA + b"x")
    (snapshot / "other").write_bytes(b"y" + DATA[1:])
    (snapshot / "broken").symlink_to("nowhere")
    names = ("fifo", "folder", "circle", "cut", "long", "other", "broken", "none")
    made = proves(*(ListedFile(name, GOOD.size, GOOD.sha256) for name in names))
    states = dict(zip(names, [one.state for one in made], strict=True))
    assert {name for name in names if states[name] == "wrong"} == {*names[:3], "long", "other"}
    assert (states["cut"], states["broken"], states["none"]) == ("partial", "missing", "missing")


def test_what_cannot_be_read_is_told_and_proves_nothing(snapshot: Path, proves: Proves) -> None:
    (snapshot / "dying").symlink_to("/proc/self/mem")  # EIO, whoever reads it
    with pytest.raises(DownloadError, match="dying cannot be read: ") as told:
        proves(GOOD, ListedFile("dying", 0, GOOD.sha256))
    assert told.value.exit_code == 1


def test_what_stops_the_reading_ends_it_at_once(snapshot: Path, proves: Proves) -> None:
    def read(more: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        proves(GOOD, read=read)
