"""A model's values as its KV cache is reckoned from them: what is needed and not there is said."""

from __future__ import annotations

from typing import Any

from doctor.consumers.model_config import ConfigJson
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import Release
from doctor.fit.sizes import NotKnown
from doctor.frozen import dataclass
from doctor.model import Text

MOST_LAYERS = 4096  # more than any model has
_MOST = 1 << 32  # of any one size


@dataclass(frozen=True)
class AskedModel:
    """One model under the options of a server, in a release of vLLM. `capability`: of the GPU, 90
    is 9.0, None where it is not known."""

    config: ConfigJson
    options: MemoryOptions
    release: Release
    capability: int | None = None

    @property
    def ranks(self) -> int:
        """Of tensor parallelism."""
        return self.options.layout.tensor

    def said(self, name: str) -> Any:
        """The value of this name in the text part, None where there is none."""
        return self.config.text.get(name)

    def count(self, *names: str, default: int | None = None) -> int:
        """The first of these that is there, a whole number above 0; `default`: where none is, as
        vLLM's or transformers' own class has it."""
        there = any(self.said(name) is not None for name in names)
        value = self.config.count(*names) if there else default
        return needed(value, names[0])

    def listed(self, name: str) -> list[Any] | None:
        """A list of this name, of one value for each layer; None where none is said."""
        value = self.said(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > MOST_LAYERS:
            raise missing(name)
        return value

    def shared(self, heads: int) -> int:
        """How many of so many KV heads each rank keeps: copies where there are more ranks
        (get_num_kv_heads)."""
        return max(1, heads // self.ranks)

    def part(self, whole: int, name: str) -> int:
        """Of something that the ranks divide among them, what one has."""
        if whole % self.ranks:
            raise NotKnown(Text("{ranks} ranks do not divide {name}", ranks=self.ranks, name=name))
        return whole // self.ranks


def needed(value: int | None, name: str) -> int:
    """The value; raises NotKnown where there is none that can be one."""
    if value is None or not 0 < value <= _MOST:
        raise missing(name)
    return value


def missing(name: str) -> NotKnown:
    return NotKnown(Text("config.json has no {name} that can be used", name=name))
