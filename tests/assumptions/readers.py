"""Everything that is read of a version's files, question by question."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from packaging.version import Version

from doctor.consumers import flashinfer as fi
from doctor.consumers import names, tables, vllm
from doctor.consumers.server_options import Takes, option_table
from doctor.consumers.source import Source
from doctor.consumers.tables import Names
from doctor.model import Missing
from doctor.probes import wheels as probes
from tests.assumptions.wheels import Wheels

CAPABILITIES = (
    *((7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0)),
    *((10, 0), (10, 3), (11, 0), (12, 0), (12, 1)),
)
UNREADABLE = "unreadable: "
VARIABLES = ("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_USE_FLASHINFER_MOE_FP16")
MODELS = (
    *("LlamaForCausalLM", "Qwen3MoeForCausalLM"),
    *("DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"),
)
TYPES = ("llama", "qwen3_moe", "deepseek_v3", "glm4_moe_lite")


def answers(target: Wheels) -> Iterator[tuple[str, str]]:
    """(question, what was read), in words that can be compared; what could not be read begins with
    UNREADABLE and names the file."""
    for question, read in _questions(target):
        try:
            yield question, _words(read())
        except (Missing, names.NotAsKnown, AssertionError, ValueError) as error:
            yield question, f"{UNREADABLE}{error}"


def _words(answer: object) -> str:
    if isinstance(answer, (frozenset, set)):
        answer = sorted(answer)
    if isinstance(answer, (tuple, list)):
        return " ".join(map(str, answer)) or "none"
    return str(answer)


Question = tuple[str, Callable[[], object]]


def _questions(target: Wheels) -> Iterator[Question]:
    packages = target.packages
    known = probes.vllm(target, packages)
    source = Source(target, known.root)
    yield "sampler by default", lambda: known.sampler
    yield from _kernels(source)
    yield from _tables(source)
    yield from _declared(source)
    torch = probes.torch(target, packages, known)
    yield "torch", lambda: f"{torch.version} cuda {torch.cuda} toolkit {torch.toolkit}"
    build = probes.flashinfer(target, packages, known)
    yield "flashinfer", lambda: build.version
    yield from _builds(Source(target, build.root))
    transformers = Source(target, packages.installed["transformers"].folder / "transformers")
    for name in TYPES:
        yield f"transformers knows {name}", partial(_has, tables.model_types, transformers, name)


def _kernels(source: Source) -> Iterator[Question]:
    kernels = vllm.kernels(source, Version("0"))
    yield "sampler", partial(_served, kernels.sampler)
    yield "experts", partial(_served, lambda c: kernels.experts(c) is not None)
    yield "attention", partial(_served, kernels.attention)
    yield "attention by the model", partial(_served, kernels.attention, None)
    yield "sampler falls back", partial(vllm.sampler_falls_back, source)
    yield "has_flashinfer looks for", partial(vllm.needs_for_flashinfer, source)


def _served(
    ask: Callable[[tuple[int, int]], bool | None], answer: bool | None = True
) -> Iterable[str]:
    return [f"{c[0]}.{c[1]}" for c in CAPABILITIES if ask(c) is answer]


def _tables(source: Source) -> Iterator[Question]:
    for table, variable in (
        (tables.MODELS, r"_\w+_MODELS"),
        (tables.CONFIGURATIONS, "_CONFIG_REGISTRY"),
        (tables.QUANTIZATIONS, "QuantizationMethods"),
    ):
        yield (
            f"{table.file} is read whole",
            partial(_whole, source, table.file, variable, table.names),
        )
    for file, read in (
        (tables.REASONING, tables.reasoning_parser_names),
        (tables.TOOLS, tables.tool_parser_names),
    ):
        yield f"{file} is read whole", partial(_whole, source, file, r"\w+_TO_REGISTER", read)
        yield f"{file} has glm4*", partial(_of_glm, source, read)
    for name in MODELS:
        yield f"vLLM has {name}", partial(_has, tables.architectures, source, name)


def _has(read: Callable[[Source], Names], source: Source, name: str) -> bool:
    return read(source).has(name)


def _of_glm(source: Source, read: Callable[[Source], frozenset[str]]) -> Iterable[str]:
    return [name for name in sorted(read(source)) if name.startswith("glm4")]


def _whole(
    source: Source, file: str, variable: str, read: Callable[[Source], frozenset[str]]
) -> bool:
    """Whether Python makes as much of the whole module as was read. Raises ValueError."""
    found = read(source)
    tree = ast.parse((source.root / file).read_bytes())
    true = {name for node in tree.body for name in _named(node, variable)}
    if true != found:
        raise ValueError(f"{file}: {sorted(true ^ found)[:5]} is read otherwise")
    return len(found) > 10


def _named(node: ast.stmt, variable: str) -> Iterator[str]:
    """The names in a table that is assigned to a variable of that pattern."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    if not re.fullmatch(variable, ast.unparse(target)):
        return
    if isinstance(node.value, ast.Dict):
        rows = zip(node.value.keys, node.value.values, strict=True)
        yield from (ast.literal_eval(k) for k, row in rows if k and isinstance(row, ast.Tuple))
    elif isinstance(node.value, ast.Subscript):
        yield from ast.literal_eval(node.value.slice)
    elif isinstance(node.value, ast.Call):
        for keyword in node.value.keywords:
            yield from [keyword.arg] if keyword.arg else ast.literal_eval(keyword.value)


def _declared(source: Source) -> Iterator[Question]:
    def search(file: str, pattern: str) -> tuple[str, ...] | None:
        return source.target.search(source.root / file, pattern)

    yield "variables", lambda: [n for n in VARIABLES if vllm.declares(source, n)]
    yield "more than 100 variables", lambda: len(names.variables(search)) > 100
    yield (
        "options that launch passes",
        lambda: set(names.OPTIONS.values()) <= set(names.options(search)),
    )
    yield "--moe-backend", lambda: "--moe-backend" in names.options(search)
    yield (
        "the table has these options",
        lambda: set(option_table(search).strings) == set(names.options(search)),
    )
    yield (
        "not understood",
        lambda: [
            option.name for option in option_table(search).options if option.takes is Takes.UNKNOWN
        ],
    )


def _builds(source: Source) -> Iterator[Question]:
    yield "another search for CUDA", partial(fi.searches_as_known, source)
    for nvcc in ("12.8", "12.9", "13.0"):
        yield f"archs for nvcc {nvcc}", partial(_archs, source, Version(nvcc))
    yield "libraries", lambda: fi.libraries(source, experts=True)
    for what in ("flashinfer-cubin", "flashinfer-jit-cache"):
        yield f"refuses another {what}", partial(fi.refuses_other_versions, source, what)


def _archs(source: Source, nvcc: Version) -> Iterable[str | None]:
    return [fi.arch(source, capability, nvcc) for capability in CAPABILITIES]
