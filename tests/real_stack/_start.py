"""What really happens when vLLM starts: run by the interpreter of an environment of the lab.

    python _start.py < cells.json

Reads a list of cells, each `{"capability": "9.0", "env": {"CUDA_HOME": ...}}`, and prints a line of
JSON for each. For a cell vLLM's own code makes its configuration, its sampler and the whole model,
on torch's `meta` device, where nothing is computed; what they chose is then compiled for that GPU
as FlashInfer would: by its own search, its own build.ninja, with one source file, and loaded.

The driver is the stand-in (tests/stand_ins), which knows a GPU's properties and computes nothing;
what torch asks the CUDA runtime about it is answered here. vLLM is imported once, and each cell is
a fork in which all that was remembered of another GPU is forgotten.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import os
import shlex
import subprocess
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import Any

MODEL = {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "model_type": "glm4_moe_lite",
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 2,  # one dense and one of experts; there are 47
    "first_k_dense_replace": 1,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "kv_lora_rank": 512,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.8,
    "max_position_embeddings": 202752,
    "rope_theta": 1000000,
    "partial_rotary_factor": 1.0,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "vocab_size": 154880,
    "eos_token_id": 154820,
    "pad_token_id": 154820,
}
"""config.json of GLM-4.7-Flash, two layers of it."""

RANKS = 2
PARSERS = (("reasoning_parser", "glm45"), ("tool_call_parser", "glm47"))


class Idle:
    """A stream or an event on which nothing ever runs."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def capability() -> tuple[int, int]:
    major, minor = os.environ["STAND_IN_CC"].split(".")
    return int(major), int(minor)


def properties(*_: Any) -> Any:
    """What torch.cuda.get_device_properties would say of such a GPU."""
    major, minor = capability()
    return types.SimpleNamespace(
        name="stand-in",
        major=major,
        minor=minor,
        multi_processor_count=132,
        total_memory=80 << 30,
        L2_cache_size=50 << 20,
        warp_size=32,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=101376 if major in (8, 12) else 232448,
        gcnArchName="",
    )


def answer_for_the_runtime() -> None:
    """The CUDA runtime asks a driver for more than the stand-in knows; torch is told without it."""
    import torch

    cuda = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: RANKS
    cuda.current_device = lambda: 0
    cuda.set_device = lambda *_: None
    cuda.get_device_capability = lambda *_: capability()
    cuda.get_device_properties = properties
    cuda.get_device_name = lambda *_: "stand-in"
    cuda.Stream = cuda.Event = Idle
    cuda.current_stream = lambda *_: Idle()
    torch.accelerator.current_device_index = lambda: 0
    for name in ("empty", "zeros", "ones", "full", "tensor", "arange"):
        setattr(torch, name, on_no_gpu(getattr(torch, name)))


def on_no_gpu(make: Any) -> Any:
    """The same, but for a tensor that should lie on a GPU, which is made without data."""

    @functools.wraps(make)
    def made(*words: Any, **options: Any) -> Any:
        device = options.get("device")
        if isinstance(device, int) or str(device).startswith("cuda"):
            options["device"] = "meta"
        return make(*words, **options)

    return made


def forget() -> None:
    """Empties what vLLM and FlashInfer remembered of the GPU under which they were imported."""
    for one in gc.get_objects():
        if isinstance(one, functools._lru_cache_wrapper):
            module = getattr(one, "__module__", None) or ""
            if module.startswith(("vllm", "flashinfer")):
                one.cache_clear()


def chosen(folder: str) -> dict[str, Any]:
    """What vLLM chooses: class names of the sampler's way, the attention and the experts."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    (Path(folder) / "config.json").write_text(json.dumps(MODEL))
    config = EngineArgs(
        model=folder,
        tokenizer=folder,
        skip_tokenizer_init=True,
        max_model_len=32768,
        load_format="dummy",
        tensor_parallel_size=RANKS,
        distributed_executor_backend="mp",
    ).create_engine_config()
    with set_current_vllm_config(config):
        where = f"file://{folder}/rendezvous"
        parallel_state.init_distributed_environment(1, 0, where, 0, "gloo")
        # The config says two ranks, and there is one process: its group is told so afterwards.
        parallel_state.initialize_model_parallel(1)
        parallel_state.get_tp_group().world_size = RANKS
        with contextlib.suppress(ImportError):  # from 0.20 on
            from vllm.v1.worker.workspace import init_workspace_manager

            init_workspace_manager(torch.device("meta"))
        sampler = TopKTopPSampler()
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            model = initialize_model(vllm_config=config)
    return {
        "sampler": "flashinfer" if sampler.forward == sampler.forward_cuda else "torch",
        **named_choices(model),
    }


def named_choices(model: Any) -> dict[str, Any]:
    """Names of the attention's backend and of the experts', read off the model's layers."""
    made: dict[str, Any] = {"attention": None, "prefill": None, "experts": None}
    for layer in model.modules():
        backend = getattr(layer, "attn_backend", None)
        if backend is not None:
            made["attention"] = backend.get_name()
            prefill = getattr(layer, "prefill_backend", None) or getattr(
                layer.impl, "_run_prefill_new_tokens", None
            )
            made["prefill"] = getattr(prefill, "__name__", None) or type(prefill).__name__
        method = getattr(layer, "quant_method", None)
        if method is not None and hasattr(method, "unquantized_backend"):
            made["experts"] = method.unquantized_backend.name
    return made


