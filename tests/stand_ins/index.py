"""A package index on loopback over folders of wheels, that can go wrong in every way they do.

It speaks the simple API as HTML (PEP 503) and as JSON with sizes and hashes (PEP 691, 700), and
gives each wheel's metadata as a file of its own (PEP 658). A large wheel is read in pieces, so a
folder of real ones can be served as well.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import html
import json
import re
import shutil
import socket
import struct
import threading
import zipfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

_JSON = "application/vnd.pypi.simple.v1+json"


@dataclass
class Faults:
    """What goes wrong. All of it may be changed while the index is served.

    `delay`: seconds before every answer. `silent`: connections are taken and nothing is ever said.
    `status`: the answer to everything, such as 404 or 500. `without`: what it does not have, such
    as "transformers" or "transformers==5.23.0". `plain`: HTML alone, without sizes and metadata
    files, as many mirrors give it. `wrong_hash`: of no file is the announced hash the true one.
    `redirect`: where files are said to be, such as "http://192.0.2.1"; their path is appended.
    `credentials`: (user, password) without which the answer is 401.

    `body`: what comes of a wheel. "cut": its true length is announced, and the connection ends in
    the middle. "reset": the same, and it ends with a reset. "short": half of it, and half of its
    length announced, as a proxy keeps a download that broke off.
    """

    delay: float = 0.0
    silent: bool = False
    status: int | None = None
    without: Collection[str] = ()
    plain: bool = False
    wrong_hash: bool = False
    redirect: str | None = None
    credentials: tuple[str, str] | None = None
    body: Literal["whole", "cut", "reset", "short"] = "whole"


@dataclass(frozen=True)
class Asked:
    """One request: `authorized` says whether it brought an Authorization header."""

    method: str
    path: str
    authorized: bool
    agent: str


@dataclass
class Index:
    """A running index. `asked`: what it was asked so far, in order; a silent one notes it too."""

    folders: tuple[Path, ...]
    host: str
    port: int
    faults: Faults
    asked: list[Asked] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """The index as pip and uv are told it."""
        return f"http://{self.host}:{self.port}/simple"

    def url_with(self, user: str, password: str) -> str:
        """The same, with credentials in it."""
        who = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"http://{who}@{self.host}:{self.port}/simple"

    @property
    def paths(self) -> list[str]:
        return [one.path for one in self.asked]

    @property
    def fetched(self) -> set[str]:
        """The names of the wheels that were asked for, their metadata alone left out."""
        wanted = (path.rpartition("/")[2] for path in self.paths)
        return {unquote(name) for name in wanted if name.endswith(".whl")}

    def wheels(self) -> list[Path]:
        """What it has, as they lie there now."""
        found = (path for folder in self.folders for path in sorted(folder.glob("*.whl")))
        return [path for path in found if not {*_names(path)} & {*self.faults.without}]


@contextlib.contextmanager
def serve(*folders: Path, faults: Faults | None = None, host: str = "127.0.0.1") -> Iterator[Index]:
    """Serves the wheels of `folders`, which may grow meanwhile, until the context ends."""
    server = _Server((host, 0), _Handler)
    index = Index(folders, host, server.server_address[1], faults or Faults())
    server.index = index
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.02), daemon=True)
    thread.start()
    try:
        yield index
    finally:
        index.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """The URL of an index at a port that refuses every connection, and is nobody else's."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/simple"


def outside_address() -> str | None:
    """An address of this machine that is not loopback; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, contextlib.suppress(OSError):
        asked.connect(("192.0.2.1", 9))  # sends nothing: it only makes the kernel choose a route
        address = str(asked.getsockname()[0])
        return None if address.startswith("127.") else address
    return None


def _names(wheel: Path) -> tuple[str, str]:
    """A wheel's normalised name, and the same with its version."""
    name, version = wheel.name.split("-")[:2]
    name = _normalised(name)
    return name, f"{name}=={version}"


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class _About:
    """What an index says of a wheel."""

    size: int
    sha256: str
    metadata: bytes
    requires_python: str


