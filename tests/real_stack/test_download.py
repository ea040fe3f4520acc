"""`download` with the huggingface_hub that vLLM 0.22.0 brings: 0.36 goes on with its parts."""

from __future__ import annotations

import hashlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from doctor.engine import Facts
from doctor.probes.environment import LaunchEnv
from doctor.probes.interpreter import FoundBy, Where
from doctor.profile import Profile, ServeRequest
from doctor.target import Live
from tests.conftest import DOCTOR, SYSTEM
from tests.downloads import NAME, SHARDS, Downloads, instants, model, must_go_on
from tests.real_stack import lab
from tests.real_stack.conftest import MakeEnvironment
from tests.stand_ins import hub as hubs
from tests.stand_ins.hub import Faults, Hub

pytestmark = pytest.mark.real_stack

PIECE = 10 << 20
"""Bytes that huggingface_hub writes at a time (DOWNLOAD_CHUNK_SIZE)."""


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with hubs.serve() as hub:
        yield hub


@pytest.fixture
def downloads(served: Hub, environment: MakeEnvironment, tmp_path: Path) -> Downloads:
    served.faults = Faults()
    served.asked.clear()
    served.add(NAME, model())
    return Downloads(served, environment(lab.REFERENCE).prefix, tmp_path)


def test_a_part_is_gone_on_with_where_it_ended(downloads: Downloads) -> None:
    downloads.hub.add(NAME, model(shard=3 * PIECE))
    run = downloads.cut_off(SHARDS[2], 2 * PIECE + 1, signal.SIGINT, part=2 * PIECE)
    assert run.returncode == 130
    (part,) = (p for p in downloads.blobs.iterdir() if p.stat().st_size == 2 * PIECE)
    kept = downloads.whole()
    downloads.hub.asked.clear()
    assert downloads.run().returncode == 0
    assert downloads.hub.ranges(SHARDS[2]) == [f"bytes={2 * PIECE}-"]
    assert not kept & downloads.fetched()
    assert not part.exists()
    assert downloads.left() == []


def test_neither_a_part_beyond_its_file_nor_a_package_that_is_not_there_is_in_the_way(
    downloads: Downloads,
) -> None:
    files = model()
    digest = hashlib.sha256(files[SHARDS[0]]).hexdigest()
    downloads.blobs.mkdir(parents=True)
    (downloads.blobs / f"{digest}.incomplete").write_bytes(files[SHARDS[0]] + b"x")
    assert downloads.run(HF_HUB_ENABLE_HF_TRANSFER="1").returncode == 0
    assert downloads.left() == []


def test_a_wrong_byte_is_found_and_a_dead_cas_is_left_for_plain_http(downloads: Downloads) -> None:
    downloads.hub.faults = Faults(xet="http://127.0.0.1:9", wrong={SHARDS[0]: 1})
    ran = downloads.run("--stall", "2")
    assert ran.returncode == 0, ran.stderr
    assert "going on by plain HTTP" in ran.stderr
    assert len(downloads.hub.ranges(SHARDS[0])) == 2


def test_no_token_goes_to_a_mirror_that_the_profile_names(downloads: Downloads) -> None:
    token = "hf_" + "Ab1" * 11
    (downloads.home / "token").write_text(token)
    netrc = downloads.home / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {token}\n")
    ran = downloads.of_profile(HF_TOKEN=token)
    assert ran.returncode == 0, ran.stderr
    assert not any(one.authorized for one in downloads.hub.asked)


def test_a_command_has_its_model_where_it_says(downloads: Downloads, tmp_path: Path) -> None:
    cache = tmp_path / "its own"
    command = (f"HF_ENDPOINT={downloads.hub.url}", "vllm", "serve", NAME, "--download-dir", cache)
    ran = subprocess.run(
        [DOCTOR, "download", "--python", downloads.python, "--", *command, "--revision", "main"],
        env={**SYSTEM, "HOME": str(downloads.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = cache.glob("models--*/snapshots/*/*.safetensors")
    assert {path.name for path in found} == set(SHARDS)


LISTS = """
from huggingface_hub import HfApi
print(len(HfApi().model_info("org/model").siblings))
"""


@pytest.mark.parametrize("entry", ["machine 127.0.0.1", "default"])
def test_nor_from_the_server_that_launch_starts(downloads: Downloads, entry: str) -> None:
    """This huggingface_hub sends what a person's netrc has for the host, or for any host."""
    netrc = downloads.home / ".netrc"
    netrc.write_text(f"{entry} login me password not-a-real-one\n")
    netrc.chmod(0o600)
    shell = {**SYSTEM, "HOME": str(downloads.home)}
    python = lab.Environment(downloads.python).python
    request = ServeRequest(Profile(model=NAME, env={"HF_ENDPOINT": downloads.hub.url}))
    facts = Facts(Live(shell), (Where(python, FoundBy.OPTION), request))
    ran = subprocess.run(
        [python, "-I", "-B", "-c", LISTS],
        env=dict(facts.get(LaunchEnv).vars),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.split() == ["5"], ran.stderr
    assert not any(one.authorized for one in downloads.hub.asked)


@pytest.mark.parametrize(
    ("path", "at", "number"), instants(signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
)
def test_a_cut_at_any_instant_costs_nothing_that_was_kept(
    downloads: Downloads, path: str, at: int, number: signal.Signals
) -> None:
    must_go_on(downloads, path, at, number)
