"""Prints what a hub says of a model: JSON with `config` (the values of its config.json, or null),
`bytes` (of its weights, or null) and, where there is no config, `status` (of HTTP) or `why`.

    python _hub.py REPOSITORY REVISION [reach]

With `reach` it prints how far a download would come instead: `file`, the largest one; `status` and
`code` (X-Error-Code) of the answer to it, or `why` there is none; `location`, the address to which
the hub sends for it, and `location_why` where that is not reached; `cas`, where xet would fetch it,
and `cas_why`. Each answer has three seconds.

It asks the hub at VLLM_DOCTOR_HUB with the token in HF_TOKEN, if there is one. In a child, which
ends in time whatever a hub does. The token goes to the hub itself alone, never where it redirects
to; beyond this machine only https is spoken, and certificates are verified.
"""

import http.client
import ipaddress
import json
import os
import re
import sys
import urllib.error
import urllib.request
from email.message import Message
from typing import Any, Callable, Dict, Optional, Tuple, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import Request

T = TypeVar("T")

CONFIG_MOST = 8 << 20
INDEX_MOST = 16 << 20
SECONDS = 10
HUB = os.environ["VLLM_DOCTOR_HUB"]
TOKEN = os.environ.get("HF_TOKEN")


class Refused(Exception):
    """Why nothing is asked, or nothing of the answer is read, in a few words."""


def is_secret(url: str) -> bool:
    """Whether nobody between can read or change what is said there."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return True
    try:
        here = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        here = parts.hostname == "localhost"
    return parts.scheme == "http" and here


def origin(url: str) -> Tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


class Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Optional[Request]:
        if not is_secret(newurl):
            raise Refused("it redirects to plain http")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is None:
            return None
        made.method = req.get_method()  # before Python 3.13 a HEAD became a GET, of gigabytes
        if origin(newurl) == origin(HUB):
            authorize(made)
        return made


def authorize(request: Request) -> None:
    # Not redirected: urllib would send a header of any other kind to wherever the hub points.
    if TOKEN:
        request.add_unredirected_header("Authorization", "Bearer " + TOKEN)


def opener() -> urllib.request.OpenerDirector:
    proxies = {k: v for k, v in urllib.request.getproxies_environment().items() if k == "https"}
    handlers = [urllib.request.ProxyHandler(proxies), Redirects()]
    return urllib.request.build_opener(*handlers)


def ask(name: str, most: int, method: str = "GET") -> Tuple[bytes, Message]:
    """The body of a file of the repository and its headers. Raises HTTPError, OSError, Refused."""
    repository, revision = sys.argv[1:3]
    url = "{}/{}/resolve/{}/{}".format(HUB, quote(repository), quote(revision, safe=""), name)
    request = Request(  # noqa: S310 - https, or http on this machine (`is_secret`)
        url, method=method, headers={"User-Agent": "vllm-doctor"}
    )
    authorize(request)
    with opener().open(request, timeout=SECONDS) as answer:
        body = answer.read(most + 1)
    if len(body) > most:
        raise Refused("{} is larger than {} MiB".format(name, most >> 20))
    return body, answer.headers


def table(name: str) -> Dict[str, Any]:
    try:
        made = json.loads(ask(name, CONFIG_MOST)[0])
    except (ValueError, RecursionError):
        raise Refused("{} is not JSON".format(name)) from None
    if not isinstance(made, dict):
        raise Refused("{} is not a JSON object".format(name))
    return made


def weights() -> Optional[int]:
    """Bytes: what the index adds up, or the size of the one file."""
    try:
        body, _ = ask("model.safetensors.index.json", INDEX_MOST)
        found = re.search(rb'"total_size":\s*(\d{1,18})\b', body)
        return int(found[1]) if found else None
    except urllib.error.HTTPError as error:
        if error.code != 404:
            return None
    _, headers = ask("model.safetensors", 0, "HEAD")
    size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    return int(size) if re.fullmatch(r"[0-9]{1,18}", size) else None


def optional(function: Callable[..., T], *words: str) -> Optional[T]:
    try:
        return function(*words)
    except (OSError, ValueError, http.client.HTTPException, Refused):
        return None


def must_be_asked() -> None:
    if not is_secret(HUB) or "@" in urlsplit(HUB).netloc:
        raise Refused("it is not an https address without a user's name")


def answer() -> Dict[str, Any]:
    must_be_asked()
    config = table("config.json")
    if config.get("quantization_config") is None:
        quantization = optional(table, "hf_quant_config.json")
        if quantization:
            config["quantization_config"] = quantization
    listed = config.get("quantization_config")
    if isinstance(listed, dict):
        listed.pop("quantized_layers", None)  # megabytes, and nothing else is said there
    return {"config": config, "bytes": optional(weights)}


class Stays(Redirects):
    """Follows to the same origin alone."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Optional[Request]:
        if origin(newurl) != origin(HUB):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


