"""One person's session with a broken environment, really run: what the commands of the READMEs
print that change something. The environment is of small wheels (tests/stand_ins), on a machine with
two H100s and no toolkit."""

from __future__ import annotations

import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tests import stand_ins
from tests.conftest import DOCTOR, PYTHON_FOLDER, Said, run_doctor
from tests.stand_ins import index as indexes
from tests.stand_ins.fixtures import VLLM, Bench, path_without_toolkit
from tests.stand_ins.wheels import vllm_world

COMMANDS = (
    "vllm-doctor fix",
    "vllm-doctor fix --apply",
    "vllm-doctor launch --dry-run",
    "vllm-doctor undo --list",
    "vllm-doctor undo",
)
HOME = "/home/operator"
"""As it is shown; the real one has as many letters, so that lines break at the same words."""
# What differs from run to run, and what is shown in its stead.
_SHOWN = (
    (rf"\b{re.escape(PYTHON_FOLDER)}\b", "python3.12"),
    (r"CPython 3\.\d+\.\d+", "CPython 3.12.3"),
    (r"\bin \d[\d.]*m?s\b", "in 12ms"),
    (r"\b20\d{6}-\d{6}\b", "20261129-191909"),
    (r"\b20\d\d-\d\d-\d\d \d\d:\d\d\b", "2026-11-29 19:19"),
    (rf"{HOME}/programs", "/usr/bin"),
)


@cache
def outputs() -> dict[str, Said]:
    """What each of COMMANDS prints, one after the other in the same environment."""
    home = Path(tempfile.mkdtemp(prefix="v", dir="/tmp"))
    try:
        return {
            command: Said(said.code, _shown(said.out, home), _shown(said.err, home))
            for command, said in _run(home).items()
        }
    finally:
        shutil.rmtree(home)


def _shown(text: str, home: Path) -> str:
    assert len(str(home)) == len(HOME)
    shown = text.replace(str(home), HOME)
    for pattern, instead in _SHOWN:
        shown = re.sub(pattern, instead, shown)
    return shown


def _run(home: Path) -> dict[str, Said]:
    bench = Bench(home, path_without_toolkit(home / "programs"))
    program = home / "programs/vllm-doctor"
    program.symlink_to(DOCTOR)
    driver = stand_ins.environment(stand_ins.build(home / "driver"), gpus=2)
    with indexes.serve(vllm_world(home / "world")) as served:
        made = bench.environment(home / "vllm-env", VLLM, index=served.url)
        shell = bench.shell(served.url, made, **driver)
        shell |= {"COLUMNS": "100", "VIRTUAL_ENV": str(made.prefix)}
        return {
            command: run_doctor(*command.split()[1:], env=shell, program=[str(program)])
            for command in COMMANDS
        }
