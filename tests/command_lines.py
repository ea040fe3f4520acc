"""Command lines of `vllm serve`, generated from a seed, and what vLLM's own parser says of them.

Each option of the table is in one of them at least; every second one has something wrong in it.
`JUDGE` runs in an environment of vLLM, without a GPU, over all lines at once.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from doctor.arguments import (
    By,
    ConfigReader,
    Parsed,
    Wrong,
    config_of,
    parse_arguments,
)
from doctor.consumers.server_options import OptionTable, ServerOption, Takes
from doctor.target import Live

JUDGE = r"""
import contextlib, dataclasses, enum, io, json, sys
from vllm import platforms
from vllm.platforms.cpu import CpuPlatform
platforms._current_platform = CpuPlatform()  # the parser asks which
try:
    from vllm.entrypoints.common.cli_args import make_arg_parser
except ImportError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

def plain(value):
    if dataclasses.is_dataclass(value):
        return "CONFIG"
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple, set)):
        return [plain(one) for one in value]
    return value if isinstance(value, (dict, str, int, float, bool, type(None))) else repr(value)

server = make_arg_parser(FlexibleArgumentParser())
whole = FlexibleArgumentParser()
whole.add_argument("-v", "--version", action="version", version="0")
make_arg_parser(whole.add_subparsers(required=False, dest="subparser").add_parser("serve"))
defaults = vars(server.parse_args([]))
said = []
for by, words in json.load(sys.stdin):
    parser, given = (whole, ["serve", *words]) if by == "serve" else (server, words)
    error, values = io.StringIO(), {}
    try:
        with contextlib.redirect_stderr(error):
            made = vars(parser.parse_args(given))
        values = {
            name: plain(value) for name, value in made.items()
            if name != "subparser" and plain(value) != plain(defaults.get(name))
        }
        refused = None
    except SystemExit:
        refused = error.getvalue().rpartition(" error: ")[2]
    except Exception as problem:
        refused = f"{type(problem).__name__}: {problem}"
    said.append({"refused": refused, "values": values})
