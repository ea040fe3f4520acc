"""Tensor parallelism: by which numbers a model can be shared, and that all advice is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doctor import profile as profiles
from doctor.engine import load_rules
from doctor.fixes import Command
from doctor.model import Finding, Missing
from doctor.probes.driver import Device, Gpus
from doctor.profile import ModelNeeds, Profile
from doctor.shipped import rules_folder

RULES = {rule.id: rule.function for rule in load_rules(rules_folder()) if rule.area == "gpu"}
GIB = 1 << 30
ADVICE = "vllm-doctor diagnose --set tensor_parallel_size="


def test_what_divides_the_heads_need_not_divide_the_experts() -> None:
    needs = profiles.load_profile(profiles.DEFAULT_PROFILE).needs
    assert needs.tensor_parallel_sizes(64) == (1, 2, 4)
    for ranks in (5, 10, 20):
        (whole,) = needs.undivided(ranks)
        assert str(whole) == "the 1536 rows of each expert (moe_intermediate_size)"


@pytest.mark.parametrize(
    ("heads", "ranks", "shared"), [(4, 2, True), (4, 8, True), (4, 6, False), (8, 12, False)]
)
def test_key_value_heads_are_divided_or_repeated(heads: int, ranks: int, shared: bool) -> None:
    needs = ModelNeeds(attention_heads=24 * 8, key_value_heads=heads)
    assert (needs.undivided(ranks) == ()) is shared


def test_of_an_unknown_model_one_rank_is_sure() -> None:
    assert ModelNeeds().tensor_parallel_sizes(8) == (1,)


def machine(count: int, gib: float) -> Gpus:
    rows = (Device(i, "GPU", f"GPU-{i}", "9.0", int(gib * GIB), None) for i in range(count))
    return Gpus(tuple(rows), count)


def findings(profile: Profile, gpus: Gpus) -> Iterator[Finding]:
    for id, arguments in (
        ("tp-exceeds-visible-gpus", (gpus, profile, None, None, None)),
        ("tp-not-dividing-heads", (profile, gpus, None, None, None)),
    ):
        try:
            answer = RULES[id](*arguments)
            yield from (answer,) if isinstance(answer, Finding) else tuple(answer or ())
        except Missing:
            continue


def advised(found: Finding) -> set[int]:
    lines = [s.line for f in found.fixes for s in f.steps if isinstance(s, Command)]
    return {int(line.removeprefix(ADVICE)) for line in lines if line.startswith(ADVICE)}


SIZES = st.one_of(st.none(), st.integers(1, 128))


@settings(max_examples=600, deadline=None)
@given(
    ranks=st.integers(1, 40),
    count=st.integers(0, 16),
    gib=st.floats(4, 200),
    weights=st.one_of(st.none(), st.floats(0.5, 2000)),
    heads=SIZES,
    key_value_heads=SIZES,
    expert=SIZES,
)
def test_advice_is_one_number_that_fits_and_of_which_there_are_gpus(
    ranks: int,
    count: int,
    gib: float,
    weights: float | None,
    heads: int | None,
    key_value_heads: int | None,
    expert: int | None,
) -> None:
    needs = ModelNeeds(
        attention_heads=heads,
        key_value_heads=key_value_heads,
        moe_intermediate_size=expert,
        weights_gib=weights,
    )
    profile = Profile("m", tensor_parallel_size=ranks, needs=needs)
    told = [advised(f) for f in findings(profile, machine(count, gib))]
    numbers = set().union(*told)
    assert len(numbers) <= 1
    assert all(t == numbers for t in told)
    for number in numbers:
        assert number != ranks
        assert number <= count
        better = Profile("m", tensor_parallel_size=number, needs=needs)
        assert not list(findings(better, machine(count, gib)))
