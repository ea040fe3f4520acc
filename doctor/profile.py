"""What is to be served: the model and the server's arguments, as one typed fact."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from doctor import toml
from doctor.codec import CodecError, decode
from doctor.model import Fact

DEFAULT = "glm-4.7-flash"
_BUILT_IN = Path(__file__).parent / "profiles"


class ProfileError(ValueError):
    """A profile that is not there or does not fit; one sentence that names the key."""


_VERSION = r"\d[\w.+!-]*"
_SPECIFIERS = rf"(?:(?:==|!=|>=|<=|~=|<|>) *{_VERSION}(?:\.\*)?(?: *, *(?!$)|$))+"


@dataclass(frozen=True)
class ModelNeeds:
    """What the model asks of the software and of each GPU; None where the profile does not say.

    `weights_gib`: all weights as loaded, GiB. `kv_bytes_per_token`: on each rank, bytes.
    """

    vllm: str | None = None
    model_type: str | None = None
    architecture: str | None = None
    transformers: str | None = None
    attention_heads: int | None = None
    weights_gib: float | None = None
    kv_bytes_per_token: int | None = None

    def __post_init__(self) -> None:
        # Both end up in a pip command.
        if self.vllm is not None and not re.fullmatch(_VERSION, self.vllm):
            raise ValueError(f"vllm: {self.vllm!r} is no version such as '0.22.0'")
        if self.transformers is not None and not re.fullmatch(_SPECIFIERS, self.transformers):
            raise ValueError(f"transformers: {self.transformers!r} is no specifier such as '>=5.0'")


@dataclass(frozen=True)
class Profile(Fact):
    """The serve profile: `vllm serve MODEL` with these arguments, in this kind of place."""

    model: str
    served_model_name: str | None = None
    host: str = "0.0.0.0"  # noqa: S104 - a server is meant to be reached
    port: int = 8000
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    enable_auto_tool_choice: bool = False
    device: Literal["cuda", "cpu"] = "cuda"
    gpus: Literal["here", "later"] = "here"
    archs: tuple[str, ...] = ()
    mirror: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    needs: ModelNeeds = ModelNeeds()

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model: is empty")
        if self.max_model_len is not None and self.max_model_len < 1:
            raise ValueError(f"max_model_len: {self.max_model_len} is not 1 or more")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} is not between 1 and 65535")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization: {self.gpu_memory_utilization:g} is not between 0 and 1"
            )
        if self.tensor_parallel_size < 1:
            raise ValueError(f"tensor_parallel_size: {self.tensor_parallel_size} is not 1 or more")
        for arch in self.archs:
            major, _, minor = arch.partition(".")
            if not (major.isdigit() and minor.isdigit()):
                raise ValueError(f"archs: {arch!r} is no compute capability such as '9.0'")


def load(name: str, sets: Iterable[str] = ()) -> Profile:
    """The profile `name` (built in, or a file's path) with each `key=value` of `sets` put in.

    Raises ProfileError for a file that is not there or no TOML, and for any key or value that
    does not fit.
    """
    path = _BUILT_IN / f"{name}.toml"
    if name not in names():
        path = Path(name)
        if not path.is_file():
            built_in = ", ".join(names())
            raise ProfileError(f"--profile {name}: no such file; built in are {built_in}")
    try:
        data = toml.load(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ProfileError(f"--profile {name}: {error}") from None
    given = list(sets)
    try:
        base: Profile = decode(Profile, data)
    except CodecError as error:
        raise ProfileError(f"--profile {name}: {error}") from None
    return _with(base, given) if given else base


def variants(profile: Profile) -> tuple[Profile, ...]:
    """The same model with its GPUs here and with GPUs to come: what a recording has to answer,
    so that it can be judged either way."""
    return (
        dataclasses.replace(profile, device="cuda", gpus="here"),
        dataclasses.replace(profile, device="cuda", gpus="later", archs=("9.0",)),
    )


def names() -> tuple[str, ...]:
    """The built-in profiles."""
    return tuple(sorted(p.stem for p in _BUILT_IN.glob("*.toml")))


def _with(base: Profile, sets: list[str]) -> Profile:
    flat: dict[str, Any] = {}
    for one in sets:
        key, equals, text = one.partition("=")
        if not equals:
            # What is no key may be anything, a password too.
            key = f" {one}" if one in typing.get_type_hints(Profile) else ""
            raise ProfileError(f"--set{key}: write it as key=value")
        flat[key.strip()] = text
    if flat.get("model", base.model) != base.model:
        # What the profile knows of its own model is not true of another one.
        base = dataclasses.replace(base, served_model_name=None, needs=ModelNeeds())
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
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                continue
    return text
