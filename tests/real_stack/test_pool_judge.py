"""vLLM's own block planning judges the doctor's: the same layers and memory, number by number.

Cells are made here: kinds of models that there are, and mixes made by chance from fixed seeds. By
hand for other versions, whose sources lie in a folder:

    PYTHONPATH=FOLDER ENVIRONMENT/bin/python tests/real_stack/pool_judge.py < cells.json
"""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.shares import Layout
from doctor.fit.defaults import Settled
from doctor.fit.kv import Keeps, KvLayer, stage_sizes
from doctor.fit.options import MemoryOptions
from doctor.fit.pool import Pool, pool
from doctor.fit.releases import Release, release
from doctor.fit.sizes import GIB, NotKnown
from tests.real_stack import lab
from tests.real_stack.conftest import MakeEnvironment

JUDGE = Path(__file__).with_name("pool_judge.py")

PLAIN = {"PATH": "/usr/bin:/bin"}

Layer = dict[str, Any]
Cell = dict[str, Any]


def full(heads: int, size: int, width: int = 2, **more: Any) -> Layer:
    return {"keeps": "full", "heads": heads, "size": size, "width": width, **more}


def mla(size: int = 576, width: int = 2, **more: Any) -> Layer:
    return {"keeps": "mla", "heads": 1, "size": size, "width": width, **more}


def sliding(heads: int, size: int, window: int, width: int = 2, **more: Any) -> Layer:
    return {**full(heads, size, width), "keeps": "sliding", "window": window, **more}


def chunked(heads: int, size: int, window: int) -> Layer:
    return {**full(heads, size), "keeps": "chunked", "window": window}


def cross(heads: int, size: int) -> Layer:
    return {**full(heads, size), "keeps": "cross"}


def state(size: int) -> Layer:
    return {"keeps": "state", "state": size}


def every(first: Layer, second: Layer, count: int, step: int) -> list[Layer]:
    """Layers of two kinds: the second is every `step`th."""
    return [second if number % step == step - 1 else first for number in range(count)]


DRAFT = {"draft": True}
MODELS: dict[str, list[Layer]] = {
    "qwen3-32b": [full(8, 128)] * 64,
    "glm-4.7-flash": [mla()] * 47,
    "glm-4.7-flash with a drafter": [mla()] * 47 + [mla(**DRAFT)],
    "fp8 mla": [mla(576, 1)] * 61,
    "dsa": [mla()] * 78 + [mla(132, 1, indexer=True)] * 78,
    "dsa that skips": [mla(576, 1)] * 78 + [mla(132, 1, indexer=True)] * 21,
    "gpt-oss-20b": every(sliding(8, 64, 128), full(8, 64), 24, 2),
    "gpt-oss-20b with a drafter": [
        *every(sliding(8, 64, 128), full(8, 64), 24, 2),
        full(8, 64, **DRAFT),
    ],
    "gemma-3-27b": every(sliding(16, 128, 1024), full(16, 128), 62, 6),
    "gemma-4-31b": every(sliding(16, 256, 1024), full(4, 512), 60, 6),
    "gemma-4-12b": every(sliding(8, 256, 1024), full(1, 512), 48, 6),
    "llama-4": every(chunked(8, 128, 8192), full(8, 128), 48, 4),
    "only windows": [sliding(8, 128, 4096)] * 32,
    "two windows": every(sliding(8, 128, 4096), sliding(8, 128, 512), 32, 2),
    "whisper": [full(20, 64), cross(20, 64)] * 32,
    "qwen3-next": every(state(1097728), full(2, 256), 48, 4),
    "qwen3-next with a drafter": [
        *every(state(1122304), full(2, 256), 48, 4),
        full(2, 256, **DRAFT),
    ],
    "nemotron-h": ([state(2179072)] * 4 + [full(2, 128)]) * 8,
    "kimi-linear": every(state(1081344), mla(), 27, 4),
    "mamba": [state(3_151_872)] * 48,
    "unlike heads": every(full(8, 128), full(4, 128), 40, 2),
    "unlike heads and windows": every(sliding(8, 128, 512), full(3, 128), 30, 3),
    "windows beside mla": [mla()] * 20 + [sliding(8, 128, 2048, **DRAFT)] * 3,
    "a drafter of another shape": [full(8, 128)] * 36 + [full(32, 128, **DRAFT)],
    "a drafter with larger pages": [
        *every(state(1097728), full(2, 256), 48, 4),
        full(16, 128, **DRAFT),
    ],
    "a drafter of a sliding model": [
        *every(sliding(8, 64, 128), full(8, 64), 36, 2),
        sliding(8, 64, 256, **DRAFT),
    ],
}
LENGTHS = (1, 4096, 40960, 131072, 262144)
SIZES = (64, 128, 256)
AVAILABLE = (0.05, 1.0, 4.45, 15.03, 61.7, 133.9)


