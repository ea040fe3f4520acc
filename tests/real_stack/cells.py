"""Cells of the table of versions: an environment, a GPU and a place; what really happens there when
the server starts, and what the doctor says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import stand_ins
from tests.real_stack import lab
from tests.real_stack.place import Place, Report

CAPABILITIES = ("8.0", "8.9", "9.0", "10.0", "12.0")
_SCRIPT = Path(__file__).with_name("_start.py")
_OFF = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}


def places(target: lab.Environment) -> dict[str, Mapping[str, str]]:
    """The variables of each place, by its name; no toolkit of the machine is seen in any."""
    return {
        "nothing set": {},
        "CUDA_HOME at the wheels": {"CUDA_HOME": str(target.wheels_toolkit)},
        "sampler off": _OFF,
    }


@dataclass(frozen=True)
class Cell:
    capability: str
    place: str
    env: Mapping[str, str]


@dataclass(frozen=True)
class Truth:
    """What really happened. `choice`: what vLLM chose, by name, None where it died before; `built`:
    what was then compiled, linked and loaded; `died`: where and of what, None where it starts."""

    choice: Mapping[str, str | None] | None
    built: tuple[str, ...]
    died: tuple[str, str, str] | None

    @property
    def text(self) -> str:
        """`starts`, or what it dies of in one line."""
        if self.died is None:
            return f"starts; built: {', '.join(self.built)}" if self.built else "starts"
        stage, kind, message = self.died
        message = message.replace(f"{lab.folder()}/", "")  # where that is says nothing to anybody
        last = message.strip().splitlines()[-1][-120:] if message.strip() else ""
        return f"dies ({stage}): {kind}: {last}"


@dataclass(frozen=True)
class Judged:
    """A cell with its truth and the doctor's verdicts: of GPUs to come, of GPUs that are here."""

    cell: Cell
    truth: Truth
    later: Report
    here: Report

    @property
    def outcome(self) -> str:
        """`right`, `false alarm`, `false comfort` or `could not tell`; the worst of the two."""
        said = {_outcome(self.truth, report) for report in (self.later, self.here)}
        ranked = ("false comfort", "false alarm", "could not tell", "right")
        return next(one for one in ranked if one in said)


def _outcome(truth: Truth, report: Report) -> str:
    if report.code not in (0, 1):
        return "could not tell"
    if (report.code == 0) == (truth.died is None):
        return "right"
    return "false alarm" if truth.died is None else "false comfort"


def driver(folder: Path) -> Path:
    """The stand-in driver, made in `folder` where it is not there."""
    return folder if folder.exists() else stand_ins.build(folder)


def truths(target: lab.Environment, home: Path, cells: Sequence[Cell]) -> list[Truth]:
    """What happens in each cell; all are tried in one run of the target's interpreter."""
    asked = home / "cells.json"
    asked.write_text(json.dumps([{"capability": c.capability, "env": dict(c.env)} for c in cells]))
    env = stand_ins.environment(driver(home / "driver"), gpus=2)
    place = Place(target, home, env)
    ran = place.run("sh", "-c", f'exec "$0" {_SCRIPT} < {asked}', target.python)
    rows = [json.loads(row) for row in ran.out.splitlines()]
    assert len(rows) == len(cells), ran.text
    return [_truth(row) for row in rows]


def _truth(row: dict[str, Any]) -> Truth:
    died = row["died"]
    return Truth(row["choice"], tuple(row["built"]), tuple(died) if died else None)


def judged(target: lab.Environment, home: Path, cells: Sequence[Cell]) -> list[Judged]:
    """The truth of each cell and the doctor's verdicts on it, of the default profile."""
    made = []
    for cell, truth in zip(cells, truths(target, home, cells), strict=True):
        there = stand_ins.environment(home / "driver", cc=cell.capability, gpus=2)
        to_come = ("--set", "gpus=later", "--set", f"archs={cell.capability}")
        later = Place(target, home, cell.env).diagnose(*to_come)
        here = Place(target, home, {**there, **cell.env}).diagnose()
        made.append(Judged(cell, truth, later, here))
    return made


def assert_right(found: Sequence[Judged]) -> None:
    """The doctor says what happens, in every cell; in some of them the server starts, in some it
    dies, or nothing was proven."""
    wrong = [f"{j.cell}: {j.truth.text}: {j.outcome}" for j in found if j.outcome != "right"]
    assert not wrong
    assert {j.truth.died is None for j in found} == {True, False}
