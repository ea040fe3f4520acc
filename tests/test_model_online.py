"""--online: what a hub is asked for, and what it is told. The hub is real, on loopback."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from doctor.probes.arguments import ServerArguments
from doctor.probes.configuration import ModelConfiguration, ReadFrom, model_configuration
from doctor.probes.environment import Saved, launch_env
from doctor.profile import DEFAULT_PROFILE, Profile, ServeRequest, load_profile
from doctor.redact import redacted
from doctor.tape import Recorder, Tape, load_tape
from doctor.target import Live, Target
from tests.test_model_config import BY_NAME

GIB = 1 << 30
REPOSITORY = "somebody/Some-Model"
TOKEN = "hf_" + "x" * 34
QWEN = BY_NAME["Qwen/Qwen3-0.6B"]
CONFIG = f"/{REPOSITORY}/resolve/main/config.json"
INDEX = f"/{REPOSITORY}/resolve/main/model.safetensors.index.json"
ONE = f"/{REPOSITORY}/resolve/main/model.safetensors"


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Hub:
    """`answers` by path; `asked`: (path, headers) of each request."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append((self.path, dict(self.headers)))
                answer = hub.answers.get(self.path, Answer(status=404))
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in answer.headers:
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(answer.body)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def says(self, config: Any = QWEN, total: int | None = 7 * GIB) -> None:
        self.answers[CONFIG] = Answer(json.dumps(config).encode())
        if total is not None:
            index = json.dumps({"metadata": {"total_size": total}, "weight_map": {}})
            self.answers[INDEX] = Answer(index.encode())

    def tokens(self) -> set[str | None]:
        return {headers.get("Authorization") for _, headers in self.asked}


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def other() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.server.shutdown()
    made.server.server_close()


def asked(
    home: Path,
    shell: Mapping[str, str],
    profile: Profile | None = None,
    target: Target | None = None,
    **options: Any,
) -> ModelConfiguration:
    """What is found where the doctor was started in this shell."""
    shell = {"HOME": str(home), **shell}
    profile = profile or Profile(model=REPOSITORY)
    request = ServeRequest(profile, online=True)
    live = target or Live(shell)
    env = launch_env(Live(shell), Saved(), request)
    return model_configuration(live, request, ServerArguments(options), env)


def test_what_the_hub_says_is_found(tmp_path: Path, hub: Hub) -> None:
    hub.says({"model_type": "x", "hidden_size": 8})
    one = asked(tmp_path, {"HF_ENDPOINT": hub.url + "/"})
    assert one.values == {"model_type": "x", "hidden_size": 8}
    assert one.source is ReadFrom.HUB
    assert str(one.place) == f"{REPOSITORY} at {hub.url}"
    assert one.weights == 7 * GIB
    assert hub.asked[0][0] == CONFIG


def test_the_size_of_the_one_file_is_asked_for_where_there_is_no_index(
    tmp_path: Path, hub: Hub
) -> None:
    hub.says({"model_type": "x"}, total=None)
    hub.answers[ONE] = Answer(headers={"X-Linked-Size": str(3 * GIB)})
    assert asked(tmp_path, {"HF_ENDPOINT": hub.url}).weights == 3 * GIB
    hub.answers[ONE] = Answer(status=302, headers={"Location": "/cdn/x"})
    hub.answers["/cdn/x"] = Answer(headers={"Content-Length": str(4 * GIB)})
    assert asked(tmp_path, {"HF_ENDPOINT": hub.url}).weights == 4 * GIB
    hub.answers[ONE] = Answer(headers={"X-Linked-Size": "-1"})
    assert asked(tmp_path, {"HF_ENDPOINT": hub.url}).weights is None


def test_a_revision_is_asked_for(tmp_path: Path, hub: Hub) -> None:
    hub.answers[f"/{REPOSITORY}/resolve/refs%2Fpr%2F1/config.json"] = Answer(b'{"x": 1}')
    assert asked(tmp_path, {"HF_ENDPOINT": hub.url}, revision="refs/pr/1").values == {"x": 1}


def test_a_separate_quantisation_is_part_of_it(tmp_path: Path, hub: Hub) -> None:
    hub.says({"model_type": "x"})
    apart = CONFIG.replace("config.json", "hf_quant_config.json")
    hub.answers[apart] = Answer(b'{"quantization": {"quant_algo": "FP8"}}')
    values = asked(tmp_path, {"HF_ENDPOINT": hub.url}).values
    assert values["quantization_config"] == {"quantization": {"quant_algo": "FP8"}}


def test_the_hub_wins_over_the_table_and_files_win_over_the_hub(tmp_path: Path, hub: Hub) -> None:
    qwen = Profile(model="Qwen/Qwen3-32B")
    hub.answers["/Qwen/Qwen3-32B/resolve/main/config.json"] = Answer(b'{"model_type": "new"}')
    one = asked(tmp_path, {"HF_ENDPOINT": hub.url}, qwen)
    assert (one.values, one.source) == ({"model_type": "new"}, ReadFrom.HUB)
    hub.asked.clear()
    (tmp_path / "config.json").write_text('{"model_type": "mine"}')
    one = asked(tmp_path, {"HF_ENDPOINT": hub.url}, Profile(model=str(tmp_path)))
    assert (one.values, one.source) == ({"model_type": "mine"}, ReadFrom.FOLDER)
    assert not hub.asked


