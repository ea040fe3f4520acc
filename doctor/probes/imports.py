"""The verdict proven: what vLLM imports at its start, imported by the server's own Python."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from doctor.codec import decode, parse_json
from doctor.consumers.imports import ROOTS, WITHOUT_GPU, Import, Start, imports
from doctor.consumers.source import Source
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text
from doctor.probes.driver import NO_GPU_NEEDED, DeepAsked, Gpus
from doctor.probes.environment import LaunchEnv, child_env
from doctor.probes.interpreter import Interpreter, distrusted
from doctor.probes.jit import read_capability, said_capabilities, sampler_is_on
from doctor.probes.served import Profile
from doctor.probes.wheels import ROCM, Packages, Torch, Vllm
from doctor.redact import redact
from doctor.target import OWN, OWN_PYTHON, Ran, Target
from doctor.trust import NotTrusted

# Of torch alone ten seconds are nothing out of the ordinary where the disk is cold, and minutes
# where it is a network's.
_TIMEOUT = 600.0
# Nothing is fetched, told to anybody, or written beside the modules.
_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def start_imports(
    target: Target,
    env: LaunchEnv,
    profile: Profile,
    packages: Packages,
    vllm: Vllm,
    torch: Torch,
    gpus: Gpus | None,
) -> tuple[Import, ...]:
    """What of the modules that this server imports is installed, in the order in which they are
    tried; read from the installed vLLM's own files. Raises Missing where these do not say
    (Unreadable), and where no CUDA server starts."""
    if profile.device == "cpu":
        raise NotApplicable(NO_GPU_NEEDED)
    if torch.hip:
        raise NotApplicable(ROCM)
    said = dict.fromkeys(map(read_capability, said_capabilities(profile, gpus)))
    start = Start(
        profile.needs.architecture,
        tuple(capability for capability in said if capability),
        profile.tensor_parallel_size,
        sampler_is_on(env, vllm) is True,
    )
    folders = (vllm.root.parent, torch.root.parent, *packages.folders)
    rows = imports(Source(target, vllm.root), start)
    return tuple(row for row in rows if _is_there(target, folders, row.module))


def _is_there(target: Target, folders: tuple[Path, ...], module: str) -> bool:
    name = module.replace(".", "/")
    files = (f"{name}/__init__.py", f"{name}.py", name)  # the last one without an __init__.py
    return any(target.stat(folder / file) for folder in folders for file in files)


@dataclass(frozen=True)
class ImportFailure:
    """What an import died of: the exception's class and those it inherits from, its words, the
    innermost file and line; `output`: the end of what it printed. Of a crash, the signal."""

    kind: str
    kinds: tuple[str, ...] = ()
    message: str = ""
    file: str | None = None
    line: int | None = None
    output: str = ""

    def __str__(self) -> str:
        first = next(iter(self.message.strip().splitlines()), "")
        return f"{self.kind}: {first[:300]}" if first else self.kind

    @property
    def place(self) -> str:
        return "a place unknown" if self.file is None else f"{self.file}:{self.line}"


ImportOutcome = Literal["ok", "died", "caught", "not-checked", "not-reached"]


@dataclass(frozen=True)
class Imported:
    """What the import of one module came to, in seconds of wall time. "caught": vLLM goes on
    without it; "not-checked": it dies without a GPU in a good environment as well; "not-reached":
    an earlier one hung. `ids`: the ailments that its words name; `always` as of Import."""

    module: str
    outcome: ImportOutcome
    seconds: float = 0.0
    always: bool = True
    caught: tuple[str, ...] = ()
    error: ImportFailure | None = None
    ids: tuple[str, ...] = ()

    @property
    def told(self) -> Text:
        """What it died of, and where."""
        place = self.error.place if self.error else ""
        return Text(
            "importing {module} fails: {error} ({place})",
            module=self.module,
            error=self.error,
            place=place,
        )


@dataclass(frozen=True)
class Imports(Fact):
    """What the imports came to, and what kept the rest from being tried."""

    since: ClassVar[str] = "0.4.0"
    rows: tuple[Imported, ...] = ()
    failure: str | None = None

    @property
    def seconds(self) -> float:
        return sum(row.seconds for row in self.rows)

    @property
    def died(self) -> tuple[Imported, ...]:
        """The first at each place: one fault ends the import of all that lies above it."""
        firsts: dict[object, Imported] = {}
        for row in self.rows:
            if row.outcome == "died" and row.error:
                firsts.setdefault((row.error.kind, row.error.place), row)
        found = tuple(firsts.values())
        roots = tuple(row for row in found[:1] if row.module in ROOTS)
        return roots or found

    def with_it(self, one: Imported) -> tuple[str, ...]:
        """The other modules that died at the same place."""
        if one.error is None:
            return ()
        place = (one.error.kind, one.error.place)
        return tuple(
            row.module
            for row in self.rows
            if row is not one and row.error and (row.error.kind, row.error.place) == place
        )


@probe
def imported(
    target: Target,
    asked: DeepAsked,
    env: LaunchEnv,
    profile: Profile,
    interpreter: Interpreter,
    packages: Packages,
    vllm: Vllm,
    torch: Torch,
    gpus: Gpus | None,
) -> Imports:
    """A child of the doctor's own keeps a temporary folder, and starts the server's Python in it
    (see _imports.py). Raises Missing where nothing died, and not all of it could be tried."""
    if not asked.asked:
        raise NotApplicable(Text("no imports were asked for (--deep)"))
    wanted = start_imports(target, env, profile, packages, vllm, torch, gpus)
    variables = _environment(env)
    if why := distrusted(target, interpreter, variables) or _distrusted_toolkit(target, env):
        raise NotTrusted(why)
    ran = target.run(
        OWN_PYTHON,
        "-I",
        "-S",
        "-B",
        OWN + "probes/_imports.py",
        f"{_TIMEOUT:g}",
        str(interpreter.python),
        *(row.module for row in wanted),
        timeout=_TIMEOUT + 30,
        env=variables,
    )
    made = _read(ran, wanted)
    if made.failure and not any(row.always for row in made.died):
        raise Missing(Text("{failure}", failure=made.failure))
    return made


def _environment(env: LaunchEnv) -> Mapping[str, str]:
    """The server's, but for what Python would import from the current directory."""
    variables = {**child_env(env), **_QUIET}
    if path := variables.pop("PYTHONPATH", None):
        folders = [p for p in path.split(os.pathsep) if p.startswith("/")]
        if folders:
            variables["PYTHONPATH"] = os.pathsep.join(folders)
    return variables


