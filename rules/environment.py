"""The shell's environment against the server's."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable, Iterator
from enum import Enum

from doctor import Finding, Fix, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.fixes import Command, LoadVariables, UnsetVariable
from doctor.model import Step
from doctor.probes.environment import LaunchEnv
from doctor.probes.jit import Jit
from doctor.probes.vllm_names import WholeNumbers
from doctor.profile import Profile
from doctor.variables import SETTABLE


@rule("shell-env-not-loaded", Severity.INFO, Stage.SHELL)
def shell_env_not_loaded(env: LaunchEnv) -> Finding | None:
    """Variables saved by an earlier fix are not set in this shell.

    The report counts them as part of the server's environment, and `vllm-doctor launch` starts the
    server with them; a `vllm serve` typed in this shell would not see them.

    Manual: `eval "$(vllm-doctor env)"` sets them in this shell; `vllm-doctor env --shell systemd`
    (fish, dotenv, json) writes them for others.

    See also: variable-unreadable
    """
    if not env.differs:
        return None
    return Finding(
        Text("`vllm serve` started from this shell would not see {names}", names=env.differs),
        tuple(_as_launched(env, name) for name in env.differs),
        (
            Fix(
                Text("load them into this shell"),
                (LoadVariables(),),
                Needs.PERSON,
            ),
        ),
    )


def _as_launched(env: LaunchEnv, name: str) -> Text:
    value = env.get(name)
    if value is None:
        return Text("{name} is unset", name=name)
    return Text("{name}={value}", name=name, value=value)


@rule("variable-unreadable", Severity.ERROR, Stage.IMPORT)
def variable_unreadable(
    env: LaunchEnv, jit: Jit | None, numbers: WholeNumbers | None
) -> list[Finding]:
    """A variable has a value that makes vLLM or FlashInfer fail at start.

    vLLM stops with `invalid literal for int() with base 10: 'true'`: it reads its numbers and most
    of its switches with `int`, once each when the engine and its workers start, so `true` and an
    empty value are fatal. VLLM_PORT=tcp://10.0.0.1:8000 is set by Kubernetes in every pod beside a
    service named vllm. FlashInfer splits FLASHINFER_CUDA_ARCH_LIST at single spaces (`9.0a 10.0a`);
    torch's spelling with semicolons is fatal.

    Fix: Removes the variable for the next start if it is one that a fix may set
    (FLASHINFER_CUDA_ARCH_LIST and others). Needs no consent.

    Manual: `unset` any other variable where the server is started. For VLLM_PORT rename the
    Kubernetes service, or set `enableServiceLinks: false` in the pod.

    Sources: vllm/envs.py (0.19 to 0.33), flashinfer/compilation_context.py

    See also: vllm-port-env-is-uri, variable-odd-characters, unknown-vllm-variable
    """
    whole = numbers.names if numbers else ()
    found = [*_numbers(env, whole), *_archs(env, jit)]
    if not found and (hidden := [name for name in env.hidden if name in whole]):
        why = Text("this snapshot does not contain the values of {names}", names=hidden)
        raise NotApplicable(why)
    return found


def _numbers(env: LaunchEnv, whole: Iterable[str]) -> Iterator[Finding]:
    for name in whole:
        value = env.get(name)
        if value is not None and not _is_whole(value):
            yield Finding(
                Text("{name}={value}: vLLM expects an integer", name=name, value=repr(value)),
                (),
                (
                    Fix(
                        Text("unset it, so that vLLM uses its default"),
                        (_without(name),),
                        _who(name),
                    ),
                ),
            )


def _archs(env: LaunchEnv, jit: Jit | None) -> Iterator[Finding]:
    name = "FLASHINFER_CUDA_ARCH_LIST"
    if jit and jit.unreadable:
        yield Finding(
            Text(
                "{name}={value}: FlashInfer expects entries such as 9.0a, separated by one space",
                name=name,
                value=repr(env.get(name)),
            ),
            (),
            (Fix(Text("unset it, so that FlashInfer detects the GPUs"), (UnsetVariable(name),)),),
        )


def _without(name: str) -> Step:
    """A fix keeps few names for the next start; any other is the person's to take out."""
    return UnsetVariable(name) if name in SETTABLE else Command(f"unset {shlex.quote(name)}")


