"""How far a download of the model would come from here, where the network may be asked."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import urlsplit

from doctor.codec import CodecError
from doctor.consumers import hub
from doctor.consumers.checkpoint import json_table
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text, printable
from doctor.probes.configuration import hubs_env
from doctor.probes.environment import LaunchEnv
from doctor.probes.files import ModelFiles
from doctor.profile import ServeRequest
from doctor.target import OWN, OWN_PYTHON, Target

_SECONDS = 20  # five answers of three seconds each, and the start of the child
_SCHEMES = ("http://", "https://")


@dataclass(frozen=True)
class HubReach(Fact):
    """What the hub at `endpoint` answers about the model's largest file: `status` of HTTP, None
    where nothing answers, `why` then says why; `code`: its X-Error-Code, or "InvalidToken".
    `location`: the host to which it sends for the file, `location_why`: why that is not reached.
    `cas`, `cas_why`: the same of xet's. `size`: bytes of the weights that vLLM would fetch, at the
    least; None where the hub does not list them, and config.json was asked for. `with_token`:
    whether one was sent; `as_server`: False where the server would send one that was not."""

    since: ClassVar[str] = "0.8.0"
    dispensable: ClassVar[bool] = True  # asked with --online alone
    endpoint: str = ""
    status: int | None = None
    code: str | None = None
    why: str | None = None
    location: str | None = None
    location_why: str | None = None
    cas: str | None = None
    cas_why: str | None = None
    size: int | None = None
    with_token: bool = False
    as_server: bool = True


@probe
def hub_reach(target: Target, request: ServeRequest, files: ModelFiles, env: LaunchEnv) -> HubReach:
    """Asked in a child, where there is anything to fetch."""
    if files.repository is None or hub.is_offline(env.vars):
        raise NotApplicable(Text("nothing is downloaded"))
    if files.weights and not files.of("missing", "broken-link"):
        raise NotApplicable(Text("the model is here"))
    endpoint = hub.endpoint(env.vars)
    if not endpoint.lower().startswith(_SCHEMES):
        return HubReach(endpoint, why="it does not begin with http:// or https://")
    if not request.online:
        raise NotApplicable(Text("the network is asked with --online"))
    words = (OWN_PYTHON, "-I", "-B", OWN + "probes/_hub.py", files.name, files.revision, "reach")
    ran = target.run(*words, timeout=_SECONDS, env=hubs_env(env, endpoint))
    if not ran.ok:
        raise Missing(Text("{endpoint} was not asked: {why}", endpoint=endpoint, why=ran.failure))
    try:
        said = json_table(ran.out)
    except CodecError as error:
        raise Missing(error.why) from None
    status, size, why = said.get("status"), said.get("bytes"), _word(said, "why")
    if said.get("refused"):
        raise Missing(Text("{endpoint} was not asked: {why}", endpoint=endpoint, why=why))
    return HubReach(
        endpoint,
        status if type(status) is int else None,
        _word(said, "code"),
        why,
        _host(said, "location"),
        _word(said, "location_why"),
        _host(said, "cas"),
        _word(said, "cas_why"),
        size if type(size) is int else None,
        with_token := said.get("with_token") is True,
        with_token or not _servers_token(target, env),
    )


def _servers_token(target: Target, env: LaunchEnv) -> bool:
    """Whether the server sends one; one that `hf auth login` has kept, too."""
    if env.hub is not None or hub.token_withheld(env.vars):
        return False
    return hub.token(env.vars) is not None or target.stat(hub.token_file(env.vars)) is not None


def _word(said: dict[str, Any], name: str) -> str | None:
    value = said.get(name)
    return printable(value[:200]) if isinstance(value, str) and value else None


def _host(said: dict[str, Any], name: str) -> str | None:
    """Of an address; the rest of it may be a permission to read."""
    value = _word(said, name)
    try:
        return (urlsplit(value).netloc.rpartition("@")[2] or None) if value else None
    except ValueError:
        return None
