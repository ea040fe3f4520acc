"""What vLLM keeps of each token in each layer: run by the interpreter of an environment.

    python kv_judge.py < cells.json

Reads a list of cells as judge.py does, beside which it lies, and prints a line of JSON for each:
`layers`, one row for each entry of the table that get_kv_cache_spec of the model runner gives on
rank 0, or `refused`. For a cell vLLM's own code makes the configuration and the whole model, with a
drafter's layers where one is asked for, on torch's `meta` device.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
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
    """One of them in plain values. `token_bytes`: before any page is padded."""
    made = {"name": name, "type": type(spec).__name__, "block_size": spec.block_size}
    if hasattr(spec, "shapes"):
        sizes = [kind.itemsize for kind in spec.dtypes]
        rows = zip(spec.shapes, sizes, strict=True)
        return {**made, "state_bytes": sum(math.prod(shape) * size for shape, size in rows)}
    plain = spec.__class__.__name__
    window = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
    padded = getattr(spec, "page_size_padded", None)
    if padded is not None:
        import dataclasses

        spec = dataclasses.replace(spec, page_size_padded=None)
    backend = layer.get_attn_backend()
    kernel = [
        (getattr(size, "base", None) and [size.base]) or size
        for size in backend.get_supported_kernel_block_sizes()
    ]
    return {
        **made,
        "type": plain,
        "token_bytes": spec.page_size_bytes / spec.block_size,
        "window": window,
        "dtype": str(getattr(spec, "dtype", "")),
        "backend": backend.get_name(),
        "kernel": kernel,
        "padded": padded,
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
        stage[0] = "draft"
        draft(config)
        stage[0] = "block"
        platform = _judge.imported("platforms").current_platform
        platform.update_block_size_for_backend(config)
        stage[0] = "specs"
        cache = config.cache_config
        with _judge.imported("config").set_current_vllm_config(config):
            layers = [row(name, *spec) for name, spec in specs(config).items()]
        return {
            "layers": layers,
            "block_size": cache.block_size,
            "cache_dtype": cache.cache_dtype,
            "mamba_padded": getattr(cache, "mamba_page_size_padded", None),
        }
    except BaseException as error:
        refused = [stage[0], type(error).__name__, str(error)[-1000:]]
        return {"refused": refused, "traceback": traceback.format_exc()[-4000:]}


def in_a_fork(cell: dict[str, Any]) -> dict[str, Any]:
    """What vLLM says of a cell, found in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "answer.json"
        if (child := os.fork()) == 0:
            signal.alarm(LIMIT_S)
            os.environ.update(cell["env"], STAND_IN_CC=cell["capability"])
            _start.RANKS = cell["gpus"]
            said.write_text(json.dumps(answer(cell)))
            sys.stderr.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not said.exists():
            return {"refused": ["judge", "wait status", str(status)]}
        return dict(json.loads(said.read_text()))


def main() -> None:
    cells = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["STAND_IN_CC"] = "9.0"
    _judge.answer_for_more()
    _judge.prepare({cell["model"] for cell in cells})
    _start.forget()
    for cell in cells:
        print(json.dumps(in_a_fork(cell)), file=answers, flush=True)


if __name__ == "__main__":
    main()
