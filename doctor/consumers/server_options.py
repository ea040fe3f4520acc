"""The options of `vllm serve` as a version of vLLM makes them, read from its sources as text.

vLLM makes most of them of the annotations of its configuration classes (`_compute_kwargs` of
engine/arg_utils.py) and says the rest where it adds them (`add_cli_args`); both are done here as it
does them, on what the files say. Read in 0.19 to 0.33.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, NamedTuple

from doctor.consumers.names import ENGINE, FRONTEND, PARSER, FileSearch, NotAsKnown
from doctor.consumers.source import parsed
from doctor.frozen import dataclass


class Takes(str, Enum):
    """What an option makes of a word: `SIZE`: a whole number, "40k" too; `LENGTH`: also "auto";
    `CONFIG`: JSON for a configuration class; `TEXT_OR_JSON`: JSON where it looks like an object.
    `UNKNOWN`: what could not be read; its values are not judged."""

    SWITCH = "switch"
    PAIR = "pair"
    TEXT = "text"
    INT = "int"
    FLOAT = "float"
    SIZE = "size"
    LENGTH = "length"
    JSON = "json"
    CONFIG = "config"
    TEXT_OR_JSON = "text or json"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class ServerOption:
    """One option. `negative`: of its strings, those that switch it off. `many`: as argparse's
    `nargs`; `without`: what it says where its value is left out. `optional`: "None" says none.
    `keys`: those that a configuration class has, None where they are not known; `lowered`: the text
    is made lower case, and its dashes underscores; `or_none`: "none" says nothing; `repeated`: each
    use adds to the ones before.
    """

    strings: tuple[str, ...]
    name: str
    takes: Takes = Takes.TEXT
    negative: tuple[str, ...] = ()
    many: str | int | None = None
    choices: tuple[Any, ...] = ()
    default: Any = None
    without: Any = None
    optional: bool = False
    keys: tuple[str, ...] | None = None
    lowered: bool = False
    or_none: bool = False
    repeated: bool = False


@dataclass(frozen=True)
class OptionTable:
    """All of a version. `config_says_no`: what is `false` in a --config file is --no-... for the
    parser that reads it, from 0.33. `demands`: of the sentences in DEMANDS, those that it has."""

    options: tuple[ServerOption, ...]
    config_says_no: bool = False
    demands: tuple[str, ...] = ()

    def find(self, name: str) -> ServerOption | None:
        """By its name with underscores."""
        return next((one for one in self.options if one.name == name), None)

    @property
    def strings(self) -> tuple[str, ...]:
        return tuple(string for one in self.options for string in one.strings)


CONFIGS = "config/__init__.py"
# To the end of the line; where a bracket is left open there, to the line that closes it. What no
# file of vLLM's has so long is not followed, or a file of nothing but open brackets took hours.
_REST = r"[^\n]*(?:(?<=[(\[{])\n(?:(?! *[)\]}])[^\n]*\n){0,199} *[)\]}][^\n]*)*"
# What a call of add_argument has: a string and what get_kwargs made, all else on one line, or the
# lines to the one that closes it.
_REGULAR = r'(?:"-[\w-]+",\s*)+\*\*\w+(?:\["\w+"\])?(?=,?\s*\))'
_OTHER = r'(?<=\()["*][^\n]*|["*][^\n]*(?:\n(?! *\)\n)[^\n]*){0,99}'
_STATEMENTS = (
    r'\n {4,16}(?:\w+\.add_argument\(\s*(?=["*])|(?=(?:del )?\w+_kwargs\b))'
    rf"({_REGULAR}|{_OTHER}|(?:del )?\w+_kwargs(?:\[| = (?=get_kwargs|\w+_kwargs)){_REST})"
)
_HELPER = (
    r"\n *((?:elif name in \(|human_readable_int_args = |def is_dict_subclass"
    rf'|kwargs\[name\]\["choices"\]\.append){_REST})'
)
# Classes, their fields, the names of types; docstrings are passed over. It is short, since a
# snapshot holds it once for each file.
_DECLARED = (
    r'\n(?:    )?(?:"""[\s\S]{0,9999}?"""|((?:[a-z]\w*: (?!Cl)|class '
    r"|@(?:config|dataclass)(?=[(\s])"
    rf'|from (?:vllm\.c|\.)|[A-Z]\w*(?:: \w+)? = (?=Any|str|[("]|\w+\[|\w+ \|)){_REST}))'
)
SERVE = "entrypoints/cli/serve.py"
DEMANDS = (
    "--enable-log-outputs requires --enable-log-requests",
    "--enable-per-request-metrics requires engine statistics",
    "--grpc and --grpc-port are mutually exclusive",
    "--sse-keep-alive-interval must be a non-negative integer",
    "Cannot use more than one data parallel load balancing mode",
    "used with --headless (no API servers are started",
)
"""With what vLLM refuses options that exclude or need each other, once they are parsed."""
_DEMANDS = "(" + "|".join(map(re.escape, DEMANDS)) + ")"
_TYPES = rf"\n([A-Z]\w*(?:: \w+)? = (?:Literal\[|Union\[){_REST})"
_IMPORTS = r"\nfrom ((?:vllm)?\.[\w.]+) import (?:\*|[^\n(]*(?:\([^)]{{0,9999}})?\b{}\b)"
_NO_KEY = r'(no_key := f"--no-)'
_PAIRS = r"\nclass (EnableDisableAction)\b"


def option_table(search: FileSearch) -> OptionTable:
    """Raises NotAsKnown where a file does not declare options as in the versions that were read;
    one option that is written otherwise is UNKNOWN."""
    front = next((file for file in FRONTEND if search(file, _STATEMENTS) is not None), None)
    if front is None:
        raise NotAsKnown(*FRONTEND)
    sources = _Sources(search)
    script = _Script(sources)
    script.run_server(front, search(front, _STATEMENTS) or ())
    script.run(ENGINE, search(ENGINE, _STATEMENTS) or ())
    for file in (front, ENGINE):
        if file not in script.added:
            raise NotAsKnown(file)
    both = bool(search(PARSER, _PAIRS))
    made = (_finished(option, both) for option in script.options)
    demands = {one for file in (front, SERVE) for one in search(file, _DEMANDS) or ()}
    return OptionTable((_HELP, *made), bool(search(PARSER, _NO_KEY)), tuple(sorted(demands)))


_HELP = ServerOption(("-h", "--help"), "help", Takes.SWITCH)
_INVERSE = (("--enable-", "--disable-"), ("--disable-", "--enable-"))


def _finished(option: ServerOption, both: bool) -> ServerOption:
    """With the strings that a pair has beside its own (BooleanOptionalAction, and from 0.33
    EnableDisableAction)."""
    if option.takes is not Takes.PAIR:
        return option
    long = [string for string in option.strings if string.startswith("--")]
    negative = [f"--no-{string[2:]}" for string in long]
    negative += [b + s.removeprefix(a) for s in long for a, b in _INVERSE if both and a in s[:10]]
    return replace(option, strings=(*option.strings, *negative), negative=tuple(negative))


class _Unread(Exception):
    """Written otherwise than what is known."""


class _Type(NamedTuple):
    """What `type=` says of a value."""

    takes: Takes
    optional: bool = False
    keys: tuple[str, ...] | None = None
    lowered: bool = False
    or_none: bool = False


_Arguments = dict[str, Any]  # of a call of add_argument


# What an annotation says.


class _Hint(NamedTuple):
    """One of the types of a union: `kind` is a builtin's name, "Literal", "config" or "other"."""

    kind: str
    of: tuple[Any, ...] = ()


