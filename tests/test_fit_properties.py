"""What holds of every answer of `fit`, whatever the model and the machine: more memory, shorter
requests and smaller types never fit less, and nothing that a config.json holds ends it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doctor.consumers.known_models import TABLE, with_nulls
from doctor.consumers.model_config import ConfigJson
from doctor.fit.judge import judge_fit
from doctor.fit.options import memory_options
from doctor.fit.releases import release
from doctor.fit.sizes import GIB
from doctor.fit.verdict import Answer, Cause, Fit, FitQuestion, GpuMemory
from doctor.profile import Profile
from doctor.report.fit_json import fit_json, fit_schema
from doctor.shipped import rules_folder
from doctor.toml import load_toml
from tests.conftest import must_fit

MODELS = {name: with_nulls(row) for name, row in load_toml(rules_folder() / TABLE).items()}
VERSIONS = (
    "0.11.0",
    "0.20.2",
    "0.22.0",
    "0.24.0",
    "0.25.1",
    "0.26.0",
    "0.28.0",
    "0.29.0",
    "0.33.0",
)
RANKS = (1, 2, 4, 8)
ORDER = {Answer.DOES_NOT_FIT: 0, Answer.TOO_CLOSE: 1, Answer.FITS: 2}

models = st.sampled_from(sorted(MODELS))
versions = st.sampled_from(VERSIONS)
ranks = st.sampled_from(RANKS)
lengths = st.integers(1, 1 << 20)
gib = st.integers(4, 300)
capabilities = st.sampled_from([80, 89, 90, 100, 120])
often = settings(deadline=None, max_examples=15, derandomize=True)


@dataclasses.dataclass(frozen=True)
class Server:
    """A question in few words."""

    model: str
    version: str
    gpu: GpuMemory
    tensor: int = 1
    gpus: int = 8

    def fit(self, **options: Any) -> Fit:
        return judge_fit(self.question(**options))

    def question(self, **options: Any) -> FitQuestion:
        config = ConfigJson(MODELS[self.model])
        found = config.length()
        profile = Profile(tensor_parallel_size=self.tensor, options=options)
        return FitQuestion(
            self.model,
            config,
            "the table of models",
            memory_options(profile, options),
            release(self.version),
            (self.gpu,) * self.gpus,
            found.tokens if found else None,
        )


gpus = st.builds(
    lambda size, capability: GpuMemory("a GPU", size * GIB, capability=capability),
    gib,
    capabilities,
)
servers = st.builds(Server, models, versions, gpus, ranks)


def never_worse(better: Fit, worse: Fit) -> None:
    """Where both can be told."""
    if Answer.UNKNOWN not in (better.answer, worse.answer):
        assert ORDER[better.answer] >= ORDER[worse.answer]


def at_most(less: int | None, more: int | None) -> None:
    if less is not None and more is not None:
        assert less <= more


@often
@given(servers, lengths, lengths)
def test_a_shorter_request_never_fits_less(server: Server, one: int, other: int) -> None:
    short, long = (server.fit(max_model_len=length) for length in sorted((one, other)))
    at_most(short.kv.needed, long.kv.needed)
    never_worse(short, long)


@often
@given(servers, st.integers(5, 100), st.integers(5, 100))
def test_a_higher_utilization_never_fits_less(server: Server, one: int, other: int) -> None:
    low, high = (
        server.fit(max_model_len=8192, gpu_memory_utilization=hundredths / 100)
        for hundredths in sorted((one, other))
    )
    never_worse(high, low)


@often
@given(servers, lengths)
def test_a_smaller_type_never_takes_more(server: Server, length: int) -> None:
    eight, sixteen = (
        server.fit(max_model_len=length, kv_cache_dtype=name) for name in ("fp8", "bfloat16")
    )
    # Backends of fp8 have larger blocks, of which the last one is not full.
    token, block = eight.ranks[0].kv_bytes_per_token, eight.kv.block_size
    at_most(token, sixteen.ranks[0].kv_bytes_per_token)
    if token and block and sixteen.kv.needed is not None:
        at_most(eight.kv.needed, sixteen.kv.needed + token * block)
    half, full = (
        server.fit(max_model_len=length, kv_cache_dtype=name, dtype=name)
        for name in ("bfloat16", "float32")
    )
    at_most(half.kv.needed, full.kv.needed)
    at_most(half.ranks[0].weights, full.ranks[0].weights)


@often
@given(servers, gib)
def test_a_larger_gpu_never_fits_less(server: Server, size: int) -> None:
    more = dataclasses.replace(server.gpu, total=server.gpu.total + size * GIB)
    # A larger class of GPU has larger batches of its own.
    options = {"max_model_len": 8192, "max_num_seqs": 256, "max_num_batched_tokens": 8192}
    never_worse(dataclasses.replace(server, gpu=more).fit(**options), server.fit(**options))


@often
@given(models, versions, gpus, lengths, ranks, ranks)
def test_more_ranks_never_hold_more_each(
    model: str, version: str, gpu: GpuMemory, length: int, one: int, other: int
) -> None:
    few, many = (
        Server(model, version, gpu, tensor).fit(max_model_len=length)
        for tensor in sorted((one, other))
    )
    at_most(many.kv.needed, few.kv.needed)
    at_most(many.ranks[0].weights, few.ranks[0].weights)


@often
@given(servers, st.integers(1, 16))
def test_gpus_that_are_there_besides_never_make_it_fit_less(server: Server, more: int) -> None:
    with_more = dataclasses.replace(server, gpus=server.gpus + more)
    few, many = server.fit(max_model_len=8192), with_more.fit(max_model_len=8192)
    never_worse(many, few)
    if few.smallest_tp is not None:
        assert many.smallest_tp == few.smallest_tp


@often
@given(servers, st.integers(0, 200 * GIB), st.integers(0, 200 * GIB))
def test_more_available_memory_holds_more_tokens(server: Server, one: int, other: int) -> None:
    question = server.question(max_model_len=8192)
    little, much = (
        judge_fit(dataclasses.replace(question, available=size)) for size in sorted((one, other))
    )
    never_worse(much, little)
    if little.kv.tokens and much.kv.tokens and little.kv.longest and much.kv.longest:
        assert little.kv.tokens.exact
        assert little.kv.tokens.likely <= much.kv.tokens.likely
        assert little.kv.longest.likely <= much.kv.longest.likely


@often
@given(servers)
def test_the_longest_length_that_is_told_fits_and_one_more_block_does_not(server: Server) -> None:
    fit = server.fit()
    longest = fit.kv.longest
    other = fit.cause not in (None, Cause.REQUEST, Cause.NOTHING_LEFT)
    if other or fit.answer is Answer.UNKNOWN or longest is None or not longest.low:
        return
    assert server.fit(max_model_len=longest.low).answer is Answer.FITS
    if longest.high < (fit.question.length or 0):
        more = server.fit(max_model_len=longest.high + 1)
        assert more.answer is Answer.DOES_NOT_FIT


NASTY: list[Any] = [
    *(0, -1, 1, 2, 7, 1 << 20, 1 << 31, 1 << 39, 1 << 62, 10**30, 1.5),
    *(float("nan"), float("inf"), True, False, None, "32", "", "x" * 1000),
    *([], {}, ["x"], [1, 2], {"a": 1}, [[]], [None], [0] * 5, [{"n": 1}], ["full_attention"] * 3),
    {"quant_method": "fp8"},
]
OPTIONS: dict[str, list[Any]] = {
    "max_model_len": [1, 10**6, 1 << 40, "auto", -1, 0, "x"],
    "gpu_memory_utilization": [0.1, 1.0, 0, 2.5, "nan", -1],
    "block_size": [1, 0, 1 << 40, -3],
    "max_num_seqs": [1, 1 << 40, 0],
    "max_num_batched_tokens": [1, 1 << 40],
    "kv_cache_dtype": ["nvfp4", "x", "fp8_ds_mla"],
    "pipeline_parallel_size": [2, 3, 1 << 30],
    "data_parallel_size": [2, 1 << 30],
    "decode_context_parallel_size": [2, 1 << 30],
    "enable_expert_parallel": [True],
    "kv_cache_memory_bytes": [0, 1 << 30, "1GiB", 1 << 70],
    "quantization": ["fp8", "awq", "x"],
    "speculative_config": [
        {"method": "mtp", "num_speculative_tokens": 1},
        {"num_speculative_tokens": 1 << 40},
        {"method": []},
        "{",
    ],
}


@st.composite
def damaged(draw: st.DrawFn, values: dict[str, Any]) -> dict[str, Any]:
    """A config.json in which a few values are others, or gone."""
    made = dict(values)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(made)))
        value = made[name]
        if isinstance(value, dict) and value and draw(st.booleans()):
            made[name] = draw(damaged(value))
        elif isinstance(value, list) and value and draw(st.booleans()):
            at = draw(st.integers(0, len(value) - 1))
            made[name] = [*value[:at], draw(st.sampled_from(NASTY)), *value[at + 1 :]]
        else:
            made[name] = draw(st.sampled_from(NASTY))
    return made


options_given = st.lists(st.sampled_from(sorted(OPTIONS)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(OPTIONS[name]) for name in names})
)
machines = st.lists(
    st.builds(
        GpuMemory,
        st.sampled_from(["NVIDIA H100", ""]),
        st.sampled_from([0, 1, 24 * GIB, 80 * GIB, 1 << 60]),
        st.sampled_from([None, 0, 10**9, 70 * GIB]),
        st.sampled_from([None, 75, 90, 121]),
        st.booleans(),
    ),
    max_size=2,
)


def whole(fit: Fit) -> None:
    """What a program reads is all there, and no number that JSON has not."""
    made = fit_json(fit)
    must_fit(json.loads(json.dumps(made, allow_nan=False)), fit_schema)


@pytest.mark.hardening
@settings(deadline=None, max_examples=150)
@given(
    models.flatmap(lambda name: damaged(MODELS[name])),
    options_given,
    st.sampled_from([1, 2, 3, 8, 512]),
    machines,
    versions,
    st.sampled_from([None, 0, -5, 10**10]),
)
def test_whatever_a_config_holds_it_is_answered(
    values: dict[str, Any],
    options: dict[str, Any],
    tensor: int,
    here: list[GpuMemory],
    version: str,
    available: int | None,
) -> None:
    config = ConfigJson(values)
    found = config.length()
    asked = memory_options(Profile(tensor_parallel_size=tensor, options=options), options)
    length = found.tokens if found else None
    rules = release(version)
    question = FitQuestion("m", config, "x", asked, rules, tuple(here), length, available=available)
    whole(judge_fit(question))


@pytest.mark.parametrize("model", MODELS)
def test_each_model_of_the_table_is_answered_with_all_that_json_has(model: str) -> None:
    gpu = GpuMemory("NVIDIA H100 80GB HBM3", int(79.18 * GIB), capability=90)
    fit = Server(model, "0.33.0", gpu, 8).fit(max_model_len=4096)
    whole(fit)
    assert fit.kv.max_model_len == 4096
