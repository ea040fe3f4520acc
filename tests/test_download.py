"""`download`, with the real huggingface_hub of the tests' own environment and a hub on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from doctor.cli.talking import Talking
from doctor.download.hub import HubOrigin
from doctor.download.origin import Client, ListedFile, Listing
from doctor.download.session import fetch_all
from doctor.probes.environment import LaunchEnv
from doctor.report.download_json import download_schema
from doctor.target import Live
from tests.conftest import DOCTOR, SYSTEM, Environment, must_fit
from tests.downloads import NAME, SHARD, SHARDS, Downloads, instants, model, must_go_on
from tests.stand_ins import hub as hubs
from tests.stand_ins.hub import Faults, Hub

PREFIX = Path(sys.prefix)


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with hubs.serve() as hub:
        hub.add(NAME, model())
        yield hub


@pytest.fixture
def downloads(served: Hub, tmp_path: Path) -> Downloads:
    served.faults = Faults()
    served.asked.clear()
    return Downloads(served, PREFIX, tmp_path)


def states(report: dict[str, object]) -> dict[str, str]:
    files = report["files"]
    assert isinstance(files, list)
    return {one["path"]: one["state"] for one in files}


def test_a_model_is_fetched_once_and_every_file_is_proven(downloads: Downloads) -> None:
    first = downloads.report()
    must_fit(first, download_schema)
    assert set(states(first).values()) == {"ok"}
    assert first["bytes_present"] == first["bytes_total"] == sum(map(len, model().values()))
    assert downloads.fetched() == set(SHARDS)
    downloads.hub.asked.clear()
    assert downloads.run().returncode == 0
    assert not downloads.fetched()
    assert downloads.left() == []


def test_what_lies_here_is_proven_without_a_network(downloads: Downloads) -> None:
    assert downloads.run().returncode == 0
    downloads.hub.asked.clear()
    assert downloads.run("--verify-only").returncode == 0
    blob = downloads.blob(SHARDS[1])
    data = bytearray(blob.read_bytes())
    data[7] ^= 1
    blob.write_bytes(data)
    downloads.blob(SHARDS[2]).write_bytes(b"short")
    downloads.blob(SHARDS[0]).unlink()
    report = downloads.report("--verify-only")
    found = states(report)
    assert [found[name] for name in SHARDS] == ["missing", "wrong", "partial"]
    assert report["bytes_present"] == report["bytes_total"] - SHARD - SHARD + len(b"short")
    assert downloads.run("--verify-only").returncode == 1
    assert downloads.hub.asked == []
    assert downloads.run().returncode == 0
    assert downloads.fetched() == set(SHARDS)


def test_without_the_list_that_the_client_keeps_a_blob_is_held_against_its_name(
    downloads: Downloads,
) -> None:
    assert downloads.run().returncode == 0
    for tree in downloads.cache.glob("*/trees/*.json"):
        tree.unlink()
    assert downloads.run("--verify-only").returncode == 0
    (link,) = downloads.cache.glob(f"*/snapshots/*/{SHARDS[0]}")
    downloads.blob(SHARDS[1]).write_bytes(bytes(SHARD))
    link.unlink()
    found = states(downloads.report("--verify-only"))
    assert [found[name] for name in SHARDS] == ["missing", "wrong", "ok"]


@pytest.mark.parametrize("left", ["", "{}.incomplete"])
def test_without_a_list_what_was_cut_off_is_not_called_whole(
    downloads: Downloads, left: str
) -> None:
    """A file that the client has not yet put in its place has no name that is known."""
    files = {"config.json": b"{}", "model.safetensors": b"x", "tokenizer.json": b"[]"}
    downloads.hub.add("org/cut", files)
    assert downloads.run("org/cut").returncode == 0
    for tree in downloads.cache.glob("*/trees/*.json"):
        tree.unlink()
    assert downloads.run("org/cut", "--verify-only").returncode == 0
    (link,) = downloads.cache.glob(f"*/snapshots/*/{'tokenizer.json' if left else '*.safetensors'}")
    blob = link.resolve()
    link.unlink()
    blob.rename(blob.with_name(left.format(blob.name) or "elsewhere"))
    ran = downloads.run("org/cut", "--verify-only")
    assert ran.returncode == 3
    assert ("is a part of" if left else "has no weights") in ran.stderr


def test_what_vllm_reads_beside_safetensors_is_fetched_and_nothing_else_of_that_kind(
    downloads: Downloads,
) -> None:
    read = {"model.safetensors", "2_Dense/config.json", "2_Dense/pytorch_model.bin"}
    read |= {"mask_embedding.pt", "1_Pooling/model.safetensors", "config.json"}
    passed = {"pytorch_model.bin", "1_Pooling/pytorch_model.bin", "openvino/openvino_model.bin"}
    passed |= {"onnx/model.onnx", "original/consolidated.pth", "model.gguf", "training_args.bin"}
    downloads.hub.add("org/embedding", {path: path.encode() for path in read | passed})
    ran = downloads.run("org/embedding", "--format", "json")
    assert {one["path"] for one in json.loads(ran.stdout)["files"]} == read


def test_a_copy_whose_links_became_files_has_no_hash_to_be_held_against(
    downloads: Downloads,
) -> None:
    assert downloads.run().returncode == 0
    for tree in downloads.cache.glob("*/trees/*.json"):
        tree.unlink()
    for link in downloads.cache.glob("*/snapshots/*/*"):
        blob = link.resolve()
        link.unlink()
        blob.rename(link)
    ran = downloads.run("--verify-only")
    assert ran.returncode == 3
    assert "no hash of" in ran.stderr
    downloads.hub.asked.clear()
    assert downloads.run().returncode == 0
    assert not downloads.fetched()


def test_names_that_are_patterns_to_the_client_are_fetched_as_they_are(
    downloads: Downloads,
) -> None:
    downloads.hub.add("org/charts", {f"chart[{n}].png": b"%d" % n for n in (1, 2)})
    assert downloads.run("org/charts").returncode == 0


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("", "may have moved on"),  # as of a branch, since it was listed
        ("echo 'Error: gone'; echo 'Hint: set HF_DEBUG=1'; exit 1", "Error: gone"),
        (
            'mkdir -p "$0" && echo x > "$0/$(printf %064d 0).0123abcd.incomplete"; exit 1',
            "failed 3",
        ),
    ],
)
def test_a_client_that_brings_nothing_that_stays_is_given_up(
    served: Hub, tmp_path: Path, script: str, said: str
) -> None:
    class Vain(HubOrigin):
        def listing(self) -> Listing:
            return Listing(NAME, "main", "0" * 40, (ListedFile("config.json", 1, "0" * 64),))

        def client(self, listing: Listing, files: Sequence[ListedFile], workers: int) -> Client:
            return Client(("/bin/sh", "-c", script, str(self.folder / "blobs")), SYSTEM)

    env = LaunchEnv(vars={"HF_ENDPOINT": served.url})
    origin = Vain(Live({}), env, Path(sys.executable), NAME, "main", tmp_path)
    with Talking("json") as talk:
        made = fetch_all(origin, talk, stall=60)
    assert made.exit_code == 1
    assert said in str(made.failed)
    assert not [*tmp_path.rglob("*.incomplete")]


def test_one_wrong_byte_is_found_and_fetched_anew(downloads: Downloads) -> None:
    downloads.hub.faults = Faults(wrong={SHARDS[1]: 1})
    assert set(states(downloads.report()).values()) == {"ok"}
    assert len(downloads.hub.ranges(SHARDS[1])) == 2
    assert len(downloads.hub.ranges(SHARDS[0])) == 1


def test_a_mirror_that_always_gives_a_wrong_byte_ends_with_1(downloads: Downloads) -> None:
    downloads.hub.faults = Faults(wrong={SHARDS[1]: -1})
    ran = downloads.run()
    assert ran.returncode == 1
    assert SHARDS[1] in ran.stdout
    assert "1 of 5 files" in ran.stderr
    assert len(downloads.hub.ranges(SHARDS[1])) == 3


def test_a_connection_that_breaks_off_is_gone_on_with(downloads: Downloads) -> None:
    downloads.hub.faults = Faults(stops={SHARDS[0]: SHARD // 2}, stop_times=1)
    assert downloads.run().returncode == 0


def test_a_cas_that_says_nothing_is_left_for_plain_http(downloads: Downloads) -> None:
    downloads.hub.faults = Faults(xet="http://127.0.0.1:9")
    ran = downloads.run("--stall", "2")
    assert ran.returncode == 0, ran.stderr
    assert "going on by plain HTTP" in ran.stderr


@pytest.mark.hardening
def test_a_mirror_that_sends_no_byte_is_given_up(downloads: Downloads) -> None:
    downloads.hub.faults = Faults(stops=dict.fromkeys(SHARDS, 0), stop="hole")
    ran = downloads.run("--stall", "1")
    assert ran.returncode == 1
    assert "no byte of the files came" in ran.stderr
    assert downloads.left() == []


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (Faults(status=401, code="GatedRepo"), "is gated"),
        (Faults(status=403, code="GatedRepo", of="files"), "is gated"),
        (Faults(status=404, code="RepoNotFound"), f"has no {NAME}"),
        (Faults(status=429, retry_after=0), "asked too often"),
        (Faults(without_commit=True), "X-Repo-Commit"),
        (Faults(status=502), "HTTP 502"),
        (Faults(listing="[1]"), "does not list"),
        (Faults(more=[{"path": "../../x", "size": 1}]), "../../x"),
        (Faults(more=[{"path": "/etc/x", "size": 1}]), "/etc/x"),
        (Faults(more=[{"path": "a\x1b[2J", "size": 1}]), "\\x1b"),
        (Faults(sizes={SHARDS[0]: -1}), "-1"),
        (Faults(more=[{"path": "x", "size": 1}]), "no hash of x"),
    ],
)
def test_where_the_hub_does_not_say_it_ends_with_3(
    downloads: Downloads, faults: Faults, said: str
) -> None:
    downloads.hub.faults = faults
    ran = downloads.run()
    assert (ran.returncode, ran.stdout) == (3, "")
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert "\x1b" not in ran.stderr
    assert not downloads.fetched()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "does not list"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
    ],
)
def test_without_a_hub_it_ends_with_3(
    downloads: Downloads, variables: dict[str, str], said: str
) -> None:
    ran = downloads.run(**variables)
    assert ran.returncode == 3
    assert said in ran.stderr
    assert downloads.run("--verify-only").returncode == 3


@pytest.mark.hardening  # the client itself tries for half a minute
def test_a_redirect_to_a_dead_host_is_told(downloads: Downloads) -> None:
    downloads.hub.faults = Faults(redirect="http://127.0.0.1:9")
    ran = downloads.run("--stall", "2")
    assert ran.returncode == 1
    assert "times in turn" in ran.stderr


class TestTokens:
    """Who gets one. The real client would send it to any host."""

    SECRET = "hf_" + "Ab1" * 11

    def sent(self, downloads: Downloads) -> set[str]:
        return {a.headers["authorization"] for a in downloads.hub.asked if a.authorized}

    def keep(self, downloads: Downloads) -> None:
        """As `hf auth login` and a person's netrc do."""
        (downloads.home / "token").write_text(self.SECRET)
        netrc = downloads.home / ".netrc"
        netrc.write_text(f"machine 127.0.0.1 login me password {self.SECRET}\n")
        netrc.chmod(0o600)

    def test_a_hub_of_the_profile_gets_none(self, downloads: Downloads) -> None:
        self.keep(downloads)
        ran = downloads.of_profile("--format", "json", HF_TOKEN=self.SECRET)
        assert ran.returncode == 0, ran.stderr
        assert '"token_sent": false' in ran.stdout
        assert "it gets no token" in ran.stderr
        assert self.sent(downloads) == set()

    def test_a_hub_that_the_person_named_gets_his(self, downloads: Downloads) -> None:
        report = downloads.report(HF_TOKEN=self.SECRET)
        assert report["token_sent"] is True
        assert self.sent(downloads) == {f"Bearer {self.SECRET}"}
        assert downloads.report("--verify-only", HF_TOKEN=self.SECRET)["token_sent"] is False


