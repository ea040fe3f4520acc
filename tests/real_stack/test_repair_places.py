"""Repairs where the disk is full, read-only, of limited use, or two disks: healed or as before.

The environment is the small one of tests/stand_ins; what is done to its filesystem is done in a
mount namespace, and compared there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Environment
from tests.real_stack import isolate
from tests.stand_ins.fixtures import Bench
from tests.stand_ins.index import Index

pytestmark = pytest.mark.real_stack

REPOSITORY = Path(__file__).parents[2]

PRELUDE = r"""
import json, os, resource, shutil, subprocess, sys
from pathlib import Path
from tests.conftest import DOCTOR
from tests.stand_ins.fixtures import FOR_H100
from tests.stand_ins.killer import run_killed, tree

given = json.loads(sys.argv[1])
source, scratch, env = Path(given["source"]), Path(given["scratch"]), given["env"]

def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)

def remove(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

def copy(place):
    subprocess.run(["cp", "-aT", "--remove-destination", source, place], check=True)
    (place / ".lock").unlink(missing_ok=True)
    return tree(place)

def words(command, prefix):
    more = ["--apply", "--format", "json", *FOR_H100] if command == "fix" else []
    return [command, "--python", str(prefix), *more]

def doctor(command, prefix, limit=None):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    ran = subprocess.run(
        [DOCTOR, *words(command, prefix)], env=env, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, preexec_fn=limited if limit else None, timeout=60,
    )
    return {"code": ran.returncode, "out": ran.stdout, "err": ran.stderr}

def differing(was, now):
    return sorted(p for p in {*was, *now} if was.get(p) != now.get(p))

def kill(command, prefix, at, when):
    return run_killed(*words(command, prefix), at=at, when=when, below=prefix, env=env)

def end(result):
    print(json.dumps(result))
"""


class Inside:
    """Runs Python in a mount namespace of its own, with PRELUDE; `end` says what comes of it."""

    def __init__(self, bench: Bench, index: Index, source: Path, scratch: Path) -> None:
        self._given = {
            "source": str(source),
            "scratch": str(scratch),
            "env": bench.shell(index.url, Environment(scratch / "venv")),
        }

    def __call__(self, code: str, **more: object) -> Any:
        unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
        ran = subprocess.run(
            [*unshare, sys.executable, "-c", PRELUDE + code, json.dumps({**self._given, **more})],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)


@pytest.fixture
def inside(bench: Bench, index: Index, reference: Environment, tmp_path: Path) -> Inside:
    if why := isolate.impossible():
        pytest.skip(why)
    return Inside(bench, index, reference.prefix, tmp_path)


def one_sentence(said: dict[str, Any]) -> None:
    """Where it is no result for programs, it is one sentence for people."""
    assert "Traceback" not in said["err"]
    if not said["out"]:
        assert said["err"].splitlines()[-1].startswith("vllm-doctor: ")
    else:
        outcomes = {r["outcome"]: r["output_tail"] for r in json.loads(said["out"])["results"]}
        assert outcomes["failed"]


FULL = r"""
place = scratch / "small"
place.mkdir()
mount("-t", "tmpfs", "-o", "size=64m,nr_inodes=20000", "none", place)
prefix = place / "venv"
rows = []
for left in given["left"]:
    shutil.rmtree(prefix, ignore_errors=True)
    was = copy(prefix)
    free = os.statvfs(place)
    if given["of"] == "blocks":
        with (place / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, (free.f_bavail - left) * free.f_frsize)
    else:
        for number in range(free.f_favail - left):
            os.mkdir(place / f"filler-{number}")
    said = doctor("fix", prefix)
    now = tree(prefix)
    for path in place.glob("filler*"):
        remove(path)
    undone = doctor("undo", prefix)
    rows.append([left, said, differing(was, now), undone, differing(was, tree(prefix))])
end(rows)
"""


@pytest.mark.parametrize(
    ("of", "left"),
    [
        ("blocks", [1, 4, 40, 70, 90, 105, 120, 4000]),
        ("inodes", [1, 4, 16, 60, 90, 110, 130, 5000]),
    ],
)
def test_a_full_disk_changes_nothing_wherever_it_ends(
    of: str, left: list[int], inside: Inside
) -> None:
    rows = inside(FULL, of=of, left=left)
    codes = [said["code"] for _, said, *_ in rows]
    assert (codes[0], codes[-1]) == (4, 0)
    wrong = {}
    for n, said, changed, undone, after in rows:
        one_sentence(said) if said["code"] == 4 else None
        if said["code"] not in (0, 4) or undone["code"] or after or (said["code"] and changed):
            wrong[n] = (said["code"], said["err"][-300:], changed, undone, after)
    assert wrong == {}


READ_ONLY = r"""
prefix = scratch / "venv"
was = copy(prefix)
mount("--bind", prefix, prefix)
mount("-o", "remount,bind,ro", prefix)
end([doctor("fix", prefix), doctor("undo", prefix), differing(was, tree(prefix))])
"""


def test_a_read_only_environment_is_named_in_one_sentence(inside: Inside, tmp_path: Path) -> None:
    fixed, undone, changed = inside(READ_ONLY)
    assert (fixed["code"], fixed["out"]) == (4, "")
    (line,) = fixed["err"].splitlines()
    assert str(tmp_path / "venv") in line
    assert "Traceback" not in undone["err"]
    assert changed == []


LIMITED = r"""
if given["cold"]:
    env["UV_CACHE_DIR"] = str(scratch / "uv")
prefix = scratch / "venv"
was = copy(prefix)
said = doctor("fix", prefix, limit=given["limit"])
now = differing(was, tree(prefix))
undone = doctor("undo", prefix)
end([said, now, undone, differing(was, tree(prefix))])
"""


def test_a_quota_that_is_used_up_while_unpacking_changes_nothing(
    inside: Inside, world: Path, index: Index, tmp_path: Path
) -> None:
    """A wheel that is small, with a file in it that is not."""
    wheels = tmp_path / "wheels"
    shutil.copytree(world, wheels)
    (small,) = wheels.glob("transformers-5.23.0-*.whl")
    large = tmp_path / small.name
    with zipfile.ZipFile(small) as old, zipfile.ZipFile(large, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data + b"\n" * (4 << 20) if name.endswith("__init__.py") else data)
    large.replace(small)
    index.folders = (wheels,)
    said, changed, undone, after = inside(LIMITED, limit=2 << 20, cold=True)
    assert index.fetched
    assert said["code"] == 4, said
    one_sentence(said)
    assert (changed, undone["code"], after) == ([], 0, [])


@pytest.mark.parametrize("limit", [1 << 10, 16 << 10])
def test_where_only_small_files_can_be_written_nothing_changes(limit: int, inside: Inside) -> None:
    said, changed, undone, after = inside(LIMITED, limit=limit, cold=False)
    assert said["code"] in (3, 4), said
    assert "crashed" not in said["err"]
    one_sentence(said)
    assert (changed, undone["code"], after) == ([], 0, [])


TWO_DISKS = r"""
prefix = scratch / "venv"
copy(prefix)
(site,) = prefix.glob("lib/python*/site-packages")
shutil.rmtree(site)
site.mkdir()
mount("-t", "tmpfs", "-o", "mode=755", "none", site)
was = copy(prefix)
"""


def test_a_site_packages_on_another_disk_is_healed_and_put_back(inside: Inside) -> None:
    fixed, undone, changed = inside(
        TWO_DISKS + 'end([doctor("fix", prefix), doctor("undo", prefix), '
        "differing(was, tree(prefix))])"
    )
    assert fixed["code"] == 0, fixed["err"]
    assert {r["outcome"] for r in json.loads(fixed["out"])["results"]} == {"healed"}
    assert undone["code"] == 0, undone["err"]
    assert changed == []


KILLED = (
    TWO_DISKS
    + r"""
where = given["where"]
scale = kill("fix", prefix, 0, "before")
doctor("undo", prefix)
found = [
    at for at, call in enumerate(scale.calls, 1)
    if call.function == "os.replace" and call.paths[0].endswith(".vllm-doctor")
    and ("/1/aside/" in call.paths[1]) == (where == "aside")
]
rows = []
for at in found[:: max(1, len(found) // 5)]:
    for when in ("before", "after"):
        killed = kill("fix", prefix, at, when)
        undone = doctor("undo", prefix)
        rows.append([at, when, killed.was_killed, undone, differing(was, tree(prefix))])
        if rows[-1][-1]:
            for path in prefix.iterdir():
                if path.name != "lib":
                    remove(path)
            for path in site.iterdir():
                remove(path)
            assert copy(prefix) == was
end(rows)
"""
)


@pytest.mark.parametrize("where", ["aside", "site-packages"])
def test_a_kill_between_two_disks_is_taken_back(where: str, inside: Inside) -> None:
    rows = inside(KILLED, where=where)
    assert len(rows) >= 6
    assert all(was_killed for _, _, was_killed, *_ in rows)
    assert [row for row in rows if row[3]["code"] or row[4]] == []
