"""What is to be served: the model and the server's arguments, as one typed fact."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing
from collections.abc import Collection, Iterable
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from doctor import toml
from doctor.codec import CodecError, decode, shown_value, unknown_key
from doctor.command import ServerCommand
from doctor.errors import UsageError, naming
from doctor.frozen import dataclass
from doctor.model import Fact, Text
from doctor.numbers import number_of, version_of

DEFAULT_PROFILE = "glm-4.7-flash"
_BUILT_IN = Path(__file__).parent / "profiles"


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
            said = Text(
                "{value} is not a version such as 0.22.0 or ==0.22.0", value=shown_value(self.vllm)
            )
            raise CodecError("vllm", said)
        if self.transformers is not None and not re.fullmatch(_SPECIFIERS, self.transformers):
            said = Text(
                "{value} is not a specifier such as >=5.0", value=shown_value(self.transformers)
            )
            raise CodecError("transformers", said)
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

    def undivided(self, ranks: int) -> tuple[Text, ...]:
        """What of the model so many ranks cannot share: vLLM gives each an equal part of it
        (layers/linear.py, layers/fused_moe), and key/value heads also whole to several ranks."""
        wrong = []
        if (heads := self.attention_heads) and heads % ranks:
            wrong.append(Text("the {size} attention heads", size=heads))
        if (rows := self.intermediate_size) and rows % ranks:
            wrong.append(Text("the {size} rows of each dense layer (intermediate_size)", size=rows))
        if (rows := self.moe_intermediate_size) and rows % ranks:
            wrong.append(Text("the {size} rows of each expert (moe_intermediate_size)", size=rows))
        if (heads := self.key_value_heads) and heads % ranks and ranks % heads:
            wrong.append(Text("the {size} key/value heads", size=heads))
        return tuple(wrong)

    def tensor_parallel_sizes(self, most: int) -> tuple[int, ...]:
        """The numbers of ranks, up to `most`, that can share the model; of a model whose heads are
        not known, one rank alone is sure to."""
        most = min(most, self.attention_heads or 1)
        return tuple(n for n in range(1, most + 1) if not self.undivided(n))


def _bare_or_specifiers(text: str) -> bool:
    return version_of(text) is not None or re.fullmatch(_SPECIFIERS, text) is not None


def _must_lie(record: object, name: str, least: float, most: float) -> None:
    """Raises CodecError for a number that is there and lies outside, or is none (nan)."""
    value = getattr(record, name)
    if value is not None and not least <= value <= most:
        shown = shown_value(value)
        said = Text("{n} is not between {least} and {most}", n=shown, least=least, most=most)
        raise CodecError(name, said)


@dataclass(frozen=True)
class Profile(Fact):
    """The serve profile: `vllm serve MODEL` with these arguments, in this kind of place; without a
    model, the place alone.

    `env`: variables of the server that the shell does not have; `env_asked`: what the person said
    of one with `--set env.NAME=...`, which wins over the shell's, and takes it out where empty.
    `options`: any other option of `vllm serve`, by its name with underscores: a value of TOML as it
    is, one of `--set` as text; which there are, the installed vLLM says.
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
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model == "":
            said = Text("is empty; leave it out to judge the environment alone")
            raise CodecError("model", said)
        if self.model is None and self.needs != ModelNeeds():
            raise CodecError("needs", Text("describe a model, but no model is named"))
        _must_lie(self, "max_model_len", 1, 1 << 30)
        _must_lie(self, "port", 1, 65535)
        _must_lie(self, "gpu_memory_utilization", 0.001, 1)
        _must_lie(self, "tensor_parallel_size", 1, _MOST_RANKS)
        for arch in self.archs:
            if not re.fullmatch(r"[0-9]{1,2}\.[0-9]", arch):
                said = Text(
                    "{value} is not a compute capability such as 9.0", value=shown_value(arch)
                )
                raise CodecError("archs", said)

    def unknown(self) -> tuple[str, ...]:
        """The needs that decide how this server starts, and of which nothing is said. One rank can
        always hold all heads; weights are compared with the memory of GPUs that are here."""
        deciding = ["architecture", "model_type"]
        if self.tensor_parallel_size > 1:
            deciding.append("attention_heads")
        if self.device == "cuda" and self.gpus == "here":
            deciding.append("weights_gib")
        return tuple(name for name in deciding if getattr(self.needs, name) is None)


@dataclass(frozen=True)
class ServeRequest(Fact):
    """What the person asked to be served, before any file of the installed vLLM or of the model was
    looked at: a profile and further words for its server's command line; or a whole command, and
    then `profile` has the place alone (PLACE). `online`: the model's hub may be asked."""

    profile: Profile = Profile()
    extra: tuple[str, ...] = ()
    command: ServerCommand | None = None
    online: bool = False

    @property
    def folder(self) -> Path:
        """What relative paths of the server are of."""
        return (self.command.folder if self.command else None) or Path()


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
    "options",
)
# The rest says where it is served, and with which environment.
PLACE = ("device", "gpus", "archs", "mirror", "env", "env_asked")


