"""The forms of `--format`: what each promises to the program that reads it, for every command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doctor.model import Severity
from doctor.report.cases import Case, Cases, CaseVerdict
from doctor.report.formats import CASE_FORMS
from doctor.report.github import github
from doctor.report.junit import junit
from tests.conftest import Environment, Said, run_inside
from tests.corpus import logs
from tests.stand_ins.fixtures import FOR_H100, Bench
from tests.stand_ins.index import Index

TAPES = sorted((Path(__file__).parent.parent / "fixtures/tapes").glob("*.json"))
SICK = next(t for t in TAPES if t.stem == "cuda-home-unset")
HEALTHY = next(t for t in TAPES if t.stem == "folder-of-links")
LOG = next(o.path for o in logs() if o.folder == "kv-cache-too-small" and o.is_real)
UNRECOGNISED = next(o.path for o in logs() if o.folder == "unrecognised")

ANNOTATION = re.compile(r"::(?:error|warning|notice) (?:\w+=[^,:\r\n]*)(?:,\w+=[^,:\r\n]*)*::.*")

SHAPE = {
    "testsuites": {"name"},
    "testsuite": {
        *("name", "timestamp", "hostname", "tests", "failures", "errors", "skipped", "time"),
    },
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"classname", "name", "time"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "skipped": {"message"},
    "system-out": set(),
}
"""Elements and attributes of Ant's JUnit.xsd and of Jenkins' junit-10.xsd that both know."""


def suites(text: str) -> list[xml.Element]:
    """The suites of a JUnit file, which keeps to the shape that servers read."""
    root = xml.fromstring(text)  # noqa: S314 - our own
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.attrib) <= SHAPE[element.tag]
    for suite in root:
        cases = suite.findall("testcase")
        assert [child.tag for child in suite] == ["properties"] + ["testcase"] * len(cases)
        assert int(suite.attrib["tests"]) == len(cases)
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.attrib[name]) == sum(case.find(tag) is not None for case in cases)
        assert all(len(case) <= 1 for case in cases)
        names = [case.attrib["name"] for case in cases]
        assert len(names) == len(set(names))
    return list(root)


def annotated(text: str) -> list[str]:
    """The lines of the GitHub form, each of which is one workflow command."""
    made = text.splitlines()
    assert [line for line in made if not ANNOTATION.fullmatch(line)] == []
    return made


def bad(said: Said, tag: str) -> set[str]:
    """The names of the cases that hold such an element."""
    return {
        case.attrib["name"]
        for suite in suites(said.out)
        for case in suite
        if case.find(tag) is not None
    }


class TestDiagnose:
    @pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
    def test_junit_fails_exactly_what_decides(self, tape: Path) -> None:
        said = run_inside("diagnose", "--from", tape, "--format", "junit")
        report = run_inside("diagnose", "--from", tape, "--format", "json").report
        errors = {
            o["id"]
            for o in report["outcomes"]
            if o["verdict"] == "found" and o["severity"] == "error"
        }
        assert bad(said, "failure") == errors
        assert bad(said, "error") == set()
        assert bad(said, "skipped") == {n["id"] for n in report["not_checked"]}
        assert said.code == report["exit_code"]

    def test_the_host_of_a_snapshot_is_redacted_and_no_control_character(
        self, tmp_path: Path
    ) -> None:
        """A snapshot comes from anybody, and what stands in it is no XML."""
        snapshot = json.loads(SICK.read_text())
        snapshot["host"] = "gpu\x1b[2J https://me:hunter2secret@host/"
        file = tmp_path / "snapshot.json"
        file.write_text(json.dumps(snapshot))
        said = run_inside("diagnose", "--from", file, "--format", "junit")
        assert {suite.attrib["hostname"] for suite in suites(said.out)} == {
            "gpu\\x1b[2J https://***@host/"
        }

    def test_github_has_an_annotation_per_finding_and_the_verdict(self) -> None:
        said = run_inside("diagnose", "--from", SICK, "--format", "github")
        made = annotated(said.out)
        assert [line.split("::")[1] for line in made] == [
            "error title=architecture-not-in-transformers",
            "error title=nvcc-missing",
            "error title=nvcc-header-version-skew",
            "error title=pip-toolkit-lib-layout",
            "notice title=vllm-doctor diagnose",
        ]
        assert "%0A/opt/vllm-env/bin/python -m pip install vllm==0.22.0" in made[0]
        assert made[-1].endswith("::Not healthy: 4 errors, 4 fixable")

    def test_of_a_healthy_machine_the_verdict_alone(self) -> None:
        said = run_inside("diagnose", "--from", HEALTHY, "--format", "github")
        assert said.out == "::notice title=vllm-doctor diagnose::Healthy\n"

    def test_what_was_accepted_fails_nothing_and_is_told(self) -> None:
        words = ("--from", SICK, "--accept", "nvcc-missing", "--format")
        assert "nvcc-missing" not in bad(run_inside("diagnose", *words, "junit"), "failure")
        said = run_inside("diagnose", *words, "github")
        assert "::notice title=nvcc-missing::accepted: FlashInfer finds no nvcc" in said.out

    def test_what_could_not_be_told_is_an_error_of_the_check(self, tmp_path: Path) -> None:
        (tmp_path / "odd.py").write_text(
            "from doctor.engine import rule\n"
            "from doctor.model import Missing, Severity, Stage, Text\n\n"
            "@rule('odd', Severity.ERROR, Stage.SHELL)\n"
            "def odd():\n    '''It is odd.'''\n    raise Missing(Text('nobody knows'))\n"
        )
        words = ("--from", HEALTHY, "--rules", tmp_path, "--format")
        said = run_inside("diagnose", *words, "junit")
        assert (said.code, bad(said, "error")) == (3, {"odd"})
        said = run_inside("diagnose", *words, "github")
        assert said.out.startswith("::warning title=odd::inconclusive: nobody knows\n")


class TestExplain:
    @pytest.mark.parametrize("form", CASE_FORMS)
    def test_every_kind_of_log_keeps_to_the_form(self, form: str) -> None:
        read = {"junit": suites, "github": annotated}[form]
        for log in list(logs())[::40]:
            assert read(run_inside("explain", "--no-live", "--format", form, log.path).out)

    def test_the_cause_fails_and_its_symptoms_do_not(self) -> None:
        said = run_inside("explain", "--no-live", "--format", "junit", LOG)
        assert (said.code, bad(said, "failure")) == (1, {"kv-cache-too-small"})

    def test_an_annotation_names_the_line_of_the_log(self) -> None:
        said = run_inside("explain", "--no-live", "--format", "github", LOG)
        (first, *_) = annotated(said.out)
        assert re.match(
            rf"::error file={LOG},line=\d+,title=kv-cache-too-small::one request", first
        )
        assert "%0Avllm serve ... --max-model-len 262144" in first

    def test_an_unrecognised_failure_is_an_error(self) -> None:
        said = run_inside("explain", "--no-live", "--format", "junit", UNRECOGNISED)
        assert (said.code, bad(said, "error")) == (3, {"unrecognised"})

    def test_a_healthy_log_has_one_case_that_passed(self, tmp_path: Path) -> None:
        (tmp_path / "a.log").write_text("INFO 11-25 10:00:00 [core.py:1] all is well\n")
        said = run_inside("explain", "--no-live", "--format", "junit", tmp_path / "a.log")
        ((_, case),) = suites(said.out)
        assert (said.code, [one.tag for one in case]) == (0, ["system-out"])


class TestFix:
    def test_a_plan_is_pending_and_what_was_fixed_passed(
        self, bench: Bench, index: Index, broken: Environment
    ) -> None:
        def fix(*words: str) -> Said:
            return bench.doctor("fix", *FOR_H100, *words, index=index.url, environment=broken)

        planned = fix("--format", "junit")
        (plan,) = (s for s in suites(planned.out) if s.attrib["name"] == "fix")
        assert plan.attrib["skipped"] == plan.attrib["tests"] != "0"
        assert "title=install::would fix" in fix("--format", "github").out
        done = fix("--apply", "--format", "junit")
        assert (done.code, bad(done, "failure")) == (0, set())
        (fixed,) = (s for s in suites(done.out) if s.attrib["name"] == "fix")
        assert "fixed: " in "".join(fixed.itertext())
        assert annotated(fix("--format", "github").out)[-1].endswith(
            "::Healthy (2 infos, 1 fixable)"
        )


def test_nothing_in_a_text_ends_an_annotation_or_opens_another() -> None:
    case = Case("a:b,c", "area", CaseVerdict.FAILED, "50% ::error::x", file="x,y:z", line=3)
    made = Cases("diagnose", "Not healthy", (case,))
    assert github(made).splitlines()[0] == (
        "::error file=x%2Cy%3Az,line=3,title=a%3Ab%2Cc::50%25 ::error::x"
    )


texts = st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "))


@given(st.lists(texts, min_size=1, unique=True), st.sampled_from(CaseVerdict), texts)
def test_whatever_a_text_holds_the_forms_are_well_formed(
    ids: list[str], verdict: CaseVerdict, message: str
) -> None:
    cases = tuple(
        Case(id, "area", verdict, message, Severity.WARNING, decides=True, evidence=(message,))
        for id in ids
    )
    made = Cases("diagnose", message, cases, "host", "2026-01-01T00:00:00Z")
    (suite,) = suites(junit(made))
    assert [case.attrib["name"] for case in suite.findall("testcase")] == ids
    assert annotated(github(made))
