"""The model as a fix: planned with its bytes, disk and host, asked for, fetched and proven."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SYSTEM, Environment, Said, run_doctor
from tests.downloads import NAME, SHARDS, model
from tests.stand_ins import hub as hubs
from tests.stand_ins.hub import Faults, Hub

ID = "model-not-downloaded"
SIZE = sum(map(len, model().values()))


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with hubs.serve() as hub:
        hub.add(NAME, model())
        yield hub


class Fixing:
    """`fix` of an environment that has the real client, for a model of the hub on loopback."""

    def __init__(self, hub: Hub, environment: Environment, home: Path) -> None:
        self.hub, self.home = hub, home
        self.environment = environment
        # The client of the tests' own environment, where vLLM would have brought one.
        client = environment.site / "client.pth"
        client.write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")

    def __call__(self, *words: str, verb: str = "fix") -> Said:
        about = ("--python", self.environment.prefix)
        serve = ("--set", "device=cpu", "--set", f"model={NAME}") if verb == "fix" else ()
        own = ("--only", ID, "--accept", "model-not-known") if verb == "fix" else ()
        home = {"HOME": str(self.home), "HF_HOME": str(self.home)}
        env = {**SYSTEM, **home, "HF_ENDPOINT": self.hub.url}
        return run_doctor(verb, *about, *serve, *own, *words, env=env)

    def here(self) -> set[str]:
        found = self.home.glob("hub/models--*/snapshots/*/*.safetensors")
        return {path.name for path in found if path.exists()}


@pytest.fixture
def fix(served: Hub, cpu_server: Environment, tmp_path: Path) -> Fixing:
    served.faults = Faults()
    served.asked.clear()
    home = tmp_path / "home"
    home.mkdir()
    return Fixing(served, cpu_server, home)


def test_the_plan_says_the_bytes_the_disk_and_the_host(fix: Fixing) -> None:
    said = fix()
    assert f"fetch 3.1 MB of {NAME} (5 files) from {fix.hub.url} into " in said.out
    assert f"{fix.home}/hub, which has " in said.out.replace("\n   ", " ")
    assert "without a Hugging Face token" in said.out
    assert fix.here() == set()
    script = fix("--script", "-").out
    assert f"download --python {fix.environment.python}" in script


def test_it_is_fetched_proven_and_stays_when_the_run_is_undone(fix: Fixing) -> None:
    said = fix("--apply")
    assert said.code == 0, said.err + said.out
    assert f"✓ fixed  download  {ID}" in said.err
    assert fix.here() == set(SHARDS)
    undone = fix(verb="undo")
    assert undone.code == 0, undone.err
    assert fix.here() == set(SHARDS)
    assert ID not in fix().out


def test_more_than_a_gibibyte_needs_a_yes(fix: Fixing) -> None:
    fix.hub.faults = Faults(sizes={SHARDS[0]: 2 << 30})
    said = fix("--apply", "--format", "json")
    (left,) = said.report["withheld"]
    assert (left["id"], left["allow"]) == (ID, "download")
    assert "would fetch 2.1 GB" in left["why"]
    assert not fix.hub.ranges(SHARDS[1])
    assert fix.here() == set()


def test_where_the_hub_does_not_say_nothing_is_planned_and_why_is_told(fix: Fixing) -> None:
    fix.hub.faults = Faults(status=404, code="RepoNotFound")
    said = fix("--apply")
    assert f"has no {NAME}" in said.out + said.err
    assert fix.here() == set()


def test_a_wrong_byte_fails_the_fix(fix: Fixing) -> None:
    fix.hub.faults = Faults(wrong={SHARDS[1]: -1})
    said = fix("--apply")
    assert said.code == 4
    assert "missing or wrong" in said.out + said.err
