"""Prints what a hub says of a model: JSON with `config` (the values of its config.json, or null),
`bytes` (of its weights, or null) and, where there is no config, `status` (of HTTP) or `why`.

    python _hub.py REPOSITORY REVISION

asks the hub at VLLM_DOCTOR_HUB with the token in HF_TOKEN, if there is one. In a child, which ends
in time whatever a hub does. The token goes to the hub itself alone, never where it redirects to;
beyond this machine only https is spoken, and certificates are verified.
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


def main() -> None:
    try:
        made = answer()
    except urllib.error.HTTPError as error:
        made = {"status": error.code}
    except (OSError, ValueError, http.client.HTTPException, Refused) as error:
        made = {"why": str(getattr(error, "reason", error))[:200] or type(error).__name__}
    print(json.dumps(made, separators=(",", ":")))


main()
