"""Whatever lies where the doctor keeps its runs: it harms nothing, and every command has an end.

Two properties over journals and manifests that a seeded generator makes, from slightly damaged to
hostile: of the one function that reads them, and of the real commands on real files.
VLLM_DOCTOR_RECORDS and VLLM_DOCTOR_RUNS ask for more cases than the suite has time for.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from doctor.probes.environment import HOME
from doctor.repair import manifest
from doctor.repair.manifest import Damaged, Fingerprint, PathChange, Swap
from doctor.repair.tree import Tree
from tests.conftest import PYTHON_FOLDER, SYSTEM, Environment, cpu_environment
from tests.stand_ins.killer import Entry, tree

pytestmark = pytest.mark.hardening

RECORDS = int(os.environ.get("VLLM_DOCTOR_RECORDS", "2000"))
RUNS = int(os.environ.get("VLLM_DOCTOR_RUNS", "300"))
SEED = 20261128
RUN = "20260101-000000"
SITE = f"lib/{PYTHON_FOLDER}/site-packages"
OURS = f"{HOME}/runs/{RUN}"

Draw = random.Random


# What a run may hold: a sound one, and what is done to it.


def fingerprint(draw: Draw) -> list[Any]:
    kind = draw.choice(["file", "link"])
    digest = "".join(draw.choices("0123456789abcdef", k=64)) if kind == "file" else "elsewhere"
    return [kind, 0o644, draw.randrange(99), draw.randrange(10**18), draw.randrange(10**6), digest]


def sound(draw: Draw) -> tuple[dict[str, Any], dict[str, Any]]:
    """A journal and a manifest as the doctor writes them, of this version or of 0.1.0."""
    state = draw.choice(["applying", "applied", "undoing", "kept"])
    journal = {"run": RUN, "state": state, "tool": "t", "began": 1.0, "ended": 2.0, "prefix": "/p"}
    actions = [{"action": "install", "ids": ["x"], "summary": ["a 1 → 2"], "changes": [1]}]
    journal |= {"actions": actions, "made": ["share"]}
    names = ["bin/tool", f"{SITE}/torch/version.py", f"{SITE}/a/b.py", "lib/c", "pyvenv.cfg"]
    rows = []
    for name in draw.sample(names, draw.randrange(1, 5)):
        was, now = draw.choice([(1, 0), (0, 1), (1, 1)])
        rows.append([name, fingerprint(draw) if was else None, fingerprint(draw) if now else None])
    made = {"root": ".", "made": ["lib/new"], "kept": [[f"{SITE}/old", 0o755]], "items": rows}
    if draw.random() < 0.5:
        made |= {"new": f"{OURS}/1/new", "aside": f"{OURS}/1/aside"}
    else:
        journal |= {"schema_version": 2, "inode": 7, "spared": ["a"]}
        made |= {"groups": ["a"], "items": [[*row, draw.choice([0, None])] for row in rows]}
    return journal, made


def hostile(draw: Draw, home: Path) -> Any:
    """A value that nobody who means well writes."""
    return draw.choice(
        [
            *(str(home), f"{home}/precious", "/etc/passwd", "..", ".", "", "/", "a//b", "./a"),
            *("../../../../home/precious", f"{SITE}/../../../../home/precious", "a/..", "a/."),
            *("link/precious", "share", f"{HOME}", f"{HOME}/runs", f"{OURS}/journal.json"),
            *(f"{HOME}/lock", f"{HOME}/proofs.json", "Share/VLLM-Doctor/runs/x", f"{HOME}/../x"),
            *("ſhare/vllm-doctor/runs/x", "a\0b", "a\nb", "\x1b]0;evil\x07", "\ud800", "\udcff"),
            *("a" * 300, "a/" * 3000 + "a", "²", "\u202e", f"{HOME}/cuda-13.0/../runs"),
            f"{home}/.cache/flashinfer/0.6/90a/cached_ops",
            f"{home}/.cache/flashinfer/0.6/90a/../90a/cached_ops",
            *(-1, 0, 2**63, 10**400, 1e308, float("inf"), float("nan"), True, None, [], {}, [[]]),
            *(["file", 0o644, 1, 1, 1, "x"], ["file"] * 6, ["link", 0, 0, 0, 0, str(home)]),
            *(["file", 0o7777, 2**62, -1, 1, "0" * 64], [None, None, None], {"root": "/"}),
            "x" * draw.choice([1, 10**5]),
        ]
    )


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key below a value."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def spoilt(draw: Draw, value: dict[str, Any], home: Path) -> Any:
    """The value with a few things wrong."""
    made = copy.deepcopy(value)
    for _ in range(draw.choice([0, 0, 0, 1, 1, 2, 3])):
        where = list(places(made))
        if not where:
            break
        holder, key = draw.choice(where)
        how = draw.random()
        if how < 0.7:
            holder[key] = hostile(draw, home)
        elif how < 0.8:
            del holder[key]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(draw.choice(holder)))
        else:
            holder[str(draw.choice(["extra", "schema_version", "root"]))] = hostile(draw, home)
    return made if draw.random() < 0.97 else hostile(draw, home)


def written(draw: Draw, value: Any) -> bytes:
    """As bytes, which may be cut, zeroed, nested too deep or something else."""
    data = json.dumps(value).encode()
    how = draw.random()
    if how < 0.85:
        return data
    at = draw.randrange(len(data) + 1)
    cut, rest = data[:at], data[at:]
    return draw.choice(
        [
            *(b"", cut, cut + bytes(len(rest)), bytes(len(data)), b"\xff\xfe" + data),
            *(b"[" * 20000, b'{"run":' * 9999, cut + b"\x80" + rest, b"1" * 5000),
        ]
    )


# The function.


def test_whatever_is_read_names_nothing_but_what_a_run_may_change() -> None:
    draw, prefix, home = Draw(SEED), Path("/work/env"), Path("/home/me")
    read = 0
    for _ in range(RECORDS):
        journal, made = sound(draw)
        journal["prefix"] = draw.choice(["/p", str(prefix), ""])
        texts = [written(draw, spoilt(draw, value, home)) for value in (journal, made)]
        why: str | None = None
        changes: dict[int, Swap] = {}
        try:
            _, changes = manifest.decode_manifest(RUN, texts[0], {1: texts[1]}, prefix)
        except Damaged as error:
            why = str(error)
        if why is not None:
            assert len(why) < 600
            assert why.startswith(f"{prefix}/{OURS}/")
        for change in changes.values():
            must_be_harmless(change, prefix)
        read += why is None
    assert RECORDS // 10 < read < RECORDS, "neither all are sound nor none"


def must_be_harmless(change: Swap, prefix: Path) -> None:
    if change.root == prefix:
        assert (change.new, change.aside) == (prefix / OURS / "1/new", prefix / OURS / "1/aside")
    else:
        assert change.root.parts[-5:-3] == (".cache", "flashinfer")
        assert change.root.name == "cached_ops"
        assert change.aside == change.root.parent / f"vllm-doctor-set-aside/{RUN}-1"
        assert not change.made
        assert not [item for item in change.items if item.now]
    paths = [item.path for item in change.items]
    assert len(set(paths)) == len(paths)
    for path in (*paths, *change.made, *(folder for folder, _ in change.kept)):
        assert os.path.normpath(path) == path
        assert not path.startswith(("/", ".."))
        assert len(os.fsencode(path)) < 4096
        below = path.casefold().startswith(f"{HOME}/")
        assert not below or path.split("/")[2].startswith(("cuda-", "environment.json"))


def test_what_the_doctor_writes_is_what_it_reads() -> None:
    one = Fingerprint("file", 0o644, 3, -5, 7, "0" * 64)
    items = (
        PathChange("a/b", one, None, "torch"),
        PathChange("a/\udcff", None, Fingerprint("link", 0o777, 1, 2, 3, "x"), "numpy"),
        PathChange("c", one, one),
    )
    prefix = Path("/work/env")
    new, aside = manifest.places(prefix, RUN, 3, prefix)
    change = Swap(prefix, new, aside, items, ("d", "d/e"), (("a", 0o750),))
    journal = json.dumps({"run": RUN, "state": "applied"}).encode()
    text = manifest.encode_manifest(change, prefix).encode("utf-8", "surrogateescape")
    assert manifest.decode_manifest(RUN, journal, {3: text}, prefix)[1] == {3: change}


# The commands.


class Place:
    """A user's folder with an environment in it, whose runs are a stranger's."""

    def __init__(self, at: Path, environment: Environment) -> None:
        self.at, self.home, self.prefix = at, at / "home", at / "venv"
        self.template = environment.prefix
        for name, text in {
            "precious": "precious",
            ".ssh/authorized_keys": "mine",
            "folder/deep/file": "x",
            ".cache/flashinfer/0.6/90a/cached_ops/op/op.so": "kernel",
            f".cache/flashinfer/0.6/90a/vllm-doctor-set-aside/{RUN}-1/op/old.so": "another's",
            f".cache/flashinfer/0.6/90a/vllm-doctor-set-aside/{RUN}-9/op/old.so": "another's",
        }.items():
            (self.home / name).parent.mkdir(parents=True, exist_ok=True)
            (self.home / name).write_text(text)
        (self.home / "precious").chmod(0o640)
        (self.home / "link").symlink_to("precious")
        (self.home / "empty").mkdir(mode=0o700)
        self.was = self.seen()

    def seen(self) -> dict[str, Entry]:
        """All but the environment."""
        return tree(self.at, without={"venv"})

    def clear(self) -> None:
        """shutil cannot remove what is nested too deep."""
        with Tree(self.at) as below:
            below.remove(self.prefix.name)

    def lay_out(self, draw: Draw) -> None:
        """The environment anew, and a stranger's run in it."""
        self.clear()
        shutil.copytree(self.template, self.prefix, symlinks=True)
        run = self.prefix / OURS
        (run / "1/new").mkdir(parents=True)
        (run / "1/aside").mkdir()
        journal, made = sound(draw)
        journal["prefix"] = draw.choice([str(self.prefix), "/p"])
        journal["inode"] = draw.choice([self.prefix.stat().st_ino, 7])
        if journal.get("schema_version", 1) == 1:
            del journal["inode"]
        for row in made["items"] if isinstance(made.get("items"), list) else ():
            for folder in ("new", "aside"):
                if draw.random() < 0.5:
                    self.fill(run / "1" / folder / row[0], draw)
        (run / "journal.json").write_bytes(written(draw, spoilt(draw, journal, self.home)))
        (run / "1/manifest.json").write_bytes(written(draw, spoilt(draw, made, self.home)))
        for _ in range(draw.randrange(3)):
            self.plant(run, draw)

    def fill(self, path: Path, draw: Draw) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if draw.random() < 0.2:
            path.symlink_to(self.home / "precious")
        elif draw.random() < 0.2:
            path.hardlink_to(self.home / "precious")
        else:
            path.write_text("staged")

    def plant(self, run: Path, draw: Draw) -> None:
        """A link, a fifo or a folder where something else is expected."""
        ours, site = self.prefix / HOME, self.prefix / SITE
        spot = draw.choice(
            [
                *(run, run / "1", run / "1/aside", run / "1/new", run / "2", run / "²"),
                *(run / "journal.json", run / "1/manifest.json", run / "1/aside/lib"),
                *(ours / "lock", ours / "environment.json", ours / "runs", self.prefix / "share"),
                *(ours / "runs/evil", ours / "runs/\x1b[2J", site / "torch", site / "a"),
            ]
        )
        if spot.parent.resolve() != spot.parent:
            return  # it would be planted behind another link
        with contextlib.suppress(NotADirectoryError), Tree(self.prefix) as below:
            below.remove(str(spot.relative_to(self.prefix)))
        how = draw.randrange(6)
        with contextlib.suppress(OSError):
            if how == 0:
                os.mkfifo(spot)
            elif how == 1:
                spot.mkdir(parents=True)
                (spot / "aside").symlink_to(self.home)
            elif how == 2:
                spot.hardlink_to(self.home / "precious")
            elif how == 3:
                deep(spot)
            else:
                spot.symlink_to(
                    draw.choice([self.home, self.home / "precious", self.home / ".ssh"])
                )


