"""Single files out of the wheels of an index, without downloading the wheels.

For scripts that look at many releases: of a wheel of 300 MB, the table of contents and what is
asked for come over, by HTTP range requests. Asked is the index that uv or pip would ask here.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version
from remotezip import RemoteZip

from doctor.consumers.names import FileSearch
from doctor.repair import index

_TIMEOUT = 60.0  # seconds
_JSON = {"Accept": "application/vnd.pypi.simple.v1+json"}


def index_url(shell: Mapping[str, str]) -> str:
    """The index that uv or pip asks with these variables and pip's configuration."""
    own = index.choose_indexes((), False, None, shell, Path(sys.prefix))[0].url
    return (own or f"{index.PYPI}/simple").rstrip("/")


def versions(distribution: str) -> tuple[Version, ...]:
    """The final releases that have a wheel for x86-64 or for any machine, oldest first."""
    found = _newest_builds(_files(distribution))
    return tuple(sorted(v for v in found if not v.is_prerelease))


@contextmanager
def wheel(distribution: str, version: str) -> Iterator[zipfile.ZipFile]:
    """The wheel of that version, as an archive of which only what is read comes over.

    Raises LookupError where the index has no such wheel, requests' and remotezip's errors where it
    does not answer or gives no ranges of a file.
    """
    found = _newest_builds(_files(distribution)).get(Version(version))
    if found is None:
        raise LookupError(f"the index has no wheel of {distribution} {version} for x86-64")
    with RemoteZip(found, timeout=_TIMEOUT) as archive:
        yield archive


def search_in(archive: zipfile.ZipFile, folder: str) -> FileSearch:
    """`Target.search` over the files of a wheel below `folder`, each read once."""

    @functools.cache
    def data(file: str) -> bytes | None:
        try:
            return archive.read(f"{folder}/{file}")
        except KeyError:
            return None

    def search(file: str, pattern: str) -> tuple[str, ...] | None:
        text = data(file)
        if text is None:
            return None
        return tuple(m.decode("utf-8", "replace") for m in re.findall(pattern.encode(), text))

    return search


def _files(distribution: str) -> list[dict[str, Any]]:
    page = f"{index_url(os.environ)}/{distribution}/"
    answer = requests.get(page, headers=_JSON, timeout=_TIMEOUT)
    answer.raise_for_status()
    files: list[dict[str, Any]] = answer.json()["files"]
    return [{**file, "url": urljoin(page, file["url"])} for file in files]


def _newest_builds(files: Iterable[Mapping[str, Any]]) -> dict[Version, str]:
    """The URL of the wheel of each version: of several builds, the last, as an installer takes."""
    found: dict[Version, tuple[tuple[object, ...], str]] = {}
    for file in files:
        try:
            _, version, build, tags = parse_wheel_filename(file["filename"])
        except InvalidWheelFilename:  # the sources
            continue
        if not any(tag.platform == "any" or tag.platform.endswith("_x86_64") for tag in tags):
            continue
        if version not in found or build > found[version][0]:
            found[version] = (build, file["url"])
    return {version: url for version, (_, url) in found.items()}
