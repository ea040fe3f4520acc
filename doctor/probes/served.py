"""The profile in force: what was asked for, as the installed vLLM's own parser and the model's own
config.json read it. Who asks for the fact Profile imports it from here."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from typing import Any

from doctor.codec import CodecError, decode
from doctor.consumers import names
from doctor.consumers.model_config import needs_of
from doctor.engine import probe
from doctor.probes.arguments import ServerArguments
from doctor.probes.configuration import ModelConfiguration
from doctor.profile import ModelNeeds, Profile, ServeRequest

__all__ = ["Profile", "profile_in_force"]


@probe
def profile_in_force(
    request: ServeRequest,
    arguments: ServerArguments | None,
    configuration: ModelConfiguration | None,
) -> Profile:
    """What was said of the model's needs wins over what its config says. It is there also where the
    environment of the server, or the model's configuration, cannot be told."""
    made = request.profile
    if arguments is not None and (request.command or made.model is not None):
        made = _as_parsed(made, arguments)
    if made.model is None or configuration is None:
        return made
    known = needs_of(configuration)
    said = {name: value for name, value in vars(made.needs).items() if value is not None}
    needs: ModelNeeds = dataclasses.replace(known, **said)
    return dataclasses.replace(made, needs=needs)


def _as_parsed(base: Profile, arguments: ServerArguments) -> Profile:
    """With what the command line says: a profile's settings, and all else as options."""
    values = {**arguments.defaults, **arguments.values}
    model = values.pop("model", None)
    made = dataclasses.replace(base, model=model if isinstance(model, str) and model else None)
    for name in names.OPTIONS:
        value = _of_a_profile(name, values.pop(name, None))
        with contextlib.suppress(CodecError):  # a problem already, or nothing is known of it
            made = dataclasses.replace(made, **{name: decode(_HINTS[name], value)})
    return dataclasses.replace(made, options=values)


_HINTS = typing.get_type_hints(Profile)


def _of_a_profile(name: str, value: Any) -> Any:
    """As a profile says it: the first of several names, a number that was text."""
    if isinstance(value, list):
        value = next(iter(value), None)
    return None if value == "" or (name == "max_model_len" and value == -1) else value
