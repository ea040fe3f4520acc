"""Prints what a hub says of a model: JSON with `config` (the values of its config.json, or null),
`bytes` (of its weights, or null) and, where there is no config, `status` (of HTTP) or `why`.

    python _hub.py REPOSITORY REVISION [reach]

With `reach` it prints how far a download would come instead: `bytes`, of the
model's weights, null where the hub does not list them; `with_token`, whether it was sent one;
`status` and `code` (X-Error-Code) of the answer to the largest file of weights, else to
config.json, or `why` there is none; `location`, the address to
which the hub sends for it, and `location_why` where that is not reached; `cas`, where xet would
fetch it, and `cas_why`. Each answer has three seconds, names and addresses that do not answer
included.

It asks the hub at VLLM_DOCTOR_HUB with the token in HF_TOKEN, if there is one. In a child, which
ends in time whatever a hub does. The token goes to the hub itself alone, never where it redirects
to, and beyond this machine by https alone; certificates are verified. A config.json is asked for by
https alone: it decides what is said of the model.
"""

import http.client
import ipaddress
import json
import os
import queue
import re
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from email.message import Message
from typing import Any, Callable, Dict, Optional, Tuple, TypeVar, cast
from urllib.parse import quote, urljoin, urlsplit
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
        if not is_secret(newurl) and origin(newurl) != origin(HUB):
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
    if TOKEN and is_secret(HUB):
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


def answer() -> Dict[str, Any]:
    if not is_secret(HUB) or "@" in urlsplit(HUB).netloc:
        raise Refused("it is not an https address without a user's name")
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
HOME = "https://huggingface.co/"
INVALID = "Invalid credentials in Authorization header"