REACH_SECONDS = 3
LIST_MOST = 8 << 20


def said(url: str, method: str, most: int = 0) -> Tuple[int, Message, bytes]:
    """Status, headers and body of whatever answer comes. Raises OSError and what http.client
    raises where none comes, Refused."""
    request = Request(url, method=method, headers={"User-Agent": "vllm-doctor"})  # noqa: S310
    if origin(url) == origin(HUB):
        authorize(request)
    proxies = {k: v for k, v in urllib.request.getproxies_environment().items() if k == "https"}
    asking = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), Stays())
    try:
        with asking.open(request, timeout=REACH_SECONDS) as made:
            return made.status, made.headers, made.read(most)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, b""


def why_not(url: str) -> Optional[str]:
    """Why nothing is reached there; None where anything answers."""
    if not is_secret(url):
        return "it is plain http"
    try:
        said(url, "HEAD")
    except (OSError, ValueError, http.client.HTTPException, Refused) as error:
        return reason(error)
    return None


def largest() -> Optional[str]:
    """By the hub's list; None where that names no file, or no answer can be read."""
    repository, revision = sys.argv[1:3]
    place = "{}/api/models/{}/tree/{}".format(HUB, quote(repository), quote(revision, safe=""))
    _, _, body = said(place, "GET", LIST_MOST)
    try:
        rows = [row for row in json.loads(body) if row.get("type") == "file"]
        return str(max(rows, key=lambda row: row["size"])["path"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def reach() -> Dict[str, Any]:
    must_be_asked()
    repository, revision = sys.argv[1:3]
    name = largest() or "config.json"
    place = "{}/{}/resolve/{}/{}".format(
        HUB, quote(repository), quote(revision, safe=""), quote(name)
    )
    status, headers, _ = said(place, "HEAD")
    made: Dict[str, Any] = {"file": name, "status": status, "code": headers.get("X-Error-Code")}
    location = headers.get("Location")
    if location and 300 <= status < 400:
        made["location"] = location.partition("?")[0]
        made["location_why"] = why_not(location)
    route = headers.get("X-Xet-Refresh-Route")
    if headers.get("X-Xet-Hash") and route:
        made.update(xet(route))
    return made


def xet(route: str) -> Dict[str, Any]:
    """Where the client is sent for the chunks of the file, as it asks for that itself."""
    try:
        _, headers, _ = said(route, "GET")
    except (OSError, ValueError, http.client.HTTPException, Refused) as error:
        return {"cas": route.partition("?")[0], "cas_why": reason(error)}
    cas = headers.get("X-Xet-Cas-Url")
    return {"cas": cas, "cas_why": why_not(cas)} if cas else {}


def reason(error: Exception) -> str:
    return str(getattr(error, "reason", error))[:200] or type(error).__name__


def main() -> None:
    try:
        made = reach() if sys.argv[3:] == ["reach"] else answer()
    except urllib.error.HTTPError as error:
        made = {"status": error.code}
    except Refused as error:
        made = {"why": str(error), "refused": True}
    except (OSError, ValueError, http.client.HTTPException) as error:
        made = {"why": reason(error)}
    print(json.dumps(made, separators=(",", ":")))


main()