def _distrusted_toolkit(target: Target, env: LaunchEnv) -> Text | None:
    """Why root may not run what modules start from there when they are imported."""
    homes = (env.get(name) for name in ("CUDA_HOME", "CUDA_PATH"))
    whys = (target.distrust(Path(home) / "bin/nvcc") for home in homes if home)
    return next((why for why in whys if why), None)


@dataclass(frozen=True)
class _Row:
    module: str
    seconds: float
    error: ImportFailure | None = None


@dataclass(frozen=True)
class _Answer:
    rows: tuple[_Row, ...] = ()
    cuda: bool = False
    failure: str | None = None


def _read(ran: Ran, wanted: tuple[Import, ...]) -> Imports:
    if not ran.ok:
        why = ran.failure or redact(ran.err.strip())[-200:] or f"ended with code {ran.code}"
        raise Missing(Text("the imports {why}", why=why))
    try:
        answer: _Answer = decode(_Answer, parse_json(ran.out))
    except ValueError as error:
        raise Missing(Text("the answer of the imports cannot be read: {e}", e=error)) from None
    said = {row.module: row for row in answer.rows}
    rows = tuple(_judged(one, said.get(one.module), answer.cuda) for one in wanted)
    return Imports(rows, None if answer.failure is None else redact(answer.failure)[:300])


def _judged(wanted: Import, row: _Row | None, gpu: bool) -> Imported:
    from doctor.signatures import ids_of  # with its regular expressions, for a proof alone

    if row is None:
        return Imported(wanted.module, "not-reached", 0.0, wanted.always, wanted.caught)
    error = _redacted(row.error) if row.error else None
    outcome: ImportOutcome = "ok"
    if error:
        outcome = "died"
        if not gpu and any(text in error.message for text in WITHOUT_GPU):
            outcome = "not-checked"
        elif set(wanted.caught) & set(error.kinds):
            outcome = "caught"
    ids = ids_of(error.output)[0] if error and outcome == "died" else ()
    return Imported(wanted.module, outcome, row.seconds, wanted.always, wanted.caught, error, ids)


def _redacted(error: ImportFailure) -> ImportFailure:
    file = None if error.file is None else re.sub(r"[\r\n]", " ", error.file)[:1000]
    return ImportFailure(
        error.kind[:100],
        error.kinds,
        redact(error.message)[:2000],
        file,
        error.line,
        redact(error.output)[-4000:],
    )
