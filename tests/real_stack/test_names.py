"""What is read of vLLM's variables and options, against vLLM itself."""

from __future__ import annotations

import json
import subprocess

import pytest

from doctor.consumers import names
from doctor.probes.vllm_names import VllmOptions, VllmVariables, WholeNumbers
from tests.conftest import Environment, facts_of
from tests.real_stack import lab

pytestmark = pytest.mark.real_stack

ASKED = """
import json
from vllm import envs, platforms
from vllm.platforms.cpu import CpuPlatform
platforms._current_platform = CpuPlatform()  # the parser asks which
from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
said = {"options": [*parser._option_string_actions], "variables": [*envs.environment_variables]}
print("SAID" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def installed() -> lab.Environment:
    try:
        return lab.cpu_server()
    except lab.LabError as error:
        pytest.fail(str(error))


def test_they_are_those_of_its_own_parser_and_table(installed: lab.Environment) -> None:
    asked = subprocess.run(
        [installed.python, "-c", ASKED], capture_output=True, text=True, check=True, timeout=900
    )
    said = json.loads(asked.stdout.rpartition("SAID")[2])
    facts = facts_of(Environment(installed.prefix))
    options, variables = facts.get(VllmOptions), facts.get(VllmVariables)
    assert set(options.names) == set(said["options"])
    assert set(variables.names) == set(said["variables"])
    assert set(names.OPTIONS.values()) <= set(options.names)


def test_int_is_what_ends_it(installed: lab.Environment) -> None:
    """Each variable that is said to be a whole number ends vLLM for another value, and no other
    one does that is read by `bool` or as a text."""
    whole = facts_of(Environment(installed.prefix)).get(WholeNumbers).names
    code = (
        "import os\nfrom vllm import envs\nended = []\n"
        "for name, read in envs.environment_variables.items():\n"
        "    kept = os.environ.get(name)\n    os.environ[name] = 'no-number'\n"
        "    try: read()\n"
        "    except ValueError as error:\n"
        "        if 'invalid literal for int' in str(error) or 'valid integer' in str(error):\n"
        "            ended.append(name)\n"
        "    except Exception: pass\n"
        "    del os.environ[name]\n"
        "    if kept is not None: os.environ[name] = kept\n"
        "print('SAID' + ' '.join(ended))\n"
    )
    asked = subprocess.run(
        [installed.python, "-c", code], capture_output=True, text=True, check=True, timeout=900
    )
    assert set(whole) == set(asked.stdout.rpartition("SAID")[2].split())
