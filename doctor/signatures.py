"""Log signatures: rows of data that name an ailment by what it prints."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from doctor import toml
from doctor.codec import CodecError, decode
from doctor.logs.regex import compile_pattern
from doctor.model import Needs, Severity, Text
from doctor.redact import beginning
from doctor.shipped import rules_folder

SignatureRole = Literal[
    "cause",  # stops the server
    "generic",  # stops it too, but any cause beside it says more
    "request",  # fails requests; the server stays up
    "symptom",  # a wrapper, or a consequence: never the cause while something under it says more
    "harmless",
    "start",  # a server begins to start: what comes before belongs to an earlier attempt
    "ready",  # it serves: what comes before did not stop it
    "stop",  # it is told to end: what breaks after that is no failure
    "failure",  # something failed that no row may know
    "logged",  # so it did where the line is one of level error, and nothing says more
    "platform",  # the server runs on something other than CUDA
]
FAILURE_ROLES: tuple[SignatureRole, ...] = ("failure", "logged")
"""Of rows that tell of a failure without a name."""
CAUSES: tuple[SignatureRole, ...] = ("cause", "generic")
"""Of rows that tell what stops a server."""
EXPLAINING: tuple[SignatureRole, ...] = (*CAUSES, "request")
"""Of rows that explain all of a failure, wherever in it they are found."""
Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")

_VALUE_MOST = 2000
"""Characters of a value."""


@dataclass(frozen=True)
class Signature:
    """One text that names an ailment.

    `literal`: what is searched for in the whole log, white space apart. `pattern` then has to match
    the line, freed of prefixes and colours; its named groups are the values of `message`.
    `level`: logged below it, the text tells of a fallback. `near`, `unless`: what has to be, and
    what must not be, in the lines around. `last`: it counts only where nothing but symptoms and
    harmless lines follow; of a request, only where none after it was answered. `times`: it counts
    from so many on. `over`: ids that it explains where both are found. `stage`: it counts only
    before the server is ready, or only from then on. `of`: it counts only on that platform. A
    group `payload` is what failed, where the line wraps it.
    `printed_by`: "distribution:file" (or files, by * or "a or b"), or who else prints it: "nccl".
    `versions`: of the distribution, in which the literal was seen in the file; without them, in all
    that it was looked for in (tests/real_stack/signature_versions.py), or in the installed one.
    """

    id: str
    literal: str
    printed_by: str
    pattern: str | None = None
    role: SignatureRole = "cause"
    level: Level = "error"
    severity: Severity = Severity.ERROR
    near: str | None = None
    unless: str | None = None
    last: bool = False
    times: int = 1
    over: tuple[str, ...] = ()
    stage: Literal["start", "run"] | None = None
    of: Literal["cuda"] | None = None
    message: str | None = None
    versions: str | None = None

    def values(self, text: str) -> dict[str, str] | None:
        """What the row takes out of a cleaned line, the beginnings of long values; None where its
        pattern does not fit."""
        if self.pattern is None:
            return {}
        found = compile_pattern(self.pattern)(text.lstrip())
        if found is None:
            return None
        return {name: _value(text) for name, text in found.items()}

    def fits_among(self, text: str) -> bool:
        """Whether the lines around, one a line, are what `near` and `unless` ask for."""
        if self.near and compile_pattern(self.near)(text) is None:
            return False
        return not (self.unless and compile_pattern(self.unless)(text) is not None)

    def check(self) -> None:
        """Raises ValueError for what could not be found, or not in linear time. Of what comes with
        the doctor, a test does that."""
        core = squeezed(self.literal)
        if len(core) < 4 or re.search(r'[^!-~]|["<>&\\]', core):
            raise ValueError(
                f"{self.id}: literal: {self.literal!r} has to be 4 or more ASCII characters, "
                'without "<>&\\ which JSON escapes'
            )
        for name in ("pattern", "near", "unless"):
            if value := getattr(self, name):
                try:
                    compile_pattern(value)
                except ValueError as error:
                    raise ValueError(f"{self.id}: {name}: {value!r}: {error}") from None
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            SpecifierSet(self.versions or "")
        except InvalidSpecifier as error:
            raise ValueError(f"{self.id}: versions: {error}") from None


@dataclass(frozen=True)
class Remedy:
    """What can be done: `commands` to type, templates of the values that the log gave; dropped
    where it did not give one."""

    title: str
    commands: tuple[str, ...] = ()
    needs: Needs = Needs.PERSON


@dataclass(frozen=True)
class Ailment:
    """What a log can name: title and explanation where no rule of this id carries them. `sources`:
    where the facts of the explanation come from; `see_also`: ids of other ailments."""

    id: str
    title: str | None = None
    explanation: str | None = None
    fix: tuple[Remedy, ...] = ()
    sources: tuple[str, ...] = ()
    see_also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """Rows in the order of their files' names, and the ailments by id. `areas`: by id, the name of
    the file that has the ailment, else its first row."""

    signatures: tuple[Signature, ...]
    ailments: dict[str, Ailment]
    areas: dict[str, str]

    def explains(self, id: str) -> bool:
        """Whether no rule does."""
        return id in self.ailments and self.ailments[id].title is not None


def _value(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _VALUE_MOST else beginning(text, _VALUE_MOST)


def squeezed(literal: str) -> str:
    """A literal without its white space, as it is searched for."""
    return "".join(literal.split())


def load_catalogue(folders: Iterable[Path]) -> Catalogue:
    """Reads signatures/*.toml in each folder. Raises CodecError, ValueError naming the file."""
    rows: list[Signature] = []
    ailments: dict[str, Ailment] = {}
    areas: dict[str, str] = {}
    for folder in folders:
        for path in sorted((folder / "signatures").glob("*.toml")):
            try:
                data = toml.load_toml(path)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            if unknown := set(data) - {"signature", "ailment"}:
                raise CodecError(str(path), Text("unknown table: {name}", name=min(unknown)))
            more = decode(tuple[Signature, ...], data.get("signature", []), f"{path}: signature")
            if folder != rules_folder():
                _check(more, path)
            rows += more
            areas = {**{row.id: path.stem for row in more}, **areas}
            for one in decode(tuple[Ailment, ...], data.get("ailment", []), f"{path}: ailment"):
                if one.id in ailments:
                    raise CodecError(str(path), Text("duplicate ailment {id}", id=one.id))
                ailments[one.id] = one
                areas[one.id] = path.stem
    return Catalogue(tuple(rows), ailments, areas)


def _check(rows: Iterable[Signature], path: Path) -> None:
    for one in rows:
        try:
            one.check()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


@functools.cache
def shipped_catalogue() -> Catalogue:
    """What comes with the doctor. Raises CodecError, ValueError."""
    return load_catalogue((rules_folder(),))


def ids_of(output: str) -> tuple[tuple[str, ...], str]:
    """(the ailments that a compiler's, linker's or loader's `output` names, in its order; the first
    line that names one, or the last line that holds "error" or "fatal", or the last line)."""
    ids: list[str] = []
    telling = ""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    causes = [s for s in shipped_catalogue().signatures if s.role in CAUSES]
    for line in lines:
        for one in causes:
            if one.literal in line and one.values(line) is not None and one.fits_among(output):
                telling = telling or line
                if one.id not in ids:
                    ids.append(one.id)
    lines = [x for x in lines if not x.startswith(("collect2:", "ninja:"))] or lines
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return tuple(ids), beginning(telling or (errors or lines or [""])[-1], 300)
