"""What vLLM allocates for a model's weights: run by the interpreter of an environment.

    python weights_judge.py < cells.json

Reads a list of cells as judge.py, whose neighbour this is, does, and prints a line of JSON for
each: `tensors`, a list of [NAME, SHAPE, BYTES OF AN ELEMENT] of every parameter and buffer that
rank 0 makes on torch's `meta` device; `published`, the same of the model in transformers, whose
names a checkpoint has; or `refused`, what was raised.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

_judge: Any = importlib.import_module("judge")  # this is no part of a package there
_start: Any = importlib.import_module("_start")


def tensors_of(cell: dict[str, Any]) -> list[list[Any]]:
    import torch

    options = _judge.imported("entrypoints.common.cli_args", "entrypoints.openai.cli_args")
    parser = options.make_arg_parser(
        _judge.imported("utils.argparse_utils").FlexibleArgumentParser()
    )
    parser.error = _judge.refuse
    arguments = parser.parse_args(cell["arguments"])
    arguments.model = arguments.model_tag or arguments.model
    engine = _judge.imported("engine.arg_utils").AsyncEngineArgs.from_cli_args(arguments)
    engine.skip_tokenizer_init = True
    engine.load_format = "dummy"
    config = engine.create_engine_config()
    vllm = importlib.import_module("vllm.config")
    state = _judge.imported("distributed.parallel_state")
    parallel = config.parallel_config
    with vllm.set_current_vllm_config(config), tempfile.TemporaryDirectory() as folder:
        state.init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        told(state, parallel)
        _judge.imported("v1.worker.workspace").init_workspace_manager(torch.device("meta"))
        torch.set_default_dtype(config.model_config.dtype)
        with torch.device("meta"):
            model = _judge.imported("model_executor.model_loader.utils").initialize_model(
                vllm_config=config
            )
    return listed(model)


def published(cell: dict[str, Any]) -> list[list[Any]]:
    """Of transformers' own class for the model."""
    import torch

    for name in ("empty", "zeros", "ones", "full", "tensor", "arange"):
        made = getattr(torch, name)  # as _start.py wraps it, no device applies to it
        setattr(torch, name, getattr(made, "__wrapped__", made))
    importlib.import_module("torch.utils._device")._device_constructors.cache_clear()
    transformers: Any = importlib.import_module("transformers")
    config = transformers.AutoConfig.from_pretrained(cell["model"])
    kinds = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    kind = next(kind for kind in reversed(kinds) if type(config) in kind._model_mapping)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = kind.from_config(config)
    return [[name, list(one.shape), one.element_size()] for name, one in model.state_dict().items()]


def told(state: Any, parallel: Any) -> None:
    """The groups are of one process, and are told afterwards how many ranks there are."""
    state.initialize_model_parallel(1)
    ranks = parallel.tensor_parallel_size
    state.get_tp_group().world_size = ranks
    with contextlib.suppress(AssertionError):
        state.get_ep_group().world_size = ranks * parallel.data_parallel_size
    if parallel.data_parallel_size > 1:
        state.get_dp_group().world_size = parallel.data_parallel_size


def listed(model: Any) -> list[list[Any]]:
    import itertools

    seen: set[int] = set()
    made = []
    for name, one in itertools.chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    ):
        if id(one) not in seen:
            seen.add(id(one))
            made.append([name, list(one.shape), one.element_size()])
    return made


def answer(ask: Callable[[dict[str, Any]], Any], cell: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"tensors": ask(cell), "refused": None}
    except BaseException as error:
        refused = f"{type(error).__name__}: {error}"
        return {"refused": refused, "traceback": traceback.format_exc()[-3000:]}


def judged(cell: dict[str, Any]) -> dict[str, Any]:
    """Each side in a process of its own, since each sets torch to its liking."""
    made: dict[str, Any] = _judge.in_a_fork(cell, partial(answer, tensors_of))
    if cell.get("published") and made["refused"] is None:
        other = _judge.in_a_fork(cell, partial(answer, published))
        made |= {"published": other.get("tensors"), "refused": other["refused"]}
    return made


def main() -> None:
    cells = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["STAND_IN_CC"] = "9.0"
    _judge.answer_for_more()
    _judge.prepare({cell["model"] for cell in cells})
    _start.forget()
    for cell in cells:
        print(json.dumps(judged(cell)), file=answers, flush=True)


if __name__ == "__main__":
    main()
