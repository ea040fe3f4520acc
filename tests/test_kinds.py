"""A kind of step is one file: what a site puts into its folder of rules is planned, shown,
scripted, applied and undone by the real command; what nobody carries out is manual, never lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from doctor import fixes
from doctor.fixes import KINDS, PrependPath, SetVariable, UnsetVariable
from doctor.fixes.base import Kinds
from doctor.fixes.environment import Environment as Variables
from doctor.model import Fix, Needs, Step, Text
from doctor.report.repair_json import repair_schema
from tests.conftest import Environment, Said, run_doctor
from tests.stand_ins.killer import run_killed, tree

RULE = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from doctor.engine import rule
from doctor.fixes import KINDS, Kind, SetVariable
from doctor.model import Finding, Fix, Needs, Severity, Stage, Step, Text
from doctor.probes.interpreter import Interpreter

PLACE = Path({place!r})


@rule("licence-missing", severity=Severity.ERROR, stage=Stage.SHELL)
def licence_missing(interpreter: Interpreter) -> Finding | None:
    \"\"\"The server has no licence.\"\"\"
    if (interpreter.prefix / "licence").exists() or PLACE.exists():
        return None
    fixes = (
        Fix(Text("write the licence"), (Licence("ours"),), Needs.{needs}),
        Fix(Text("buy one"), (Licence("theirs"),), Needs.PERSON),
    )
    return Finding(Text("no licence"), (), fixes)


@dataclass(frozen=True)
class Licence(Step):
    text: str
    kind: ClassVar[str] = "licence"

    def __str__(self):
        return f"write a licence: {{self.text}}"

    def commands(self, installer):
        return (f"echo {{self.text}} > licence",)


"""
SWAP = """
class Licences(Kind):
    name = "licence"
    title = Text("write licences")
    order = 25

    def takes(self, step):
        return isinstance(step, Licence)

    def prepare(self, context, action, folder):
        from doctor.repair import swap

        (step,) = action.steps
        (folder / "new" / "licence").write_text(step.text)
        return swap.plan(context.prefix, folder / "new", folder / "aside", ["licence"])


KINDS.add(Licences())
"""
EFFECT = """
class Licences(Kind):
    name = "licence"
    title = Text("fetch licences")
    order = 25

    def takes(self, step):
        return isinstance(step, Licence)

    def prepare(self, context, action, folder):
        from doctor.repair.manifest import Effect

        (step,) = action.steps
        undo = f"remove {{PLACE}}" if {undone} else None
        return Effect(f"write {{PLACE}}", undo, {{"text": step.text}})

    def carry_out(self, effect, context):
        from doctor.model import Text
        from doctor.repair.errors import StageError

        PLACE.write_text(effect.data["text"])
        {then}

    def undo(self, effect):
        {undoing}
        PLACE.unlink(missing_ok=True)


KINDS.add(Licences())
"""


SIGNAL = "import os, signal; os.kill(os.getpid(), signal.{})"
CTRL_C = SIGNAL.format("SIGINT")


