"""The configuration of the model that is to be served, wherever it can be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from doctor.codec import CodecError
from doctor.consumers import hub
from doctor.consumers.checkpoint import CONFIG, bytes_in, configuration_in, json_table
from doctor.consumers.known_models import known_model
from doctor.consumers.model_config import ConfigJson, overridden
from doctor.consumers.options import GivenOptions
from doctor.engine import probe
from doctor.fit.weights import loaded_bytes
from doctor.frozen import dataclass
from doctor.model import NO_MODEL, Fact, Missing, NotApplicable, Text
from doctor.probes.arguments import ServerArguments
from doctor.probes.environment import LaunchEnv
from doctor.profile import ServeRequest
from doctor.tape import NotRecorded, OfAnotherModel
from doctor.target import OWN, OWN_PYTHON, Ran, Stat, Target


class ReadFrom(str, Enum):
    """Where a model's configuration was read."""

    FOLDER = "folder"
    CACHE = "cache"
    HUB = "hub"
    TABLE = "table"


@dataclass(frozen=True)
class ModelConfiguration(Fact):
    """The values of the model's config.json with --hf-overrides put in, {} where none was found.
    `source`: where they were read, or should be, `place` says it in full; `weights`: bytes of all
    weights as one rank that holds the whole model loads them, None where that is not known; `why`:
    why nothing was found, or not where vLLM would read it."""

    since: ClassVar[str] = "0.6.0"
    dispensable: ClassVar[bool] = True  # a profile is in force all the same
    values: dict[str, Any] = field(default_factory=dict)
    source: ReadFrom | None = None
    place: Text | None = None
    weights: int | None = None
    why: Text | None = None


@probe
def model_configuration(
    target: Target, request: ServeRequest, arguments: ServerArguments, env: LaunchEnv
) -> ModelConfiguration:
    """What exists under the model's name wins over a repository of that name (config.py of vLLM);
    then its cache, what the hub says where it may be asked, and the doctor's own table. A
    configuration that is there and cannot be read is what vLLM would end for; of a model whose
    --hf-overrides cannot be read nothing is known."""
    model = _model(request, arguments)
    named = _said(arguments, "hf_config_path") or model
    here = _here(target, request, arguments, env)
    found = here.configuration(named)
    if found.source is None and hub.is_repository(named) and not here.modelscope:
        if request.online:
            found = _asked(target, env, named, here.revision, found)
        if found.source is None and here.revision == hub.REVISION:
            found = _known(named, found)
    if found.weights is None:
        found = dataclasses.replace(found, weights=here.bytes_of(model))
    return _as_loaded(_overridden(found, arguments), arguments)


def weights_folder(
    target: Target, request: ServeRequest, arguments: ServerArguments, env: LaunchEnv
) -> Path | None:
    """Where the weights of the model are on this machine, None where they are not. Raises
    NotApplicable where no model was named, and NotRecorded."""
    return _here(target, request, arguments, env).weights_folder(_model(request, arguments))


@dataclass(frozen=True)
class ModelPlace:
    """Where a model's files are on this machine, or would come to lie. `folder`: they, None where
    there are none; `repository`: its own cache is below it, None where a folder is served."""

    name: str
    folder: Path | None
    repository: Path | None
    revision: str


def model_place(
    target: Target, request: ServeRequest, arguments: ServerArguments, env: LaunchEnv
) -> ModelPlace:
    """Raises NotApplicable where no model was named, or one that is not looked for here, and
    NotRecorded."""
    name, here = _model(request, arguments), _here(target, request, arguments, env)
    folder = here.weights_folder(name)
    if here.is_folder(name):
        return ModelPlace(name, folder, None, here.revision)
    if not _is_read(name) or here.modelscope or not hub.is_repository(name):
        raise NotApplicable(Text("{name}: not a repository of the hub and no folder", name=name))
    return ModelPlace(name, folder, hub.folder(here.caches[-1], name), here.revision)


def _model(request: ServeRequest, arguments: ServerArguments) -> str:
    default = arguments.defaults.get("model") if request.command else None
    model = _said(arguments, "model") or request.profile.model or default
    if not model:
        raise NotApplicable(NO_MODEL)
    return model


