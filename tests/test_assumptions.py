"""What `python -m tests.assumptions` makes of what it reads; the wheels are read in real_stack."""

from __future__ import annotations

import pytest

from doctor.consumers.vllm import CHECKED_UP_TO
from tests import online
from tests.assumptions import __main__ as assumptions
from tests.assumptions.expected import KNOWN, expected
from tests.assumptions.readers import UNREADABLE


@pytest.mark.parametrize(
    ("version", "changed", "held"),
    [
        ("0.22.0", {}, True),
        ("0.22.0", {"experts": "none"}, False),
        ("0.22.0", {"experts": f"{UNREADABLE}unquantized.py"}, False),
        ("0.99.0", {"experts": "none"}, True),
        ("0.99.0", {"experts": f"{UNREADABLE}unquantized.py"}, False),
        ("newest", {"sampler": "none"}, True),
    ],
)
def test_a_newer_release_may_differ_but_must_be_read(
    version: str,
    changed: dict[str, str],
    held: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = version if version in KNOWN else CHECKED_UP_TO
    monkeypatch.setattr(online, "versions", lambda name: ("0.98.0", "0.99.1"))
    monkeypatch.setattr(assumptions, "read", lambda version: expected(base) | changed)
    assert assumptions.check(version) is held
    said = capsys.readouterr().out
    assert all(answer in said for answer in changed.values())


def test_the_newest_known_release_is_the_one_that_reports_speak_of() -> None:
    assert list(KNOWN)[-1] == CHECKED_UP_TO
