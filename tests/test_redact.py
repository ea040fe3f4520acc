"""What leaves the machine holds no secret, printed or recorded; a recording names nobody either."""

from __future__ import annotations

import ast
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import doctor
from doctor.consumers.flashinfer import GENERATED
from doctor.consumers.hub import OFFLINE
from doctor.probes.driver import BUS_ORDER
from doctor.probes.environment import HUB_SWITCH, HUB_TOKENS
from doctor.probes.imports import _QUIET
from doctor.redact import (
    STARS,
    beginning,
    holds_secret,
    is_secret_name,
    redact,
    redacted,
    redacted_words,
    secrets_of,
)
from doctor.shipped import rules_folder
from doctor.snapshot import shareable
from doctor.tape import Tape, load_tape
from doctor.variables import RECORDED, Trait, names_with
from tests.conftest import DOCTOR, not_for_ever, run_doctor, shared_library, vllm_environment
from tests.corpus import logs
from tests.planted import Planted, planted

HF = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345678"
SK = "sk-proj-abcdefghijklmnop_qrstuvwxyz-0123456789"
PLANTED = planted()


def ids(one: Planted) -> str:
    return one.shape


# Shapes.


def test_there_are_enough_of_them() -> None:
    assert len(PLANTED) >= 100
    assert len({one.shape for one in PLANTED}) >= 40


@pytest.mark.parametrize("one", PLANTED, ids=ids)
def test_a_secret_is_hidden_once_and_for_all_and_no_line_is_lost(one: Planted) -> None:
    left = redact(one.text)
    assert one.secret not in left
    assert one.secret[-12:] not in left
    assert STARS in left
    assert redact(left) == left
    assert left.count("\n") == one.text.count("\n")


@given(st.sampled_from(PLANTED), st.text(max_size=12), st.text(max_size=12))
def test_whatever_stands_before_its_line_and_after_it(
    one: Planted, before: str, after: str
) -> None:
    assert one.secret not in redact(f"{before}\n{one.text}\n{after}")


