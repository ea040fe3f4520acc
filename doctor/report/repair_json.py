"""What `fix` gives as JSON data: the report, the plan, what came of it; and its schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from doctor import about
from doctor.fixes import KINDS
from doctor.model import Fix, Installer, printable
from doctor.repair.action import CONSENTS
from doctor.report.json import (
    BOOL,
    INT,
    MACHINE,
    MAYBE_TEXT,
    SCHEMA_VERSION,
    TEXT,
    list_of,
    machine_json,
    object_of,
    printable_lines,
    report_schema,
    step_json,
    to_json,
)
from doctor.report.machine import here_and_now

if TYPE_CHECKING:
    from doctor.diagnose import Report
    from doctor.repair.action import Action
    from doctor.repair.apply import Applied
    from doctor.repair.create import CreationPlan
    from doctor.repair.plan import Plan


def repair_json(report: Report, plan: Plan, applied: Applied | None) -> dict[str, Any]:
    """The report and the plan that follows from it; with `applied`, the report made after it and
    what came of each action. Its shape is `repair_schema()`."""
    made = {**to_json(report), **_plan(plan, report.installer)}
    return made | _applied(applied) if applied else made


def _plan(plan: Plan, installer: Installer) -> dict[str, Any]:
    resolution = plan.resolution
    return {
        "plan": [_action(action, installer) for action in plan.actions],
        "moves": [
            {"name": m.name, "old": m.old, "new": m.new, "bytes": m.size}
            for m in (resolution.moves if resolution else ())
        ],
        "index": printable(resolution.index.name) if resolution else None,
        "passed_over": [printable(p) for p in (resolution.passed_over if resolution else ())],
        "why": str(resolution.why) if resolution and resolution.why else None,
        "download_bytes": resolution.download_bytes if resolution else 0,
        "manual": [_fix(left.id, fix, installer) for left in plan.manual for fix in left.fixes],
        "withheld": [{"id": w.id, "why": str(w.why), "allow": w.consent} for w in plan.withheld],
        "untried": [
            {**_fix(one.id, one.fix, installer), "conflicts": one.conflicts} for one in plan.untried
        ],
    }


def _action(action: Action, installer: Installer) -> dict[str, Any]:
    return {
        "action": action.kind.name,
        "title": str(action.kind.title),
        "ids": list(action.ids),
        "needs": action.needs.value,
        "steps": [step_json(step, installer) for step in action.steps],
        "changes": [printable(line) for line in action.kind.summary(action)],
        "commands": list(action.kind.commands(action, installer)),
    }


def _fix(id: str, fix: Fix, installer: Installer) -> dict[str, Any]:
    return {"id": id, "title": str(fix.title), "commands": list(fix.commands(installer))}


def _applied(applied: Applied) -> dict[str, Any]:
    return {
        "results": [
            {
                "action": r.action,
                "ids": list(r.ids),
                "outcome": r.outcome,
                "output_tail": printable_lines(r.tail),
            }
            for r in applied.results
        ],
        "changed": [{"action": action, **row._asdict()} for action, row in applied.changed],
        "run": applied.run,
    }


def repair_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `repair_json`; `results`, `changed` and `run` are there after
    --apply."""
    schema = report_schema()
    step = {"type": "object", "properties": {"kind": TEXT}, "required": ["kind"]}
    action = object_of(
        action=_NAMES,
        title=TEXT,
        ids=list_of(TEXT),
        needs={"enum": ["safe", "ask"]},
        steps=list_of(step),
        changes=list_of(TEXT),
        commands=list_of(TEXT),
    )
    fix = {"id": TEXT, "title": TEXT, "commands": list_of(TEXT)}
    more = {
        "plan": list_of(action),
        "moves": list_of(object_of(name=TEXT, old=MAYBE_TEXT, new=MAYBE_TEXT, bytes=_MAYBE_INT)),
        "index": MAYBE_TEXT,
        "passed_over": list_of(TEXT),
        "why": MAYBE_TEXT,
        "download_bytes": _MAYBE_INT,
        "manual": list_of(object_of(**fix)),
        "withheld": list_of(object_of(id=TEXT, why=TEXT, allow={"enum": [*CONSENTS, None]})),
        "untried": list_of(object_of(**fix, conflicts=BOOL)),
    }
    outcome = {"enum": ["healed", "already-healed", "still-there", "failed"]}
    result = object_of(action=TEXT, ids=list_of(TEXT), outcome=outcome, output_tail=TEXT)
    changed = object_of(action=TEXT, what=TEXT, old=MAYBE_TEXT, new=MAYBE_TEXT)
    after: Mapping[str, Any] = {
        "results": list_of(result),
        "changed": list_of(changed),
        "run": MAYBE_TEXT,
    }
    schema["properties"] |= {**more, **after}
    schema["required"] = [*schema["required"], *more]
    schema["dependentRequired"] = {name: [n for n in after if n != name] for name in after}
    return schema


_MAYBE_INT = {"type": ["integer", "null"]}
_NAMES = {
    "type": "string",
    "description": f"{', '.join(kind.name for kind in KINDS)}, or a kind of the site's own",
}


def creation_json(plan: CreationPlan, command: str) -> dict[str, Any]:
    """What `fix --create` would make, and the `command` that does. Its shape is
    `creation_schema()`."""
    made = plan.resolution
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": about.NAME, "version": about.VERSION},
        **machine_json(here_and_now()),
        "create": {
            "path": printable(plan.path),
            "python": printable(plan.base.path),
            "python_version": str(plan.base.version),
            "vllm": None if plan.vllm is None else str(plan.vllm),
            "why": str(made.why) if made.why else None,
            "index": printable(made.index.name),
            "passed_over": [printable(one) for one in made.passed_over],
            "packages": [
                {"name": m.name, "version": m.new, "bytes": m.size} for m in made.moves if m.new
            ],
            "download_bytes": made.download_bytes,
            "disks": [
                {
                    "folder": printable(r.folder),
                    "needed_bytes": r.needed,
                    "free_bytes": r.free,
                }
                for r in plan.rooms
            ],
            "fits": plan.fits,
            "command": command,
        },
    }


def creation_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `creation_json`."""
    schema = object_of(
        schema_version={"const": SCHEMA_VERSION},
        tool=object_of(name=TEXT, version=TEXT),
        **MACHINE,
        create=object_of(
            path=TEXT,
            python=TEXT,
            python_version=TEXT,
            vllm=MAYBE_TEXT,
            why=MAYBE_TEXT,
            index=TEXT,
            passed_over=list_of(TEXT),
            packages=list_of(object_of(name=TEXT, version=TEXT, bytes=_MAYBE_INT)),
            download_bytes=_MAYBE_INT,
            disks=list_of(object_of(folder=TEXT, needed_bytes=_MAYBE_INT, free_bytes=INT)),
            fits=BOOL,
            command=TEXT,
        ),
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
