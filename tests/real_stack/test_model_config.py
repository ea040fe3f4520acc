"""What is read in a config.json, against vLLM's own reading of it: one process for all models."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.real_stack import lab
from tests.test_model_config import REAL

ASKED = """
import json, pathlib, sys
from vllm import platforms
from vllm.platforms.cpu import CpuPlatform
platforms._current_platform = CpuPlatform()
import vllm.config
from vllm.config.model import _get_and_verify_max_len
from vllm.transformers_utils.config import get_config, get_hf_text_config
from vllm.transformers_utils.model_arch_config_convertor import (
    MODEL_ARCH_CONFIG_CONVERTORS, ModelArchConfigConvertorBase as Base)

def read(folder):
    whole = get_config(folder, trust_remote_code=False)
    made = MODEL_ARCH_CONFIG_CONVERTORS.get(whole.model_type, Base)(
        whole, get_hf_text_config(whole)).convert()
    return {
        "architectures": [*made.architectures],
        "model_type": made.model_type,
        "text_model_type": made.text_model_type,
        "hidden_size": made.hidden_size,
        "layers": made.total_num_hidden_layers,
        "attention_heads": made.total_num_attention_heads,
        "head_size": made.head_size,
        "vocabulary": made.vocab_size,
        "key_value_heads": made.total_num_kv_heads,
        "experts": made.num_experts,
        "mla": made.is_deepseek_mla,
        "length": _get_and_verify_max_len(
            hf_config=whole, model_arch_config=made, tokenizer_config=None, max_model_len=None,
            disable_sliding_window=False, sliding_window=None),
        "quant": (made.quantization_config or {}).get("quant_method"),
        "dtype": str(Base.get_torch_dtype(whole, folder, None, "hf")).removeprefix("torch."),
    }

said = {}
for folder in sys.argv[1:]:
    try: said[pathlib.Path(folder).name] = read(folder)
    except ValueError: said[pathlib.Path(folder).name] = None  # it knows no such model
print("SAID" + json.dumps(said))
"""


def judged(python: Path, folder: Path) -> dict[str, Any]:
    folders = []
    for i, one in enumerate(REAL):
        folders.append(folder / str(i))
        folders[-1].mkdir()
        (folders[-1] / "config.json").write_text(json.dumps(one["config"]))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    asked = subprocess.run(
        [python, "-c", ASKED, *folders],
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
        env=env,
        cwd=folder,
    )
    said = json.loads(asked.stdout.rpartition("SAID")[2])
    return {one["model"]: said[str(i)] for i, one in enumerate(REAL)}


@pytest.mark.real_stack
def test_vllm_0_22_reads_each_model_as_is_written_down(tmp_path: Path) -> None:
    said = judged(lab.environment(lab.REFERENCE).python, tmp_path)
    assert said == {one["model"]: one["vllm"]["0.22.0"] for one in REAL}


@pytest.mark.newest_stack
def test_vllm_0_33_reads_each_model_as_is_written_down(tmp_path: Path) -> None:
    said = judged(lab.environment(lab.NEWEST).python, tmp_path)
    assert said == {one["model"]: one["vllm"]["0.33.0"] for one in REAL}
