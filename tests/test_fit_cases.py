"""`fit` against what real servers printed: the starts of fixtures/fit/cases.jsonl, and figures that
logs of later releases have."""

from __future__ import annotations

import pytest

from doctor.fit.judge import judge_fit
from doctor.fit.sizes import GIB
from doctor.fit.verdict import Answer
from doctor.fit.weights import WeightsFrom, weights_on
from tests.fit_cases import CASES, FitCase
from tests.headers import published

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


@pytest.mark.parametrize("case", cases("weights_gib", computable="weights"), ids=named)
def test_weights_are_within_two_hundredths_of_what_was_printed(case: FitCase) -> None:
    made = weights_on(case.config, None, case.options, case.release, 0)
    assert made.bytes / GIB == pytest.approx(case.told["weights_gib"], rel=0.02)


@pytest.mark.parametrize("case", cases("weights_gib", computable="weights"), ids=named)
def test_with_headers_they_are_within_a_hundredth(case: FitCase) -> None:
    if "quantization" in case.told:
        pytest.skip("its checkpoint cannot be made of shapes alone")
    headers = published(case.config.values)
    made = weights_on(case.config, headers, case.options, case.release, 0)
    assert made.source is WeightsFrom.HEADERS
    assert made.bytes / GIB == pytest.approx(case.told["weights_gib"], rel=0.01)


@pytest.mark.parametrize("case", cases("available_kv_gib", computable="available"), ids=named)
def test_what_was_available_lies_in_the_band(case: FitCase) -> None:
    band = judge_fit(case.question()).ranks[0].available
    assert band is not None
    assert band.low <= case.told["available_kv_gib"] * GIB <= band.high


@pytest.mark.parametrize("case", cases("gpu_total_gib"), ids=named)
def test_the_verdict_is_never_the_other_one(case: FitCase) -> None:
    wrong = Answer.FITS if "failure" in case.told else Answer.DOES_NOT_FIT
    assert judge_fit(case.question()).answer not in (wrong, Answer.UNKNOWN)


@pytest.mark.parametrize(
    ("id", "answer"),
    [
        ("h100-r1-tp1-oom", Answer.DOES_NOT_FIT),
        ("h100-qwen3-32b-32k", Answer.DOES_NOT_FIT),
        ("h100-qwen3-32b-tp2", Answer.FITS),
        ("h100-llama31-8b", Answer.FITS),
        ("qwen3-0.6b-l40s", Answer.FITS),
    ],
)
def test_where_the_band_is_clear_the_verdict_is(id: str, answer: Answer) -> None:
    (case,) = (one for one in CASES if one.id == id)
    assert judge_fit(case.question()).answer is answer


@pytest.mark.parametrize("case", cases("available_kv_gib"), ids=named)
def test_with_what_the_log_says_is_available_the_verdict_is_exact(case: FitCase) -> None:
    if "max_model_len" not in case.told:
        pytest.skip("the case does not say how long a request is")
    fit = judge_fit(case.question(available=case.gib("available_kv_gib")))
    fails = case.told.get("failure") == "kv-too-small"
    assert fit.answer is (Answer.DOES_NOT_FIT if fails else Answer.FITS)
    assert fit.kv.tokens is not None
    assert fit.kv.tokens.exact


def test_every_case_is_asked_something_or_named_here() -> None:
    asked = {
        case.id
        for name, computable in (
            ("kv_tokens", "kv_bytes"),
            ("needed_gib", None),
            ("weights_gib", "weights"),
            ("gpu_total_gib", None),
        )
        for case in cases(name, computable=computable)
    }
    assert {case.id for case in CASES} - asked == {"llama31-8b-lora", "qwen35-35b-rocm"}