@pytest.mark.parametrize(
    "text",
    [
        "the password is required, and no password was set",
        "Invalid credentials in Authorization header",
        "Token is valid (permission: read).",
        "Your token has been saved to /root/.cache/huggingface/token",
        "token: Optional[str] = None, password=None, api_key=''",
        "max_tokens=128, max_num_batched_tokens=8192, eos_token='</s>', pad_token_id: 151643",
        "tokenizer='zai-org/GLM-4.7-Flash', tokenizer_mode=auto, tokenizer_revision=None",
        "Basic authentication and bearer tokens: use HTTPS",
        "usage: vllm serve [--api-key API_KEY [API_KEY ...]] [--hf-token [HF_TOKEN]]",
        'export HF_TOKEN="$HF_TOKEN"; docker run -e HF_TOKEN=${HF_TOKEN} image',
        "    --hash=sha256:" + "9f86d081884c7d659a2feaa0c55ad015" * 2,
        "vllm/_C.abi3.so,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0",
        "integrity sha512-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU47DEQpj8HBSa==",
        "commit 7dd20894a642a0aa287e9827cb1a1f7f91386b67",
        "docker.io/vllm/vllm-openai:v0.22.0@sha256:9f86d081884c7d659a2feaa0c55ad015",
        "ubuntu:22.04@sha256:9f86d081884c7d659a2feaa0c55ad015",
        "GPU-8e9f1234-0bcd-1234-abcd-1234567890ab MIG-0fa8e3d2-aaaa-5c9b-b1b1-0123456789ab",
        "Added request cmpl-0123456789abcdef0123456789abcdef-0.",
        "Received request chatcmpl-BqT7cXkz3Lr9VwYp2HdN8sGmFjA4e: prompt: 'x'",
        "trace 4bf92f3577b34da6a3ce929d0e0e4736 span 00f067aa0ba902b7",
        "undefined symbol: _ZN3c104cuda29c10_cuda_check_implementationEiPKcS2_jb",
        "_ZN7cutlass4gemm6device19GemmUniversalBase3runEP11CUstream_stPNS_15CudaHostAdapterE",
        "entry function '_ZN10flashinfer8sampling20TopPRenormProbKernelILj1024ELN3cub16'",
        "fmhaSm100fKernel_QkvBfloat16OBfloat16H128PagedKvCausalP32VarSeqQ128Kv128StaticContext",
        "ampere_fp16_s16816gemm_fp16_128x64_ldg8_f2f_stages_64x5_nn",
        "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0",
        "/root/.triton/cache/EZ4JZ2IJBNLBGAHWZPGKKJ2HYBBS4ZUOKLMWBN7WYVZRGNYXH5BA/x.so",
        "/tmp/torchinductor_root/cn/ccn6w43jrcixo5pcyup5cjlpuhizwk2fbprrv45fsws2wctrh3fu.py",
        "/models/Qwen3-235B-A22B-Instruct-2507-FP8/model-00001-of-00118.safetensors",
        "CompressedTensorsW4A16Sparse24MoEMarlinMethod MiMoV2OmniForCausalLM",
        "flashinfer_python-0.6.11.post2-py3-none-any.whl torch-2.11.0+cu130-cp312-linux_x86_64",
        "https://files.example.org/packages/ab/cd/" + "0123456789abcdef" * 3 + "/x-1.whl",
        "https://mirrors.aliyun.com/pypi/simple https://corp.test/api/pypi/pypi-remote/simple",
        "https://corp.test:8443/@scope git@github.com:vllm-project/vllm me@corp.test",
        "nvcc -gencode=arch=compute_90a,code=sm_90a -DFLASHINFER_ENABLE_FP8_E4M3 -O3",
        "libnvidia-ml.so.1 libcudart-d0da41ae.so.11.0 libnvJitLink.so.13 libcublasLt.so.13.1.0.3",
        "INFO 11-28 16:30:12 [core.py:1136] (EngineCore_DP0 pid=312) Avg prompt: 0.0 tokens/s",
        "127.0.0.1:42622 - \"GET /v1/models?limit=5&after=abc HTTP/1.1\" 200 OK",
        "keyword=abcdef, secretary: absent, tokens: 12, authors: [a], passed=3, compass: north",
        "task-management-of-the-whole-thing risk-free hf_hub_download hf_transfer hf_xet sk-learn",
        "CUDA_HOME=/usr/local/cuda-13.0 VLLM_USE_FLASHINFER_SAMPLER=1 key: value, KV cache key=q",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("one", PLANTED, ids=ids)
def test_the_beginning_of_a_text_holds_no_half_of_a_secret(one: Planted) -> None:
    most = 50
    whole = " ".join(one.text.splitlines())
    for before in range(0, 8 * most + 1, 7):
        made = beginning("a word " * (before // 7) + whole + " a word" * 200, most)
        assert len(made) <= most
        assert one.secret[-12:] not in made
        assert all(one.secret[i : i + 12] not in made for i in range(4, len(one.secret) - 12))
    assert beginning("x" * 1000, most) == "x" * most
    assert beginning("short", most) == "short"


def test_of_all_logs_that_are_known_no_line_is_changed() -> None:
    text = "\n".join(one.data.decode("utf-8", "replace") for one in logs())
    lines, left = text.split("\n"), redact(text).split("\n")
    assert [(was, now) for was, now in zip(lines, left, strict=True) if was != now] == []


# Values, names, data.


def test_what_a_variable_with_a_secrets_name_has_is_hidden_wherever_it_stands() -> None:
    env = {
        "VLLM_API_KEY": "correct-horse",
        "MIRROR": "https://me:battery-staple@corp.test/simple",
        "TLS_PRIVATE_KEY": "first line\nsecond line",
        "API_KEY": "short",
        "SSH_AUTH_SOCK": "/run/user/1000/ssh-agent.sock",
        "HF_TOKEN_PATH": "/root/.cache/huggingface/token",
        "TOKENIZERS_PARALLELISM": "disabled-here",
        "PWD": "/work/of/mine",
        "AUTH_TIMEOUT": "1000000000",
    }
    found = secrets_of(env)
    assert {"correct-horse", "battery-staple", env["TLS_PRIVATE_KEY"]} <= set(found)
    assert r"first line\x0asecond line" in found
    assert not [v for v in found if not v.startswith(("correct", "battery", "first"))]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "HF_TOKEN",
            "hf-token",
            "apiKey",
            "OPENAI_API_KEY",
            "DB_PASSWORD",
            "PGPASSWORD",
            "MYSQL_PWD",
        ),
        *("client_secret", "AWS_SECRET_ACCESS_KEY", "X-Api-Key", "Authorization", "Set-Cookie"),
        *(
            "private_key",
            "GOOGLE_CREDENTIALS",
            "npm_config__auth",
            "JWT",
            "SESSION_KEY",
            "passphrase",
        ),
    ],
)
def test_a_name_says_that_it_is_a_secret(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "PWD",
            "OLDPWD",
            "TOKENIZERS_PARALLELISM",
            "max_tokens",
            "tokenizer",
            "token_ids",
            "eos_token",
        ),
        *(
            "SSH_AUTH_SOCK",
            "HF_TOKEN_PATH",
            "AWS_SHARED_CREDENTIALS_FILE",
            "AUTHOR",
            "keyboard",
            "key",
        ),
        *("PASSED", "COMPASS", "SECRETARY_NAME", "/etc/secret/x"),
    ],
)
def test_a_name_of_something_else_says_nothing(name: str) -> None:
    assert not is_secret_name(name)