def _here(
    target: Target, request: ServeRequest, arguments: ServerArguments, env: LaunchEnv
) -> _Here:
    folder = _said(arguments, "download_dir")
    return _Here(
        target,
        request.folder,
        (hub.cache(env.vars), *([request.folder / folder] if folder else [])),
        _said(arguments, "revision") or hub.REVISION,
        (env.get("VLLM_USE_MODELSCOPE") or "").strip().lower() in ("1", "true"),
    )


def _overridden(found: ModelConfiguration, arguments: ServerArguments) -> ModelConfiguration:
    given = GivenOptions(arguments.values)
    if not given.says("hf_overrides") or not found.values:
        return found
    changes = given.table("hf_overrides")
    if changes is None:
        why = Text("--hf-overrides is not a JSON object")
        return dataclasses.replace(found, values={}, weights=None, why=why)
    values = overridden(found.values, changes)
    how = _said(arguments, "quantization"), _said(arguments, "dtype") or "auto"
    before, after = (loaded_bytes(ConfigJson(v), *how) for v in (found.values, values))
    # A model that is cut down does not load all that its files hold.
    weights = found.weights if before == after else None
    return dataclasses.replace(found, values=values, weights=weights)


def _said(arguments: ServerArguments, name: str) -> str | None:
    value = arguments.values.get(name)
    return value if isinstance(value, str) and value else None


def _as_loaded(found: ModelConfiguration, arguments: ServerArguments) -> ModelConfiguration:
    """Its weights as the server loads them: what the files come to, without the layers that only
    speculative decoding loads; else what the configuration comes to."""
    config, files = ConfigJson(found.values), found.weights
    quantization, dtype = _said(arguments, "quantization"), _said(arguments, "dtype") or "auto"
    told = loaded_bytes(config, quantization, dtype)
    # Another type than that of the files: float32 is loaded as one of two bytes, unless asked for.
    single = config.dtype == "float32" or dtype in ("float", "float32")
    other = config.quantization is None and (quantization or single)
    if files is None or other or (told is not None and 0.9 * files <= told <= files):
        return dataclasses.replace(found, weights=told)
    return found


@dataclass(frozen=True)
class _Here:
    """The files of this machine: `start` is the folder that relative names are of, `caches` are
    those of the hub's form, the first of them its own."""

    target: Target
    start: Path
    caches: tuple[Path, ...]
    revision: str
    modelscope: bool

    def configuration(self, name: str) -> ModelConfiguration:
        try:
            place = self._place(name)
        except NotRecorded as gap:
            why = Text("this snapshot was made without the configuration of {name}", name=name)
            another = isinstance(gap, OfAnotherModel)
            return ModelConfiguration(why=gap.reason if another else why)
        if isinstance(place, Text):
            return ModelConfiguration(why=place)
        folder, source = place
        made = ModelConfiguration({}, source, Text("{path}", path=folder / CONFIG))
        try:
            return dataclasses.replace(made, values=configuration_in(self.target, folder))
        except CodecError as error:
            return dataclasses.replace(made, why=error.why)

    def _place(self, name: str) -> tuple[Path, ReadFrom] | Text:
        """The folder with its config.json, or why there is none."""
        if not _is_read(name):
            return Text("{name}: addresses and GGUF files are not read", name=name)
        stat = self._stat(name)
        if stat is not None:
            return self.start / name, ReadFrom.FOLDER
        if not hub.is_repository(name):
            return Text("there is no folder {name}", name=name)
        if self.modelscope:
            return Text("what ModelScope has of {name} is not read", name=name)
        folder = self._cached(self.caches, name, CONFIG)
        return self._not_cached(name) if folder is None else (folder, ReadFrom.CACHE)

    def _stat(self, name: str) -> Stat | None:
        try:
            return self.target.stat(self.start / name)
        except NotRecorded:
            raise OfAnotherModel(name) from None

    def _cached(self, caches: Iterable[Path], repository: str, file: str) -> Path | None:
        """The folder of the revision in the first of the caches that has this file of it."""
        for cache in caches:
            folder = hub.snapshot(self.target, cache, repository, self.revision)
            if folder is not None and self.target.stat(folder / file) is not None:
                return folder
        return None

    def _not_cached(self, repository: str) -> Text:
        folder = hub.folder(self.caches[0], repository)
        if self.target.stat(folder) is None:
            return Text("{folder} is not there", folder=folder)
        return Text(
            "{folder} has no config.json of {revision}: it is not downloaded, or not to its end",
            folder=folder,
            revision=self.revision,
        )

    def bytes_of(self, name: str) -> int | None:
        """What the weights of the model come to, where they are here."""
        try:
            folder = self.weights_folder(name)
            return None if folder is None else bytes_in(self.target, folder)
        except NotRecorded:
            return None

    def is_folder(self, name: str) -> bool:
        """Whether what is served is a path of this machine."""
        return _is_read(name) and self._stat(name) is not None

    def weights_folder(self, name: str) -> Path | None:
        if not _is_read(name):
            return None
        there = self._stat(name) is not None
        if not there and (self.modelscope or not hub.is_repository(name)):
            return None
        last_first = reversed(self.caches)  # --download-dir is for weights
        return self.start / name if there else self._cached(last_first, name, "")


