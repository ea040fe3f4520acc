"""The model as a fix: planned with its bytes, disk and host, asked for, fetched and proven."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import DOCTOR, SYSTEM, Environment, Said, run_doctor, wait_for
from tests.downloads import NAME, SHARD, SHARDS, model
from tests.stand_ins import hub as hubs
from tests.stand_ins.hub import Faults, Hub

ID, INCOMPLETE = "model-not-downloaded", "hf-incomplete-cache"
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
        self.env: dict[str, str] = {}
        self.own: tuple[str, ...] = ("--only", f"{ID},{INCOMPLETE}", "--accept", "model-not-known")
        # The client of the tests' own environment, where vLLM would have brought one.
        client = environment.site / "client.pth"
        client.write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")

    def __call__(self, *words: str, verb: str = "fix") -> Said:
        return run_doctor(*self._words(words, verb), env=self._env())

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [DOCTOR, *self._words(words, "fix")],
            env=self._env(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _words(self, words: tuple[str, ...], verb: str) -> tuple[str | Path, ...]:
        about = ("--python", self.environment.prefix)
        serve = ("--set", "device=cpu", "--set", f"model={NAME}") if verb == "fix" else ()
        own = self.own if verb == "fix" else ()
        return (verb, *about, *serve, *own, *words)

    def _env(self) -> dict[str, str]:
        home = {"HOME": str(self.home), "HF_HOME": str(self.home)}
        return {**SYSTEM, **home, **self.env, "HF_ENDPOINT": self.hub.url}

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


def test_the_printed_line_fetches_what_the_plan_says(fix: Fixing, tmp_path: Path) -> None:
    """From the hub and into the cache of the command, of which the shell knows nothing."""
    cache = tmp_path / "its own"
    serve = (f"HF_ENDPOINT={fix.hub.url}", f"HF_HUB_CACHE={cache}", "vllm", "serve", NAME)
    env = {**SYSTEM, "HOME": str(fix.home)}
    about = ("--python", fix.environment.prefix, "--only", ID, "--accept", "model-not-known")
    script = run_doctor("fix", *about, "--script", "-", "--", *serve, env=env).out
    (line,) = (one for one in script.splitlines() if " download " in one and one[0] != "#")
    ran = subprocess.run(shlex.split(line), env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = cache.glob("models--*/snapshots/*/*.safetensors")
    assert {path.name for path in found} == set(SHARDS)


def test_it_is_fetched_proven_and_stays_when_the_run_is_undone(fix: Fixing) -> None:
    said = fix("--apply")
    assert said.code == 0, said.err + said.out
    assert f"✓ fixed  download  {ID}" in said.err
    assert fix.here() == set(SHARDS)
    undone = fix(verb="undo")
    assert undone.code == 1  # as whatever an undo leaves
    assert f"fetch 3.1 MB of {NAME} (5 files)" in undone.err
    assert "cannot be undone" in undone.err
    assert fix.here() == set(SHARDS)
    assert ID not in fix().out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_one_that_is_cut_off_is_gone_on_with(fix: Fixing, number: signal.Signals) -> None:
    hold = fix.hub.hold(SHARDS[2], SHARD // 2)
    with fix.start("--apply") as run:
        assert hold.reached.wait(60)
        wait_for(lambda: fix.here() == set(SHARDS[:2]))
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
    hold.go_on.set()
    assert run.returncode == (130 if number is signal.SIGINT else -9), err
    fix.hub.asked.clear()
    again = fix("--apply")
    assert again.code == 0, again.err
    assert fix.here() == set(SHARDS)
    assert not fix.hub.ranges(SHARDS[0])
    assert not list(fix.home.rglob("*.incomplete"))
    undone = fix(verb="undo")
    assert "cannot be undone" in undone.err
    assert fix.here() == set(SHARDS)


def test_the_yes_alone_asks_for_a_model_that_is_only_a_warning(fix: Fixing) -> None:
    """As the guide's reader types it. Without it a warning is left, however small the model."""
    fix.own = ("--accept", "model-not-known")
    assert fix("--apply").code == 0
    assert fix.here() == set()
    said = fix("--apply", "--allow", "download")
    assert said.code == 0, said.err
    assert fix.here() == set(SHARDS)


def test_a_hub_that_does_not_say_keeps_nothing_else_from_being_fixed(fix: Fixing) -> None:
    fix.own = ("--only", f"{ID},variable-unreadable", "--accept", "model-not-known")
    fix.env = {"VLLM_USE_FLASHINFER_SAMPLER": "true"}
    fix.hub.faults = Faults(status=404, code="RepoNotFound")
    said = fix("--apply", "--format", "json")
    (left,) = said.report["withheld"]
    assert (left["id"], left["allow"]) == (ID, None)
    assert f"has no {NAME}" in left["why"]
    assert [one["ids"] for one in said.report["results"]] == [["variable-unreadable"]]


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
