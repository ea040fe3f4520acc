"""`explain` of a server that measured its memory: predicted beside real, whatever stands in the
log, and never another verdict for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from doctor.logs.predicted import PredictedMemory, predicted
from doctor.logs.started import MemoryWatch, StartedMemory
from doctor.report.explained import explained_schema
from doctor.report.lines import Style
from doctor.report.measured import memory_lines
from tests.conftest import must_fit, run_inside

ARGUMENTS = (
    "(APIServer pid=1) INFO 11-22 10:00:00 [utils.py:278] non-default args: {'model_tag': "
    "'zai-org/GLM-4.7-Flash', 'model': 'zai-org/GLM-4.7-Flash', 'max_model_len': 40960}\n"
)
ENGINE = (
    "(EngineCore pid=3) INFO 11-22 10:00:13 [core.py:112] Initializing a V1 LLM engine (v0.22.0) "
    "with config: model='zai-org/GLM-4.7-Flash', speculative_config=None, dtype=torch.bfloat16, "
    "max_seq_len=40960, tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1, "
    "quantization=None, enforce_eager=True, kv_cache_dtype=auto, device_config=cuda\n"
)
LOADED = "(EngineCore pid=3) INFO [m.py:1] Model loading took 55.87 GiB memory and 31.9 seconds\n"
AVAILABLE = "(EngineCore pid=3) INFO [w.py:1] Available KV cache memory: 15.03 GiB\n"
SIZE = "(EngineCore pid=3) INFO [k.py:1] GPU KV cache size: 298,048 tokens\n"
CONCURRENCY = (
    "(EngineCore pid=3) INFO [k.py:2] Maximum concurrency for 40,960 tokens per request: 7.28x\n"
)
READY = "(APIServer pid=1) INFO:     Application startup complete.\n"
LOG = ARGUMENTS + ENGINE + LOADED + AVAILABLE + SIZE + CONCURRENCY + READY


def started(log: str, block: int = 1 << 20) -> StartedMemory | None:
    data, watch = log.encode(), MemoryWatch()
    blocks = [data[at : at + block] for at in range(0, len(data), block)]
    assert list(watch.watching(blocks)) == blocks
    return watch.started()


def of(log: str) -> PredictedMemory:
    found = started(log)
    assert found is not None
    return predicted(found)


def explained(folder: Path, log: str) -> dict[str, Any]:
    path = folder / "server.log"
    path.write_text(log)
    said = run_inside("explain", "--no-live", "--format", "json", path)
    report: dict[str, Any] = json.loads(said.out)
    must_fit(report, explained_schema)
    assert said.code == 0
    return report


def test_what_is_predicted_stands_beside_what_was_printed(tmp_path: Path) -> None:
    said = explained(tmp_path, LOG)["memory"]
    assert (said["model"], said["vllm"]) == ("zai-org/GLM-4.7-Flash", "0.22.0")
    assert said["weights_bytes"]["real"] == round(55.87 * (1 << 30))
    assert said["kv_tokens"]["real"] == 298048
    tokens = said["kv_tokens"]["predicted"]
    assert 297900 < tokens["low"] <= 298048 <= tokens["high"] < 298250
    assert said["max_concurrency"] == {"predicted": pytest.approx(7.28, abs=0.005), "real": 7.28}
    assert said["available_kv_bytes"] == {"predicted": None, "real": round(15.03 * (1 << 30))}
    low, high = (said["weights_bytes"]["predicted"][end] for end in ("low", "high"))
    assert low <= said["weights_bytes"]["real"] <= high
    assert said["why"] is None


def test_a_person_reads_it_before_the_conclusion(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text(LOG)
    said = run_inside("explain", "--no-live", tmp_path / "server.log").out
    told = said[said.index("memory, predicted and real") :]
    assert "298,048 tokens real" in told
    assert "55.87 GiB real" in told
    assert "Nothing found" in told


def test_releases_print_it_in_one_line_too() -> None:
    newest = ENGINE.replace("0.22.0", "0.33.0")
    line = SIZE.rstrip() + ", Maximum concurrency for 40,960 tokens per request: 7.28x\n"
    made = of(newest + LOADED + AVAILABLE + line + READY)
    assert made.real.tokens == 298048
    assert made.tokens is not None
    assert made.tokens.low <= 298048 <= made.tokens.high


def test_the_last_start_counts() -> None:
    other = LOG.replace("15.03", "12.00").replace("298,048", "237,968").replace("7.28", "5.81")
    made = started(other + LOG)
    assert made is not None
    assert (made.available, made.tokens) == (15.03, 298048)


def test_of_several_ranks_the_least_memory_counts_and_the_most_weights() -> None:
    more = LOADED.replace("55.87", "55.99") + AVAILABLE.replace("15.03", "15.01")
    made = started(LOG.replace(SIZE, more + SIZE))
    assert made is not None
    assert (made.loaded, made.available) == (55.99, 15.01)


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 20])
def test_a_log_may_come_in_blocks_of_any_size(block: int) -> None:
    assert started(LOG, block) == started(LOG)


@pytest.mark.parametrize("lacking", [ENGINE, LOADED, AVAILABLE, SIZE, CONCURRENCY])
def test_without_one_of_the_lines_nothing_is_said(tmp_path: Path, lacking: str) -> None:
    assert started(LOG.replace(lacking, "")) is None
    assert explained(tmp_path, LOG.replace(lacking, ""))["memory"] is None


def test_a_folder_of_the_hub_cache_is_its_repository() -> None:
    folder = "/hub/models--zai-org--GLM-4.7-Flash/snapshots/0a1b2c"
    made = of(LOG.replace("model='zai-org/GLM-4.7-Flash'", f"model='{folder}'"))
    assert made.tokens is not None


def test_options_that_change_it_are_read_from_the_command() -> None:
    given = (
        "{'speculative_config': {'method': 'mtp', 'num_speculative_tokens': 1}, 'block_size': 64}"
    )
    found = started(ARGUMENTS.partition("{")[0] + given + "\n" + LOG.replace(ARGUMENTS, ""))
    assert found is not None
    assert found.options["block_size"] == 64
    assert found.options["speculative_config"] == {"method": "mtp", "num_speculative_tokens": 1}
    assert "num_speculative_tokens" not in found.options


UNKNOWN = {
    "a model that nobody knows": LOG.replace("zai-org/GLM-4.7-Flash", "somebody/else"),
    "a drafter of which the log says nothing": LOG.replace(
        "speculative_config=None", "speculative_config=SpeculativeConfig(method='mtp', num=1)"
    ),
    "no version": LOG.replace("v0.22.0", "v0.x..22"),
    "more ranks than there are": LOG.replace(
        "pipeline_parallel_size=1", "pipeline_parallel_size=999999999999"
    ),
}


@pytest.mark.parametrize("log", UNKNOWN.values(), ids=UNKNOWN)
def test_what_cannot_be_told_is_said_in_one_line(tmp_path: Path, log: str) -> None:
    made = of(log)
    assert (made.weights, made.tokens) == (None, None)
    assert made.why
    lines = ["".join(piece for _, piece in line) for line in memory_lines(made, Style(width=400))]
    assert len(lines) == 2
    assert explained(tmp_path, log)["memory"]["why"] == str(made.why)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("298,048", "," * 20),
        ("298,048", "9" * 5000),
        ("40,960", "0"),
        ("40,960", "9" * 20),
        ("40,960", "9" * 15),
        ("15.03", "0"),
        ("15.03", "999999.99"),
        ("15.03", "nan"),
        ("-size=1", "-size=-1"),
        ("tensor_parallel_size=1", "tensor_parallel_size=0"),
        ("tensor_parallel_size=1", "tensor_parallel_size=7"),
        ("decode", "\x1b[31m"),
        ("kv_cache_dtype=auto", "kv_cache_dtype=nonsense"),
        ("'max_model_len': 40960", "'a': {" * 3000),
        ("'max_model_len': 40960", "'block_size': 999999999999"),
        (
            "'max_model_len': 40960",
            "'speculative_config': {'num_speculative_tokens': 999999999999}",
        ),
        ("'max_model_len': 40960", "'gpu_memory_utilization': 99.5, 'block_size': -1"),
        ("(v0.22.0)", "(v" + "9" * 60 + ")"),
    ],
)
def test_whatever_stands_in_a_log_the_verdict_stays(tmp_path: Path, old: str, new: str) -> None:
    report = explained(tmp_path, LOG.replace(old, new))
    assert report["verdict"] == "nothing-found"


def test_a_log_of_nothing_but_such_lines_is_read_once() -> None:
    data = LOG.encode() * 5000
    watch = MemoryWatch()
    list(watch.watching([data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)]))
    assert watch.started() == started(LOG)
