"""What vLLM keeps of each token in each layer: run by the interpreter of an environment.

    python kv_judge.py < cells.json

Reads a list of cells as judge.py does, beside which it lies, and prints a line of JSON for each:
`layers`, one row for each entry of the table that get_kv_cache_spec of the model runner gives on
rank 0, or `refused`. For a cell vLLM's own code makes the configuration and the whole model, with a
drafter's layers where one is asked for, on torch's `meta` device.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import sys
import traceback
from typing import Any

_judge: Any = importlib.import_module("judge")  # this is no part of a package there
_start: Any = importlib.import_module("_start")

LIMIT_S = 120


def specs(config: Any) -> dict[str, Any]:
    """What each layer of the model asks for (GPUModelRunner.get_kv_cache_spec)."""
    base = _judge.imported("model_executor.layers.attention_layer_base").AttentionLayerBase
    layers = _judge.imported("config").get_layers_from_vllm_config(config, base)
    try:  # from 0.26 at the latest the backend has a word in it
        customize = _judge.imported("v1.worker.utils").customize_attention_spec
    except AttributeError:
        customize = None
    interface = _judge.imported("v1.kv_cache_interface")
    made = {}
    for name, layer in layers.items():
        if getattr(layer, "kv_sharing_target_layer_name", None):
            continue
        spec = layer.get_kv_cache_spec(config)
        if spec is not None:
            if customize and isinstance(spec, interface.AttentionSpec):
                spec = customize(layer.get_attn_backend(), spec)
            made[name] = (spec, layer)
    return made


def row(name: str, spec: Any, layer: Any) -> dict[str, Any]:
    """One of them in plain values. `token_bytes`, `state_bytes`: before any page is padded;
    `align`: tokens of the least block that its backend takes."""
    made = {"name": name, "type": type(spec).__name__}
    if hasattr(spec, "shapes"):
        rows = zip(spec.shapes, spec.dtypes, strict=True)
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in rows)
        return {**made, "state_bytes": size}
    windows = (getattr(spec, name, None) for name in ("sliding_window", "attention_chunk_size"))
    if getattr(spec, "page_size_padded", None) is not None:
        spec = dataclasses.replace(spec, page_size_padded=None)
    blocks = layer.get_attn_backend().get_supported_kernel_block_sizes()
    return {
        **made,
        "token_bytes": spec.page_size_bytes / spec.block_size,
        "window": next((window for window in windows if window is not None), None),
        "align": min(getattr(block, "base", block) for block in blocks),
    }


def draft(config: Any) -> None:
    """Makes a drafter's layers, as the proposer's load_model does."""
    import torch
    from vllm.config import set_current_vllm_config

    if config.speculative_config is None or config.speculative_config.method == "ngram":
        return
    make = _judge.imported("model_executor.model_loader.utils").initialize_model
    with set_current_vllm_config(config), torch.device("meta"):
        make(vllm_config=config, model_config=config.speculative_config.draft_model_config)


def answer(cell: dict[str, Any]) -> dict[str, Any]:
    stage = [""]
    try:
        config = _judge.configured(cell, stage)
        stage[0] = "model"
        _judge.shorten(config.model_config.hf_config, _judge.FEW_POSITIONS)
        _judge.construct(config)
        own = set(config.compilation_config.static_forward_context)
        stage[0] = "draft"
        draft(config)
        stage[0] = "block"
        platform = _judge.imported("platforms").current_platform
        platform.update_block_size_for_backend(config)
        stage[0] = "specs"
        with _judge.imported("config").set_current_vllm_config(config):
            rows = [row(name, *spec) for name, spec in specs(config).items()]
        return {"layers": [{**one, "draft": one["name"] not in own} for one in rows]}
    except BaseException as error:
        refused = [stage[0], type(error).__name__, str(error)[-1000:]]
        return {"refused": refused, "traceback": traceback.format_exc()[-4000:]}


def make_the_parser() -> None:
    """It is the same for all cells, and slow to make."""
    options = _judge.imported("entrypoints.common.cli_args", "entrypoints.openai.cli_args")
    plain = _judge.imported("utils.argparse_utils").FlexibleArgumentParser()
    parser = options.make_arg_parser(plain)
    options.make_arg_parser = lambda _: parser


def main() -> None:
    cells = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ.update(STAND_IN_CC="9.0", VLLM_CONFIGURE_LOGGING="0")
    _judge.answer_for_more()
    _judge.prepare({cell["model"] for cell in cells})
    make_the_parser()
    _start.forget()
    for cell in cells:
        print(json.dumps(_judge.in_a_fork(cell, answer, LIMIT_S)), file=answers, flush=True)


if __name__ == "__main__":
    main()
