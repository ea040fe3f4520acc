"""One option of a server's command line set to another value, in the place where it stands."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from doctor.consumers import names

# Short options of `vllm serve` (engine/arg_utils.py, openai/cli_args.py; 0.19 to 0.33).
_SHORT = {
    "-ac": "--attention-config",
    "-asc": "--api-server-count",
    "-cc": "--compilation-config",
    "-dc": "--diffusion-config",
    "-dcp": "--decode-context-parallel-size",
    "-dp": "--data-parallel-size",
    "-dpa": "--data-parallel-address",
    "-dpb": "--data-parallel-backend",
    "-dpe": "--data-parallel-external-lb",
    "-dph": "--data-parallel-hybrid-lb",
    "-dpl": "--data-parallel-size-local",
    "-dpn": "--data-parallel-rank",
    "-dpp": "--data-parallel-rpc-port",
    "-dpr": "--data-parallel-start-rank",
    "-ep": "--enable-expert-parallel",
    "-n": "--nnodes",
    "-pcp": "--prefill-context-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-q": "--quantization",
    "-r": "--node-rank",
    "-sc": "--speculative-config",
    "-tp": "--tensor-parallel-size",
}
# A list, of which all words are replaced.
_LISTS = frozenset(("--served-model-name", "--api-key", "--lora-modules", "--middleware"))
_ALIASES = {"--gpu-memory-utilization": ("--device-memory-utilization",)}


def option_of(setting: str) -> str:
    """The option that says a setting of a profile, or any other option by its name there."""
    return names.OPTIONS.get(setting, "--" + setting.replace("_", "-"))


def changed(
    arguments: Sequence[str], setting: str, value: str, declared: Collection[str]
) -> tuple[str, ...]:
    """The arguments with this value: put where the option stands last, also by a short form or an
    abbreviation; appended where it does not; taken out for an empty value, or `false`. `declared`:
    the options of the installed vLLM, () where they are not known."""
    option = option_of(setting)
    words, places = list(arguments), []
    end = words.index("--") if "--" in words else len(words)
    at = 0
    while at < end:
        if _is(words[at], option, declared):
            length = _length(words[at:end], option)
            places.append((at, length))
            at += length
        else:
            at += 1
    if option == "--model" and not places and words[:1] and not words[0].startswith("-"):
        return (value, *words[1:]) if value else tuple(words[1:])
    new = _said(option, value)
    for start, length in reversed(places):
        words[start : start + length] = new
        new = []
    if new:
        words[end:end] = new
    return tuple(words)


def _said(option: str, value: str) -> list[str]:
    if value in ("", "false"):
        return []
    if value == "true":
        return [option]
    return [f"{option}={value}"] if value.startswith("-") else [option, value]


def _is(word: str, option: str, declared: Collection[str]) -> bool:
    """Whether vLLM's parser takes the word for this option, or for its opposite."""
    if not names.is_option(word):
        return False
    said = word.partition("=")[0]
    if not said.startswith("--"):
        return any(_SHORT[short] == option for short in _SHORT if _begins(said, short))
    said = said.replace("_", "-")
    positive = "--" + said.removeprefix("--").removeprefix("no-")
    wanted = (option, *_ALIASES.get(option, ()))
    if said in wanted or positive in wanted:
        return True
    if "." in said or said in declared:
        return False
    if declared:
        return names.meant(said, declared) in [(one,) for one in wanted]
    return said != "--model" and len(said) > 4 and any(one.startswith(said) for one in wanted)


def _begins(word: str, short: str) -> bool:
    """The short option itself, or with its value behind it: -tp2."""
    return word == short or re.fullmatch(rf"{re.escape(short)}\d+", word) is not None


def _length(words: Sequence[str], option: str) -> int:
    """How many words the option takes here, itself among them."""
    if "=" in words[0] or any(_begins(words[0], s) and words[0] != s for s in _SHORT):
        return 1
    values = 0
    for word in words[1:]:
        if names.is_option(word):
            break
        values += 1
    return 1 + (values if option in _LISTS else min(values, 1))
