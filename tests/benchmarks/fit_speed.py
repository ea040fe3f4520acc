"""How long `fit` of a model takes that the doctor knows, and a diagnosis beside that of an earlier
commit.

    python -m tests.benchmarks.fit_speed COMMIT

Installs both as pip does. `fit` needs no environment and no GPU: MODELS on a GPU that is named.
The diagnosis is of the default profile in the lab's environment of vLLM 0.22.0
(tests/real_stack/lab.py), by turns. Prints milliseconds of wall time and of processor time
(medians), and the difference.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from tests.benchmarks.command_speed import RUNS, by_turns
from tests.benchmarks.diagnose_speed import Timed
from tests.benchmarks.side_by_side import LATER, both_installed
from tests.real_stack import lab

MODELS = ("zai-org/GLM-4.7-Flash", "Qwen/Qwen3.5-35B-A3B", "deepseek-ai/DeepSeek-R1")
MACHINE = ("--gpu", "h100-80gb", "--gpus", "8", "--vllm-version", "0.33.0", "--format", "json")
KINDS = ("seconds", "processor")


def medians(runs: Sequence[Timed]) -> dict[str, float]:
    """Milliseconds of each kind of time."""
    return {kind: 1000 * statistics.median(getattr(r, kind)[0] for r in runs) for kind in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commit", metavar="COMMIT")
    commit = parser.parse_args().commit
    python = str(lab.environment(lab.REFERENCE).python)
    with both_installed(commit) as programs:
        print(f"| what | time | {commit[:8]} | now | difference |")
        print("| --- | --- | --- | --- | --- |")
        for model in MODELS:
            (took,) = by_turns([(programs[1], "fit", model, *MACHINE)])
            for kind, time in medians(took).items():
                print(f"| fit {model} | {kind} | | {time:.0f} ms | |")
        diagnose = ("diagnose", "--format", "json", *LATER, "--python", python)
        before, now = map(medians, by_turns([(program, *diagnose) for program in programs]))
        for kind in KINDS:
            more = now[kind] - before[kind]
            print(f"| diagnose | {kind} | {before[kind]:.0f} | {now[kind]:.0f} | {more:+.0f} ms |")
        print(f"medians of {RUNS} runs")


if __name__ == "__main__":
    main()
