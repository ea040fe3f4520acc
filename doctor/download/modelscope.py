"""ModelScope, fetched from by the target's own client, modelscope_hub.

Read in modelscope_hub 0.5.1, of modelscope 1.40.2: _download.py, _legacy_api.py, config.py. A part
is the file's own name with .incomplete; a later run goes on with it by Range, and the client itself
holds what it fetched against the hash.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from doctor.consumers import modelscope
from doctor.download.hub import (
    answer_of,
    is_locked,
    listed_files,
    loaded_files,
    odd_listing,
    remove_below,
    within,
)
from doctor.download.origin import Client, DownloadError, ListedFile, Listing, Part
from doctor.exits import UNKNOWN, USAGE
from doctor.model import Text, printable
from doctor.probes.environment import HUB_TOKENS, LaunchEnv
from doctor.target import OWN, Target

_SCRIPT = "download/_modelscope.py"
_AT_A_TIME = 2000  # files that are named in one command
_PIECE = re.compile(r"(_[0-9]{1,16}_[0-9]{1,16}|\.parallel_tmp)\Z")
"""Behind a file's name: what a client that fetches pieces of it side by side has left."""


@dataclasses.dataclass(frozen=True)
class ModelScopeOrigin:
    """A model of ModelScope. `python`: the interpreter whose client fetches; `cache`: into which;
    `of_profile`: the profile names the endpoint, and nobody else: it then gets no token. Raises
    DownloadError for a revision that is no name of a folder."""

    target: Target
    env: LaunchEnv
    python: Path
    repository: str
    revision: str
    cache: Path
    of_profile: bool = False

    def __post_init__(self) -> None:
        if not within(self.revision):
            said = Text("{revision}: not the name of a revision", revision=printable(self.revision))
            raise DownloadError(said, USAGE)

    @property
    def endpoint(self) -> str:
        return modelscope.modelscope_endpoint(self.env.vars)

    @property
    def token_sent(self) -> bool:
        """Also one that `modelscope login` has kept; never one of Hugging Face."""
        if self.of_profile:
            return False
        said = self.env.get(modelscope.TOKEN)
        if said is not None:
            return bool(said)
        return self.target.stat(modelscope.login(self.env.vars)) is not None

    @functools.cached_property
    def folder(self) -> Path:
        return modelscope.modelscope_folder(self.target, self.cache, self.repository, self.revision)

    @property
    def lock(self) -> Path:
        name = self.repository.replace("/", "--")
        return self.cache / ".lock" / f"{name}.vllm-doctor.lock"

    # What there is.

    def listing(self) -> Listing:
        script = (str(self.python), "-I", "-B", OWN + _SCRIPT, "list")
        words = (*script, self.repository, self.revision)
        answer = answer_of(self.target, words, self._environment())
        if "files" not in answer:
            raise DownloadError(self._refusal(answer), UNKNOWN)
        files = tuple(listed_files(answer["files"], self._odd))
        return loaded_files(Listing(self.repository, self.revision, "", files, resumes=True))

    def known(self) -> Listing:
        """Nothing: the client leaves neither a list nor a hash here."""
        why = Text(
            "ModelScope's client keeps no hashes on this disk: without --verify-only, {endpoint} "
            "is asked for them, and only what is missing or wrong is fetched",
            endpoint=self.endpoint,
        )
        raise DownloadError(why, UNKNOWN)

    def place(self, listing: Listing, file: ListedFile) -> Path:
        return self.folder / file.path

    def named(self, listing: Listing) -> bool:
        """The folder's name is the revision."""
        return True

    def parts(self, listing: Listing) -> Sequence[Part]:
        return tuple(self._parts(listing))

    def _parts(self, listing: Listing) -> Iterator[Part]:
        folder = self.folder
        own = {file.path for file in listing.files}
        for below in sorted({PurePosixPath(path).parent for path in own}):
            for name in self.target.listdir(folder / below) or ():
                path = (below / name).as_posix()
                found = self._part_of(path, own)
                stat = self.target.stat(folder / path) if found else None
                if found and stat is not None and stat.kind == "file":
                    kept = path.endswith(".incomplete")
                    yield Part(folder / path, found, stat.size, kept)

    @staticmethod
    def _part_of(path: str, own: set[str]) -> str | None:
        """The file of which this is a part; what is a file of the model is none."""
        name = path.removesuffix(".incomplete")
        if name == path:
            name = _PIECE.sub("", path)
        return name if path not in own and name in own else None

    def live(self, part: Part) -> bool:
        """Whether a client is at work on the part: it then holds the lock of the file."""
        scope = ("modelscope-hub-download-lock-v2", "file", "model", self.repository, part.listed)
        digest = hashlib.sha256("\0".join(scope).encode()).hexdigest()
        return is_locked(self.cache / ".lock" / f"file_{digest}.lock")

    def discard(self, listing: Listing, file: ListedFile) -> None:
        remove_below(self.cache, self.place(listing, file))

    # Who fetches it.

    def client(self, listing: Listing, files: Sequence[ListedFile], workers: int) -> Client:
        script = str(Path(__file__).parents[1] / _SCRIPT)
        words = (str(self.python), "-I", "-B", script, "fetch", self.repository, self.revision)
        rows = ([file.path, file.size, file.sha256] for file in files[:_AT_A_TIME])
        named = (json.dumps(row) for row in rows)
        return Client((*words, str(self.folder), str(workers), *named), self._environment())

    def plainer(self) -> None:
        return None

    def _environment(self) -> Mapping[str, str]:
        """The server's, and no token that is not ModelScope's. Told what its endpoint is, the
        client does not look for the model at its other site with the token."""
        made = {name: value for name, value in self.env.vars.items() if name not in HUB_TOKENS}
        made |= {
            "LC_ALL": "C",
            "MODELSCOPE_ENDPOINT": self.endpoint,
            "MODELSCOPE_CACHE": str(self.cache),
            "MODELSCOPE_API_MAX_RETRIES": "1",
            "MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "1",  # several would leave pieces
            # Or the client asks whatever address the endpoint names, and tells it the answer.
            "MODELSCOPE_DOWNLOAD_INTRA_CLOUD": "false",
        }
        if self.of_profile:
            made[modelscope.TOKEN] = ""  # what is kept of a login is not read then
            made["NETRC"] = os.devnull
        return made

    # What is said is checked.

    @property
    def _odd(self) -> Callable[[Text], DownloadError]:
        return functools.partial(odd_listing, self.endpoint, self.repository)

    def _refusal(self, answer: Mapping[str, Any]) -> Text:
        refused, status, said = answer.get("refused"), answer.get("status"), answer.get("why")
        if refused == "no-client":
            return Text(
                "{python} has no ModelScope client that can be used: "
                "{python} -m pip install -U modelscope",
                python=self.python,
            )
        if refused == "not-found":
            return Text(
                "{endpoint} has no {name}, or no revision {revision} of it; names there are not "
                "always those of Hugging Face",
                endpoint=self.endpoint,
                name=self.repository,
                revision=self.revision,
            )
        if refused == "denied" and self.of_profile:
            return Text(
                "{endpoint} gives {name} only to who is known, and the profile's endpoint gets no "
                "token; set it yourself: MODELSCOPE_ENDPOINT={endpoint}",
                endpoint=self.endpoint,
                name=self.repository,
            )
        if refused == "denied":
            return Text(
                "{endpoint} gives {name} only to who is known: accept its terms there, and set "
                "MODELSCOPE_API_TOKEN",
                endpoint=self.endpoint,
                name=self.repository,
            )
        return Text(
            "{endpoint} does not list {name}: {why}",
            endpoint=self.endpoint,
            name=self.repository,
            why=printable(said if isinstance(said, str) else f"HTTP {status}"),
        )
