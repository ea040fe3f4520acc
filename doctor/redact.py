"""Takes out of a recording what is nobody else's business: secrets, names of people and homes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Variables that change what a server finds or how it starts. Everything else of the environment
# stays at home.
_KEPT = re.compile(
    r"(?:PATH|HOME|LANG|LC_ALL|VIRTUAL_ENV|CONDA_PREFIX|CC|CXX|CPATH|C_INCLUDE_PATH"
    r"|CPLUS_INCLUDE_PATH|LIBRARY_PATH|LD_LIBRARY_PATH|LD_PRELOAD|PYTHONPATH|PYTHONNOUSERSITE"
    r"|CUDA_\w+|CUDNN_\w+|NVCC_\w+|NVIDIA_\w+|NCCL_\w+|FLASHINFER_\w+|VLLM_\w+|TRITON_\w+"
    r"|TORCH\w*|PYTORCH_\w+|HF_HOME|HF_ENDPOINT|HF_HUB_\w+|MAX_JOBS|OMP_NUM_THREADS)"
)
SECRET_NAME = re.compile(r"(?i)TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL")
_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"), "sk-***"),
    (re.compile(r"(?i)\bbearer\s+[\w.~+/-]{8,}=*"), "Bearer ***"),
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|nvapi-)[A-Za-z0-9_-]{16,}"), "***"),
    (re.compile(r"\bAKIA[A-Z0-9]{12,}"), "AKIA***"),
    # To the last @ before the path: a password may hold one.
    (re.compile(r"(?<=://)[^/\s]+@"), "***@"),
    (re.compile(r"(?i)(?<=api[-_]key['\"]: )(?:\[[^\]]*\]|'[^']*')"), "***"),
    (
        re.compile(
            r"(?i)((?:password|passwd|secret|api[-_]?key|(?:hf|access|auth)[-_]token)['\"]?"
            r"(?:\s*[=:]\s*|\s)['\"]?|[?&]token=)[^\s'\",&\[]{4,}"
        ),
        r"\1***",
    ),
)


def without_secrets(text: str) -> str:
    """The text with stars for tokens, keys and passwords that are known by their shape."""
    for pattern, new in _SECRETS:
        text = pattern.sub(new, text)
    return text


def holds_secret(words: Iterable[str]) -> bool:
    """Whether one of a command's words shows a secret: by its shape, or as the value of a variable
    or an option with such a name."""
    return any(
        without_secrets(word) != word or SECRET_NAME.search(word.partition("=")[0])
        for word in words
        if "=" in word or "://" in word
    )


# A name ends where no further letter of a name follows.
_END = r"(?![\w-]|\.\w)"
# Folder names that say nothing of a person, also where a user is called so.
_PLAIN = frozenset(
    ("root", "nvidia", "python", "vllm", "torch", "lib", "bin", "opt", "usr", "user")
)


def redact(recording: dict[str, Any], home: str | None) -> dict[str, Any]:
    """The recording without variables that no rule reads, secrets, and the home's real name.

    A home is replaced everywhere by /home/user, so that paths still fit each other.
    """
    env = {
        k: v
        for k, v in recording["env"].items()
        if _KEPT.fullmatch(k) and not SECRET_NAME.search(k)
    }
    cleaned = _Cleaner(home)
    made: dict[str, Any] = cleaned({**recording, "env": env})
    return made


class _Cleaner:
    def __init__(self, home: str | None) -> None:
        self._rules: list[tuple[re.Pattern[str], str]] = []
        if home and len(Path(home).parts) > 1 and home != "/root":
            whole = re.escape(home.rstrip("/"))
            self._rules.append((re.compile(whole + _END), "/home/user"))
            name = Path(home).name
            if name not in _PLAIN and len(name) > 1:
                self._rules.append((re.compile(rf"(?<=/){re.escape(name)}{_END}"), "user"))
        self._rules.append((re.compile(rf"/home/(?!user{_END})[\w.-]*\w"), "/home/someone"))
        self._rules += _SECRETS

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            for pattern, new in self._rules:
                value = pattern.sub(new, value)
            return value
        if isinstance(value, Mapping):
            return {self(k): self(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(v) for v in value]
        return value
