"""Signatures against the software that prints them, and against fresh logs of real failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from doctor.signatures import shipped_catalogue
from tests.corpus import explained
from tests.real_stack import failing, isolate, lab
from tests.real_stack.texts import is_there, rotten

pytestmark = pytest.mark.real_stack

QUICK = [
    case
    for case in failing.CASES
    if (case.id, case.name)
    in {
        ("model-path-missing", failing.CPU_NAME),
        ("tool-parser-unknown", failing.CPU_NAME),
        ("port-in-use", failing.CPU_NAME),
        ("architecture-not-in-vllm", failing.CPU_NAME),
        ("uid-without-passwd-entry", failing.CPU_NAME),
        ("tp-not-dividing-heads", failing.CPU_NAME),
        ("torchvision-mismatch", failing.CPU_NAME),
        ("truncated-safetensors", f"{failing.CPU_NAME}-cut-off"),
        ("nvcc-missing", failing.BUILD_NAME),
        ("ninja-missing", failing.BUILD_NAME),
        ("nvcc-header-version-skew", failing.BUILD_NAME),
        ("cuda-headers-missing", failing.BUILD_NAME),
    }
]
"""Of the sixty, those that fail within some twenty seconds, of all kinds."""


@pytest.fixture(scope="module")
def installed() -> list[lab.Environment]:
    try:
        environments = [lab.environment(lab.REFERENCE), lab.environment(lab.COHERENT)]
        return [*environments, lab.cpu_server()]
    except lab.LabError as error:
        pytest.fail(str(error))


def test_every_text_of_a_distribution_is_in_its_file_or_says_in_which_versions(
    installed: list[lab.Environment],
) -> None:
    assert rotten(installed) == []
    assert (
        len({row.literal for row in shipped_catalogue().signatures if is_there(row, installed)})
        > 150
    )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := isolate.impossible():
        pytest.skip(reason)
    return tmp_path_factory.mktemp("failing")


@pytest.mark.parametrize("case", QUICK, ids=lambda case: f"{case.id}-{case.name}")
def test_a_server_that_fails_now_is_explained(case: failing.Case, scratch: Path) -> None:
    data = failing.run(case, scratch)
    told = explained(data)
    assert told.primary == case.id, data[-3000:].decode("utf-8", "replace")


def test_the_logs_of_the_repository_are_those_of_the_script() -> None:
    assert [case.log for case in failing.CASES if not case.log.exists()] == []
