"""What the installed software knows of models: those that it has by name, each table whole,
whoever asks; and what it makes of the one that is to be served."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from doctor.consumers import quantization, tables
from doctor.consumers.model_config import UNSCALED, ConfigJson, overridden
from doctor.consumers.options import GivenOptions
from doctor.consumers.source import Source, Unreadable
from doctor.consumers.tables import Names
from doctor.consumers.transformers import backend_takes
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import NO_MODEL, Fact, Missing, NotApplicable, Text
from doctor.numbers import number_of
from doctor.probes.configuration import ModelConfiguration, ReadFrom
from doctor.probes.served import Profile
from doctor.probes.wheels import Packages, Transformers, Vllm
from doctor.profile import ModelNeeds, ServeRequest
from doctor.target import Target

_CONFIG = "config/model.py"


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
    return QuantizationMethods(tables.quantization_names(Source(target, vllm.root)))


@dataclass(frozen=True)
class ServedModel(Fact):
    """What is known of the model that is served: `values` of its config.json, --hf-overrides put
    in ({} where nothing is known); `place`: where they were read; `whole`: all of them, not only
    those that the doctor's table keeps. `needs_said`: the profile itself says what it needs."""

    since: ClassVar[str] = "0.6.0"
    values: dict[str, Any] = field(default_factory=dict)
    place: Text | None = None
    whole: bool = True
    needs_said: bool = False

    @functools.cached_property
    def config(self) -> ConfigJson:
        return ConfigJson(self.values)

    @property
    def read(self) -> tuple[Text, ...]:
        """Where its values were read, as evidence."""
        return (Text("read in {place}", place=self.place),) if self.place else ()

    @property
    def needs_read(self) -> tuple[Text, ...]:
        """The same of its needs."""
        return () if self.needs_said else self.read


@probe
def served_model(
    request: ServeRequest, profile: Profile, configuration: ModelConfiguration | None
) -> ServedModel:
    """Raises NotApplicable without a model, Missing where --hf-overrides cannot be read."""
    if profile.model is None:
        raise NotApplicable(NO_MODEL)
    given, values = (
        GivenOptions(profile.options),
        dict(configuration.values if configuration else {}),
    )
    if given.says("hf_overrides"):
        changes = given.table("hf_overrides")
        if changes is None:
            raise Missing(Text("--hf-overrides is not a JSON object"))
        values = overridden(values, changes)
    place = configuration.place if configuration and values else None
    whole = configuration is None or configuration.source is not ReadFrom.TABLE
    return ServedModel(values, place, whole, request.profile.needs != ModelNeeds())


@dataclass(frozen=True)
class TransformersBackend(Fact):
    """Whether vLLM can run the model by transformers' own class: asked where it has none itself, or
    where --model-impl says so. `takes` None: not asked, or not known, and then `why`."""

    since: ClassVar[str] = "0.6.0"
    takes: bool | None = None
    why: Text | None = None


@probe
def transformers_backend(
    target: Target,
    packages: Packages,
    vllm: Vllm,
    transformers: Transformers,
    known: TransformersModels | None,
    models: VllmModels,
    served: ServedModel,
    profile: Profile,
) -> TransformersBackend:
    """As _try_resolve_transformers of the registry decides, for the first class."""
    classes = served.config.architectures or _said(profile)
    implementation = GivenOptions(profile.options).word("model_impl") or "auto"
    own = models.architectures.partial or any(map(tables.served_by(models.architectures), classes))
    if not classes or implementation == "vllm" or (own and implementation == "auto"):
        return TransformersBackend()
    model_type = served.config.model_type or profile.needs.model_type
    types = known.types if known else Names(partial=Text("not known"))
    if model_type and not types.partial and model_type not in types.names:
        return TransformersBackend(False)  # a class stands beside the configuration of its type
    files = packages.installed["transformers"].folder / "transformers"
    own_files = Source(target, vllm.root)
    try:
        takes = backend_takes(own_files, Source(target, files), classes[0], model_type)
    except Missing as missing:
        return TransformersBackend(why=missing.reason)
    return TransformersBackend(takes)


def _said(profile: Profile) -> tuple[str, ...]:
    return (profile.needs.architecture,) if profile.needs.architecture else ()


@dataclass(frozen=True)
class QuantizationLimits(Fact):
    """What vLLM asks for before it takes each method: of the `deprecated` ones a word more, and of
    a GPU the `least` compute capability (75 is 7.5), None where its files do not say."""

    since: ClassVar[str] = "0.6.0"
    deprecated: frozenset[str] = frozenset()
    least: dict[str, int | None] = field(default_factory=dict)


@probe
def quantization_limits(
    target: Target, vllm: Vllm, methods: QuantizationMethods
) -> QuantizationLimits:
    """Of all methods, so that a snapshot answers for any model. Raises Unreadable."""
    return _limits(Source(target, vllm.root), methods.names.names)


def _limits(source: Source, methods: Iterable[str]) -> QuantizationLimits:
    return QuantizationLimits(
        quantization.deprecated_methods(source), quantization.least_capabilities(source, methods)
    )