def test_nothing_is_asked_without_being_told_to(tmp_path: Path, hub: Hub) -> None:
    env = launch_env(Live({"HF_ENDPOINT": hub.url}), Saved(), ServeRequest())
    request = ServeRequest(Profile(model=REPOSITORY))
    assert model_configuration(Live({}), request, ServerArguments(), env).values == {}
    assert not hub.asked


@pytest.mark.parametrize("model", ["s3://x/y", "/not/there", "a/b:Q4_K_M", "a b", "x\0y", "-x"])
def test_no_hub_is_asked_for_what_is_no_repository(tmp_path: Path, hub: Hub, model: str) -> None:
    asked(tmp_path, {"HF_ENDPOINT": hub.url}, Profile(model=model))
    assert not hub.asked


# Tokens.


WITH_TOKEN = {"HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN}


def test_a_token_goes_to_a_hub_that_the_shell_names(tmp_path: Path, hub: Hub) -> None:
    hub.says()
    asked(tmp_path, {**WITH_TOKEN, "HF_ENDPOINT": hub.url})
    assert hub.tokens() == {f"Bearer {TOKEN}"}


def test_a_token_goes_to_a_hub_that_the_person_names(tmp_path: Path, hub: Hub) -> None:
    hub.says()
    profile = Profile(model=REPOSITORY, env_asked={"HF_ENDPOINT": hub.url})
    asked(tmp_path, {"HUGGING_FACE_HUB_TOKEN": TOKEN + "\n"}, profile)
    assert hub.tokens() == {f"Bearer {TOKEN}"}


def test_no_token_goes_to_a_hub_of_the_profile(tmp_path: Path, hub: Hub) -> None:
    hub.says()
    asked(tmp_path, WITH_TOKEN, Profile(model=REPOSITORY, env={"HF_ENDPOINT": hub.url}))
    assert len(hub.asked) > 1
    assert hub.tokens() == {None}


def test_the_default_profile_sends_none_to_its_mirror(tmp_path: Path, hub: Hub) -> None:
    hub.says()
    profile = load_profile(DEFAULT_PROFILE, [f"model={REPOSITORY}"])
    profile.env["HF_ENDPOINT"] = hub.url
    asked(tmp_path, WITH_TOKEN, profile)
    assert len(hub.asked) > 1
    assert hub.tokens() == {None}


def test_no_token_goes_where_the_hubs_client_sends_none(tmp_path: Path, hub: Hub) -> None:
    hub.says()
    without = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "yes"}
    asked(tmp_path, {**WITH_TOKEN, **without})
    assert hub.tokens() == {None}


def test_no_token_is_read_from_a_file(tmp_path: Path, hub: Hub) -> None:
    hub.says()
    for path in (tmp_path / ".cache/huggingface/token", tmp_path / "token"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TOKEN)
    asked(tmp_path, {"HF_ENDPOINT": hub.url, "HF_TOKEN_PATH": str(tmp_path / "token")})
    assert hub.tokens() == {None}


def test_no_token_follows_a_redirect_to_another_hub(tmp_path: Path, hub: Hub, other: Hub) -> None:
    other.says({"model_type": "x"})
    for path in (CONFIG, INDEX):
        hub.answers[path] = Answer(status=302, headers={"Location": other.url + path})
    one = asked(tmp_path, {**WITH_TOKEN, "HF_ENDPOINT": hub.url})
    assert one.values == {"model_type": "x"}
    assert hub.tokens() == {f"Bearer {TOKEN}"}
    assert len(other.asked) > 1
    assert other.tokens() == {None}


def test_a_redirect_on_the_same_hub_keeps_it(tmp_path: Path, hub: Hub) -> None:
    hub.answers[CONFIG] = Answer(status=307, headers={"Location": "/api/resolve-cache/config"})
    hub.answers["/api/resolve-cache/config"] = Answer(b"{}")
    asked(tmp_path, {**WITH_TOKEN, "HF_ENDPOINT": hub.url})
    assert dict(hub.asked)["/api/resolve-cache/config"]["Authorization"] == f"Bearer {TOKEN}"


def test_a_token_stands_in_no_recording(tmp_path: Path, hub: Hub) -> None:
    hub.says()
    shell = {**WITH_TOKEN, "HF_ENDPOINT": hub.url, "HOME": str(tmp_path)}
    recorder = Recorder(Live({"HOME": str(tmp_path)}))
    one = asked(tmp_path, shell, target=recorder)
    assert one.values
    data = json.dumps(redacted(recorder.recording("vllm-doctor 0.6.0", "/x", "option")))
    assert TOKEN not in data
    tape = Tape(load_tape(json.loads(data)))
    hub.asked.clear()
    assert asked(tmp_path, shell, target=tape) == one
    assert not hub.asked


