"""The configuration of the model that is to be served, wherever it can be read."""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from typing import Any, ClassVar

from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Text
from doctor.probes.arguments import ServerArguments
from doctor.probes.environment import LaunchEnv
from doctor.profile import ServeRequest
from doctor.target import Target


class ReadFrom(str, Enum):
    """Where a model's configuration was read."""

    FOLDER = "folder"
    CACHE = "cache"
    HUB = "hub"
    TABLE = "table"


@dataclass(frozen=True)
class ModelConfiguration(Fact):
    """The values of the model's config.json, {} where none was found. `source`: where they were
    read, `place` says it in full; `weights`: bytes of its checkpoint, None where that is not known;
    `why`: why nothing was found, or not all."""

    since: ClassVar[str] = "0.6.0"
    dispensable: ClassVar[bool] = True  # a profile is in force all the same
    values: dict[str, Any] = field(default_factory=dict)
    source: ReadFrom | None = None
    place: Text | None = None
    weights: int | None = None
    why: Text | None = None


@probe
def model_configuration(
    target: Target, request: ServeRequest, arguments: ServerArguments, env: LaunchEnv
) -> ModelConfiguration:
    return ModelConfiguration()
