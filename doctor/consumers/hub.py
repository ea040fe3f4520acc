"""Where huggingface_hub looks for a repository's files, and whom it asks for them.

Read in huggingface_hub 0.36 and 2.4 (constants.py, file_download.py, utils/_validators.py,
utils/_auth.py), which each resolve the same variables in the same order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from doctor.target import Target

ENDPOINT = "https://huggingface.co"
REVISION = "main"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

_REPOSITORY = r"(?a:(?:\w[\w.-]*/)?\w[\w.-]*)"
_COMMIT = r"(?a:[\w.-]+)"
_TRUE = frozenset(("1", "ON", "YES", "TRUE"))
_VARIABLE = r"\$(?a:(\w+)|\{([^}]*)\})"  # os.path.expandvars


def is_repository(name: str) -> bool:
    """Whether it may name a repository of the hub (validate_repo_id): at most one slash."""
    odd = "--" in name or ".." in name or name.endswith((".git", ".", "-")) or len(name) > 96
    return not odd and re.fullmatch(_REPOSITORY, name) is not None


def cache(env: Mapping[str, str]) -> Path:
    """Its cache, HF_HUB_CACHE, for a process with this environment."""
    old = env.get("HUGGINGFACE_HUB_CACHE", os.path.join(_home(env), "hub"))  # noqa: PTH118 - as it is
    return Path(_expanded(env.get("HF_HUB_CACHE", old), env))


def _home(env: Mapping[str, str]) -> Path:
    cache = env.get("XDG_CACHE_HOME", "~/.cache")
    own = env.get("HF_HOME", os.path.join(cache, "huggingface"))  # noqa: PTH118 - as it is
    return Path(_expanded(own, env))


def _expanded(text: str, env: Mapping[str, str]) -> str:
    if text == "~" or text.startswith("~/"):
        text = env.get("HOME", "~") + text[1:]
    return re.sub(_VARIABLE, lambda found: env.get(found[1] or found[2] or "", found[0]), text)


def folder(cache: Path, repository: str) -> Path:
    """What a cache has of the repository (repo_folder_name)."""
    return cache / "--".join(("models", *repository.split("/")))


def snapshot(target: Target, cache: Path, repository: str, revision: str) -> Path | None:
    """The folder of a revision in a cache (try_to_load_from_cache), which need not be there; None
    where the cache has nothing of the repository, or cannot tell which commit the revision is."""
    home = folder(cache, repository)
    if target.stat(home) is None:
        return None
    named = target.stat(ref := home / "refs" / revision)
    commit = revision
    if named is not None and named.kind == "file":
        commit = (target.read(ref, 256) or b"").decode("utf-8", "replace")
    plain = re.fullmatch(_COMMIT, commit) and commit.strip(".")
    return home / "snapshots" / commit if plain else None


def is_offline(env: Mapping[str, str]) -> bool:
    """Whether it asks nobody: the second variable counts where the first is not set, or empty."""
    said = next((value for name in OFFLINE if (value := env.get(name))), "")
    return said.upper() in _TRUE


def without_xet(env: Mapping[str, str]) -> bool:
    """Whether it fetches by plain HTTP, also with hf_xet."""
    return env.get("HF_HUB_DISABLE_XET", "").upper() in _TRUE


def endpoint(env: Mapping[str, str]) -> str:
    """Where it asks."""
    return env.get("HF_ENDPOINT", ENDPOINT).rstrip("/") or ENDPOINT


def token_withheld(env: Mapping[str, str]) -> bool:
    """Whether it sends no token of itself."""
    return env.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE


def token_file(env: Mapping[str, str]) -> Path:
    """Where `hf auth login` keeps the token."""
    return Path(_expanded(env.get("HF_TOKEN_PATH") or str(_home(env) / "token"), env))


def token(env: Mapping[str, str]) -> str | None:
    """The token that it would send of itself, so far as the environment alone says."""
    if token_withheld(env):
        return None
    said = env.get("HF_TOKEN") or env.get("HUGGING_FACE_HUB_TOKEN") or ""
    return said.replace("\r", "").replace("\n", "").strip() or None
