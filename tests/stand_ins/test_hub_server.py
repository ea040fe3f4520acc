"""The hub answers as a real one does, and goes wrong in the ways that it says."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins import hub as hubs
from tests.stand_ins.hub import Faults, Hub

NAME = "zai-org/Tiny"
FILES: dict[str, hubs.Content] = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 400,
}
SIZE = 102400


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hubs.serve() as one:
        one.add(NAME, FILES)
        yield one


def asked(
    hub: Hub, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """An answer: its status, headers (names in lower case) and as much of the body as came."""
    host = hub.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request(method, path.removeprefix(hub.cdn), headers=headers)
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        try:
            return answer.status, names, answer.read()
        except http.client.IncompleteRead as cut:
            return answer.status, names, cut.partial
        except ConnectionResetError:
            return answer.status, names, b""
    finally:
        connection.close()


def value(hub: Hub, path: str) -> Any:
    return json.loads(asked(hub, path)[2])


def content(hub: Hub, **headers: str) -> tuple[int, dict[str, str], bytes]:
    where = asked(hub, f"/{NAME}/resolve/main/model.safetensors", "HEAD")[1]["location"]
    return asked(hub, where, **headers)


def test_a_revision_is_listed_in_each_of_its_ways(hub: Hub) -> None:
    about = value(hub, f"/api/models/{NAME}/revision/main?blobs=true")
    assert (
        about
        == value(hub, f"/api/models/{NAME}")
        == value(hub, f"/api/models/{NAME}/revision/{about['sha']}")
    )
    config, model = about["siblings"]
    assert config == {"rfilename": "config.json", "size": 2, "blobId": config["blobId"]}
    assert (model["size"], len(model["lfs"]["sha256"])) == (SIZE, 64)
    tree = value(hub, f"/api/models/{NAME}/tree/main?recursive=true")
    assert next((row["path"], row["oid"]) for row in tree) == ("config.json", config["blobId"])
    assert tree[1]["lfs"]["oid"] == model["lfs"]["sha256"]
    older = hub.add(NAME, {"config.json": b"[]"}, revision="v1")
    assert value(hub, f"/api/models/{NAME}/revision/v1")["sha"] == older != about["sha"]
    assert asked(hub, f"/api/models/{NAME}/revision/v2")[1]["x-error-code"] == "RevisionNotFound"


def test_files_come_whole_and_in_ranges(hub: Hub) -> None:
    status, headers, body = asked(hub, f"/{NAME}/resolve/main/config.json")
    assert (status, body, len(headers["x-repo-commit"])) == (200, b"{}", 40)
    status, headers, _ = asked(hub, f"/{NAME}/resolve/main/model.safetensors", "HEAD")
    assert (status, headers["x-linked-size"]) == (302, str(SIZE))
    assert content(hub)[2] == FILES["model.safetensors"]
    status, headers, body = content(hub, Range=f"bytes={SIZE - 256}-")
    assert (status, body) == (206, bytes(range(256)))
    assert headers["content-range"] == f"bytes {SIZE - 256}-{SIZE - 1}/{SIZE}"
    assert content(hub, Range="bytes=1-2")[2] == b"\1\2"
    assert hub.ranges("model.safetensors") == ["", f"bytes={SIZE - 256}-", "bytes=1-2"]


@pytest.mark.parametrize(
    ("faults", "got"),
    [
        ({"stops": {"model.safetensors": 1000}}, 1000),
        ({"stops": {"model.safetensors": 1000}, "stop": "short"}, 1000),
        ({"wrong": {"model.safetensors": -1}}, SIZE),
        ({"without_ranges": True}, SIZE),
    ],
)
def test_content_goes_wrong(hub: Hub, faults: dict[str, Any], got: int) -> None:
    hub.faults = Faults(**faults)
    body = content(hub, Range="bytes=0-")[2]
    assert len(body) == got
    right = FILES["model.safetensors"]
    assert isinstance(right, bytes)
    assert body[1:] == right[1:got]
    assert (body[0] != right[0]) == ("wrong" in faults)


def test_a_fault_is_over_after_as_many_times(hub: Hub) -> None:
    hub.faults = Faults(wrong={"model.safetensors": 1})
    assert content(hub)[2] != FILES["model.safetensors"]
    assert content(hub)[2] == FILES["model.safetensors"]
    hub.faults = Faults(stops={"model.safetensors": 9}, stop="reset", stop_times=1)
    assert content(hub)[2] != FILES["model.safetensors"]
    assert content(hub)[2] == FILES["model.safetensors"]


def test_it_stops_at_a_known_byte_until_it_is_told_to_go_on(hub: Hub) -> None:
    one = hub.hold("model.safetensors", 70000)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(content(hub)[2]))
    reader.start()
    assert one.reached.wait(60)
    assert not got
    one.go_on.set()
    reader.join()
    assert got == [FILES["model.safetensors"]]


@pytest.mark.parametrize(
    ("faults", "status", "code"),
    [
        ({"status": 429, "retry_after": 7}, 429, None),
        ({"status": 401, "code": "GatedRepo"}, 401, "GatedRepo"),
        ({"token": "hf_right"}, 401, "GatedRepo"),
        ({"status": 404, "code": "RepoNotFound", "of": "files"}, 200, None),
    ],
)
def test_it_refuses(hub: Hub, faults: dict[str, Any], status: int, code: str | None) -> None:
    hub.faults = Faults(**faults)
    got, headers, _ = asked(hub, f"/api/models/{NAME}")
    assert (got, headers.get("x-error-code")) == (status, code)
    assert headers.get("retry-after") == ("7" if "retry_after" in faults else None)
    assert asked(hub, f"/{NAME}/resolve/main/config.json")[0] == (404 if "of" in faults else status)
    if hub.faults.token:
        assert asked(hub, f"/api/models/{NAME}", Authorization="Bearer hf_right")[0] == 200
        assert [one.authorized for one in hub.asked] == [False, False, True]


def test_a_listing_holds_what_it_is_told_to(hub: Hub) -> None:
    hub.faults = Faults(sizes={"config.json": -1}, more=[{"path": "../x", "size": 3}], crowd=2)
    for path in (f"/api/models/{NAME}", f"/api/models/{NAME}/tree/main"):
        answer = value(hub, path)
        rows = answer if isinstance(answer, list) else answer["siblings"]
        paths = [row.get("path", row.get("rfilename")) for row in rows]
        assert paths[2:] == ["../x", "crowd-0.json", "crowd-1.json"]
        assert [row["size"] for row in rows][:3] == [-1, SIZE, 3]
    hub.faults = Faults(listing="no JSON")
    assert asked(hub, f"/api/models/{NAME}")[2] == b"no JSON"


def test_it_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "files/sub").mkdir(parents=True)
    (tmp_path / "files/sub/config.json").write_bytes(b"{}")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "tests.stand_ins.hub", f"{NAME}={tmp_path}/files"]
    with subprocess.Popen(
        [*command, "--log", str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        far = Hub(process.stdout.readline().strip(), Faults())
        assert asked(far, f"/{NAME}/resolve/main/sub/config.json", Range="bytes=1-")[2] == b"}"
        process.stdin.close()
    (row,) = map(json.loads, log.read_text().splitlines())
    assert (row["method"], row["headers"]["range"]) == ("GET", "bytes=1-")
