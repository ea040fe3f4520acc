"""A command line of vLLM's server against a table of options: what its parser makes of it
(FlexibleArgumentParser of vllm/utils/argparse_utils.py on argparse; 0.19 to 0.33)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from doctor.consumers import names
from doctor.consumers.server_options import OptionTable, ServerOption, Takes
from doctor.frozen import dataclass
from doctor.model import Missing, Text, shortened
from doctor.profile import Profile
from doctor.target import READ_MOST

if TYPE_CHECKING:
    import argparse


class Wrong(str, Enum):
    """What vLLM's parser ends for. `NEEDS`: an option that another one asks for is not there;
    `RANGE`: of a value that is of the right type."""

    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"
    CHOICE = "choice"
    TYPE = "type"
    RANGE = "range"
    LACKS_VALUE = "lacks value"
    TAKES_NO_VALUE = "takes no value"
    EXCLUSIVE = "exclusive"
    NEEDS = "needs"
    UNEXPECTED = "unexpected"
    CONFIG_FILE = "config file"


@dataclass(frozen=True)
class ArgumentProblem:
    """One word of it that is wrong. `option`: as it was typed; `value`: of it, where that is wrong;
    `meant`: the options or choices that there are, the nearest first; `why` in vLLM's own terms,
    where it says more."""

    kind: Wrong
    option: str
    value: str | None = None
    meant: tuple[str, ...] = ()
    why: Text | None = None


@dataclass(frozen=True)
class Parsed:
    """`values`: of the options that are given, by their names with underscores, as vLLM gets them;
    `model` where one is named. `ended`: vLLM ends before it looks at each; then `values` has what
    is plain."""

    values: dict[str, Any]
    problems: tuple[ArgumentProblem, ...] = ()
    ended: bool = False


class ProblemFound(Exception):
    """What vLLM ends for before it looks at the rest."""

    def __init__(self, problem: ArgumentProblem) -> None:
        super().__init__(problem)
        self.problem = problem


By = Literal["serve", "module"]
ConfigReader = Callable[[str], Mapping[Any, Any]]
"""The mapping that a --config file holds, as `config_of` gives it, and raises."""


def parse_arguments(
    words: Sequence[str], table: OptionTable, by: By, read_config: ConfigReader
) -> Parsed:
    """What vLLM's parser makes of the words behind `vllm serve` or the module, and all that it
    would end for. Raises what `read_config` raises beside ProblemFound."""
    try:
        made = _processed(list(words), table, by, read_config)
        ambiguous = tuple(_ambiguous(made, table))
        if ambiguous:
            return Parsed(plain_values(words, by), ambiguous, ended=True)
        values, problems = _parsed(made, table)
    except ProblemFound as found:
        return Parsed(plain_values(words, by), (found.problem,), ended=True)
    tag = values.pop("model_tag", None)
    if by == "serve" and tag is not None:
        values["model"] = tag
    return Parsed(values, (*problems, *_demanded(values, table)))


def profile_words(profile: Profile, table: OptionTable | None) -> list[str]:
    """What a start passes for a profile with a model: all that it says, as words."""
    words = [profile.model or ""]
    for _, option, value in names.passed(profile):
        words += _words(option, value)
    for name, value in profile.options.items():
        known = table.find(name) if table else None
        said = value == "true" if value in ("true", "false") else value
        # A switch that can only be put on is off where it is not there.
        if said is not False or not known or known.takes is not Takes.SWITCH:
            words += _as_taken(f"--{name.replace('_', '-')}", said, known)
    return words


def _as_taken(option: str, value: object, known: ServerOption | None) -> list[str]:
    """The words of a value, in the form that the option takes."""
    if known and known.repeated and isinstance(value, (list, tuple)):
        each = dataclasses.replace(known, repeated=False)
        return [word for one in value for word in _as_taken(option, one, each)]
    if known and known.takes in _FROM_JSON and not isinstance(value, str):
        value = json.dumps(value, default=str)
    return _words(option, value)


_FROM_JSON = (Takes.JSON, Takes.CONFIG, Takes.TEXT_OR_JSON)


def _words(option: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    if isinstance(value, (list, tuple)):
        return [option, *map(str, value)]
    text = json.dumps(value, default=str) if isinstance(value, dict) else str(value)
    # A value that begins with a dash would be taken for the next option.
    return [f"{option}={text}"] if text.startswith("-") else [option, text]


def plain_values(words: Sequence[str], by: By) -> dict[str, Any]:
    """What is plain in any release: the model, and a profile's settings by their full names."""
    settings = {option: name for name, option in names.OPTIONS.items()}
    settings |= {"--model": "model", "-tp": "tensor_parallel_size"}
    made: dict[str, Any] = {}
    if by == "serve" and words and not words[0].startswith("-"):
        made["model"] = words[0]
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        setting = settings.get(name.replace("_", "-"))
        if setting == "enable_auto_tool_choice":
            made[setting] = True
        elif setting and (equals or i + 1 < len(words)):
            with contextlib.suppress(ValueError):
                made[setting] = _NUMBERS.get(setting, str)(value if equals else words[i + 1])
    return made


