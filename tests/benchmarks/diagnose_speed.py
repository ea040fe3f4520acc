"""How long a diagnosis takes, side by side with vLLM's own collector in the same environment.

    python tests/benchmarks/diagnose_speed.py [ENVIRONMENT]

ENVIRONMENT is a folder with a real `vllm==0.22.0` (default: the lab's reference). Prints a table of
wall seconds (median, least, most) and peak memory (MiB, the largest single process), the ratio to
vLLM's collector, and what one further rule costs. Each command is warmed up once.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RUNS = 5
RULES = 200
LAB = Path(os.environ.get("VLLM_DOCTOR_LAB", "~/.cache/vllm-doctor-lab")).expanduser()


@dataclass(frozen=True)
class Timed:
    """Wall seconds of each run; processor seconds of each, children included; peak resident
    memory of the largest process, MiB."""

    seconds: tuple[float, ...]
    processor: tuple[float, ...]
    memory: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def timed(command: Sequence[str], runs: int = RUNS) -> Timed:
    """`command` as a whole process, `runs` times after one warm-up."""
    seconds, processor, memory = [], [], 0.0
    for run in range(runs + 1):
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, _, usage = os.wait4(child.pid, 0)
        child.returncode = 0  # reaped above
        if run:
            seconds.append(time.perf_counter() - began)
            processor.append(usage.ru_utime + usage.ru_stime)
            memory = max(memory, usage.ru_maxrss / 1024)
    return Timed(tuple(seconds), tuple(processor), memory)


def further_rules(count: int, folder: Path) -> None:
    """Writes a rule file with `count` rules of an ordinary shape."""
    needs = "packages: Packages, vllm: Vllm, profile: Profile"
    rows = [
        "from doctor import Finding, Severity, Stage, Text, rule",
        "from doctor.probes.wheels import Packages, Vllm",
        "from doctor.profile import Profile",
    ]
    for i in range(count):
        rows.append(
            f'@rule("further-{i}", Severity.WARNING, Stage.IMPORT)\n'
            f"def further_{i}({needs}) -> Finding | None:\n"
            f'    """A package is there that should not be.\n\n    It breaks things.\n    """\n'
            f'    version = packages.version("no-such-package-{i}")\n'
            f"    if version is None:\n        return None\n"
            f'    return Finding(Text("{{version}}", version=version))\n'
        )
    (folder / "further.py").write_text("\n\n".join(rows), encoding="utf-8")


def row(name: str, one: Timed) -> str:
    least, most = min(one.seconds), max(one.seconds)
    return f"| {name} | {one.median:.2f} | {least:.2f} to {most:.2f} | {one.memory:.0f} |"


def main() -> None:
    environment = Path(sys.argv[1]) if len(sys.argv) > 1 else LAB / "reference"
    python = environment / "bin/python"
    doctor = [str(Path(sys.executable).with_name("vllm-doctor")), "diagnose"]
    judge = [*doctor, "--python", str(python), "--format", "json"]
    ours = timed(judge)
    theirs = timed([str(python), "-m", "vllm.collect_env"], 3)
    deep = timed([*judge, "--deep", "--set", "gpus=later"], 3)
    with tempfile.TemporaryDirectory() as folder:
        further_rules(RULES, Path(folder))
        more = timed([*judge, "--rules", folder])
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {environment}\n")
    print("| command | s | least to most | MiB |\n| --- | --- | --- | --- |")
    print(row("`vllm-doctor diagnose --format json`", ours))
    print(row("`python -m vllm.collect_env`", theirs))
    print(row("`vllm-doctor diagnose --deep`", deep))
    print(f"\nvllm.collect_env takes {theirs.median / ours.median:.1f} times as long.")
    # Processor time: a tenth of a millisecond drowns in the noise of wall time.
    cost = (statistics.median(more.processor) - statistics.median(ours.processor)) / RULES * 1000
    print(f"One further rule costs {cost:.3f} ms of processor time ({RULES} rules measured).")


if __name__ == "__main__":
    main()