class Site:
    """A healthy environment, and a site's rules that find something wrong with it."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self.environment, self.folder = environment, folder
        self.place = folder / "elsewhere"
        self.rules = folder / "rules"
        self.rules.mkdir()

    def has(self, kind: str = "", needs: str = "SAFE", **effect: object) -> None:
        """`effect`: whether it can be `undone`, what else it does (`then`, `undoing`)."""
        rule = RULE.format(place=str(self.place), needs=needs)
        more = {"undone": True, "then": "pass", "undoing": "pass", **effect}
        kind = kind.format(**more) if kind == EFFECT else kind
        (self.rules / "site.py").write_text(rule + kind)

    @property
    def words(self) -> tuple[str, ...]:
        return ("--python", str(self.environment.python), "--rules", str(self.rules))

    def fix(self, *words: str) -> Said:
        return run_doctor("fix", *self.words, "--set", "device=cpu", *words)

    def json(self, *words: str) -> Said:
        said = self.fix("--format", "json", *words)
        jsonschema.validate(said.report, repair_schema())
        return said

    def undo(self, *words: str) -> Said:
        return run_doctor("undo", *self.words, *words)

    def tree(self) -> dict[str, object]:
        return dict(tree(self.environment.prefix, without={"__pycache__"}))

    @property
    def licence(self) -> Path:
        return self.environment.prefix / "licence"


@pytest.fixture
def site(cpu_server: Environment, tmp_path: Path) -> Site:
    return Site(cpu_server, tmp_path)


# A change of files.


def test_a_kind_in_one_file_is_planned_shown_and_scripted(site: Site) -> None:
    site.has(SWAP)
    was = site.tree()
    text = site.fix()
    assert "1. write licences" in text.out
    assert "write a licence: ours" in text.out
    assert "echo ours > licence" in text.out
    (action,) = site.json().report["plan"]
    assert (action["action"], action["ids"]) == ("licence", ["licence-missing"])
    assert action["steps"] == [{"kind": "licence", "text": "ours"}]
    assert action["commands"] == ["echo ours > licence"]
    script = site.fix("--script", "-").out
    assert "echo ours > licence" in script.splitlines()
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    assert site.tree() == was


def test_a_kind_in_one_file_is_applied_and_undone(site: Site) -> None:
    site.has(SWAP)
    was = site.tree()
    done = site.json("--apply")
    assert done.code == 0, done.err
    assert done.report["results"] == [
        {
            "action": "licence",
            "ids": ["licence-missing"],
            "outcome": "healed",
            "output_tail": "",
        }
    ]
    assert done.report["changed"] == [
        {"action": "licence", "what": "write a licence: ours", "old": None, "new": None}
    ]
    assert site.licence.read_text() == "ours"
    undone = run_doctor("undo", "--python", site.environment.python)
    assert undone.code == 0, undone.err
    assert site.tree() == was


def test_what_a_fix_asks_for_of_a_kind_of_ones_own_needs_a_yes(site: Site) -> None:
    site.has(SWAP, needs="ASK")
    assert "needs --allow core: would write the licence" in site.fix().out
    withheld = site.json("--apply")
    assert withheld.code == 1
    (left,) = withheld.report["withheld"]
    assert (left["id"], left["allow"]) == ("licence-missing", "core")
    assert site.json("--apply", "--allow", "core").code == 0


# A step that nobody carries out.


def test_a_step_without_a_kind_is_manual_and_never_lost(site: Site) -> None:
    site.has()
    text = site.fix("--apply")
    assert text.code == 1
    assert "No automatic fix; manual steps below." in text.err
    assert "licence-missing  (manual):" in text.err
    assert "echo ours > licence" in text.err
    report = site.json().report
    assert report["plan"] == []
    assert report["manual"] == [
        {"id": "licence-missing", "title": title, "commands": [f"echo {text} > licence"]}
        for title, text in (("write the licence", "ours"), ("buy one", "theirs"))
    ]
    assert "#   echo ours > licence" in site.fix("--script", "-").out.splitlines()


def test_the_report_says_that_it_is_manual_too(site: Site) -> None:
    site.has()
    words = (*site.words, "--set", "device=cpu")
    report = run_doctor("diagnose", *words, "--format", "json").outcome("licence-missing")
    assert [fix["needs"] for fix in report["findings"][0]["fixes"]] == ["person", "person"]
    assert "write the licence (manual)" in run_doctor("diagnose", *words, "-v").out


def test_the_alternatives_that_are_not_selected_are_told(site: Site) -> None:
    site.has(SWAP)
    assert site.json().report["untried"] == [
        {
            "id": "licence-missing",
            "title": "buy one",
            "commands": ["echo theirs > licence"],
            "conflicts": False,
        }
    ]


# An effect.


def test_an_effect_is_planned_carried_out_and_undone(site: Site) -> None:
    site.has(EFFECT)
    was = site.tree()
    assert "1. fetch licences" in site.fix().out
    assert not site.place.exists()
    done = site.json("--apply")
    assert done.code == 0, done.err
    assert site.place.read_text() == "ours"
    undone = site.undo()
    assert undone.code == 0, undone.err
    assert not site.place.exists()
    assert site.tree() == was


def test_an_effect_that_has_no_undo_is_told_as_such(site: Site) -> None:
    site.has(EFFECT, undone=False)
    assert site.json("--apply").code == 0
    undone = site.undo()
    assert undone.code == 1
    assert f"write {site.place}: cannot be undone" in undone.err
    assert site.place.exists()
    assert site.undo().out.startswith("nothing to undo")


def test_an_effect_of_a_kind_that_is_not_known_stays_until_it_is(site: Site) -> None:
    site.has(EFFECT)
    assert site.json("--apply").code == 0
    without = run_doctor("undo", "--python", site.environment.python)
    assert without.code == 1
    assert "unknown kind of step 'licence'; name its rules with --rules" in without.err
    assert site.place.exists()
    assert site.undo().code == 0
    assert not site.place.exists()


def test_an_effect_that_fails_is_undone_and_the_run_is_none(site: Site) -> None:
    site.has(EFFECT, then='raise StageError(Text("the shop is closed"))')
    was = site.tree()
    done = site.json("--apply")
    assert done.code == 4
    (result,) = done.report["results"]
    assert (result["outcome"], result["output_tail"]) == ("failed", "the shop is closed")
    assert done.report["changed"] == []
    assert not site.place.exists()
    assert site.tree() == was


def test_an_undo_that_crashes_does_not_hide_why_the_effect_failed(site: Site) -> None:
    site.has(
        EFFECT, then='raise StageError(Text("the shop is closed"))', undoing="raise LookupError"
    )
    done = site.json("--apply")
    assert done.code == 4, done.err
    (result,) = done.report["results"]
    assert (result["outcome"], result["output_tail"]) == ("failed", "the shop is closed")
    assert f"write {site.place} (interrupted; may have been done): its undo crashed" in done.err
    site.has(EFFECT)
    assert site.undo().code == 0
    assert not site.place.exists()


def test_what_an_effect_without_an_undo_did_before_it_failed_is_told(site: Site) -> None:
    site.has(EFFECT, undone=False, then='raise StageError(Text("the shop is closed"))')
    done = site.fix("--apply")
    assert done.code == 4
    assert f"write {site.place} (interrupted; may have been done): cannot be undone" in done.err
    assert site.place.exists()
    assert site.undo().out.startswith("nothing to undo")


@pytest.mark.parametrize("undone", [True, False], ids=["undo", "no undo"])
@pytest.mark.parametrize("when", ["begun", "done"])
def test_a_doctor_killed_around_an_effect_leaves_none_untold(
    site: Site, undone: bool, when: str
) -> None:
    kill = SIGNAL.format("SIGKILL")
    site.has(EFFECT, undone=undone, then=kill)
    was = site.tree()
    if when == "begun":
        assert site.fix("--apply").code == -9
    else:
        site.has(EFFECT, undone=undone)
        at = _write_of_done(site)
        words = ("fix", *site.words, "--set", "device=cpu", "--apply")
        below = site.environment.prefix
        assert run_killed(*words, at=at, when="after", below=below).was_killed
    assert site.place.exists()
    said = site.undo()
    begun = " (interrupted; may have been done)" if when == "begun" else ""
    if undone:
        assert said.code == 0, said.err
        assert not site.place.exists()
        told = f"write {site.place}{begun}: undone: remove {site.place}"
        assert (told in said.err) is bool(begun)
    else:
        assert said.code == 1
        assert f"vllm-doctor: write {site.place}{begun}: cannot be undone" in said.err
    assert site.tree() == was


def _write_of_done(site: Site) -> int:
    """The call that puts the journalled effect, as done, in place."""
    words = ("fix", *site.words, "--set", "device=cpu", "--apply")
    whole = run_killed(*words, at=0, below=site.environment.prefix)
    assert whole.code == 0, whole.err
    assert site.undo().code in (0, 1)
    site.place.unlink(missing_ok=True)
    placed = [
        at
        for at, call in enumerate(whole.calls, 1)
        if call.function == "os.replace" and call.paths[1].endswith("effect.json")
    ]
    assert len(placed) == 2
    return placed[1]


def test_an_older_doctor_does_not_take_a_run_with_an_effect_for_one_without(site: Site) -> None:
    site.has(EFFECT)
    run = site.json("--apply").report["run"]
    journal = site.environment.prefix / f"share/vllm-doctor/runs/{run}/journal.json"
    assert json.loads(journal.read_text())["schema_version"] == 3


def test_an_effect_in_a_journal_without_an_identity_is_not_undone(site: Site) -> None:
    """Of such a journal nobody can tell whether its environment is a copy."""
    site.has(EFFECT)
    run = site.json("--apply").report["run"]
    journal = site.environment.prefix / f"share/vllm-doctor/runs/{run}/journal.json"
    journal.write_text(json.dumps({**json.loads(journal.read_text()), "schema_version": 1}))
    undone = site.undo()
    assert undone.code == 4
    assert "journal.json of version 1 has no effects" in undone.err
    assert site.place.exists()


def test_a_kind_of_a_file_in_fixes_is_known_to_an_undo_which_loads_no_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "licences.py").write_text(
        "from doctor.fixes import KINDS, Kind\n\n"
        "class Licences(Kind):\n    name = 'licence'\n    order = 25\n\n"
        "KINDS.add(Licences())\n"
    )
    monkeypatch.setattr(KINDS, "_kinds", {kind.name: kind for kind in KINDS})
    monkeypatch.setattr(fixes, "__path__", [*fixes.__path__, str(tmp_path)])
    assert fixes.kind_named("licence") is not None
    assert fixes.kind_named("unheard-of") is None
    monkeypatch.delitem(sys.modules, "doctor.fixes.licences")


def effect_file(site: Site) -> Path:
    (file,) = site.environment.prefix.glob("share/vllm-doctor/runs/*/1/effect.json")
    return file


@pytest.mark.hardening
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "install"}, "unknown kind of step 'install'"),
        ({"kind": "\x1b[2J"}, "unknown kind of step '\\x1b[2J'"),
        ({"data": {}}, "its undo crashed: KeyError"),
    ],
    ids=["of files", "not printable", "without its data"],
)
def test_an_effect_that_another_has_written_is_told_and_left(
    site: Site, changes: dict[str, object], said: str
) -> None:
    site.has(EFFECT, undoing='effect.data["text"]')
    assert site.json("--apply").code == 0
    file = effect_file(site)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    undone = site.undo()
    assert undone.code == 1
    assert f"write {site.place}: {said}" in undone.err
    assert site.place.exists()


@pytest.mark.hardening
@pytest.mark.parametrize("text", ["", "[]", '{"does": 1}', "[" * 9999])
def test_an_effect_that_cannot_be_read_is_named_and_nothing_is_changed(
    site: Site, text: str
) -> None:
    site.has(EFFECT)
    assert site.json("--apply").code == 0
    effect_file(site).write_text(text)
    was = site.tree()
    undone = site.undo()
    assert undone.code == 4
    assert f"{effect_file(site)} cannot be used: " in undone.err
    assert site.tree() == was


def test_an_effect_without_a_journal_is_no_reason_to_forget_it(site: Site) -> None:
    site.has(EFFECT)
    assert site.json("--apply").code == 0
    (effect_file(site).parent.parent / "journal.json").unlink()
    assert "journal.json is gone, and changes were made" in site.undo().err
    words = (*site.words, "--set", "device=cpu", "--format", "json")
    unfinished = run_doctor("diagnose", *words).outcome("repair-unfinished")
    assert (unfinished["verdict"], "journal.json" in unfinished["why"]) == ("unknown", True)


# Ctrl-C, at the very place.


def run_named(said: Said) -> str:
    """The run that the last line is about."""
    found = re.search(r"run (\S+) ", said.err.splitlines()[-1])
    assert found, said.err
    return found[1]


def test_ctrl_c_rolls_the_run_back_and_says_that_nothing_is_changed(site: Site) -> None:
    site.has(EFFECT, then=CTRL_C)
    was = site.tree()
    said = site.fix("--apply")
    assert said.code == 130
    last = said.err.splitlines()[-1]
    run = run_named(said)
    assert last == f"vllm-doctor: interrupted: run {run} was rolled back; nothing is changed"
    assert not site.place.exists()
    assert site.tree() == was


def test_ctrl_c_names_what_cannot_be_rolled_back(site: Site) -> None:
    site.has(EFFECT, undone=False, then=CTRL_C)
    was = site.tree()
    said = site.fix("--apply")
    assert said.code == 130
    assert said.err.splitlines()[-1].startswith(
        f"vllm-doctor: interrupted: run {run_named(said)} was rolled back, but for: write "
        f"{site.place} (interrupted; may have been done): cannot be undone"
    )
    assert site.place.exists()
    assert site.tree() == was


def test_ctrl_c_while_it_is_rolled_back_says_how_to_finish(site: Site) -> None:
    site.has(EFFECT)
    was = site.tree()
    assert site.json("--apply").code == 0
    site.has(EFFECT, undoing=CTRL_C)
    said = site.undo()
    assert said.code == 130
    assert said.err.strip() == (
        f"vllm-doctor: interrupted: run {run_named(said)} is only partly rolled back; the next "
        "`undo` or `fix --apply` finishes it"
    )
    assert site.place.exists()
    site.has(EFFECT)
    assert site.undo().code == 0
    assert not site.place.exists()
    assert site.tree() == was


@pytest.mark.parametrize("command", ["diagnose", "fix"])
def test_ctrl_c_while_only_reading_says_that_nothing_was_changed(site: Site, command: str) -> None:
    site.has(SWAP)
    file = site.rules / "site.py"
    file.write_text(file.read_text().replace("    fixes = (", f"    {CTRL_C}\n    fixes = ("))
    said = run_doctor(command, *site.words, "--set", "device=cpu")
    assert (said.code, said.out) == (130, "")
    assert said.err.splitlines()[-1] == "vllm-doctor: interrupted; nothing was changed"


# The registry.


def test_a_name_is_given_to_one_kind() -> None:
    with pytest.raises(ValueError, match="there is a kind of step 'environment' already"):
        Kinds(Variables(), Variables())


def test_kinds_come_in_their_order() -> None:
    orders = [kind.order for kind in KINDS]
    assert orders == sorted(orders)
    names = [kind.name for kind in KINDS]
    assert names == [
        *("end-process", "install", "cuda-home", "environment", "set-aside"),
        "download",
    ]


class Nothing(Step):
    __slots__ = ()
    kind = "nothing"


def test_only_what_a_kind_takes_is_automatic() -> None:
    assert not KINDS.automatic(Fix(Text("nothing"), (Nothing(),), Needs.SAFE))
    assert KINDS.settled(Fix(Text("nothing"), (Nothing(),), Needs.ASK)).needs is Needs.PERSON


def test_a_variable_that_no_start_heeds_is_left_to_a_person() -> None:
    kinds = Kinds(Variables())
    steps = (
        SetVariable("VLLM_LOGGING_LEVEL", "INFO"),
        UnsetVariable("VLLM_LOGGING_LEVEL"),
        PrependPath("CUDA_HOME", Path("/opt/cuda")),
    )
    assert not [step for step in steps if kinds.automatic(Fix(Text("x"), (step,)))]
    assert kinds.automatic(Fix(Text("x"), (UnsetVariable("CUDA_HOME"),)))
