"""The pages of docs/ailments, made from the rules and signatures that are shipped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from doctor.engine import load_rules
from doctor.report.ailment import (
    Item,
    Page,
    Section,
    literal_text,
    pages,
    sentence,
    summary,
)
from doctor.shipped import rules_folder
from doctor.signatures import Catalogue, shipped_catalogue

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/ailments"
# Whose issues and pull requests sources name by a number: `vllm#21960`.
REPOSITORIES = {
    "vllm": "vllm-project/vllm",
    "flashinfer": "flashinfer-ai/flashinfer",
    "pytorch": "pytorch/pytorch",
    "triton": "triton-lang/triton",
    "nccl": "NVIDIA/nccl",
    "huggingface_hub": "huggingface/huggingface_hub",
}
_ISSUE = re.compile(rf"(?<![\w/-])({'|'.join(REPOSITORIES)})#(\d+)")
MADE = "<!-- Made by python -m tests.regenerate; edit rules/ instead. -->"


def generated() -> dict[Path, str]:
    """Every page and both indexes, by path."""
    catalogue = shipped_catalogue()
    known = pages(load_rules(rules_folder()), catalogue)
    made = {FOLDER / f"{id}.md": "\n".join([MADE, *markdown(page)]) for id, page in known.items()}
    made[FOLDER / "README.md"] = "\n".join([MADE, *_by_area(known.values())])
    made[FOLDER / "messages.md"] = "\n".join([MADE, *_by_message(known.values(), catalogue)])
    return made


def markdown(page: Page) -> Iterator[str]:
    """One ailment as a page of Markdown, line by line."""
    yield from (f"# {page.id}", "", f"**{_escaped(sentence(page.title))}**", "")
    yield from (f"{summary(page)} ([all ailments](README.md))", "")
    for section in page.sections:
        yield from (f"## {section.heading}", "", *_items(section))


def _items(section: Section) -> Iterator[str]:
    for item in section.items:
        text = _see_also(item) if section.heading == "See also" else _escaped(item.text)
        if section.heading == "Sources":
            text = _ISSUE.sub(_issue, text)
        indent = "  " if item.listed else ""
        yield f"- {text}" if item.listed else text
        if item.commands:
            yield from ("", f"{indent}```sh", *(f"{indent}{c}" for c in item.commands))
            yield f"{indent}```"
        if not item.listed or item.commands:
            yield ""
    if section.items[-1].listed and not section.items[-1].commands:
        yield ""


def _see_also(item: Item) -> str:
    id = item.text.strip("`")
    return f"[{id}]({id}.md)"


def _issue(named: re.Match[str]) -> str:
    return f"[{named[0]}](https://github.com/{REPOSITORIES[named[1]]}/issues/{named[2]})"


def _escaped(text: str) -> str:
    """Text whose only markup is what stands between backticks; addresses stay as they are."""
    pieces = re.split(r"(`+[^`]+`+|https?://\S+)", text)
    return "".join(
        piece if i % 2 else re.sub(r"([\\*<\[\]])|(?<!\w)_|_(?!\w)", r"\\\g<0>", piece)
        for i, piece in enumerate(pieces)
    )


def _by_area(known: Iterable[Page]) -> Iterator[str]:
    known = list(known)
    yield from ("# Ailments", "")
    ruled = sum(page.rule for page in known)
    logged = sum(page.log for page in known)
    yield (
        f"{len(known)} ailments: {ruled} are found on the machine by a rule, {logged} are named "
        "in a log by a signature. `vllm-doctor rules` lists the same, `vllm-doctor rules show ID` "
        "prints a page. [The messages of logs](messages.md)"
    )
    for area, rows in groupby(known, key=lambda page: page.area):
        yield from ("", f"## {area}", "", "| ailment | severity | found by | what |")
        yield "| --- | --- | --- | --- |"
        for page in rows:
            severity = page.severity.value if page.severity else "-"
            title = _escaped(page.title).replace("|", "\\|")
            yield f"| [{page.id}]({page.id}.md) | {severity} | {page.found_by} | {title} |"
    yield ""


def _by_message(known: Iterable[Page], catalogue: Catalogue) -> Iterator[str]:
    yield from ("# Messages in logs", "")
    yield (
        "What `vllm-doctor explain` searches a log for, in alphabetical order. Around most of them "
        "more has to fit: the level, the line, the lines beside it. [All ailments](README.md)"
    )
    naming: dict[str, list[str]] = {}
    for page in known:
        for literal in page.messages:
            naming.setdefault(literal.strip(), []).append(f"[{page.id}]({page.id}.md)")
    yield from ("", "| message | ailment |", "| --- | --- |", *_rows(naming))
    harmless: dict[str, list[str]] = {}
    for row in catalogue.signatures:
        ids = harmless.setdefault(row.literal.strip(), [])
        if row.role == "harmless" and row.id not in ids:
            ids.append(row.id)
    yield from ("", "## Harmless", "", "These are known, and are no failure where they stand.", "")
    yield from ("| message | known as |", "| --- | --- |", *_rows(harmless), "")


def _rows(by_literal: Mapping[str, list[str]]) -> Iterator[str]:
    for literal, ids in sorted(by_literal.items(), key=lambda row: row[0].lower()):
        if ids:
            yield f"| {literal_text(literal).replace('|', chr(92) + '|')} | {', '.join(ids)} |"
