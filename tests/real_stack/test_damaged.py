"""The files of a real vLLM, taken away one by one: what each costs a server that is healthy."""

from __future__ import annotations

from pathlib import Path

import pytest

from doctor import profile as profiles
from doctor.diagnose import exit_code
from doctor.engine import Facts, check, load_rules
from doctor.model import Outcome, Severity, Verdict
from doctor.probes.driver import DeepAsked
from doctor.probes.interpreter import FoundBy, Where
from doctor.profile import ServeRequest
from doctor.shipped import rules_folder
from doctor.tape import Recorder
from doctor.target import Live, Target
from tests.conftest import script, toolkit
from tests.real_stack import lab
from tests.real_stack.repairs import copy_of

pytestmark = pytest.mark.newest_stack
RULES = load_rules(rules_folder())
COST_3 = {
    "vllm/model_executor/models/registry.py",
    "vllm/engine/arg_utils.py",
    "vllm/entrypoints/common/cli_args.py",
    "flashinfer/jit/cpp_ext.py",
    "transformers/models/auto/auto_mappings.py",
    "transformers/models/auto/configuration_auto.py",
    # The profile names both parsers, and a name that vLLM does not have ends it.
    "vllm/reasoning/__init__.py",
    "vllm/tool_parsers/__init__.py",
}
JUDGED = ("vllm", "flashinfer", "torch", "transformers")
NEEDED = {
    *("vllm/__init__.py", "vllm/_C_stable_libtorch.abi3.so", "vllm-0.33.0.dist-info/METADATA"),
    *("flashinfer/__init__.py", "torch/version.py", "torch/lib/libtorch_python.so"),
    "torch-2.14.0.dist-info/METADATA",
}
"""What no start does without, and whose absence is a finding."""


@pytest.fixture(scope="module")
def server(newest: lab.Environment, tmp_path_factory: pytest.TempPathFactory) -> lab.Environment:
    """A copy that may be changed. Its toolkit is a stand-in: a real one costs a minute."""
    made = copy_of(newest, tmp_path_factory.mktemp("damaged") / "venv")
    toolkit(made.prefix.parent / "kit")
    if not (made.prefix / "bin/ninja").exists():
        script(made.prefix / "bin/ninja", "")
    return made


def judge(target: Target, server: lab.Environment) -> list[Outcome]:
    profile = profiles.load_profile(profiles.DEFAULT_PROFILE, ("gpus=later", "archs=8.9"))
    facts = Facts(
        target, (Where(server.python, FoundBy.OPTION), ServeRequest(profile), DeepAsked())
    )
    outcomes, _ = check(RULES, facts)
    return outcomes


def test_no_more_files_cost_exit_code_3_than_decide_the_start(server: lab.Environment) -> None:
    kit = server.prefix.parent / "kit"
    live = Live({"PATH": f"{server.prefix}/bin:/usr/bin:/bin", "CUDA_HOME": str(kit)})
    recorder = Recorder(live)
    outcomes = judge(recorder, server)
    assert exit_code(outcomes, Severity.ERROR) == 0, _told(outcomes)
    codes = {}
    for path in _asked(recorder, server.site_packages):
        kept = server.prefix / "kept"
        path.rename(kept)
        outcomes = judge(live, server)
        kept.rename(path)
        file = str(path.relative_to(server.site_packages))
        codes[file] = exit_code(outcomes, Severity.ERROR)
        print(codes[file], file, _told(outcomes))
    assert {file for file, code in codes.items() if code == 3} == COST_3
    assert {file for file, code in codes.items() if code == 1} == NEEDED
    assert len(codes) > 25


def _asked(recorder: Recorder, site: Path) -> list[Path]:
    notes = recorder.recording("", "", "")
    asked = {path for kind in ("read", "search", "stat", "elf") for path in notes.get(kind, {})}
    inside = {p.relative_to(site) for p in map(Path, asked) if p.is_relative_to(site)}
    judged = (p for p in inside if p.parts[0].startswith(JUDGED) and (site / p).is_file())
    return sorted(site / p for p in judged)


def _told(outcomes: list[Outcome]) -> list[str]:
    return [
        f"{o.rule.id} {o.why or o.verdict.value}" for o in outcomes if o.verdict is not Verdict.OK
    ]
