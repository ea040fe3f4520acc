"""The parsers of a model's answers that the installed vLLM knows by name."""

from __future__ import annotations

from typing import ClassVar

from doctor.consumers import tables
from doctor.consumers.source import Source
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact
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
    return ReasoningParsers(tuple(sorted(tables.reasoning_parser_names(Source(target, vllm.root)))))


@probe
def tool_parsers(target: Target, vllm: Vllm) -> ToolParsers:
    return ToolParsers(tuple(sorted(tables.tool_parser_names(Source(target, vllm.root)))))
