"""The READMEs and the pages of docs/ that people write, in both languages, and what
in them the doctor itself says.

A block that begins with `$ vllm-doctor ...` is a transcript: what each command prints follows it.
One that asks a file runs in the checkout, any other in the session of tests/session.py; behind it
may stand `2>&1`, `2>/dev/null`, `| head -n N`, `| tail -n N` and a comment. A number such as
`<!--rules-->51<!--/-->` is a count.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from doctor import about
from doctor.consumers.known_models import TABLE
from doctor.engine import load_rules
from doctor.report.ailment import pages
from doctor.shipped import rules_folder
from doctor.signatures import shipped_catalogue
from doctor.toml import load_toml
from doctor.variables import RECORDED
from tests import session
from tests.conftest import run_inside

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAIRS = (
    (ROOT / "README.md", ROOT / "README.zh-CN.md"),
    *((DOCS / page.name, page) for page in sorted((DOCS / "zh").glob("*.md"))),
)
"""Each page in English and in Chinese."""
PAGES = tuple(page for pair in PAIRS for page in pair)
TRANSCRIPT = re.compile(r"```\n(\$ vllm-doctor .*?)```", re.S)
COUNT = re.compile(r"<!--(\w+)-->[\d,]+<!--/-->")

COUNTS: dict[str, Callable[[], int]] = {
    "rules": about.count_rules,
    "signatures": about.count_signatures,
    "ailments": lambda: len(pages(load_rules(rules_folder()), shipped_catalogue())),
    "variables": lambda: len(RECORDED),
    "models": lambda: len(load_toml(rules_folder() / TABLE)),
}
_ASKS_FILES = re.compile(r" --from | --no-live | --vllm-version | rules\b| schema\b| --version")


def generated() -> dict[Path, str]:
    """The text that each page has to have."""
    return {page: renewed(page.read_text(encoding="utf-8")) for page in PAGES}


def renewed(text: str) -> str:
    """A page with its transcripts and counts as they are now."""
    counted = COUNT.sub(lambda m: f"<!--{m[1]}-->{COUNTS[m[1]]()}<!--/-->", text)
    return TRANSCRIPT.sub(lambda m: f"```\n{_transcript(m[1])}```", counted)


def commands(text: str) -> list[str]:
    """The lines that are typed in the transcripts of a page, without `$`."""
    blocks = TRANSCRIPT.findall(text)
    return [line for block in blocks for line in re.findall(r"(?m)^\$ (.*)$", block)]


def _transcript(block: str) -> str:
    return "\n".join(f"$ {line}\n{printed(line)}" for line in re.findall(r"(?m)^\$ (.*)$", block))


def printed(line: str) -> str:
    """What a line of a transcript prints, without empty lines at the end."""
    command, _, filtered = line.partition("  #")[0].partition(" | ")
    together, stdout_only = command.endswith(" 2>&1"), command.endswith(" 2>/dev/null")
    command = re.sub(r" 2>\S+$", "", command)
    if _ASKS_FILES.search(command):
        with inside(ROOT):
            said = run_inside(*shlex.split(command)[1:])
    else:
        said = session.outputs()[command]
    above, rows = said.err.splitlines(), said.out.splitlines()
    if together:
        above, rows = [], [*above, *rows]
    if filtered:
        program, _, number = filtered.partition(" -n ")
        rows = {"head": rows[: int(number)], "tail": rows[-int(number) :]}[program]
    text = "\n".join(rows if stdout_only else [*above, *rows])
    return text.rstrip("\n") + "\n"


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In that folder; contextlib has it from Python 3.11 on."""
    was = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(was)
