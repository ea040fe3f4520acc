"""Where a model's files come from: what a hub lists of it, and which client fetches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from doctor.errors import DoctorError
from doctor.frozen import dataclass


class DownloadError(DoctorError):
    """Why nothing more is fetched; the exit code is one of `download`."""


@dataclass(frozen=True)
class ListedFile:
    """A file as the hub lists it. `path`: within the repository, never out of it; `size`: bytes;
    `sha256`: of a file in LFS; `blob`: the git object id (SHA-1) of any other."""

    path: str
    size: int
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True)
class Listing:
    """The files of a revision that a server needs. `commit`: what the revision is, "" where the hub
    has no commits; `resumes`: the client goes on with what an earlier process of it has left;
    `left_out`: bytes of files that no server loads, such as weights in another format."""

    repository: str
    revision: str
    commit: str
    files: tuple[ListedFile, ...]
    resumes: bool = False
    left_out: int = 0

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files)


@dataclass(frozen=True)
class Part:
    """A file on its way. `listed`: the path of the file of which it is; `kept`: the client goes on
    with it, and does not begin anew and leave it behind."""

    path: Path
    listed: str
    size: int
    kept: bool


@dataclass(frozen=True)
class Client:
    """How the target's client is started."""

    words: tuple[str, ...]
    env: Mapping[str, str]


class Origin(Protocol):
    """A hub, and the target's client for it. What raises raises DownloadError."""

    @property
    def endpoint(self) -> str:
        """The address that is asked."""
        ...

    @property
    def token_sent(self) -> bool:
        """Whether the client has a token that it sends there."""
        ...

    @property
    def lock(self) -> Path:
        """The file that is locked while this model is downloaded."""
        ...

    @property
    def folder(self) -> Path:
        """The folder below which all that is fetched comes to lie; it need not be there yet."""
        ...

    def listing(self) -> Listing:
        """What the hub lists. Raises where it does not say (exit code 3)."""
        ...

    def known(self) -> Listing:
        """The same from what lies on this disk, without the network. Raises where that does not say
        (exit code 3)."""
        ...

    def place(self, listing: Listing, file: ListedFile) -> Path:
        """Where the file lies once it is complete."""
        ...

    def named(self, listing: Listing) -> bool:
        """Whether a server that asks for the revision finds these files on this disk."""
        ...

    def parts(self, listing: Listing) -> Sequence[Part]:
        """The files that are on their way there, of this run or of one that was cut off."""
        ...

    def live(self, part: Part) -> bool:
        """Whether a client is at work on it, ours or another's."""
        ...

    def discard(self, listing: Listing, file: ListedFile) -> None:
        """Takes away what lies there of the file, and what is proven to be wrong, so that it is
        fetched anew."""
        ...

    def client(self, listing: Listing, files: Sequence[ListedFile], workers: int) -> Client:
        """What fetches these files, so many of them at a time."""
        ...

    def plainer(self) -> Origin | None:
        """The same by plain HTTP, for a hub whose other way hangs; None where there is none."""
        ...