def test_data_is_redacted_by_its_texts_its_keys_and_as_command_lines() -> None:
    data = {
        "argv": ["serve", "--api-key", "one", "two", "--port", "1", "--token=x", "-v"],
        "env": {"MY_TOKEN": "abc", "EMPTY_TOKEN": "", "PORT": "1"},
        "texts": ["password is hunter2", "password is required", "\0", "a\n\0\nb"],
        "numbers": [1, 2.5, None, True],
        HF: HF,
    }
    assert redacted(data) == {
        "argv": ["serve", "--api-key", "***", "***", "--port", "1", "--token=***", "-v"],
        "env": {"MY_TOKEN": "***", "EMPTY_TOKEN": "", "PORT": "1"},
        "texts": ["password is ***", "password is required", "\0", "a\n\0\nb"],
        "numbers": [1, 2.5, None, True],
        "hf_***": "hf_***",
    }


def test_a_command_that_would_be_pasted_with_stars_is_known() -> None:
    assert holds_secret(("fix", "--mirror", "https://me:pw@corp.test/simple"))
    assert holds_secret(("launch", "--", "--api-key", "x"))
    assert holds_secret(("launch", "--set", "env.HF_TOKEN=abc"))
    assert not holds_secret(("fix", "--apply", "--python", "/venv", "--allow", "core"))
    assert redacted_words(["fix", "--mirror", "https://me:pw@h/"])[2] == "https://***@h/"