class TestCommand:
    """Of a server's own command: what it would look for, from its hub and in its cache."""

    def run(self, prefix: Path, *words: str) -> subprocess.CompletedProcess[str]:
        words = ("download", "--python", str(prefix), *words)
        return subprocess.run(
            [DOCTOR, *words], env=SYSTEM, capture_output=True, text=True, check=False
        )

    def test_it_serves_one_model(self, shared_cpu_server: Environment) -> None:
        ran = self.run(shared_cpu_server.prefix, "org/other", "--", "vllm", "serve", NAME)
        assert ran.returncode == 2
        assert f"org/other: the command serves {NAME}; leave one out" in ran.stderr

    def test_where_its_options_cannot_be_read_nothing_is_fetched_to_a_guess(self) -> None:
        ran = self.run(PREFIX, "--", "vllm", "serve", NAME, "--download-dir", "/elsewhere")
        assert ran.returncode == 3
        assert "the options of the command cannot be read: vLLM is not there" in ran.stderr

    def test_a_command_without_the_dashes_is_wrong_use(self) -> None:
        ran = self.run(PREFIX, "vllm", "serve", NAME)
        assert ran.returncode == 2
        assert "put -- before the server's command" in ran.stderr


def test_two_do_not_download_the_same_model_at_once(downloads: Downloads) -> None:
    hold = downloads.hub.hold(SHARDS[0], 0)
    first = downloads.start()
    assert hold.reached.wait(60)
    second = downloads.run()
    assert second.returncode == 75
    assert "another vllm-doctor" in second.stderr
    hold.go_on.set()
    first.communicate(timeout=60)
    assert first.returncode == 0


