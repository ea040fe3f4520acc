"""Runs that vllm-doctor 0.1.0 wrote (fixtures/runs/make.py): still undone, listed and purged, and
obeyed no further than a stranger's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import run_inside
from tests.stand_ins.killer import Entry, tree

ARCHIVES = Path(__file__).parent.parent / "fixtures/runs"
CUT = sorted(
    p.name.partition(".")[0]
    for p in ARCHIVES.glob("*.tar.gz")
    if p.name.partition(".")[0] not in ("before", "finished", "kept")
)
NUMPY = "lib/python3.11/site-packages/numpy/__init__.py"


def unpacked(name: str, at: Path) -> Path:
    """The environment of an archive, with the permissions that it had."""
    at.mkdir(exist_ok=True)
    subprocess.run(["tar", "xpzf", ARCHIVES / f"{name}.tar.gz", "-C", at], check=True)
    return at / "env"


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


@pytest.fixture
def before(tmp_path: Path) -> dict[str, Entry]:
    return tree(unpacked("before", tmp_path / "before"))


def run_of(prefix: Path) -> str:
    (folder,) = (prefix / "share/vllm-doctor/runs").iterdir()
    return folder.name


def test_there_is_one_cut_off_in_each_phase() -> None:
    assert len(CUT) == 9
    assert sum(p.stat().st_size for p in ARCHIVES.glob("*")) < 200_000


@pytest.mark.parametrize("name", ["finished", *CUT])
def test_it_is_undone(name: str, tmp_path: Path, before: dict[str, Entry]) -> None:
    prefix = unpacked(name, tmp_path)
    said = run_inside("undo", "--python", prefix)
    assert (said.code, said.err) == (0, "")
    assert tree(prefix) == before


def test_what_a_person_changed_meanwhile_stays_kept(tmp_path: Path) -> None:
    prefix = unpacked("kept", tmp_path)
    said = run_inside("undo", "--python", prefix)
    assert said.code == 1
    assert f"{NUMPY} was modified since" in said.err
    assert (prefix / NUMPY).read_text() == "mine = True\n"
    (prefix / NUMPY).unlink()
    assert run_inside("undo", "--python", prefix).code == 0
    assert (prefix / NUMPY).read_text() == "version = 1\n"


@pytest.mark.parametrize("name", ["finished", "kept", *CUT])
def test_it_is_listed(name: str, tmp_path: Path) -> None:
    prefix = unpacked(name, tmp_path)
    was = tree(prefix)
    said = run_inside("undo", "--list", "--python", prefix)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(run_of(prefix))
    assert "damaged" not in said.out
    assert tree(prefix) == was


@pytest.mark.parametrize("name", ["finished", "kept"])
def test_a_finished_one_is_purged(name: str, tmp_path: Path) -> None:
    prefix = unpacked(name, tmp_path)
    was = tree(prefix)
    said = run_inside("undo", "--purge", "--python", prefix)
    assert (said.code, said.err) == (0, "")
    now = tree(prefix)
    assert not [path for path in now if "/runs/" in path]
    assert [path for path in was if path not in now and "share" not in path] == []


def test_one_that_was_cut_off_is_not_purged(tmp_path: Path, before: dict[str, Entry]) -> None:
    prefix = unpacked("half-placed", tmp_path)
    assert run_inside("undo", "--purge", "--python", prefix).code == 0
    assert run_inside("undo", "--python", prefix).code == 0
    assert tree(prefix) == before


@pytest.mark.parametrize("key", ["root", "path"])
def test_it_is_not_obeyed_outside_of_the_environment(key: str, tmp_path: Path) -> None:
    prefix = unpacked("finished", tmp_path)
    (tmp_path / "precious").write_text("mine")
    file = prefix / f"share/vllm-doctor/runs/{run_of(prefix)}/1/manifest.json"
    data = json.loads(file.read_text())
    if key == "root":
        data["root"] = str(tmp_path)
    else:
        data["items"].append(["../precious", None, data["items"][0][2] or data["items"][1][2]])
    file.write_text(json.dumps(data))
    was = tree(tmp_path)
    said = run_inside("undo", "--python", prefix)
    assert said.code == 4
    assert str(file) in said.err
    assert tree(tmp_path) == was
