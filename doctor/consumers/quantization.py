"""Quantisation as the installed vLLM judges it: which methods it drops, which GPU each needs, and
which of them may be named for a checkpoint.

Read in vLLM 0.22.0 and 0.33.0: config/model.py (_verify_quantization), config/vllm.py
(_get_quantization_config) and layers/quantization.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from doctor.consumers.model_config import ConfigJson
from doctor.consumers.source import Source, Unreadable
from doctor.numbers import number_of

FOLDER = "model_executor/layers/quantization"
_INDEX = f"{FOLDER}/__init__.py"
_SHORTHANDS = "OnlineQuantizationConfig"  # the class of all methods that a loop adds


def deprecated_methods(source: Source) -> frozenset[str]:
    """Those that need --allow-deprecated-quantization; releases without such a list have none.
    Raises Unreadable."""
    path = source.root / _INDEX
    rows = source.target.search(path, r"(?s)\nDEPRECATED_QUANTIZATION_METHODS = \[(.*?)\n?\]")
    if rows:
        return frozenset(re.findall(r'"([^"]+)"', rows[0]))
    if rows is None or source.has(_INDEX, r"\bDEPRECATED_QUANTIZATION_METHODS\b"):
        raise Unreadable(path, "which quantization methods are deprecated")
    return frozenset()


def least_capabilities(source: Source, methods: Iterable[str]) -> dict[str, int | None]:
    """The least compute capability that each of the methods takes (75 is 7.5), by the function that
    vLLM asks; None where it is not a number that is written there. Raises Unreadable."""
    function = source.function(_INDEX, "get_quantization_config")
    modules = dict(_modules(function))
    classes = dict(_classes(function))
    names = {method: classes.get(method, _SHORTHANDS) for method in methods}
    found = {
        name: _least_of(source, name, modules[name]) if name in modules else None
        for name in dict.fromkeys(names.values())
    }
    return {method: found[name] for method, name in names.items()}


def _classes(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Each method and its class, as the table in the function pairs them."""
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Name):
                    yield str(key.value), value.id


def _modules(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Each class that it imports, and the file: from its own package, or by its whole name."""
    for node in ast.walk(function):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module.removeprefix("vllm.").replace(".", "/")
            folder = f"{FOLDER}/" if node.level else ""
            for one in node.names:
                yield one.asname or one.name, f"{folder}{inside}"


# Only what it returns is recorded, not the class.
_LEAST = (
    r"(?ms)^class {name}\b(?:(?!^class ).)*?def get_min_capability\(cls\)[^:]*:"
    r"\s+(?:#[^\n]*\s+)*return ([^\n]+)"
)
_BASES = r"(?m)^class {name}\(([\w, .]+)\)"
_DEEPEST = 3  # classes above one


def _least_of(source: Source, name: str, module: str) -> int | None:
    """What the class says, or the first of those above it that stands in the same file."""
    path = source.root / f"{module}.py"
    for _ in range(_DEEPEST):
        found = source.target.search(path, _LEAST.format(name=name))
        if found:
            return number_of(found[0].partition("#")[0].strip())
        bases = source.target.search(path, _BASES.format(name=name))
        if not bases:
            return None
        name = bases[0].split(",")[0].strip()
    return None


# Names that it takes for a checkpoint of each method, beside the method's own.
_SAME: Mapping[str, frozenset[str]] = {
    "gptq": frozenset(("gptq_marlin", "auto_gptq", "marlin", "moe_wna16")),
    "awq": frozenset(("awq_marlin", "auto_awq", "marlin", "moe_wna16", "cpu_awq")),
    "fp8": frozenset(("deepseek_v4_fp8",)),
}
# Of these checkpoints it decides by itself, whatever is asked for.
_DECIDED = frozenset(("auto-round", "modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8"))
# Each of these takes any checkpoint, or says so itself.
_TAKE_ALL = frozenset(("humming", "gguf"))


def only_of_a_checkpoint(asked: str) -> bool:
    """Whether a method runs weights that were quantised before, and quantises none itself: vLLM
    ends for others, unless an older file of the repository says how (get_config_filenames)."""
    return asked in ("awq", "gptq") or asked in _SAME["awq"] or asked in _SAME["gptq"]


def contradicts(asked: str, config: ConfigJson) -> bool:
    """Whether vLLM ends for `--quantization asked` with this checkpoint: only where it is sure
    (override_quantization_method of all its methods)."""
    made = config.quantization
    if made is None or not made.method or asked == made.method or asked in _TAKE_ALL:
        return False
    return not _decided(config) and asked not in _SAME.get(made.method, frozenset())


def _decided(config: ConfigJson) -> bool:
    """Whether vLLM decides by the checkpoint alone, whatever is asked for."""
    made = config.quantization
    if made is None:
        return False
    by_algorithm = made.algorithm in ("FP8", "NVFP4", "MIXED_PRECISION")
    own = {"mxfp4": ("gpt_oss",), "fp8": ("deepseek_v4", "deepseek_v41")}.get(made.method, ())
    return made.method in _DECIDED or by_algorithm or config.model_type in own


def taken_method(asked: str | None, config: ConfigJson, known: Collection[str]) -> str | None:
    """The method that vLLM, which knows these, goes on with; None where nothing is quantised."""
    made = config.quantization
    if made is None or not made.method or (asked and not _decided(config)):
        return asked
    if made.method == "auto-round" and "inc" in known:
        return "inc"
    gpt_oss = made.method == "mxfp4" and config.model_type == "gpt_oss"
    return "gpt_oss_mxfp4" if gpt_oss else made.method
