"""Whether vLLM can run a model by the class that transformers has for it.

Read in transformers 4.57 and 5.20 (is_backend_compatible, _can_set_attn_implementation) for vLLM
0.22.0 and 0.33.0 (_try_resolve_transformers in model_executor/models/registry.py).
"""

from __future__ import annotations

import re

from doctor.consumers.source import Source, Unreadable
from doctor.consumers.tables import MODELS

_AUTO = "models/auto/modeling_auto.py"
_BACKEND = "_supports_attention_backend = True"
_INTERFACE = "ALL_ATTENTION_FUNCTIONS.get_interface("
# What of a model's file decides; the class itself is one more.
_DECIDING = (
    rf"{_BACKEND}|{re.escape(_INTERFACE)}|^class \w*Attention\w*\(nn\.Module\)"
    r"|^class \w+PreTrainedModel\(PreTrainedModel\)"
)
_SECOND = r"\b_can_set_attn_implementation\("


def backend_takes(vllm: Source, source: Source, architecture: str, model_type: str | None) -> bool:
    """Whether transformers (`source`) has the class, and that can be given vLLM's own attention.
    Raises Unreadable."""
    name = re.escape(architecture)
    types = source.target.search(source.root / _AUTO, rf'\("([\w-]+)", "{name}"\)')
    if types is None:
        raise Unreadable(source.root / _AUTO, "which classes of models there are")
    kinds = dict.fromkeys((*types, *([model_type] if model_type else [])))
    # The part about language is a type of its own, in the file of the whole (aria_text).
    for kind in dict.fromkeys((*kinds, *(kind.removesuffix("_text") for kind in kinds))):
        module = kind.replace("-", "_")
        path = source.root / "models" / module / f"modeling_{module}.py"
        found = source.target.search(path, rf"(?m)^class {name}\(|{_DECIDING}")
        if found is None or f"class {architecture}(" not in found:
            continue
        if _BACKEND in found:
            return True
        if not any("PreTrainedModel(" in one for one in found):
            raise Unreadable(path, f"whether vLLM can run {architecture}")
        attends = any("(nn.Module)" in one for one in found)
        second = vllm.has(MODELS.file, _SECOND)  # 0.22 asks for the flag alone
        return second and (_INTERFACE in found or not attends)
    if types:
        raise Unreadable(source.root / "models", f"what {architecture} is")
    return False
