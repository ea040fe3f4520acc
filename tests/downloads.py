"""`vllm-doctor download` against the hub on loopback, with the real client of an environment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import DOCTOR, SYSTEM
from tests.stand_ins.hub import Hold, Hub

NAME = "org/model"
SHARD = 1 << 20
SHARDS = tuple(f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3))
SMALL = {
    "config.json": b'{"model_type": "glm4_moe_lite"}',
    "model.safetensors.index.json": json.dumps(
        {"metadata": {"total_size": 3 * SHARD}, "weight_map": dict(zip("abc", SHARDS, strict=True))}
    ).encode(),
}
# Known bytes at which a run is cut off: the first, a middle and the last one of each file.
INSTANTS = (
    ("config.json", 0),
    *((SHARDS[0], at) for at in (0, 1 << 16, SHARD // 2, SHARD - 1)),
    *((SHARDS[1], at) for at in (0, SHARD // 2, SHARD - 1)),
    *((SHARDS[2], at) for at in (SHARD // 2, SHARD - 1)),
)
ENDS = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
"""The exit code of a run that gets the signal."""


def model(shard: int = SHARD) -> dict[str, bytes]:
    """The files of a small model, whose shards no compression makes smaller."""
    made = random.Random(15)  # noqa: S311 - bytes and no secret
    size = shard - 8 - 128
    rows = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    header = json.dumps(rows).encode().ljust(128)
    start = len(header).to_bytes(8, "little") + header
    return {**SMALL, **{name: start + made.randbytes(size) for name in SHARDS}}


@dataclass
class Downloads:
    """Runs of the command for one environment, with a cache of their own."""

    hub: Hub
    python: Path
    home: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.home / "hub"

    @property
    def blobs(self) -> Path:
        return self.cache / f"models--{NAME.replace('/', '--')}" / "blobs"

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._argv(words),
            env=self._environment(more),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def of_profile(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """With the hub as a profile names it, and nobody else."""
        profile = self.home / "mirror.toml"
        profile.write_text(f'model = "{NAME}"\n[env]\nHF_ENDPOINT = "{self.hub.url}"\n')
        env = self._environment(more)
        del env["HF_ENDPOINT"]
        argv = self._argv(("--profile", str(profile), *words))
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._argv(words),
            env=self._environment(more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def report(self, *words: str, **more: str) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(self.run(*words, "--format", "json", **more).stdout)
        return made

    def _argv(self, words: tuple[str, ...]) -> list[str]:
        given = () if words and not words[0].startswith("-") else (NAME,)
        return [str(DOCTOR), "download", *given, *words, "--python", str(self.python)]

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        own = {"HOME": str(self.home), "HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.url}
        return {**SYSTEM, **own, **self.env, **more}

    def blob(self, path: str) -> Path:
        """Where the bytes of a file lie."""
        (found,) = self.cache.glob(f"models--*/snapshots/*/{path}")
        return Path(os.path.realpath(found))

    def whole(self) -> set[str]:
        """The shards that are complete."""
        found = self.cache.glob("models--*/snapshots/*/*.safetensors")
        return {path.name for path in found if path.exists()}

    def left(self) -> list[str]:
        """What no finished run leaves: parts, and the doctor's lock."""
        files = (path for path in self.home.rglob("*") if not path.is_dir())
        return [p.name for p in files if p.suffix == ".incomplete" or p.name == "vllm-doctor.lock"]

    def fetched(self) -> set[str]:
        """The shards of which any byte was asked for since `asked` was last cleared."""
        return {name for name in SHARDS if self.hub.ranges(name)}

    def cut_off(
        self, path: str, at: int, number: signal.Signals, part: int = 0
    ) -> subprocess.Popen[str]:
        """A run that gets the signal when byte `at` of the file is due, and `part` bytes of one are
        written, and has ended."""

        def written() -> bool:
            return not part or any(p.stat().st_size == part for p in self.blobs.iterdir())

        hold = self.hub.hold(path, at)
        run = self.start()
        cut(run, hold, number, written)
        return run


def cut(
    run: subprocess.Popen[str], hold: Hold, number: signal.Signals, written: Callable[[], bool]
) -> None:
    """Sends the signal once the hub holds and what is to be there is `written`, and waits until the
    run and all that it has started have ended."""
    assert hold.reached.wait(60)
    while not written():
        assert run.poll() is None
        time.sleep(0.01)
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(number)
    run.wait(60)
    _, left = psutil.wait_procs(children, timeout=60)
    assert not left
    hold.go_on.set()


def instants(*numbers: signal.Signals) -> list[tuple[str, int, signal.Signals]]:
    """Each instant with one of the signals, in turn."""
    return [(*one, numbers[index % len(numbers)]) for index, one in enumerate(INSTANTS)]


def must_go_on(downloads: Downloads, path: str, at: int, number: signal.Signals) -> None:
    """Fails where a run that was cut off costs what was kept, or leaves anything behind."""
    run = downloads.cut_off(path, at, number)
    assert run.returncode == ENDS[number]
    kept = downloads.whole()
    downloads.hub.asked.clear()
    again = downloads.run()
    assert again.returncode == 0, again.stderr
    assert not kept & downloads.fetched()
    assert downloads.left() == []
    assert downloads.run("--verify-only").returncode == 0