_BUILTIN = ("bool", "int", "float", "str", "None", "dict", "list", "tuple", "set")
_PLAIN = {"int": Takes.INT, "float": Takes.FLOAT, "str": Takes.TEXT}
_WRAPPERS = ("Annotated", "SkipValidation", "InitVar")


class _Class(NamedTuple):
    """A class as written: its module, bases, fields (name -> text), and whether it is made a
    dataclass; `open`: it may have keys beside its fields."""

    file: str
    bases: tuple[str, ...]
    fields: dict[str, str]
    made: bool = False
    open: bool = False


class _Module:
    """What a file of configuration classes declares."""

    def __init__(self, file: str, pieces: Iterable[str]) -> None:
        self.file = file
        self.classes: dict[str, _Class] = {}
        self.values: dict[str, str] = {}
        self.imported: dict[str, str] = {}
        mark, current = "", None
        for piece in map(str.rstrip, pieces):  # a file may have lines as Windows ends them
            if piece.startswith("@"):
                mark = piece
            elif match := re.match(_CLASS, piece):
                bases = tuple(re.findall(r"\w+", match[2] or ""))
                opened = "extra" in mark and "forbid" not in mark
                current = _Class(file, bases, {}, bool(mark), opened)
                self.classes[match[1]] = current
                mark = ""
            elif match := re.match(_IMPORT, piece):
                for name in re.findall(r"\w+(?: as \w+)?", match[2]):
                    self.imported[name.split()[-1]] = _file_of(file, match[1])
            elif match := re.match(_VALUE, piece):
                self.values.setdefault(match[1], match[2])
            elif current and not piece.endswith(","):  # and no parameter
                current.fields.setdefault(piece.partition(":")[0], piece)


