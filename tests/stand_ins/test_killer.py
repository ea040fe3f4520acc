"""The doctor is killed exactly where it is said, and folders are compared in all that counts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest

from tests.conftest import Environment
from tests.stand_ins.fixtures import FOR_H100, Bench
from tests.stand_ins.index import Index
from tests.stand_ins.killer import run_killed, tree


@pytest.mark.parametrize("when", ["before", "after"])
def test_it_dies_at_the_very_call(
    when: Literal["before", "after"], broken: Environment, index: Index, bench: Bench
) -> None:
    killed = run_killed(
        *("fix", "--apply", "--python", broken.prefix, *FOR_H100),
        at=2,
        when=when,
        functions=("os.mkdir",),
        below=broken.prefix,
        env=bench.shell(index.url, broken),
    )
    assert killed.was_killed, killed
    assert [one.function for one in killed.calls] == ["os.mkdir"] * 2
    assert Path(killed.calls[-1].paths[0]).exists() is (when == "after")


def test_a_run_that_changes_nothing_ends_as_ever(
    reference: Environment, index: Index, bench: Bench
) -> None:
    words = ("diagnose", "--format", "json", "--python", reference.prefix, *FOR_H100)
    env = bench.shell(index.url, reference)
    ended = run_killed(*words, at=0, below=reference.prefix, env=env)
    assert (ended.was_killed, ended.code, ended.err) == (False, 1, "")
    assert "nvcc-missing" in ended.found()
    assert ended.calls == ()


def test_a_tree_tells_what_differs(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o755)
    file = tmp_path / "folder/file"
    file.write_text("a")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "__pycache__").mkdir()
    was = tree(tmp_path, without=["__pycache__"])
    assert [(name, one.kind) for name, one in was.items()] == [
        ("folder", "folder"),
        ("folder/file", "file"),
        ("link", "link"),
    ]
    assert tree(tmp_path).keys() - was.keys() == {"__pycache__"}

    def differing() -> set[str]:
        now = tree(tmp_path, without=["__pycache__"])
        return {name for name in {*was, *now} if was.get(name) != now.get(name)}

    assert differing() == set()
    file.write_text("b")
    assert differing() == {"folder/file"}
    file.write_text("a")
    file.chmod(0o700)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("elsewhere")
    assert differing() == {"folder/file", "pipe", "link"}
