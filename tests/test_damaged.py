"""What becomes of a diagnosis where one file that it reads is not as expected.

Exit code 3 (could not tell) is left to what decides a start, whatever else is fine: the tables of
models, of options and of parsers, and how FlashInfer looks for CUDA. No damage makes a broken
server healthy. The same over all files of a real vLLM: tests/real_stack/test_damaged.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from doctor.diagnose import exit_code
from doctor.model import Severity, Verdict
from tests.damage import FILES, Place, make_place

DECIDING = {
    "vllm/model_executor/models/registry.py": "architecture-not-in-vllm",
    "vllm/engine/arg_utils.py": "unknown-server-option",
    "vllm/entrypoints/openai/cli_args.py": "unknown-server-option",
    "vllm/reasoning/__init__.py": "reasoning-parser-unknown",
    "vllm/tool_parsers/__init__.py": "tool-parser-unknown",
    "flashinfer/jit/cpp_ext.py": "nvcc-missing",
    "transformers/models/auto/auto_mappings.py": "architecture-not-in-transformers",
    "transformers/models/auto/configuration_auto.py": "architecture-not-in-transformers",
}
"""The rule that then cannot tell."""
PACKAGES = ("vllm/__init__.py", "flashinfer/__init__.py")  # without it, the package is gone


def _half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut in half": _half,
    "binary": lambda path: path.write_bytes(b"\x7fELF\0\xff\xfe" * 999),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("damaged"))


@pytest.fixture
def damaged(place: Place, file: str) -> Iterator[Path]:
    """The file, put back after the test."""
    path, kept = place.server.site / file, place.server.prefix / "kept"
    shutil.copy(path, kept)
    yield path
    kept.replace(path)


def test_undamaged_it_is_healthy_and_without_a_toolkit_it_is_not(place: Place) -> None:
    assert exit_code(place.judge(), Severity.ERROR) == 0
    assert exit_code(place.judge(broken=True), Severity.ERROR) == 1


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_only_what_decides_the_start_costs_a_healthy_server_exit_code_3(
    place: Place, damaged: Path, file: str, damage: str
) -> None:
    DAMAGES[damage](damaged)
    outcomes = place.judge()
    code = exit_code(outcomes, Severity.ERROR)
    if file in PACKAGES and damage == "removed":
        assert code == 1
    elif code:
        assert code == 3
        unknown = {o.rule.id: str(o.why) for o in outcomes if o.verdict is Verdict.UNKNOWN}
        assert file in DECIDING, unknown
        assert str(damaged) in unknown[DECIDING[file]] or "models/auto" in str(damaged)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_no_damage_makes_a_broken_server_healthy(
    place: Place, damaged: Path, file: str, damage: str
) -> None:
    DAMAGES[damage](damaged)
    assert exit_code(place.judge(broken=True), Severity.ERROR) != 0