def deep(at: Path) -> None:
    """Folders nested deeper than a path may be long."""
    here = os.open(at.parent, os.O_RDONLY)
    name = at.name
    for _ in range(1500):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, name = below, "d"
    os.close(here)


def forked(words: list[str], output: Path) -> tuple[int, str]:
    """A command of the doctor in a child of this process: (its exit code, all that it wrote)."""
    pid = os.fork()
    if pid == 0:
        code = 1000  # of what is no end of a command
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdin, sys.stdout, sys.stderr = (
                os.fdopen(number, mode) for number, mode in ((0, "r"), (1, "w"), (2, "w"))
            )
            os.environ.clear()
            os.environ.update(SYSTEM)
            sys.argv = ["vllm-doctor", *words]
            run_command()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if code < 256 else 99)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return ended, output.read_text(errors="surrogateescape")


def run_command() -> None:
    from doctor.cli import main

    main()


@pytest.fixture(scope="module")
def warmed() -> None:
    """What the commands import is imported once, before the children are made."""


COMMANDS: tuple[Callable[[str], list[str]], ...] = (
    lambda prefix: ["undo", "--python", prefix],
    lambda prefix: ["undo", "--purge", "--python", prefix],
    lambda prefix: ["undo", "--list", "--python", prefix],
    lambda prefix: ["fix", "--apply", "--set", "device=cpu", "--python", prefix],
)
DOCUMENTED = {0, 1, 2, 3, 4, 75, 130}


@pytest.mark.usefixtures("warmed")
def test_no_run_of_a_stranger_makes_a_command_touch_anything_else(in_memory: Path) -> None:
    draw = Draw(SEED)
    template = cpu_environment(in_memory / "template")
    (in_memory / "user").mkdir()
    place = Place(in_memory / "user", template)
    codes: dict[int, int] = {}
    for number in range(RUNS):
        place.lay_out(draw)
        words = COMMANDS[number % len(COMMANDS)](str(place.prefix))
        code, said = forked(words, in_memory / "output")
        about = f"case {number}: {' '.join(words)} ended with {code}:\n{said}"
        assert code in DOCUMENTED, about
        assert "Traceback" not in said, about
        assert "please report it" not in said, about
        assert all(c.isprintable() or c == "\n" for c in said), about
        assert place.seen() == place.was, about
        codes[code] = codes.get(code, 0) + 1
    place.clear()
    assert codes.get(0), "some runs are sound"
    assert codes.get(4), "some are not"