@pytest.mark.parametrize(
    "piece",
    [*"_-+=<>,'/x", "a://b:", "password ", "token=", "--token x ", "-----BEGIN ", "aB3"],
)
def test_a_text_that_is_made_to_be_slow_is_not(piece: str) -> None:
    """A pattern of quadratic time would take minutes for this."""
    with not_for_ever():
        redact(piece * (400_000 // len(piece)))


@pytest.mark.parametrize(
    "text",
    [
        "[(b'Authorization', b'Basic {}')]",
        "(b'x-api-key', b'{}')",
        "('api_key', '{}')",
        "VLLM_API_KEY=$'{}'",
        "https://h/?token%3D{}",
        "<password>{}</password>",
        "mysql -u root -p{}",
    ],
)
def test_a_pair_an_escape_and_a_tag_hide_no_secret(text: str) -> None:
    secret = "Plain" + "Pw99abc"
    assert secret not in redact(text.format(secret))


# Recordings.

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


@settings(deadline=None)
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


def words_in_capitals(path: Path) -> set[str]:
    """The texts of a file that are one word in capitals: among them is every name of a variable
    that it asks an environment for, whichever way."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    words = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {word for word in words if re.fullmatch(r"[A-Z][A-Z0-9_]*[A-Z0-9]", word)}


_NETWORK = (
    *("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("SSL_CERT_DIR", "SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"),
)
# In capitals as well, and no variable of the machine's environment.
NO_VARIABLES = {
    "VLLM_DOCTOR_MARK": "given to a child by the doctor itself",
    "LC_ALL": "set for children, so that they answer in English",
    "CCCL_DISABLE_CTK_COMPATIBILITY_CHECK": "a macro of CCCL's headers",
    "GB10": "a GPU",
    "METADATA": "a file",
    BUS_ORDER: "a value of CUDA_DEVICE_ORDER",
    HUB_SWITCH: "set for the server, where it gets no token",
    **dict.fromkeys(HUB_TOKENS, "a token, of which no value is ever kept"),
    "RECORD": "a file",
    "VIRTUAL_ENV": "names the interpreter, which a snapshot says",
    "CONDA_PREFIX": "the same",
    **dict.fromkeys(GENERATED.values(), "a part of FlashInfer's artifacts"),
    **dict.fromkeys(set(_QUIET) - set(OFFLINE), "set for the children that import"),
    "NETRC": "set for the server, where it gets no token",
    "VLLM_DOCTOR_HUB": "given to the child that asks a hub",
    **dict.fromkeys(_NETWORK, "given to it as well, and no part of a judgement"),
    **dict.fromkeys(("GET", "HEAD", "ON", "TRUE", "YES"), "no name of anything"),
    "VLLM_LOGGING_PREFIX": "said to end in a blank, of which no value is asked",
}


def test_the_values_that_are_kept_are_those_that_a_probe_or_a_rule_reads() -> None:
    root = Path(doctor.__file__).parent
    files = [*root.glob("probes/*.py"), *rules_folder().glob("*.py"), *root.glob("serve/*.py")]
    files += [root / "consumers/flashinfer.py", root / "consumers/hub.py"]
    files.remove(root / "probes/_imports.py")  # which sets where the caches of a child are
    read = set().union(*map(words_in_capitals, files)) - set(NO_VARIABLES)
    assert read | {*names_with(Trait.BUILD), *names_with(Trait.IMPORT)} == RECORDED


def test_of_what_else_concerns_a_server_the_name_alone_is_kept() -> None:
    families = ("VLLM_LOGGING_LEVEL", "HF_HUB_ETAG_TIMEOUT", "CUDA_MODULE_LOADING", "NCCL_DEBUG")
    more = ("GLOO_SOCKET_IFNAME", "TORCH_LOGS", "TORCHINDUCTOR_X", "FLASHINFER_X", "HF_TOKEN")
    env = dict.fromkeys((*families, *more), "value-of-it")
    left = shareable({**EMPTY, "env": {**env, "CUDA_HOME": "/cuda", "USER": "me"}}, None)
    assert left["env"] == {"CUDA_HOME": "/cuda"}
    assert left["env_names"] == sorted([*families, *more, "CUDA_HOME"])
    tape = load_tape(left)
    assert tape.env_names == tuple(left["env_names"])
    assert "HF_TOKEN" not in Tape(tape).env
    assert Tape(tape).hidden == tuple(sorted([*families, *more]))
    assert load_tape(EMPTY).env_names == ()


def test_a_variable_that_a_rule_reads_is_kept() -> None:
    names = (
        "PATH HOME LD_LIBRARY_PATH LIBRARY_PATH CPATH CUDA_HOME CUDA_PATH CUDA_VISIBLE_DEVICES "
        "NVCC_CCBIN NVCC_APPEND_FLAGS CC CXX FLASHINFER_NVCC FLASHINFER_CUDA_ARCH_LIST "
        "FLASHINFER_WORKSPACE_BASE FLASHINFER_EXTRA_CUDAFLAGS FLASHINFER_EXTRA_LDFLAGS PYTHONPATH "
        "VLLM_USE_FLASHINFER_SAMPLER TRITON_LIBCUDA_PATH PYTHONNOUSERSITE"
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
    renamed = live.out.replace(str(home), "/home/user").replace(str(DOCTOR), DOCTOR.name)
    assert _judgement(json.loads(renamed)) == _judgement(again.report)


def _judgement(report: dict[str, Any]) -> dict[str, Any]:
    return {k: report[k] for k in ("verdict", "exit_code", "primary", "outcomes", "not_checked")}
