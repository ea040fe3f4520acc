"""Of rules: what a case file cannot say (TOML has no null), and what only a whole run shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import doctor
from doctor.codec import decode
from doctor.engine import load_rules
from doctor.model import Finding, Missing
from doctor.probes.driver import DeepAsked, Device, Gpus, driver
from doctor.probes.environment import LaunchEnv
from doctor.probes.interpreter import Interpreter, Where
from doctor.probes.jit import Jit
from doctor.probes.toolkit import Toolkit, Toolkits, WheelToolkit
from doctor.probes.wheels import Packages, Vllm
from doctor.profile import ModelNeeds, Profile
from doctor.shipped import rules_folder
from doctor.target import Live
from tests import stand_ins
from tests.conftest import Environment, run_doctor

RULES = {rule.id: rule.function for rule in load_rules(rules_folder())}
PROOF = Path(doctor.__file__).parent / "probes/_proof.py"


def test_a_vllm_without_its_extension_is_no_installation() -> None:
    vllm = Vllm(Version("0.22.0"), Path("/v/vllm"), needed=None)
    where = {"python": "/v/bin/python", "prefix": "/v", "base_prefix": "/usr", "version": "3.12.1"}
    more = {"implementation": "cpython", "machine": "x86_64", "include": "/usr/include"}
    interpreter = decode(
        Interpreter, {**where, **more, "site_packages": ["/v/lib"], "virtual": True}
    )
    found_by = Where(Path("/v/bin/python"), "VIRTUAL_ENV")
    answer = RULES["vllm-missing"](Packages(), vllm, None, interpreter, found_by, Profile("m"))
    assert answer is not None
    assert not isinstance(answer, Finding)
    assert "vLLM 0.22.0 in /v/vllm has no compiled extension" in [str(f.message) for f in answer]


def test_an_nvcc_that_does_not_list_its_architectures_cannot_be_judged() -> None:
    kit = Toolkit(Path("/usr"), "nvcc on PATH", nvcc=Version("10.1"), archs=None)
    arguments = (Toolkits(kit), WheelToolkit(Path("/w"), Path("/h")), None, Jit(("90a",)), None)
    with pytest.raises(Missing, match="does not list its architectures"):
        list(RULES["nvcc-too-old-for-arch"](*arguments) or ())  # type: ignore[arg-type]


def test_a_gpu_of_unified_memory_is_not_judged_by_its_memory() -> None:
    gpu = Device(0, "NVIDIA GB10", "GPU-a", "12.1", None, None)
    profile = Profile("m", needs=ModelNeeds(weights_gib=55.8))
    with pytest.raises(Missing, match="unified memory"):
        RULES["gpu-memory-too-small"](Gpus((gpu,), 1), profile)


@pytest.mark.parametrize("temporary", ["/nonexistent", "/proc"])
def test_a_test_build_without_a_place_to_build_says_so_and_blames_no_toolkit(
    temporary: str,
) -> None:
    command = [sys.executable, "-I", "-S", str(PROOF), sys.executable, "", "--compile", "nvcc"]
    script = "import tempfile, runpy, sys; tempfile.tempdir = sys.argv.pop(1); "
    script += "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    ran = subprocess.run(
        [*command[:3], "-c", script, temporary, *command[3:], "--link", "c++", "-shared"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.stdout.startswith("unable\n"), ran.stderr


def test_a_path_with_braces_is_shown_as_it_is(tmp_path: Path, server: Environment) -> None:
    braced = tmp_path / "a{verb}{0}"
    (server.site / "vllm-0.22.0.dist-info").rename(server.site / "~llm")
    server.prefix.rename(braced)
    said = run_doctor("diagnose", "--python", braced, "--set", "gpus=later")
    assert said.code == 1
    assert f"uv pip install --python '{braced}/bin/python' vllm==0.22.0" in said.out


def test_nothing_of_the_current_directory_becomes_the_doctors_own(tmp_path: Path) -> None:
    for name in ("click", "packaging", "rich"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')", encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "doctor", "--version"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.startswith("vllm-doctor "), ran.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("answer", "told"), [("0", False), ("803", True)])
def test_a_driver_that_loads_and_cannot_be_initialised_is_found_by_a_deep_check(
    tmp_path: Path, answer: str, told: bool
) -> None:
    env = stand_ins.environment(stand_ins.build(tmp_path), gpus=2)
    launch = LaunchEnv({"PATH": "/usr/bin:/bin", **env, "STAND_IN_CUINIT": answer})
    asked = driver(Live(), launch, Profile("m"), DeepAsked(True))
    assert asked.libcuda.init == int(answer)
    found = list(RULES["driver-lib-invisible"](asked, None) or ())  # type: ignore[arg-type]
    assert bool(found) is told
    quick = driver(Live(), launch, Profile("m"), DeepAsked(False))
    assert quick.libcuda.init is None
