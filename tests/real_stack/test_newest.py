"""The newest vLLM: what kills its import is found, and mended for real; verdicts against the truth.

Its environment and those of 0.22.0 are not there at the same time, hence a marker of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_stack import cells, lab
from tests.real_stack.cells import Cell
from tests.real_stack.conftest import MakeHome
from tests.real_stack.place import Place
from tests.real_stack.repairs import (
    Broken,
    assert_first_fix_is_torchs_own_toolkit,
    copy_of,
    manifest,
    network,
    versions,
    without_bytecode,
)

pytestmark = pytest.mark.newest_stack

KILLER = "cuda-python==12.6.2.post1"
"""What uv resolves vllm 0.33.0 to beside cuda-bindings 13.5.0: it owns files of cuda-bindings and,
where it is installed last, overwrites them. pip check finds nothing wrong."""
KILLED = "module 'cuda.bindings.runtime' has no attribute 'cudaLibrary_t'"
IMPORT = "import flashinfer; print('imported')"


@pytest.fixture
def healthy(
    newest: lab.Environment, new_home: MakeHome, two_h100: dict[str, str], tmp_path: Path
) -> Broken:
    """A copy of the newest environment that may be repaired."""
    copy = copy_of(newest, tmp_path / "env")
    return Broken(Place(copy, new_home(), {**two_h100, **network()}))


@pytest.fixture
def as_resolved(healthy: Broken) -> Broken:
    """The same with the two distributions that overwrite each other's files."""
    lab.put_in(healthy.target, KILLER)
    return healthy


def test_what_overwrites_the_bindings_is_found_and_only_there(
    healthy: Broken, request: pytest.FixtureRequest
) -> None:
    assert "files-overwritten" not in healthy.place.diagnose().errors
    assert "imported" in healthy.place.python(IMPORT).out
    broken: Broken = request.getfixturevalue("as_resolved")
    assert KILLED in broken.place.python(IMPORT).err
    report = broken.place.diagnose()
    assert "files-overwritten" in report.errors
    assert "cuda-python" in report.said("files-overwritten")


def test_a_repair_of_what_uv_resolves_imports_and_builds_for_real_and_is_put_back(
    as_resolved: Broken,
) -> None:
    was = manifest(as_resolved.target.prefix)
    fixed = as_resolved.fix("--apply")
    assert fixed.code == 0, (fixed.data["results"], fixed.errors, fixed.err)
    assert fixed.data["deep"]["ok"], fixed.data["deep"]
    assert int(versions(as_resolved.target)["cuda_python"].partition(".")[0]) >= 13
    set_up = as_resolved.variables()
    repaired = as_resolved.place.having(CUDA_HOME=set_up["CUDA_HOME"], PATH=set_up["PATH"])
    assert "imported" in repaired.python(IMPORT).out
    built = repaired.build_sampling()
    assert built.code == 0, built.text
    undone = as_resolved.run("undo")
    assert undone.code == 0, undone.text
    assert without_bytecode(manifest(as_resolved.target.prefix)) == without_bytecode(was)


def test_the_first_fix_is_the_toolkit_of_torchs_own_cuda_release(healthy: Broken) -> None:
    assert_first_fix_is_torchs_own_toolkit(healthy)


@pytest.mark.parametrize("capability", ["8.9", "9.0"])
def test_the_verdict_is_the_truth_in_every_place(
    capability: str, newest: lab.Environment, new_home: MakeHome
) -> None:
    asked = [Cell(capability, name, env) for name, env in cells.places(newest).items()]
    cells.assert_right(cells.judged(newest, new_home(), asked))