def _file_of(file: str, module: str) -> str:
    """Of a module that `file` imports, without .py: a path from vLLM's folder."""
    folder = file.rpartition("/")[0] if module.startswith(".") else ""
    return f"{folder}/{module.removeprefix('vllm').strip('.').replace('.', '/')}".strip("/")


_CLASS = r"class (\w+)(?:\(([^)]*)\))?"
_IMPORT = r"from (vllm\S*|\.\w+) import ([\s\S]+)"
_VALUE = r"([A-Z]\w*)(?:: \w+)? = ([\s\S]+)"


class _Written(NamedTuple):
    """What is assigned to a name, and the file where that stands."""

    module: _Module
    text: str


class _Sources:
    """The classes and names of vLLM's files, each file read once, when it is asked for."""

    def __init__(self, search: FileSearch) -> None:
        self._search = search
        self._modules: dict[str, _Module | None] = {}
        self._hints: dict[tuple[str, str], frozenset[_Hint]] = {}
        self._sought: set[tuple[str, str]] = set()
        said = search(ENGINE, _HELPER) or ()
        sizes = [piece for piece in said if "max_num_batched_tokens" in piece]
        self.sizes = frozenset(re.findall(r'"(\w+)"', sizes[0])) if sizes else None
        self.dict_classes = any(piece.startswith("def is_dict") for piece in said)
        quoted = any(piece.endswith('append("None")') for piece in said)
        self.none = "None" if quoted else None

    def module(self, file: str) -> _Module | None:
        if file not in self._modules:
            pieces = self._search(file, _DECLARED)
            made = None if pieces is None else _Module(file, filter(None, pieces))
            self._modules[file] = made
        return self._modules[file]

    def config_class(self, name: str) -> _Class:
        """A class that vllm.config gives. Raises _Unread."""
        module = self.module(CONFIGS)
        found = self._find(module, name) if module else None
        if not isinstance(found, _Class):
            raise _Unread(name)
        return found

    def server_class(self, file: str, name: str) -> _Class:
        module = self.module(file)
        if module is None or name not in module.classes:
            raise _Unread(name)
        return module.classes[name]

    def _find(self, module: _Module, name: str) -> _Class | _Written | None:
        """A class, or a value's text with the module that it stands in; None: it is not vLLM's."""
        if name in module.classes:
            return module.classes[name]
        if name in module.values:
            return _Written(module, module.values[name])
        if (where := module.imported.get(name)) is not None:
            there = self.module(f"{where}.py") or self.module(f"{where}/__init__.py")
            if there is None:
                raise _Unread(where)
            return self._find(there, name)
        return self._imported(module.file, name)

    def value(self, file: str, name: str) -> _Written:
        """What is assigned to a name that `file` imports from vLLM. Raises _Unread."""
        found = self._imported(file, name)
        if not isinstance(found, _Written):
            raise _Unread(name)
        return found

    def _imported(self, file: str, name: str) -> _Class | _Written | None:
        """A name that `file` imports from another file of vLLM's, of whose names those of types are
        read alone."""
        if (file, name) in self._sought:  # files that import each other
            return None
        self._sought.add((file, name))
        for module in self._search(file, _IMPORTS.format(name)) or ():
            where = _file_of(file, module)
            read = self.module if where.startswith("config") else self._types
            there = read(f"{where}.py") or read(f"{where}/__init__.py")
            found = self._find(there, name) if there else None
            if found is not None:
                return found
        return None

    def _types(self, file: str) -> _Module | None:
        if file not in self._modules:
            pieces = self._search(file, _TYPES)
            self._modules[file] = None if pieces is None else _Module(file, pieces)
        return self._modules[file]

    def fields(self, one: _Class) -> dict[str, str]:
        """Its own and its bases', as `dataclasses.fields` has them. Raises _Unread."""
        made: dict[str, str] = {}
        module = self.module(one.file)
        for base in one.bases:
            found = self._find(module, base) if module else None
            if isinstance(found, _Class):
                made |= self.fields(found)
        return {**made, **one.fields}

    def keys(self, one: _Class) -> tuple[str, ...] | None:
        """Those that its constructor takes; None where it may take others."""
        if one.open:
            return None
        fields = self.fields(one).items()
        return tuple(name for name, text in fields if "init=False" not in text)

    def hints(self, node: ast.expr, module: _Module) -> frozenset[_Hint]:
        """The types of an annotation, unions taken apart. Raises _Unread."""
        match node:
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self.hints(left, module) | self.hints(right, module)
            case ast.Constant(value=None):
                return self._name("None", module)
            case ast.Subscript(value=ast.Name(id=name), slice=inner):
                parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
                return self._generic(name, parts, module)
            case ast.Name(id=name):
                return self._name(name, module)
            case ast.Attribute():
                return frozenset((_Hint("other"),))
        raise _Unread(ast.dump(node))

    def _generic(self, name: str, parts: Sequence[ast.expr], module: _Module) -> frozenset[_Hint]:
        if name in _WRAPPERS:
            return self.hints(parts[0], module)
        if name in ("Union", "Optional"):
            hints = frozenset().union(*(self.hints(part, module) for part in parts))
            return hints | {_Hint("None")} if name == "Optional" else hints
        if name == "Literal":
            values = (self._literal(part, module) for part in parts)
            return frozenset((_Hint("Literal", tuple(v for row in values for v in row)),))
        if name in ("list", "tuple", "set"):
            dots = [isinstance(p, ast.Constant) and p.value is ... for p in parts]
            elements = tuple(
                self.hints(part, module) for part, dot in zip(parts, dots, strict=True) if not dot
            )
            fixed = name == "tuple" and not any(dots)
            return frozenset((_Hint(name, (elements[0], len(parts) if fixed else "+")),))
        return frozenset((_Hint(name if name in _BUILTIN else "other"),))

    def _literal(self, node: ast.expr, module: _Module) -> tuple[Any, ...]:
        if isinstance(node, ast.Constant):
            return (node.value,)
        (hint,) = self.hints(node, module)
        if hint.kind != "Literal":
            raise _Unread(ast.dump(node))
        return hint.of

    def _name(self, name: str, module: _Module) -> frozenset[_Hint]:
        if name in _BUILTIN:
            return frozenset((_Hint(name),))
        found = self._find(module, name)
        if isinstance(found, _Written):
            return self.types(found.text, found.module)
        if found is None:
            return frozenset((_Hint("other"),))
        if found.made:
            return frozenset((_Hint("config", (name, found.file)),))
        as_dict = self.dict_classes and "dict" in found.bases
        return frozenset((_Hint("dict" if as_dict else "other"),))

    def types(self, text: str, module: _Module) -> frozenset[_Hint]:
        key = (text, module.file if re.search(r"\b(?!None\b)[A-Z]", text) else "")
        if key not in self._hints:
            names = text.split(" | ")
            if all(name.isidentifier() for name in names):  # most of them
                made = [self._name(name, module) for name in names]
                self._hints[key] = frozenset[_Hint]().union(*made)
            else:
                self._hints[key] = self.hints(_expression(text), module)
        return self._hints[key]

    def keys_of(self, hint: _Hint) -> tuple[str, ...] | None:
        name, file = hint.of
        module = self.module(file)
        return self.keys(module.classes[name]) if module else None