# What FlexibleArgumentParser.parse_args does to the words.


def _processed(words: list[str], table: OptionTable, by: By, read: ConfigReader) -> list[str]:
    if by == "serve":
        words = _model_first(words)
    if "--config" in words:
        words = _with_config(words, table, by, read)
    return list(_joined(list(_dashes(words))))


def _model_first(words: list[str]) -> list[str]:
    at = next((i for i, w in enumerate(words) if re.match(r"--model(=.+|$)", w)), None)
    if at is not None:
        if words[at] == "--model":
            if at + 1 == len(words):
                raise ProblemFound(ArgumentProblem(Wrong.LACKS_VALUE, "--model"))
            words = [words[at + 1], *words[:at], *words[at + 2 :]]
        else:
            words = [words[at].removeprefix("--model="), *words[:at], *words[at + 1 :]]
    named = any(re.match(r"--served[-_]model[-_]name(=.+|$)", word) for word in words)
    config = any(re.match(r"--config(=.+|$)", word) for word in words)
    if words and words[0].startswith("-") and named and not config:
        why = Text("`vllm serve` wants the model before --served-model-name")
        raise ProblemFound(ArgumentProblem(Wrong.LACKS_VALUE, "model", why=why))
    return words


def _with_config(words: list[str], table: OptionTable, by: By, read: ConfigReader) -> list[str]:
    at = words.index("--config")
    if words.count("--config") > 1:
        why = Text("it may be given once")
        raise ProblemFound(ArgumentProblem(Wrong.CONFIG_FILE, "--config", why=why))
    if at + 1 == len(words):
        raise ProblemFound(ArgumentProblem(Wrong.LACKS_VALUE, "--config"))
    file, rest = words[at + 1], words[:at] + words[at + 2 :]
    if file.rpartition(".")[2] not in ("yaml", "yml"):
        raise ProblemFound(_config_problem(file, Text("its name has to end in .yaml or .yml")))
    # The parser that reads the file is the one of `vllm`, which knows no option of `serve`.
    no = {s for o in table.options for s in o.negative} if by == "module" else set()
    config = list(_config_words(file, read(file), no if table.config_says_no else set()))
    if words[0].startswith("-") and by == "module":
        return config + rest
    given = bool(words) and not words[0].startswith("-")
    if by == "serve" and not given and "--model" not in config:
        why = Text("neither the command nor the --config file names a model")
        raise ProblemFound(ArgumentProblem(Wrong.LACKS_VALUE, "model", why=why))
    return rest[:1] + config + rest[1:] if given else config + rest


