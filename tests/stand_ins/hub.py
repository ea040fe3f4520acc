"""A Hugging Face hub on loopback, that can go wrong in every way that hubs and mirrors do.

It lists repositories (`/api/models/…`) and gives their files (`/NAME/resolve/REVISION/FILE`), the
large ones by way of a CDN path, as the real one does for LFS. In a process of its own it is

    python -m tests.stand_ins.hub NAME=FOLDER [NAME=FOLDER ...] [--log FILE]

which prints its address, then takes a line of JSON on stdin for each new set of `Faults`.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import hashlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import quote, unquote, urlsplit

Content = bytes | Path
LARGE = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack")
_PIECE = 1 << 16


@dataclass
class Faults:
    """What goes wrong. All of it may be changed while the hub is served.

    `status`: the answer to everything of the kind `of`, with `code` as X-Error-Code ("GatedRepo",
    "RepoNotFound", …) and `retry_after` in seconds. `token`: what opens the gate: without it the
    answer is 401 GatedRepo. `silent`: connections are taken and nothing is ever said. `xet`: the
    CAS that files are said to be at, beside their plain way. `without_commit`: no X-Repo-Commit.
    `without_ranges`: Range is not heard. `redirect`: where large files are said to be, such as
    "http://192.0.2.1". `rate`: bytes a second of each file.

    Of a file, by its path: `wrong`: how many times one byte of it is another (-1: always); `stops`:
    after how many bytes of it the connection ends, `stop` says how, and `stop_times` how often
    (-1: always). "close": it ends before the announced length. "reset": the same, with RST. "hole":
    nothing more is sent, and it stays open. "short": only that many bytes are announced.

    Of the listing: `sizes`: of these paths, instead of the true ones; `more`: entries beside the
    true ones, as they would stand in the answer; `crowd`: so many made-up ones; `listing`: the
    whole answer, whatever was asked.
    """

    status: int | None = None
    of: Literal["all", "api", "files"] = "all"
    code: str = ""
    retry_after: int | None = None
    token: str | None = None
    silent: bool = False
    xet: str | None = None
    without_commit: bool = False
    without_ranges: bool = False
    redirect: str | None = None
    rate: int | None = None
    wrong: dict[str, int] = field(default_factory=dict)
    stops: dict[str, int] = field(default_factory=dict)
    stop: Literal["close", "reset", "hole", "short"] = "close"
    stop_times: int = -1
    sizes: dict[str, int] = field(default_factory=dict)
    more: list[dict[str, Any]] = field(default_factory=list)
    crowd: int = 0
    listing: str | None = None


@dataclass(frozen=True)
class Asked:
    """One request: its `headers` with names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def authorized(self) -> bool:
        return "authorization" in self.headers


@dataclass
class Hold:
    """The server stops before byte `at` of a file, says so by `reached`, and goes on only after
    `go_on`: what is between them happens at a known byte, on a machine of any speed."""

    path: str
    at: int
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Stored:
    """A file of a repository."""

    path: str
    content: Content
    size: int
    sha256: str
    blob: str
    large: bool


