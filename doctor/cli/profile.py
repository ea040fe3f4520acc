"""profile: a command as a profile, which serves the same."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import click

from doctor.cli.options import (
    CommonOptions,
    ServingCommand,
    command_option,
    python_options,
)
from doctor.cli.output import say, tell, verbatim, write_file
from doctor.command import ServerCommand
from doctor.consumers import names
from doctor.diagnose import facts_about
from doctor.errors import DoctorError, UsageError
from doctor.exits import FINDINGS, UNKNOWN
from doctor.model import Text
from doctor.probes.arguments import ServerArguments
from doctor.probes.served import Profile
from doctor.redact import is_secret_name


@click.command(cls=ServingCommand)
@functools.partial(python_options, more=("sets", "words"))
@click.option(
    "--from-command", is_flag=True, required=True, help="Of the server's command behind --."
)
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    metavar="FILE",
    help="Where to write it; - for stdout.",
)
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Of the place, such as device=cpu."
)
@command_option
def profile(common: CommonOptions, from_command: bool, output: str) -> None:
    """Write a profile that serves the same as a command; secrets are left out.

    Exit codes: 0 written, 1 the installed vLLM would refuse the command, 2 usage, 3 its options
    cannot be read.
    """
    request = common.request()
    if request.command is None:
        raise UsageError(Text("--from-command: name the command: ... -- vllm serve MODEL"))
    target, where = common.named(request.command)
    facts = facts_about(target, where, request)
    arguments = facts.get(ServerArguments)
    if arguments.unread:
        said = Text("the options of the installed vLLM cannot be read: {why}", why=arguments.unread)
        raise DoctorError(said, UNKNOWN)
    if arguments.problems:
        wrong = arguments.problems[0].option
        raise DoctorError(
            Text("the installed vLLM would refuse {option}: see diagnose", option=wrong), FINDINGS
        )
    made = facts.get(Profile)
    text = "".join(f"{line}\n" for line in profile_lines(made, arguments.values, request.command))
    if output == "-":
        verbatim(text)
        return
    write_file("--output", output, text)
    say(f"wrote {output}", err=True)


def profile_lines(
    served: Profile, values: Mapping[str, Any], command: ServerCommand
) -> Iterator[str]:
    """TOML: what is said of the model and of its place, any other option, the variables."""
    if served.model is None:
        raise UsageError(Text("--from-command: the command names no model"))
    yield f"model = {_toml(served.model)}"
    plain = Profile()
    always = ("host", "port", "tensor_parallel_size", "gpu_memory_utilization")
    for name in (*names.OPTIONS, "device", "gpus", "archs", "mirror"):
        value = getattr(served, name)
        if name in always or value != getattr(plain, name):
            yield f"{name} = {_toml(value)}"
    for name, value in values.items():
        if name in names.OPTIONS or name == "model" or value is None:
            continue
        if is_secret_name(name):
            tell(Text("left out: {name} (a secret)", name=name))
            continue
        yield f"{name} = {_toml(value)}"
    kept = {name: value for name, value in command.env.items() if not is_secret_name(name)}
    if left := sorted(command.env.keys() - kept.keys()):
        tell(Text("left out: {names} (secrets)", names=left))
    if kept:
        yield ""
        yield "[env]"
        yield from (f"{_key(name)} = {_toml(value)}" for name, value in kept.items())


def _key(name: str) -> str:
    """A container's variable may have any name."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    """A value of TOML; a table as JSON in a text, as the option takes it."""
    if isinstance(value, (list, tuple)) and not any(isinstance(v, (list, dict)) for v in value):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)  # also inf and nan, as TOML has them
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
