"""Whether a model fits: the question put together of what was said, of files and of the machine,
and its answer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from doctor.arguments import (
    ArgumentProblem,
    Wrong,
    config_of,
    parse_arguments,
    plain_values,
    profile_words,
)
from doctor.consumers.memory_options import MEMORY_OPTIONS
from doctor.consumers.model_config import ConfigJson, overridden
from doctor.consumers.options import GivenOptions
from doctor.diagnose import facts_about
from doctor.engine import Crashed, Facts, place
from doctor.errors import DoctorError, UsageError
from doctor.fit.options import MemoryOptions, memory_options
from doctor.fit.releases import NEWEST, Release, release
from doctor.fit.verdict import Answer, Fit, FitQuestion, GpuMemory, RankMemory
from doctor.frozen import dataclass
from doctor.locate import nobody_named
from doctor.model import Missing, Text
from doctor.numbers import version_of
from doctor.probes.arguments import ServerArguments, out_of_range
from doctor.probes.checkpoint import CheckpointHeaders
from doctor.probes.configuration import ModelConfiguration, ReadFrom
from doctor.probes.driver import Gpus
from doctor.probes.environment import LaunchEnv
from doctor.probes.fit import (
    ORDER_IS_OPEN,
    damage_in,
    fit_question,
    gpu_memories,
    in_other_orders,
    order_is_open,
    said_values,
    tensors_in,
)
from doctor.probes.interpreter import FoundBy, Where
from doctor.probes.memory import MainMemory
from doctor.probes.served import Profile
from doctor.probes.wheels import Vllm
from doctor.profile import ServeRequest
from doctor.target import READ_MOST, Target


@dataclass(frozen=True)
class Instead:
    """What a person says in the place of what would be looked up: the values of a `config` and the
    `file` that they are of; a `gpu` that is not here, and how many there are (`count`); the
    `release` of vLLM; what a log says is `available` for the KV cache, in bytes."""

    config: Mapping[str, Any] | None = None
    file: str | None = None
    gpu: GpuMemory | None = None
    count: int | None = None
    release: Release | None = None
    available: int | None = None


def fit_of(target: Target, where: Where, request: ServeRequest, instead: Instead) -> Fit:
    """The answer, unknown where something that decides cannot be told. Raises UsageError for a
    command that vLLM would refuse."""
    asked = _Fitting(target, where, request, instead)
    try:
        return asked.answer()
    except (Missing, Crashed) as missing:
        return asked.unknown(missing.reason if isinstance(missing, Missing) else missing.text)
    except DoctorError:
        raise
    except Exception as error:
        why = Text("crashed, and could not judge it: {why}; please report it", why=place(error))
        return asked.unknown(why)


class _Fitting:
    def __init__(
        self, target: Target, where: Where, request: ServeRequest, instead: Instead
    ) -> None:
        self._target = target
        self._where = where
        self._request = request
        self._instead = instead
        self._notes: list[Text] = []
        self._no_gpu: Text | None = None
        self._release = instead.release
        if instead.release is None and (tagged := _tagged(request)):
            self._release = tagged
            said = Text("the version of vLLM is the one that the image's tag names")
            self._notes.append(said)

    def answer(self) -> Fit:
        """Raises Missing, Crashed and UsageError."""
        facts = self._facts()
        question = self._question(facts)
        if not question.config.values:
            return self._no_model(facts, question)
        from doctor.fit.judge import judge_fit

        made = judge_fit(question)
        if self._instead.available is None:
            if not question.gpus and self._no_gpu:
                made = dataclasses.replace(made, why=self._no_gpu)
            if self._order_decides(facts, made):
                made = dataclasses.replace(
                    made, answer=Answer.UNKNOWN, why=ORDER_IS_OPEN, smallest_tp=None, flags=()
                )
        return dataclasses.replace(made, sources=(*made.sources, *self._notes))

    def _order_decides(self, facts: Facts, made: Fit) -> bool:
        """Whether it would be another answer if CUDA counted the GPUs here in another order."""
        from doctor.fit.reckoning import reckon

        question, instead = made.question, self._instead
        if not question.gpus or instead.gpu is not None or instead.count is not None:
            return False
        if not order_is_open(facts.get(Gpus), facts.get(LaunchEnv), question.options.layout.ranks):
            return False
        return any(reckon(one).answer is not made.answer for one in in_other_orders(question))

    def _facts(self) -> Facts:
        """Raises Missing where no vLLM is named and none is here."""
        facts = self._named() if self._release else self._found()
        if self._instead.config is None:
            return facts
        given = GivenOptions(facts.get(ServerArguments).values)
        values = overridden(self._instead.config, given.table("hf_overrides") or {})
        place = Text("{path}", path=self._instead.file)
        return facts.given(ModelConfiguration(values, ReadFrom.FOLDER, place))

    def _found(self) -> Facts:
        """Of the vLLM that is here."""
        if nobody_named(self._where):
            raise Missing(
                Text(
                    "no vLLM is here by whose rules to judge: name an environment with --python, "
                    "or a version with --vllm-version"
                )
            )
        return facts_about(self._target, self._where, self._request)

    def _named(self) -> Facts:
        """Where a version is named, so that no environment is asked."""
        target, request, where = self._target, self._request, self._where
        if where.found_by is FoundBy.IMAGE:
            facts = facts_about(target, where, request)
            return facts.given(_arguments(facts.target, request))
        env = {**target.env, **(request.command.env if request.command else {})}
        profile = request.profile
        env = {**profile.env, **env, **profile.env_asked}
        return Facts(target, (where, request, LaunchEnv(env), _arguments(target, request)))

    def _question(self, facts: Facts) -> FitQuestion:
        """Raises Missing."""
        arguments = facts.get(ServerArguments)
        if arguments.unread:
            raise _without_version(arguments.unread)
        _refuse(arguments.problems, self._release is not None)
        profile = facts.get(Profile)
        values = said_values(profile, arguments)
        headers = self._headers(facts)
        made = fit_question(
            profile,
            _configuration(facts),
            values,
            self._release or _installed(facts),
            self._gpus(facts, memory_options(profile, values)),
            tensors_in(headers),
            available=self._instead.available,
        )
        if headers is None or made.tensors is not None:
            return made
        return dataclasses.replace(made, damage=damage_in(headers))

    def _headers(self, facts: Facts) -> CheckpointHeaders | None:
        """Of the checkpoint, where it is here and no other configuration is said to be its."""
        if self._instead.config is not None:
            return None
        try:
            return facts.get(CheckpointHeaders)
        except Missing:
            return None

    def _gpus(self, facts: Facts, options: MemoryOptions) -> tuple[GpuMemory, ...]:
        """None where none is named and none is here: what needs none is told all the same."""
        count, ranks = self._instead.count, options.layout.ranks
        if self._instead.gpu is not None:
            return (self._instead.gpu,) * (count or ranks)
        try:
            here = _here(facts)
        except Missing as missing:
            self._no_gpu = Text(
                "no GPU can be asked here ({why}): name one with --gpu or --gpu-memory",
                why=missing.reason,
            )
            return ()
        if not here:
            self._no_gpu = Text("no GPU is visible here: name one with --gpu or --gpu-memory")
        return here[:1] * count if here and count else here

    def _no_model(self, facts: Facts, question: FitQuestion) -> Fit:
        configuration = _configuration(facts)
        if not question.model:
            why = Text("no model is named: fit MODEL")
        else:
            why = Text(
                "{model}: its config.json is not known ({why}): name the file with --config, "
                "the model's folder, or ask the hub with --online",
                model=question.model,
                why=configuration.why or Text("not found"),
            )
        return Fit(question, Answer.UNKNOWN, why, _ranks(question))

    def unknown(self, why: Text) -> Fit:
        """Where not even the question can be put together."""
        request = self._request
        model = request.profile.model
        if request.command:
            said = plain_values(request.command.arguments, request.command.by)
            model = str(said.get("model") or "")
        gpus = (self._instead.gpu,) * (self._instead.count or 1) if self._instead.gpu else ()
        question = FitQuestion(
            model or "",
            ConfigJson({}),
            "",
            MemoryOptions(),
            self._release or Release("", NEWEST),
            gpus,
            available=self._instead.available,
        )
        return Fit(question, Answer.UNKNOWN, why, _ranks(question))


def _ranks(question: FitQuestion) -> tuple[RankMemory, ...]:
    """One row for each GPU, and one at least, of which nothing is known."""
    return tuple(RankMemory(number) for number in range(max(1, len(question.gpus))))


def _here(facts: Facts) -> tuple[GpuMemory, ...]:
    """The GPUs of this machine; one that has no memory of its own has the machine's. Raises
    Missing."""
    devices = facts.get(Gpus).visible
    unified = any(device.total is None for device in devices)
    return gpu_memories(devices, facts.get(MainMemory) if unified else None)


def _configuration(facts: Facts) -> ModelConfiguration:
    """Without values where none can be told."""
    try:
        return facts.get(ModelConfiguration)
    except Missing as missing:
        return ModelConfiguration(why=missing.reason)


def _tagged(request: ServeRequest) -> Release | None:
    """The version that the tag of vLLM's own image names, as in vllm/vllm-openai:v0.33.0."""
    container = request.command.container if request.command else None
    found = (
        re.search(r"/vllm-openai:v([0-9][0-9.]{0,15}(?:\.post[0-9]+)?)(?:@|$)", container.image)
        if container
        else None
    )
    return release(found[1]) if found and version_of(found[1]) else None