def begun(function: Callable[..., T], *words: Any) -> Callable[[], T]:
    """What waits for what it returns or raises, or raises TimeoutError: a timeout of a socket
    bounds neither the search for a name, nor the many addresses of one, nor an answer that comes
    byte by byte."""
    done: "queue.SimpleQueue[Tuple[Optional[T], Optional[BaseException]]]" = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((function(*words), None))
        except Exception as error:
            done.put((None, error))

    def end() -> T:
        try:
            made, error = done.get(timeout=max(0, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return cast("T", made)

    until = time.monotonic() + REACH_SECONDS
    threading.Thread(target=run, daemon=True).start()
    return end


def within(function: Callable[..., T], *words: Any) -> T:
    return begun(function, *words)()


def proxy(url: str) -> Dict[str, str]:
    """As the hub's clients choose one; but what is said on this machine stays here."""
    parts = urlsplit(url)
    found = urllib.request.getproxies_environment()
    chosen = found.get(parts.scheme) or found.get("all")
    if not chosen or (parts.scheme == "http" and is_secret(url)):
        return {}
    if urllib.request.proxy_bypass(parts.netloc):
        return {}
    if chosen.lower().startswith("socks"):
        raise Refused("the proxy speaks SOCKS, which the doctor does not")
    return {parts.scheme: chosen}


def said(url: str, method: str, most: int = 0) -> Tuple[int, Message, bytes]:
    """Status, headers and body of whatever answer comes. Raises OSError and what http.client
    raises where none comes, ValueError, Refused."""
    if urlsplit(url).scheme.lower() not in ("http", "https"):
        raise ValueError("it does not begin with http:// or https://")
    request = Request(url, method=method, headers={"User-Agent": "vllm-doctor"})  # noqa: S310
    if origin(url) == origin(HUB):
        authorize(request)
    asking = urllib.request.build_opener(urllib.request.ProxyHandler(proxy(url)), Stays())
    try:
        with asking.open(request, timeout=REACH_SECONDS) as made:
            return made.status, made.headers, made.read(most)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, b""


def why_not(url: str) -> Optional[str]:
    """Why nothing is reached there; None where anything answers."""
    try:
        within(said, url, "HEAD")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return reason(error)
    return None


# As vLLM chooses: of the first kind of which there is a file, all are fetched, and perhaps more.
LEFT_BEHIND = "training_args|optimizer|scheduler|scaler|trainer_state"
KINDS = (
    r"(?!consolidated).*\.safetensors",
    r"consolidated.*\.safetensors",
    r"(?!{}).*\.bin".format(LEFT_BEHIND),
    r"(?!{}).*\.pt".format(LEFT_BEHIND),
)


def listed() -> Dict[str, int]:
    """The files of weights and their bytes, by the hub's list; none where no answer can be read in
    time."""
    repository, revision = sys.argv[1:3]
    place = "{}/api/models/{}/tree/{}".format(HUB, quote(repository), quote(revision, safe=""))
    try:
        _, _, body = within(said, place, "GET", LIST_MOST)
        rows = [row for row in json.loads(body) if row.get("type") == "file"]
        sizes = {str(row["path"]): int(row["size"]) for row in rows if row["size"] >= 0}
    except (OSError, http.client.HTTPException):
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
    kinds = ({name: sizes[name] for name in sizes if re.fullmatch(of, name)} for of in KINDS)
    return next((found for found in kinds if found), {})


def reach() -> Dict[str, Any]:
    if "@" in urlsplit(HUB).netloc:
        raise Refused("there is a user's name in its address")
    repository, revision = sys.argv[1:3]
    root = "{}/{}/resolve/{}/".format(HUB, quote(repository), quote(revision, safe=""))
    small = begun(said, root + "config.json", "HEAD")
    files = listed()
    name = max(files, key=lambda name: files[name]) if files else "config.json"
    place = root + quote(name)
    status, headers, _ = within(said, place, "HEAD") if files else small()
    made: Dict[str, Any] = {"bytes": sum(files.values()) or None, "status": status}
    made["with_token"] = bool(TOKEN) and is_secret(HUB)
    made["code"] = headers.get("X-Error-Code")
    if status == 401 and headers.get("X-Error-Message") == INVALID:
        made["code"] = "InvalidToken"
    location = urljoin(place, headers.get("Location") or "")
    if headers.get("Location") and 300 <= status < 400:
        made["location"] = location.partition("?")[0]
        made["location_why"] = why_not(location)
    route = xet_route(headers)
    if route:
        made.update(xet(route))
    return made


def xet_route(headers: Message) -> Optional[str]:
    """Where the client asks for the CAS: of the hub that it was given, even where a mirror passes
    on another's (parse_xet_file_data_from_response, huggingface_hub 0.36.2 and 2.4.0)."""
    if not headers.get("X-Xet-Hash"):
        return None
    links = ", ".join(headers.get_all("Link", []))
    link = re.search(r'<([^<>]*)>\s*;\s*rel="?xet-auth\b', links)
    route = link[1] if link else headers.get("X-Xet-Refresh-Route")
    return HUB + route[len(HOME) - 1 :] if route and route.startswith(HOME) else route


def xet(route: str) -> Dict[str, Any]:
    """Where the client is sent for the chunks of the file, as it asks for that itself."""
    try:
        _, headers, _ = within(said, route, "GET")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return {"cas": route.partition("?")[0], "cas_why": reason(error)}
    cas = headers.get("X-Xet-Cas-Url")
    return {"cas": cas, "cas_why": why_not(cas)} if cas else {}


def reason(error: Exception) -> str:
    """Raises Refused where the certificate fails here, and need not for the hub's client."""
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return "timed out"
    if isinstance(inner, ssl.SSLCertVerificationError) and not knows_authorities():
        raise Refused("the hub's client knows other certificate authorities than the doctor")
    kinds = ((socket.gaierror, "DNS: "), (ssl.SSLError, "TLS: "))
    kind = next((kind for of, kind in kinds if isinstance(inner, of)), "")
    return (kind + str(inner))[:200] or type(inner).__name__


def knows_authorities() -> bool:
    """Whether those of this Python are there, and the client was not given its own (requests)."""
    own = any(os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))
    return not own and any(ssl.get_default_verify_paths()[:2])


def shown() -> Dict[str, Any]:
    try:
        return reach() if sys.argv[3:] == ["reach"] else answer()
    except urllib.error.HTTPError as error:
        return {"status": error.code}
    except (OSError, ValueError, http.client.HTTPException) as error:
        return {"why": reason(error)}


def main() -> None:
    try:
        made = shown()
    except Refused as error:
        made = {"why": str(error), "refused": True}
    print(json.dumps(made, separators=(",", ":")))


main()
