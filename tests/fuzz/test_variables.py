"""Variables of the environment that a server would be started with."""

from __future__ import annotations

import random

import pytest

from doctor import profile as profiles
from doctor.diagnose import Question, diagnose
from doctor.engine import Facts, load_rules
from doctor.probes.interpreter import FoundBy, Where
from doctor.profile import ServeRequest
from doctor.report.json import to_json
from doctor.shipped import rules_folder
from doctor.target import Live
from tests.conftest import SYSTEM, Environment
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutate import has_no_crash, words

pytestmark = pytest.mark.hardening

NAMES = (
    *("PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "CUDA_HOME", "CUDA_PATH"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CC", "CXX", "NVCC_APPEND_FLAGS", "TMPDIR"),
    *("NVCC_PREPEND_FLAGS", "FLASHINFER_NVCC", "FLASHINFER_CUDA_ARCH_LIST", "TRITON_LIBCUDA_PATH"),
    *("FLASHINFER_WORKSPACE_BASE", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME"),
    *("TORCH_CUDA_ARCH_LIST", "TORCH_EXTENSIONS_DIR", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "MAX_JOBS", "LC_ALL", "LANG"),
    *("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_ATTENTION_BACKEND", "PYTHONNOUSERSITE", "NO_PROXY"),
    *("https_proxy", "http_proxy", "VIRTUAL_ENV", "CONDA_PREFIX", "CPATH", "LIBRARY_PATH"),
)
PLACES = (
    "/usr",
    "/usr/bin",
    "/tmp",
    "/nowhere",
    "/dev/null",
    ".",
    "",
    "/usr/bin:/bin",
    "~",
    "/proc",
)


def test_whatever_is_in_the_environment_breaks_no_rule(
    fuzz: Fuzz, shared_server: Environment
) -> None:
    rules = load_rules(rules_folder())
    where = Where(shared_server.python, FoundBy.OPTION)

    def one(r: random.Random) -> None:
        env = {}
        for _ in range(r.randint(1, 6)):
            pieces = [r.choice(PLACES) if r.random() < 0.5 else words(r, 2) for _ in range(2)]
            value = ":".join(pieces[: r.randint(1, 2)]).replace("\0", "")
            env[r.choice(NAMES)] = value
        sets = r.choice(([], ["gpus=later", "archs=9.0"], ["device=cpu"]))
        profile = profiles.load_profile(profiles.DEFAULT_PROFILE, sets)
        facts = Facts(Live({**SYSTEM, **env}), (where, ServeRequest(profile)))
        report = diagnose(facts, rules, Question("x"))
        has_no_crash(to_json(report))

    fuzz.each(one)
