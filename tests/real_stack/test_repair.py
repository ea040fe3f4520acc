"""Repairs of real broken environments: healed, proven by FlashInfer's own build, and undone."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.real_stack import isolate, lab
from tests.real_stack.conftest import MakeEnvironment, MakeHome
from tests.real_stack.place import DOCTOR, Place

pytestmark = pytest.mark.real_stack

CORE = ("torch", "vllm", "triton", "flashinfer_python", "flashinfer_cubin")
REPLACED = ("nvidia_cuda_nvcc", "nvidia_nvvm", "nvidia_cuda_crt", "transformers")


def network() -> dict[str, str]:
    """What this machine needs to reach its index, and uv's cache, since a new home has none."""
    named = ("SSL_CERT_FILE", "SSL_CERT_DIR", "UV_CACHE_DIR")
    kept = {n: v for n, v in os.environ.items() if n in named or n.lower().endswith("_proxy")}
    pip = {n: v for n, v in os.environ.items() if n.startswith(("PIP_", "UV_"))}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"
    return {"UV_CACHE_DIR": str(cache), **kept, **pip}


def copy_of(environment: lab.Environment, where: Path) -> lab.Environment:
    """The lab's environment once more, its files linked: a repair moves files and changes none."""
    try:
        subprocess.run(["cp", "-al", str(environment.prefix), str(where)], check=True)
    except subprocess.CalledProcessError:  # another filesystem
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(environment.prefix, where, symlinks=True)
    return lab.Environment(where)


def manifest(prefix: Path) -> dict[str, str]:
    """Every file and link below a folder: kind, size and time or target; empty folders as well."""
    found = {}
    for at, folders, files in os.walk(prefix):
        for name in [*files, *folders]:
            path = Path(at) / name
            key = str(path.relative_to(prefix))
            stat = path.lstat()
            if path.is_symlink():
                found[key] = f"link {path.readlink()}"
            elif path.is_file():
                found[key] = f"file {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
            elif not any(path.iterdir()):
                found[key] = "empty folder"
    return found


def versions(target: lab.Environment) -> dict[str, str]:
    """What is installed, read as pip reads it."""
    infos = (p.name.removesuffix(".dist-info") for p in target.site_packages.glob("*.dist-info"))
    return dict(info.rpartition("-")[::2] for info in infos)


@dataclass(frozen=True)
class Fixed:
    code: int
    data: dict[str, Any]
    err: str

    @property
    def outcomes(self) -> dict[str, str]:
        return {r["action"]: r["outcome"] for r in self.data["results"]}

    @property
    def errors(self) -> set[str]:
        return {
            o["id"]
            for o in self.data["outcomes"]
            if o["verdict"] == "found" and o["severity"] == "error"
        }


@dataclass(frozen=True)
class Broken:
    """A place that may be repaired: its environment is its own."""

    place: Place

    @property
    def target(self) -> lab.Environment:
        return self.place.target

    def command(self, *words: str) -> list[str | Path]:
        return [DOCTOR, *words, "--python", str(self.target.prefix)]

    def run(self, *words: str) -> isolate.Ran:
        ran = self.place.run(*self.command(*words))
        assert "Traceback" not in ran.err, ran.err
        return ran

    def fix(self, *options: str) -> Fixed:
        ran = self.run("fix", "--format", "json", "--mirror", "default", *options)
        try:
            return Fixed(ran.code, json.loads(ran.out), ran.err)
        except ValueError:
            raise AssertionError(f"exit {ran.code}, no JSON:\n{ran.text}") from None

    def variables(self) -> dict[str, str]:
        """What `vllm-doctor env` prints, as a shell takes it."""
        shell = f'eval "$({DOCTOR} env --python {self.target.prefix})"; env -0'
        ran = self.place.run("sh", "-c", shell)
        assert ran.code == 0, ran.text
        return dict(row.split("=", 1) for row in ran.out.split("\0") if "=" in row)


Break = Callable[[Place], Broken]


@pytest.fixture
def broken(tmp_path: Path) -> Break:
    """Gives a place whose environment is a copy, its variables leading into the copy."""

    def make(place: Place) -> Broken:
        target = copy_of(place.target, tmp_path / "env")
        old, new = str(place.target.prefix), str(target.prefix)
        moved = {name: value.replace(old, new) for name, value in place.env.items()}
        env: Mapping[str, str] = {**moved, **network()}
        return Broken(replace(place, target=target, env=env, home=tmp_path))

    return make


