"""The profile in force: what was asked for, as the installed vLLM's own parser and the model's own
config.json read it. Who asks for the fact Profile imports it from here."""

from __future__ import annotations

import dataclasses

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
    if made.model is None or configuration is None:
        return made
    known = needs_of(configuration, made.tensor_parallel_size)
    said = {name: value for name, value in vars(made.needs).items() if value is not None}
    needs: ModelNeeds = dataclasses.replace(known, **said)
    return dataclasses.replace(made, needs=needs)
