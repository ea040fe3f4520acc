"""The doctor judges an environment from outside: imports nothing, leaves nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.real_stack.place import Place

pytestmark = pytest.mark.real_stack


def test_the_target_is_another_environment_than_the_doctors(cuda_home_unset: Place) -> None:
    target = cuda_home_unset.diagnose().data["target"]
    assert Path(target["prefix"]).samefile(cuda_home_unset.target.prefix)
    assert not Path(target["prefix"]).samefile(sys.prefix)
    assert target["source"] == "live"


def test_torch_really_cannot_be_imported(torch_not_importable: Place) -> None:
    ran = torch_not_importable.python("import torch")
    assert ran.code == 1
    assert "ImportError: libtorch_python.so: cannot open shared object file" in ran.err


def test_a_target_whose_torch_cannot_be_imported_is_judged_all_the_same(
    torch_not_importable: Place, cuda_home_unset: Place
) -> None:
    report = torch_not_importable.diagnose("--deep")
    assert report.code == 1
    assert report.errors >= cuda_home_unset.diagnose().errors
    assert report.ids("crashed") == set()


def test_nothing_is_written_in_the_users_home_or_left_in_tmp(
    folder_of_links: Place, tmp_path: Path
) -> None:
    place = Place(folder_of_links.target, tmp_path / "home", folder_of_links.env)
    place.home.mkdir()
    (tmp_path / "tmp").mkdir()
    assert place.having(TMPDIR=str(tmp_path / "tmp")).diagnose("--deep").deep["ran"]
    assert {path.name for path in tmp_path.rglob("*")} == {"home", "tmp"}


def test_nothing_is_written_in_the_target(cuda_home_at_the_wheels: Place) -> None:
    before = _files(cuda_home_at_the_wheels.target.prefix)
    cuda_home_at_the_wheels.diagnose("--deep")
    assert _files(cuda_home_at_the_wheels.target.prefix) == before


def _files(folder: Path) -> dict[Path, int]:
    """All files of a folder, with the time of their last change."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