def test_the_reference_environment_is_healed_builds_and_is_put_back(
    cuda_home_unset: Place, broken: Break
) -> None:
    one = broken(cuda_home_unset)
    was, had = manifest(one.target.prefix), versions(one.target)

    fixed = one.fix("--apply")
    assert fixed.outcomes == {"install": "healed", "cuda-home": "healed", "environment": "healed"}
    assert fixed.code == 0, fixed.data
    assert fixed.data["deep"]["ok"], fixed.data["deep"]
    have = versions(one.target)
    assert {n: have[n] for n in CORE} == {n: had[n] for n in CORE}
    assert all(have[n] != had[n] for n in REPLACED)
    knows = (
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as names\n"
        "print('glm4_moe_lite' in names)"
    )
    assert one.place.python(knows).out.strip() == "True"

    variables = one.variables()
    paths = ("CPATH", "LIBRARY_PATH", "LD_LIBRARY_PATH")
    assert not [name for name in paths if name in variables and name not in one.place.env]
    in_shell = one.place.having(CUDA_HOME=variables["CUDA_HOME"], PATH=variables["PATH"])
    built = in_shell.build_sampling()
    assert built.code == 0, built.text
    shutil.rmtree(one.place.home / ".cache")

    healthy = manifest(one.target.prefix)
    again = one.fix("--apply")
    assert set(again.outcomes.values()) == {"already-healed"}
    assert again.data["plan"] == []
    assert again.code == 0
    assert manifest(one.target.prefix) == healthy

    undone = one.run("undo")
    assert undone.code == 0, undone.text
    assert without_bytecode(manifest(one.target.prefix)) == without_bytecode(was)
    assert not (one.target.prefix / "share/vllm-doctor").exists()


def without_bytecode(found: dict[str, str]) -> dict[str, str]:
    """What FlashInfer's build had Python compile of other distributions is not the doctor's."""
    return {path: what for path, what in found.items() if "__pycache__" not in path}


@pytest.mark.parametrize(
    "name",
    [
        "cuda_home_at_the_wheels",
        "half_repaired",
        "coherent_wheels",
        "wrapper_on_path",
        "machine_toolkit_without_curand",
        "cuda_12_nvcc_beside",
    ],
)
def test_each_broken_state_is_healed_and_put_back(
    name: str, request: pytest.FixtureRequest, broken: Break
) -> None:
    one = broken(request.getfixturevalue(name))
    was = manifest(one.target.prefix)
    fixed = one.fix("--apply")
    assert fixed.code == 0, (fixed.data["results"], fixed.errors, fixed.err)
    assert fixed.data["deep"]["ok"]
    assert set(fixed.outcomes.values()) == {"healed"}
    undone = one.run("undo")
    assert undone.code == 0, undone.text
    assert manifest(one.target.prefix) == was


def test_a_torch_that_lost_a_library_is_installed_anew_only_with_consent(
    torch_not_importable: Place, broken: Break
) -> None:
    one = broken(torch_not_importable)
    was = manifest(one.target.prefix)
    left = one.fix("--apply")
    assert "vllm-torch-abi-mismatch" in {w["id"] for w in left.data["withheld"]}
    assert left.code == 1
    one.run("undo")
    assert manifest(one.target.prefix) == was
    fixed = one.fix("--apply", "--allow", "core")
    assert fixed.code == 0, (fixed.data["results"], fixed.errors, fixed.err)
    assert one.run("undo").code == 0
    assert manifest(one.target.prefix) == was


def test_an_environment_is_made_from_nothing_and_unmade(
    environment: MakeEnvironment, new_home: MakeHome, two_h100: dict[str, str], tmp_path: Path
) -> None:
    environment(lab.REFERENCE)  # so that what is fetched is fetched once
    target = lab.Environment(tmp_path / "vllm-env")
    one = Broken(Place(target, new_home(), {**two_h100, **network()}))
    fixed = one.fix("--apply", "--create")
    assert fixed.code == 0, (fixed.data["results"], fixed.errors, fixed.err)
    assert fixed.data["deep"]["ok"]
    have = versions(target)
    assert have["vllm"] == "0.22.0"
    assert have["nvidia_cuda_nvcc"].startswith("13.0.")
    assert one.run("undo").code == 0
    assert not target.prefix.exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_doctor_killed_while_it_installs_leaves_before_or_after(
    seed: int, cuda_home_unset: Place, broken: Break
) -> None:
    """At a random instant; the boundaries one by one are in the ordinary tests."""
    one = broken(cuda_home_unset)
    was = manifest(one.target.prefix)
    words = one.command("fix", "--apply", "--mirror", "default")
    instant = random.Random(seed).uniform(1.5, 9.0)  # noqa: S311 - an instant, no secret
    script = f'"$@" >/dev/null 2>&1 & doctor=$!; sleep {instant:.2f}; kill -9 $doctor; wait'
    one.place.run("bash", "-c", script, "killed", *words)
    time.sleep(0.5)  # its installer dies with it
    undone = one.run("undo")
    assert undone.code == 0, undone.text
    assert manifest(one.target.prefix) == was, f"killed after {instant:.2f} s"
