"""The index serves uv and pip as a real one does, and goes wrong in the ways that it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SYSTEM
from tests.stand_ins import index as indexes
from tests.stand_ins.fixtures import Bench
from tests.stand_ins.index import Faults, Index
from tests.stand_ins.wheels import make_wheel

Install = Callable[..., "subprocess.CompletedProcess[str]"]
WHEEL = "filelock-3.20.0-py3-none-any.whl"


@pytest.fixture
def install(bench: Bench, tmp_path: Path) -> Install:
    """Has uv install filelock, or what is named, from an index, without its cache."""

    def run(index: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        where = ("--python", sys.executable, "--target", tmp_path / "target")
        options = ("--no-cache", *(words or ("--no-deps", "filelock")))
        more = {"UV_HTTP_TIMEOUT": "1", **more}
        return bench.uv("pip", "install", *where, *options, index=index, **more)

    return run


@pytest.mark.parametrize("faults", [{}, {"plain": True}, {"delay": 0.2}])
def test_uv_installs_from_it(
    faults: dict[str, Any], index: Index, install: Install, tmp_path: Path
) -> None:
    index.faults = Faults(**faults)
    ran = install(index.url)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "target/filelock/__init__.py").is_file()
    assert index.fetched == {WHEEL}
    assert not any(one.authorized for one in index.asked)
    assert all(one.agent.startswith("uv/") for one in index.asked)


def test_what_is_resolved_is_read_from_metadata_files_and_no_wheel_is_fetched(
    index: Index, install: Install
) -> None:
    ran = install(index.url, "--dry-run", "transformers<5")
    assert "transformers==4.57.6" in ran.stderr
    assert index.fetched == set()
    assert "/files/transformers-4.57.6-py3-none-any.whl.metadata" in index.paths


def test_a_plain_index_has_no_metadata_files_and_the_wheels_are_fetched_for_them(
    index: Index, install: Install
) -> None:
    index.faults.plain = True
    ran = install(index.url, "--dry-run", "transformers<5")
    assert "transformers==4.57.6" in ran.stderr
    assert "transformers-4.57.6-py3-none-any.whl" in index.fetched
    assert not any(path.endswith(".metadata") for path in index.paths)


def test_sizes_and_hashes_are_told_as_json(index: Index, bench: Bench, tmp_path: Path) -> None:
    asked, lock = tmp_path / "wanted.in", tmp_path / "pylock.toml"
    asked.write_text("filelock\n")
    words = ("--quiet", "--format", "pylock.toml", "-o", lock, asked)
    ran = bench.uv("pip", "compile", *words, index=index.url)
    assert ran.returncode == 0, ran.stderr
    size = (index.folders[0] / WHEEL).stat().st_size
    assert f"size = {size}" in lock.read_text()
    assert index.fetched == set()


def test_pip_installs_from_it(index: Index, tmp_path: Path) -> None:
    pytest.importorskip("pip")
    where = ("--target", str(tmp_path / "target"), "--index-url", index.url)
    quiet = ("--isolated", "--no-cache-dir", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", *quiet, *where, "tokenizers<0.23"]
    ran = subprocess.run(command, env=SYSTEM, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "target/huggingface_hub/__init__.py").is_file()
    assert all(one.agent.startswith("pip/") for one in index.asked)


def test_wheels_that_are_added_while_it_serves_are_served(
    world: Path, install: Install, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    with indexes.serve(world, more) as index:
        make_wheel(more, "Late.Comer", "1.0")
        make_wheel(more, "filelock", "99.0")
        ran = install(index.url, "late-comer", "filelock")
    assert ran.returncode == 0, ran.stderr
    assert index.fetched == {"late_comer-1.0-py3-none-any.whl", "filelock-99.0-py3-none-any.whl"}


NOT_THERE = "filelock was not found in the package registry"


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"status": 404}, NOT_THERE),
        ({"status": 403}, "403 Forbidden"),
        ({"status": 500}, "500 Internal Server Error"),
        ({"status": 503}, "503 Service Unavailable"),
        ({"without": ["filelock"]}, NOT_THERE),
        ({"without": ["filelock==3.20.0"]}, NOT_THERE),
        ({"delay": 5.0}, "operation timed out"),
        ({"silent": True}, "operation timed out"),
        ({"wrong_hash": True}, "Hash mismatch for `filelock==3.20.0`"),
        ({"wrong_hash": True, "plain": True}, "Hash mismatch for `filelock==3.20.0`"),
        ({"body": "cut"}, "end of file before message length reached"),
        ({"body": "reset"}, "Connection reset by peer"),
        ({"body": "short"}, "Failed to extract archive"),
        ({"credentials": ("user", "secret")}, "401 Unauthorized"),
    ],
    ids=str,
)
def test_each_fault_makes_uv_fail_as_it_is_named(
    faults: dict[str, Any], said: str, index: Index, install: Install, tmp_path: Path
) -> None:
    index.faults = Faults(**faults)
    ran = install(index.url)
    assert ran.returncode != 0
    assert said in ran.stderr
    assert index.asked
    assert not (tmp_path / "target/filelock").exists()


def test_of_several_versions_one_can_be_missing(index: Index, install: Install) -> None:
    index.faults.without = ["transformers==4.57.6"]
    assert "transformers==4.56.2" in install(index.url, "--dry-run", "transformers<5").stderr


def test_faults_come_and_go_while_it_serves(index: Index, install: Install) -> None:
    index.faults.status = 500
    assert install(index.url).returncode != 0
    index.faults.status = None
    assert install(index.url).returncode == 0


def test_a_port_that_refuses(install: Install) -> None:
    with indexes.refusing() as url:
        assert "Connection refused" in install(url).stderr


def test_with_its_credentials_it_serves_and_notes_that_they_were_given(
    index: Index, install: Install
) -> None:
    index.faults.credentials = ("user", "p@ss/word")
    assert install(index.url_with("user", "another")).returncode != 0
    assert index.fetched == set()
    ran = install(index.url_with("user", "p@ss/word"))
    assert ran.returncode == 0, ran.stderr
    assert index.asked[-1].path.endswith(WHEEL)
    assert index.asked[-1].authorized


@pytest.fixture
def outside() -> str:
    return indexes.outside_address() or pytest.skip("this machine has no address but loopback")


def test_files_can_be_said_to_be_elsewhere_over_plain_http(
    outside: str, world: Path, index: Index, install: Install
) -> None:
    with indexes.serve(world, host=outside) as other:
        index.faults.redirect = other.url.removesuffix("/simple")
        closed = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.0/8"}
        assert "Connection refused" in install(index.url, **closed).stderr
        assert other.asked == []
        assert install(index.url).returncode == 0
        assert other.fetched == {WHEEL}
