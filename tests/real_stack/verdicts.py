"""Server arguments for real models, as vLLM's own code takes or refuses them, and as the doctor
judges them."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doctor import toml
from doctor.command import ServerCommand
from doctor.engine import Facts, check, load_rules
from doctor.model import Outcome, Severity, Verdict
from doctor.probes.driver import DeepAsked
from doctor.probes.interpreter import FoundBy, Where
from doctor.profile import ServeRequest
from doctor.shipped import rules_folder
from doctor.target import Live
from tests import stand_ins
from tests.real_stack import cells, isolate, lab
from tests.real_stack.place import Place
from tests.tapes import FIXTURES

MODELS = FIXTURES / "models"
CELLS = FIXTURES / "commands" / "judged.toml"
_SCRIPT = Path(__file__).with_name("judge.py")
_AREAS = ("gpu", "memory", "model", "names", "options", "parsers", "quantization")
# The judge has no weights, and no memory to put them into.
_ELSEWHERE = frozenset(
    ("gpu-memory-too-small", "kv-cache-too-small", "model-path-missing", "no-kv-cache-memory")
)

SAID = {
    "architecture-not-in-transformers": r"Transformers does not recognize this architecture",
    "architecture-not-in-vllm": r"are not supported for now|Cannot find model module",
    "bf16-unsupported-gpu": r"Bfloat16 is only supported on GPUs with compute capability",
    "expert-parallel-without-experts": r"Number of experts in the model must be greater than 0",
    "fp16-unsupported-model": r"does not support float16",
    "gpu-below-min-arch": r"is not supported for the current GPU|Minimum capability",
    "max-model-len-too-big": r"is greater than the derived max_model_len",
    "quantization-mismatch": r"does not match the quantization method specified",
    "quantization-unknown": r"Unknown quantization method|argument --quantization/-q: invalid",
    "quantization-deprecated": r"is deprecated and will be removed",
    "reasoning-parser-unknown": r"[Rr]easoning parser '?\w+'? not found|invalid reasoning parser",
    "server-option-invalid": r"argument \S+: (invalid|expected)|ambiguous option",
    "server-options-exclude-each-other": r"requires --enable|cannot be used with|more than one",
    "tool-parser-unknown": r"invalid tool call parser|requires --tool-call-parser",
    "tp-exceeds-visible-gpus": r"is larger than the number of available GPUs",
    "quantized-shape-not-divisible": r"is not divisible by",
    "tp-not-dividing-heads": r"divisible by|[Dd]ecode context parallel|modulo by zero",
    "trust-remote-code-needed": r"requires you to execute the configuration file|trust_remote_code",
    "unknown-server-option": r"unrecognized arguments",
}
"""What vLLM says of each ailment."""


@dataclass(frozen=True)
class Cell:
    """A model's folder, what `vllm serve` gets beside it, and the GPUs. `refused`: the ailment for
    which vLLM ends, None where it does not; `unsaid`: why the doctor does not judge that."""

    model: str
    words: tuple[str, ...] = ()
    gpus: int = 8
    capability: str = "9.0"
    env: Mapping[str, str] = field(default_factory=dict)
    refused: str | None = None
    unsaid: str | None = None

    def __str__(self) -> str:
        set_ = " ".join(f"{name}={value}" for name, value in self.env.items())
        words = shlex.join((self.model, *self.words))
        return f"{set_} vllm serve {words} on {self.gpus} of {self.capability}".strip()


def listed(version: str) -> list[Cell]:
    """The cells of fixtures/commands/judged.toml, with what is true of a version of vLLM."""
    return [_cell(row, version) for row in toml.load_toml(CELLS)["cells"]]


def _cell(row: Mapping[str, Any], version: str) -> Cell:
    said = dict(row)
    words = tuple(shlex.split(said.pop("words", "")))
    refused = said.pop("refused", None)
    if isinstance(refused, dict):
        refused = refused.get(version)
    return Cell(words=words, refused=refused or None, **said)


def crossed(models: Iterable[str]) -> list[Cell]:
    """Each of the models with each of many arguments; what vLLM says of them is not known."""
    sizes = [f"--tensor-parallel-size {n}" for n in (1, 2, 3, 4, 5, 6, 8, 12, 16, 32)]
    more = """
        --quantization fp8|--quantization awq|--dtype float16|--dtype bfloat16|-tp 8 -ep
        --max-model-len 5000000|-pp 2|-tp 8 -dcp 2|-tp 8 -dcp 4|--kv-cache-dtype fp8|-tp 8 -dp 2
        --runner pooling|-tp 16 -ep|--mm-encoder-tp-mode data -tp 16"""
    words = [*sizes, *re.split(r"[|\n]\s*", more.strip())]
    made = [
        Cell(model, tuple(shlex.split(one)), gpus=64, capability=gpu)
        for model, one in itertools.product(models, words)
        for gpu in (("9.0",) if "-tp" in one or "tensor" in one else ("7.5", "8.0", "9.0", "12.0"))
    ]
    return [*made, *(Cell(model, ("--trust-remote-code",)) for model in models)]


def folder_of(model: str, values: Mapping[str, Any], where: Path) -> Path:
    """A model's folder, made below `where`: its configuration, code where it names some, which
    makes a configuration of these values, and weights that are one tensor."""
    made = where / model.replace("/", "__")
    made.mkdir(parents=True, exist_ok=True)
    (made / "config.json").write_text(json.dumps(values), encoding="utf-8")
    if named := values.get("auto_map", {}).get("AutoConfig"):
        file, name = named.rpartition("--")[2].split(".")
        code = f"class {name}(PretrainedConfig):\n    model_type = {values.get('model_type')!r}\n"
        text = f"from transformers import PretrainedConfig\n\n\n{code}"
        (made / f"{file}.py").write_text(text, encoding="utf-8")
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1 << 24], "data_offsets": [0, 1 << 25]}})
    with (made / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + (1 << 25))
    return made


def values_of(model: str, folder: Path = MODELS) -> dict[str, Any]:
    """The values of its config.json, as a file of a folder has them: alone, or under `config`."""
    path = folder / f"{model.replace('/', '__')}.json"
    read = json.loads(path.read_text(encoding="utf-8"))
    values = read.get("config", read)
    return {name: value for name, value in values.items() if not name.startswith("_")}


def said_by(
    script: Path, rows: Sequence[Mapping[str, Any]], target: lab.Environment, home: Path
) -> list[dict[str, Any]]:
    """What a judge says of each row, in one run of the environment's interpreter."""
    asked = home / "asked.json"
    asked.write_text(json.dumps(rows), encoding="utf-8")
    shell = stand_ins.environment(cells.driver(home / "driver"), gpus=8)
    place = Place(target, home, {**shell, "HF_HUB_OFFLINE": "1"})
    ran = place.run("sh", "-c", f'exec "$0" {script} < {asked}', target.python)
    said = [json.loads(row) for row in ran.out.splitlines()]
    assert len(said) == len(rows), ran.text[-3000:]
    return said