@dataclass(frozen=True)
class ExpertBlocks(Fact):
    """The `finest` blocks into which vLLM divides those of an expert in fp8, so that more ranks can
    share it; None where it divides none."""

    since: ClassVar[str] = "0.6.0"
    finest: int | None = None


@probe
def expert_blocks(target: Target, vllm: Vllm) -> ExpertBlocks:
    """refine_fp8_moe_block_shape: 0.33.0 has it, 0.22.0 has not."""
    path = vllm.root / "model_executor/layers/fused_moe/oracle/fp8.py"
    function = r"(?ms)^def refine_fp8_moe_block_shape\b(?:(?!^def ).)*?\bif refine < (\d+):"
    found = target.search(path, function)
    return ExpertBlocks(number_of(found[0]) if found else None)


@dataclass(frozen=True)
class ServedQuantization(Fact):
    """How the model is quantised: `method` as vLLM goes on with it, of the checkpoint or of
    --quantization; whether that is `deprecated`; `least`: the least compute capability that it
    takes (75 is 7.5), None where vLLM's files do not say."""

    since: ClassVar[str] = "0.6.0"
    method: str
    deprecated: bool = False
    least: int | None = None


@probe
def served_quantization(
    target: Target, vllm: Vllm, served: ServedModel, profile: Profile
) -> ServedQuantization:
    """Raises NotApplicable where nothing is quantised, or by a method that vLLM does not know, and
    Unreadable; the methods are asked for only where something is."""
    asked, made = GivenOptions(profile.options).word("quantization"), served.config.quantization
    if asked is None and not (made and made.method):
        raise NotApplicable(Text("neither the checkpoint nor an option says a quantisation"))
    known = quantization_methods(target, vllm).names
    if known.partial:
        raise NotApplicable(known.partial)  # another rule says so
    method = quantization.taken_method(asked, served.config, known.names)
    if method is None or not known.has(method):
        raise NotApplicable(Text("vLLM does not know the quantisation {method}", method=method))
    limits = _limits(Source(target, vllm.root), (method,))
    return ServedQuantization(method, method in limits.deprecated, limits.least.get(method))


@dataclass(frozen=True)
class RefuseFloat16(Fact):
    """The types of models that vLLM does not run in float16."""

    since: ClassVar[str] = "0.6.0"
    types: tuple[str, ...] = ()


@probe
def refuse_float16(target: Target, vllm: Vllm, profile: Profile) -> RefuseFloat16:
    """Asked only where float16 is wanted. Raises Unreadable."""
    if GivenOptions(profile.options).word("dtype") not in ("half", "float16"):
        raise NotApplicable(Text("float16 is not asked for"))
    path = vllm.root / _CONFIG
    table = target.search(path, r"(?s)\n_FLOAT16_NOT_SUPPORTED_MODELS = \{(.*?)\n\}")
    if not table:
        raise Unreadable(path, "which models do not support float16")
    return RefuseFloat16(tuple(tables.keys_in_quotes(table[0])))


@dataclass(frozen=True)
class LengthLimits(Fact):
    """`unscaled`: the kinds of rope whose factor does not lengthen a model in this vLLM;
    `tokenizer`: the length that the model's tokenizer says, None where it says none, or is not
    here."""

    since: ClassVar[str] = "0.6.0"
    unscaled: tuple[str, ...] = UNSCALED
    tokenizer: int | None = None


@probe
def length_limits(
    target: Target,
    vllm: Vllm,
    served: ServedModel,
    profile: Profile,
    configuration: ModelConfiguration | None,
) -> LengthLimits:
    """Asked only where a length is said; of vLLM, where the model scales its rope. Raises
    Unreadable."""
    if profile.max_model_len is None:
        raise NotApplicable(Text("no max_model_len is said: vLLM takes the model's own"))
    unscaled: tuple[str, ...] = UNSCALED
    if any(rope.get("factor") is not None for rope in served.config.ropes):
        path = vllm.root / _CONFIG
        rows = target.search(path, r"\brope_type not in \(([^)]*)\)")
        if not rows:
            raise Unreadable(path, "how long a model is")
        unscaled = tuple(tables.in_quotes(rows[0]))
    file = _beside(profile, configuration)
    found = target.search(file, r'"model_max_length": *([0-9]+)[\s,}]') if file else None
    return LengthLimits(unscaled, number_of(found[0]) if found else None)


def _beside(profile: Profile, configuration: ModelConfiguration | None) -> Path | None:
    """The tokenizer's own configuration, where the model's files are here."""
    given = GivenOptions(profile.options)
    here = configuration and configuration.source in (ReadFrom.FOLDER, ReadFrom.CACHE)
    place = configuration.place if configuration and here else None
    path = place.values.get("path") if place else None
    if not isinstance(path, Path) or given.says("tokenizer") or given.says("hf_config_path"):
        return None
    return path.with_name("tokenizer_config.json")
