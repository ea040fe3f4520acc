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
TRANSCRIPT = r"```\n\$ vllm-doctor (diagnose --from (\S+))\n(.*?)```"


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_the_transcript_is_real(readme: Path) -> None:
    match = re.search(TRANSCRIPT, readme.read_text(encoding="utf-8"), re.S)
    assert match
    ran = CliRunner().invoke(cli, ["diagnose", "--from", str(ROOT / match[2])])
    assert match[3] == ran.output


@pytest.mark.parametrize("readme", READMES, ids=lambda p: p.name)
def test_every_command_that_is_named_exists(readme: Path) -> None:
    named = set(re.findall(COMMAND, readme.read_text(encoding="utf-8")))
    assert named
    assert named <= set(cli.commands)


def test_both_languages_show_the_same_commands_and_figures() -> None:
    one, other = (r.read_text(encoding="utf-8") for r in READMES)
    assert _code(one) == _code(other)
    assert re.findall(r"\| \d[^|]*\|.*", one)[-3:] == re.findall(r"\| \d[^|]*\|.*", other)[-3:]


def _code(text: str) -> list[str]:
    """The code blocks, comments left out: they are translated."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    return [re.sub(r"(?m)^#.*$", "", block) for block in blocks]
