"""Whether vLLM takes a server's arguments for a model: run by the interpreter of an environment.

    python judge.py < cells.json

Reads a list of cells, each `{"model": FOLDER, "arguments": [...], "capability": "9.0", "gpus": 2,
"env": {...}}`, and prints a line of JSON for each: `refused` is None, or the stage, the kind and
the text of what vLLM raised there. For a cell vLLM's own parser reads the arguments, vLLM's own
code checks them and makes its configuration, and then the first layers of rank 0, on torch's `meta`
device, where nothing is computed.

The driver is the stand-in, and torch answers as in _start.py, whose neighbour this is. vLLM is
imported once, and what it then knows of a GPU is forgotten; each cell is a fork with a time limit.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

_start: Any = importlib.import_module("_start")  # this is no part of a package there

LIMIT_S = 60
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "depth")
FEW_POSITIONS = {"max_position_embeddings": 8192}  # a table of all positions is computed
_SHORTER = {
    **FEW_POSITIONS,
    **dict.fromkeys(_LAYERS, 4),  # the kinds of them alternate, the first are dense
}


def answer_for_more() -> None:
    """What a whole model asks of a GPU, beyond _start.py's one."""
    import torch

    _start.answer_for_the_runtime()
    torch.cuda._device_count_nvml = lambda: _start.RANKS
    torch.nn.Module.to = lambda module, *_, **__: module
    about = {"multiprocessor_count": 132, "max_shared_mem": 232448}
    importlib.import_module("triton").runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: SimpleNamespace(backend="cuda", arch=90, warp_size=32),
            get_current_device=lambda: 0,
            get_active_torch_device=lambda: torch.device("meta"),
            utils=SimpleNamespace(get_device_properties=lambda _: about),
        )
    )


def imported(*names: str) -> Any:
    """The first of these modules of vLLM that there is: they move."""
    for name in names[:-1]:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(f"vllm.{name}")
    return importlib.import_module(f"vllm.{names[-1]}")


def prepare(models: set[str]) -> None:
    """Imports what the cells need before any of them is forked; what fails, fails again there."""
    registry = imported("model_executor.models.registry")
    # It imports a model's file in a process of its own, to keep CUDA out of this one; here is none.
    registry._run_in_subprocess = lambda function: function()
    for name in ("entrypoints.openai.api_server", "engine.arg_utils", "platforms"):
        imported(name)
    with contextlib.suppress(Exception):
        imported("model_executor.layers.quantization").get_quantization_config("fp8")
    with contextlib.suppress(Exception):
        importlib.import_module("flashinfer.comm")
    for folder in models:
        values = json.loads((Path(folder) / "config.json").read_text())
        for name in values.get("architectures") or ():
            with contextlib.suppress(Exception):
                registry.ModelRegistry.models[name].load_model_cls()


class Refused(Exception):
    """What vLLM's parser prints before it ends the process."""


def refuse(message: str) -> NoReturn:
    raise Refused(message)


def judged(cell: dict[str, Any], stage: list[str]) -> None:
    """Goes through what a server does with its arguments, and raises what vLLM raises; `stage`:
    where that is."""
    config = configured(cell, stage)
    stage[0] = "worker"
    imported("platforms").current_platform.check_if_supports_dtype(config.model_config.dtype)
    stage[0] = "model"
    if config.parallel_config.data_parallel_size == 1:  # the other replicas would be waited for
        shorten(config.model_config.hf_config)
        construct(config)


def configured(cell: dict[str, Any], stage: list[str]) -> Any:
    """The configuration that vLLM makes of a cell's arguments."""
    options = imported("entrypoints.common.cli_args", "entrypoints.openai.cli_args")
    server = imported("entrypoints.common.cli_args", "entrypoints.openai.api_server")
    stage[0] = "parser"
    parser = options.make_arg_parser(imported("utils.argparse_utils").FlexibleArgumentParser())
    parser.error = refuse
    arguments = parser.parse_args(cell["arguments"])
    if arguments.model_tag is not None:
        arguments.model = arguments.model_tag
    stage[0] = "arguments"
    options.validate_parsed_serve_args(arguments)
    server.validate_api_server_args(arguments)
    stage[0] = "configuration"
    engine = imported("engine.arg_utils").AsyncEngineArgs.from_cli_args(arguments)
    engine.skip_tokenizer_init = True
    engine.load_format = "dummy"
    return engine.create_engine_config()


def construct(config: Any) -> None:
    """Makes the layers of rank 0, on no device, and those of a drafter behind them."""
    import torch
    from vllm.config import set_current_vllm_config

    state, ranks = (
        imported("distributed.parallel_state"),
        config.parallel_config.tensor_parallel_size,
    )
    with set_current_vllm_config(config), tempfile.TemporaryDirectory() as folder:
        state.init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        # The config says so many ranks, and there is one process: its groups are told afterwards.
        state.initialize_model_parallel(1)
        state.get_tp_group().world_size = ranks
        with contextlib.suppress(AssertionError):  # there is one where there are experts
            state.get_ep_group().world_size = ranks
        imported("v1.worker.workspace").init_workspace_manager(torch.device("meta"))
        torch.set_default_dtype(config.model_config.dtype)
        with torch.device("meta"):
            make = imported("model_executor.model_loader.utils").initialize_model
            make(vllm_config=config)


def shorten(config: Any, shorter: Mapping[str, int] = _SHORTER) -> None:
    """Takes away most of the layers and positions of a configuration, in each of its parts."""
    for name, most in shorter.items():
        if isinstance(size := vars(config).get(name), int) and size > most:
            setattr(config, name, most)
    for part in vars(config).values():
        if hasattr(part, "to_dict"):
            shorten(part, shorter)


def answer(cell: dict[str, Any]) -> dict[str, Any]:
    stage = [""]
    try:
        judged(cell, stage)
    except BaseException as error:
        refused = [stage[0], type(error).__name__, str(error)]
        return {"refused": refused, "traceback": traceback.format_exc()[-3000:]}
    return {"refused": None}


def in_a_fork(
    cell: dict[str, Any],
    ask: Callable[[dict[str, Any]], dict[str, Any]] = answer,
    limit_s: int = LIMIT_S,
) -> dict[str, Any]:
    """What vLLM says of a cell, found in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "answer.json"
        if (child := os.fork()) == 0:
            signal.alarm(limit_s)
            os.environ.update(cell["env"], STAND_IN_CC=cell["capability"])
            _start.RANKS = cell["gpus"]
            said.write_text(json.dumps(ask(cell)))
            sys.stderr.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not said.exists():
            return {"refused": ["judge", "wait status", str(status)]}
        return dict(json.loads(said.read_text()))


def main() -> None:
    cells = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # where vLLM logs, up to 0.20
    os.environ["STAND_IN_CC"] = "9.0"
    answer_for_more()
    prepare({cell["model"] for cell in cells})
    _start.forget()
    for cell in cells:
        print(json.dumps(in_a_fork(cell)), file=answers, flush=True)


if __name__ == "__main__":
    main()