def _about(wheel: Path) -> _About:
    stat = wheel.stat()
    return _read(wheel, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _read(wheel: Path, size: int, mtime: int) -> _About:
    with wheel.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    with zipfile.ZipFile(wheel) as archive:
        wanted = next(
            n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)
        )
        metadata = archive.read(wanted)
    python = re.search(rb"(?m)^Requires-Python: *(.+?)\r?$", metadata)
    return _About(size, digest.hexdigest(), metadata, python[1].decode() if python else "")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    index: Index

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news: many of these faults have it do so."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's ACK of its head
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """What was asked is kept in `asked`."""

    def do_GET(self) -> None:
        index = self.server.index
        faults = index.faults
        given = self.headers.get("Authorization")
        agent = self.headers.get("User-Agent", "")
        index.asked.append(Asked(self.command, self.path, given is not None, agent))
        if index.ended.wait(None if faults.silent else faults.delay):
            self.close_connection = True
            return
        if faults.credentials and given != _basic(*faults.credentials):
            self._say(b"", status=401, headers=[("WWW-Authenticate", 'Basic realm="stand-in"')])
        elif faults.status is not None:
            self._say(HTTPStatus(faults.status).phrase.encode(), status=faults.status)
        else:
            self._answer(unquote(urlsplit(self.path).path), index, faults)

    do_HEAD = do_GET

    def _answer(self, path: str, index: Index, faults: Faults) -> None:
        kind, _, name = path.strip("/").partition("/")
        if kind == "simple" and name:
            wheels = [w for w in index.wheels() if _names(w)[0] == _normalised(name)]
            if wheels:
                self._page(name, wheels, faults)
                return
        elif kind == "files":
            wheel = name.removesuffix(".metadata")
            found = next((w for w in index.wheels() if w.name == wheel), None)
            if found and name != wheel and not faults.plain:
                self._say(_about(found).metadata)
                return
            if found and name == wheel:
                self._file(found, faults)
                return
        self._say(b"Not Found", status=404)

    def _page(self, name: str, wheels: Iterable[Path], faults: Faults) -> None:
        rows = [(wheel, _about(wheel)) for wheel in wheels]
        if not faults.plain and _JSON in self.headers.get("Accept", ""):
            files = [_row(wheel, about, faults) for wheel, about in rows]
            versions = sorted({wheel.name.split("-")[1] for wheel, _ in rows})
            page = {
                "meta": {"api-version": "1.1"},
                "name": _normalised(name),
                "versions": versions,
                "files": files,
            }
            self._say(json.dumps(page).encode(), _JSON)
            return
        anchors = [_anchor(wheel, about, faults) for wheel, about in rows]
        text = "\n".join(["<!DOCTYPE html><html><body>", *anchors, "</body></html>"])
        self._say(text.encode(), "text/html; charset=utf-8")

    def _file(self, wheel: Path, faults: Faults) -> None:
        if faults.redirect:
            where = f"{faults.redirect.rstrip('/')}{self.path}"
            self._say(b"", status=302, headers=[("Location", where)])
            return
        size = wheel.stat().st_size
        sent = size if faults.body == "whole" else size // 2
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(sent if faults.body == "short" else size))
        self.end_headers()
        if self.command == "HEAD":
            return
        with wheel.open("rb") as file:
            if sent == size:
                shutil.copyfileobj(file, self.wfile)
            else:
                self.wfile.write(file.read(sent))
        if faults.body == "cut":
            self.close_connection = True
        elif faults.body == "reset":
            self._reset()

    def _reset(self) -> None:
        """Ends the connection with RST: what was sent and not yet read is lost as well."""
        self.close_connection = True
        now = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        self.rfile.close()
        self.connection.close()

    def _say(
        self,
        body: bytes,
        kind: str = "text/plain",
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _announced(about: _About, faults: Faults) -> str:
    return about.sha256[::-1] if faults.wrong_hash else about.sha256


def _row(wheel: Path, about: _About, faults: Faults) -> dict[str, object]:
    return {
        "filename": wheel.name,
        "url": f"../../files/{quote(wheel.name)}",
        "hashes": {"sha256": _announced(about, faults)},
        "requires-python": about.requires_python,
        "size": about.size,
        "core-metadata": {"sha256": hashlib.sha256(about.metadata).hexdigest()},
        "yanked": False,
    }


def _anchor(wheel: Path, about: _About, faults: Faults) -> str:
    url = f"../../files/{quote(wheel.name)}#sha256={_announced(about, faults)}"
    more = "" if faults.plain else ' data-core-metadata="true"'
    if about.requires_python:
        more += f' data-requires-python="{html.escape(about.requires_python)}"'
    return f'<a href="{url}"{more}>{wheel.name}</a><br>'
