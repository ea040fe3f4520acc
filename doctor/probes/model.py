"""The model that is to be served, as this machine has it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import NO_MODEL, Fact, NotApplicable
from doctor.probes.served import Profile
from doctor.profile import ServeRequest
from doctor.tape import NotRecorded, OfAnotherModel
from doctor.target import Target


@dataclass(frozen=True)
class ModelPath(Fact):
    """The profile's model as a path, None where it names a repository (or an address: s3://...).
    `there`: something is there; `config`: vLLM finds a configuration that it can read."""

    since: ClassVar[str] = "0.2.0"
    path: Path | None = None
    there: bool = False
    config: bool = False


@probe
def model_path(target: Target, profile: Profile, request: ServeRequest) -> ModelPath:
    """What exists wins over a repository of the same name (vllm/transformers_utils/config.py); a
    repository has at most one slash, and vLLM puts no home in the place of ~."""
    name = profile.model
    if name is None:
        raise NotApplicable(NO_MODEL)
    path = request.folder / name
    named = name.startswith(("/", ".", "~")) or name.count("/") > 1
    try:
        stat = target.stat(path)
    except NotRecorded:
        if named:
            raise
        raise OfAnotherModel(name) from None
    if "://" in name or (stat is None and not named):
        return ModelPath()
    if stat is None:
        return ModelPath(path)
    if stat.kind == "file":
        return ModelPath(path, there=True, config=name.endswith(".gguf"))
    found = (target.stat(path / file) for file in ("config.json", "params.json"))
    return ModelPath(path, there=True, config=any(s and s.kind == "file" for s in found))
