"""Signatures against the newest vLLM, in a file of its own: its environment and those of 0.22.0 are
not there at the same time."""

from __future__ import annotations

import pytest

from doctor.signatures import shipped_catalogue
from tests.real_stack import lab
from tests.real_stack.texts import is_there, rotten

pytestmark = pytest.mark.newest_stack


def test_every_text_of_a_distribution_is_in_its_file_or_says_in_which_versions(
    newest: lab.Environment,
) -> None:
    assert rotten([newest]) == []
    assert (
        len({row.literal for row in shipped_catalogue().signatures if is_there(row, [newest])})
        > 150
    )