def _statement(text: str) -> ast.stmt:
    tree = parsed(text.strip())
    if tree is None or len(tree.body) != 1:
        raise _Unread(text)
    return tree.body[0]


def _expression(text: str) -> ast.expr:
    made = _statement(text)
    if not isinstance(made, ast.Expr):
        raise _Unread(text)
    return made.value


# What `_compute_kwargs` makes of a field.


class _Kwargs(dict[str, _Arguments]):
    """What get_kwargs gives of a class, each field when it is asked for."""

    def __init__(self, sources: _Sources, one: _Class) -> None:
        super().__init__()
        self._sources, self._class = sources, one
        self.fields = sources.fields(one)

    def __missing__(self, name: str) -> _Arguments:
        module = self._sources.module(self._class.file)
        if name not in self.fields or module is None:
            raise _Unread(name)
        try:
            _, _, written = self.fields[name].partition(": ")
            annotation, _, default = written.partition(" = ")
            made = _arguments(self._sources, name, self._sources.types(annotation, module))
            made["default"] = _default(default)
        except _Unread:
            made = {"type": _Type(Takes.UNKNOWN)}
        self[name] = made
        return made


_LITERAL = (
    r"(?:Field\(\s*(?:default=)?)?"
    r'(?:(?P<word>None|True|False)|(?P<number>-?\d+(?:\.\d+)?)|"(?P<text>[^"\\]*)")(?=[,)\s]|$)'
)
_WORDS = {"True": True, "False": False}


