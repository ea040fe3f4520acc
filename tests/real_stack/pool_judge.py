"""What vLLM itself plans for layers that are given: run by the interpreter of an environment.

    python pool_judge.py < cells.json

Reads a list of cells (tests/real_stack/test_pool_judge.py makes them) and prints a line of JSON for
each: what vLLM's own block planning makes of the layers' specifications. Its configuration is
stood in for by the few values that planning reads; no model and no GPU is asked.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def planning() -> Any:
    """The module that plans: it has another name from 0.33 on."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module("vllm.v1.core.kv_cache_planning")
    return importlib.import_module("vllm.v1.core.kv_cache_utils")


class Judge:
    """Asks one version of vLLM."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.plan = planning()
        self.utils = importlib.import_module("vllm.v1.core.kv_cache_utils")
        self.interface = importlib.import_module("vllm.v1.kv_cache_interface")

    def config(self, cell: dict[str, Any]) -> Any:
        """The values of a VllmConfig that the planning reads."""
        layout = getattr(self.interface, "KVCacheLayout", None)
        cache = SimpleNamespace(
            num_gpu_blocks_override=None,
            mamba_cache_mode="align" if cell["aligned"] else "none",
            get_resolved_kv_cache_layout=lambda: layout.LBNHC if layout else None,
            prefix_cache_retention_interval=None,
            cache_dtype="auto",
            kv_cache_dtype_skip_layers=None,
            block_size=cell["block"],
            user_specified_block_size=True,
            user_specified_mamba_block_size=False,
            mamba_block_size=None,
            mamba_page_size_padded=None,
        )
        return SimpleNamespace(
            model_config=SimpleNamespace(
                max_model_len=cell["length"],
                original_max_model_len=-1 if cell["auto"] else cell["length"],
                supports_kv_cache_grouping=False,
            ),
            parallel_config=SimpleNamespace(
                decode_context_parallel_size=cell["context"],
                prefill_context_parallel_size=1,
                tensor_parallel_size=8,
                pipeline_parallel_size=len(cell["stages"]),
            ),
            scheduler_config=SimpleNamespace(
                max_num_batched_tokens=cell["batched"],
                max_num_encoder_input_tokens=cell["encoder"],
                disable_hybrid_kv_cache_manager=cell["one_kind"],
            ),
            cache_config=cache,
            speculative_config=self.speculation(cell),
            kv_transfer_config=None,
            attention_config=SimpleNamespace(hisparse_config=None),
            device_config=SimpleNamespace(device_type="cuda"),
            max_in_flight_tokens=cell["batched"] * cell["batches"],
            num_prefill_lookahead_tokens=cell["retained"] + 1,
            num_speculative_tokens=cell["drafted"],
        )

    def speculation(self, cell: dict[str, Any]) -> Any:
        if not cell["drafted"]:
            return None
        return SimpleNamespace(
            num_speculative_tokens=cell["drafted"],
            use_multi_module_mtp=lambda: cell["retained"] > 0,
            use_eagle=lambda: False,
            use_eagle_block_drop=lambda: False,
            method="mtp",
        )

    def specification(self, layer: dict[str, Any], cell: dict[str, Any]) -> Any:
        """The KVCacheSpec of one layer."""
        interface, torch = self.interface, self.torch
        if layer["keeps"] == "state":
            return interface.MambaSpec(
                block_size=cell["aligned_block"] if cell["aligned"] else cell["length"],
                shapes=((layer["state"],),),
                dtypes=(torch.uint8,),
                page_size_padded=cell["padded"],
                num_speculative_blocks=cell["drafted"],
                **self.known(interface.MambaSpec, {"mamba_cache_mode": self.mode(cell)}),
                **self.checkpoints(cell),
            )
        words: dict[str, Any] = {
            "block_size": layer["block"] or cell["aligned_block"],
            "num_kv_heads": layer["heads"],
            "head_size": layer["size"],
            "dtype": torch.uint8 if layer["width"] == 1 else torch.bfloat16,
        }
        kind = {
            "full": interface.FullAttentionSpec,
            "mla": interface.MLAAttentionSpec,
            "sliding": interface.SlidingWindowSpec,
            "chunked": interface.ChunkedLocalAttentionSpec,
            "cross": interface.CrossAttentionSpec,
        }[layer["keeps"]]
        if layer["keeps"] == "mla" and not layer.get("indexer"):
            words["cache_dtype_str"] = "auto"  # without it one merges with an indexer's
        if layer["keeps"] in ("sliding", "chunked"):
            name = "sliding_window" if layer["keeps"] == "sliding" else "attention_chunk_size"
            words[name] = layer["window"]
        by_stride = {"indexes_kv_by_block_stride": layer["keeps"] != "mla"}  # as FlashAttention
        return kind(**words, **self.known(kind, by_stride))

    @staticmethod
    def mode(cell: dict[str, Any]) -> str:
        return "align" if cell["aligned"] else "none"

    def checkpoints(self, cell: dict[str, Any]) -> dict[str, Any]:
        kind = self.interface.MambaSpec
        return self.known(kind, {"num_prefill_checkpoint_blocks": 1 if cell["step"] else 0})

    @staticmethod
    def known(kind: Any, words: dict[str, Any]) -> dict[str, Any]:
        """Those that this version has."""
        return {name: value for name, value in words.items() if name in kind.__dataclass_fields__}

    def align(self, cell: dict[str, Any], config: Any) -> None:
        """What the platform makes of the block size of a hybrid: its own code, with a backend and
        a model that say what the cell does."""
        cell["aligned_block"], cell["padded"] = cell["block"], None
        states = [one["state"] for stage in cell["stages"] for one in stage if one.get("state")]
        main = cell["main"]
        if not states or main is None:
            return
        platform = importlib.import_module("vllm.platforms.interface").Platform
        backend = importlib.import_module("vllm.v1.attention.backend")
        several = backend.MultipleOf(main["step"])
        stand_in = SimpleNamespace(
            get_supported_kernel_block_sizes=lambda *_: [several],
            customize_spec=lambda spec: spec,
        )
        config.model_config.__dict__.update(
            is_hybrid=True,
            use_mla=main["keeps"] == "mla",
            dtype=self.torch.uint8 if main["width"] == 1 else self.torch.bfloat16,
            get_num_kv_heads=lambda *_: main["heads"],
            get_head_size=lambda *_: main["size"],
            architecture="",
            architectures=[],
        )
        model = SimpleNamespace(
            get_mamba_state_shape_from_config=lambda _: ((max(states),),),
            get_mamba_state_dtype_from_config=lambda _: (self.torch.uint8,),
        )
        models: Any = importlib.import_module("vllm.model_executor.models")
        models.ModelRegistry = SimpleNamespace(resolve_model_cls=lambda *_, **__: (model, ""))
        abstract: Any = importlib.import_module("vllm.model_executor.layers.mamba.abstract")
        abstract.get_mamba_prefill_checkpoint_alignment = lambda _: cell["step"] or None
        for name in ("vllm.config.vllm", "vllm.config"):
            settings: Any = importlib.import_module(name)
            settings.set_current_vllm_config = lambda *_, **__: contextlib.nullcontext()
        platform._find_non_ssm_backends = classmethod(lambda *_: [stand_in])
        platform._align_hybrid_block_size(config, stand_in)
        cell["aligned_block"] = config.cache_config.block_size
        cell["padded"] = config.cache_config.mamba_page_size_padded

    def answer(self, cell: dict[str, Any]) -> dict[str, Any]:
        config = self.config(cell)
        self.align(cell, config)
        tables = [
            {layer["name"]: self.specification(layer, cell) for layer in stage}
            for stage in cell["stages"]
        ]
        made: dict[str, Any] = {"refused": None, "block": cell["aligned_block"]}
        try:
            made.update(self.planned(config, tables, cell["available"]))
        except (ValueError, NotImplementedError, AssertionError) as error:
            made["refused"] = [type(error).__name__, str(error)]
        config.model_config.max_model_len = cell["length"]
        with contextlib.suppress(ValueError, NotImplementedError, AssertionError):
            made.update(self.reckoned(config, tables, cell["available"]))
        return made

    def planned(self, config: Any, tables: list[Any], available: list[int]) -> dict[str, Any]:
        """What a server would start with."""
        copies = [dict(table) for table in tables]
        if hasattr(self.plan, "get_global_kv_cache_groups"):
            groups = self.plan.get_global_kv_cache_groups(config, copies)
            plans = self.plan.get_kv_cache_configs(config, copies, available, groups)
        else:
            plans = self.plan.get_kv_cache_configs(config, copies, available)
        said = self.utils.get_max_concurrency_for_kv_cache_config(config, plans[0])
        if hasattr(self.utils, "get_kv_cache_capacity"):
            tokens, said = self.utils.get_kv_cache_capacity(config, plans[0])
        else:  # it is only logged
            tokens = self.printed_tokens(config, plans[0])
        return {
            "blocks": plans[0].num_blocks,
            "length": config.model_config.max_model_len,
            "tokens": tokens,
            "concurrency": said,
            "sizes": sorted(group.kv_cache_spec.block_size for group in plans[0].kv_cache_groups),
        }

    def printed_tokens(self, config: Any, plan: Any) -> int:
        """What is printed as "GPU KV cache size"."""
        lines: list[tuple[Any, ...]] = []

        def note(*words: Any, **_: Any) -> None:
            lines.append(words)

        logger = self.plan.logger
        self.plan.logger = SimpleNamespace(info=note, info_once=note)
        try:
            self.plan._report_kv_cache_config(config, plan)
        finally:
            self.plan.logger = logger
        said = next(words[1] for words in lines if words[0].startswith("GPU KV cache size"))
        return int(said.replace(",", ""))

    def reckoned(self, config: Any, tables: list[Any], available: list[int]) -> dict[str, Any]:
        """What one request needs and how long it may be, on the tightest stage."""
        plan = self.plan
        merged = {name: spec for table in tables for name, spec in table.items()}
        if config.num_prefill_lookahead_tokens > 1 and "extra_retained_tokens" in (
            self.interface.SlidingWindowSpec.__dataclass_fields__
        ):
            merged = {
                name: plan.replace(
                    spec, extra_retained_tokens=config.num_prefill_lookahead_tokens - 1
                )
                if isinstance(spec, self.interface.SlidingWindowSpec)
                else spec
                for name, spec in merged.items()
            }
        groups = plan.get_kv_cache_groups(config, merged)
        first: tuple[Any, ...] = ()
        if hasattr(plan, "DefaultKVCacheConfigBuilder"):
            first = (plan.DefaultKVCacheConfigBuilder(),)
        needed, longest = [], []
        for table, memory in zip(tables, available, strict=True):
            here = plan._project_kv_cache_groups_to_worker(groups, table)
            needed.append(plan._max_memory_usage_bytes_from_groups(*first, config, here))
            usable = memory - self.null_block(config, here)
            longest.append(plan._estimate_max_model_len_from_groups(*first, config, here, usable))
        return {"needed": max(needed), "longest": min(longest)}

    def null_block(self, config: Any, groups: Any) -> int:
        """The bytes that a check leaves aside, from 0.29 on."""
        if "Reserve the null block" not in Path(self.plan.__file__).read_text():
            return 0
        function = self.plan._pool_bytes_per_block
        with contextlib.suppress(TypeError):
            return int(function(config, groups))
        return int(function(groups))


def main() -> None:
    cells = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # where vLLM logs
    judge = Judge()
    for cell in cells:
        print(json.dumps(judge.answer(cell)), file=answers, flush=True)


if __name__ == "__main__":
    main()