def config_of(file: str, data: bytes | None) -> Mapping[Any, Any]:
    """What is in a --config file, `data` None where it cannot be read. Raises ProblemFound for what
    vLLM cannot read either, Missing for what cannot be told here."""
    if data is None:
        raise ProblemFound(_config_problem(file, Text("it is not there, or cannot be read")))
    if len(data) > READ_MOST:
        raise Missing(Text("{path} is larger than any --config file", path=file))
    try:
        import yaml
    except ImportError:
        said = Text(
            "{path} is not read without PyYAML: pip install pyyaml, where the doctor is installed",
            path=file,
        )
        raise Missing(said) from None
    try:
        made = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ProblemFound(_config_problem(file, Text("it is not valid YAML"))) from None
    if not isinstance(made, dict):
        said = Text("it has to say `option: value`, line by line")
        raise ProblemFound(_config_problem(file, said))
    if sum(1 for _ in itertools.islice(_nodes(made), _NODES_MOST)) == _NODES_MOST:
        raise Missing(Text("{path} holds more than any --config file", path=file))
    return made


_NODES_MOST = 5_000


def _nodes(value: object) -> Iterator[object]:
    """All that it holds; what is named several times as often, which may be without end."""
    todo = [iter((value,))]  # no list of it all: a list may hold itself many times
    while todo:
        for one in todo[-1]:
            yield one
            if isinstance(one, (dict, list)):
                todo.append(iter(one.values() if isinstance(one, dict) else one))
                break
        else:
            todo.pop()


def _config_problem(file: str, why: Text) -> ArgumentProblem:
    return ArgumentProblem(Wrong.CONFIG_FILE, "--config", file, why=why)


def _config_words(file: str, config: Mapping[Any, Any], no: set[str]) -> Iterator[str]:
    for key, value in config.items():
        if not isinstance(key, str):
            said = Text("{key} is not the name of an option", key=shortened(repr(key), 80))
            raise ProblemFound(_config_problem(file, said))
        if isinstance(value, bool):
            if value or f"--no-{key}" in no:
                yield f"--{key}" if value else f"--no-{key}"
        elif isinstance(value, list):
            yield from (f"--{key}", *map(str, value)) if value else ()
        elif isinstance(value, dict):
            yield from (f"--{key}", _dumped(file, value))
        else:
            yield from (f"--{key}", str(value))


def _dumped(file: str, value: object) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise ProblemFound(_config_problem(file, Text("it holds what JSON cannot say"))) from None


def _dashes(words: list[str]) -> Iterator[str]:
    """Underscores of names are dashes; -O3 is --optimization-level 3."""
    for i, word in enumerate(words):
        if word.startswith("--help="):
            yield "--help"
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            first, dot, keys = name.partition(".")
            yield first.replace("_", "-") + dot + keys + equals + value
        elif word.startswith("-O") and word != "-O":
            yield from ("--optimization-level", word[3:] if word[2] == "=" else word[2:])
        elif word == "-O" and words[i + 1 : i + 2] and words[i + 1] in ("0", "1", "2", "3"):
            yield "--optimization-level"
        else:
            yield word


def _joined(words: list[str]) -> Iterator[str]:
    """What is said key by key (--x.key value, --x.key+ one,two) is JSON at the end."""
    objects: dict[str, dict[str, Any]] = {}
    i = 0
    while i < len(words):
        word, equals, value = words[i].partition("=")
        i += 1
        if not word.startswith("-") or "." not in word:
            yield word + equals + value
            continue
        if not equals:
            if i == len(words):
                raise ProblemFound(ArgumentProblem(Wrong.LACKS_VALUE, word))
            value = words[i]
            i += 1
        if word.endswith("+"):
            word, value = word[:-1], json.dumps(value.split(","))
        name, *keys = word.split(".")
        _update(objects.setdefault(name, {}), _nested(keys, _plain(value)))
    for name, value_of in objects.items():
        yield name
        try:
            yield json.dumps(value_of)
        except RecursionError:
            said = Text("it is nested too deep")
            raise ProblemFound(ArgumentProblem(Wrong.TYPE, name, why=said)) from None


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return _size(text)
        except ValueError:
            return text


def _nested(keys: Iterable[str], value: Any) -> dict[str, Any]:
    for key in reversed(list(keys)):
        value = {key: value}
    made: dict[str, Any] = value
    return made


def _update(original: dict[str, Any], update: dict[str, Any]) -> None:
    for key, value in update.items():
        there = original.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            _update(there, value)
        elif isinstance(value, list) and isinstance(there, list):
            original[key] = there + value
        else:
            original[key] = value


