"""What is assumed of the software that is judged, against the wheels of two releases; all of them
are read by `python -m tests.assumptions`."""

from __future__ import annotations

import pytest

from tests.assumptions.__main__ import check

pytestmark = pytest.mark.real_stack


@pytest.mark.parametrize("version", ["0.22.0", "newest"])
def test_a_release_is_read_as_it_was_when_a_person_looked(
    version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    held = check(version)
    assert held, capsys.readouterr().out