def _default(text: str) -> Any:
    """A plain literal, or the one that Field(default=...) has; else None."""
    match = re.match(_LITERAL, text)
    if not match:
        return None
    if match["text"] is not None:
        return match["text"]
    if number := match["number"]:
        return float(number) if "." in number else int(number)
    return _WORDS.get(match["word"])


def _arguments(sources: _Sources, name: str, hints: frozenset[_Hint]) -> _Arguments:
    kinds = {hint.kind for hint in hints}
    made = _by_kind(sources, name, hints, kinds)
    kind = made.get("type")
    if "None" in kinds and "bool" not in kinds and isinstance(kind, _Type):
        made["type"] = kind._replace(optional=True)
        if "choices" in made:
            made["choices"] = [*made["choices"], sources.none]
    return made


def _by_kind(sources: _Sources, name: str, hints: frozenset[_Hint], kinds: set[str]) -> _Arguments:
    one = {hint.kind: hint for hint in hints}
    if "config" in kinds:
        return {"type": _Type(Takes.CONFIG, keys=sources.keys_of(one["config"]))}
    if kinds == {"bool", "str", "None"}:
        return {"type": _Type(Takes.TEXT), "nargs": "?", "const": True}
    if "bool" in kinds:
        return {"action": Takes.PAIR}
    if "Literal" in kinds:
        return _of_literal(one["Literal"], "str" in kinds)
    for collection in ("tuple", "list", "set"):
        if collection in kinds:
            return _of_collection(one[collection])
    if "int" in kinds:
        return {"type": _Type(_whole(sources, name))}
    if "float" in kinds:
        return {"type": _Type(Takes.FLOAT)}
    if "dict" in kinds:
        text = kinds & {"str", "other"}
        return {"type": _Type(Takes.TEXT_OR_JSON if text else Takes.JSON)}
    return {"type": _Type(Takes.TEXT)}


def _whole(sources: _Sources, name: str) -> Takes:
    if name == "max_model_len":
        return Takes.LENGTH
    if sources.sizes is None:
        return Takes.UNKNOWN
    return Takes.SIZE if name in sources.sizes else Takes.INT


def _of_literal(hint: _Hint, any_text: bool) -> _Arguments:
    kind = _PLAIN.get(type(hint.of[0]).__name__)
    if kind is None or len({type(value) for value in hint.of}) > 1:
        raise _Unread(str(hint))
    return {"type": _Type(kind), **({} if any_text else {"choices": sorted(hint.of)})}


def _of_collection(hint: _Hint) -> _Arguments:
    if not hint.of:
        raise _Unread(hint.kind)
    elements, many = hint.of
    if len(elements) > 1:
        return {"type": _Type(Takes.TEXT), "nargs": many}
    (element,) = elements
    if element.kind == "Literal":
        return {**_of_literal(element, False), "nargs": many}
    return {"type": _Type(_PLAIN.get(element.kind, Takes.UNKNOWN)), "nargs": many}


# What the statements of add_cli_args say.

