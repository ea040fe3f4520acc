"""What a folder of 200 shards costs a diagnosis, side by side with an earlier commit.

    python -m tests.benchmarks.files_speed COMMIT

Both are installed as pip does. A model of 200 files with 220 tensors each is served by its path
from the lab's environment of vLLM 0.22.0 (tests/real_stack/lab.py), by turns with the same model
in one file of one tensor. Prints milliseconds of wall time (medians), and what the shards and this
commit add.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.command_speed import RUNS, by_turns
from tests.benchmarks.side_by_side import LATER, both_installed
from tests.real_stack import lab

SHARDS, TENSORS = 200, 220


def shard(path: Path, tensors: int, first: int) -> dict[str, str]:
    """A file of so many tensors of one byte; its rows of the index."""
    names = [f"model.layers.{(first + n) // 900}.mlp.experts.{first + n}.w" for n in range(tensors)]
    rows = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]}
        for n, name in enumerate(names)
    }
    text = json.dumps(rows).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(tensors))
    return dict.fromkeys(names, path.name)


def model(folder: Path, shards: int, tensors: int) -> Path:
    """A served folder."""
    folder.mkdir()
    places: dict[str, str] = {}
    for n in range(shards):
        name = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        places |= shard(folder / name, tensors, n * tensors)
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    index = {"metadata": {"total_size": len(places)}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commit", metavar="COMMIT")
    commit = parser.parse_args().commit
    python = str(lab.environment(lab.REFERENCE).python)
    with both_installed(commit) as programs, tempfile.TemporaryDirectory() as place:
        one = model(Path(place, "one"), 1, 1)
        many = model(Path(place, "many"), SHARDS, TENSORS)
        words = ("diagnose", "--format", "json", *LATER, "--python", python, "--set")
        asked = [(p, *words, f"model={m}") for m in (one, many) for p in programs]
        times = [
            1000 * statistics.median(run.seconds[0] for run in runs) for runs in by_turns(asked)
        ]
    print(f"| model | {commit[:8]} | now | difference |\n| --- | --- | --- | --- |")
    for name, (before, now) in {"one file": times[:2], "200 shards": times[2:]}.items():
        print(f"| {name} | {before:.0f} | {now:.0f} | {now - before:+.0f} ms |")
    print(f"medians of {RUNS} runs")


if __name__ == "__main__":
    main()
