"""What of a recording may leave the machine: no secret, no name of a person or a home, and of the
environment only what is judged."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doctor import probes
from doctor.engine import Crashed, Facts
from doctor.model import Missing
from doctor.probes.driver import DeepAsked, InstalledDriver
from doctor.probes.host import HostCompilers
from doctor.probes.interpreter import Interpreter
from doctor.redact import redacted
from doctor.variables import RECORDED

# Who helps somebody wants to know that one of these was set.
_NAMED = re.compile(r"(?:VLLM|HF|CUDA|NCCL|GLOO|FLASHINFER)_\w+|TORCH\w*")

# Whose answers are names of people.
_USERS = frozenset(("/etc/passwd",))
# A name ends where no further letter of a name follows.
_END = r"(?![\w-]|\.\w)"
# Folder names that say nothing of a person, also where a user is called so.
_PLAIN = frozenset(
    ("root", "nvidia", "python", "vllm", "torch", "lib", "bin", "opt", "usr", "user")
)


def ask_everything(facts: Facts) -> tuple[str, ...]:
    """Asks for every fact that can be found out without a proof, so that whoever judges the answers
    may ask for another model, other GPUs, or none; returns their names. `facts` were given Where
    and ServeRequest. Raises Missing (NotPython) or Crashed where the interpreter does not answer.
    """
    facts = facts.given(DeepAsked(False))
    facts.ask_ahead(Interpreter, InstalledDriver, HostCompilers)
    facts.get(Interpreter)
    for module in pkgutil.iter_modules(probes.__path__):
        if not module.name.startswith("_"):  # those run in a child
            importlib.import_module(f"{probes.__name__}.{module.name}")
    registry = facts.registry
    proofs = {k for k in registry.kinds() if DeepAsked in (n for _, n, _ in registry.needs(k))}
    asked = [kind for kind in registry.kinds() if kind not in proofs]
    for kind in asked:
        with contextlib.suppress(Missing, Crashed):
            facts.get(kind)
    return tuple(sorted(kind.__name__ for kind in asked))


def shareable(recording: dict[str, Any], home: str | None) -> dict[str, Any]:
    """The recording without the values of variables that nothing reads, secrets, and the home's
    real name.

    A home is replaced everywhere by /home/user, so that paths still fit each other.
    """
    shell = recording["env"]
    env = {name: value for name, value in shell.items() if name in RECORDED}
    names = sorted(filter(_NAMED.fullmatch, shell))
    searched = dict(recording.get("search", {}))
    for path in _USERS.intersection(searched):
        searched[path] = dict.fromkeys(searched[path])  # as where it cannot be read
    if searched:
        recording = {**recording, "search": searched}
    made: dict[str, Any] = _Nameless(home)({**recording, "env": env, "env_names": names})
    clean: dict[str, Any] = redacted(made)
    return clean


class _Nameless:
    """Data without the name of a home, and of other people's."""

    def __init__(self, home: str | None) -> None:
        self._rules: list[tuple[re.Pattern[str], str]] = []
        if home and len(Path(home).parts) > 1 and home != "/root":
            whole = re.escape(home.rstrip("/"))
            self._rules.append((re.compile(whole + _END), "/home/user"))
            name = Path(home).name
            if name not in _PLAIN and len(name) > 1:
                self._rules.append((re.compile(rf"(?<=/){re.escape(name)}{_END}"), "user"))
        self._rules.append((re.compile(rf"/home/(?!user{_END})[\w.-]*\w"), "/home/someone"))

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            for pattern, new in self._rules:
                value = pattern.sub(new, value)
            return value
        if isinstance(value, Mapping):
            return {self(k): self(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(v) for v in value]
        return value
