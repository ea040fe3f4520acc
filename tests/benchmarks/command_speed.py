"""How long a diagnosis of one's own command line takes, beside that of a profile which says the
same, by an earlier commit.

    python -m tests.benchmarks.command_speed COMMIT

Installs both as pip does and runs them by turns, in the lab's environment of vLLM 0.22.0
(tests/real_stack/lab.py): the default profile with both, and `-- vllm serve ...` with the one,
against what `--set` says of the same model with the other. Prints milliseconds of wall time and of
processor time (medians), and the difference.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from tests.benchmarks.diagnose_speed import Timed, timed
from tests.benchmarks.side_by_side import LATER, both_installed
from tests.real_stack import lab

RUNS = 25
MODEL = "Qwen/Qwen3-32B"
SERVED = ("--tensor-parallel-size", "2", "--max-model-len", "40960", "--quantization", "fp8")
SETTINGS = {
    "model": MODEL,
    "tensor_parallel_size": 2,
    "max_model_len": 40960,
    "needs.architecture": "Qwen3ForCausalLM",
    "needs.model_type": "qwen3",
    "needs.attention_heads": 64,
}
COMMANDS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "default profile": ((), ()),
    f"vllm serve {MODEL} ...": (
        [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")],
        ("--", "vllm", "serve", MODEL, *SERVED),
    ),
}
"""What is judged: the words of the earlier commit, and those of now."""


def by_turns(commands: Sequence[Sequence[str]]) -> list[list[Timed]]:
    """Each run of each of the commands, one after the other, so that what else the machine does
    falls on all."""
    took: list[list[Timed]] = [[] for _ in commands]
    for _ in range(RUNS):
        for command, runs in zip(commands, took, strict=True):
            runs.append(timed(command, 1))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commit", metavar="COMMIT")
    commit = parser.parse_args().commit
    python = str(lab.environment(lab.REFERENCE).python)
    diagnose = ("diagnose", "--format", "json", *LATER, "--python", python)
    with both_installed(commit) as programs:
        print(f"| judged | time | {commit[:8]} | now | difference |")
        print("| --- | --- | --- | --- | --- |")
        for name, words in COMMANDS.items():
            took = by_turns([(p, *diagnose, *w) for p, w in zip(programs, words, strict=True)])
            for kind in ("seconds", "processor"):
                before, now = (
                    1000 * statistics.median(getattr(one, kind)[0] for one in runs) for runs in took
                )
                print(f"| {name} | {kind} | {before:.0f} | {now:.0f} | {now - before:+.0f} ms |")


if __name__ == "__main__":
    main()
