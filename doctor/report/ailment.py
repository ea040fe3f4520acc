"""All that is known of an ailment, put together from its rule, its log signatures and its row: the
page of docs/ailments and what `rules show` prints are two renderings of the same sections."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from doctor.model import Needs, Rule, Severity
from doctor.report.moments import moment_of
from doctor.signatures import Catalogue, Remedy, Signature

_LABELS = ("Fix", "Manual", "Workaround", "Sources", "See also")
"""Of the paragraphs of an explanation that are sections of their own."""
_NAMING = ("cause", "generic", "request", "symptom")
"""The roles of signatures that name an ailment in a log."""
_WORKAROUND = re.compile(r"(?:or |a )*workaround: ", re.I)


@dataclass(frozen=True)
class ExplanationParts:
    """The text of a rule or a row, taken apart. `why`: its paragraphs, a line each; `labelled`:
    of the labels that it has, the paragraph."""

    why: tuple[str, ...]
    labelled: Mapping[str, str]


@dataclass(frozen=True)
class Item:
    """One entry of a section: a paragraph, or (`listed`) a point of a list; `commands`: lines of a
    shell below it. Text between backticks is literal."""

    text: str
    commands: tuple[str, ...] = ()
    listed: bool = True


@dataclass(frozen=True)
class Section:
    heading: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Page:
    """One ailment. `rule`: a rule finds it on the machine; `log`: a signature finds it in a log;
    `messages`: what it shows as in logs, literally. A severity of None: it only marks lines that
    are harmless."""

    id: str
    title: str
    area: str
    severity: Severity | None
    rule: bool
    log: bool
    sections: tuple[Section, ...]
    messages: tuple[str, ...]
    see_also: tuple[str, ...]

    @property
    def found_by(self) -> str:
        """How, in a word or two."""
        return " and ".join(word for word, true in (("rule", self.rule), ("log", self.log)) if true)

    def mentions(self, word: str) -> bool:
        """Whether the word (of any case) stands somewhere on the page."""
        texts = (item.text for section in self.sections for item in section.items)
        return any(word.lower() in text.lower() for text in (self.id, self.title, *texts))


def take_apart(explanation: str) -> ExplanationParts:
    """An explanation without its labelled paragraphs, and these by label. Of a rule's docstring
    the first of `why` is the title."""
    why: list[str] = []
    labelled: dict[str, str] = {}
    for paragraph in explanation.strip().split("\n\n"):
        text = " ".join(paragraph.split())
        label, colon, rest = text.partition(": ")
        if colon and label in _LABELS:
            labelled[label] = rest
        else:
            why.append(text)
    return ExplanationParts(tuple(why), labelled)


def pages(rules: Iterable[Rule], catalogue: Catalogue) -> dict[str, Page]:
    """A page for every ailment that a rule or a signature can name, by id, in the order of area
    and id."""
    by_id = {one.id: one for one in rules}
    rows: dict[str, list[Signature]] = {}
    for row in catalogue.signatures:
        rows.setdefault(row.id, []).append(row)
    made = [
        _page(id, by_id.get(id), catalogue, rows.get(id, []))
        for id in {*by_id, *catalogue.ailments}
    ]
    return {page.id: page for page in sorted(made, key=lambda page: (page.area, page.id))}


def _page(id: str, rule: Rule | None, catalogue: Catalogue, rows: list[Signature]) -> Page:
    row = catalogue.ailments.get(id)
    text = rule.explanation if rule else (row and row.explanation) or ""
    told = take_apart(text)
    title = rule.title if rule else (row and row.title) or id
    why = told.why[1:] if rule else told.why
    naming = [one for one in rows if one.role in _NAMING]
    fixes = row.fix if row else ()
    see_also = (*_ids(told.labelled.get("See also", "")), *(row.see_also if row else ()))
    sources = (*_split(told.labelled.get("Sources", "")), *(row.sources if row else ()))
    sections = (
        Section("Why", tuple(Item(paragraph, listed=False) for paragraph in why)),
        Section("In logs", tuple(_messages(naming))),
        Section("How it is found", tuple(_found(rule, naming))),
        *_remedies(told.labelled, fixes),
        Section("Sources", tuple(Item(source) for source in sources)),
        Section("See also", tuple(Item(f"`{other}`") for other in see_also)),
    )
    severities = [one.severity for one in naming]
    return Page(
        id=id,
        title=title,
        area=rule.area if rule else catalogue.areas[id],
        severity=rule.severity if rule else max(severities, key=lambda s: s.rank, default=None),
        rule=rule is not None,
        log=bool(naming),
        sections=tuple(section for section in sections if section.items),
        messages=tuple(dict.fromkeys(one.literal for one in naming)),
        see_also=see_also,
    )


def _split(text: str) -> Iterator[str]:
    """The parts of a list in a sentence; a comma in brackets or in a literal separates nothing."""
    for part in re.split(r", (?![^(]*\))(?=(?:[^`]*`[^`]*`)*[^`]*$)", text.rstrip(".")):
        if part.strip():
            yield part.strip()


def _ids(text: str) -> Iterator[str]:
    return (part.strip("`") for part in _split(text))


def _messages(rows: Iterable[Signature]) -> Iterator[Item]:
    """Each literal once, with who prints it."""
    printers: dict[str, list[str]] = {}
    for row in rows:
        known = printers.setdefault(row.literal.strip(), [])
        if (who := _printer(row)) not in known:
            known.append(who)
    for literal, names in printers.items():
        yield Item(f"{literal_text(literal)} ({'; '.join(names)})")


def _printer(row: Signature) -> str:
    who, _, file = row.printed_by.partition(":")
    versions = f" {row.versions}" if row.versions else ""
    return f"{who}{versions}{f': `{file}`' if file else ''}"


def literal_text(literal: str) -> str:
    """Between as many backticks as it takes."""
    ticks = "``" if "`" in literal else "`"
    space = " " if "`" in literal else ""
    return f"{ticks}{space}{literal}{space}{ticks}"


def _found(rule: Rule | None, naming: list[Signature]) -> Iterator[Item]:
    if rule:
        facts = ", ".join(f"`{kind.__name__}`" for _, kind, _ in rule.needs)
        text = (
            f"On the machine, before the server starts: `vllm-doctor diagnose`, severity "
            f"{rule.severity.value}. It is judged from {facts}."
        )
        yield Item(text)
        moment = moment_of(rule.stage)
        yield Item(f"The server would stop at: {moment}." if moment else "It stops no server.")
    if naming:
        role = ""
        if all(row.role == "symptom" for row in naming):
            role = " It is only a symptom: the cause stands elsewhere in the log."
        elif all(row.role == "request" for row in naming):
            role = " The server stays up; requests fail."
        text = "In a server's log: `vllm-doctor explain FILE` finds one of the messages above."
        yield Item(text + role)


def _remedies(labelled: Mapping[str, str], fixes: Iterable[Remedy]) -> Iterator[Section]:
    """What can be done: by the doctor or with one command, by a person, and around it."""
    items: dict[str, list[Item]] = {
        label: [Item(labelled[label], listed=False)] if label in labelled else []
        for label in ("Fix", "Manual", "Workaround")
    }
    for one in fixes:
        title = _WORKAROUND.sub("", one.title)
        if title != one.title:
            label = "Workaround"
        else:
            label = "Manual" if one.needs is Needs.PERSON else "Fix"
        asks = " (a trade-off: decide first)"
        text = title + (asks if one.needs is Needs.ASK else "")
        items[label].append(Item(_filled_in(text), tuple(map(_filled_in, one.commands))))
    for label, its in items.items():
        yield Section(label, tuple(its))


def _filled_in(template: str) -> str:
    """The values that a log would give, as words in capitals: {target} is TARGET."""
    return re.sub(r"\{(\w+)\}", lambda name: name[1].upper(), template)


def page_lines(page: Page, width: int) -> Iterator[str]:
    """The page for a terminal of `width` columns. Commands are never wrapped, so that they can be
    copied."""
    yield f"{page.id}  ({summary(page)})"
    yield ""
    yield from _wrapped(Item(sentence(page.title), listed=False), "", width)
    for section in page.sections:
        yield from ("", section.heading)
        for i, item in enumerate(section.items):
            if i and not item.listed:
                yield ""
            yield from _wrapped(item, "  ", width)


def sentence(title: str) -> str:
    return f"{title.rstrip('.')}."


def summary(page: Page) -> str:
    """Severity, area, and how it is found."""
    severity = f"{page.severity.value}, " if page.severity else ""
    return f"{severity}{page.area}, found by {page.found_by}"


def _wrapped(item: Item, indent: str, width: int) -> Iterator[str]:
    mark = "- " if item.listed else ""
    yield from textwrap.wrap(
        item.text,
        width,
        initial_indent=indent + mark,
        subsequent_indent=indent + " " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for command in item.commands:
        yield f"{indent}    {command}"


def listing(known: Iterable[Page]) -> Iterator[str]:
    """One line for each ailment."""
    rows = [(p.id, p.severity.value if p.severity else "-", p.area, p.found_by, p) for p in known]
    widths = [max((len(str(row[i])) for row in rows), default=0) for i in range(4)]
    for row in rows:
        cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        yield f"{cells}  {row[4].title}"


def listing_json(known: Iterable[Page]) -> dict[str, Any]:
    """The same for a program. The shape is `listing_schema()`."""
    return {
        "ailments": [
            {
                "id": page.id,
                "title": page.title,
                "area": page.area,
                "rule": page.rule,
                "log": page.log,
                "severity": page.severity and page.severity.value,
            }
            for page in known
        ]
    }


def listing_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `listing_json`."""
    from doctor.report.json import BOOL, TEXT, list_of, object_of

    severity = {"enum": [*(s.value for s in Severity), None]}
    row = object_of(id=TEXT, title=TEXT, area=TEXT, rule=BOOL, log=BOOL, severity=severity)
    schema = object_of(ailments=list_of(row))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
