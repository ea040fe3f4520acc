"""Signatures against the software that prints them, and against fresh logs of real failures."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from doctor.signatures import Signature, shipped
from tests.corpus import explained
from tests.real_stack import failing, isolate, lab

pytestmark = pytest.mark.real_stack

OF_DISTRIBUTIONS = [row for row in shipped().signatures if ":" in row.printed_by]
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


def version(environment: lab.Environment, distribution: str) -> str | None:
    """That of a distribution in an environment; None where it is not installed there."""
    for folder in environment.site_packages.glob("*.dist-info"):
        name, _, number = folder.name.removesuffix(".dist-info").partition("-")
        if canonicalize_name(name) == canonicalize_name(distribution):
            return number
    return None


def test_every_text_of_a_distribution_is_in_its_file_or_says_in_which_versions(
    installed: list[lab.Environment],
) -> None:
    rotten = []
    for row in OF_DISTRIBUTIONS:
        distribution, _, file = row.printed_by.partition(":")
        numbers = {one: version(one, distribution) for one in installed}
        meant = [
            one
            for one, number in numbers.items()
            if number and SpecifierSet(row.versions or "").contains(number, True)
        ]
        # Not in every build of a version: that for the CPU lacks half of the kernels.
        if meant and not any(holds(one.site_packages, file, row) for one in meant):
            rotten.append(f"{row.id}: {row.literal!r} is not in {distribution}'s {file}")
    assert rotten == []


def holds(folder: Path, file: str, row: Signature) -> bool:
    """`file` may hold a * where the name tells the Python it is for."""
    return any(row.literal.encode() in path.read_bytes() for path in folder.glob(file))


def test_most_texts_are_looked_up_in_a_distribution_that_is_installed(
    installed: list[lab.Environment],
) -> None:
    looked_up = [
        row
        for row in OF_DISTRIBUTIONS
        for number in [version(one, row.printed_by.partition(":")[0]) for one in installed]
        if number and SpecifierSet(row.versions or "").contains(number, True)
    ]
    assert len({row.literal for row in looked_up}) > 150


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