def cell(layers: Sequence[Layer], **values: Any) -> Cell:
    """With layers named and cut into pipeline stages, as a whole model has them."""
    usual = {
        "available": 15.03,
        "length": 40960,
        "batched": 8192,
        "batches": 2,
        "block": 16,
        "context": 1,
        "pipeline": 1,
        "aligned": False,
        "step": 0,
        "drafted": 0,
        "retained": 0,
        "encoder": 1500,
        "one_kind": any(layer["keeps"] == "chunked" for layer in layers),
        "auto": False,
    }
    made = {**usual, **values}
    made["layers"] = [
        {"window": None, "block": None, "draft": False, **layer, "name": f"layer.{number}"}
        for number, layer in enumerate(layers)
    ]
    made["stages"] = cut(made["layers"], made["pipeline"])
    own: list[Layer] = [one for one in made["layers"] if not one["draft"]]
    tokens = [one for one in own if one["keeps"] != "state"]
    whole = [one for one in tokens if one["keeps"] in ("full", "mla")] or tokens
    made["main"] = None
    if whole:
        made["main"] = {**sorted(whole, key=token_bytes)[-1], "step": 16}
    made["available"] = [int(made["available"] * GIB)] * made["pipeline"]
    return made


def cut(layers: Sequence[Layer], stages: int) -> list[list[Layer]]:
    """The layers of each pipeline stage, a drafter's on the last."""
    own = [layer for layer in layers if not layer["draft"]]
    made, first = [], 0
    for size in stage_sizes(len(own), stages):
        made.append(own[first : first + size])
        first += size
    made[-1] = made[-1] + [layer for layer in layers if layer["draft"]]
    return made


def by_kind() -> Iterator[Cell]:
    """Every kind of model, with much and little memory, long and short."""
    for number, layers in enumerate(MODELS.values()):
        for turn in range(3):
            yield cell(
                layers,
                available=AVAILABLE[(number + 2 * turn) % len(AVAILABLE)],
                length=LENGTHS[(number + turn + 2) % len(LENGTHS)],
                batched=(2048, 8192, 16384)[turn],
            )
        yield cell(layers, pipeline=2, available=4.0, length=65536)
        yield cell(layers, auto=True, available=2.0, length=262144)
        yield cell(layers, block=64, available=31.0, aligned=True, step=64)
        yield cell(layers, block=32, available=9.0, drafted=3, retained=2, aligned=True)
        yield cell(layers, one_kind=True, available=24.0, length=32768)
        if all(layer["keeps"] in ("full", "mla") for layer in layers):
            yield cell(layers, context=8, length=131072, batched=2048)


