"""The verdict of `fit`: what fails for what, and advice that is judged before it is given."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from doctor.consumers.known_models import known_model
from doctor.consumers.model_config import ConfigJson
from doctor.consumers.shares import Layout
from doctor.fit.judge import judge_fit
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import release
from doctor.fit.sizes import GIB
from doctor.fit.verdict import Answer, Cause, Fit, FitQuestion, GpuMemory
from doctor.model import Text

GLM, QWEN = "zai-org/GLM-4.7-Flash", "Qwen/Qwen3-32B"
H100 = GpuMemory("NVIDIA H100 80GB HBM3", int(79.18 * GIB), None, 90)
L40S = GpuMemory("NVIDIA L40S", int(44.4 * GIB), None, 89)
RTX_4090 = GpuMemory("NVIDIA GeForce RTX 4090", int(23.63 * GIB), None, 89)


def asked(
    model: str, *gpus: GpuMemory, tensor: int = 1, version: str = "0.33.0", **options: Any
) -> FitQuestion:
    row = known_model(model)
    assert row is not None
    config = ConfigJson(row.values)
    length = config.length()
    layout = Layout(tensor=tensor, pipeline=options.pop("pipeline", 1))
    layout = dataclasses.replace(layout, elsewhere=options.pop("elsewhere", None))
    return FitQuestion(
        model=model,
        config=config,
        config_from="the table",
        options=MemoryOptions(layout=layout, **options),
        release=release(version),
        gpus=gpus,
        length=length.tokens if length else None,
    )


def again(question: FitQuestion, **options: Any) -> Fit:
    changed = dataclasses.replace(question.options, **options)
    return judge_fit(dataclasses.replace(question, options=changed))


def number(fit: Fit, flag: str) -> str:
    return dict(one.split("=") for one in fit.flags)[flag]


def test_weights_that_exceed_a_gpu_never_fit_and_no_gpu_that_is_not_there_is_advised() -> None:
    fit = judge_fit(asked(GLM, RTX_4090, RTX_4090, tensor=2))
    assert (fit.answer, fit.cause, fit.smallest_tp) == (Answer.DOES_NOT_FIT, Cause.WEIGHTS, None)
    assert fit.flags == ()
    assert [memory.rank for memory in fit.ranks] == [0, 1]


def test_the_models_own_length_counts_where_none_is_said() -> None:
    fit = judge_fit(asked(GLM, H100))
    assert fit.kv.max_model_len == 202752
    assert fit.kv.needed is not None
    assert round(fit.kv.needed / GIB, 2) == 10.22


def test_the_advised_length_fits_and_is_the_longest_of_the_low_end() -> None:
    question = asked(GLM, L40S, L40S, tensor=2)
    fit = judge_fit(question)
    assert (fit.answer, fit.cause) == (Answer.TOO_CLOSE, Cause.REQUEST)
    length = int(number(fit, "--max-model-len"))
    assert again(question, max_model_len=length).answer is Answer.FITS
    assert again(question, max_model_len=length + 64).answer is Answer.TOO_CLOSE


@pytest.mark.parametrize("tensor", [5, 10, 20])
def test_what_divides_the_heads_and_not_the_experts_cannot_start(tensor: int) -> None:
    fit = judge_fit(asked(GLM, *[H100] * 20, tensor=tensor))
    assert (fit.answer, fit.cause) == (Answer.DOES_NOT_FIT, Cause.SHARES)
    assert "moe_intermediate_size" in str(fit.why)
    assert number(fit, "--tensor-parallel-size") == "4"


def test_more_ranks_than_gpus_cannot_start_and_fewer_are_advised() -> None:
    fit = judge_fit(asked(GLM, H100, H100, tensor=4))
    assert (fit.answer, fit.cause) == (Answer.DOES_NOT_FIT, Cause.GPUS)
    assert number(fit, "--tensor-parallel-size") == "2"
    assert len(fit.ranks) == 2


def test_ranks_of_other_machines_are_not_missed_here() -> None:
    why = Text("--nnodes 2: the ranks are shared by several machines")
    fit = judge_fit(asked(QWEN, H100, H100, tensor=4, elsewhere=why, max_model_len=32768))
    assert fit.answer is Answer.FITS
    assert (len(fit.ranks), fit.smallest_tp) == (2, None)


@pytest.mark.parametrize(("gib", "gap"), [(15.03, 298048), (1.0, 19824)])
def test_what_a_log_printed_is_compared_exactly(gib: float, gap: int) -> None:
    question = asked(GLM, version="0.22.0", max_model_len=32768)
    fit = judge_fit(dataclasses.replace(question, available=int(gib * GIB)))
    assert fit.answer is (Answer.FITS if gib > 2 else Answer.DOES_NOT_FIT)
    assert fit.kv.tokens is not None
    assert fit.kv.tokens.exact
    assert fit.kv.tokens.likely == gap
    assert len(fit.ranks) == 1
    assert fit.ranks[0].weights is not None


def test_without_a_gpu_the_answer_is_unknown_and_what_can_be_told_is_told() -> None:
    fit = judge_fit(asked(GLM, tensor=2))
    assert fit.answer is Answer.UNKNOWN
    assert "--gpu" in str(fit.why)
    assert fit.ranks[0].kv_bytes_per_token == 54144
    assert fit.kv.needed is not None
    assert fit.kv.tokens is None


def test_a_model_that_nobody_understands_is_unknown_with_the_reason() -> None:
    question = dataclasses.replace(asked(GLM, H100), config=ConfigJson({"model_type": "odd"}))
    fit = judge_fit(question)
    assert fit.answer is Answer.UNKNOWN
    assert str(fit.why)
    assert (fit.smallest_tp, fit.flags, fit.weights_from) == (None, (), None)
    assert fit.ranks[0].weights is None


# Free memory.


def held(gpu: GpuMemory, free: float) -> GpuMemory:
    return dataclasses.replace(gpu, free=int(free * GIB))


def test_what_others_hold_refuses_the_start_and_a_lower_share_is_advised() -> None:
    question = asked(GLM, held(H100, 70), max_model_len=8192)
    fit = judge_fit(question)
    assert (fit.answer, fit.cause) == (Answer.DOES_NOT_FIT, Cause.FREE)
    share = float(number(fit, "--gpu-memory-utilization"))
    assert share == fit.most_utilization == 0.87
    assert again(question, utilization=share).answer is Answer.FITS
    assert fit.ranks[0].others == H100.total - int(70 * GIB)


def test_a_lower_share_is_no_advice_where_the_weights_do_not_fit_into_it() -> None:
    fit = judge_fit(asked(GLM, held(H100, 7), max_model_len=8192))
    assert (fit.answer, fit.cause, fit.flags) == (Answer.DOES_NOT_FIT, Cause.FREE, ())


def test_nearly_all_of_what_is_free_is_too_close() -> None:
    fit = judge_fit(asked(GLM, held(H100, 73.2), max_model_len=8192))
    assert (fit.answer, fit.cause) == (Answer.TOO_CLOSE, Cause.FREE)


def test_a_gpu_that_nobody_uses_has_no_others() -> None:
    fit = judge_fit(asked(GLM, held(H100, 78.7), max_model_len=8192))
    assert (fit.answer, fit.ranks[0].others) == (Answer.FITS, 0)
    assert judge_fit(asked(GLM, H100)).ranks[0].others is None


def test_of_unequal_gpus_the_smallest_decides() -> None:
    alike = judge_fit(asked(QWEN, H100, H100, tensor=2, max_model_len=32768))
    mixed = judge_fit(asked(QWEN, H100, L40S, tensor=2, max_model_len=32768))
    small = judge_fit(asked(QWEN, L40S, L40S, tensor=2, max_model_len=32768))
    assert alike.answer is Answer.FITS
    assert mixed.kv.tokens is not None
    assert small.kv.tokens is not None
    assert mixed.kv.tokens.likely <= small.kv.tokens.likely


# Options.


def test_a_cache_of_a_said_size_ignores_the_utilization() -> None:
    fit = judge_fit(asked(GLM, H100, kv_cache_bytes=4 * GIB, max_model_len=32768))
    assert fit.answer is Answer.FITS
    assert fit.ranks[0].available is not None
    assert fit.ranks[0].available.exact
    short = judge_fit(asked(GLM, H100, kv_cache_bytes=1 * GIB, max_model_len=32768))
    assert (short.answer, short.cause) == (Answer.DOES_NOT_FIT, Cause.REQUEST)
    large = judge_fit(asked(GLM, H100, kv_cache_bytes=40 * GIB, max_model_len=32768))
    assert (large.answer, large.cause) == (Answer.DOES_NOT_FIT, Cause.NOTHING_LEFT)


def test_the_longest_that_fits_is_found_where_vllm_is_to_find_it() -> None:
    fit = judge_fit(asked(GLM, L40S, L40S, tensor=2, longest=True))
    assert fit.answer is Answer.FITS
    assert fit.kv.longest is not None
    assert fit.kv.max_model_len == fit.kv.longest.likely


def test_pipeline_stages_share_the_layers() -> None:
    question = asked(QWEN, L40S, L40S, pipeline=2, max_model_len=8192)
    fit = judge_fit(question)
    whole = judge_fit(asked(QWEN, L40S, max_model_len=8192))
    assert fit.answer is Answer.FITS
    assert (whole.answer, whole.cause) == (Answer.DOES_NOT_FIT, Cause.WEIGHTS)


@pytest.mark.parametrize("ranks", [1 << 12, 1 << 40])
def test_more_ranks_than_any_machine_has_are_not_counted_one_by_one(ranks: int) -> None:
    layout = Layout(pipeline=ranks)
    question = asked(QWEN, H100)
    options = dataclasses.replace(question.options, layout=layout)
    fit = judge_fit(dataclasses.replace(question, options=options))
    assert fit.cause is Cause.GPUS
    assert len(fit.ranks) == 1


def test_a_gpu_whose_kind_is_not_said_is_reckoned_as_a_usual_one() -> None:
    unnamed = dataclasses.replace(H100, capability=None)
    fit, named = judge_fit(asked(GLM, unnamed)), judge_fit(asked(GLM, H100))
    assert fit.kv == named.kv
    assert "compute capability 9.0" in str(fit.sources[0])


@pytest.mark.parametrize(("version", "shared"), [("0.28.0", False), ("0.29.0", True)])
def test_blocks_of_experts_are_divided_from_0_29_on(version: str, shared: bool) -> None:
    fit = judge_fit(asked("Qwen/Qwen3-235B-A22B-FP8", *[H100] * 8, tensor=8, version=version))
    assert (fit.cause is not Cause.SHARES) is shared
