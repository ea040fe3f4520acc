"""How long `vllm-doctor env` takes, as a whole process: it stands in shells' start files.

    python -m tests.benchmarks.env_speed

In a small environment with saved variables. Prints wall and processor seconds, median of 20 runs,
and the same of a Python that only starts, which is the floor.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from doctor.probes.environment import SAVED
from tests.benchmarks.diagnose_speed import timed
from tests.conftest import BASE_PYTHON, DOCTOR, bare_environment

RUNS = 20
KEPT = {
    "CUDA_HOME": {"value": "/opt/env/share/vllm-doctor/cuda-13.0"},
    "PATH": {"value": "/opt/env/share/vllm-doctor/cuda-13.0/bin", "prepend": True},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        one = bare_environment(Path(folder) / "env")
        path = one.prefix / SAVED
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"schema_version": 1, "variables": KEPT}), encoding="utf-8")
        commands = {
            "`vllm-doctor env`": [str(DOCTOR), "env", "--python", str(one.prefix)],
            "`python -I -c pass`": [str(BASE_PYTHON), "-I", "-c", "pass"],
        }
        print(f"Python {sys.version.split()[0]}, median of {RUNS} runs\n")
        print(
            "| command | seconds | least to most | processor seconds |\n| --- | --- | --- | --- |"
        )
        for name, command in commands.items():
            made = timed(command, RUNS)
            least, most = min(made.seconds), max(made.seconds)
            processor = statistics.median(made.processor)
            print(f"| {name} | {made.median:.3f} | {least:.3f} to {most:.3f} | {processor:.3f} |")


if __name__ == "__main__":
    main()