def by_chance(seed: int) -> Cell:
    """A mix of layers as no model has them, and memory that is about what they need."""
    chosen = random.Random(seed)  # noqa: S311
    kinds = [
        full(chosen.choice((1, 2, 4, 8)), chosen.choice(SIZES)),
        sliding(
            chosen.choice((2, 4, 8)), chosen.choice((64, 128, 256)), chosen.choice((128, 4096))
        ),
        state(chosen.randrange(50_000, 3_000_000, 64)),
        full(chosen.choice((1, 3, 8)), 128, chosen.choice((1, 2))),
    ]
    apart = {token_bytes(kind): kind for kind in kinds}  # the doctor has no heads to tell them by
    taken = chosen.sample(list(apart.values()), min(len(apart), chosen.choice((1, 2, 2, 3))))
    layers = [layer for _ in range(chosen.randrange(1, 20)) for layer in taken]
    layers += taken[: chosen.randrange(len(taken))]
    if chosen.random() < 0.3 and any(layer["keeps"] != "state" for layer in layers):
        layers = [*layers, full(chosen.choice((5, 16)), 128, **DRAFT)]
    decoders = sum(not layer.get("draft") for layer in layers)
    return cell(
        layers,
        available=chosen.choice((0.01, 0.1, 0.7, 3.0, 11.0, 40.0)) * chosen.uniform(0.5, 1.5),
        length=chosen.randrange(1, 200_000),
        batched=chosen.choice((512, 2048, 8192)),
        batches=chosen.choice((1, 2, 3)),
        block=chosen.choice((16, 16, 32, 128)),
        pipeline=chosen.choice((1, 1, 2)) if decoders > 4 else 1,
        aligned=chosen.random() < 0.5,
        step=chosen.choice((0, 1, 64)),
        drafted=chosen.choice((0, 0, 2)),
        auto=chosen.random() < 0.2,
    )


def cells() -> list[Cell]:
    return [*by_kind(), *(by_chance(seed) for seed in range(200))]


def doctors_pool(one: Cell, rules: Release) -> Pool:
    """What the doctor makes of the same layers."""
    layers = [
        KvLayer(
            layer=number,
            keeps=Keeps(layer["keeps"]),
            token_bytes=token_bytes(layer),
            window=layer["window"],
            state_bytes=layer.get("state", 0),
            align=16,
            block=layer["block"],
            draft=layer["draft"],
        )
        for number, layer in enumerate(one["layers"])
    ]
    decoders = sum(not layer.draft for layer in layers)
    speculative = {"num_speculative_tokens": one["drafted"]} if one["drafted"] else {}
    options = MemoryOptions(
        layout=Layout(tensor=8, pipeline=one["pipeline"]),
        decode_context=one["context"],
        speculative=speculative,
        given={"disable_hybrid_kv_cache_manager": one["one_kind"]},
    )
    settled = Settled(
        max_num_seqs=256,
        max_num_batched_tokens=one["batched"],
        utilization=0.9,
        prefix_caching=one["aligned"],
        hybrid_prefix_caching=False,
        concurrent_batches=one["batches"],
        block_size=one["block"],
        encoder_tokens=one["encoder"],
        retained_tokens=one["retained"] if one["drafted"] and rules.retains_for_drafters else 0,
        checkpoint_step=one["step"] if rules.null_block else 0,
    )
    return pool(layers, ConfigJson({"num_hidden_layers": decoders}), options, rules, settled)


def token_bytes(layer: Layer) -> int:
    if layer["keeps"] == "state":
        return 0
    both = 1 if layer["keeps"] == "mla" else 2
    return int(layer["heads"] * layer["size"] * layer["width"] * both)


