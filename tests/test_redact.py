"""A recording that leaves the machine holds no secret and names nobody."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from doctor.snapshot import shareable
from doctor.tape import load_tape
from tests.conftest import run_doctor, shared_library, vllm_environment

HF = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345678"
SK = "sk-proj-abcdefghijklmnop_qrstuvwxyz-0123456789"
EMPTY: dict[str, Any] = {
    "schema_version": 1,
    "tool": "vllm-doctor 0",
    "python": "/usr/bin/python3",
    "found_by": "--python",
    "env": {},
}


def cleaned(home: str | None = "/home/alice", **parts: Any) -> str:
    """What is left, as it would be written."""
    return json.dumps(shareable({**copy.deepcopy(EMPTY), **parts}, home))


def everywhere(text: str) -> dict[str, Any]:
    """A text in every part of a recording that can hold one."""
    ran = {"code": 1, "out": f"a {text} b", "err": f"at {text}", "failure": text}
    return {
        "env": {"PATH": text, "CUDA_HOME": text, "HF_ENDPOINT": text},
        "runs": [{"argv": ["gcc", text], "ran": ran}],
        "read": {f"/etc/{text}": f"x = {text}\n"},
        "search": {"/file": {"pattern": [text]}},
        "listdir": {"/folder": [text]},
        "realpath": {"/link": f"/to/{text}"},
        "elf": {"/lib.so": {"bits": 64, "needed": [text], "rpath": f"$ORIGIN:{text}"}},
        "processes": [{"pid": 1, "name": text, "uid": 0}],
    }


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (HF, HF),
        (SK, SK),
        ("hf_" + "x" * 16, "x" * 16),
        ("sk-" + "0" * 20, "0" * 20),
        ("Bearer abcdef0123456789.token", "abcdef0123456789"),
        ("bearer abcdefgh=", "abcdefgh"),
        ("Authorization: Bearer eyJhbGciOi.JIUzI1NiJ9.abc-_def", "JIUzI1NiJ9"),
        ("https://alice:s3cret-pass@mirror.example/simple", "s3cret"),
        ("https://token-only@mirror.example/simple", "token-only"),
        ("http://user-only:@proxy:3128", "user-only"),
        ("https://user:p@ssword@mirror.example/simple", "ssword"),
        ("postgresql://bob:hunter2@db/x", "hunter2"),
        ("git+https://x-access-token:abc123@github.com/x/y", "abc123"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "ghp_abcdefgh"),
        ("github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz", "11ABCDEFG0"),
        ("glpat-abcdefghij0123456789", "abcdefghij0123456789"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7"),
        ("nvapi-abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijklmnop"),
    ],
)
def test_a_secret_is_left_nowhere(text: str, secret: str) -> None:
    assert secret not in cleaned(**everywhere(text))


@given(
    st.sampled_from(["hf_", "sk-", "sk-ant-", "Bearer ", "https://u:"]),
    st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=20),
    st.text(max_size=8),
    st.text(max_size=8),
)
def test_whatever_stands_around_it_a_secret_is_left_nowhere(
    kind: str, secret: str, before: str, after: str
) -> None:
    assume(not before or not (before[-1].isalnum() or before[-1] == "_"))
    end = "@mirror.example/" if kind.endswith(":") else ""
    left = cleaned(**everywhere(f"{before}{kind}{secret}{end}{after}"))
    assert secret not in left


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_KEY"),
        *("CUDA_SECRET", "NVIDIA_API_KEY", "TORCH_PASSWORD", "VLLM_CREDENTIALS", "HF_HUB_apikey"),
        *("SSH_AUTH_SOCK", "USER", "LOGNAME", "HOSTNAME", "MAIL", "PWD", "http_proxy", "PS1"),
    ],
)
def test_a_variable_that_no_rule_reads_or_that_is_secret_stays_at_home(name: str) -> None:
    left = shareable({**EMPTY, "env": {name: "value-of-it", "PATH": "/bin"}}, None)
    assert left["env"] == {"PATH": "/bin"}


def test_a_variable_that_a_rule_reads_is_kept() -> None:
    names = (
        "PATH HOME LD_LIBRARY_PATH LIBRARY_PATH CPATH CUDA_HOME CUDA_PATH CUDA_VISIBLE_DEVICES "
        "NVCC_CCBIN NVCC_APPEND_FLAGS CC CXX FLASHINFER_NVCC FLASHINFER_CUDA_ARCH_LIST "
        "FLASHINFER_WORKSPACE_BASE FLASHINFER_EXTRA_CUDAFLAGS FLASHINFER_EXTRA_LDFLAGS PYTHONPATH "
        "VLLM_USE_FLASHINFER_SAMPLER TRITON_LIBCUDA_PATH PYTHONNOUSERSITE HF_ENDPOINT"
    )
    kept = dict.fromkeys(names.split(), "/value")
    assert shareable({**EMPTY, "env": kept}, None)["env"] == kept


@pytest.mark.parametrize("home", ["/home/alice", "/home/alice/", "/Users/alice", "/data/u/alice"])
def test_the_name_of_a_home_is_left_nowhere(home: str) -> None:
    inside = f"{home.rstrip('/')}/venv/bin/python"
    left = cleaned(home, **everywhere(inside), python=inside)
    assert "alice" not in left
    assert json.loads(left)["python"] == "/home/user/venv/bin/python"


@pytest.mark.parametrize(
    "text",
    [
        "/home/alice",
        "/home/alice:/usr/lib",
        "'/home/alice/x y'",
        '"/home/alice"',
        "cuda_home = /home/alice/cuda\n",
        "-L/home/alice/lib -lcuda",
        "-I/home/alice/include",
        "LD_LIBRARY_PATH=/home/alice/lib",
        "file:///home/alice/wheels/x.whl",
        "(/home/alice)",
        "/home/alice, /home/alice;",
        "/scratch/alice/venv",
        "/home/alice/alice/venv",
        "#!/home/alice/venv/bin/python",
        "/home/alice\\n/home/alice",
        "error in /home/alice.",
        "[/home/alice]",
        "</home/alice>",
        "/home/alice\t/x",
    ],
)
@pytest.mark.parametrize("home", ["/home/alice", "/data/people/alice"])
def test_the_home_is_found_in_any_text(text: str, home: str) -> None:
    assert "alice" not in cleaned(home, **everywhere(text.replace("/home/alice", home)))


def test_homes_of_others_are_not_named_either() -> None:
    left = cleaned("/home/alice", **everywhere("/home/bob/venv:/home/carol"))
    assert "bob" not in left
    assert "carol" not in left
    assert "alice" not in cleaned("/root", **everywhere("/home/alice/venv"))
    assert "alice" not in cleaned(None, **everywhere("/home/alice/venv"))


def test_a_longer_name_is_not_cut_in_two() -> None:
    """`al` in `alice` is no home; `/home/al2` is somebody else's."""
    left = shareable({**EMPTY, "read": {"/opt/also/al": "alter /opt/al-x"}}, "/home/al")
    assert left["read"] == {"/opt/also/user": "alter /opt/al-x"}


