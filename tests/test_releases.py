"""Which release of vLLM reckons how: each change on both sides of the release that brought it."""

from __future__ import annotations

import re

import pytest

from doctor.fit.releases import NEWEST, Release, release

# The question, the first release that has the change, and one before it that was read.
CHANGES = [
    ("groups_layers", "0.19.0", "0.18.1"),
    ("chunks_beside_others", "0.19.0", "0.18.1"),
    ("unifies_pages", "0.19.0", "0.18.1"),
    ("estimates_graphs", "0.20.0", "0.19.0"),
    ("tokens_of_requests", "0.20.2", "0.20.1"),
    ("pads_pages", "0.24.0", "0.23.0"),
    ("skips_indexers", "0.24.0", "0.23.0"),
    ("reserves_for_media", "0.25.0", "0.24.0"),
    ("counts_concurrent_batches", "0.26.0", "0.25.1"),
    ("context_by_decode_only", "0.26.0", "0.25.1"),
    ("pads_states", "0.26.0", "0.25.1"),
    ("v2_dense", "0.26.0", "0.25.1"),
    ("counts_consumed", "0.27.0", "0.26.0"),
    ("mla_hybrids_aligned", "0.27.0", "0.26.0"),
    ("falls_back_to_whole", "0.27.0", "0.26.0"),
    ("hybrid_prefix_caching", "0.28.0", "0.27.1"),
    ("largest_tier", "0.28.0", "0.27.1"),
    ("retains_for_drafters", "0.28.0", "0.27.1"),
    ("null_block", "0.29.0", "0.28.0"),
    ("packs_pages", "0.29.0", "0.28.0"),
    ("v2_runner", "0.29.0", "0.28.0"),
    ("v2_estimates_graphs", "0.29.0", "0.28.0"),
    ("wide_fp8_blocks", "0.31.0", "0.30.0"),
    ("mamba2_checkpoints", "0.32.0", "0.31.0"),
    ("delta_net_checkpoints", "0.33.0", "0.32.0"),
    ("blocks_at_checkpoints", "0.33.0", "0.32.0"),
    ("names_gb10", "0.33.0", "0.32.0"),
]


@pytest.mark.parametrize(("change", "first", "before"), CHANGES, ids=[name for name, *_ in CHANGES])
def test_a_change_is_there_from_its_release_on(change: str, first: str, before: str) -> None:
    assert getattr(release(first), change) is True
    assert getattr(release(before), change) is False
    assert getattr(release(str(NEWEST)), change) is True
    assert getattr(release("0.11.0"), change) is False


def test_every_question_is_asked_on_both_sides() -> None:
    asked = {name for name, value in vars(Release).items() if isinstance(value, property)}
    assert asked - {"utilization"} == {name for name, *_ in CHANGES}


def test_the_default_utilization_rose() -> None:
    assert release("0.19.1").utilization == 0.9
    assert release("0.20.0").utilization == 0.92


def test_before_those_that_were_read_the_rules_of_0_11_apply_and_it_is_said() -> None:
    old = release("0.18.1")
    assert not old.since("0.12")
    assert str(old.said) == "the rules of vLLM 0.11 apply to 0.18.1"
    assert release("0.19.0").said is None


def test_beyond_the_newest_its_rules_apply_and_it_is_said() -> None:
    assert release("0.34.0").since("0.33")
    assert str(release("0.34.0").said) == f"the rules of vLLM {NEWEST}, the newest known, apply"
    assert release(str(NEWEST)).said is None


@pytest.mark.parametrize("version", ["0.22.0+cu130", "0.22.0rc1", "0.22.0.dev3+g1234567"])
def test_a_build_of_a_release_has_its_rules(version: str) -> None:
    assert release(version).rules == release("0.22.0").rules
    assert release(version).version == version


@pytest.mark.parametrize("version", ["", "newest", "0.22.x", "0.2²", "0." * 100 + "1"])
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(version)}$"):
        release(version)
