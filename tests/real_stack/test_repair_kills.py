"""The doctor killed at any of its own changes: the next command ends in before or after.

The environment is the small one of tests/stand_ins, since hundreds of kills are wanted.
"""

from __future__ import annotations

import itertools
import random
from typing import Literal

import pytest

from tests.test_repair_faults import (  # noqa: F401 - the last row: fixtures
    Boundary,
    Calls,
    Place,
    fixing,
    healed,
    kill_at,
    made,
    place,
    served,
    undoing,
)

pytestmark = pytest.mark.real_stack

FIXES, UNDOS, SEED = 40, 20, 20260731
WHENS: tuple[Literal["before", "after"], ...] = ("before", "after")


def sample(calls: Calls, number: int) -> list[Boundary]:
    """Boundaries of a run, evenly spread and each at a random place of its part."""
    every = [Boundary(at, when) for at in range(1, len(calls) + 1) for when in WHENS]
    drawn = random.Random(SEED)  # noqa: S311 - for the same ones every time
    cuts = [len(every) * i // number for i in range(number + 1)]
    return [every[drawn.randrange(a, b)] for a, b in itertools.pairwise(cuts) if a < b]


def test_a_fix_killed_anywhere_is_taken_back(
    made: Place,  # noqa: F811
    fixing: Calls,  # noqa: F811
    served: str,  # noqa: F811
) -> None:
    wrong: dict[Boundary, object] = {}
    for number, boundary in enumerate(sample(fixing, FIXES)):
        made.lay_out(made.broken)
        kill_at(made, "fix", fixing, boundary, served)
        if number % 2:
            again = made.apply(index=served)
            if again.code != 0 or again.report["verdict"] != "healthy":
                wrong[boundary] = again
                continue
        undone = made.undo()
        if undone.code != 0 or made.changed():
            wrong[boundary] = undone, made.changed()
    assert wrong == {}


def test_an_undo_killed_anywhere_is_finished_by_the_next(
    made: Place,  # noqa: F811
    undoing: Calls,  # noqa: F811
    served: str,  # noqa: F811
) -> None:
    wrong: dict[Boundary, object] = {}
    for boundary in sample(undoing, UNDOS):
        made.lay_out(made.healed)
        kill_at(made, "undo", undoing, boundary, served)
        undone = made.undo()
        if undone.code != 0 or made.changed():
            wrong[boundary] = undone, made.changed()
    assert wrong == {}
