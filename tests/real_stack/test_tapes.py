"""Snapshots of real places are judged like the places themselves.

With VLLM_DOCTOR_TAPES=FOLDER they are also written there, with neutral paths: that is how
fixtures/tapes is made.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.real_stack import lab
from tests.real_stack.place import DOCTOR, Place

STATES = (
    "cuda_home_unset",
    "cuda_home_at_the_wheels",
    "half_repaired",
    "coherent_wheels",
    "wrapper_on_path",
    "machine_toolkit_without_curand",
    "good_machine_toolkit",
    "folder_of_links",
    "torch_not_importable",
)


NEWEST_STATES = ("newest_healthy",)


@pytest.mark.real_stack
@pytest.mark.parametrize("state", STATES)
def test_a_snapshot_is_judged_like_the_machine_it_was_taken_on(
    state: str, request: pytest.FixtureRequest
) -> None:
    assert_judged_like_its_snapshot(state, request.getfixturevalue(state))


@pytest.mark.newest_stack
@pytest.mark.parametrize("state", NEWEST_STATES)
def test_a_snapshot_with_the_newest_vllm_is_judged_like_the_machine_it_was_taken_on(
    state: str, request: pytest.FixtureRequest
) -> None:
    assert_judged_like_its_snapshot(state, request.getfixturevalue(state))


def assert_judged_like_its_snapshot(state: str, place: Place) -> None:
    tape = place.home / "machine.json"
    taken = place.run(DOCTOR, "snapshot", "--python", place.target.python, "-o", tape)
    assert taken.code == 0, taken.text
    live = place.diagnose()
    replayed = place.run(DOCTOR, "diagnose", "--from", tape, "--format", "json")
    report = json.loads(replayed.out)
    assert replayed.code == live.code
    assert _verdicts(report) == _verdicts(live.data)
    if folder := os.environ.get("VLLM_DOCTOR_TAPES"):
        text = neutral(tape.read_text(encoding="utf-8"), place)
        Path(folder, f"{state.replace('_', '-')}.json").write_text(text, encoding="utf-8")


def _verdicts(report: dict[str, Any]) -> dict[str, tuple[str, str, int]]:
    return {o["id"]: (o["verdict"], o["severity"], len(o["findings"])) for o in report["outcomes"]}


def neutral(tape: str, place: Place) -> str:
    """The tape without a path of the machine that it was recorded on."""
    settings = (place.target.prefix / "pyvenv.cfg").read_text(encoding="utf-8")
    base = re.findall(r"(?m)^home = (.+)/bin$", settings)
    for path, name in (
        (str(place.target.prefix), "/opt/vllm-env"),
        (str(place.home), "/home/user"),
        *((path, "/opt/python") for path in base),
        (str(lab.folder()), "/opt/lab"),
    ):
        tape = tape.replace(path, name)
    return re.sub(r"/tmp/pytest-of-\w+/pytest-\d+/([a-z]+)\d*", r"/opt/\1", tape)
