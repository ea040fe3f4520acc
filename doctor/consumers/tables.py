"""What vLLM and transformers know by name, in tables that their own files hold.

Read in vLLM 0.19.1 to 0.33.0 and transformers 4.57 to 5.24 (tests/assumptions). Doctors before 0.4
asked for one name, or looked for no end of a table: their snapshots are asked as they asked.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable

from doctor.consumers.source import Source, Unreadable
from doctor.frozen import dataclass
from doctor.model import Missing, Text
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
QUANTIZATIONS = Table(
    "which quantization methods there are",
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


@dataclass(frozen=True)
class Names:
    """What a table names. `partial`: why it may name others as well, None where all of it was read;
    `lacking`: of these it is known nevertheless that it does not name them."""

    names: frozenset[str] = frozenset()
    partial: Text | None = None
    lacking: frozenset[str] = frozenset()

    def has(self, name: str) -> bool:
        """Whether the table names it. Raises Missing where that cannot be told."""
        if name in self.names or name in self.lacking or self.partial is None:
            return name in self.names
        raise Missing(self.partial)


# _SUFFIX_TO_DEFAULTS of config/model.py (0.22.0 and 0.33.0): what the name of a class may end with,
# where vLLM runs the model of another ending for it.
_ENDINGS = (
    "ForCausalLM",
    "ForConditionalGeneration",
    "ChatModel",
    "LMHeadModel",
    "ForTextEncoding",
    "EmbeddingModel",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForAudioClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ClassificationModel",
    "ForRewardModeling",
    "RewardModel",
    "Model",
)


def served_by(known: Names) -> Callable[[str], bool]:
    """Whether vLLM, which has these classes, serves a model of a class: by itself, or converted to
    an embedding or a classifying one (_normalize_arch). Raises Missing where that is not known."""

    def serves(architecture: str) -> bool:
        ending = next((one for one in _ENDINGS if architecture.endswith(one)), None)
        others = (architecture.replace(ending, other) for other in _ENDINGS) if ending else ()
        return known.has(architecture) or any(other in known.names for other in others)

    return serves


def in_quotes(text: str) -> list[str]:
    """The names in the double quotes of a part of a source."""
    return re.findall(r'"([^"\n]+)"', text)


def keys_in_quotes(text: str) -> list[str]:
    """Those of them that a table of a source has for keys, a row each."""
    return re.findall(r'(?m)^\s*"([^"\n]+)":', text)


def architectures(source: Source) -> Names:
    """The classes of models that this vLLM has."""
    return _names(source, MODELS.names, r'"(.+)"', MODELS.file)


def configurations(source: Source) -> Names:
    """The types of models that this vLLM brings a configuration for."""
    return _names(source, CONFIGURATIONS.names, r'\\s(.+)=\\"', CONFIGURATIONS.file)


def quantization_names(source: Source) -> Names:
    """What --quantization may name in this vLLM."""
    return _names(source, QUANTIZATIONS.names)


def model_types(source: Source) -> Names:
    """The types of models that this transformers (`source`) knows."""
    files = (table.file for table in _TYPES)
    return _names(source, _types, r'\\\(\\s\*"\((.+)\)",', *files)


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


def _names(
    source: Source, whole: Callable[[Source], frozenset[str]], single: str = "", *files: str
) -> Names:
    """The `whole` table. Of a snapshot by a doctor that asked `files` for one name at a time, what
    it was told: `single` is what such a question looks like."""
    try:
        return Names(whole(source))
    except Unreadable as unreadable:
        return Names(partial=unreadable.reason)
    except NotRecorded as gap:
        told: dict[str, bool] = {}
        for path in (source.root / file for file in files):
            for question, answer in gap.searches.get(str(path), {}).items():
                if answer is not None and (match := re.fullmatch(single, question)):
                    name = re.sub(r"\\(.)", r"\1", match[1])  # as before it was escaped
                    told[name] = told.get(name, False) or bool(answer)
        found = frozenset(name for name, answer in told.items() if answer)
        return Names(found, gap.reason, frozenset(told) - found)


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
