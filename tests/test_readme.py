"""The READMEs say what the doctor really prints, and both languages the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from doctor.cli import cli

ROOT = Path(__file__).parent.parent
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
COMMAND = r"(?m)(?:`|^|\$ |/)vllm-doctor ([a-z]+)"
TRANSCRIPT = r"```\n\$ vllm-doctor ([^\n]+)\n(.*?)```"


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_the_transcripts_are_real(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = re.findall(TRANSCRIPT, readme.read_text(encoding="utf-8"), re.S)
    assert [words.split()[0] for words, _ in found] == ["diagnose", "explain"]
    for words, said in found:
        assert said == CliRunner().invoke(cli, words.split()).output


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_every_command_that_is_named_exists(readme: Path) -> None:
    named = set(re.findall(COMMAND, readme.read_text(encoding="utf-8")))
    assert named
    assert named <= set(cli.commands)


def test_both_languages_show_the_same_commands_and_figures() -> None:
    one, other = (r.read_text(encoding="utf-8") for r in READMES)
    assert _code(one) == _code(other)
    assert _figures(one) == _figures(other)


def _figures(text: str) -> list[str]:
    """The rows of tables with a figure in them, without what they are called."""
    return re.findall(r"(?m)^\|[^|]+(\| [\d.]+ \|.*)$", text)


def _code(text: str) -> list[str]:
    """The code blocks, comments left out: they are translated."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    return [re.sub(r"(?m)^#.*$", "", block) for block in blocks]
