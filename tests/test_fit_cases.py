"""`fit` against what real servers printed: the starts of fixtures/fit/cases.jsonl, and figures that
logs of later releases have."""

from __future__ import annotations

import pytest

from doctor.fit.sizes import GIB
from tests.fit_cases import CASES, FitCase

_PRINTED = GIB // 200  # bytes that two decimals of a GiB leave open


def cases(name: str, *, computable: str | None = None) -> list[FitCase]:
    """Those that say this, and of which a person could compute it."""
    return [
        case
        for case in CASES
        if name in case.told and (computable is None or case.told["computable"][computable])
    ]


def named(case: FitCase) -> str:
    return case.id


@pytest.mark.parametrize("case", cases("kv_tokens", computable="kv_bytes"), ids=named)
def test_the_size_of_the_cache_is_the_one_that_was_printed(case: FitCase) -> None:
    available = case.gib("available_kv_gib")
    if available is None:
        pytest.skip("the log does not say how much memory was available")
    low, high = (case.pool.tokens(available + d, case.length) for d in (-_PRINTED, _PRINTED))
    assert low <= case.told["kv_tokens"] <= high


@pytest.mark.parametrize("case", cases("max_concurrency", computable="kv_bytes"), ids=named)
def test_so_many_requests_fit_at_once(case: FitCase) -> None:
    available = case.gib("available_kv_gib")
    assert available is not None
    ends = (case.pool.concurrency(available + d, case.length) for d in (-_PRINTED, _PRINTED))
    low, high = (round(one, 2) for one in ends)
    assert low <= case.told["max_concurrency"] <= high


@pytest.mark.parametrize("case", cases("needed_gib"), ids=named)
def test_one_request_of_full_length_needs_what_was_printed(case: FitCase) -> None:
    assert abs(case.pool.needed(case.length) / GIB - case.told["needed_gib"]) <= 0.005


@pytest.mark.parametrize("case", cases("estimated_max_len"), ids=named)
def test_the_longest_length_is_the_one_that_was_printed(case: FitCase) -> None:
    made, longest = case.pool, case.told["estimated_max_len"]
    least = made.needed(longest)  # the least memory in which it fits: any more up to a block
    printed = case.gib("available_kv_gib")
    assert printed is None or abs(least - printed) <= 2 * _PRINTED
    assert made.longest(least, case.length) == longest
    assert made.longest(least - 1, case.length) < longest
    assert not made.fits(least, case.length)