@dataclass
class Hub:
    """A running hub. `asked`: what it was asked so far, in order; a silent one notes it too."""

    url: str
    faults: Faults
    log: Path | None = None
    asked: list[Asked] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    _commits: dict[tuple[str, str], dict[str, Stored]] = field(default_factory=dict)
    _revisions: dict[tuple[str, str], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def cdn(self) -> str:
        """The same by another name: a client of today follows a redirect within the hub's own host
        when it asks about a file, and loses what the hub said of it."""
        return self.url.replace("127.0.0.1", "localhost")

    def add(self, repository: str, files: Mapping[str, Content], revision: str = "main") -> str:
        """Makes a commit of these files, to which `revision` then leads. Returns its id; the same
        files make the same one."""
        stored = {path: _stored(path, content) for path, content in sorted(files.items())}
        rows = "".join(f"{one.path} {one.sha256}\n" for one in stored.values())
        commit = _sha1(f"{repository}\n{rows}".encode())
        self._commits[repository, commit] = stored
        self._revisions[repository, revision] = commit
        return commit

    def hold(self, path: str, at: int) -> Hold:
        """Stops the next answer that gives byte `at` of the file."""
        one = Hold(path, at)
        self.holds.append(one)
        return one

    def ranges(self, path: str) -> list[str]:
        """What was asked of the content of a file, "" where it was all of it."""
        wanted = {f"/cdn/{name}" for name in self._names(path)}
        return [
            one.headers.get("range", "")
            for one in self.asked
            if one.method == "GET" and one.path in wanted
        ]

    def _names(self, path: str) -> Iterator[str]:
        for files in self._commits.values():
            if path in files:
                yield f"{files[path].sha256}/{quote(path)}"

    def found(self, repository: str, revision: str) -> tuple[str, dict[str, Stored]] | None:
        commit = self._revisions.get((repository, revision), revision)
        files = self._commits.get((repository, commit))
        return None if files is None else (commit, files)

    def has(self, repository: str) -> bool:
        return any(name == repository for name, _ in self._commits)

    def by_sum(self, sha256: str) -> Stored | None:
        everything = (one for files in self._commits.values() for one in files.values())
        return next((one for one in everything if one.sha256 == sha256), None)

    def note(self, one: Asked) -> None:
        with self._lock:
            self.asked.append(one)
            if self.log:
                with self.log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(one)) + "\n")

    def once_less(self, counts: dict[str, int], path: str) -> bool:
        """Whether the fault is still due for this path; it then is due once less."""
        with self._lock:
            left = counts.get(path, 0)
            if left > 0:
                counts[path] = left - 1
            return left != 0

    def stopping(self, path: str) -> int | None:
        """Before which byte of the file this answer ends."""
        with self._lock:
            if self.faults.stop_times == 0 or path not in self.faults.stops:
                return None
            self.faults.stop_times -= 1
            return self.faults.stops[path]

    def held(self, path: str, begin: int, end: int) -> Hold | None:
        with self._lock:
            due = (h for h in self.holds if h.path == path and begin <= h.at < end)
            one = next(due, None)
            if one:
                self.holds.remove(one)
            return one


@contextlib.contextmanager
def serve(
    faults: Faults | None = None,
    log: Path | None = None,
    handler: type[HubHandler] | None = None,
) -> Iterator[Hub]:
    """Serves a hub without repositories, to which `add` adds them, until the context ends."""
    server = _Server(("127.0.0.1", 0), handler or HubHandler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", faults or Faults(), log)
    server.hub = hub
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.02), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        for one in hub.holds:
            one.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _stored(path: str, content: Content) -> Stored:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with _opened(content) as file:
        while piece := file.read(_PIECE):
            sha256.update(piece)
            blob.update(piece)
    large = any(fnmatch.fnmatch(path, pattern) for pattern in LARGE)
    return Stored(path, content, size, sha256.hexdigest(), blob.hexdigest(), large)


