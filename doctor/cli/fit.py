"""fit: whether a model fits, before it is started, and with what it does."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from doctor.arguments import (
    ArgumentProblem,
    Wrong,
    config_of,
    parse_arguments,
    plain_values,
    profile_words,
)
from doctor.cli.options import (
    CommonOptions,
    ServingCommand,
    did_you_mean,
    serving_options,
)
from doctor.cli.output import print_json, print_lines, text_width
from doctor.codec import parse_json
from doctor.command import ServerCommand
from doctor.consumers.memory_options import MEMORY_OPTIONS
from doctor.consumers.model_config import ConfigJson, overridden
from doctor.consumers.options import GivenOptions
from doctor.diagnose import facts_about
from doctor.engine import Facts
from doctor.errors import UsageError, naming
from doctor.exits import FINDINGS, HEALTHY, UNKNOWN
from doctor.fit.amounts import bytes_of
from doctor.fit.gpus import gpu_named
from doctor.fit.options import MemoryOptions, memory_options
from doctor.fit.releases import NEWEST, Release, release
from doctor.fit.verdict import Answer, Fit, FitQuestion, GpuMemory, RankMemory
from doctor.frozen import dataclass
from doctor.locate import nobody_named
from doctor.model import Missing, Text, shortened
from doctor.numbers import number_of
from doctor.probes.arguments import ServerArguments
from doctor.probes.configuration import ModelConfiguration, ReadFrom
from doctor.probes.driver import Gpus
from doctor.probes.environment import LaunchEnv
from doctor.probes.interpreter import FoundBy, Where
from doctor.probes.served import Profile
from doctor.probes.wheels import Vllm
from doctor.profile import ServeRequest
from doctor.target import READ_MOST, Target, must_read

_CONFIG_MOST = 4 << 20  # bytes; the largest of a real model has some 300 KiB
_PARTS_MOST = 200_000  # lists and tables in it


class _FitCommand(ServingCommand):
    """Takes `fit MODEL --options-of-vllm-serve` for `fit -- vllm serve MODEL ...`: what is no
    option of fit's own before -- is the server's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        own, server = self._parted(args[:at])
        behind = args[at + 1 :]
        if server and server[0].startswith("-"):
            hint = did_you_mean(server[0].partition("=")[0], self._own_names(), _AFTER_MODEL)
            raise click.UsageError(f"No such option: {server[0]}{hint}", ctx)
        if server and behind and not behind[0].startswith("-"):
            raise click.UsageError(
                f"{server[0]}: the command behind -- names the model; leave one out", ctx
            )
        if server:
            behind = ["vllm", "serve", *server, *behind]
        return super().parse_args(ctx, [*own, *(["--", *behind] if behind else [])])

    def _own_names(self) -> list[str]:
        return [name for one in self.params for name in one.opts if name.startswith("-")]

    def _parted(self, args: list[str]) -> tuple[list[str], list[str]]:
        """The words of its own options with their values, and all others."""
        flags = {n: o for o in self.params if isinstance(o, click.Option) for n in o.opts}
        own: list[str] = []
        others: list[str] = []
        words = iter(args)
        for word in words:
            name, equals, _ = word.partition("=")
            if name in ("-h", "--help") or (name in flags and (equals or flags[name].is_flag)):
                own.append(word)
            elif name in flags:
                own += [word, *filter(None, (next(words, None),))]
            else:
                others.append(word)
        return own, others


_AFTER_MODEL = Text("; the server's options stand behind the model: fit MODEL --option ...")


@dataclass(frozen=True)
class _Asked:
    """What the options say in the place of what would be looked up."""

    config: str | None
    gpu: str | None
    gpu_memory: str | None
    gpus: int | None
    vllm_version: str | None
    available_kv: str | None
    tape: str | None


