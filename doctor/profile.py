"""What is to be served: the model and the server's arguments, as one typed fact."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from doctor import toml
from doctor.codec import CodecError, decode
from doctor.model import Fact, os_reason
from doctor.numbers import number_of, version_of

DEFAULT_PROFILE = "glm-4.7-flash"
_BUILT_IN = Path(__file__).parent / "profiles"


class ProfileError(ValueError):
    """A profile that is not there or does not fit; one sentence that names the key."""


_SPECIFIERS = r"(?:(?:==|!=|>=|<=|~=|<|>) *[0-9][A-Za-z0-9.+!-]*(?:\.\*)?(?: *, *(?!$)|$))+"
_MOST_RANKS = 4096


@dataclass(frozen=True)
class ModelNeeds:
    """What the model asks of the software and of each GPU; None where the profile does not say.

    `vllm`, `transformers`: PEP 440 specifiers, such as "==0.22.0"; a bare version of vLLM is the
    oldest that will do. `weights_gib`: all weights as loaded, GiB. `kv_bytes_per_token`: on each
    rank, bytes. The names of the sizes are those of the model's config.json, `num_` and `_size`
    apart; `key_value_heads` is left out of a model with MLA, whose ranks all hold the one that it
    has.
    """

    vllm: str | None = None
    model_type: str | None = None
    architecture: str | None = None
    transformers: str | None = None
    attention_heads: int | None = None
    key_value_heads: int | None = None
    intermediate_size: int | None = None
    moe_intermediate_size: int | None = None
    weights_gib: float | None = None
    kv_bytes_per_token: int | None = None

    def __post_init__(self) -> None:
        # Both end up in a pip command.
        if self.vllm is not None and not _bare_or_specifiers(self.vllm):
            raise ValueError(f"vllm: {self.vllm!r} is no version such as '0.22.0' or '==0.22.0'")
        if self.transformers is not None and not re.fullmatch(_SPECIFIERS, self.transformers):
            raise ValueError(f"transformers: {self.transformers!r} is no specifier such as '>=5.0'")
        for name in ("attention_heads", "key_value_heads"):
            _must_lie(self, name, 1, 65536)
        for name in ("intermediate_size", "moe_intermediate_size"):
            _must_lie(self, name, 1, 1 << 24)
        _must_lie(self, "weights_gib", 0.001, 1 << 20)
        _must_lie(self, "kv_bytes_per_token", 1, 1 << 30)

    @property
    def vllm_specifiers(self) -> str:
        """What vLLM's version has to meet, as PEP 440 writes it; "" for any."""
        bare = version_of(self.vllm)
        # Only == may name a local version such as +cu129.
        return f">={bare.public}" if bare else self.vllm or ""

    def undivided(self, ranks: int) -> tuple[str, ...]:
        """What of the model so many ranks cannot share: vLLM gives each an equal part of it
        (layers/linear.py, layers/fused_moe), and key/value heads also whole to several ranks."""
        sizes = {
            "attention heads": self.attention_heads,
            "rows of each dense layer (intermediate_size)": self.intermediate_size,
            "rows of each expert (moe_intermediate_size)": self.moe_intermediate_size,
        }
        wrong = [f"the {size} {name}" for name, size in sizes.items() if size and size % ranks]
        heads = self.key_value_heads
        if heads and heads % ranks and ranks % heads:
            wrong.append(f"the {heads} key/value heads")
        return tuple(wrong)

    def tensor_parallel_sizes(self, most: int) -> tuple[int, ...]:
        """The numbers of ranks, up to `most`, that can share the model; of a model whose heads are
        not known, one rank alone is sure to."""
        most = min(most, self.attention_heads or 1)
        return tuple(n for n in range(1, most + 1) if not self.undivided(n))


def _bare_or_specifiers(text: str) -> bool:
    return version_of(text) is not None or re.fullmatch(_SPECIFIERS, text) is not None


def _must_lie(record: object, name: str, least: float, most: float) -> None:
    """Raises ValueError for a number that is there and lies outside, or is none (nan)."""
    value = getattr(record, name)
    if value is not None and not least <= value <= most:
        # Python writes down no number of more than 4,300 digits.
        huge = isinstance(value, int) and abs(value) > most**2
        raise ValueError(f"{name}: {'it' if huge else value} is not between {least} and {most}")


@dataclass(frozen=True)
class Profile(Fact):
    """The serve profile: `vllm serve MODEL` with these arguments, in this kind of place; without a
    model, the place alone.

    `env`: variables of the server that the shell does not have; `env_asked`: what the person said
    of one with `--set env.NAME=...`, which wins over the shell's, and takes it out where empty.
    """

    model: str | None = None
    served_model_name: str | None = None
    host: str = "0.0.0.0"  # noqa: S104 - a server is meant to be reached
    port: int = 8000
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    enable_auto_tool_choice: bool = False
    moe_backend: str | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    gpus: Literal["here", "later"] = "here"
    archs: tuple[str, ...] = ()
    mirror: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    env_asked: dict[str, str] = field(default_factory=dict)
    needs: ModelNeeds = ModelNeeds()

    def __post_init__(self) -> None:
        if self.model == "":
            raise ValueError("model: is empty; leave it out to judge the environment alone")
        if self.model is None and self.needs != ModelNeeds():
            raise ValueError("needs: are those of a model, and none is named")
        _must_lie(self, "max_model_len", 1, 1 << 30)
        _must_lie(self, "port", 1, 65535)
        _must_lie(self, "gpu_memory_utilization", 0.001, 1)
        _must_lie(self, "tensor_parallel_size", 1, _MOST_RANKS)
        for arch in self.archs:
            if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", arch):
                raise ValueError(f"archs: {arch!r} is no compute capability such as '9.0'")

    def unknown(self) -> tuple[str, ...]:
        """The needs that decide how this server starts, and of which nothing is said. One rank can
        always hold all heads; weights are compared with the memory of GPUs that are here."""
        deciding = ["architecture", "model_type"]
        if self.tensor_parallel_size > 1:
            deciding.append("attention_heads")
        if self.device == "cuda" and self.gpus == "here":
            deciding.append("weights_gib")
        return tuple(name for name in deciding if getattr(self.needs, name) is None)