def _who(name: str) -> Needs:
    return Needs.SAFE if name in SETTABLE else Needs.PERSON


def _is_whole(value: str) -> bool:
    """Whether Python's `int` takes it, as vLLM does."""
    try:
        int(value)
    except ValueError:
        return False
    return True


_FAMILIES = re.compile(r"(?:CUDA|HF|NCCL|VLLM)_\w+|HUGGING_FACE_HUB_TOKEN")
# Full-width forms, typographic quotes, blanks and marks that nobody sees.
_ODD = "[\uff01-\uff5e\u3000\u2018-\u201f\u00a0\u200b-\u200f\u2060\ufeff]"
_BLANK_IS_MEANT = ("VLLM_LOGGING_PREFIX",)
_STRIPPED = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@rule("variable-odd-characters", Severity.WARNING, Stage.DEVICE)
def variable_odd_characters(
    env: LaunchEnv, profile: Profile, numbers: WholeNumbers | None
) -> list[Finding]:
    """A variable contains stray blanks, quotes or full-width characters.

    Its reader takes them literally. Input methods produce "０，1" and “…”; `docker --env-file`
    and systemd's EnvironmentFile keep what a shell would strip: the quotes in KEY="value", a
    blank behind the value. CUDA shows no GPU for CUDA_VISIBLE_DEVICES="０，1", huggingface_hub
    asks a host that does not exist, HF_HUB_OFFLINE=" 1" is off. Of a path only both ends are
    checked, since folders may be named so. A snapshot contains only few values, and only those
    are checked.

    Manual: Set the variable again without these characters, in the env file or unit that sets it.

    See also: variable-unreadable, hf-endpoint-unreachable, invalid-device-ordinal
    """
    whole = numbers.names if numbers else ()
    found = []
    for name, value in sorted(env.vars.items()):
        odd = tuple(_odd(value, name in _BLANK_IS_MEANT + _STRIPPED))
        if not odd or name in whole or not _is_read(name, profile):
            continue
        title = Text("remove them from its value")
        fix = Fix(title, (Command(f"export {name}=..."),), Needs.PERSON)
        message = Text(
            "{name} has {odd}, taken literally", name=name, odd=[text for _, text in odd]
        )
        found.append(Finding(message, (), (fix,), _severity(name, {kind for kind, _ in odd})))
    return found


def _is_read(name: str, profile: Profile) -> bool:
    gpus = profile.device != "cpu"
    return bool(_FAMILIES.fullmatch(name)) and (gpus or not name.startswith(("CUDA_", "NCCL_")))


class _Odd(Enum):
    BLANK, QUOTES, CHARACTER = range(3)


def _odd(value: str, blanks_count_not: bool) -> Iterator[tuple[_Odd, Text]]:
    """What a reader stumbles over; no part of the value is shown, which may be a secret."""
    ends = value.strip(" \t\r\n")
    if ends != value and ends and not blanks_count_not:
        yield _Odd.BLANK, Text("leading or trailing whitespace")
    if len(ends) > 1 and ends[0] == ends[-1] and ends[0] in "\"'":
        yield _Odd.QUOTES, Text("enclosing quotes")
    looked_at = (ends[:1] + ends[-1:]) if ends.startswith(("/", "~/")) else ends
    for character in dict.fromkeys(re.findall(_ODD, looked_at)):
        called = unicodedata.name(character, f"U+{ord(character):04X}").lower()
        yield _Odd.CHARACTER, Text("{character}", character=called)


def _severity(name: str, odd: set[_Odd]) -> Severity | None:
    """CUDA skips blanks before a number, and stops at anything else; most of vLLM's own readers
    strip blanks."""
    if name == "CUDA_VISIBLE_DEVICES":
        return Severity.INFO if odd == {_Odd.BLANK} else Severity.ERROR
    return Severity.INFO if odd == {_Odd.BLANK} and name.startswith("VLLM_") else None
