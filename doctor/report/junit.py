"""JUnit XML, as CI servers read it: a suite per area, a case per rule.

The shape is that of Ant's junitreport and of Jenkins' junit-10.xsd: of a case, at most one of
`failure` (found), `error` (inconclusive) and `skipped` (not checked).
"""

from __future__ import annotations

from xml.etree import ElementTree as xml

from doctor import about
from doctor.report.cases import Case, Cases, CaseVerdict


def junit(made: Cases) -> str:
    """The XML of all cases. What does not decide the exit code passes, and tells in its output."""
    root = xml.Element("testsuites", name=f"{about.NAME} {made.command}")
    areas: dict[str, list[Case]] = {}
    for case in made.cases:
        areas.setdefault(case.area, []).append(case)
    for area, cases in areas.items():
        suite = xml.SubElement(root, "testsuite", _attributes(area, cases, made))
        properties = xml.SubElement(suite, "properties")
        for name, value in made.properties.items():
            xml.SubElement(properties, "property", name=name, value=value)
        for case in cases:
            _add(suite, case)
    xml.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{xml.tostring(root, encoding="unicode")}\n'


def _add(suite: xml.Element, case: Case) -> None:
    group = f"{about.NAME}.{case.area}"
    row = xml.SubElement(suite, "testcase", classname=group, name=case.id, time="0")
    tag = _tag(case)
    if tag == "skipped":
        xml.SubElement(row, tag, message=case.message)
    elif tag is not None:
        bad = xml.SubElement(row, tag, message=case.message, type=case.severity.value)
        bad.text = "\n".join(case.details)
    elif case.message:
        passed = case.verdict is CaseVerdict.PASSED
        word = "" if passed else "accepted: " if case.accepted else f"{case.severity.value}: "
        output = xml.SubElement(row, "system-out")
        output.text = "\n".join([f"{word}{case.message}", *case.details])


def _tag(case: Case) -> str | None:
    if case.verdict in (CaseVerdict.NOT_CHECKED, CaseVerdict.PENDING):
        return "skipped"
    if not case.decides:
        return None
    tags = {CaseVerdict.FAILED: "failure", CaseVerdict.INCONCLUSIVE: "error"}
    return tags.get(case.verdict)


def _attributes(area: str, cases: list[Case], made: Cases) -> dict[str, str]:
    tags = [_tag(case) for case in cases]
    whose = {"timestamp": (made.time or "").removesuffix("Z"), "hostname": made.host}
    return {
        "name": area,
        **{key: value for key, value in whose.items() if value},
        "tests": str(len(cases)),
        "failures": str(tags.count("failure")),
        "errors": str(tags.count("error")),
        "skipped": str(tags.count("skipped")),
        "time": f"{made.seconds:.3f}",
    }