# What a profile says for the sake of its own model, and is not true of another one.
_OF_THE_MODEL = (
    "served_model_name",
    "tensor_parallel_size",
    "max_model_len",
    "reasoning_parser",
    "tool_call_parser",
    "enable_auto_tool_choice",
    "moe_backend",
    "needs",
)


def load_profile(name: str, sets: Iterable[str] = ()) -> Profile:
    """The profile `name` (built in, or a file's path) with each `key=value` of `sets` put in.

    Raises ProfileError for a file that is not there or no TOML, and for any key or value that
    does not fit. Another `model` (an empty one: none) comes without what the profile says of its
    own.
    """
    path = _BUILT_IN / f"{name}.toml"
    if name not in names():
        path = Path(name)
    try:
        data = toml.load_toml(path)
    except FileNotFoundError:
        built_in = ", ".join(names())
        raise ProfileError(f"--profile {name}: no such file; built in are {built_in}") from None
    except OSError as error:
        raise ProfileError(f"--profile {name}: {os_reason(error)}") from None
    except ValueError as error:
        raise ProfileError(f"--profile {name}: {error}") from None
    if isinstance(data, dict) and "env_asked" in data:
        raise ProfileError(f"--profile {name}: env_asked: only --set env.NAME=... says that")
    given = list(sets)
    try:
        base: Profile = decode(Profile, data)
    except CodecError as error:
        raise ProfileError(f"--profile {name}: {error}") from None
    return with_settings(base, given) if given else base


def left_out(base: Profile, made: Profile) -> tuple[str, ...]:
    """What `base` says of its own model and `made`, which is `base` with settings put in, does not
    say of another one."""
    if made.model == base.model:
        return ()
    plain = Profile()
    differ = (n for n in _OF_THE_MODEL if getattr(base, n) != getattr(plain, n))
    return tuple(n for n in differ if getattr(made, n) == getattr(plain, n))


def names() -> tuple[str, ...]:
    """The built-in profiles."""
    return tuple(sorted(p.stem for p in _BUILT_IN.glob("*.toml")))


def with_settings(base: Profile, sets: Collection[str]) -> Profile:
    """The profile with these `key=value` put in. Raises ProfileError."""
    flat: dict[str, Any] = {}
    for one in sets:
        key, equals, text = one.partition("=")
        if not equals:
            # What is no key may be anything, a password too.
            key = f" {one}" if one in typing.get_type_hints(Profile) else ""
            raise ProfileError(f"--set{key}: write it as key=value")
        key = key.strip()
        if key.startswith("env.") and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", key[4:]):
            raise ProfileError(f"--set env.: {key[4:]!r} is no name of a variable")
        flat[f"env_asked.{key[4:]}" if key.startswith("env.") else key] = text
    model = flat.pop("model", base.model) or None
    if model != base.model:
        plain = Profile()
        reset = {name: getattr(plain, name) for name in _OF_THE_MODEL}
        base = dataclasses.replace(base, model=model, **reset)
    try:
        for key, text in flat.items():
            base = _put(base, key.split("."), text, key)
    except (CodecError, ValueError) as error:
        raise ProfileError(f"--set {error}") from None
    return base


def _put(record: Any, keys: list[str], text: str, whole: str) -> Any:
    name, rest = keys[0], keys[1:]
    if isinstance(record, dict):
        return {**record, ".".join(keys): text}
    hints = typing.get_type_hints(type(record))
    if name not in hints or (rest and not isinstance(getattr(record, name), (dict, ModelNeeds))):
        known = ", ".join(sorted(hints))
        raise CodecError(whole, f"no such key; there are {known}")
    if rest:
        try:
            changed = _put(getattr(record, name), rest, text, whole)
        except CodecError:
            raise
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
        return dataclasses.replace(record, **{name: changed})
    return dataclasses.replace(
        record, **{name: decode(hints[name], _value(hints[name], text), whole)}
    )


def _value(hint: Any, text: str) -> Any:
    """`text` as the TOML value that `hint` expects; as it is where it fits nothing, so that the
    codec says what was expected."""
    if typing.get_origin(hint) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    kinds = {hint, *typing.get_args(hint)}
    if type(None) in kinds and text == "":
        return None
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    if int in kinds and (whole := number_of(digits)) is not None:
        return -whole if sign else whole
    if float in kinds and text.isascii():
        with contextlib.suppress(ValueError):
            return float(text)
    return text
