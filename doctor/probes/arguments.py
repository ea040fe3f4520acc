"""The server's command line, as the installed vLLM reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from doctor import arguments
from doctor.arguments import ArgumentProblem, Wrong
from doctor.codec import CodecError
from doctor.consumers import names
from doctor.consumers.names import NotAsKnown
from doctor.consumers.server_options import OptionTable, option_table
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import NO_MODEL, Fact, Missing, NotApplicable, Text
from doctor.probes.wheels import Vllm
from doctor.profile import Profile, ServeRequest
from doctor.tape import NotRecorded, Tape
from doctor.target import READ_MOST, Target


@dataclass(frozen=True)
class ServerOptions(Fact):
    """What the `vllm serve` of the installed vLLM takes, option by option."""

    since: ClassVar[str] = "0.6.0"
    table: OptionTable = OptionTable(())


@probe
def options_of_vllm(target: Target, vllm: Vllm) -> ServerOptions:
    try:
        return ServerOptions(option_table(lambda f, p: target.search(vllm.root / f, p)))
    except NotAsKnown as error:
        raise Missing(
            Text(
                "{files} of vLLM {version} cannot be read as in the versions that are known",
                files=[vllm.root / file for file in error.files],
                version=vllm.version,
            )
        ) from None


@dataclass(frozen=True)
class ServerArguments(Fact):
    """The server's command line as the parser of the installed vLLM reads it: `values` of the
    options that are given, by their names with underscores, and `model` where one is; `problems`:
    what that parser would end for; `defaults`: what the installed version takes for a profile's
    settings, and for the model, where nothing is said. `parsed`: it was read so; a profile that
    says nothing beside its settings is not. `unread`: why it could not be; then `values` has what
    is plain in any release. `not_asked`: the doctor that recorded the snapshot did not ask."""

    since: ClassVar[str] = "0.6.0"
    dispensable: ClassVar[bool] = True  # a profile is in force all the same
    values: dict[str, Any] = field(default_factory=dict)
    problems: tuple[ArgumentProblem, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    parsed: bool = False
    unread: Text | None = None
    not_asked: bool = False

    def found(self, *kinds: Wrong) -> tuple[ArgumentProblem, ...]:
        """Its problems of these kinds. Raises Missing where it is not read, NotApplicable where
        there is nothing to read."""
        if self.unread:
            why = self.unread
            raise NotApplicable(why) if self.not_asked else Missing(why, ("vllm-missing",))
        if not self.parsed:
            said = Text("a profile's own settings are judged one by one")
            raise NotApplicable(said if "model" in self.values else NO_MODEL)
        return tuple(problem for problem in self.problems if problem.kind in kinds)


@probe
def server_arguments(target: Target, request: ServeRequest, vllm: Vllm | None) -> ServerArguments:
    """The table of options is read for a command, and where a profile says more than its own
    settings: those are judged without it."""
    profile, command = request.profile, request.command
    if not command and not (profile.model and (profile.options or request.extra)):
        return ServerArguments(_said(profile))
    plain = arguments.plain_values(command.arguments, command.by) if command else _said(profile)
    if vllm is None and command and command.container:
        why = Text("the image {image} was not entered", image=command.container.image)
        return ServerArguments(plain, unread=why, not_asked=True)
    if vllm is None:
        return ServerArguments(plain, unread=Text("vLLM is not there"))
    try:
        table = options_of_vllm(target, vllm).table
        words = (
            command.arguments
            if command
            else (*arguments.profile_words(profile, table), *request.extra)
        )
        by = command.by if command else "serve"
        made = arguments.parse_arguments(
            words, table, by, lambda file: _config(target, request.folder, file)
        )
    except Missing as missing:
        recorder = _recorder(target) if isinstance(missing, NotRecorded) else None
        # A plain profile was judged without it; of a command nobody has looked at the options.
        not_asked = recorder is not None and command is None
        return ServerArguments(plain, unread=recorder or missing.reason, not_asked=not_asked)
    out = dict(out_of_range(made.values))
    values = {name: value for name, value in made.values.items() if name not in out}
    defaults = {} if made.ended else _defaults(table)
    return ServerArguments(values, (*made.problems, *out.values()), defaults, parsed=True)


def _said(profile: Profile) -> dict[str, Any]:
    if profile.model is None:
        return dict(profile.options)
    settings = {setting: value for setting, _, value in names.passed(profile)}
    return {"model": profile.model, **settings, **profile.options}


def _recorder(target: Target) -> Text | None:
    """Why a snapshot of an older doctor does not hold it."""
    tool = target.recorder_without(ServerArguments) if isinstance(target, Tape) else None
    return Text("recorded by {tool}, before this check existed", tool=tool) if tool else None


def _defaults(table: OptionTable) -> dict[str, Any]:
    rows = ((name, table.find(name)) for name in _DEFAULTS)
    return {name: row.default for name, row in rows if row and row.default is not None}


# What a server has, said or not.
_DEFAULTS = ("model", "host", "port", "gpu_memory_utilization")


def out_of_range(values: Mapping[str, Any]) -> Iterator[tuple[str, ArgumentProblem]]:
    """Of a profile's settings, those that no server can have, by name."""
    for name, option in names.OPTIONS.items():
        value = values.get(name)
        if isinstance(value, (int, float)) and (name, value) not in _UNSAID:
            changed: dict[str, Any] = {name: value}
            try:
                dataclasses.replace(Profile(), **changed)
            except CodecError as error:
                yield name, ArgumentProblem(Wrong.RANGE, option, str(value), why=error.why)


# What vLLM takes for nothing said, and for any port that is free.
_UNSAID = (("max_model_len", -1), ("port", 0))


def _config(target: Target, folder: Path, file: str) -> Mapping[Any, Any]:
    """What a --config file holds, from the folder that the server is started in."""
    return arguments.config_of(file, target.read(folder / file, READ_MOST + 1))
