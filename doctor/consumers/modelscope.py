"""Where ModelScope's client keeps a model, whom it asks, and when vLLM uses it.

Read in modelscope_hub 0.5.1, which modelscope 1.40 fetches with (config.py, _download.py: the same
places are searched by the snapshot_download that vLLM calls), and vLLM 0.22.0 and 0.33.0 (envs.py).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from doctor.consumers.names import ENVS, FileSearch, NotAsKnown
from doctor.target import Target

SITE = "https://modelscope.cn"
ENDPOINTS = ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN")
"""The variables that name another, the first that is set."""
TOKEN = "MODELSCOPE_API_TOKEN"  # noqa: S105 - the name of a variable
CACHE = "MODELSCOPE_CACHE"
MASTER = "master"
SWITCH = "VLLM_USE_MODELSCOPE"

_READ = rf'\n    "{SWITCH}": lambda: \(\n +([^\n]+)\n'


def modelscope_endpoint(env: Mapping[str, str]) -> str:
    """Where it asks, as normalize_endpoint has it."""
    said = next((value for name in ENDPOINTS if (value := env.get(name, "").strip())), SITE)
    if not said.lower().startswith(("http://", "https://")):
        said = f"https://{said}"
    return said.rstrip("/")


def modelscope_cache(env: Mapping[str, str], start: Path) -> Path:
    """Its cache, for a process that starts in this folder."""
    return start / _expanded(
        env.get(CACHE) or env.get("MS_CACHE_HOME") or "~/.cache/modelscope", env
    )


def modelscope_folder(target: Target, cache: Path, repository: str, revision: str) -> Path:
    """Where the files of a revision lie, or would: clients before 1.38 had a folder for each model,
    whatever its revision, and where there is one it is used."""
    owner, _, name = repository.partition("/")
    for below in ("models", "hub/models"):
        older = cache / below / owner / name.replace(".", "___")
        if target.listdir(older):
            return older
    return cache / "models" / f"{owner}--{name}" / "snapshots" / revision


def login(env: Mapping[str, str]) -> Path:
    """Where `modelscope login` keeps the token."""
    home = env.get("MODELSCOPE_HOME") or "~/.modelscope"
    return Path(_expanded(home, env)) / "credentials/cookies"


def _expanded(text: str, env: Mapping[str, str]) -> str:
    return env.get("HOME", "~") + text[1:] if text == "~" or text.startswith("~/") else text


def switched_on_by(search: FileSearch) -> tuple[tuple[str, ...], bool]:
    """The values, in lower case, for which vLLM takes its switch for on, any other being off; and
    whether spaces around them do not count. By the expression in envs.py; raises NotAsKnown."""
    rows = search(ENVS, _READ)
    try:
        read = ast.parse(rows[0].strip(), mode="eval").body if rows else None
    except (SyntaxError, ValueError):
        read = None
    if not isinstance(read, ast.Compare) or len(read.ops) != 1:
        raise NotAsKnown(ENVS)
    values = _values(read.ops[0], read.comparators[0])
    called = [n.attr for n in ast.walk(read.left) if isinstance(n, ast.Attribute)]
    if not values or "lower" not in called:
        raise NotAsKnown(ENVS)
    return values, "strip" in called


def _values(how: ast.cmpop, compared: ast.expr) -> tuple[str, ...]:
    try:
        said = ast.literal_eval(compared)
    except ValueError:
        return ()
    if isinstance(how, ast.Eq) and isinstance(said, str):
        return (said,)
    many = isinstance(how, ast.In) and isinstance(said, tuple)
    return tuple(one for one in said if isinstance(one, str)) if many else ()
