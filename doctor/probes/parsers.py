"""The parsers of a model's answers that the installed vLLM knows by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from doctor.engine import probe
from doctor.model import Fact, Missing, Text
from doctor.probes.wheels import Vllm
from doctor.target import Target


@dataclass(frozen=True)
class ReasoningParsers(Fact):
    """What --reasoning-parser may name."""

    since: ClassVar[str] = "0.2.0"
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolParsers(Fact):
    """What --tool-call-parser may name."""

    since: ClassVar[str] = "0.2.0"
    names: tuple[str, ...] = ()


@probe
def reasoning_parsers(target: Target, vllm: Vllm) -> ReasoningParsers:
    return ReasoningParsers(_registered(target, vllm.root, "reasoning"))


@probe
def tool_parsers(target: Target, vllm: Vllm) -> ToolParsers:
    """Older releases have them in the OpenAI server."""
    folders = ("tool_parsers", "entrypoints/openai/tool_parsers")
    return ToolParsers(_registered(target, vllm.root, *folders))


# A row of the table in __init__.py (read in 0.22.0 and 0.33.0); before it, each parser's own file
# registered it by a decorator.
_ROW = r'(?m)^    "([^"]+)": \('
_DECORATOR = r"(?m)^@\w+ParserManager\.register_module\(([^)]*)\)"


def _registered(target: Target, root: Path, *folders: str) -> tuple[str, ...]:
    """Read as text, never imported. Raises Missing where no such table is found."""
    for folder in folders:
        if rows := target.search(root / folder / "__init__.py", _ROW):
            return tuple(sorted(rows))
    for folder in folders:
        names = [n for n in target.listdir(root / folder) or () if n.endswith("_parser.py")]
        calls = [c for n in names for c in target.search(root / folder / n, _DECORATOR) or ()]
        if found := set(re.findall(r"[\"']([^\"']+)[\"']", " ".join(calls))):
            return tuple(sorted(found))
    raise Missing(Text("vLLM's table in {folder} cannot be read", folder=root / folders[0]))