print("SAID" + json.dumps(said))
"""
Line = tuple[By, list[str]]
"""The parser ("serve" or "module"), and the words."""

# Of options whose values are no plain ones of their type, or are looked at by somebody else.
_SPECIAL = {
    "lora_modules": ["sql=/x"],
    "device_ids": ["0,1"],
    "log_config_file": ["x.json"],
    "mm_processor_device": ["cpu"],
    "collect_detailed_traces": ["all"],
}
_NEVER = ("help", "config", "model")


def lines(table: OptionTable, seed: int, count: int) -> list[Line]:
    """So many, the same for the same seed and table."""
    chance = random.Random(seed)  # noqa: S311 - repeatable
    options = [one for one in table.options if one.name not in _NEVER]
    chance.shuffle(options)
    each = max(3, -(-len(options) // count))
    made: list[Line] = []
    for i in range(count):
        chosen = [options[(i * each + k) % len(options)] for k in range(each)]
        by: By = "serve" if chance.random() < 0.7 else "module"
        words = [word for one in chosen for word in _use(one, chance)]
        if by == "serve" and chance.random() < 0.9:
            model = ["org/model"] if chance.random() < 0.8 else ["--model", "org/model"]
            words = [*model, *words] if chance.random() < 0.8 else [*_closed(words), *model]
        elif by == "module":
            words = ["--model=org/model", *words]
        if i % 2:
            words = chance.choice(_FAULTS)(words, table, chance)
        made.append((by, words))
    return made


def _closed(words: list[str]) -> list[str]:
    """With an option behind them that takes exactly one word, so that the next one is the model."""
    return [*words, "--port", "8001"]


def _use(option: ServerOption, chance: random.Random) -> list[str]:
    name = chance.choice(option.strings)
    if chance.random() < 0.3 and name.startswith("--"):
        name = "--" + name[2:].replace("-", "_")
    if option.takes in (Takes.SWITCH, Takes.PAIR):
        return [name]
    values = _values(option, chance)
    if option.many is None and chance.random() < 0.4:
        return [f"{name}={values[0]}"]
    return [name, *values]


def _values(option: ServerOption, chance: random.Random) -> list[str]:
    if option.name in _SPECIAL:
        return _SPECIAL[option.name]
    many = option.many if isinstance(option.many, int) else 1
    if option.many in ("+", "*"):
        many = chance.randint(1, 3)
    if option.many == "?" and chance.random() < 0.5:
        return []
    return [_good(option, chance) for _ in range(many)]


def _good(option: ServerOption, chance: random.Random) -> str:
    choices = [str(one) for one in option.choices if one not in (None, "None")]
    if choices:
        value = chance.choice(choices)
        return value.upper().replace("_", "-") if option.lowered else value
    if option.optional and chance.random() < 0.1:
        return "None"
    return chance.choice(_GOOD[option.takes])


_GOOD = {
    Takes.TEXT: ["word", "a/b", "x=y", "1"],
    Takes.INT: ["1", "2", "17"],
    Takes.FLOAT: ["0.5", "1", "1e-3"],
    Takes.SIZE: ["4096", "8k", "2K", "1.5m"],
    Takes.LENGTH: ["4096", "40k", "auto", "-1"],
    Takes.JSON: ['{"a": 1}', "{}", '{"b": {"c": [1, 2]}}'],
    Takes.CONFIG: ["{}"],
    Takes.TEXT_OR_JSON: ['{"a": 1}', "word"],
    Takes.UNKNOWN: ["word"],
}
_BAD = {
    Takes.INT: ["one", "1.5", "", "8k"],
    Takes.FLOAT: ["much", "1,5"],
    Takes.SIZE: ["many", "1.5K", "8kb"],
    Takes.LENGTH: ["many", "1.5K", "Auto!"],
    Takes.JSON: ["{a: 1}", '{"a": 1', "word"],
    Takes.CONFIG: ["{a: 1}", '{"no_such_key": 1}', "[]", "word", '{"no_such_key": 8k}'],
    Takes.TEXT_OR_JSON: ["{a: 1}"],
}


def _any(table: OptionTable, chance: random.Random, *takes: Takes) -> ServerOption:
    return chance.choice([one for one in table.options if one.takes in takes])


def _unknown(words: list[str], table: OptionTable, chance: random.Random) -> list[str]:
    name = max(chance.choice(table.options).strings, key=len)
    at = len(name) - 2
    return [*words, f"{name[:at]}q{name[at:]}", *chance.choice([[], ["1"]])]


def _cut(words: list[str], table: OptionTable, chance: random.Random) -> list[str]:
    """A name that is cut off: ambiguous, unknown or clear."""
    name = max(chance.choice(table.options).strings, key=len)
    return [*words, name[: chance.randint(4, len(name))], "1"]


def _wrong_value(words: list[str], table: OptionTable, chance: random.Random) -> list[str]:
    option = _any(table, chance, *_BAD)
    return [*words, f"{option.strings[0]}={chance.choice(_BAD[option.takes])}"]


def _wrong_choice(words: list[str], table: OptionTable, chance: random.Random) -> list[str]:
    options = [o for o in table.options if o.choices and o.takes is not Takes.UNKNOWN]
    option = chance.choice(options)
    return [*words, option.strings[0], chance.choice(["nothing", "0", "None"])]


def _no_value(words: list[str], table: OptionTable, chance: random.Random) -> list[str]:
    option = _any(table, chance, Takes.INT, Takes.TEXT, Takes.JSON, Takes.CONFIG)
    return [*words, option.strings[0], *chance.choice([[], ["--port", "1"]])]


def _too_many(words: list[str], table: OptionTable, chance: random.Random) -> list[str]:
    option = _any(table, chance, Takes.SWITCH, Takes.PAIR)
    return [*words, f"{max(option.strings, key=len)}=true"]


def _stray(words: list[str], table: OptionTable, chance: random.Random) -> list[str]:
    return [*words, "--port", "1", "stray", *chance.choice([[], ["other"]])]


def _keys(words: list[str], table: OptionTable, chance: random.Random) -> list[str]:
    """Keys of a configuration, right, wrong and without a value."""
    rows = [
        ["--compilation-config.mode", "3", "--compilation_config.cudagraph_mode=NONE"],
        ["-cc.cudagraph_capture_sizes+", "1,2", "-cc.cudagraph_capture_sizes+=4"],
        ["--hf-overrides.a.b", "40k", "--hf-overrides.a.c=text"],
        ["--kv-transfer-config.kv_conector", "x"],
        ["--compilation-config.mode"],
        ["-O2"],
        ["-O", "3"],
        ["-O=1"],
        ["-O", "fast"],
        ["-O7"],
        ["-tp2"],
        ["-tp=2"],
        ["-n2"],
        ["--", "--port"],
        ["--hf-token=x", "--hf-token"],
        ["--served-model-name=a"],
        ["--config"],
        ["--config", "no.yaml"],
        ["--config", "no.json"],
        ["--config=no.yaml"],
        ["--config", "a.yaml", "--config", "b.yaml"],
    ]
    return [*words, *chance.choice(rows)]


_FAULTS: list[Callable[[list[str], OptionTable, random.Random], list[str]]] = [
    *(_unknown, _cut, _wrong_value, _wrong_value, _wrong_choice),
    *(_no_value, _too_many, _stray, _keys, _keys, _keys),
]


def judged(python: Path, given: list[Line], folder: Path) -> list[dict[str, Any]]:
    """What the vLLM of this interpreter says of each."""
    ran = subprocess.run(
        [python, "-c", JUDGE],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    said: list[dict[str, Any]] = json.loads(ran.stdout.rpartition("SAID")[2])
    return said


def config_reader(folder: Path) -> ConfigReader:
    """Of the files in a folder."""
    return lambda file: config_of(file, Live({}).read(folder / file))


def differences(
    table: OptionTable, given: list[Line], said: list[dict[str, Any]], folder: Path
) -> Iterator[str]:
    """Each line that is read otherwise, in words."""
    for (by, words), truth in zip(given, said, strict=True):
        ours = parse_arguments(words, table, by, config_reader(folder))
        why = _difference(table, by, ours, truth)
        if why:
            yield f"{by} {words}: {why}"


def _difference(table: OptionTable, by: str, ours: Parsed, truth: dict[str, Any]) -> str | None:
    problems = [p for p in ours.problems if p.kind not in _LATER]
    refused = truth["refused"]
    if refused and not problems and _unjudged(table, refused):
        return None
    if bool(refused) != bool(problems):
        return f"vLLM: {refused or 'accepts'}; ours: {problems or 'accepts'}"
    if refused:
        named = [string for p in problems for string in _strings(table, p.option)]
        if not any(name in refused for name in named) and not refused.startswith(_CRASHES):
            return f"vLLM: {refused}; ours: {problems}"
        return None
    values = dict(truth["values"])
    tag = values.pop("model_tag", None)
    if by == "serve" and tag is not None:
        values["model"] = tag
    made = {name: _plain(table, name, value) for name, value in ours.values.items()}
    wrong = {n: (v, made.get(n, "not given")) for n, v in values.items() if made.get(n, ...) != v}
    return f"vLLM and ours: {wrong}" if wrong else None


# What vLLM's parser raises with a traceback, where it looks at the words before argparse does.
_CRASHES = ("ValueError", "AttributeError", "AssertionError", "IndexError", "FileNotFoundError")


# No matter of the parser, but of what looks at the options when they are parsed.
_LATER = (Wrong.EXCLUSIVE, Wrong.NEEDS, Wrong.RANGE)


def _unjudged(table: OptionTable, refused: str) -> bool:
    """Whether vLLM refuses the value of an option whose values are not judged."""
    unknown = [one for one in table.options if one.takes is Takes.UNKNOWN]
    return any(one.strings[0] in refused for one in unknown)


def _strings(table: OptionTable, option: str) -> list[str]:
    of = [s for one in table.options if option in one.strings for s in one.strings]
    return [option.partition(".")[0], *of]


def _plain(table: OptionTable, name: str, value: Any) -> Any:
    option = table.find(name)
    if option is None or value is None:
        return value
    if option.takes is Takes.CONFIG:
        return "CONFIG"
    if option.name == "lora_modules":
        return ["CONFIG"]
    if option.name == "device_ids":
        return [int(part) for part in value.split(",")]
    return value
