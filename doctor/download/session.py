"""A download from its beginning to its proof: one at a time for a model, and what one has left the
next goes on with."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from doctor.download.fetch import Fetched, bytes_here, fetch
from doctor.download.origin import DownloadError, ListedFile, Listing, Origin
from doctor.download.room import must_have_room
from doctor.download.verify import Proven, verify
from doctor.exits import BUSY, FINDINGS, HEALTHY
from doctor.model import Text, os_refusal
from doctor.numbers import shown_size
from doctor.talk import Talk

_SMALL = 16 << 20  # bytes
_WORKERS_MOST = 8  # the client's own default
_WORKERS_FIRST = 2
_CUT_COSTS = 60.0
"""Seconds: so much of the work may be lost with parts that no later run goes on with."""
_ROUNDS = 3  # the first, and twice what was wrong
_NAMES_MOST = 1000  # in one command: the kernel takes 2 MB of words
_VAIN = 3  # clients in turn that brought nothing


@dataclass(frozen=True)
class Downloaded:
    """What lies here of a model, every file proven. `failed`: why not all of it does."""

    listing: Listing
    endpoint: str
    token_sent: bool
    files: tuple[Proven, ...]
    failed: Text | None = None

    @property
    def complete(self) -> bool:
        return all(one.state == "ok" for one in self.files)

    @property
    def present(self) -> int:
        """Bytes."""
        return sum(one.present for one in self.files)

    @property
    def exit_code(self) -> int:
        return HEALTHY if self.complete else FINDINGS


def verified(origin: Origin, talk: Talk) -> Downloaded:
    """Proves what lies on this disk, without the network; nothing is changed. Raises
    DownloadError."""
    listing = origin.known()
    files = _proven(origin, listing, listing.files, talk)
    return _outcome(listing, origin.endpoint, False, files)


def fetch_all(origin: Origin, talk: Talk, stall: float) -> Downloaded:
    """Fetches what is missing or wrong, and proves it. Raises DownloadError where the hub does not
    say what there is, where there is no room, and where another download is at work."""
    listing = origin.listing()
    with _locked(origin.lock):
        return _Download(origin, listing, talk, stall).run()


def _outcome(
    listing: Listing,
    endpoint: str,
    token_sent: bool,
    files: tuple[Proven, ...],
    failed: Text | None = None,
) -> Downloaded:
    wrong = [one for one in files if one.state != "ok"]
    if wrong and failed is None:
        failed = Text(
            "{count} of {all} files are missing or wrong, such as {path} ({state})",
            count=len(wrong),
            all=len(files),
            path=wrong[0].file.path,
            state=wrong[0].state,
        )
    return Downloaded(listing, endpoint, token_sent, files, failed if wrong else None)


def _proven(
    origin: Origin, listing: Listing, files: Sequence[ListedFile], talk: Talk
) -> tuple[Proven, ...]:
    total, done = sum(file.size for file in files), 0

    def read(more: int) -> None:
        nonlocal done
        done += more
        talk.progress(done, total)

    talk.phase(
        Text("verifying {count} files, {size} ...", count=len(files), size=shown_size(total))
    )
    return verify(origin, listing, files, read)


class _Download:
    def __init__(self, origin: Origin, listing: Listing, talk: Talk, stall: float) -> None:
        self._origin = origin
        self._listing = listing
        self._talk = talk
        self._stall = stall
        self._failed: Text | None = None
        self._vain = 0
        self._workers = _WORKERS_MOST if listing.resumes else _WORKERS_FIRST

    def run(self) -> Downloaded:
        """Raises KeyboardInterrupt with what is kept where it is interrupted."""
        try:
            return self._run()
        except KeyboardInterrupt:
            kept = bytes_here(self._origin, self._listing, self._listing.files)
            said = Text(
                "interrupted; {kept} of {total} are kept, and the same command goes on",
                kept=shown_size(kept),
                total=shown_size(self._listing.total),
            )
            raise KeyboardInterrupt(str(said)) from None

    def _run(self) -> Downloaded:
        listing = self._listing
        self._must_be_alone()
        files = {one.file.path: one for one in self._prove(self._there())}
        for _ in range(_ROUNDS):
            lacking = [f for f in listing.files if not _is_ok(files.get(f.path))]
            if not lacking and self._origin.named(listing):
                break
            try:
                for file in lacking:
                    if file.path in files:
                        self._origin.discard(listing, file)
                self._fetch(lacking or [min(listing.files, key=lambda one: one.size)])
            except DownloadError as error:
                if error.exit_code != FINDINGS:
                    raise
                self._failed = error.text  # what is here is told all the same
            files |= {one.file.path: one for one in self._prove(lacking)}
            if self._failed:
                break
        made = tuple(files.get(f.path, Proven(f, 0, "missing")) for f in listing.files)
        origin = self._origin
        return _outcome(listing, origin.endpoint, origin.token_sent, made, self._failed)

    def _there(self) -> list[ListedFile]:
        return [f for f in self._listing.files if os.path.lexists(self._place(f))]

    def _place(self, file: ListedFile) -> Path:
        return self._origin.place(self._listing, file)

    def _prove(self, files: Sequence[ListedFile]) -> tuple[Proven, ...]:
        return _proven(self._origin, self._listing, files, self._talk) if files else ()

    def _must_be_alone(self) -> None:
        """Also from a client that a person has started."""
        for part in self._origin.parts(self._listing):
            if self._origin.live(part):
                said = Text("another download is at work on {path}", path=part.path)
                raise DownloadError(said, BUSY)

    def _sweep(self) -> None:
        """Takes parts away with which no client goes on, or none can: one that is longer than its
        file is asked to go on behind the end, and refused each time."""
        sizes = {file.path: file.size for file in self._listing.files}
        parts = self._origin.parts(self._listing)
        vain = [p for p in parts if not p.kept or p.size > sizes.get(p.listed, p.size)]
        dead = [part for part in vain if not self._origin.live(part)]
        for part in dead:
            with contextlib.suppress(FileNotFoundError):
                part.path.unlink()
        if dead:
            size = shown_size(sum(part.size for part in dead))
            self._talk.tell(
                Text(
                    "removed {size} of files that were cut off ({count}): the hub's client of this "
                    "environment does not go on with them",
                    size=size,
                    count=len(dead),
                )
            )

    # Fetching.

    def _fetch(self, files: Sequence[ListedFile]) -> None:
        self._sweep()
        kept = {part.listed: part.size for part in self._origin.parts(self._listing)}
        needs = sum(max(0, file.size - kept.get(file.path, 0)) for file in files)
        must_have_room(self._origin.folder, needs, len(files))
        self._talk.phase(
            Text(
                "downloading {count} files, {size}, from {endpoint} ...",
                count=len(files),
                size=shown_size(needs),
                endpoint=self._origin.endpoint,
            )
        )
        waiting = sorted(files, key=lambda file: file.size)
        try:
            while waiting and not self._failed:
                batch = self._batch(waiting)
                self._attempt(batch, files)
                waiting = [f for f in waiting if not self._place(f).is_file()]
        finally:
            self._sweep()

    def _batch(self, waiting: Sequence[ListedFile]) -> Sequence[ListedFile]:
        """The small files, and four large ones for each worker: what is at work when a run is cut
        off is lost with a client that does not go on with it, and so no more are at work at a time
        than a minute brings to their end."""
        small = sum(file.size < _SMALL for file in waiting)
        most = _NAMES_MOST if self._listing.resumes else small + 4 * self._workers
        return waiting[: min(most, _NAMES_MOST)]

    def _attempt(self, batch: Sequence[ListedFile], all_of_it: Sequence[ListedFile]) -> None:
        origin, listing = self._origin, self._listing
        total = sum(file.size for file in all_of_it)

        def here() -> int:
            now = bytes_here(origin, listing, all_of_it)
            self._talk.progress(now, total)
            return now

        before = here()
        ended = fetch(origin.client(listing, batch, self._workers), here, self._stall)
        self._sweep()  # what no client goes on with is nothing gained, and only fills the disk
        # One that ends well may bring nothing that was listed: the branch has moved on since.
        placed = any(self._place(file).is_file() for file in batch)
        self._vain = 0 if here() > before or placed else self._vain + 1
        self._learn(ended, max(file.size for file in batch))

    def _learn(self, ended: Fetched, largest: int) -> None:
        if ended.code == 0 and self._vain < _VAIN:
            enough = ended.gained / max(ended.seconds, 0.1) * _CUT_COSTS >= self._workers * largest
            if not self._listing.resumes:
                wanted = self._workers * 2 if enough else self._workers // 2
                self._workers = max(1, min(_WORKERS_MOST, wanted))
            return
        plainer = self._origin.plainer() if ended.stalled else None
        if plainer is not None:
            self._talk.tell(
                Text(
                    "no byte came for {seconds} s: going on by plain HTTP, without xet",
                    seconds=f"{self._stall:g}",
                )
            )
            self._origin = plainer
            self._vain = 0
        elif self._vain >= _VAIN:
            self._failed = self._gave_up(ended)

    def _gave_up(self, ended: Fetched) -> Text:
        if ended.stalled:
            return Text(
                "{endpoint} answers, and no byte of the files came for {seconds} s, {count} times "
                "in turn: try another mirror (HF_ENDPOINT), or the other hub (--from)",
                endpoint=self._origin.endpoint,
                seconds=f"{self._stall:g}",
                count=_VAIN,
            )
        if ended.code == 0:
            return Text(
                "the hub's client ended well {count} times in turn, and brought nothing of "
                "{revision} as it was listed, which may have moved on: run the same command again",
                count=_VAIN,
                revision=self._listing.revision,
            )
        return Text(
            "the hub's client failed {count} times in turn: {why}",
            count=_VAIN,
            why=ended.said or Text("exit code {code}", code=ended.code),
        )


def _is_ok(proven: Proven | None) -> bool:
    return proven is not None and proven.state == "ok"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Raises DownloadError where another doctor downloads this model. The kernel frees the lock of
    one that died."""
    try:
        handle = _lock(path)
    except OSError as error:
        said = Text("the cache cannot be written: {why}", why=os_refusal(error))
        raise DownloadError(said, FINDINGS) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            said = Text("another vllm-doctor is downloading this model: {path}", path=path)
            raise DownloadError(said, BUSY) from None
        # The one before us may have removed it between the two calls.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)