def differences(one: Cell, said: dict[str, Any], rules: Release) -> list[str]:
    """What vLLM and the doctor make differently of a cell."""
    try:
        made = doctors_pool(one, rules)
    except NotKnown as error:
        known = said["refused"] and not said["refused"][1].startswith(("No available", "To serve"))
        return [] if known and "needed" not in said else [f"not known: {error.why}: {said}"]
    available, length = one["available"][0], one["length"]
    told: list[tuple[str, Any, Any]] = []
    if "needed" in said:
        told.append(("needed", said["needed"], made.needed(length)))
        longest = made.longest(available, length)
        told.append(("longest", said["longest"], longest))
        length = longest if one["auto"] else length
    elif one["layers"]:
        return [f"vLLM plans nothing: {said}"]
    if said["refused"] is None:
        told += [
            ("fits", True, made.fits(available, length)),
            ("length", said["length"], length),
            ("blocks", said["blocks"], made.blocks(available)),
            ("tokens", said["tokens"], made.tokens(available, length)),
            ("concurrency", said["concurrency"], made.concurrency(available, length)),
        ]
        if made.block_size is not None:
            told.append(("block size", said["block"], made.block_size))
    else:
        told.append(("refused", said["refused"][1][:300], refusal(made, one)))
    return [
        f"{name}: vLLM {theirs}, doctor {ours}" for name, theirs, ours in told if theirs != ours
    ]


def refusal(made: Pool, one: Cell) -> str:
    """What vLLM would say, in its words."""
    available, length = one["available"][0], one["length"]
    stages = [made.stage(number) for number in range(one["pipeline"])]
    for stage in stages:
        usable = stage.usable(available)
        if one["auto"] and made.longest(available, length) <= 0:
            return "Cannot auto-fit max_model_len: not enough GPU memory available to serve even a "
        if usable <= 0:
            return "No available memory for the cache blocks. "
        if (needed := stage.needed(length)) > usable:
            estimated = stage.longest(available, length)
            guess = f"the estimated maximum model length is {estimated}. " if estimated else ""
            return f"({length}), ({gib(needed)} {gib(usable)} {guess}"
    return "nothing"


def gib(number: int) -> str:
    return f"{round(number / GIB, 2)}"


def judged(target: lab.Environment, tried: Sequence[Cell]) -> list[dict[str, Any]]:
    """vLLM's answers, by the interpreter of its environment."""
    ran = subprocess.run(
        [str(target.python), str(JUDGE)],
        input=json.dumps(tried),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        },
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


def comparable(said: dict[str, Any]) -> dict[str, Any]:
    """Its refusal with the numbers that count."""
    if said["refused"] is None:
        return said
    name, text = said["refused"]
    if (found := NEEDED.search(text)) is not None:
        length, needed, usable = found.groups()
        estimated = re.search(r"the estimated maximum model length is \d+\. ", text)
        guess = estimated[0] if estimated else ""
        text = f"({length}), ({needed} {usable} {guess}"
    elif (other := re.match(r"No available memory for the cache blocks\. ", text)) is not None:
        text = other[0]
    elif text.startswith("Cannot auto-fit"):
        text = "Cannot auto-fit max_model_len: not enough GPU memory available to serve even a "
    return {**said, "refused": [name, text]}


NEEDED = re.compile(
    r"max seq len \((\d+)\), \(([0-9.]+) GiB KV cache is needed, which is larger than the "
    r"available KV cache memory \(([0-9.]+) GiB\)"
)


def assert_planned_as_by_vllm(target: lab.Environment, version: str) -> None:
    tried = cells()
    rules = release(version)
    answers = judged(target, tried)
    assert len(answers) == len(tried) >= 40
    wrong = [
        (number, found)
        for number, (one, said) in enumerate(zip(tried, answers, strict=True))
        if (found := differences(one, comparable(said), rules))
    ]
    assert not wrong, wrong[:10]
    assert sum(said["refused"] is None for said in answers) > 100


@pytest.mark.real_stack
def test_blocks_are_planned_as_vllm_plans_them(environment: MakeEnvironment) -> None:
    assert_planned_as_by_vllm(environment(lab.REFERENCE), "0.22.0")


@pytest.mark.newest_stack
def test_blocks_are_planned_as_the_newest_vllm_plans_them(newest: lab.Environment) -> None:
    assert_planned_as_by_vllm(newest, "0.33.0")
