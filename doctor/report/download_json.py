"""What `download --format json` prints: one object, also where not all of it is here."""

from __future__ import annotations

from typing import Any, get_args

from doctor.download.session import Downloaded
from doctor.download.verify import FileState
from doctor.report.json import INT, TEXT, list_of, object_of

_VERSION = 1


def download_json(made: Downloaded) -> dict[str, Any]:
    """Sizes are bytes; `revision` is the commit, or what was asked for where a hub has none."""
    listing = made.listing
    return {
        "schema_version": _VERSION,
        "model": listing.repository,
        "revision": listing.commit or listing.revision,
        "endpoint": made.endpoint,
        "bytes_total": listing.total,
        "bytes_present": made.present,
        "files": [
            {"path": one.file.path, "bytes": one.file.size, "state": one.state}
            for one in made.files
        ],
        "token_sent": made.token_sent,
    }


def download_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of it."""
    file = object_of(path=TEXT, bytes=INT, state={"enum": list(get_args(FileState))})
    schema = object_of(
        schema_version={"const": _VERSION},
        model=TEXT,
        revision=TEXT,
        endpoint=TEXT,
        bytes_total=INT,
        bytes_present=INT,
        files=list_of(file),
        token_sent={"type": "boolean"},
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
