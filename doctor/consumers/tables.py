"""What vLLM and transformers know by name, in tables that their own files hold.

Read in vLLM 0.19.1 to 0.33.0 and transformers 4.57 to 5.24 (tests/assumptions). Doctors before 0.4
asked for one name, or looked for no end of a table: their snapshots are asked as they asked.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from doctor.consumers.source import Source, Unreadable
from doctor.tape import NotRecorded


@dataclass(frozen=True)
class Table:
    """One of `file`: from the line that `opens` it to the one that `ends` it, a `row` for each name
    between them (patterns, from the beginning of a line). Without its end it is no table but what
    is left of one."""

    what: str
    file: str
    opens: str
    row: str
    ends: str

    def names(self, source: Source) -> frozenset[str]:
        """What it names. Raises Unreadable, and NotRecorded."""
        path = source.root / self.file
        # What begins with a newline is looked for five times as fast as what begins with ^.
        pattern = rf"(?m)\n({self.opens}|{self.row}|{self.ends})"
        rows: list[str] | None = None
        for line in source.target.search(path, pattern) or ():
            if rows is None:
                rows = [""] if re.fullmatch(self.opens, line) else None
            elif line.startswith(" "):
                rows.append(line)
            else:
                if not re.fullmatch(self.ends, line):
                    break
                return frozenset(_NAME.findall("\n".join(rows)))
        raise Unreadable(path, self.what)


_NAME = re.compile(r'\n {4,}(?:\(\s*|\*\*\{)?"?([^\s"=]+)')


MODELS = Table(
    "which models there are",
    "model_executor/models/registry.py",
    r"_TEXT_GENERATION_MODELS = \{",
    r' {4}"\w+": \(',
    "ModelRegistry = ",  # the tables of what was dropped have other rows
)
CONFIGURATIONS = Table(
    "which configurations it brings",
    "transformers_utils/config.py",
    r"_CONFIG_REGISTRY\b.*\(",
    r' {4}(?:\w+=|\*\*\{"[^"\n]+")',
    r"\)",
)
QUANTISATIONS = Table(
    "which quantisations there are",
    "model_executor/layers/quantization/__init__.py",
    r"QuantizationMethods = Literal\[",
    r' {4}"[^"\n]+",',
    r"\]",
)
# Of transformers: since 5.x in auto_mappings.py; before, in configuration_auto.py, which still adds
# some.
_MORE_TYPES = "models/auto/configuration_auto.py"
_TYPES = tuple(
    Table(
        "which types of models there are",
        file,
        r"CONFIG_MAPPING_NAMES = .*\($",
        r' {8}\(\s*"[^"\n]+",\s*"\w+Config"',
        r"\)",
    )
    for file in ("models/auto/auto_mappings.py", _MORE_TYPES)
)


def has_architecture(source: Source, name: str) -> bool:
    """Whether this vLLM has that class of models. Raises Unreadable."""
    try:
        return name in MODELS.names(source)
    except NotRecorded:
        return _named(source, rf'"{re.escape(name)}"', MODELS.file)


def has_configuration(source: Source, model_type: str) -> bool:
    """Whether this vLLM brings a configuration for models of that type. Raises Unreadable."""
    try:
        return model_type in CONFIGURATIONS.names(source)
    except NotRecorded:
        return _named(source, rf"\s{re.escape(model_type)}=\"", CONFIGURATIONS.file)


def has_type(source: Source, model_type: str) -> bool:
    """Whether this transformers (`source`) knows models of that type. Raises Unreadable."""
    try:
        return model_type in _types(source)
    except NotRecorded:
        files = (table.file for table in _TYPES)
        return _named(source, rf'\(\s*"({re.escape(model_type)})",', *files)


def _types(source: Source) -> frozenset[str]:
    more = source.target.search(
        source.root / _MORE_TYPES, r'(?m)(?:^ {8}|\*\*\{)"([^"\n]+)": "\w+Config"'
    )
    if more is None:
        raise Unreadable(source.root / _MORE_TYPES, _TYPES[0].what)
    for table in _TYPES:
        with contextlib.suppress(Unreadable):
            return table.names(source).union(more)
    raise Unreadable((source.root / _MORE_TYPES).parent, _TYPES[0].what)


def _named(source: Source, question: str, *files: str) -> bool:
    answers = [source.target.search(source.root / file, question) for file in files]
    if all(answer is None for answer in answers):
        raise Unreadable(source.root / files[0], "what there is")
    return any(answers)


REASONING, TOOLS = "reasoning/__init__.py", "tool_parsers/__init__.py"
_OLDER_TOOLS = "entrypoints/openai/tool_parsers/__init__.py"


def reasoning_parser_names(source: Source) -> frozenset[str]:
    """What --reasoning-parser may name in this vLLM. Raises Unreadable."""
    return _parsers(source, "reasoning parsers", REASONING)


def tool_parser_names(source: Source) -> frozenset[str]:
    """What --tool-call-parser may name. Older releases have them in the OpenAI server. Raises
    Unreadable."""
    return _parsers(source, "tool parsers", TOOLS, _OLDER_TOOLS)


# Up to 0.10 there was no table, and each parser's own file registered it. What the older pattern
# takes of a file without any ")" grows with the square of its size.
_DECORATOR = r"(?m)^@\w+ParserManager\.register_module\(([^)@]*)\)"
_OLDER_DECORATOR = r"(?m)^@\w+ParserManager\.register_module\(([^)]*)\)"


def _parsers(source: Source, kind: str, *files: str) -> frozenset[str]:
    decorator = _DECORATOR
    opens, row = r"_\w+_PARSERS_TO_REGISTER = \{", r' {4}"[^"\n]+": \('
    try:
        for file in files:
            with contextlib.suppress(Unreadable):
                return Table(kind, file, opens, row, r"\}").names(source)
    except NotRecorded:
        rows = [source.target.search(source.root / f, r'(?m)^    "([^"]+)": \(') for f in files]
        if named := next(filter(None, rows), ()):
            return frozenset(named)
        decorator = _OLDER_DECORATOR
    if registered := frozenset(_registered(source, files, decorator)):
        return registered
    raise Unreadable(source.root / files[0], f"which {kind} there are")


def _registered(source: Source, files: tuple[str, ...], decorator: str) -> Iterable[str]:
    for folder in ((source.root / file).parent for file in files):
        for name in source.target.listdir(folder) or ():
            if name.endswith("_parser.py"):
                for call in source.target.search(folder / name, decorator) or ():
                    yield from re.findall(r"[\"']([^\"']+)[\"']", call)
