"""What FlashInfer really does with a toolkit, and that `diagnose` and `diagnose --deep` say why."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.real_stack import lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.real_stack.place import Place

pytestmark = pytest.mark.real_stack

NO_NVCC = "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist"
SKEWED_HEADERS = (
    '#error "CUDA compiler and CUDA toolkit headers are incompatible, '
    'please check your include paths"'
)
OLD_PTXAS = "fatal   : Unsupported .version 9.5; current version is '9.0'"
NO_CURAND = "fatal error: curand.h: No such file or directory"
NO_LIBCUDART = "cannot find -lcudart"
CUDA_12_RUNTIME = "libcudart.so.12: cannot open shared object file: No such file or directory"

OLD_TRANSFORMERS = "architecture-not-in-transformers"
WHEELS_LAYOUT = "pip-toolkit-lib-layout"


@dataclass(frozen=True)
class Expected:
    """What is true of a place.

    `fails`: what FlashInfer's build says. `stage`: where that build ends, None where it cannot
    begin. `errors`: what the doctor must find. `may_add`: what it may tell besides of the wheels,
    where they are but the candidate for a repair.
    """

    place: str
    fails: str
    errors: frozenset[str]
    primary: str
    stage: str | None
    may_add: frozenset[str] = frozenset()


BROKEN = [
    Expected(
        "cuda_home_unset",
        NO_NVCC,
        frozenset({OLD_TRANSFORMERS, "nvcc-missing", "nvcc-header-version-skew"}),
        OLD_TRANSFORMERS,
        None,
        may_add=frozenset({WHEELS_LAYOUT}),
    ),
    Expected(
        "cuda_12_nvcc_beside",
        NO_NVCC,
        frozenset({OLD_TRANSFORMERS, "nvcc-missing", "nvcc-header-version-skew"}),
        OLD_TRANSFORMERS,
        None,
        may_add=frozenset({WHEELS_LAYOUT}),
    ),
    Expected(
        "cuda_home_at_the_wheels",
        SKEWED_HEADERS,
        frozenset({OLD_TRANSFORMERS, "nvcc-header-version-skew", WHEELS_LAYOUT}),
        OLD_TRANSFORMERS,
        "compile",
    ),
    Expected(
        "half_repaired",
        OLD_PTXAS,
        frozenset({OLD_TRANSFORMERS, "nvvm-ptxas-skew", "crt-skew", WHEELS_LAYOUT}),
        OLD_TRANSFORMERS,
        "compile",
    ),
    Expected("coherent_wheels", NO_LIBCUDART, frozenset({WHEELS_LAYOUT}), WHEELS_LAYOUT, "link"),
    Expected(
        "wrapper_on_path",
        NO_LIBCUDART,
        frozenset({"nvcc-wrapper-root"}),
        "nvcc-wrapper-root",
        "link",
        may_add=frozenset({WHEELS_LAYOUT}),
    ),
    Expected(
        "machine_toolkit_without_curand",
        NO_CURAND,
        frozenset({OLD_TRANSFORMERS, "cuda-headers-missing"}),
        OLD_TRANSFORMERS,
        "compile",
        may_add=frozenset({"nvcc-header-version-skew", WHEELS_LAYOUT}),
    ),
]

each_broken_place = pytest.mark.parametrize("expected", BROKEN, ids=lambda e: e.place)


@pytest.fixture
def place(expected: Expected, request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(expected.place)
    return found


@each_broken_place
def test_flashinfer_fails_to_build_as_measured(place: Place, expected: Expected) -> None:
    built = place.build_sampling()
    assert built.code == 1
    assert expected.fails in built.text


@each_broken_place
def test_diagnose_finds_what_is_wrong_and_nothing_else(place: Place, expected: Expected) -> None:
    report = place.diagnose()
    assert report.errors - expected.may_add == expected.errors - expected.may_add
    assert expected.errors <= report.errors
    assert (report.code, report.data["verdict"]) == (1, "findings")
    assert report.ids("crashed") | report.ids("unknown") == set()


@each_broken_place
def test_diagnose_names_first_what_must_be_mended_first(place: Place, expected: Expected) -> None:
    report = place.diagnose()
    roles = {
        ailment: {finding["role"] for finding in report.findings(ailment)}
        for ailment in report.errors
    }
    assert report.data["primary"] == expected.primary
    assert "primary" in roles.pop(expected.primary)
    assert all(role == {"contributing"} for role in roles.values()), roles


@each_broken_place
def test_deep_fails_at_the_stage_at_which_flashinfer_fails(
    place: Place, expected: Expected
) -> None:
    report = place.diagnose("--deep")
    assert report.code == 1
    assert report.deep["ok"] is not True
    assert report.errors >= expected.errors
    assert report.ids("crashed") | report.ids("unknown") == set()
    if expected.stage:
        assert (report.deep["ran"], report.deep["ok"]) == (True, False)
        assert report.deep["stage"] == expected.stage
        assert expected.fails in report.deep["output_tail"]


@pytest.mark.parametrize(
    ("name", "ailment", "versions"),
    [
        ("cuda_home_unset", "nvcc-header-version-skew", ("13.5", "13.0")),
        ("cuda_home_at_the_wheels", "nvcc-header-version-skew", ("13.5", "13.0")),
        ("half_repaired", "nvvm-ptxas-skew", ("13.5", "13.0")),
        ("half_repaired", "crt-skew", ("13.5", "13.0")),
    ],
)
def test_a_skew_is_told_with_the_versions_that_do_not_go_together(
    name: str, ailment: str, versions: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(name)
    message = place.diagnose().findings(ailment)[0]["message"]
    assert [version for version in versions if version not in message] == []


def test_the_cuda_12_wheel_changes_nothing_for_it_holds_no_nvcc(
    cuda_home_unset: Place, cuda_12_nvcc_beside: Place
) -> None:
    without, beside = cuda_home_unset.diagnose(), cuda_12_nvcc_beside.diagnose()
    # Two wheels of cutlass-dsl own the same files; which of them an installer unpacks last differs
    # from one environment to the next.
    by_chance = {"files-overwritten"}
    assert beside.ids("found") - by_chance == without.ids("found") - by_chance
    told = {ailment: beside.said(ailment) for ailment in beside.errors}
    assert not any("nvidia/cuda_nvcc/bin/nvcc" in said for said in told.values()), told


def test_a_wrapper_is_told_with_the_root_that_flashinfer_takes_from_it(
    wrapper_on_path: Place,
) -> None:
    root = wrapper_on_path.first_on_path[0].parent
    assert str(root) in wrapper_on_path.diagnose().said("nvcc-wrapper-root")


def test_missing_headers_are_told_by_name_and_place(machine_toolkit_without_curand: Place) -> None:
    said = machine_toolkit_without_curand.diagnose().said("cuda-headers-missing")
    assert "curand.h" in said
    assert "/usr/local/cuda" in said


def test_headers_that_nvcc_finds_beyond_a_linked_bin_are_not_missing(
    folder_of_links: Place, tmp_path: Path
) -> None:
    toolkit = lab.linked_nvcc_without_curand(folder_of_links.target, tmp_path)
    report = folder_of_links.having(CUDA_HOME=str(toolkit)).diagnose("--deep")
    assert report.errors == set()
    assert (report.deep["ran"], report.deep["ok"]) == (True, True)


def test_skewed_wheels_are_a_note_where_flashinfer_finds_a_good_toolkit(
    good_machine_toolkit: Place,
) -> None:
    report = good_machine_toolkit.diagnose("--deep")
    assert report.errors == {OLD_TRANSFORMERS}
    assert (report.deep["ran"], report.deep["ok"]) == (True, True)


def test_a_repaired_environment_is_healthy_and_proven_so(folder_of_links: Place) -> None:
    report = folder_of_links.diagnose("--deep")
    assert report.errors == set()
    assert (report.code, report.data["verdict"], report.data["primary"]) == (0, "healthy", None)
    assert report.ids("crashed") | report.ids("unknown") == set()
    assert (report.deep["ran"], report.deep["ok"]) == (True, True)
    assert any("90a" in arch.replace(".", "") for arch in report.deep["archs"])


def test_flashinfer_builds_links_and_loads_in_a_repaired_environment(sampling_built: Path) -> None:
    assert sampling_built.name == "sampling.so"
    assert sampling_built.is_file()


def test_a_cached_op_of_this_very_toolkit_is_no_fault(
    folder_of_links: Place, sampling_built: Path
) -> None:
    assert sampling_built.is_file()
    assert folder_of_links.diagnose().ids("found", "error") == set()


@pytest.fixture
def stale_op(sampling_built: Path) -> Iterator[Path]:
    """The sampling module as one that was built for CUDA 12; the good one comes back afterwards."""
    kept = sampling_built.with_name("kept")
    shutil.copy2(sampling_built, kept)
    sampling_built.unlink()
    lab.op_of_cuda_12(sampling_built)
    yield sampling_built
    kept.replace(sampling_built)


def test_flashinfer_loads_a_stale_cached_op_and_fails(
    folder_of_links: Place, stale_op: Path
) -> None:
    built = folder_of_links.build_sampling()
    assert built.code == 1
    assert f"{stale_op} {CUDA_12_RUNTIME}" in built.text


def test_a_stale_cached_op_is_named_with_its_runtime(
    folder_of_links: Place, stale_op: Path
) -> None:
    report = folder_of_links.diagnose()
    assert report.errors == {"flashinfer-stale-cache"}
    assert report.data["primary"] == "flashinfer-stale-cache"
    said = report.said("flashinfer-stale-cache")
    assert "libcudart.so.12" in said
    assert str(stale_op.parent) in said
