"""The models, and how their weights may be quantized, that the installed software knows by name:
each table whole, whoever asks."""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar

from doctor.consumers import tables
from doctor.consumers.source import Source
from doctor.consumers.tables import Names
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact
from doctor.probes.wheels import Packages, Transformers, Vllm
from doctor.target import Target


@dataclass(frozen=True)
class VllmModels(Fact):
    """The classes of models that the installed vLLM has (`architectures` of a config.json)."""

    architectures: Names = field(default_factory=Names)


@dataclass(frozen=True)
class VllmConfigurations(Fact):
    """The types of models (`model_type`) that the installed vLLM brings a configuration for."""

    types: Names = field(default_factory=Names)


@dataclass(frozen=True)
class TransformersModels(Fact):
    """The types of models that the installed transformers knows."""

    types: Names = field(default_factory=Names)


@dataclass(frozen=True)
class QuantizationMethods(Fact):
    """What --quantization may name, and `quant_method` of a config.json."""

    since: ClassVar[str] = "0.5.0"
    names: Names = field(default_factory=Names)


@probe
def vllm_models(target: Target, vllm: Vllm) -> VllmModels:
    return VllmModels(tables.architectures(Source(target, vllm.root)))


@probe
def vllm_configurations(target: Target, vllm: Vllm) -> VllmConfigurations:
    return VllmConfigurations(tables.configurations(Source(target, vllm.root)))


@probe
def transformers_models(
    target: Target, packages: Packages, transformers: Transformers
) -> TransformersModels:
    root = packages.installed["transformers"].folder / "transformers"
    return TransformersModels(tables.model_types(Source(target, root)))


@probe
def quantization_methods(target: Target, vllm: Vllm) -> QuantizationMethods:
    return QuantizationMethods(tables.quantization_methods(Source(target, vllm.root)))
