"""vLLM 0.22.0 on five kinds of GPU, in three places each: what really happens, and the verdict."""

from __future__ import annotations

import pytest

from tests.real_stack import cells, lab
from tests.real_stack.cells import CAPABILITIES, Cell
from tests.real_stack.conftest import MakeEnvironment, MakeHome

pytestmark = pytest.mark.real_stack


def test_the_verdict_is_the_truth_on_every_gpu_in_every_place(
    environment: MakeEnvironment, new_home: MakeHome
) -> None:
    target = environment(lab.COHERENT)
    places = cells.places(target).items()
    asked = [Cell(gpu, name, env) for name, env in places for gpu in CAPABILITIES]
    cells.assert_right(cells.judged(target, new_home(), asked))
