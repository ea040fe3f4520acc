"""What vLLM and transformers read in a model's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from doctor.profile import ModelNeeds


class Configuration(Protocol):
    """`values`: of a config.json, {} where none was found; `weights`: bytes of the checkpoint."""

    @property
    def values(self) -> Mapping[str, Any]: ...

    @property
    def weights(self) -> int | None: ...


def needs_of(configuration: Configuration) -> ModelNeeds:
    """What the model asks of the software and of each GPU, as far as its configuration says."""
    return ModelNeeds()