_SPREAD = r'((?:"-[\w-]+",\s*)+)\*\*(\w+)(?:\["(\w+)"\])?'
_CONVERTERS: Mapping[str, _Type] = {
    "int": _Type(Takes.INT),
    "float": _Type(Takes.FLOAT),
    "str": _Type(Takes.TEXT),
    "json.loads": _Type(Takes.JSON),
    "human_readable_int": _Type(Takes.SIZE),
    "human_readable_int_or_auto": _Type(Takes.LENGTH),
    "union_dict_and_str": _Type(Takes.TEXT_OR_JSON),
    "parse_reasoning_parser": _Type(Takes.TEXT, or_none=True),
    "lambda s: s.lower().replace('-', '_')": _Type(Takes.TEXT, lowered=True),
}
_ACTIONS: Mapping[str, Takes] = {
    "store_true": Takes.SWITCH,
    "argparse.BooleanOptionalAction": Takes.PAIR,
}
_FIELDS_OF = r"(\w+) = get_kwargs\((\w+)\)\s*"
_MANY = ("?", "*", "+")
_ONLY_SHOWN = ("help", "metavar")
# What an expression of another kind than was expected comes to.
_NOT_CARRIED_OUT = (_Unread, LookupError, TypeError, AttributeError, ValueError)
_SERVER = "FrontendArgs"


