"""How far a download would come, asked of hubs and of hosts that are not there."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from doctor.consumers import hub as hub_of
from doctor.model import Missing, NotApplicable
from doctor.probes.environment import LaunchEnv
from doctor.probes.files import ModelFiles
from doctor.probes.network import HubReach, hub_reach
from doctor.probes.room import download_room
from doctor.profile import Profile, ServeRequest
from doctor.target import Live
from tests.downloads import NAME, SHARDS, model
from tests.stand_ins import hub as hubs
from tests.stand_ins.hub import Faults, Hub

FILES = ModelFiles(NAME, repository=Path("/cache/models--org--model"), revision="main")
DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with hubs.serve() as hub:
        hub.add(NAME, model())
        yield hub


@pytest.fixture
def hub(served: Hub) -> Hub:
    served.faults = Faults()
    served.asked.clear()
    return served


def reach(endpoint: str, *, online: bool = True, files: ModelFiles = FILES, **env: str) -> HubReach:
    variables = {"HF_ENDPOINT": endpoint, **env}
    request = ServeRequest(Profile(model=NAME), online=online)
    return hub_reach(Live(variables), request, files, LaunchEnv(variables))


def test_a_hub_and_where_it_sends_are_reached(hub: Hub) -> None:
    made = reach(hub.url)
    assert (made.status, made.code, made.why, made.location_why) == (302, None, None, None)
    assert made.size == sum(len(data) for name, data in model().items() if name in SHARDS)
    assert made.location == hub.cdn.removeprefix("http://")
    assert not any(one.method == "GET" and "/cdn/" in one.path for one in hub.asked)


def test_a_redirect_to_a_host_that_is_not_reached_is_told(hub: Hub) -> None:
    hub.faults = Faults(redirect=DEAD)
    made = reach(hub.url)
    assert (made.location, made.location_why) == ("127.0.0.1:9", "[Errno 111] Connection refused")


def test_a_cas_that_is_not_reached_is_told(hub: Hub) -> None:
    hub.faults = Faults(xet=DEAD)
    made = reach(hub.url)
    assert (made.cas, made.cas_why) == ("127.0.0.1:9", "[Errno 111] Connection refused")
    assert made.location_why is None


@pytest.mark.parametrize(
    ("faults", "status", "code"),
    [
        (Faults(status=401, code="GatedRepo"), 401, "GatedRepo"),
        (Faults(status=403, code="GatedRepo", of="files"), 403, "GatedRepo"),
        (Faults(status=429), 429, None),
        (Faults(listing="{"), 200, None),
    ],
)
def test_what_the_hub_answers_is_told(
    hub: Hub, faults: Faults, status: int, code: str | None
) -> None:
    hub.faults = faults
    made = reach(hub.url)
    assert (made.status, made.code) == (status, code)


@pytest.mark.parametrize("endpoint", [DEAD, "https://no-such-host.invalid", "https://127.0.0.1:9"])
def test_a_hub_that_is_not_reached_is_told(endpoint: str) -> None:
    made = reach(endpoint)
    assert made.status is None
    assert made.why


def test_a_hub_that_takes_the_question_and_says_nothing_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        made = reach(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert made.why == "timed out"


@pytest.mark.hardening  # waits for the bound
def test_an_answer_that_comes_byte_by_byte_is_given_up_in_time() -> None:
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def drip() -> None:
            taken, _ = slow.accept()
            with taken:
                while not over.wait(0.5):
                    taken.sendall(b"H")

        threading.Thread(target=drip, daemon=True).start()
        try:
            made = reach(f"http://127.0.0.1:{slow.getsockname()[1]}")
        finally:
            over.set()
    assert made.why == "timed out"


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        (DEAD, "[Errno 111] Connection refused"),
        ("https://no-such-host.invalid", "DNS: "),
        ("hf-mirror.com", "it does not begin with http:// or https://"),
        ("https：//hf-mirror.com", "it does not begin with http:// or https://"),
        ("https://hf-mirror.com ", "URL can't contain control characters"),
    ],
)
def test_what_stands_in_the_way_is_told_apart(endpoint: str, why: str) -> None:
    assert (reach(endpoint).why or "").startswith(why)


def test_an_address_without_its_scheme_is_told_without_the_network() -> None:
    assert reach("hf-mirror.com", online=False).why


def test_a_proxy_that_the_doctor_does_not_speak_with_is_no_verdict() -> None:
    with pytest.raises(Missing, match="SOCKS"):
        reach("https://hf.invalid", ALL_PROXY="socks5h://127.0.0.1:9")


def test_a_proxy_that_is_not_there_is_what_is_not_reached() -> None:
    made = reach("https://hf.invalid", all_proxy=DEAD)
    assert made.why == "[Errno 111] Connection refused"


def test_what_is_said_on_this_machine_goes_through_no_proxy(hub: Hub) -> None:
    assert reach(hub.url, http_proxy=DEAD).status == 302


def test_a_hub_by_plain_http_is_asked_without_a_token(hub: Hub) -> None:
    made = reach("http://hub.invalid", http_proxy=hub.url, HF_TOKEN="hf_" + "x" * 34)
    assert (made.status, made.with_token, made.as_server) == (302, False, False)
    assert hub.asked
    assert not any(one.authorized for one in hub.asked)


def test_a_certificate_of_nobody_is_no_answer(hub: Hub) -> None:
    made = reach(hub.url.replace("http:", "https:"))
    assert made.status is None
    assert "SSL" in (made.why or "")


def test_nothing_is_asked_with_a_password_in_the_address() -> None:
    with pytest.raises(Missing, match="was not asked"):
        reach("https://me:secret@127.0.0.1:9")


def test_no_token_goes_to_a_hub_that_the_person_did_not_name(hub: Hub) -> None:
    token = "hf_" + "x" * 34
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    request = ServeRequest(Profile(model=NAME), online=True)
    hub_reach(Live({}), request, FILES, LaunchEnv(variables, hub=hub.url))
    assert not any(one.authorized for one in hub.asked)
    assert reach(hub.url, HF_TOKEN=token).with_token
    assert any(one.authorized for one in hub.asked)
    assert not any(one.authorized and "/cdn/" in one.path for one in hub.asked)


def test_it_is_told_where_the_server_sends_a_token_and_the_doctor_none(
    hub: Hub, tmp_path: Path
) -> None:
    def asked(**env: str) -> HubReach:
        request = ServeRequest(Profile(model=NAME), online=True)
        return hub_reach(Live(env), request, FILES, LaunchEnv({"HF_ENDPOINT": hub.url, **env}))

    kept = tmp_path / "token"
    place = {"HF_TOKEN_PATH": str(kept)}
    withheld = {**place, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    assert asked(**place).as_server
    kept.write_text("hf_" + "x" * 34)
    assert not asked(**place).as_server
    assert not any(one.authorized for one in hub.asked)
    assert asked(**withheld).as_server


@pytest.mark.parametrize(
    ("online", "files", "env"),
    [
        (False, FILES, {}),
        (True, FILES, {hub_of.OFFLINE[0]: "1"}),
        (True, ModelFiles("/m", folder=Path("/m")), {}),
        (True, ModelFiles(NAME, repository=Path("/c"), weights=("model.safetensors",)), {}),
    ],
)
def test_nobody_is_asked_where_nothing_is_fetched(
    hub: Hub, online: bool, files: ModelFiles, env: dict[str, str]
) -> None:
    with pytest.raises(NotApplicable):
        reach(hub.url, online=online, files=files, **env)
    assert hub.asked == []


def test_the_room_is_that_of_the_file_system_of_the_cache(tmp_path: Path) -> None:
    files = ModelFiles(NAME, repository=tmp_path / "not/there", revision="main")
    request = ServeRequest(Profile(model=NAME), online=True)
    made = download_room(Live(), request, files)
    found = os.statvfs(tmp_path)
    assert (made.place, made.writable) == (tmp_path, True)
    assert abs(made.free - found.f_bavail * found.f_frsize) < 1 << 30
