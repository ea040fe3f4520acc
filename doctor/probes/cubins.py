"""FlashInfer's kernels that are not compiled but fetched: machine code (cubins) for Blackwell."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from doctor.consumers import flashinfer as fi
from doctor.consumers.source import Source, Unreadable
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, NotApplicable, Text
from doctor.probes.driver import Gpus
from doctor.probes.environment import LaunchEnv
from doctor.probes.jit import Use
from doctor.probes.served import Profile
from doctor.probes.wheels import FlashInfer, Torch, Vllm
from doctor.target import Target


@dataclass(frozen=True)
class Cubins(Fact):
    """The cubins of this server's kernels. `lacking`: what the kernels compute whose cubins are not
    here ("attention", "experts"); `folder`: where FlashInfer looks for them, and writes what it
    downloads; `repository`: from where; `refused`: it is told not to download."""

    since: ClassVar[str] = "0.4.0"
    folder: Path
    repository: str
    lacking: tuple[str, ...] = ()
    refused: bool = False


@probe
def cubins(
    target: Target,
    env: LaunchEnv,
    profile: Profile,
    vllm: Vllm,
    torch: Torch,
    flashinfer: FlashInfer,
    gpus: Gpus | None,
) -> Cubins:
    """Not applicable where flashinfer-cubin brings them, or where no kernel of this server is one;
    what its files do not say in a way that can be read is not asked either: nothing fails by it."""
    use = Use(target, env, profile, vllm, torch, flashinfer, gpus)
    none = NotApplicable(Text("no GPU that is known here takes downloaded kernels"))
    if not any(major == fi.GENERATED_MAJOR for major, _ in use.capabilities):
        raise none
    source = Source(target, flashinfer.root)
    try:
        folder = fi.cubin_folder(source, env, _accepted(flashinfer, env))
        if folder is None:
            version = flashinfer.cubin
            brings = Text("flashinfer-cubin {version} brings the kernels", version=version)
            raise NotApplicable(brings)
        kernels = use.generated()
        if not kernels:
            raise none
        repository = fi.cubin_repository(source, env)
        places = (folder, Path(repository))  # a repository may be a folder: it is copied from
        manifests = {kind: fi.cubin_manifest(source, kind) for kind in kernels}
    except Unreadable as unreadable:
        raise NotApplicable(unreadable.reason) from None
    return Cubins(
        folder,
        repository,
        tuple(k for k, file in manifests.items() if not any(target.stat(p / file) for p in places)),
        bool(env.get("FLASHINFER_NO_DOWNLOAD")),
    )


def _accepted(flashinfer: FlashInfer, env: LaunchEnv) -> bool:
    """Its flashinfer-cubin is used; one of another version FlashInfer 0.7 and newer ignore."""
    if flashinfer.cubin is None:
        return False
    ignored = flashinfer.refuses is not None and "flashinfer-cubin" not in flashinfer.refuses
    same = flashinfer.cubin == flashinfer.version
    return same or not ignored or bool(env.get("FLASHINFER_DISABLE_VERSION_CHECK"))
