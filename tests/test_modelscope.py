"""`download --from modelscope`, with the real client of the tests' own environment and a hub on
loopback that has ModelScope's API."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DOCTOR, SYSTEM
from tests.downloads import ENDS, INSTANTS, NAME, SHARD, SHARDS, cut, model
from tests.stand_ins import modelscope_hub
from tests.stand_ins.hub import Faults, Hub

PIECE = 1 << 20
"""Bytes that the client writes at a time (MODELSCOPE_DOWNLOAD_CHUNK_SIZE_MB)."""


@dataclass
class ModelScope:
    """Runs of the command, with a home of their own."""

    hub: Hub
    home: Path
    python: Path = Path(sys.prefix)

    @property
    def cache(self) -> Path:
        return self.home / ".cache/modelscope"

    @property
    def folder(self) -> Path:
        return self.cache / "models" / NAME.replace("/", "--") / "snapshots/master"

    def argv(self, *words: str) -> list[str]:
        asked = ["download", NAME, "--from", "modelscope", *words]
        return [str(DOCTOR), *asked, "--python", str(self.python)]

    def env(self, more: Mapping[str, str]) -> dict[str, str]:
        named = {"MODELSCOPE_ENDPOINT": self.hub.url}
        return {**SYSTEM, "HOME": str(self.home), **named, **more}

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words), env=self.env(more), capture_output=True, text=True, check=False
        )

    def report(self, *words: str, **more: str) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(self.run(*words, "--format", "json", **more).stdout)
        return made

    def left(self) -> list[str]:
        files = (path.name for path in self.home.rglob("*") if path.is_file())
        return [name for name in files if name.endswith((".incomplete", ".vllm-doctor.lock"))]

    def whole(self) -> set[str]:
        return {name for name in SHARDS if (self.folder / name).exists()}

    def fetched(self) -> set[str]:
        return {name for name in SHARDS if self.hub.ranges(name)}

    def cut_off(self, path: str, at: int, number: signal.Signals, part: int = 0) -> int:
        """The exit code of a run that gets the signal when byte `at` of the file is due, and
        `part` bytes of it are written."""
        hold = self.hub.hold(path, at)
        run = subprocess.Popen(
            self.argv(),
            env=self.env({}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        file = self.folder / f"{path}.incomplete"

        def written() -> bool:
            return not part or (file.exists() and file.stat().st_size == part)

        cut(run, hold, number, written)
        return run.returncode


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with modelscope_hub.serve() as hub:
        yield hub


@pytest.fixture
def downloads(served: Hub, tmp_path: Path) -> ModelScope:
    served.add(NAME, model(), "master")
    served.faults = Faults()
    served.asked.clear()
    return ModelScope(served, tmp_path)


def test_a_model_is_fetched_once_and_every_file_is_proven(downloads: ModelScope) -> None:
    first = downloads.report()
    assert {one["state"] for one in first["files"]} == {"ok"}
    assert first["bytes_present"] == first["bytes_total"] == sum(map(len, model().values()))
    assert (first["revision"], first["token_sent"]) == ("master", False)
    assert downloads.fetched() == set(SHARDS)
    downloads.hub.asked.clear()
    again = downloads.run()
    assert again.returncode == 0
    assert f"vllm serve {downloads.folder}" in again.stdout
    assert not downloads.fetched()
    assert downloads.left() == []


def test_a_part_is_gone_on_with_where_it_ended(downloads: ModelScope) -> None:
    downloads.hub.add(NAME, model(shard=3 * PIECE), "master")
    assert downloads.cut_off(SHARDS[2], 2 * PIECE, signal.SIGKILL, part=2 * PIECE) == -9
    kept = downloads.whole()
    downloads.hub.asked.clear()
    assert downloads.run().returncode == 0
    assert downloads.hub.ranges(SHARDS[2]) == [f"bytes={2 * PIECE}-"]
    assert not kept & downloads.fetched()
    assert downloads.left() == []


def test_wrong_bytes_on_the_disk_are_found_and_fetched_anew(downloads: ModelScope) -> None:
    assert downloads.run().returncode == 0
    (downloads.folder / SHARDS[1]).write_bytes(bytes(SHARD))
    (downloads.folder / SHARDS[2]).write_bytes(b"short")
    downloads.hub.asked.clear()
    assert downloads.run().returncode == 0
    assert downloads.fetched() == {SHARDS[1], SHARDS[2]}


def test_one_wrong_byte_on_the_way_is_fetched_anew(downloads: ModelScope) -> None:
    downloads.hub.faults = Faults(wrong={SHARDS[1]: 1})
    assert downloads.run().returncode == 0
    assert len(downloads.hub.ranges(SHARDS[1])) == 2


@pytest.mark.hardening  # the client itself tries thrice, and waits between
def test_a_hub_that_always_gives_a_wrong_byte_ends_with_1(downloads: ModelScope) -> None:
    downloads.hub.faults = Faults(wrong={SHARDS[1]: -1})
    ran = downloads.run()
    assert ran.returncode == 1
    assert SHARDS[1] in ran.stdout
    assert not (downloads.folder / SHARDS[1]).exists()


def test_a_connection_that_breaks_off_is_gone_on_with(downloads: ModelScope) -> None:
    downloads.hub.faults = Faults(stops={SHARDS[0]: SHARD // 2}, stop_times=1)
    assert downloads.run().returncode == 0


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (Faults(status=401), "is known"),
        (Faults(status=404), f"has no {NAME}"),
        (Faults(listing="[1]"), "does not list"),
        (Faults(listing='{"Data": {"Files": []}}'), "no file"),
        (Faults(more=[{"Path": "../../x", "Size": 1}]), "../../x"),
        (Faults(more=[{"Path": "/etc/x", "Size": 1}]), "/etc/x"),
        (Faults(more=[{"Path": "a\x1b[2J", "Size": 1}]), "\\x1b"),
        (Faults(more=[{"Path": "a", "Size": 1, "Sha256": ""}]), "no hash of a"),
        (Faults(sizes={SHARDS[0]: -1}), "-1"),
    ],
)
def test_where_the_hub_does_not_say_it_ends_with_3(
    downloads: ModelScope, faults: Faults, said: str
) -> None:
    downloads.hub.faults = faults
    ran = downloads.run()
    assert (ran.returncode, ran.stdout) == (3, "")
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert "\x1b" not in ran.stderr
    assert not downloads.fetched()


def test_without_the_network_it_says_that_no_hash_is_kept(downloads: ModelScope) -> None:
    assert downloads.run().returncode == 0
    downloads.hub.asked.clear()
    ran = downloads.run("--verify-only")
    assert ran.returncode == 3
    assert "keeps no hashes on this disk" in ran.stderr
    assert downloads.hub.asked == []


@pytest.mark.parametrize("words", [("--revision", "../../x"), ("--revision", "/x")])
def test_a_revision_leads_out_of_no_folder(downloads: ModelScope, words: tuple[str, ...]) -> None:
    assert downloads.run(*words).returncode == 2
    assert downloads.hub.asked == []


def test_an_older_clients_folder_is_used_where_there_is_one(downloads: ModelScope) -> None:
    older = downloads.cache / "hub/models" / NAME
    older.mkdir(parents=True)
    (older / "config.json").write_bytes(model()["config.json"])
    assert f"vllm serve {older}" in downloads.run().stdout
    assert not downloads.folder.exists()


def test_an_environment_without_the_client_is_told(served: Hub, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    ran = ModelScope(served, tmp_path, tmp_path / "v").run()
    assert ran.returncode == 3
    assert "-m pip install -U modelscope" in ran.stderr


class TestTokens:
    """Who gets one. The real client would send it to any endpoint."""

    SECRET = "ms-" + "01234567-89ab-cdef-0123-456789abcdef"

    def sent(self, downloads: ModelScope) -> set[str]:
        headers = ("authorization", "cookie")
        return {
            a.headers[name] for a in downloads.hub.asked for name in headers if name in a.headers
        }

    def test_an_endpoint_of_the_profile_gets_none(self, downloads: ModelScope) -> None:
        netrc = downloads.home / ".netrc"
        netrc.write_text(f"machine 127.0.0.1 login me password {self.SECRET}\n")
        netrc.chmod(0o600)
        profile = downloads.home / "mirror.toml"
        url = downloads.hub.url
        profile.write_text(f'model = "{NAME}"\n[env]\nMODELSCOPE_ENDPOINT = "{url}"\n')
        env = downloads.env({"MODELSCOPE_API_TOKEN": self.SECRET, "HF_TOKEN": self.SECRET})
        del env["MODELSCOPE_ENDPOINT"]
        words = [*downloads.argv("--profile", str(profile), "--format", "json")]
        ran = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert '"token_sent": false' in ran.stdout
        assert "it gets no token" in ran.stderr
        assert self.sent(downloads) == set()

    def test_an_endpoint_that_the_person_named_gets_his(self, downloads: ModelScope) -> None:
        assert downloads.report(MODELSCOPE_API_TOKEN=self.SECRET)["token_sent"] is True
        assert self.sent(downloads) == {f"Bearer {self.SECRET}", f"m_session_id={self.SECRET}"}

    def test_none_of_hugging_face_is_sent(self, downloads: ModelScope) -> None:
        assert downloads.report(HF_TOKEN=self.SECRET)["token_sent"] is False
        assert self.sent(downloads) == set()


def test_it_does_not_disturb_a_client_that_a_person_has_started(downloads: ModelScope) -> None:
    hold = downloads.hub.hold(SHARDS[0], SHARD // 2)
    words = [sys.executable, "-m", "modelscope_hub.cli.main", "download", NAME]
    client = subprocess.Popen(
        words, env=downloads.env({}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert hold.reached.wait(60)
    part = downloads.folder / f"{SHARDS[0]}.incomplete"
    while not part.exists():
        assert client.poll() is None
        time.sleep(0.01)
    ran = downloads.run()
    assert ran.returncode == 75
    assert "another download" in ran.stderr
    hold.go_on.set()
    assert client.wait(60) == 0


@pytest.mark.hardening
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("path", "at"), INSTANTS)
def test_a_cut_at_any_instant_costs_nothing_that_was_kept(
    downloads: ModelScope, path: str, at: int, number: signal.Signals
) -> None:
    assert downloads.cut_off(path, at, number) == ENDS[number]
    kept = downloads.whole()
    downloads.hub.asked.clear()
    again = downloads.run()
    assert again.returncode == 0, again.stderr
    assert not kept & downloads.fetched()
    assert downloads.left() == []
