"""ModelScope on loopback: the hub of tests.stand_ins.hub, with its faults, by ModelScope's API.

The paths and the form of the answers are those that modelscope_hub 0.5.1 asks for and reads
(_legacy_api.py). Large files are given by way of a CDN, as there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

from tests.stand_ins import hub
from tests.stand_ins.hub import Faults, Hub, Stored

_NO_FILE, _NO_REPOSITORY = 10990101006, 10010205001  # codes of their own


class ModelScopeHandler(hub.HubHandler):
    """Also notes as `path` what was asked of a file that is not large."""

    def _answer(self, path: str, served: Hub) -> None:
        words = path.strip("/").split("/")
        asked = {key: one[0] for key, one in parse_qs(urlsplit(self.path).query).items()}
        if words[:3] != ["api", "v1", "models"] or words[5:6] != ["repo"]:
            self._say_no(_NO_REPOSITORY)
            return
        repository = "/".join(words[3:5])
        found = served.found(repository, asked.get("Revision", ""))
        if found is None:
            self._say_no(_NO_REPOSITORY)
        elif words[6:] == ["files"]:
            self._list(found[1], served.faults)
        else:
            self._give(found[1].get(asked.get("FilePath", "")), served)

    def _list(self, files: dict[str, Stored], faults: Faults) -> None:
        if faults.listing is not None:
            self._say(faults.listing.encode(), "application/json")
            return
        rows = [_row(one, faults) for one in files.values()]
        more = [{"Type": "blob", "Sha256": "a" * 64, **row} for row in faults.more]
        self._json({"Code": 200, "Success": True, "Data": {"Files": [*rows, *more]}})

    def _give(self, one: Stored | None, served: Hub) -> None:
        if one is None:
            self._say_no(_NO_FILE)
        elif one.large:
            base = (served.faults.redirect or served.cdn).rstrip("/")
            self._say(b"", status=302, headers={"Location": f"{base}/cdn/{one.sha256}/{one.path}"})
        else:
            self._body(one, {})

    def _say_no(self, code: int) -> None:
        self._json({"Code": code, "Message": "not found", "Success": False}, 404)


def _row(one: Stored, faults: Faults) -> dict[str, object]:
    size = faults.sizes.get(one.path, one.size)
    name = one.path.rpartition("/")[2]
    return {"Type": "blob", "Path": one.path, "Name": name, "Size": size, "Sha256": one.sha256}


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """As tests.stand_ins.hub.serve does."""
    with hub.serve(handler=ModelScopeHandler) as served:
        yield served