def test_names_that_are_no_secret_are_left_alone() -> None:
    plain = {
        "read": {"/x": "task-management-of-the-whole-thing risk-free hf_hub_download hf_transfer"},
        "listdir": {"/site": ["flashinfer_python-0.6.11.post2.dist-info", "sk-learn"]},
        "runs": [{"argv": ["gcc"], "ran": {"code": 0, "out": "libraries: =/usr/lib:/lib"}}],
    }
    left = shareable({**EMPTY, **plain}, "/home/alice")
    assert {k: left[k] for k in plain} == plain


@pytest.mark.parametrize("home", ["/home/vllm", "/home/python", "/opt", "/", "", "/root", "/home"])
def test_a_home_with_a_plain_name_does_not_rename_the_world(home: str) -> None:
    parts = {"listdir": {"/opt/python/lib/vllm": ["vllm"], "/root/x": []}, "python": "/opt/python"}
    left = shareable({**EMPTY, **parts}, home)
    assert [p for p in left["listdir"] if p.endswith("python/lib/vllm")]


def test_paths_still_fit_each_other(tmp_path: Path) -> None:
    """A redacted tape is judged like the machine itself: the same home is the same everywhere."""
    home = tmp_path / "alice"
    environment = vllm_environment(home / "venv")
    op = home / ".cache/flashinfer/0.6.11.post2/90a/cached_ops/sampling/sampling.so"
    shared_library(op, needed=("libcudart.so.12",))
    secret = {"HF_TOKEN": HF, "OPENAI_API_KEY": SK, "HF_ENDPOINT": "https://u:pw123@mirror.x/"}
    env = {"HOME": str(home), "CUDA_HOME": f"{home}/cuda", "UNKNOWN": "alice", **secret}
    tape = tmp_path / "tape.json"
    sets = ("--set", "gpus=later", "--set", "archs=9.0")
    taken = run_doctor("snapshot", "--python", environment.prefix, "-o", tape, *sets, env=env)
    assert taken.code == 0, taken.err

    text = tape.read_text()
    for word in ("alice", HF, SK, "pw123", "UNKNOWN"):
        assert word not in text
    load_tape(json.loads(text))

    live = run_doctor(
        *("diagnose", "--format", "json", "--python", environment.prefix, *sets), env=env
    )
    again = run_doctor("diagnose", "--format", "json", "--from", tape, *sets)
    assert "flashinfer-stale-cache" in live.found()
    renamed = live.out.replace(str(home), "/home/user")
    assert _judgement(json.loads(renamed)) == _judgement(again.report)


def _judgement(report: dict[str, Any]) -> dict[str, Any]:
    return {k: report[k] for k in ("verdict", "exit_code", "primary", "outcomes", "not_checked")}