def _is_read(name: str) -> bool:
    """Not an address (s3://...), and not a GGUF file, its repository with a type behind it too."""
    repository, colon, _ = name.partition(":")
    remote = bool(colon) and hub.is_repository(repository)
    return "://" not in name and not name.lower().endswith(".gguf") and not remote


def _known(repository: str, found: ModelConfiguration) -> ModelConfiguration:
    row = known_model(repository)
    if row is None:
        return found
    place = Text("the doctor's own table of models: {source}", source=row.source)
    return dataclasses.replace(found, values=row.values, source=ReadFrom.TABLE, place=place)


def _asked(
    target: Target, env: LaunchEnv, repository: str, revision: str, found: ModelConfiguration
) -> ModelConfiguration:
    """What the hub says, in a child that ends in time."""
    endpoint = hub.endpoint(env.vars)
    words = (OWN_PYTHON, "-I", "-B", OWN + "probes/_hub.py", repository, revision)
    try:
        ran = target.run(*words, timeout=60, env=hubs_env(env, endpoint))
    except NotRecorded:
        why = Text("a snapshot is judged without the network: record it with --online")
        return dataclasses.replace(found, why=why)
    except Missing as refused:
        return dataclasses.replace(found, why=refused.reason)
    answer = _answer(ran)
    values, size = answer.get("config"), answer.get("bytes")
    if not isinstance(values, dict):
        why = _refusal(answer, endpoint, repository, revision)
        return dataclasses.replace(found, why=why)
    place = Text("{name} at {endpoint}", name=repository, endpoint=endpoint)
    return ModelConfiguration(values, ReadFrom.HUB, place, size if type(size) is int else None)


_OF_THE_NETWORK = (
    *("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("all_proxy", "http_proxy", "https_proxy", "no_proxy"),
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
)


def hubs_env(env: LaunchEnv, endpoint: str) -> dict[str, str]:
    """Of the server's environment: how the network is reached; and a token for a hub that the
    person named, not for one of the profile or of ours."""
    made = {name: env.vars[name] for name in _OF_THE_NETWORK if name in env.vars}
    made["VLLM_DOCTOR_HUB"] = endpoint
    named = env.get("HF_ENDPOINT") and env.hub is None
    token = hub.token(env.vars) if named else None
    return {**made, "HF_TOKEN": token} if token else made


def _answer(ran: Ran) -> dict[str, Any]:
    if not ran.ok:
        return {"why": ran.failure or "no answer"}
    try:
        return json_table(ran.out)
    except CodecError:
        return {"why": "no answer"}


def _refusal(answer: dict[str, Any], endpoint: str, repository: str, revision: str) -> Text:
    status, why = answer.get("status"), answer.get("why")
    if status in (401, 403):
        return Text(
            "{endpoint} does not give {name} away (HTTP {status}): gated, private, or not there",
            endpoint=endpoint,
            name=repository,
            status=status,
        )
    if status == 404:
        return Text(
            "{endpoint} has no config.json of {name} at {revision}",
            endpoint=endpoint,
            name=repository,
            revision=revision,
        )
    said = why if isinstance(why, str) else Text("HTTP {status}", status=status)
    return Text("{endpoint} could not be asked: {why}", endpoint=endpoint, why=said)