def _installed(facts: Facts) -> Release:
    """The rules of the vLLM that is installed. Raises Missing."""
    try:
        return release(str(facts.get(Vllm).version))
    except Missing as missing:
        raise _without_version(missing.reason) from None


def _without_version(why: Text) -> Missing:
    return Missing(Text("{why}: name a version with --vllm-version", why=why))


def _arguments(target: Target, request: ServeRequest) -> ServerArguments:
    """The server's command line, where no installed vLLM says which options there are."""
    profile, command = request.profile, request.command
    words: tuple[str, ...] = request.extra
    if command is not None:
        words = command.arguments
    elif profile.model is not None:
        words = (*profile_words(profile, MEMORY_OPTIONS), *words)

    def read(file: str) -> Mapping[Any, Any]:
        return config_of(file, target.read(request.folder / file, READ_MOST + 1))

    made = parse_arguments(words, MEMORY_OPTIONS, command.by if command else "serve", read)
    out = (*dict(out_of_range(made.values)).values(), *_too_few(made.values))
    return ServerArguments(made.values, (*made.problems, *out), parsed=True)


# Positive in vLLM's configuration classes (config/cache.py, scheduler.py and parallel.py of 0.33).
_COUNTS = (
    "block_size",
    "data_parallel_size",
    "decode_context_parallel_size",
    "max_num_batched_tokens",
    "max_num_seqs",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
)


def _too_few(values: Mapping[str, Any]) -> Iterator[ArgumentProblem]:
    for name in _COUNTS:
        value = values.get(name)
        if isinstance(value, int) and value < 1:
            option = "--" + name.replace("_", "-")
            said = Text("it has to be 1 or more")
            yield ArgumentProblem(Wrong.RANGE, option, str(value), why=said)


def _refuse(problems: tuple[ArgumentProblem, ...], of_any_release: bool) -> None:
    """Raises UsageError for what vLLM would end for. Where it is not asked which options it has,
    only a slip of the pen is known to be none of them."""
    for one in problems:
        slip = one.option.startswith("--") and one.meant
        if of_any_release and one.kind is Wrong.UNKNOWN and not slip:
            continue
        hint = Text("; did you mean {near}?", near=one.meant[0]) if one.meant else Text("")
        if one.kind is Wrong.UNKNOWN:
            said = Text("{option}: vLLM has no such option{hint}", option=one.option, hint=hint)
        else:
            said = Text(
                "vLLM would refuse {option}{value}{why}{hint}",
                option=one.option,
                value=f" {one.value}" if one.value else "",
                why=Text(": {why}", why=one.why) if one.why else "",
                hint=hint,
            )
        raise UsageError(said)