def test_it_does_not_disturb_a_client_that_a_person_has_started(downloads: Downloads) -> None:
    hold = downloads.hub.hold(SHARDS[0], 0)
    words = [sys.executable, "-m", "huggingface_hub.cli.hf", "download", NAME]
    client = subprocess.Popen(
        words, env=downloads._environment({}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert hold.reached.wait(60)
    ran = downloads.run()
    assert ran.returncode == 75
    assert "another download" in ran.stderr
    hold.go_on.set()
    assert client.wait(60) == 0


def test_a_part_that_nobody_goes_on_with_is_removed_and_told(downloads: Downloads) -> None:
    assert downloads.run().returncode == 0
    blob = downloads.blob(SHARDS[0])
    (link,) = downloads.cache.glob(f"*/snapshots/*/{SHARDS[0]}")
    link.unlink()
    part = blob.with_name(f"{blob.name}.0123abcd.incomplete")
    blob.rename(part)
    ran = downloads.run()
    assert ran.returncode == 0
    assert "removed 1.0 MB" in ran.stderr
    assert downloads.left() == []


def test_a_full_disk_is_told_before_a_byte_is_fetched(downloads: Downloads) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts a file system")
    words = ["unshare", "-m", "sh", "-ec"]
    mount = 'mount -t tmpfs -o size=2m,mode=755 none "$1"; shift; exec "$@"'
    tried = subprocess.run([*words, "mount -t tmpfs none /mnt"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("may not mount")
    downloads.cache.mkdir(parents=True)
    argv = [*words, mount, "sh", str(downloads.cache), *downloads._argv(())]
    ran = subprocess.run(
        argv, env=downloads._environment({}), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "3.1 MB are missing" in ran.stderr
    assert "2.1 MB free" in ran.stderr
    assert f"missing      1.0 MB  {SHARDS[0]}" in ran.stdout
    assert not downloads.fetched()


def test_a_link_out_of_the_cache_is_never_followed_to_remove(downloads: Downloads) -> None:
    assert downloads.run().returncode == 0
    (link,) = downloads.cache.glob(f"*/snapshots/*/{SHARDS[0]}")
    outside = downloads.home / "mine.safetensors"
    outside.write_bytes(bytes(SHARD))
    link.unlink()
    link.symlink_to(outside)
    ran = downloads.run()
    assert outside.read_bytes() == bytes(SHARD)
    assert ran.returncode == 1
    assert "lies outside" in ran.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("no such model",),
        ("/models/x",),
        ("a/b/c",),
        ("s3://a/b",),
        (NAME, "--stall", "0"),
        (NAME, "--revision", "../../x"),
    ],
)
def test_wrong_use_ends_with_2(downloads: Downloads, words: tuple[str, ...]) -> None:
    ran = downloads.run(*words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Traceback" not in ran.stderr
    assert downloads.hub.asked == []


def test_an_environment_without_a_client_is_told(served: Hub, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    ran = Downloads(served, tmp_path / "v", tmp_path).run()
    assert ran.returncode == 3
    assert "has no huggingface_hub" in ran.stderr


def test_ctrl_c_says_what_is_kept(downloads: Downloads) -> None:
    run = downloads.cut_off(SHARDS[0], SHARD // 2, signal.SIGINT)
    assert run.stderr is not None
    said = run.stderr.read()
    assert run.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert downloads.left() == []


@pytest.mark.hardening
@pytest.mark.parametrize(("path", "at", "number"), instants(signal.SIGKILL))
def test_kill_at_any_instant_costs_nothing_that_was_kept(
    downloads: Downloads, path: str, at: int, number: signal.Signals
) -> None:
    must_go_on(downloads, path, at, number)


@pytest.mark.hardening
@pytest.mark.parametrize(("path", "at", "number"), instants(signal.SIGINT, signal.SIGTERM))
def test_ctrl_c_at_any_instant_costs_nothing_that_was_kept(
    downloads: Downloads, path: str, at: int, number: signal.Signals
) -> None:
    must_go_on(downloads, path, at, number)
