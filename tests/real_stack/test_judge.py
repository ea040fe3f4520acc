"""vLLM as the judge of the doctor: whether it takes a server's arguments for a model, cell by cell.

fixtures/commands/judged.toml has the cells. Many more are tried by hand: with the name of a folder
of OWNER__NAME.json files, a config.json's values each, in VLLM_DOCTOR_JUDGE_MODELS, every one of
those models meets every one of the arguments of `verdicts.crossed`:

    VLLM_DOCTOR_JUDGE_MODELS=FOLDER python -m pytest -n 0 -m real_stack -k many
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from doctor.model import Outcome
from tests.real_stack import lab, verdicts
from tests.real_stack.conftest import MakeEnvironment, MakeHome
from tests.real_stack.verdicts import Bench, Cell, ailments, errors, unsure

MANY = os.environ.get("VLLM_DOCTOR_JUDGE_MODELS")
only_by_hand = pytest.mark.skipif(not MANY, reason="VLLM_DOCTOR_JUDGE_MODELS is not set")


def bench(target: lab.Environment, home: Path, models: Mapping[str, Mapping[str, Any]]) -> Bench:
    """The environment, with a folder for each of the models."""
    where = home / "models"
    made = {name: verdicts.folder_of(name, values, where) for name, values in models.items()}
    return Bench(target, home, made)


def difference(cell: Cell, refusal: str | None, outcomes: Sequence[Outcome]) -> str | None:
    """What vLLM and the doctor say differently of a cell, None where they agree. Beside the right
    ailment the doctor may find others: vLLM says only the first."""
    found, open_ = errors(outcomes), unsure(outcomes)
    if refusal is None:
        return f"{cell}: vLLM takes it; {sorted(found)} {open_}" if found or open_ else None
    if found & ailments(refusal) or (cell.unsaid and not found):
        return None
    return f"{cell}: vLLM: {refusal[-600:]}: {sorted(found)} {open_}"


def assert_judged_as_by_vllm(target: lab.Environment, home: Path, version: str) -> None:
    tried = verdicts.listed(version)
    models = {cell.model: verdicts.values_of(cell.model) for cell in tried}
    place = bench(target, home, models)
    refusals, outcomes = place.refusals(tried), place.outcomes(tried)
    assert not [d for d in map(difference, tried, refusals, outcomes) if d]
    # And vLLM itself does what the table says of it.
    assert {
        str(cell): (cell.refused, refusal)
        for cell, refusal in zip(tried, refusals, strict=True)
        if (cell.refused not in ailments(refusal) if refusal else cell.refused)
    } == {}


@pytest.mark.real_stack
def test_arguments_are_refused_where_vllm_refuses_them(
    environment: MakeEnvironment, new_home: MakeHome
) -> None:
    assert_judged_as_by_vllm(environment(lab.REFERENCE), new_home(), "0.22.0")


@pytest.mark.newest_stack
def test_arguments_are_refused_where_the_newest_vllm_refuses_them(
    newest: lab.Environment, new_home: MakeHome
) -> None:
    assert_judged_as_by_vllm(newest, new_home(), "0.33.0")


def assert_many_are_judged_as_by_vllm(target: lab.Environment, home: Path) -> None:
    folder = Path(MANY or "")
    names = [path.stem.replace("__", "/") for path in sorted(folder.glob("*.json"))]
    place = bench(target, home, {name: verdicts.values_of(name, folder) for name in names})
    tried = verdicts.crossed(names)
    refusals, outcomes = place.refusals(tried), place.outcomes(tried)
    wrong = [d for d in map(difference, tried, refusals, outcomes) if d]
    print(f"{len(tried)} cells, {len(wrong)} differ", *wrong, sep="\n")
    assert not wrong


@only_by_hand
@pytest.mark.real_stack
def test_many_are_refused_where_vllm_refuses_them(
    environment: MakeEnvironment, new_home: MakeHome
) -> None:
    assert_many_are_judged_as_by_vllm(environment(lab.REFERENCE), new_home())


@only_by_hand
@pytest.mark.newest_stack
def test_many_are_refused_where_the_newest_vllm_refuses_them(
    newest: lab.Environment, new_home: MakeHome
) -> None:
    assert_many_are_judged_as_by_vllm(newest, new_home())
