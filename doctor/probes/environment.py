"""The environment the server would be started with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from doctor.codec import decode, parse_json
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, Text
from doctor.probes.interpreter import Interpreter
from doctor.profile import ServeRequest
from doctor.target import Target
from doctor.variables import PATH_LIKE, SETTABLE

# Below the target's prefix: what the doctor's own fixes keep for this target.
HOME = Path("share/vllm-doctor")
SAVED = HOME / "environment.json"

_HUB = "HF_ENDPOINT"
HUB_SWITCH = "HF_HUB_DISABLE_IMPLICIT_TOKEN"
"""Whether huggingface_hub sends a token of itself; holds none, whatever its name looks like."""
HUB_TOKENS = (
    "HF_OIDC_ID_TOKEN",
    "HF_OIDC_RESOURCE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGING_FACE_HUB_TOKEN",
)
"""By which huggingface_hub 2.4 (constants.py, utils/_auth.py) and vLLM find a token."""
NETRC = "NETRC"
"""The file of logins in the place of ~/.netrc; huggingface_hub 0.36 asks by requests, which sends
what stands there of a host, or of any host, where no other token goes along (utils.py)."""


@dataclass(frozen=True)
class SavedValue:
    """A variable that a fix set. `value` None: it is taken out. `prepend`: path-like, the folders
    of `value` are put before the shell's. `instead_of`: the shell's values that were judged bad;
    any other value of the shell's wins over ours."""

    value: str | None
    prepend: bool = False
    instead_of: tuple[str, ...] = ()

    def stands(self, shells: str | None) -> bool:
        """Whether it counts where the shell has this value (None: has none). An empty value of
        the shell's is overridden like none; to take one out, it must have been judged itself."""
        if self.prepend:
            return True
        if self.value is None:
            return shells is not None and shells in self.instead_of
        return not shells or shells == self.value or shells in self.instead_of

    def over(self, shells: str | None) -> str | None:
        """The value that the server gets where the shell has this one; None for no variable."""
        if not self.stands(shells):
            return shells
        return _prepended(self.value or "", shells) if self.prepend else self.value


@dataclass(frozen=True)
class Saved(Fact):
    """What the fixes kept for this target, by name of the variable."""

    schema_version: int = 1
    variables: dict[str, SavedValue] = field(default_factory=dict)

    def ours(self) -> dict[str, SavedValue]:
        """Sorted by name, without what no fix of ours writes."""
        return {
            name: one
            for name, one in sorted(self.variables.items())
            if name in SETTABLE and (not one.prepend or (name in PATH_LIKE and one.value))
        }


@dataclass(frozen=True)
class LaunchEnv(Fact):
    """Every variable the server would see; `differs` names those that the shell has otherwise,
    or that it has and the server has not. `hidden` names those that are set and whose values a
    snapshot does not hold. `hub`: where the profile, and nobody else, sends what is
    asked of Hugging Face; there the server has no token, and no login of ~/.netrc."""

    vars: dict[str, str] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    hub: str | None = None
    hidden: tuple[str, ...] = ()

    def get(self, name: str) -> str | None:
        return self.vars.get(name)

    def folders(self, name: str) -> tuple[Path, ...]:
        """The entries of a path-like variable; an empty entry is left out."""
        return tuple(Path(p) for p in self.vars.get(name, "").split(os.pathsep) if p)


@probe
def launch_env(target: Target, saved: Saved, request: ServeRequest) -> LaunchEnv:
    """The shell's variables, what earlier fixes saved for this target, the profile's or the
    command's own, and what the person said of one."""
    profile = request.profile
    shell = {**target.env, **request.command.env} if request.command else target.env
    made = dict(shell)
    differs = []
    for name, one in saved.ours().items():
        value = one.over(shell.get(name))
        if value != shell.get(name):
            differs.append(name)
        if value is None:
            made.pop(name, None)
        else:
            made[name] = value
    for name, value in profile.env.items():
        made.setdefault(name, value)
    for name, value in profile.env_asked.items():
        made[name] = value
        if not value:
            del made[name]
    hub = made.get(_HUB) if _HUB not in shell and _HUB not in profile.env_asked else None
    if hub:
        for name in HUB_TOKENS:
            made.pop(name, None)
        made[HUB_SWITCH] = "1"  # nor what `hf auth login` has kept
        made[NETRC] = os.devnull
    hidden = tuple(name for name in target.hidden if name not in made)
    return LaunchEnv(made, tuple(differs), hub, hidden)


def _prepended(folders: str, shells: str | None) -> str:
    rest = [p for p in (shells or "").split(os.pathsep) if p]
    lacking = [p for p in folders.split(os.pathsep) if p and p not in rest]
    return os.pathsep.join([*lacking, *rest]) if lacking or not shells else shells


@probe
def saved(target: Target, interpreter: Interpreter) -> Saved:
    """What lies below the interpreter's prefix."""
    return saved_below(target, interpreter.prefix)


def saved_below(target: Target, prefix: Path) -> Saved:
    """From <prefix>/share/vllm-doctor/environment.json. Raises Missing where it cannot be read:
    what is kept there is then neither known nor nothing."""
    path = prefix / SAVED
    data = own_file(target, prefix, SAVED)
    if data is None:
        return Saved()
    try:
        made: Saved = decode(Saved, parse_json(data))
    except ValueError as error:
        raise Missing(Text("{path} cannot be read: {error}", path=path, error=error)) from None
    return made


def own_file(target: Target, prefix: Path, name: Path) -> bytes | None:
    """What a file of ours below the prefix holds; None where there is none, where it is neither
    root's nor the prefix's owner's, and where a link leads to it: others could then have put it
    there. Raises Missing where it is ours and cannot be read, or others may write it: everybody, or
    the group of what is root's."""
    path = prefix / name
    owner, stat = target.stat(prefix), target.stat(path)
    linked = target.realpath(path) != target.realpath(prefix) / name
    if stat is None or owner is None or linked or stat.uid not in (0, owner.uid):
        return None
    if stat.mode & (0o022 if stat.uid == 0 else 0o002):
        raise Missing(Text("{path} can be written by others: chmod go-w it", path=path))
    data = target.read(path)
    if data is None:
        raise Missing(Text("{path} cannot be read", path=path))
    return data


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
