"""Places made of the lab's environments, each as broken or as whole as its name says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import stand_ins
from tests.real_stack import isolate, lab
from tests.real_stack.place import Place
from tests.real_stack.repairs import copy_of

MakeHome = Callable[[], Path]
MakeEnvironment = Callable[[lab.Recipe], lab.Environment]


@pytest.fixture(scope="session")
def environment() -> MakeEnvironment:
    """Gives the lab's environment of a recipe; skips where this machine cannot have a lab."""
    if reason := isolate.impossible():
        pytest.skip(reason)

    def make(recipe: lab.Recipe) -> lab.Environment:
        try:
            return lab.environment(recipe)
        except lab.LabError as error:
            pytest.fail(str(error))

    return make


@pytest.fixture(scope="session")
def newest(environment: MakeEnvironment) -> lab.Environment:
    """The environment of the newest vLLM that this doctor was checked with."""
    return environment(lab.NEWEST)


@pytest.fixture(scope="session")
def new_home(tmp_path_factory: pytest.TempPathFactory) -> MakeHome:
    """Gives a home without a single file, so that no cache of this machine is seen or written."""
    return lambda: tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def two_h100(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a machine with the stand-in driver and two free H100s."""
    return stand_ins.environment(stand_ins.build(tmp_path_factory.mktemp("driver")), gpus=2)


@pytest.fixture(scope="session")
def links(environment: MakeEnvironment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of links over the coherent wheels: a CUDA home that works."""
    return lab.folder_of_links(environment(lab.COHERENT), tmp_path_factory.mktemp("links"))


@pytest.fixture(scope="session")
def cuda_home_unset(
    environment: MakeEnvironment, new_home: MakeHome, two_h100: dict[str, str]
) -> Place:
    """`pip install vllm==0.22.0` and nothing else."""
    return Place(environment(lab.REFERENCE), new_home(), two_h100)


@pytest.fixture(scope="session")
def cuda_12_nvcc_beside(
    environment: MakeEnvironment, new_home: MakeHome, two_h100: dict[str, str]
) -> Place:
    """The same, and nvidia-cuda-nvcc-cu12, which holds no nvcc."""
    return Place(environment(lab.CU12_NVCC), new_home(), two_h100)


@pytest.fixture(scope="session")
def torch_not_importable(
    environment: MakeEnvironment, new_home: MakeHome, two_h100: dict[str, str]
) -> Place:
    return Place(environment(lab.TORCHLESS), new_home(), two_h100)


@pytest.fixture(scope="session")
def cuda_home_at_the_wheels(
    environment: MakeEnvironment, new_home: MakeHome, two_h100: dict[str, str]
) -> Place:
    """nvcc 13.5 over the headers of 13.0."""
    return _at_the_wheels(environment(lab.REFERENCE), new_home(), two_h100)


@pytest.fixture(scope="session")
def half_repaired(
    environment: MakeEnvironment, new_home: MakeHome, two_h100: dict[str, str]
) -> Place:
    """nvcc 13.0 over nvvm and crt of 13.5."""
    return _at_the_wheels(environment(lab.HALF), new_home(), two_h100)


@pytest.fixture(scope="session")
def coherent_wheels(
    environment: MakeEnvironment, new_home: MakeHome, two_h100: dict[str, str]
) -> Place:
    """All parts of 13.0, in the wheels' own layout."""
    return _at_the_wheels(environment(lab.COHERENT), new_home(), two_h100)


@pytest.fixture(scope="session")
def wrapper_on_path(
    environment: MakeEnvironment,
    new_home: MakeHome,
    two_h100: dict[str, str],
    links: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    """No CUDA_HOME, and on PATH an nvcc that only calls that of a good toolkit."""
    wrapper = lab.wrapper_nvcc(links, tmp_path_factory.mktemp("wrapper"))
    return Place(environment(lab.COHERENT), new_home(), two_h100, first_on_path=(wrapper,))


@pytest.fixture(scope="session")
def machine_toolkit_without_curand(
    environment: MakeEnvironment,
    new_home: MakeHome,
    two_h100: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    """No CUDA_HOME, and in /usr/local/cuda a toolkit of one minor that lacks the curand headers."""
    toolkit = tmp_path_factory.mktemp("toolkit")
    lab.toolkit_without_curand(environment(lab.COHERENT), toolkit)
    return Place(environment(lab.REFERENCE), new_home(), two_h100, toolkit)


@pytest.fixture(scope="session")
def good_machine_toolkit(
    environment: MakeEnvironment, new_home: MakeHome, two_h100: dict[str, str], links: Path
) -> Place:
    """No CUDA_HOME, skewed wheels, and in /usr/local/cuda a toolkit that works."""
    return Place(environment(lab.REFERENCE), new_home(), two_h100, links)


@pytest.fixture(scope="session")
def folder_of_links(
    environment: MakeEnvironment, new_home: MakeHome, two_h100: dict[str, str], links: Path
) -> Place:
    """A repaired environment: coherent wheels, transformers 5, CUDA_HOME at the folder of links."""
    place = Place(environment(lab.COHERENT), new_home(), two_h100)
    return place.having(CUDA_HOME=str(links))


@pytest.fixture(scope="session")
def newest_healthy(
    newest: lab.Environment,
    new_home: MakeHome,
    two_h100: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    """A copy of the newest environment with compiler parts that go together, and CUDA_HOME at a
    folder of links over them."""
    copy = copy_of(newest, tmp_path_factory.mktemp("newest") / "env")
    for part in lab.COHERENT.requirements[-len(lab.COMPILER_PARTS) :]:
        lab.put_in(copy, part)
    place = Place(copy, new_home(), two_h100)
    home = lab.folder_of_links(copy, tmp_path_factory.mktemp("links"))
    return place.having(CUDA_HOME=str(home))


@pytest.fixture(scope="session")
def sampling_built(folder_of_links: Place) -> Path:
    """FlashInfer's sampling module, really built in `folder_of_links` and loaded there."""
    built = folder_of_links.build_sampling()
    assert built.code == 0, built.text
    library = Path(built.out.removeprefix("built and loaded ").strip())
    assert library.is_relative_to(folder_of_links.home)
    return library


def _at_the_wheels(target: lab.Environment, home: Path, env: dict[str, str]) -> Place:
    return Place(target, home, env).having(CUDA_HOME=str(target.wheels_toolkit))