def modules(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    """What FlashInfer then compiles: a name, and what generates it or a module that is compiled and
    linked with the same words."""
    wanted: list[tuple[str, Any]] = []
    if choice["sampler"] == "flashinfer":
        wanted.append(("sampling", sampling))
    if choice["experts"] == "FLASHINFER_CUTLASS":
        from flashinfer.jit import fused_moe

        major, minor = capability()
        arch = 120 if major == 12 else 100 if major > 9 else 10 * major + minor
        wanted.append(("experts", getattr(fused_moe, f"gen_cutlass_fused_moe_sm{arch}_module")))
    elif (choice["experts"] or "").startswith("FLASHINFER"):
        wanted.append(("experts", sampling))  # its own generator asks the network for kernels
    used = f"{choice['attention']} {choice['prefill']}".lower()
    if "flashinfer" in used or "trtllm" in used:
        wanted.append(("attention", sampling))  # so does this one
    return wanted


def sampling() -> Any:
    from flashinfer.jit.sampling import gen_sampling_module

    return gen_sampling_module()


def built(generate: Any, folder: str) -> None:
    """Compiles one small source of FlashInfer's as the module's build.ninja says, links it alone
    and loads it. Raises RuntimeError with what the tool said."""
    import flashinfer

    spec = generate()
    spec.write_ninja()
    listing = run(["ninja", "-f", str(spec.ninja_path), "-t", "commands"])
    *compiles, link = listing.strip().splitlines()
    words = shlex.split(next(c for c in compiles if ".cu -o " in c))
    source = Path(flashinfer.__file__).parent / "data/csrc/flashinfer_sampling_binding.cu"
    words[words.index("-c") + 1] = str(source)
    words[words.index("-o") + 1] = made = f"{folder}/one.o"
    for option in {"-MF", "--dependency-output"} & set(words):  # by version
        words[words.index(option) + 1] = f"{folder}/one.d"
    run(words)
    words = [word for word in shlex.split(link) if not word.endswith(".o")]
    words[words.index("-o") + 1] = library = f"{folder}/one.so"
    run([words[0], made, *words[1:]])
    ctypes.CDLL(library, mode=os.RTLD_LAZY)


def run(command: list[str]) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if ran.returncode:
        said = [
            row for row in (ran.stdout + ran.stderr).splitlines() if "rror" in row or "fatal" in row
        ]
        raise RuntimeError(" | ".join(said[:2]) or f"exit {ran.returncode}")
    return ran.stdout


def truth(folder: str) -> dict[str, Any]:
    """Whether the server starts: `died` is None, or the stage and what was raised there."""
    found: dict[str, Any] = {"choice": None, "built": [], "died": None}
    stage = "choose"
    try:
        found["choice"] = chosen(folder)
        for stage, generate in modules(found["choice"]):
            built(generate, folder)
            found["built"].append(stage)
    except BaseException as error:
        found["died"] = [stage, type(error).__name__, str(error)[-400:]]
        found["traceback"] = traceback.format_exc()[-3000:]
    return found


def in_a_fork(cell: dict[str, Any]) -> dict[str, Any]:
    """The truth of a cell, found in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        if (child := os.fork()) == 0:
            os.environ.update(cell["env"], STAND_IN_CC=cell["capability"])
            forget()
            answer.write_text(json.dumps(truth(folder)))
            sys.stderr.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not answer.exists():
            return {"choice": None, "built": [], "died": ["choose", "exit", str(status)]}
        return dict(json.loads(answer.read_text()))


def main() -> None:
    cells = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # where vLLM logs, up to 0.20
    answer_for_the_runtime()
    import vllm.engine.arg_utils
    import vllm.model_executor.model_loader.utils
    import vllm.model_executor.models.glm4_moe_lite  # noqa: F401

    with contextlib.suppress(Exception):  # half of FlashInfer's import; what fails, fails again
        import cutlass.cute  # noqa: F401
    assert "flashinfer" not in sys.modules  # it asks for the GPU
    for cell in cells:
        print(json.dumps(in_a_fork(cell)), file=answers, flush=True)


if __name__ == "__main__":
    main()
