"""Hugging Face's hub and its mirrors, fetched from by the target's own huggingface_hub.

Read in huggingface_hub 0.36.2 and 2.4.0: file_download.py, _snapshot_download.py, _tree_cache.py,
utils/_auth.py, utils/_shared_blobs.py, constants.py.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath
from stat import S_ISLNK
from typing import Any

from doctor.codec import CodecError, parse_json
from doctor.consumers import hub
from doctor.consumers.checkpoint import shards_of_index
from doctor.download.origin import Client, DownloadError, ListedFile, Listing, Part
from doctor.exits import FINDINGS, UNKNOWN
from doctor.model import Text, os_reason, printable
from doctor.probes.environment import HUB_SWITCH, HUB_TOKENS, NETRC, LaunchEnv
from doctor.target import OWN, Target

_SECONDS = 90  # for the list; a hub is asked twice, with 30 and 10 seconds for each answer
_FILES_MOST = 100_000
_LISTS_MOST = 4 * _FILES_MOST
_SIZE_MOST = 1 << 50
_INDEX_MOST = 64 << 20
_SAFETENSORS = ".safetensors"
_FOREIGN = (".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".tflite")
_PICKLED = (".bin", ".pt", ".pth")
_WEIGHTS = (_SAFETENSORS, *_PICKLED, *_FOREIGN)
_FOREIGN_FOLDERS = ("original", "openvino", "onnx")
_BY_NAME = frozenset(("mask_embedding.pt",))
"""What a class of vLLM asks for by its name, whatever lies beside it (qwen3_dflash.py)."""
_PART = re.compile(r"([0-9a-f]{64}|[0-9a-f]{40})(\.[0-9a-f]{8})?\.incomplete")
_TOUCHED = re.compile(r"tmp_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""An empty file by which the client learns the umask, for a moment."""
_SUM = re.compile(r"[0-9a-f]{64}")
_OBJECT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class HubOrigin:
    """A model of the hub. `python`: the interpreter whose huggingface_hub fetches; `cache`: into
    which; `plain`: by HTTP alone, without xet."""

    target: Target
    env: LaunchEnv
    python: Path
    repository: str
    revision: str
    cache: Path
    plain: bool = False

    @property
    def endpoint(self) -> str:
        return hub.endpoint(self.env.vars)

    @property
    def token_sent(self) -> bool:
        """Also one that `hf auth login` has kept."""
        if hub.token_withheld(self.env.vars):
            return False
        kept = self.target.stat(hub.token_file(self.env.vars)) is not None
        return kept or any(self.env.get(name) for name in HUB_TOKENS if name != "HF_TOKEN_PATH")

    @property
    def folder(self) -> Path:
        return hub.folder(self.cache, self.repository)

    @property
    def lock(self) -> Path:
        return self.cache / ".locks" / self.folder.name / "vllm-doctor.lock"

    # What there is.

    def listing(self) -> Listing:
        script = (str(self.python), "-I", "-B", OWN + "download/_hub_listing.py")
        words = (*script, self.repository, self.revision)
        answer = answer_of(self.target, words, self._environment())
        if "files" not in answer:
            raise DownloadError(self._refusal(answer), UNKNOWN)
        files = tuple(listed_files(answer["files"], self._odd))
        commit = answer.get("commit")
        if not isinstance(commit, str) or not _OBJECT.fullmatch(commit):
            raise self._odd(Text("commit {commit}", commit=printable(str(commit)[:80])))
        resumes = answer.get("resumes") is True
        return loaded_files(Listing(self.repository, self.revision, commit, files, resumes))

    def known(self) -> Listing:
        commit = self._commit()
        folder = self.folder / "snapshots" / commit
        listed = self._tree(commit)
        if listed is None:
            listed = tuple(self._by_names(folder))
            self._must_seem_whole(folder, listed)
        listing = loaded_files(Listing(self.repository, self.revision, commit, listed))
        if not listing.files:
            raise DownloadError(Text("{folder} has no files", folder=folder), UNKNOWN)
        for file in listing.files:
            if not file.sha256 and not file.blob and self.target.stat(folder / file.path):
                raise DownloadError(
                    Text(
                        "no hash of {path} is kept on this disk: leave out --verify-only",
                        path=folder / file.path,
                    ),
                    UNKNOWN,
                )
        return listing

    def place(self, listing: Listing, file: ListedFile) -> Path:
        return self.folder / "snapshots" / listing.commit / file.path

    def named(self, listing: Listing) -> bool:
        """Whether the cache leads from the revision to this commit: without the network, vLLM finds
        the files by that alone."""
        if self.revision == listing.commit:
            return True
        ref = self.target.read(self.folder / "refs" / self.revision, 256)
        return ref is not None and ref.decode("ascii", "replace") == listing.commit

    def parts(self, listing: Listing) -> Sequence[Part]:
        paths = {file.sha256 or file.blob: file.path for file in listing.files}
        blobs = self.folder / "blobs"
        made = []
        for name in self.target.listdir(blobs) or ():
            found = _PART.fullmatch(name)
            stat = self.target.stat(blobs / name) if found or _TOUCHED.fullmatch(name) else None
            if stat is None or stat.kind != "file" or (not found and stat.size):
                continue
            kept = listing.resumes and found is not None and not found[2]
            path = paths.get(found[1], "") if found else ""
            made.append(Part(blobs / name, path, stat.size, kept))
        return made

    def live(self, part: Part) -> bool:
        """Whether a client is at work on the part: it then holds the lock of the file."""
        name = part.path.name.partition(".")[0]
        return is_locked(self.lock.with_name(f"{name}.lock"))

    def discard(self, listing: Listing, file: ListedFile) -> None:
        remove_below(self.cache, self.place(listing, file))

    # Who fetches it.

    def client(self, listing: Listing, files: Sequence[ListedFile], workers: int) -> Client:
        words = (str(self.python), "-I", "-B", "-m", "huggingface_hub.cli.hf", "download")
        # Of several names the client makes patterns (fnmatch), of one it does not.
        paths = (glob.escape(f.path) if len(files) > 1 else f.path for f in files)
        options = ("--revision", self.revision, "--max-workers", str(workers))
        cache = ("--cache-dir", str(self.cache))
        return Client(
            (*words, *options, *cache, "--", self.repository, *paths), self._environment()
        )

    def plainer(self) -> HubOrigin | None:
        return None if self.plain else dataclasses.replace(self, plain=True)

    def _environment(self) -> Mapping[str, str]:
        """The server's, as the guide has it, and nothing that is said of this machine beyond what
        fetching a file needs."""
        made = {**self.env.vars, "HF_XET_HIGH_PERFORMANCE": "1"}
        made |= {"LC_ALL": "C", "NO_COLOR": "1"}
        # Before 1.0 it wants a package that mostly is not there, and goes on with no part.
        made.pop("HF_HUB_ENABLE_HF_TRANSFER", None)
        for name in ("PROGRESS_BARS", "TELEMETRY", "UPDATE_CHECK"):
            made[f"HF_HUB_DISABLE_{name}"] = "1"
        if self.plain:
            made["HF_HUB_DISABLE_XET"] = "1"
        if hub.token_withheld(made):
            for name in HUB_TOKENS:
                made.pop(name, None)
            made[HUB_SWITCH] = "1"
            made[NETRC] = os.devnull
        return made

    # What is said is checked.

    @property
    def _odd(self) -> Callable[[Text], DownloadError]:
        return functools.partial(odd_listing, self.endpoint, self.repository)

    def _refusal(self, answer: Mapping[str, Any]) -> Text:
        refused, status, said = answer.get("refused"), answer.get("status"), answer.get("why")
        why = f"HTTP {status}" if isinstance(status, int) else printable(str(said))
        withheld = hub.token_withheld(self._environment()) and self.env.hub is not None
        if refused == "no-client":
            return Text(
                "{python} has no huggingface_hub to download with: install vLLM, or it, first",
                python=self.python,
            )
        if refused == "offline":
            return Text("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it, or --verify-only")
        if refused == "gated" and withheld:
            return Text(
                "{name} is gated, and the profile's {endpoint} gets no token; set the hub yourself:"
                " HF_ENDPOINT=https://huggingface.co",
                endpoint=self.endpoint,
                name=self.repository,
            )
        if refused == "gated":
            return Text(
                "{name} is gated: accept its terms at {endpoint}/{name}, and set HF_TOKEN to a "
                "token of that account",
                endpoint=self.endpoint,
                name=self.repository,
            )
        if refused == "not-found" or status == 401:
            return Text(
                "{endpoint} has no {name}, or it is private, or the token is not valid",
                endpoint=self.endpoint,
                name=self.repository,
            )
        if refused == "no-revision":
            return Text(
                "{endpoint} has no revision {revision} of {name}",
                endpoint=self.endpoint,
                name=self.repository,
                revision=self.revision,
            )
        if refused == "no-commit":
            return Text(
                "{endpoint} does not say of which commit a file is (X-Repo-Commit), and "
                "huggingface_hub takes none then; use another mirror",
                endpoint=self.endpoint,
            )
        if status == 429:
            return Text(
                "{endpoint} is asked too often from here (HTTP 429): wait some minutes, or use a "
                "token",
                endpoint=self.endpoint,
            )
        return Text(
            "{endpoint} does not list {name}: {why}",
            endpoint=self.endpoint,
            name=self.repository,
            why=why,
        )

    # What lies on this disk.

    def _commit(self) -> str:
        if _OBJECT.fullmatch(self.revision):
            return self.revision
        place = hub.snapshot(self.target, self.cache, self.repository, self.revision)
        if place is None or not _OBJECT.fullmatch(place.name):
            why = Text(
                "{folder} has no {revision}: it is not downloaded",
                folder=self.folder,
                revision=self.revision,
            )
            raise DownloadError(why, UNKNOWN)
        return place.name

    def _tree(self, commit: str) -> tuple[ListedFile, ...] | None:
        """What huggingface_hub 2 has kept of the hub's list; None where that says nothing."""
        data = self.target.read(self.folder / "trees" / f"{commit}.json", _INDEX_MOST)
        try:
            said = parse_json(data or b"", _LISTS_MOST)
        except CodecError:
            return None
        files = said.get("files") if isinstance(said, dict) else None
        if not isinstance(files, dict) or not all(isinstance(r, dict) for r in files.values()):
            return None
        rows = [[p, r.get("size"), r.get("lfs_sha256"), r.get("blob_id")] for p, r in files.items()]
        try:
            return tuple(listed_files(rows, self._odd))
        except DownloadError:
            return None

    def _by_names(self, folder: Path) -> Iterator[ListedFile]:
        """The files of the snapshot: a blob's name is its hash. Its size is not kept, and is taken
        as it is; shards that the index names, and that are not there, are listed with no hash."""
        there = set()
        for path in self._files(folder):
            stat = self.target.stat(folder / path)
            name = self.target.realpath(folder / path).name
            there.add(path)
            size = stat.size if stat else 0
            yield ListedFile(path, size, _hash(_SUM, name), _hash(_OBJECT, name))
        for shard in sorted(shards_of_index(self.target, folder) - there):
            yield ListedFile(shard, 0)

    def _must_seem_whole(self, folder: Path, listed: Sequence[ListedFile]) -> None:
        """Raises where a file is certain to be missing whose name is not known."""
        parts = self.parts(Listing(self.repository, self.revision, folder.name, tuple(listed)))
        part = next((p for p in parts if not p.listed and _PART.fullmatch(p.path.name)), None)
        if not any(file.path.endswith(_WEIGHTS) for file in listed):
            why = Text("{folder} has no weights", folder=folder)
        elif part is not None:
            why = Text("{path} is a part of a file whose name is not kept", path=part.path)
        else:
            return
        raise DownloadError(Text("{why}: leave out --verify-only", why=why), UNKNOWN)

    def _files(self, folder: Path, below: str = "", depth: int = 0) -> Iterator[str]:
        for name in self.target.listdir(folder / below) or ():
            path = f"{below}/{name}" if below else name
            # By its parent: a link to nothing is a file that lacks its blob.
            stat = self.target.stat(folder / path)
            if stat is not None and stat.kind == "dir" and depth < 4:
                yield from self._files(folder, path, depth + 1)
            elif stat is None or stat.kind == "file":
                yield path