def _opened(content: Content) -> BinaryIO:
    if isinstance(content, Path):
        return content.open("rb")
    import io

    return io.BytesIO(content)


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news: many of these faults have it do so."""


class HubHandler(BaseHTTPRequestHandler):
    """Answers as Hugging Face's hub does; another hub's answers are made in `_answer`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's ACK of its head
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """What was asked is kept in `asked`."""

    def do_GET(self) -> None:
        hub = self.server.hub
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.note(Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if hub.faults.silent:
            hub.ended.wait()
            self.close_connection = True
            return
        path = urlsplit(self.path).path
        if path.startswith("/cdn/"):
            self._content(path, hub)
        elif not self._refused("api" if path.startswith("/api/") else "files", hub.faults):
            self._answer(unquote(path), hub)

    do_HEAD = do_POST = do_GET

    def _refused(self, kind: str, faults: Faults) -> bool:
        if faults.token and self.headers.get("Authorization") != f"Bearer {faults.token}":
            self._error(401, "GatedRepo")
            return True
        if faults.status is None or faults.of not in ("all", kind):
            return False
        self._error(faults.status, faults.code)
        return True

    def _error(self, status: int, code: str) -> None:
        wait = self.server.hub.faults.retry_after
        headers = {"X-Error-Code": code} if code else {}
        if wait is not None:
            headers["Retry-After"] = str(wait)
        self._json({"error": code or HTTPStatus(status).phrase}, status, headers)

    def _answer(self, path: str, hub: Hub) -> None:
        words = path.strip("/").split("/")
        if words[:2] == ["api", "models"] and len(words) >= 4:
            repository, rest = "/".join(words[2:4]), words[4:]
        else:
            repository, rest = "/".join(words[:2]), words[2:]
        if not hub.has(repository):
            self._error(401 if path.startswith("/api/") else 404, "RepoNotFound")
            return
        kind, revision, *names = [*rest, *("revision", "main")[len(rest) :]]
        found = hub.found(repository, revision)
        if found is None:
            self._error(404, "RevisionNotFound")
        elif kind == "resolve":
            self._resolved("/".join(names), repository, found)
        elif kind == "xet-read-token":
            self._xet_token(hub.faults)
        else:
            self._listed(kind, repository, found)

    def _listed(self, kind: str, repository: str, found: tuple[str, dict[str, Stored]]) -> None:
        faults, (commit, files) = self.server.hub.faults, found
        if faults.listing is not None:
            self._say(faults.listing.encode(), "application/json")
        elif kind == "revision":
            siblings = [_sibling(one, faults) for one in files.values()]
            siblings += [
                {"rfilename": row["path"], **{k: v for k, v in row.items() if k != "path"}}
                for row in _more(faults)
            ]
            about = {"_id": "1", "id": repository, "modelId": repository, "sha": commit}
            self._json({**about, "private": False, "gated": False, "siblings": siblings})
        else:
            tree = [_entry(one, faults) for one in files.values()]
            rows = [{"type": "file", "oid": "a" * 40, **row} for row in _more(faults)]
            self._json([*tree, *rows])

    def _xet_token(self, faults: Faults) -> None:
        ends = int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": faults.xet or "",
            "X-Xet-Access-Token": "x",
            "X-Xet-Token-Expiration": str(ends),
        }
        self._json({"accessToken": "x", "exp": ends, "casUrl": faults.xet}, headers=headers)

    def _resolved(self, name: str, repository: str, found: tuple[str, dict[str, Stored]]) -> None:
        hub, (commit, files) = self.server.hub, found
        one = files.get(name)
        headers = {} if hub.faults.without_commit else {"X-Repo-Commit": commit}
        if one is None:
            self._json(
                {"error": "Entry not found"}, 404, {**headers, "X-Error-Code": "EntryNotFound"}
            )
            return
        if not one.large:
            headers["ETag"] = f'"{one.blob}"'
            self._body(one, headers)
            return
        headers |= {"X-Linked-Etag": f'"{one.sha256}"', "X-Linked-Size": str(one.size)}
        if hub.faults.xet:
            # As mirrors pass it on: the client asks the mirror for it.
            route = f"https://huggingface.co/api/models/{repository}/xet-read-token/{commit}"
            links = (
                f'<https://cas.invalid/>; rel="xet-reconstruction-info", <{route}>; rel="xet-auth"'
            )
            headers |= {"X-Xet-Hash": one.sha256[::-1], "Link": links}
        base = (hub.faults.redirect or hub.cdn).rstrip("/")
        headers["Location"] = f"{base}/cdn/{one.sha256}/{quote(name)}"
        self._say(b"", status=302, headers=headers)

    def _content(self, path: str, hub: Hub) -> None:
        one = hub.by_sum(path.split("/")[2])
        if one is None:
            self._error(404, "")
        else:
            self._body(one, {})

    def _body(self, one: Stored, headers: Mapping[str, str]) -> None:
        hub = self.server.hub
        begin, end = 0, one.size
        given = None if hub.faults.without_ranges else self.headers.get("Range")
        if given:
            first, _, last = given.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1 if last else one.size, one.size)
            if begin >= one.size:
                self._say(b"", status=416)
                return
            headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{one.size}"}
        get = self.command == "GET"
        stop = hub.stopping(one.path) if get else None
        if stop is not None and hub.faults.stop == "short":
            end, stop = max(begin, min(end, stop)), None
        self.send_response(206 if given else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if get:
            self._send(one, begin, end, stop)

    def _send(self, one: Stored, begin: int, end: int, stop: int | None) -> None:
        hub = self.server.hub
        spoiled = hub.once_less(hub.faults.wrong, one.path)
        with _opened(one.content) as file:
            file.seek(begin)
            at = begin
            while at < end:
                if stop is not None and at >= stop:
                    self._stop(hub)
                    return
                held = hub.held(one.path, at, end)
                limits = [end, at + _PIECE, *([stop] if stop is not None else [])]
                if held and held.at == at:
                    self.wfile.flush()
                    held.reached.set()
                    held.go_on.wait()
                elif held:
                    hub.holds.append(held)
                    limits.append(held.at)
                piece = file.read(min(limits) - at)
                if spoiled:
                    piece, spoiled = bytes([piece[0] ^ 255]) + piece[1:], False
                self.wfile.write(piece)
                at += len(piece)
                if hub.faults.rate and hub.ended.wait(len(piece) / hub.faults.rate):
                    return

    def _stop(self, hub: Hub) -> None:
        self.wfile.flush()
        self.close_connection = True
        if hub.faults.stop == "hole":
            hub.ended.wait()
        elif hub.faults.stop == "reset":
            now = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            self.rfile.close()
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _json(
        self, value: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self._say(json.dumps(value).encode(), "application/json", status, headers)

    def _say(
        self,
        body: bytes,
        kind: str = "text/plain",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _sibling(one: Stored, faults: Faults) -> dict[str, object]:
    """A file as `/api/models/NAME?blobs=true` has it."""
    size = faults.sizes.get(one.path, one.size)
    row: dict[str, object] = {"rfilename": one.path, "size": size, "blobId": one.blob}
    if one.large:
        row["lfs"] = {"sha256": one.sha256, "size": size, "pointerSize": 134}
    return row


def _entry(one: Stored, faults: Faults) -> dict[str, object]:
    """The same as `/tree/` has it."""
    size = faults.sizes.get(one.path, one.size)
    row: dict[str, object] = {"type": "file", "path": one.path, "size": size, "oid": one.blob}
    if one.large:
        row["lfs"] = {"oid": one.sha256, "size": size, "pointerSize": 134}
        if faults.xet:
            row["xetHash"] = one.sha256[::-1]
    return row


def _more(faults: Faults) -> Iterator[dict[str, Any]]:
    yield from faults.more
    for number in range(faults.crowd):
        yield {"path": f"crowd-{number}.json", "size": 1}


def files_of(folder: Path) -> dict[str, Content]:
    """The files of a folder as `add` takes them, read only when they are asked for."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def main(words: list[str]) -> None:
    """Serves folders until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.stand_ins.hub")
    parser.add_argument("repositories", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--log", type=Path, help="a line of JSON for each request")
    given = parser.parse_args(words)
    with serve(log=given.log) as hub:
        for one in given.repositories:
            name, _, folder = one.partition("=")
            hub.add(name, files_of(Path(folder)))
        sys.stdout.write(f"{hub.url}\n")
        sys.stdout.flush()
        for line in sys.stdin:
            hub.faults = Faults(**json.loads(line))


if __name__ == "__main__":
    main(sys.argv[1:])