# What argparse does.


def _ambiguous(words: Sequence[str], table: OptionTable) -> Iterator[ArgumentProblem]:
    for word in words:
        if word == "--":
            return
        if names.is_option(word):
            meant = names.meant(word, table.strings)
            if len(meant) > 1:
                yield ArgumentProblem(Wrong.AMBIGUOUS, word.partition("=")[0], meant=meant)


def _parsed(
    words: Sequence[str], table: OptionTable
) -> tuple[dict[str, Any], list[ArgumentProblem]]:
    import argparse  # late: six milliseconds, which no profile's diagnosis needs

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise argparse.ArgumentError(None, message)

    problems: list[ArgumentProblem] = []
    parser = Parser(
        add_help=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
        conflict_handler="resolve",
    )
    parser.add_argument("model_tag", nargs="?")
    take = _action(problems)
    for option in table.options:
        parser.add_argument(
            *option.strings, dest=option.name, action=take, option=option, nargs=_many(option)
        )
    namespace = argparse.Namespace()
    try:
        _, rest = parser.parse_known_args(list(words), namespace)
    except argparse.ArgumentError as error:
        problems.append(_refused((error.argument_name or "").split("/"), words, table))
        return vars(namespace), problems
    return vars(namespace), [*problems, *_left_over(rest, table)]


def _many(option: ServerOption) -> str | int | None:
    return 0 if option.takes in (Takes.SWITCH, Takes.PAIR) else option.many


def _action(problems: list[ArgumentProblem]) -> type[argparse.Action]:
    import argparse

    class Take(argparse.Action):
        """Puts the value down, and what is wrong with it beside."""

        def __init__(self, option_strings: Any, dest: str, option: Any, **more: Any) -> None:
            super().__init__(option_strings, dest, **more)
            self.option: ServerOption = option

        def __call__(self, parser: Any, namespace: Any, values: Any, string: Any = None) -> None:
            option, before = self.option, len(problems)
            if self.nargs == 0:
                value: Any = string not in option.negative
            elif isinstance(values, list):
                value = [_value(option, string, one, problems) for one in values]
            elif values is None:
                value = option.without
            else:
                value = _value(option, string, values, problems)
            if len(problems) > before:  # what is wrong says nothing
                return
            if option.repeated:
                value = [*getattr(namespace, option.name, []), value]
            setattr(namespace, option.name, value)

    return Take


def _value(option: ServerOption, string: str, text: str, problems: list[ArgumentProblem]) -> Any:
    try:
        return converted(option, text)
    except Refused as refused:
        shown = shortened(text, 200)
        problem = ArgumentProblem(refused.kind, string, shown, refused.meant, refused.why)
        problems.append(problem)
        return text


def _refused(strings: Sequence[str], words: Sequence[str], table: OptionTable) -> ArgumentProblem:
    """For what argparse itself ended, at the option of these strings."""
    option = next((o for o in table.options if set(o.strings) & set(strings)), None)
    if option is None:
        return ArgumentProblem(Wrong.UNEXPECTED, shortened(" ".join(words), 200))
    given = (w for w in words if option in _meant(w, table))
    if option.takes in (Takes.SWITCH, Takes.PAIR):
        name, _, value = next((w for w in given if "=" in w), strings[0]).partition("=")
        return ArgumentProblem(Wrong.TAKES_NO_VALUE, name, shortened(value, 200))
    name = next(given, strings[0]).partition("=")[0]
    return ArgumentProblem(Wrong.LACKS_VALUE, name)


def _meant(word: str, table: OptionTable) -> Iterator[ServerOption]:
    if names.is_option(word):
        meant = names.meant(word, table.strings)
        yield from (o for o in table.options if set(o.strings) & set(meant))


