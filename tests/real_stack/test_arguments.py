"""What is read of a server's command line, against vLLM's own parser.

50 lines each; more by hand: VLLM_DOCTOR_LINES=200 python -m pytest -n 0 -m real_stack
tests/real_stack/test_arguments.py (and -m newest_stack for the newest).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from doctor.consumers.server_options import OptionTable, Takes, option_table
from doctor.probes.arguments import ServerOptions
from doctor.target import Live
from tests import command_lines
from tests.conftest import Environment, facts_of
from tests.real_stack import lab

COUNT = int(os.environ.get("VLLM_DOCTOR_LINES", "50"))
FEW = ("lora_modules", "device_ids", "mm_processor_device", "log_config_file")


@pytest.fixture(scope="module")
def reference() -> lab.Environment:
    try:
        return lab.environment(lab.REFERENCE)
    except lab.LabError as error:
        pytest.fail(str(error))


def table_of(environment: lab.Environment) -> OptionTable:
    return facts_of(Environment(environment.prefix)).get(ServerOptions).table


def assert_read_alike(environment: lab.Environment, folder: Path, seed: int) -> None:
    table = table_of(environment)
    unknown = {one.name for one in table.options if one.takes is Takes.UNKNOWN}
    assert unknown <= {*FEW, "collect_detailed_traces"}
    (folder / "serve.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "list.yaml").write_text("- port\n", encoding="utf-8")
    given = [*command_lines.lines(table, seed, COUNT), *WITH_FILES]
    said = command_lines.judged(environment.python, given, folder)
    refused = sum(bool(one["refused"]) for one in said)
    assert len(said) // 10 < refused < len(said) * 9 // 10
    assert list(command_lines.differences(table, given, said, folder)) == []


CONFIG = """\
model: org/of-the-file
port: 8001
enforce_eager: true
enable-prefix-caching: false
served-model-name: [one, two]
compilation-config: {mode: 3}
max_model_len: 40k
"""
WITH_FILES: list[command_lines.Line] = [
    ("serve", ["--config", "serve.yaml"]),
    ("serve", ["org/model", "--config", "serve.yaml", "--port", "9"]),
    ("serve", ["--port", "9", "--config", "serve.yaml"]),
    ("module", ["--config", "serve.yaml", "--max-model-len", "8k"]),
    ("serve", ["org/model", "--config", "list.yaml"]),
    ("serve", ["--config=serve.yaml", "--served-model-name", "x"]),
]


@pytest.mark.real_stack
def test_lines_are_read_as_the_parser_of_0_22_reads_them(
    reference: lab.Environment, tmp_path: Path
) -> None:
    assert_read_alike(reference, tmp_path, 22)


@pytest.mark.newest_stack
def test_lines_are_read_as_the_parser_of_the_newest_reads_them(
    newest: lab.Environment, tmp_path: Path
) -> None:
    assert_read_alike(newest, tmp_path, 33)


@pytest.mark.real_stack
def test_the_table_is_small(reference: lab.Environment) -> None:
    """What a snapshot holds of it, in bytes."""
    root, size = reference.site_packages / "vllm", 0

    def search(file: str, pattern: str) -> tuple[str, ...] | None:
        nonlocal size
        found = Live({}).search(root / file, pattern)
        size += len(pattern) + sum(map(len, found or ()))
        return found

    assert option_table(search).options
    assert size < 80_000