def answer_of(target: Target, words: Sequence[str], env: Mapping[str, str]) -> Mapping[str, Any]:
    """What a script prints that lists a repository; `why` alone where that is no answer."""
    ran = target.run(*words, timeout=_SECONDS, env=env)
    answer: Any = None
    if ran.ok:
        try:
            answer = parse_json(ran.out, _LISTS_MOST)
        except CodecError:
            answer = {"why": "its list is no JSON, or too long"}
    return answer if isinstance(answer, dict) else {"why": ran.failure or "no answer"}


def odd_listing(endpoint: str, repository: str, what: Text) -> DownloadError:
    """Why a list is not believed."""
    said = Text("{endpoint} lists {what} of {name}", endpoint=endpoint, name=repository, what=what)
    return DownloadError(said, UNKNOWN)


def listed_files(rows: Any, odd: Callable[[Text], DownloadError]) -> Iterator[ListedFile]:
    """Of rows of a path, a size, a SHA-256 and a git id. Raises what `odd` makes of one that no hub
    of good faith would list."""
    if not isinstance(rows, list) or not 0 < len(rows) <= _FILES_MOST:
        raise odd(Text("no files, or more than {most}", most=_FILES_MOST))
    for row in rows:
        path, size, sha256, blob = row if isinstance(row, list) and len(row) == 4 else [""] * 4
        if not isinstance(path, str) or not within(path):
            raise odd(Text("the file {path}", path=printable(str(path)[:80])))
        if type(size) is not int or not 0 <= size < _SIZE_MOST:
            raise odd(Text("the size {size}", size=printable(str(size)[:80])))
        made = ListedFile(path, size, _hash(_SUM, sha256), _hash(_OBJECT, blob))
        if not made.sha256 and not made.blob:
            raise odd(Text("no hash of {path}", path=path))
        yield made


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock (flock), as the clients of both hubs do of a file that they
    fetch."""
    try:
        # To read: of a cache that several share, the lock may be another's.
        lock = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def remove_below(folder: Path, path: Path) -> None:
    """Removes the file, and each link on the way to it. Raises DownloadError where one of them lies
    outside the folder."""
    inside = os.path.realpath(folder)
    for _ in range(4):  # the link of the snapshot, the blob, and where that is shared
        try:
            link = _removed(path, inside)
        except FileNotFoundError:
            return
        except OSError as error:
            why = Text("{path} cannot be removed: {why}", path=path, why=os_reason(error))
            raise DownloadError(why, FINDINGS) from None
        if link is None:
            return
        path = path.parent / link


def _removed(path: Path, inside: str) -> str | None:
    """Removes it, and returns to where it led, if it was a link. The folder in which it lies is
    held open meanwhile: one that is exchanged for a link, once it was looked at, leads nowhere."""
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        where = os.readlink(f"/proc/self/fd/{parent}")  # noqa: PTH115 - of a descriptor
        if os.path.commonpath((where, inside)) != inside:
            why = Text("{path} is wrong, and lies outside {cache}", path=path, cache=inside)
            raise DownloadError(why, FINDINGS)
        found = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
        link = os.readlink(path.name, dir_fd=parent) if S_ISLNK(found.st_mode) else None
        os.unlink(path.name, dir_fd=parent)
        return link
    finally:
        os.close(parent)


def within(path: str) -> bool:
    """Whether it is the path of a file below a folder, and harmless to print."""
    if not 0 < len(path) <= 1024 or not path.isprintable():
        return False
    parts = PurePosixPath(path).parts
    return not path.startswith("/") and ".." not in parts and "/".join(parts) == path


def loaded_files(listing: Listing) -> Listing:
    """Without the weights that vLLM passes over where a model has them as safetensors
    (default_loader.py of 0.22.0 and 0.33.0). A folder is a model of its own: of a dense layer of
    sentence-transformers, vLLM takes pytorch_model.bin where that is all there is (adapters.py)."""
    whole = {PurePosixPath(f.path).parent for f in listing.files if f.path.endswith(_SAFETENSORS)}
    if PurePosixPath() not in whole:
        return listing
    left = {f.path for f in listing.files if _is_passed_over(PurePosixPath(f.path), whole)}
    files = tuple(f for f in listing.files if f.path not in left)
    size = sum(f.size for f in listing.files if f.path in left)
    return dataclasses.replace(listing, files=files, left_out=size)


def _is_passed_over(path: PurePosixPath, whole: Set[PurePosixPath]) -> bool:
    """`whole`: the folders that have weights as safetensors."""
    if path.parts[0] in _FOREIGN_FOLDERS or path.suffix in _FOREIGN:
        return True
    return path.suffix in _PICKLED and path.parent in whole and path.name not in _BY_NAME


def _hash(form: re.Pattern[str], said: object) -> str | None:
    return said if isinstance(said, str) and form.fullmatch(said) else None