def _left_over(rest: Sequence[str], table: OptionTable) -> Iterator[ArgumentProblem]:
    """Words that are no option's, behind an unknown one its value."""
    rest = [word for word in rest if word != "--"] or rest
    for i, word in enumerate(rest):
        if names.is_option(word) and word not in table.strings:  # else it stands behind --
            name, equals, value = word.partition("=")
            if not equals and i + 1 < len(rest) and not names.is_option(rest[i + 1]):
                value = rest[i + 1]
            near = names.nearest(name, table.strings)
            meant = (near,) if near else ()
            yield ArgumentProblem(Wrong.UNKNOWN, name, shortened(value, 200) or None, meant)
        elif i == 0 or not names.is_option(rest[i - 1]) or "=" in rest[i - 1]:
            yield ArgumentProblem(Wrong.UNEXPECTED, shortened(word, 200))


# What the converters of vLLM do.


class Refused(ValueError):
    """A value that vLLM does not take."""

    def __init__(
        self, kind: Wrong = Wrong.TYPE, meant: tuple[str, ...] = (), why: Text | None = None
    ) -> None:
        super().__init__(kind)
        self.kind, self.meant, self.why = kind, meant, why


def converted(option: ServerOption, text: str) -> Any:
    """The value that vLLM makes of a word. Raises Refused."""
    if option.optional and text in ("", "None"):
        value = None
    else:
        try:
            value = _CONVERTERS[option.takes](text, option)
        except Refused:
            raise
        except (ValueError, RecursionError):
            raise Refused(why=_EXPECTED[option.takes]) from None
    if option.choices and option.takes is not Takes.UNKNOWN and value not in option.choices:
        raise Refused(Wrong.CHOICE, _nearest_first(str(value), option.choices))
    return value


def _nearest_first(value: str, choices: Iterable[Any]) -> tuple[str, ...]:
    from difflib import get_close_matches

    known = [str(choice) for choice in choices if choice is not None]
    near = get_close_matches(value, known, 3, cutoff=0.5)
    return tuple(dict.fromkeys((*near, *known)))


def _text(text: str, option: ServerOption) -> str:
    if option.lowered:
        text = text.lower().replace("-", "_")
    return "" if option.or_none and text.lower() == "none" else text


_SIZES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZES |= {letter.upper(): 2 ** (10 * power) for power, letter in enumerate("kmgt", 1)}


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text.strip())
    if not match:
        return int(text)
    number, suffix = match.groups()
    if not suffix.islower():
        return int(number) * _SIZES[suffix]
    try:
        return int(float(number) * _SIZES[suffix])
    except OverflowError:  # vLLM ends for it too
        raise ValueError(number) from None


def _length(text: str) -> int:
    return -1 if text.strip().lower() in ("-1", "auto") else _size(text)


_NUMBERS: Mapping[str, Callable[[str], Any]] = {
    "port": int,
    "tensor_parallel_size": int,
    "max_model_len": _length,
    "gpu_memory_utilization": float,
}


def _text_or_json(text: str) -> Any:
    if not re.match(r"(?s)^\s*{.*}\s*$", text):
        return text
    return json.loads(text)


def _config(text: str, option: ServerOption) -> Any:
    # A text that does not end is one too, or each of its quotes were tried to the end.
    parts = re.split(r'("(?:[^"\\]|\\.)*"?)', text)
    parts[::2] = [re.sub(r"\b\d+(?:\.\d+)?[kKmMgGtT]\b", _expanded, part) for part in parts[::2]]
    made = json.loads("".join(parts))
    if not isinstance(made, dict):
        raise Refused(why=_EXPECTED[Takes.CONFIG])
    for key in made:
        if option.keys is not None and key not in option.keys:
            said = Text("it has no {key}", key=shortened(key, 80))
            raise Refused(Wrong.TYPE, _nearest_first(key, option.keys), said)
    return made


def _expanded(match: re.Match[str]) -> str:
    return str(_size(match[0]))


