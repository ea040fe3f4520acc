"""Who the target interpreter is, and where it imports from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from packaging.version import Version

from doctor.codec import decode, parse_json
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, Text
from doctor.redact import redact
from doctor.target import OWN as OWN_FILES
from doctor.target import Target

MARK = "--vllm-doctor-"


class FoundBy(str, Enum):
    """What named the interpreter; a snapshot and the report have these words."""

    OPTION = "--python"
    VIRTUAL_ENV = "VIRTUAL_ENV"
    CONDA_PREFIX = "CONDA_PREFIX"
    VLLM_ON_PATH = "vllm on PATH"
    COMMAND = "the command"
    IMAGE = "an image that was not entered"
    OWN = "the doctor's own"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Where(Fact):
    """The interpreter to judge, and how it was found; `script`: the `vllm`, on PATH or of a
    command, that starts it. Of an image that was not entered, `python` is its name."""

    python: Path
    found_by: FoundBy
    script: Path | None = None

    @property
    def how(self) -> str:
        """`found_by` in words, with the script."""
        by = self.found_by.value
        return f"{by} ({self.script})" if self.script else by


def recorded_where(python: str, how: str) -> Where:
    """The Where of a snapshot, which holds its `how`. Raises CodecError for other words."""
    by, _, script = how.partition(" (")
    return Where(
        Path(python), decode(FoundBy, by, "found_by"), Path(script[:-1]) if script else None
    )


@dataclass(frozen=True)
class Interpreter(Fact):
    """The target. `site_packages` in import order; `user_site` None where it is switched off;
    `installs_to`: those of them that an installer writes to."""

    python: Path
    prefix: Path
    base_prefix: Path
    version: Version
    implementation: str
    machine: str
    site_packages: tuple[Path, ...]
    include: Path
    virtual: bool
    user_site: Path | None = None
    installs_to: tuple[Path, ...] = ()


class NotPython(Missing):
    """What was named is no Python interpreter that answers. `wrong`: it is not one at all, so
    that naming it was the mistake; otherwise it could not be asked (it hangs)."""

    def __init__(self, reason: Text, wrong: bool = True) -> None:
        super().__init__(reason)
        self.wrong = wrong


@probe
def interpreter(target: Target, where: Where) -> Interpreter:
    """Asks the interpreter itself, isolated: no site, no `.pth`, no PYTHON* variable."""
    python = str(where.python)
    env = {**target.env, "VLLM_DOCTOR_MARK": MARK + os.urandom(8).hex()}
    ran = target.run(python, "-I", "-S", "-B", OWN_FILES + "probes/_inspect.py", python, env=env)
    answer = ran.out.split("\n")
    marks = [i for i, line in enumerate(answer) if line.startswith(MARK)]
    if not ran.ok or len(marks) != 2:
        raise NotPython(
            Text(
                "{python} is not a working Python interpreter: {why}",
                python=where.python,
                why=ran.failure or _complaint(ran.err, ran.code),
            ),
            wrong=ran.code is not None,
        )
    try:
        data = parse_json("\n".join(answer[marks[0] + 1 : marks[1]]))
        made: Interpreter = decode(Interpreter, data)
    except ValueError as error:
        raise NotPython(
            Text(
                "{python} described itself in a way we cannot read: {error}",
                python=where.python,
                error=error,
            )
        ) from None
    return made


def _complaint(err: str, code: int | None) -> str:
    lines = err.strip().splitlines()
    return redact(lines[-1])[:200] if lines else f"it ended with code {code} and did not answer"


def import_path(interpreter: Interpreter, env: Mapping[str, str]) -> tuple[Path, ...]:
    """Folders searched for distributions by a server started with `env`, in the order of the
    `site` module: PYTHONPATH, a venv's own, the user site where it is on, the system's."""
    folders = [Path(p) for p in env.get("PYTHONPATH", "").split(os.pathsep) if p]
    if interpreter.virtual:
        folders += [p for p in interpreter.site_packages if interpreter.prefix in p.parents]
    if interpreter.user_site and not env.get("PYTHONNOUSERSITE"):
        folders.append(interpreter.user_site)
    return tuple(dict.fromkeys([*folders, *interpreter.site_packages]))


# Prefixes that the whole machine shares: what lies there is not one environment's.
_SHARED = (Path("/usr"), Path("/usr/local"))


def is_targets(
    target: Target, interpreter: Interpreter, env: Mapping[str, str], *spellings: Path
) -> bool:
    """Whether a program, by one of its spellings, came with the environment that is judged: it lies
    below its prefix, or in a distribution. Such a one is asked for its version and for nothing
    else, but by the test build."""
    prefix = interpreter.prefix
    own = () if prefix in _SHARED else (prefix, target.realpath(prefix))
    folders = (*own, *import_path(interpreter, env))
    return any(folder in path.parents for path in spellings for folder in folders)


def distrusted(target: Target, interpreter: Interpreter, env: Mapping[str, str]) -> Text | None:
    """Why root may not run what a server started with `env` imports: its folders, and each module
    and distribution that lies in them."""
    for folder in import_path(interpreter, env):
        if why := target.distrust(folder, searched=True):
            return why
        for name in target.listdir(folder) or ():
            if why := target.distrust(folder / name):
                return why
    return None