class _Script:
    """Carries out the statements that are known, and keeps what they add."""

    def __init__(self, sources: _Sources) -> None:
        self.options: list[ServerOption] = []
        self.added: set[str] = set()
        self._sources = sources
        self._names: dict[str, Any] = {}
        self._file = ""

    def run_server(self, file: str, pieces: Iterable[str]) -> None:
        """Of the server's own file, whose class adds all of its fields at once."""
        try:
            kwargs = _Kwargs(self._sources, self._sources.server_class(file, _SERVER))
        except _Unread:
            raise NotAsKnown(file) from None
        self._names["frontend_kwargs"] = kwargs
        self.run(file, pieces)
        if file not in self.added:
            return
        for name in kwargs.fields:
            self._add([f"--{name.replace('_', '-')}"], kwargs[name])

    def run(self, file: str, pieces: Iterable[str]) -> None:
        self._file = file
        for piece in pieces:
            if piece[0] in ('"', "*"):
                self._call(piece)
            elif match := re.fullmatch(_FIELDS_OF, piece):
                self._fields_of(match[1], match[2])
            else:
                self._statement(piece)

    def _fields_of(self, name: str, of: str) -> None:
        with contextlib.suppress(_Unread):
            self._names[name] = _Kwargs(self._sources, self._sources.config_class(of))

    def _call(self, piece: str) -> None:
        if match := re.fullmatch(_SPREAD, piece):
            strings = re.findall(r'"(-[\w-]+)"', match[1])
            self._add(strings, self._kwargs(match[2], match[3]))
            return
        self.added |= {self._file} if 'f"--{' in piece else set()
        closed = piece if piece.endswith(")") and "\n" not in piece else f"{piece}\n)"
        try:
            call = _expression(f"_({closed}")
        except _Unread:
            self._add(re.findall(r'^"(-[\w-]+)"', piece), {})
            return
        if isinstance(call, ast.Call):
            self._literal_call(call)

    def _literal_call(self, call: ast.Call) -> None:
        strings = [str(a.value) for a in call.args if isinstance(a, ast.Constant)]
        strings = [s for s in strings if s.startswith("-")]
        if not strings:
            return
        made: _Arguments = {"type": _Type(Takes.TEXT)}
        for keyword in call.keywords:
            if keyword.arg in _ONLY_SHOWN:
                continue
            try:
                value = self._value(keyword.value)
                made |= value if keyword.arg is None else {keyword.arg: value}
            except _NOT_CARRIED_OUT:
                if keyword.arg in ("type", "action", "choices", None):
                    made["type"] = _Type(Takes.UNKNOWN)
        self._add(strings, made)

    def _kwargs(self, name: str, key: str | None) -> _Arguments:
        try:
            kwargs = self._names[name]
            made: _Arguments = kwargs[key] if key else kwargs
        except _NOT_CARRIED_OUT:
            return {"type": _Type(Takes.UNKNOWN), "nargs": "?"}
        return made

    def _add(self, strings: Sequence[str], given: _Arguments) -> None:
        if not strings:
            return
        long = next((s for s in strings if s.startswith("--")), strings[0])
        action, kind = given.get("action"), given.get("type")
        repeated = action == "append"
        if isinstance(action, Takes):
            kind = _Type(action)
        if not isinstance(kind, _Type) or not (action is None or repeated or kind.takes is action):
            kind = _Type(Takes.UNKNOWN)
        many, choices, name = given.get("nargs"), given.get("choices"), given.get("dest")
        self.added.add(self._file)
        self.options.append(
            ServerOption(
                strings=tuple(strings),
                name=name if isinstance(name, str) else long.lstrip("-").replace("-", "_"),
                takes=kind.takes,
                many=many if many in _MANY or isinstance(many, int) else None,
                choices=tuple(choices) if isinstance(choices, list) else (),
                default=given.get("default"),
                without=given.get("const"),
                optional=kind.optional,
                keys=kind.keys,
                lowered=kind.lowered,
                or_none=kind.or_none,
                repeated=repeated,
            )
        )

    def _statement(self, piece: str) -> None:
        try:
            node = _statement(piece)
        except _Unread:
            return
        try:
            self._carry_out(node)
        except _NOT_CARRIED_OUT:
            self._taint(node)

    def _carry_out(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                if not (name in self._names and self._file in FRONTEND):
                    self._names[name] = self._value(value)
            case ast.Assign(targets=[ast.Subscript(value=target, slice=key)], value=value):
                if self._value(key) not in _ONLY_SHOWN:
                    self._value(target)[self._value(key)] = self._value(value)
            case ast.Delete(targets=[ast.Subscript(value=target, slice=key)]):
                self._value(target).pop(self._value(key), None)
            case ast.AugAssign(target=ast.Subscript(slice=ast.Constant(value="help"))):
                pass
            case ast.AugAssign(target=ast.Subscript(value=target, slice=key), value=value):
                owner, name = self._value(target), self._value(key)
                owner[name] = [*owner[name], *self._value(value)]
            case ast.Expr(ast.Call(func=ast.Attribute(value=target, attr="remove"), args=[value])):
                self._value(target).remove(self._value(value))
            case _:
                raise _Unread(ast.dump(node))

    def _taint(self, node: ast.stmt) -> None:
        """What this statement would have changed is not known."""
        for part in ast.walk(node):
            match part:
                case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key))):
                    if isinstance(kwargs := self._names.get(name), _Kwargs):
                        with_key = self._kwargs(name, key)
                        kwargs[key] = {**with_key, "type": _Type(Takes.UNKNOWN)}
                        return

    def _value(self, node: ast.expr) -> Any:
        text = ast.unparse(node) if isinstance(node, (ast.Lambda, ast.Attribute, ast.Name)) else ""
        if text in _CONVERTERS:
            return _CONVERTERS[text]
        match node:
            case ast.Constant(value=value):
                return _ACTIONS.get(value, value) if isinstance(value, str) else value
            case ast.Name(id=name) if name in self._names:
                return self._names[name]
            case ast.Name(id=name) if name.isupper():
                return ast.literal_eval(self._sources.value(self._file, name)[1])
            case ast.Attribute() if text in _ACTIONS:
                return _ACTIONS[text]
            case ast.Subscript(value=value, slice=key):
                return self._value(value)[self._value(key)]
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [self._value(one) for one in elements]
            case ast.Dict(keys=keys, values=values):
                return self._merged(keys, values)
            case ast.Call(func=ast.Name(id=name), args=[argument]):
                return self._called(name, argument)
        raise _Unread(ast.dump(node))

    def _merged(self, keys: Sequence[ast.expr | None], values: Sequence[ast.expr]) -> _Arguments:
        made: _Arguments = {}
        for key, value in zip(keys, values, strict=True):
            if isinstance(key, ast.Constant) and key.value in _ONLY_SHOWN:
                continue
            shown = self._value(value)
            made |= shown if key is None else {self._value(key): shown}
        return made

    def _called(self, name: str, argument: ast.expr) -> Any:
        if name == "get_kwargs" and isinstance(argument, ast.Name):
            return _Kwargs(self._sources, self._sources.config_class(argument.id))
        if name == "get_args" and isinstance(argument, ast.Name):
            module, text = self._sources.value(self._file, argument.id)
            (hint,) = self._sources.types(text, module)
            return list(hint.of)
        if name == "optional_type":
            return self._value(argument)._replace(optional=True)
        if name == "parse_type":
            return self._value(argument)
        raise _Unread(name)