_CONVERTERS: Mapping[Takes, Callable[[str, ServerOption], Any]] = {
    Takes.TEXT: _text,
    Takes.UNKNOWN: lambda text, _: text,
    Takes.INT: lambda text, _: int(text),
    Takes.FLOAT: lambda text, _: float(text),
    Takes.SIZE: lambda text, _: _size(text),
    Takes.LENGTH: lambda text, _: _length(text),
    Takes.JSON: lambda text, _: json.loads(text),
    Takes.TEXT_OR_JSON: lambda text, _: _text_or_json(text),
    Takes.CONFIG: _config,
}
_EXPECTED = {
    Takes.INT: Text("it has to be a whole number"),
    Takes.FLOAT: Text("it has to be a number"),
    Takes.SIZE: Text("it has to be a whole number, such as 8192 or 8k"),
    Takes.LENGTH: Text("it has to be a whole number, such as 8192 or 8k, or auto"),
    Takes.JSON: Text("it has to be JSON"),
    Takes.TEXT_OR_JSON: Text("it looks like JSON and is none"),
    Takes.CONFIG: Text('it has to be JSON, such as {{"key": "value"}}'),
}


# What vLLM looks at when all is parsed.


def _demanded(values: Mapping[str, Any], table: OptionTable) -> Iterator[ArgumentProblem]:
    for sentence, check in _CHECKS:
        if any(sentence in demand for demand in table.demands):
            yield from check(values)


def _needs(option: str, other: str, values: Mapping[str, Any]) -> Iterator[ArgumentProblem]:
    if values.get(_name(option)) and not values.get(_name(other)):
        yield ArgumentProblem(Wrong.NEEDS, option, meant=(other,))


def _name(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _metrics(values: Mapping[str, Any]) -> Iterator[ArgumentProblem]:
    if values.get("enable_per_request_metrics") and values.get("disable_log_stats"):
        option = "--enable-per-request-metrics"
        yield ArgumentProblem(Wrong.EXCLUSIVE, option, meant=("--disable-log-stats",))


def _grpc(values: Mapping[str, Any]) -> Iterator[ArgumentProblem]:
    if values.get("grpc") and values.get("grpc_port") is not None:
        yield ArgumentProblem(Wrong.EXCLUSIVE, "--grpc", meant=("--grpc-port",))


def _keep_alive(values: Mapping[str, Any]) -> Iterator[ArgumentProblem]:
    value = values.get("sse_keep_alive_interval")
    if isinstance(value, int) and value < 0:
        said = Text("it has to be 0 or more")
        yield ArgumentProblem(Wrong.RANGE, "--sse-keep-alive-interval", str(value), why=said)


def _headless(values: Mapping[str, Any]) -> Iterator[ArgumentProblem]:
    count = values.get("api_server_count")
    if values.get("headless") and not values.get("grpc") and isinstance(count, int) and count > 0:
        yield ArgumentProblem(Wrong.EXCLUSIVE, "--headless", meant=("--api-server-count",))


def _balancing(values: Mapping[str, Any]) -> Iterator[ArgumentProblem]:
    """One mode of load balancing alone (ServeSubcommand.cmd)."""
    multi = bool(values.get("data_parallel_multi_port_external_lb"))
    hybrid = bool(values.get("data_parallel_hybrid_lb"))
    start = values.get("data_parallel_start_rank") is not None and not multi and not hybrid
    rank = values.get("data_parallel_rank") is not None
    external = bool(values.get("data_parallel_external_lb"))
    modes = [
        ("--data-parallel-multi-port-external-lb", multi),
        ("--data-parallel-external-lb", external),
        ("--data-parallel-rank", rank and not external),
        ("--data-parallel-hybrid-lb", hybrid),
        ("--data-parallel-start-rank", start),
    ]
    first, *others = [option for option, given in modes if given] or [""]
    if others and not values.get("grpc"):
        yield ArgumentProblem(Wrong.EXCLUSIVE, first, meant=tuple(others))


_CHECKS: tuple[tuple[str, Callable[[Mapping[str, Any]], Iterator[ArgumentProblem]]], ...] = (
    (
        "--enable-log-outputs requires",
        functools.partial(_needs, "--enable-log-outputs", "--enable-log-requests"),
    ),
    ("--enable-per-request-metrics requires", _metrics),
    ("--grpc and --grpc-port", _grpc),
    ("--sse-keep-alive-interval must", _keep_alive),
    ("used with --headless", _headless),
    ("more than one data parallel load balancing mode", _balancing),
)
