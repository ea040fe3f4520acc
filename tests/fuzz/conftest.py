"""The loop that gives each class of input its seconds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.conftest import not_for_ever

_FEWEST = 5


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """For how long a class of input is tried."""
    return float(request.config.getoption("--fuzz-seconds"))


@dataclass(frozen=True)
class Fuzz:
    """Tries inputs, each from a generator of its own, so that one can be repeated alone."""

    name: str
    seconds: float
    seed: str

    def each(self, one: Callable[[random.Random], None]) -> None:
        """Calls `one` with a fresh generator until the time is over, at least a few times."""
        seed, _, first = self.seed.partition(":")
        begun, number = time.monotonic(), int(first or 0)
        last = number + _FEWEST
        while number < last or time.monotonic() - begun < self.seconds:
            try:
                with not_for_ever():
                    one(random.Random(f"{self.name} {seed} {number}"))
            except BaseException:
                print(f"repeat it with --fuzz-seed {seed}:{number}")
                raise
            number += 1
        print(f"{self.name}: {number - int(first or 0)} inputs")


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, seconds: float) -> Fuzz:
    return Fuzz(request.node.name, seconds, request.config.getoption("--fuzz-seed"))