@click.command(cls=_FitCommand)
@serving_options
@click.option("--config", metavar="FILE", help="The model's config.json.")
@click.option("--gpu", metavar="NAME", help="A GPU that is not here, such as h100-80gb.")
@click.option("--gpu-memory", metavar="SIZE", help="Of each GPU, as torch says it: 79.18GiB.")
@click.option("--gpus", type=click.IntRange(1, 4096), metavar="N", help="How many there are.")
@click.option("--vllm-version", metavar="VERSION", help="Judge by the rules of this vLLM.")
@click.option(
    "--available-kv", metavar="SIZE", help='What a log says is "available" for the KV cache.'
)
@click.option("--from", "tape", metavar="FILE", help="Judge a snapshot of another machine.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def fit(common: CommonOptions, form: str, **given: Any) -> None:
    """Say whether a model fits, and with what options it does: fit MODEL [OPTIONS OF VLLM SERVE].

    Behind -- stands a whole command, such as `vllm serve MODEL ...`. Without a model: the
    profile's. No environment and no GPU are needed with --gpu and --vllm-version.

    Exit codes: 0 fits, 1 does not fit, 2 usage, 3 unknown or too close.
    """
    asked = _Asked(**given)
    question = _Question(common, asked)
    made = question.answer()
    if form == "json":
        from doctor.report.fit_json import fit_json

        print_json(fit_json(made))
    else:
        _print(made, question.request.command)
    raise SystemExit(_CODES[made.answer])


_CODES = {
    Answer.FITS: HEALTHY,
    Answer.DOES_NOT_FIT: FINDINGS,
    Answer.TOO_CLOSE: UNKNOWN,
    Answer.UNKNOWN: UNKNOWN,
}


_NOWHERE = Where(Path(sys.executable), FoundBy.OWN)  # no environment is asked


class _Question:
    """What is asked, put together of options, files and the machine."""

    def __init__(self, common: CommonOptions, asked: _Asked) -> None:
        if asked.tape and (common.python or common.pid or common.unit):
            said = Text(
                "--from {file}: a snapshot has its own python and processes", file=asked.tape
            )
            raise UsageError(said)
        self._asked = asked
        self._common = common
        # What is wrong with an option is told before anything is looked up.
        self._release = _release(asked.vllm_version)
        self._available = _size("--available-kv", asked.available_kv)
        self._named = _named_gpu(asked)
        self._config = _config(asked.config)
        self.request = common.request()

    def answer(self) -> Fit:
        """Never raises for what cannot be told. Raises UsageError."""
        try:
            facts = self._facts()
            question = self._of(facts)
        except Missing as missing:
            return self._unknown(missing.reason)
        if not question.config.values:
            return self._no_model(facts, question)
        from doctor.fit.judge import judge_fit

        return judge_fit(question)

    def _facts(self) -> Facts:
        """Raises Missing where no vLLM is named and none is here."""
        target, where = self._target()
        request = self.request
        if self._release is None:
            if nobody_named(where):
                raise Missing(
                    Text(
                        "no vLLM is here by whose rules to judge: name an environment with "
                        "--python, or a version with --vllm-version"
                    )
                )
            facts = facts_about(target, where, request)
        else:
            env = {**target.env, **(request.command.env if request.command else {})}
            profile = request.profile
            env = {**profile.env, **env, **profile.env_asked}
            facts = Facts(target, (where, request, LaunchEnv(env), _arguments(target, request)))
        if self._config is None:
            return facts
        given = GivenOptions(facts.get(ServerArguments).values)
        values = overridden(self._config, given.table("hf_overrides") or {})
        place = Text("{path}", path=self._asked.config)
        return facts.given(ModelConfiguration(values, ReadFrom.FOLDER, place))

    def _target(self) -> tuple[Target, Where]:
        if self._asked.tape:
            from doctor.cli.diagnose import from_tape

            target, where, _ = from_tape(self._asked.tape)
            return target, where
        if self._release is not None and self._common.python is None:
            from doctor.target import Live

            command = self.request.command
            return Live(command.environ if command else None), _NOWHERE
        return self._common.located(self.request.command)

    def _of(self, facts: Facts) -> FitQuestion:
        """Raises Missing."""
        arguments = facts.get(ServerArguments)
        if arguments.unread:
            raise Missing(arguments.unread)
        _refuse(arguments.problems, self._release is not None)
        profile = facts.get(Profile)
        options = memory_options(profile, arguments.values)
        configuration = _or_none(facts, ModelConfiguration)
        config = ConfigJson(configuration.values if configuration else {})
        length = config.length()
        return FitQuestion(
            model=profile.model or "",
            config=config,
            config_from=str(configuration.place or "") if configuration else "",
            options=options,
            release=self._release or release(facts.get(Vllm).version.public),
            gpus=self._gpus(facts, options),
            length=length.tokens if length else None,
            available=self._available,
        )

    def _gpus(self, facts: Facts, options: MemoryOptions) -> tuple[GpuMemory, ...]:
        """Raises Missing where none is named, none is here, and it is not said what is
        available."""
        count, ranks = self._asked.gpus, options.layout.ranks
        if self._named is not None:
            return (self._named,) * (count or ranks)
        try:
            here = [
                GpuMemory(one.name, one.total, one.free, _capability(one.capability))
                for one in facts.get(Gpus).visible
                if one.total
            ]
        except Missing as missing:
            if self._available is not None:
                return ()
            said = Text(
                "no GPU can be asked here ({why}): name one with --gpu or --gpu-memory",
                why=missing.reason,
            )
            raise Missing(said) from None
        if not here and self._available is None:
            raise Missing(Text("no GPU is visible here: name one with --gpu or --gpu-memory"))
        return (here[0],) * count if here and count else tuple(here)

    def _no_model(self, facts: Facts, question: FitQuestion) -> Fit:
        configuration = _or_none(facts, ModelConfiguration)
        if not question.model:
            why = Text("no model is named: fit MODEL")
        else:
            why = Text(
                "{model}: its config.json is not known ({why}): name the file with --config, "
                "the model's folder, or ask the hub with --online",
                model=question.model,
                why=(configuration.why if configuration else None) or Text("not found"),
            )
        return Fit(question, Answer.UNKNOWN, why, _ranks(question))

    def _unknown(self, why: Text) -> Fit:
        """Where not even the question can be put together."""
        request = self.request
        model = request.profile.model
        if request.command:
            said = plain_values(request.command.arguments, request.command.by)
            model = str(said.get("model") or "")
        gpus = (self._named,) * (self._asked.gpus or 1) if self._named else ()
        question = FitQuestion(
            model or "",
            ConfigJson({}),
            "",
            MemoryOptions(),
            self._release or Release("", NEWEST),
            gpus,
            available=self._available,
        )
        return Fit(question, Answer.UNKNOWN, why, _ranks(question))


def _ranks(question: FitQuestion) -> tuple[RankMemory, ...]:
    """One row for each GPU, and one at least, of which nothing is known."""
    return tuple(RankMemory(number) for number in range(max(1, len(question.gpus))))


def _or_none(facts: Facts, kind: type[ModelConfiguration]) -> ModelConfiguration | None:
    try:
        return facts.get(kind)
    except Missing:
        return None


# What the options say.


def _release(version: str | None) -> Release | None:
    if version is None:
        return None
    try:
        return release(shortened(version, 128))
    except ValueError:
        shown = shortened(version, 80)
        said = Text("--vllm-version {version}: not a version such as 0.33.0", version=shown)
        raise UsageError(said) from None


def _size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    with naming(option):
        return bytes_of(text)


def _named_gpu(asked: _Asked) -> GpuMemory | None:
    """As --gpu and --gpu-memory describe it."""
    size = _size("--gpu-memory", asked.gpu_memory)
    if size is not None and size < _LEAST:
        said = Text("--gpu-memory {text}: less than any GPU has", text=asked.gpu_memory)
        raise UsageError(said)
    known = gpu_named(asked.gpu).memory if asked.gpu is not None else None
    if known is None:
        return None if size is None else GpuMemory(str(asked.gpu_memory), size)
    return known if size is None else dataclasses.replace(known, total=size)


_LEAST = 1 << 28  # bytes


def _config(path: str | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    with naming("--config", path):
        made = parse_json(must_read(Path(path), _CONFIG_MOST), _PARTS_MOST)
        if not isinstance(made, dict) or not made:
            raise UsageError(Text("it is not the JSON object of a config.json"))
    return made


def _capability(text: str) -> int | None:
    major, _, minor = text.partition(".")
    first, second = number_of(major), number_of(minor or "0")
    return None if first is None or second is None else first * 10 + second


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
    return ServerArguments(made.values, made.problems, parsed=True)


def _refuse(problems: tuple[ArgumentProblem, ...], of_any_release: bool) -> None:
    """Raises UsageError for what vLLM would end for. Where it is not asked which options it has,
    only a slip of the pen is known to be none of them."""
    for one in problems:
        slip = one.option.startswith("--") and one.meant
        if of_any_release and one.kind is Wrong.UNKNOWN and not slip:
            continue
        hint = did_you_mean(one.option, one.meant) if one.meant else Text("")
        if one.kind is Wrong.UNKNOWN:
            said = Text("{option}: vLLM has no such option{hint}", option=one.option, hint=hint)
        else:
            said = Text(
                "vLLM would refuse {option}{value}{why}",
                option=one.option,
                value=f" {one.value}" if one.value else "",
                why=Text(": {why}", why=one.why) if one.why else "",
            )
        raise UsageError(said)


def _print(made: Fit, command: ServerCommand | None) -> None:
    from doctor.cli.signs import missing_signs
    from doctor.report.fit_text import fit_lines
    from doctor.report.lines import Style
    from doctor.report.translation import translation
    from doctor.target import Live

    style = Style(width=min(text_width(), 80), stand_ins=missing_signs(sys.stdout.encoding))
    print_lines(fit_lines(made, command, style, translation(Live().env)))
