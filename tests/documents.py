"""The READMEs, CONTRIBUTING and the pages of docs/ that people write, in both languages, and what
in them the doctor itself says.

A block that begins with `$ vllm-doctor ...` is a transcript: what the command prints follows it.
One that asks a file runs in the checkout, any other in the session of tests/session.py; behind a
`|` may stand `head -n N` or `tail -n N`. `<!--rules-->51<!--/-->` is a count.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from doctor import about
from doctor.engine import load_rules
from doctor.report.ailment import pages
from doctor.shipped import rules_folder
from doctor.signatures import shipped_catalogue
from tests import corpus, session
from tests.conftest import run_inside

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAIRS = (
    (ROOT / "README.md", ROOT / "README.zh-CN.md"),
    *((DOCS / page.name, page) for page in sorted((DOCS / "zh").glob("*.md"))),
)
"""Each page in English and in Chinese."""
PAGES = (*(page for pair in PAIRS for page in pair), ROOT / "CONTRIBUTING.md")
TRANSCRIPT = re.compile(r"```\n\$ (vllm-doctor [^\n]+)\n(.*?)```", re.S)
COUNT = re.compile(r"<!--(\w+)-->[\d,]+<!--/-->")

COUNTS: dict[str, Callable[[], int]] = {
    "rules": about.count_rules,
    "signatures": about.count_signatures,
    "ailments": lambda: len(pages(load_rules(rules_folder()), shipped_catalogue())),
    "logs": lambda: len(corpus.logs()),
    "real": lambda: sum(log.is_real for log in corpus.logs()),
    "healthy": lambda: sum(log.folder == "healthy" for log in corpus.logs()),
}
_ASKS_FILES = re.compile(r" --from | --no-live | rules\b| schema\b| --version")


def generated() -> dict[Path, str]:
    """The text that each page has to have."""
    return {page: renewed(page.read_text(encoding="utf-8")) for page in PAGES}


def renewed(text: str) -> str:
    """A page with its transcripts and counts as they are now."""
    counted = COUNT.sub(lambda m: f"<!--{m[1]}-->{COUNTS[m[1]]()}<!--/-->", text)
    return TRANSCRIPT.sub(lambda m: f"```\n$ {m[1]}\n{printed(m[1])}```", counted)


def printed(line: str) -> str:
    """What a line of a transcript prints."""
    command, _, filtered = line.partition(" | ")
    if _ASKS_FILES.search(command):
        with inside(ROOT):
            said = run_inside(*shlex.split(command)[1:])
        text = said.out + said.err
    else:
        text = session.outputs()[command.removesuffix(" 2>&1")]
    if not filtered:
        return text
    program, _, number = filtered.partition(" -n ")
    rows = text.splitlines(keepends=True)
    return "".join({"head": rows[: int(number)], "tail": rows[-int(number) :]}[program])


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In that folder; contextlib has it from Python 3.11 on."""
    was = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(was)
