"""`vllm-doctor launch` of a real server: vLLM for the CPU and a tiny model like GLM-4.7-Flash."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from doctor.command.process import read_process
from tests.conftest import wait_for
from tests.real_stack import isolate, lab
from tests.real_stack.place import DOCTOR

pytestmark = pytest.mark.real_stack

READY_MOST = 400  # seconds; about 60 on two cores
PROFILE = """
model = {model}
served_model_name = "tiny"
host = "127.0.0.1"
port = {port}
max_model_len = 512
gpu_memory_utilization = 0.5
reasoning_parser = "glm45"
tool_call_parser = "glm47"
enable_auto_tool_choice = true
device = "cpu"

[env]
VLLM_MLA_DISABLE = "1"
VLLM_CPU_KVCACHE_SPACE = "1"
HF_HUB_OFFLINE = "1"

[needs]
model_type = "glm4_moe_lite"
architecture = "Glm4MoeLiteForCausalLM"
"""


@dataclass(frozen=True)
class Served:
    """A place to serve from: what the doctor is told, and the variables that it has."""

    target: lab.Environment
    profile: Path
    port: int
    env: dict[str, str]

    def command(self, *words: str) -> list[str]:
        options = ["--python", str(self.target.python), "--profile", str(self.profile)]
        return [str(DOCTOR), words[0], *options, *words[1:]]

    def get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the server answers; None where it does not answer, or not with 200."""
        asked = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            if body is None:
                asked.request("GET", path)
            else:
                asked.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = asked.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            asked.close()
        if answer.status != 200:
            return None
        return json.loads(text) if text else {}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    try:
        target = lab.cpu_server()
    except lab.LabError as error:
        pytest.fail(str(error))
    folder = tmp_path_factory.mktemp("served")
    (folder / "home").mkdir()
    model = lab.tiny_model(target, folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    profile = folder / "tiny.toml"
    profile.write_text(PROFILE.format(model=json.dumps(str(model)), port=port), encoding="utf-8")
    path = f"{target.prefix}/bin:{isolate.SYSTEM_PATH}"
    return Served(target, profile, port, {"PATH": path, "HOME": str(folder / "home")})


def test_the_environment_is_healthy_and_nothing_about_it_is_unknown(served: Served) -> None:
    ran = subprocess.run(
        served.command("diagnose", "--format", "json"),
        env=served.env,
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(ran.stdout)
    wrong = {o["id"]: o["why"] for o in report["outcomes"] if o["verdict"] != "ok"}
    assert wrong == {}
    assert (ran.returncode, report["verdict"]) == (0, "healthy")


@pytest.fixture(scope="module")
def server(
    served: Served, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[bytes]]:
    """The doctor with a server that answers /health; everything of it is ended afterwards."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            served.command("launch", "--", "--enforce-eager"),
            env=served.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as doctor,
    ):
        try:
            end = time.monotonic() + READY_MOST
            while served.get("/health") is None:
                alive = doctor.poll() is None and time.monotonic() < end
                assert alive, log.read_text(errors="replace")[-4000:]
                time.sleep(1)
            yield doctor
        finally:
            for pid in session_of(doctor.pid):
                os.kill(pid, signal.SIGKILL)


def session_of(leader: int) -> set[int]:
    """The processes of a session that still run."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.add(int(path.parent.name))
    return found


def test_it_completes_a_text(served: Served, server: subprocess.Popen[bytes]) -> None:
    asked = {"model": "tiny", "prompt": "the quick", "max_tokens": 5, "ignore_eos": True}
    answer = served.get("/v1/completions", asked)
    assert answer["usage"]["completion_tokens"] == 5
    assert server.poll() is None


def test_it_was_started_as_the_profile_says(
    served: Served, server: subprocess.Popen[bytes]
) -> None:
    (model,) = served.get("/v1/models")["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny", 512)
    dry = subprocess.run(
        served.command("launch", "--dry-run", "--", "--enforce-eager"),
        env=served.env,
        capture_output=True,
        text=True,
        check=True,
    )
    *variables, command = dry.stdout.splitlines()
    assert variables == [
        "export HF_HUB_OFFLINE=1",
        "export VLLM_CPU_KVCACHE_SPACE=1",
        "export VLLM_MLA_DISABLE=1",
    ]
    (child,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    ran = Path(f"/proc/{child}/cmdline").read_text().split("\0")
    assert " ".join(ran[1:]).strip() == command


def test_each_of_its_processes_leads_to_its_command(
    served: Served, server: subprocess.Popen[bytes]
) -> None:
    (child,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    ran = Path(f"/proc/{child}/cmdline").read_text().removesuffix("\0").split("\0")
    for pid in session_of(server.pid) - {server.pid}:
        made = read_process(pid)
        assert made.found == f"pid {child}"
        assert made.arguments == tuple(ran[ran.index("serve") + 1 :])
        assert made.python is not None
        assert made.python.parent.parent == served.target.prefix
        assert (made.environ or {})["HF_HUB_OFFLINE"] == "1"


def test_it_ends_with_the_servers_code_and_leaves_no_process(
    server: subprocess.Popen[bytes],
) -> None:
    """The last one: it ends the server that the others use."""
    assert len(session_of(server.pid)) > 2
    server.terminate()
    assert server.wait(120) == 0
    wait_for(lambda: not session_of(server.pid))
