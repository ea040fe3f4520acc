"""The environment the server would be started with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from doctor.codec import decode, parse_json
from doctor.engine import probe
from doctor.model import Fact, Missing, Text
from doctor.probes.interpreter import Interpreter
from doctor.profile import Profile
from doctor.target import Target

# Below the target's prefix: what the doctor's own fixes keep for this target.
HOME = Path("share/vllm-doctor")
SAVED = HOME / "environment.json"

# What our fixes set; any other name in that file is not ours.
SETTABLE = frozenset(
    (
        "CPATH",
        "CUDA_HOME",
        "LD_LIBRARY_PATH",
        "NVCC_APPEND_FLAGS",
        "PATH",
        "TRITON_LIBCUDA_PATH",
        "VLLM_USE_FLASHINFER_MOE_FP16",
        "VLLM_USE_FLASHINFER_SAMPLER",
    )
)


@dataclass(frozen=True)
class SavedValue:
    """A variable that a fix set. `prepend`: path-like, put before the shell's. `instead_of`: the
    shell's values that were judged bad; any other value of the shell's wins over ours."""

    value: str
    prepend: bool = False
    instead_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Saved:
    schema_version: int = 1
    variables: dict[str, SavedValue] = field(default_factory=dict)


@dataclass(frozen=True)
class LaunchEnv(Fact):
    """Every variable the server would see; `differs` names those that the shell has otherwise."""

    vars: dict[str, str] = field(default_factory=dict)
    differs: tuple[str, ...] = ()

    def get(self, name: str) -> str | None:
        return self.vars.get(name)

    def folders(self, name: str) -> tuple[Path, ...]:
        """The entries of a path-like variable; an empty entry is left out."""
        return tuple(Path(p) for p in self.vars.get(name, "").split(os.pathsep) if p)


@probe
def launch_env(target: Target, interpreter: Interpreter, profile: Profile) -> LaunchEnv:
    """The shell's variables, what earlier fixes saved for this target, the profile's."""
    shell = target.env
    made = dict(shell)
    for name, saved in _saved(target, interpreter.prefix).variables.items():
        if name not in SETTABLE:
            continue
        old = shell.get(name)
        if saved.prepend:
            made[name] = _prepended(saved.value, old)
        elif old is None or old == "" or old in saved.instead_of:
            made[name] = saved.value
    differs = tuple(sorted(n for n, v in made.items() if shell.get(n) != v))
    for name, value in profile.env.items():
        made.setdefault(name, value)
    return LaunchEnv(made, differs)


def _prepended(folder: str, old: str | None) -> str:
    rest = [p for p in (old or "").split(os.pathsep) if p]
    return old if old and folder in rest else os.pathsep.join([folder, *rest])


def _saved(target: Target, prefix: Path) -> Saved:
    """What our own fixes left: a file of root or of the prefix's owner, reached by no link."""
    path = prefix / SAVED
    owner, stat = target.stat(prefix), target.stat(path)
    linked = target.realpath(path) != target.realpath(prefix) / SAVED
    if stat is None or owner is None or linked or stat.uid not in (0, owner.uid):
        return Saved()
    data = target.read(path)
    if data is None:
        return Saved()
    try:
        made: Saved = decode(Saved, parse_json(data))
    except ValueError as error:
        raise Missing(Text("{path} cannot be read: {error}", path=path, error=error)) from None
    return made


def which(target: Target, env: LaunchEnv, name: str) -> Path | None:
    """The executable `name` as a process with this environment finds it; a name with a slash is
    itself. `None` where there is none. A relative path is passed over: what it leads to depends on
    the current directory, and the doctor starts nothing from there."""
    if os.sep in name:
        path = Path(name)
        return path if path.is_absolute() and target.executable(path) else None
    for folder in env.folders("PATH"):
        if folder.is_absolute() and target.executable(folder / name):
            return folder / name
    return None


def child_env(env: LaunchEnv) -> Mapping[str, str]:
    """The server's environment for a child that answers in English."""
    return {**env.vars, "LC_ALL": "C"}