@dataclass(frozen=True)
class Bench:
    """Where cells are tried: an environment, a home, and the folders of the models."""

    target: lab.Environment
    home: Path
    models: Mapping[str, Path]

    @property
    def shell(self) -> dict[str, str]:
        return stand_ins.environment(cells.driver(self.home / "driver"), gpus=8)

    def refusals(self, tried: Sequence[Cell]) -> list[str | None]:
        """What vLLM says of each cell, in one run of the environment's interpreter; None where it
        takes it."""
        rows = [
            {
                "model": str(self.models[cell.model]),
                "arguments": [str(self.models[cell.model]), *cell.words],
                "capability": cell.capability,
                "gpus": cell.gpus,
                "env": dict(cell.env),
            }
            for cell in tried
        ]
        answers = said_by(_SCRIPT, rows, self.target, self.home)
        said = [one["refused"] for one in answers]
        return [" ".join(one) if one else None for one in said]

    def outcomes(self, tried: Sequence[Cell]) -> list[list[Outcome]]:
        """What the doctor's rules about models, options and GPUs come to in each cell."""
        rules = [
            one
            for one in load_rules(rules_folder())
            if one.area in _AREAS and one.id not in _ELSEWHERE
        ]
        facts: dict[tuple[str, int], Facts] = {}
        made = []
        for cell in tried:
            kind = (cell.capability, cell.gpus)
            # What rests on no cell stays known to the next one.
            known = facts.get(kind) or self._facts(cell)
            facts[kind] = known.given(self._request(cell))
            made.append(check(rules, facts[kind])[0])
        return made

    def _facts(self, cell: Cell) -> Facts:
        said = {"STAND_IN_CC": cell.capability, "STAND_IN_GPUS": str(cell.gpus)}
        path = f"{self.target.prefix / 'bin'}:{isolate.SYSTEM_PATH}"
        env = {"PATH": path, "HOME": str(self.home), **self.shell, **said}
        where = Where(self.target.python, FoundBy.OPTION)
        return Facts(Live(env), (where, DeepAsked(), self._request(cell)))

    def _request(self, cell: Cell) -> ServeRequest:
        words = (str(self.models[cell.model]), *cell.words)
        command = ServerCommand(("vllm", "serve", *words), words, env=dict(cell.env))
        return ServeRequest(command=command)


def errors(outcomes: Iterable[Outcome]) -> set[str]:
    return {
        one.rule.id
        for one in outcomes
        if one.verdict is Verdict.FOUND
        and any((f.severity or one.rule.severity) is Severity.ERROR for f in one.findings)
    }


def unsure(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """What the doctor could not tell, and why."""
    return {
        one.rule.id: str(one.why)
        for one in outcomes
        if one.verdict in (Verdict.UNKNOWN, Verdict.CRASHED)
    }


def ailments(refusal: str) -> set[str]:
    """The ailments of which vLLM says this."""
    return {id for id, said in SAID.items() if re.search(said, refusal)}
