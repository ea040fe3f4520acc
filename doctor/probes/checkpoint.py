"""The tensors of the checkpoint that is to be served, where it is on this machine."""

from __future__ import annotations

from typing import ClassVar

from doctor.codec import CodecError
from doctor.consumers.checkpoint import DamagedHeader, headers_in
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, Text
from doctor.probes.arguments import ServerArguments
from doctor.probes.configuration import weights_folder
from doctor.probes.environment import LaunchEnv
from doctor.profile import ServeRequest
from doctor.safetensors import TensorRow
from doctor.target import Target


@dataclass(frozen=True)
class CheckpointHeaders(Fact):
    """`rows`: of the headers of all its safetensors files; doctor.fit.headers makes tensors of
    them. `damage`: why there are none, where no server could load a file."""

    since: ClassVar[str] = "0.7.0"
    dispensable: ClassVar[bool] = True  # config.json says much of it
    rows: tuple[TensorRow, ...] = ()
    damage: Text | None = None


@probe
def checkpoint_headers(
    target: Target, request: ServeRequest, arguments: ServerArguments, env: LaunchEnv
) -> CheckpointHeaders:
    """Where vLLM would load it from: the model's folder, or a cache."""
    folder = weights_folder(target, request, arguments, env)
    if folder is None:
        raise Missing(Text("the model's weights are not on this machine"))
    try:
        return CheckpointHeaders(headers_in(target, folder))
    except DamagedHeader as damaged:
        return CheckpointHeaders(damage=damaged.why)
    except CodecError as lacking:
        raise Missing(lacking.why) from None
