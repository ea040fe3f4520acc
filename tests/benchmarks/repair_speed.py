"""How long a repair takes, side by side with the bare installer that does the same.

    python -m tests.benchmarks.repair_speed

In copies of the lab's reference environment (a fresh `pip install vllm==0.22.0`), with uv's cache
warm. Prints wall seconds (median, least, most) of the plan, of `fix --apply` beside a bare `uv pip
install` of the same set and the test build, of setting aside what it replaces, and of `undo`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from doctor.repair import swap
from tests.real_stack import lab
from tests.real_stack.repairs import copy_of
from tests.real_stack.test_repair import REPLACED

RUNS = 3
DOCTOR = str(Path(sys.executable).with_name("vllm-doctor"))
UV = str(Path(sys.executable).with_name("uv"))
LATER = ("--set", "gpus=later", "--set", "archs=9.0")


def seconds(*command: str, ok: Sequence[int] = (0,), **variables: str) -> float:
    """Wall seconds of a command, which must end with one of the codes `ok`."""
    began = time.perf_counter()
    env = {**os.environ, **variables}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if ran.returncode not in ok:
        raise SystemExit(f"{' '.join(command)} ended with {ran.returncode}:\n{ran.stderr}")
    return took


def fix(target: lab.Environment, *options: str) -> list[str]:
    return [DOCTOR, "fix", "--python", str(target.python), "--mirror", "default", *LATER, *options]


def roots(target: lab.Environment) -> list[str]:
    """What the plan installs, each as name==version."""
    ran = subprocess.run(
        fix(target, "--format", "json"), capture_output=True, text=True, check=False
    )
    return [f"{m['name']}=={m['new']}" for m in json.loads(ran.stdout)["moves"]]


def set_aside(target: lab.Environment, scratch: Path) -> float:
    """Taking all files of the replaced distributions out of the target, known by their sha256."""
    infos = [next(target.site_packages.glob(f"{name}-*.dist-info")) for name in REPLACED]
    rows = [row for info in infos for row in (info / "RECORD").read_text().splitlines()]
    site = target.site_packages.relative_to(target.prefix)
    away = {os.path.normpath(site / row.partition(",")[0]) for row in rows if row}
    (scratch / "new").mkdir()
    began = time.perf_counter()
    made = swap.plan(target.prefix, scratch / "new", scratch / "aside", sorted(away))
    swap.forward(made)
    return time.perf_counter() - began


def row(name: str, times: Sequence[float]) -> str:
    return f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} to {max(times):.2f} |"


def main() -> None:
    reference = lab.environment(lab.REFERENCE)
    times: dict[str, list[float]] = {}
    wanted = roots(reference)
    for number in range(RUNS + 1):  # the first warms up
        # Beside the lab, so that files are linked as they are in a user's own environment.
        with tempfile.TemporaryDirectory(dir=lab.folder()) as folder:
            scratch = Path(folder)
            mended, bare, taken = (
                copy_of(reference, scratch / name) for name in ("mended", "bare", "taken")
            )
            took = {
                "`vllm-doctor fix`, the plan": seconds(*fix(mended), ok=(1,)),
                "`vllm-doctor fix --apply`": seconds(*fix(mended, "--apply")),
                "`vllm-doctor diagnose --deep`": seconds(
                    *(DOCTOR, "diagnose", "--deep", "--python", str(mended.python), *LATER)
                ),
                "`vllm-doctor undo`": seconds(DOCTOR, "undo", "--python", str(mended.python)),
                "bare `uv pip install` of the same": seconds(
                    *(UV, "pip", "install", "--no-config", "--python", str(bare.python)), *wanted
                ),
                "setting aside": set_aside(taken, scratch),
            }
            for tree in (mended, bare, taken):
                shutil.rmtree(tree.prefix)
        for name, one in took.items():
            times.setdefault(name, [])
            if number:
                times[name].append(one)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}\n")
    print("| command | seconds | least to most |\n| --- | --- | --- |")
    for name, rows in times.items():
        print(row(name, rows))
    apply, deep, install = (
        statistics.median(times[name])
        for name in (
            "`vllm-doctor fix --apply`",
            "`vllm-doctor diagnose --deep`",
            "bare `uv pip install` of the same",
        )
    )
    print(
        f"\napply takes {apply / (install + deep):.2f} times the bare install and the test build."
    )


if __name__ == "__main__":
    main()
