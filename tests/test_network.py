"""How far a download would come, asked of hubs and of hosts that are not there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from doctor.consumers import hub as hub_of
from doctor.model import Missing, NotApplicable
from doctor.probes.environment import LaunchEnv
from doctor.probes.files import ModelFiles
from doctor.probes.network import HubReach, hub_reach
from doctor.profile import Profile, ServeRequest
from doctor.target import Live
from tests.downloads import NAME, model
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


def test_a_certificate_of_nobody_is_no_answer(hub: Hub) -> None:
    made = reach(hub.url.replace("http:", "https:"))
    assert made.status is None
    assert "SSL" in (made.why or "")


@pytest.mark.parametrize("endpoint", ["http://mirror.example", "https://me:secret@127.0.0.1:9"])
def test_nothing_is_asked_where_others_could_listen(endpoint: str) -> None:
    with pytest.raises(Missing, match="was not asked"):
        reach(endpoint)


def test_no_token_goes_to_a_hub_that_the_person_did_not_name(hub: Hub) -> None:
    token = {"HF_TOKEN": "hf_" + "x" * 34}
    variables = {"HF_ENDPOINT": hub.url, **token}
    request = ServeRequest(Profile(model=NAME), online=True)
    hub_reach(Live({}), request, FILES, LaunchEnv(variables, hub=hub.url))
    assert not any(one.authorized for one in hub.asked)
    reach(hub.url, **token)
    assert any(one.authorized for one in hub.asked)
    assert not any(one.authorized and "/cdn/" in one.path for one in hub.asked)


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