def test_a_snapshot_that_did_not_ask_is_judged_without_the_network(
    tmp_path: Path, hub: Hub
) -> None:
    recorder = Recorder(Live({"HOME": str(tmp_path)}))
    env = launch_env(Live({"HOME": str(tmp_path)}), Saved(), ServeRequest())
    request = ServeRequest(Profile(model=REPOSITORY))
    model_configuration(recorder, request, ServerArguments(), env)
    tape = Tape(load_tape(recorder.recording("vllm-doctor 0.6.0", "/x", "option")))
    one = asked(tmp_path, {"HF_ENDPOINT": hub.url}, target=tape)
    assert str(one.why) == "a snapshot is judged without the network: record it with --online"
    assert not hub.asked


# Refusals, one sentence each.


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (401, "{} does not give somebody/Some-Model away (HTTP 401): gated, private, or not there"),
        (404, "{} has no config.json of somebody/Some-Model at main"),
        (500, "{} could not be asked: HTTP 500"),
    ],
)
def test_a_refusal_is_one_sentence(tmp_path: Path, hub: Hub, status: int, why: str) -> None:
    hub.answers[CONFIG] = Answer(b"\x1b[31mhtml", status)
    one = asked(tmp_path, {"HF_ENDPOINT": hub.url})
    assert (one.values, one.source, str(one.why)) == ({}, None, why.format(hub.url))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "config.json is not JSON"),
        (b"[" * 100_000, "config.json is not JSON"),
        (b"[]", "config.json is not a JSON object"),
        (b'{"x": "' + b"y" * (9 << 20) + b'"}', "config.json is larger than 8 MiB"),
    ],
)
def test_of_an_answer_that_is_no_configuration_nothing_is_known(
    tmp_path: Path, hub: Hub, body: bytes, why: str
) -> None:
    hub.answers[CONFIG] = Answer(body)
    one = asked(tmp_path, {"HF_ENDPOINT": hub.url})
    assert (one.values, str(one.why)) == ({}, f"{hub.url} could not be asked: {why}")


def test_text_of_the_network_cannot_drive_a_terminal(tmp_path: Path, hub: Hub) -> None:
    hub.answers[CONFIG] = Answer(status=302, headers={"Location": "x\x1b[31m://y"})
    one = asked(tmp_path, {"HF_ENDPOINT": hub.url})
    assert one.values == {}
    assert str(one.why).isprintable()


@pytest.mark.parametrize("place", ["http://hub.example/x", "file:///etc/passwd", "//hub.example/x"])
def test_no_redirect_leads_to_plain_http_or_a_file(tmp_path: Path, hub: Hub, place: str) -> None:
    hub.answers[CONFIG] = Answer(status=302, headers={"Location": place})
    one = asked(tmp_path, {"HF_ENDPOINT": hub.url})
    assert one.values == {}
    assert one.why
    assert len(hub.asked) == 1


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://hub.example",
        "https://user:secret@hub.example",
        "http://127.0.0.1.hub.example",
        "\x1b[31m",
    ],
)
def test_no_other_kind_of_hub_is_asked(tmp_path: Path, endpoint: str) -> None:
    one = asked(tmp_path, {**WITH_TOKEN, "HF_ENDPOINT": endpoint})
    assert one.values == {}
    assert "could not be asked" in str(one.why)
    assert str(one.why).isprintable()


def test_a_hub_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    one = asked(tmp_path, {"HF_ENDPOINT": f"http://127.0.0.1:{port}"})
    assert one.values == {}
    assert str(one.why).startswith(f"http://127.0.0.1:{port} could not be asked: ")
    assert "refused" in str(one.why).lower()


def test_a_certificate_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    """Loopback too: https is spoken there with a hub that has none."""
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]

        def answer() -> None:
            connection, _ = plain.accept()
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")
            connection.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        one = asked(tmp_path, {**WITH_TOKEN, "HF_ENDPOINT": f"https://127.0.0.1:{port}"})
        thread.join(10)
    assert one.values == {}
    assert "could not be asked" in str(one.why)


def test_an_index_that_is_missing_or_odd_leaves_the_size_open(tmp_path: Path, hub: Hub) -> None:
    hub.says({"model_type": "x"}, total=None)
    for answer in (Answer(status=500), Answer(b"x" * (17 << 20))):
        hub.answers[INDEX] = answer
        one = asked(tmp_path, {"HF_ENDPOINT": hub.url})
        assert one.values == {"model_type": "x"}
        assert one.weights is None


def test_the_table_still_counts_where_the_hub_cannot_be_asked(tmp_path: Path, hub: Hub) -> None:
    hub.answers["/Qwen/Qwen3-32B/resolve/main/config.json"] = Answer(status=503)
    one = asked(tmp_path, {"HF_ENDPOINT": hub.url}, Profile(model="Qwen/Qwen3-32B"))
    assert one.source is ReadFrom.TABLE
    assert str(one.why) == f"{hub.url} could not be asked: HTTP 503"
