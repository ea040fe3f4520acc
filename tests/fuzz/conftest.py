"""How long each fuzz test looks for what breaks."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=float, default=1.0, help="Seconds of each fuzz test.")


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """Processor seconds of one fuzz test."""
    chosen: float = request.config.getoption("--fuzz-seconds", 1.0)
    return chosen
