"""A server whose files may be damaged, judged with all rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from doctor.engine import check, load_rules
from doctor.model import Outcome, Verdict
from doctor.probes.interpreter import Interpreter
from doctor.shipped import rules_folder
from tests.conftest import (
    TRANSFORMERS_FILES,
    Environment,
    facts_of,
    script,
    toolkit,
    vllm_environment,
)
from tests.installed import FLASHINFER_FILES, VLLM_FILES

RULES = load_rules(rules_folder())
LATER = ("gpus=later", "archs=9.0")
FILES = [
    file
    for file in (*VLLM_FILES, *FLASHINFER_FILES, *TRANSFORMERS_FILES)
    if file != "transformers/__init__.py"
]
"""What the doctor reads of it."""


@dataclass(frozen=True)
class Place:
    server: Environment
    env: dict[str, str]
    interpreter: Interpreter

    def judge(self, *, broken: bool = False) -> list[Outcome]:
        """`broken`: there is no toolkit."""
        env = {"PATH": "/nowhere"} if broken else self.env
        outcomes, _ = check(RULES, facts_of(self.server, env, LATER, given=(self.interpreter,)))
        assert not [o for o in outcomes if o.verdict is Verdict.CRASHED]
        return outcomes


def make_place(folder: Path) -> Place:
    """A server that is healthy, with a toolkit beside it."""
    server = vllm_environment(folder / "venv")
    script(server.prefix / "bin/ninja", "")
    kit = toolkit(folder / "kit")
    env = {"PATH": f"{server.prefix}/bin:/usr/bin:/bin", "CUDA_HOME": str(kit)}
    return Place(server, env, facts_of(server).get(Interpreter))
