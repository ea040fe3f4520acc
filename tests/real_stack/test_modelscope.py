"""How vLLM reads its switch for ModelScope, against the doctor's reading of envs.py."""

from __future__ import annotations

import re
import subprocess

import pytest

from doctor.consumers.modelscope import SWITCH, switched_on_by
from doctor.probes.vllm_names import ModelScopeSwitch
from tests.real_stack import lab
from tests.real_stack.conftest import MakeEnvironment

VALUES = ("1", "true", "True", " true", "1 ", "0", "false", "yes", "")
_ASK = f"""
import importlib.util, os, runpy, sys
envs = next(iter(importlib.util.find_spec("vllm").submodule_search_locations)) + "/envs.py"
read = runpy.run_path(envs)["environment_variables"]["{SWITCH}"]
for value in sys.argv[1:]:
    os.environ["{SWITCH}"] = value
    print(read())
"""


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(lab.REFERENCE, marks=pytest.mark.real_stack),
        pytest.param(lab.NEWEST, marks=pytest.mark.newest_stack),
    ],
)
def test_vllm_takes_these_values_for_on(recipe: lab.Recipe, environment: MakeEnvironment) -> None:
    made = environment(recipe)
    (envs,) = made.prefix.glob("lib/python3*/site-packages/vllm/envs.py")
    text = envs.read_text(encoding="utf-8")
    switch = ModelScopeSwitch(*switched_on_by(lambda _, pattern: tuple(re.findall(pattern, text))))
    argv = [str(made.prefix / "bin/python"), "-I", "-B", "-c", _ASK, *VALUES]
    ran = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(switch.is_on(value)) for value in VALUES]
