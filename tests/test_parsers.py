"""Which parsers the installed vLLM knows, wherever its release keeps the list."""

from __future__ import annotations

import pytest

from doctor.model import Missing
from doctor.probes.parsers import ReasoningParsers, ToolParsers
from tests.conftest import Environment, facts_of, run_inside

# As in vllm 0.22.0 and 0.33.0; and as in 0.10.0, where it is said beside each parser.
TABLE = '''
"""
    ReasoningParserManager.register_lazy_module(
        name="qwen3",
"""

_REASONING_PARSERS_TO_REGISTER = {
    "deepseek_r1": (  # name
        "deepseek_r1_reasoning_parser",  # filename
        "DeepSeekR1ReasoningParser",  # class_name
    ),
    "granite-20b-fc": ("granite", "Granite"),
}
'''
DECORATED = '''
@ToolParserManager.register_module("llama3_json")
@ToolParserManager.register_module(["llama4_json", 'llama4'])
class Llama3JsonToolParser(ToolParser):
    """register_module("no")"""
'''


def test_the_table_is_read_whole_whoever_asks(server: Environment) -> None:
    (server.site / "vllm/reasoning/__init__.py").write_text(TABLE, encoding="utf-8")
    assert facts_of(server).get(ReasoningParsers).names == ("deepseek_r1", "granite-20b-fc")


def test_older_releases_say_it_beside_each_parser(server: Environment) -> None:
    (server.site / "vllm/tool_parsers/__init__.py").unlink()
    old = server.site / "vllm/entrypoints/openai/tool_parsers"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("from .llama_tool_parser import Llama3JsonToolParser\n")
    (old / "llama_tool_parser.py").write_text(DECORATED, encoding="utf-8")
    assert facts_of(server).get(ToolParsers).names == ("llama3_json", "llama4", "llama4_json")


@pytest.mark.parametrize("text", ["", "PARSERS = load_from_somewhere()\n", "\0\xff" * 99])
def test_a_list_that_is_not_found_leaves_it_open_and_is_named(
    server: Environment, text: str
) -> None:
    table = server.site / "vllm/reasoning/__init__.py"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(Missing, match=r"reasoning/__init__\.py does not say"):
        facts_of(server).get(ReasoningParsers)
    options = ("--python", server.prefix, "--set", "gpus=later", "--set", "archs=8.0")
    said = run_inside("diagnose", *options, "--format", "json")
    outcome = said.outcome("reasoning-parser-unknown")
    assert outcome["verdict"] == "unknown"
    assert "reasoning/__init__.py does not say which parsers there are" in str(outcome["why"])


def test_nothing_of_it_is_run(server: Environment) -> None:
    ran = server.prefix / "ran"
    table = server.site / "vllm/reasoning/__init__.py"
    table.write_text(f"open({str(ran)!r}, 'w')\n{TABLE}", encoding="utf-8")
    facts_of(server).get(ReasoningParsers)
    assert not ran.exists()
