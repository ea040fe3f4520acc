"""How long a diagnosis takes, side by side with vLLM's own collector in the same environment.

    python -m tests.benchmarks.diagnose_speed

In the lab's real environments (tests/real_stack/lab.py): a fresh `pip install vllm==0.22.0`, and a
repaired one for the test build. Prints a table of wall seconds (median, least, most) and peak
memory (MiB, the largest single process), the ratio to vLLM's collector, and what one further rule
costs. Each command is warmed up once.
"""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.real_stack import lab

RUNS = 7
RULES = 1000


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


def timed(command: Sequence[str], runs: int = RUNS, **variables: str) -> Timed:
    """`command` as a whole process, `runs` times after one warm-up."""
    env = {**os.environ, **variables}
    seconds, processor, memory = [], [], 0.0
    for run in range(runs + 1):
        began = time.perf_counter()
        child = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
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


def diagnose(target: lab.Environment, *options: str) -> list[str]:
    doctor = str(Path(sys.executable).with_name("vllm-doctor"))
    return [doctor, "diagnose", "--python", str(target.python), "--format", "json", *options]


def main() -> None:
    fresh, repaired = lab.environment(lab.REFERENCE), lab.environment(lab.COHERENT)
    judge = diagnose(fresh)
    ours = timed(judge)
    theirs = timed([str(fresh.python), "-m", "vllm.collect_env"], 3)
    with tempfile.TemporaryDirectory() as folder:
        home = str(lab.folder_of_links(repaired, Path(folder)))
        deep = timed(diagnose(repaired, "--deep", "--set", "gpus=later"), 3, CUDA_HOME=home)
    with tempfile.TemporaryDirectory() as folder:
        further_rules(RULES, Path(folder))
        compileall.compile_dir(folder, quiet=2)  # as pip does with ours
        more = timed([*judge, "--rules", folder])
    count = len(list(fresh.site_packages.glob("*.dist-info")))
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {count} distributions\n")
    print("| command | seconds | least to most | MiB |\n| --- | --- | --- | --- |")
    print(row("`vllm-doctor diagnose --format json`", ours))
    print(row("`python -m vllm.collect_env`", theirs))
    print(row("`vllm-doctor diagnose --deep`, two architectures", deep))
    print(f"\nvllm.collect_env takes {theirs.median / ours.median:.1f} times as long.")
    # Processor time: a tenth of a millisecond drowns in the noise of wall time.
    cost = (statistics.median(more.processor) - statistics.median(ours.processor)) / RULES * 1000
    print(f"One further rule costs {cost:.3f} ms of processor time ({RULES} rules measured).")


if __name__ == "__main__":
    main()
