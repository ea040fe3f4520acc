"""The variables and the options that the installed vLLM declares."""

from __future__ import annotations

from typing import ClassVar

from doctor.consumers import names
from doctor.consumers.modelscope import switched_on_by
from doctor.consumers.names import FileSearch, NotAsKnown
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text
from doctor.probes.jit import EXPERTS, SAMPLER
from doctor.probes.wheels import Vllm
from doctor.tape import NotRecorded
from doctor.target import Target


@dataclass(frozen=True)
class VllmVariables(Fact):
    """What its envs.py declares."""

    since: ClassVar[str] = "0.4.0"
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class WholeNumbers(Fact):
    """Of its variables, those that it reads as whole numbers, and ends where they are none."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class VllmOptions(Fact):
    """Every string that its `vllm serve` takes for an option, --no-... and short ones too."""

    since: ClassVar[str] = "0.4.0"
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelScopeSwitch(Fact):
    """How it reads VLLM_USE_MODELSCOPE: on by one of these `values`, in lower case; any other text
    is off. `strips`: spaces around it do not count."""

    since: ClassVar[str] = "0.8.0"
    dispensable: ClassVar[bool] = True  # nearly nobody sets it
    values: tuple[str, ...] = ()
    strips: bool = False

    def is_on(self, said: str) -> bool:
        return (said.strip() if self.strips else said).lower() in self.values


@probe
def vllm_variables(target: Target, vllm: Vllm) -> VllmVariables:
    """Nothing but advice hangs on it: where it cannot be read, that is not checked."""
    try:
        return VllmVariables(names.variables(_search(target, vllm)))
    except NotAsKnown as error:
        raise NotApplicable(_reason(error, vllm)) from None


@probe
def whole_numbers(target: Target, vllm: Vllm) -> WholeNumbers:
    """As with all that it declares; an older doctor asked for two of them in every snapshot."""
    try:
        return WholeNumbers(names.whole_number_variables(_search(target, vllm)))
    except NotAsKnown as error:
        raise NotApplicable(_reason(error, vllm)) from None
    except NotRecorded:
        return WholeNumbers((SAMPLER, EXPERTS))


@probe
def vllm_options(target: Target, vllm: Vllm) -> VllmOptions:
    try:
        return VllmOptions(names.options(_search(target, vllm)))
    except NotAsKnown as error:
        raise Missing(_reason(error, vllm)) from None


@probe
def modelscope_switch(target: Target, vllm: Vllm) -> ModelScopeSwitch:
    try:
        return ModelScopeSwitch(*switched_on_by(_search(target, vllm)))
    except NotAsKnown as error:
        raise Missing(_reason(error, vllm)) from None


def _search(target: Target, vllm: Vllm) -> FileSearch:
    return lambda file, pattern: target.search(vllm.root / file, pattern)


def _reason(error: NotAsKnown, vllm: Vllm) -> Text:
    return Text(
        "{files} of vLLM {version} cannot be read as in the versions that are known",
        files=[vllm.root / file for file in error.files],
        version=vllm.version,
    )