def load_profile(name: str, sets: Iterable[str] = ()) -> Profile:
    """The profile `name` (built in, or a file's path) with each `key=value` of `sets` put in.

    Raises UsageError for a file that is not there or not TOML, and for any key or value that does
    not fit. Another `model` (an empty one: none) comes without what the profile says of its own.
    """
    path = _BUILT_IN / f"{name}.toml" if name in names() else Path(name)
    with naming("--profile", name):
        base: Profile = decode(Profile, _table(path))
    given = list(sets)
    return with_settings(base, given) if given else base


def _table(path: Path) -> dict[str, Any]:
    try:
        data = toml.load_toml(path)
    except FileNotFoundError:
        known = Text("no such file; built-in profiles: {names}", names=names())
        raise UsageError(known) from None
    if "env_asked" in data:
        raise CodecError("env_asked", Text("can only be given by --set env.NAME=..."))
    if "options" in data:
        raise CodecError("options", Text("each option stands by itself, under its own name"))
    own = typing.get_type_hints(Profile)
    options = {key: value for key, value in data.items() if key not in own}
    for key in options:
        _must_not_be_a_slip(key)
    return {**{k: v for k, v in data.items() if k in own}, "options": options}


def _must_not_be_a_slip(key: str) -> None:
    """Raises CodecError for a key that is nearly one of the profile's own: which options vLLM has
    is not known yet, and a place that is not obeyed would not be noticed."""
    from difflib import get_close_matches

    own = sorted(typing.get_type_hints(Profile))
    if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
        raise CodecError(key, unknown_key(own))
    if near := get_close_matches(key, own, 1, cutoff=0.85):
        raise CodecError(key, Text("unknown key; did you mean {near}?", near=near[0]))


def left_out(base: Profile, made: Profile, sets: Collection[str] = ()) -> tuple[str, ...]:
    """What `base` says of its own model and `made`, which is `base` with `sets` put in, does not
    say of another one. A value that was set is not left out, also where it is the default."""
    if made.model == base.model:
        return ()
    plain = Profile()
    differ = (n for n in _OF_THE_MODEL if getattr(base, n) != getattr(plain, n))
    named = {one.partition("=")[0].strip() for one in sets}
    return tuple(n for n in differ if n not in named and getattr(made, n) == getattr(plain, n))


def names() -> tuple[str, ...]:
    """The built-in profiles."""
    return tuple(sorted(p.stem for p in _BUILT_IN.glob("*.toml")))


def with_settings(base: Profile, sets: Collection[str]) -> Profile:
    """The profile with these `key=value` put in. Raises UsageError."""
    flat: dict[str, Any] = {}
    for one in sets:
        key, equals, text = one.partition("=")
        if not equals:
            if one not in typing.get_type_hints(Profile):  # it may be anything, a password too
                raise UsageError(Text("--set: write it as key=value"))
            raise UsageError(Text("--set {key}: write it as key=value", key=one))
        key = key.strip()
        if key.startswith("env.") and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", key[4:]):
            said = Text("--set env.{name}: not the name of a variable", name=key[4:])
            raise UsageError(said)
        flat[f"env_asked.{key[4:]}" if key.startswith("env.") else key] = text
    model = flat.pop("model", base.model) or None
    if model != base.model:
        plain = Profile()
        reset = {name: getattr(plain, name) for name in _OF_THE_MODEL}
        base = dataclasses.replace(base, model=model, **reset)
    with naming("--set"):
        for key, text in flat.items():
            base = _put(base, key.split("."), text, key)
    return base


def _put(record: Any, keys: list[str], text: str, whole: str) -> Any:
    name, rest = keys[0], keys[1:]
    if isinstance(record, dict):
        return {**record, ".".join(keys): text}
    hints = typing.get_type_hints(type(record))
    if isinstance(record, Profile) and not rest and (name not in hints or name == "options"):
        _must_not_be_a_slip(name)
        options = {key: value for key, value in record.options.items() if key != name}
        more = {name: text} if text else {}
        return dataclasses.replace(record, options={**options, **more})
    if name not in hints or (rest and not isinstance(getattr(record, name), (dict, ModelNeeds))):
        raise CodecError(whole, unknown_key(hints))
    if rest:
        value = _put(getattr(record, name), rest, text, whole)
    else:
        value = decode(hints[name], _value(hints[name], text), whole)
    try:
        return dataclasses.replace(record, **{name: value})
    except CodecError as error:  # the record's own check, which names its field
        raise CodecError(whole.removesuffix(".".join(keys)) + error.path, error.why) from None


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
