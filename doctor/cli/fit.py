"""fit: whether a model fits, before it is started, and with what it does."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from doctor.cli.diagnose import from_tape
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
from doctor.errors import UsageError, naming
from doctor.exits import FINDINGS, HEALTHY, UNKNOWN
from doctor.fit.amounts import bytes_of
from doctor.fit.gpus import gpu_named
from doctor.fit.releases import Release, release
from doctor.fit.verdict import Answer, Fit, GpuMemory
from doctor.fitting import Instead, fit_of
from doctor.model import Text, shortened
from doctor.probes.interpreter import FoundBy, Where
from doctor.profile import ServeRequest
from doctor.target import Live, Target, must_read

_CONFIG_MOST = 16 << 20  # bytes; with every layer that is not quantised by name 5.4 MiB were seen
_PARTS_MOST = 200_000  # lists and tables in it


class _FitCommand(ServingCommand):
    """Takes `fit MODEL --options-of-vllm-serve` for `fit -- vllm serve MODEL ...`: what is no
    option of fit's own before -- is the server's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        own, server = self._parted(args[:at])
        behind = args[at + 1 :]
        if server and server[0].startswith("-"):
            option = server[0].partition("=")[0]
            known = option in MEMORY_OPTIONS.strings
            hint = _AFTER_MODEL if known else did_you_mean(option, self._own(), _AFTER_MODEL)
            raise click.UsageError(f"No such option: {option}{hint}", ctx)
        if server and behind and not behind[0].startswith("-"):
            raise click.UsageError(
                f"{server[0]}: the command behind -- names the model; leave one out", ctx
            )
        if server:
            behind = ["vllm", "serve", *server, *behind]
        return super().parse_args(ctx, [*own, *(["--", *behind] if behind else [])])

    def _own(self) -> list[str]:
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
                own += [word, *itertools.islice(words, 1)]
            else:
                others.append(word)
        return own, others


_AFTER_MODEL = Text("; the server's options stand behind the model: fit MODEL --option ...")


@click.command(cls=_FitCommand)
@functools.partial(serving_options, rules=False)
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
def fit(
    common: CommonOptions,
    config: str | None,
    gpu: str | None,
    gpu_memory: str | None,
    gpus: int | None,
    vllm_version: str | None,
    available_kv: str | None,
    tape: str | None,
    form: str,
) -> None:
    """Say whether a model fits, and with what options it does: fit MODEL [OPTIONS OF VLLM SERVE].

    Behind -- stands a whole command, such as `vllm serve MODEL ...`. Without a model: the
    profile's. No environment and no GPU are needed with --gpu and --vllm-version.

    Exit codes: 0 fits, 1 does not fit, 2 usage, 3 unknown or too close.
    """
    if tape and (common.python or common.pid or common.unit):
        said = Text("--from {file}: a snapshot has its own python and processes", file=tape)
        raise UsageError(said)
    instead = Instead(
        _config(config),
        config,
        _gpu(gpu, gpu_memory),
        gpus,
        _release(vllm_version),
        _size("--available-kv", available_kv),
    )
    request = common.request()
    target, where = _place(common, request, tape, instead)
    made = fit_of(target, where, request, instead)
    if form == "json":
        from doctor.report.fit_json import fit_json

        print_json(fit_json(made))
    else:
        _print(made, request.command)
    raise SystemExit(_CODES[made.answer])


_CODES = {
    Answer.FITS: HEALTHY,
    Answer.DOES_NOT_FIT: FINDINGS,
    Answer.TOO_CLOSE: UNKNOWN,
    Answer.UNKNOWN: UNKNOWN,
}


def _place(
    common: CommonOptions, request: ServeRequest, tape: str | None, instead: Instead
) -> tuple[Target, Where]:
    """What is asked; no environment where a version is named."""
    if tape:
        target, where, _ = from_tape(tape)
        return target, where
    command = request.command
    if instead.release is None or common.python or (command and command.container):
        return common.located(command)
    return Live(command.environ if command else None), Where(Path(sys.executable), FoundBy.OWN)


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


def _gpu(name: str | None, memory: str | None) -> GpuMemory | None:
    """As --gpu and --gpu-memory describe it."""
    size = _size("--gpu-memory", memory)
    if size is not None and size < _LEAST:
        raise UsageError(Text("--gpu-memory {text}: less than any GPU has", text=memory))
    known = gpu_named(name).memory if name is not None else None
    if known is None:
        return None if size is None else GpuMemory("", size)
    return known if size is None else dataclasses.replace(known, total=size)


_LEAST = 1 << 28  # bytes


def _config(path: str | None) -> Mapping[str, Any] | None:
    """With what ModelOpt wrote beside it of how the model is quantised, as vLLM reads it."""
    if path is None:
        return None
    values = _json_object(Path(path))
    if values.get("quantization_config") is not None:
        return values
    beside = Path(path).with_name("hf_quant_config.json")
    if isinstance(inside := values.get("_hf_quant_config"), dict):
        return {**values, "quantization_config": _whole(inside)}
    if beside.is_file():
        return {**values, "quantization_config": _json_object(beside)}
    return values


def _whole(copied: Mapping[str, Any]) -> dict[str, Any]:
    """hf_quant_config.json, which ModelOpt alone writes, as collections of such files keep it in
    config.json itself. One that has its algorithms alone does not say what is left as it is."""
    if "producer" in copied:
        return dict(copied)
    said = copied.get("quantization")
    inner = {"exclude_modules": ["*"], **(said if isinstance(said, dict) else {})}
    return {**copied, "producer": {"name": "modelopt"}, "quantization": inner}


def _json_object(path: Path) -> dict[str, Any]:
    with naming("--config", path):
        made = parse_json(must_read(path, _CONFIG_MOST), _PARTS_MOST)
        if not isinstance(made, dict) or not made:
            raise UsageError(Text("it is not the JSON object of a config.json"))
    return made


def _print(made: Fit, command: ServerCommand | None) -> None:
    from doctor.cli.signs import missing_signs
    from doctor.report.fit_text import fit_lines
    from doctor.report.lines import Style
    from doctor.report.translation import translation

    style = Style(width=min(text_width(), 80), stand_ins=missing_signs(sys.stdout.encoding))
    print_lines(fit_lines(made, command, style, translation(Live().env)))
