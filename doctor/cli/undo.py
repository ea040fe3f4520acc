"""undo: puts back what fixes have changed."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from doctor.cli.again import RunningCommand
from doctor.cli.changing import do_not_die_of_a_pipe, said_with_way_out, with_way_out
from doctor.cli.options import CommonOptions, patience, python_options, wait_option
from doctor.cli.output import (
    fail,
    print_lines,
    say,
    tell,
)
from doctor.exits import FINDINGS, USAGE
from doctor.model import Text
from doctor.probes.interpreter import Interpreter

if TYPE_CHECKING:
    from doctor.repair.state import Run, State


@click.command()
@functools.partial(python_options, consents=("running",))
@click.argument("run", required=False)
@click.option("--list", "listed", is_flag=True, help="The runs that can be undone.")
@click.option("--purge", is_flag=True, help="Remove what was set aside; no run can be undone then.")
@click.option(
    "--forget",
    metavar="RUN",
    help="Give up a run that is damaged or was made elsewhere: what it set aside is deleted, what "
    "is in place stays.",
)
@click.option(
    "--rules",
    "rules_dir",
    metavar="DIR",
    help="A folder of further rules, whose kinds of steps undo what they did.",
)
@wait_option
def undo(
    common: CommonOptions,
    rules_dir: str | None,
    run: str | None,
    listed: bool,
    purge: bool,
    forget: str | None,
    wait: float | None,
) -> None:
    """Put everything back as it was before RUN, by default the last one. Needs no network.

    Exit codes: 0 done, 1 something was changed since and is left, 2 usage, 4 it failed, 75 another
    doctor is at work.
    """
    from doctor.repair.state import State, Unusable

    options = (("--list", listed), ("--purge", purge), ("--forget", forget is not None))
    given = [option for option, is_given in options if is_given]
    if len(given) > 1:
        fail(f"{' and '.join(given)} exclude each other", USAGE)
    if run and given:
        fail(f"{run}: {given[0]} takes no further run", USAGE)
    if rules_dir is not None:  # their kinds of steps are registered
        dataclasses.replace(common, rules_dir=rules_dir).rules()
    state = State(_prefix(common))
    with with_way_out():
        if listed:
            _list(state)
            return
        # What was interrupted is rolled back whoever runs: half a change serves nobody.
        runs = state.survey()
        whole = not any(isinstance(r, Unusable) or r.unfinished for r in runs)
        if whole and forget is None:
            _must_not_run(state.prefix, common.allow)
        do_not_die_of_a_pipe()
        with state.locked(patience(wait)):
            if forget is not None:
                _forget(state, forget)
                left: list[Text] = []
            else:
                left = _purge(state) if purge else _undo(state, run)
    raise SystemExit(FINDINGS if left else 0)


def _must_not_run(prefix: Path, allow: tuple[str, ...]) -> None:
    from doctor.repair import running

    if "running" not in allow and (users := running.users(prefix)):
        who = ", ".join(map(str, users))
        command = RunningCommand()("undo", "--allow", "running")
        fail(f"{who} runs out of this environment; to undo all the same: {command}", FINDINGS)


def _prefix(common: CommonOptions) -> Path:
    from doctor.engine import Facts
    from doctor.repair.state import State

    python = common.python
    # os.path says no where others would raise.
    if python and os.path.isdir(State(Path(python).absolute()).folder / "runs"):  # noqa: PTH112
        # Its journal is there, whatever became of its interpreter.
        return Path(python).absolute()
    target, where = common.named()
    return Facts(target, (where,)).get(Interpreter).prefix


def _list(state: State) -> None:
    from doctor.report.repair import run_lines

    runs = state.survey()
    if not runs:
        say(f"nothing to undo in {state.prefix}")
    print_lines(run_lines(runs))


def _purge(state: State) -> list[Text]:
    from doctor.repair.state import Unusable

    for run in state.purge():
        say(f"removed what run {run.id} had set aside")
    unusable = [run for run in state.survey() if isinstance(run, Unusable)]
    for one in unusable[1:]:
        tell(str(said_with_way_out(one.error)))
    if unusable:
        raise unusable[0].error
    return []


def _forget(state: State, name: str) -> None:
    """Says what is given up, and gives it up."""
    held = state.held(name)
    if held is None:
        fail(f"there is no run {name} in {state.prefix}", USAGE)
    files, size = held
    say(
        f"deleting run {name}: {files} files ({size / 2**20:.1f} MiB) that it had "
        "set aside are gone for good, and what is in place now stays"
    )
    state.forget(name)


def _undo(state: State, name: str | None) -> list[Text]:
    """What was left alone, in sentences."""
    from doctor.repair.apply import half_undone, rolling_back
    from doctor.repair.errors import Interrupted

    recovered = state.recover()
    for run, left in recovered:
        say(str(rolling_back(run)))
        for line in (*run.notes, *left):
            tell(str(line))
    if name is None and recovered:
        return [line for _, left in recovered for line in left]
    runs = state.runs()
    if not runs and name is None:
        say(f"nothing to undo in {state.prefix}")
        return []
    chosen = _chosen(runs, name, state.prefix)
    try:
        left = state.undo(chosen)
    except KeyboardInterrupt:
        raise Interrupted(half_undone(chosen)) from None
    for line in (*chosen.notes, *left):
        tell(str(line))
    say(f"undid run {chosen.id}")
    return left


def _chosen(runs: list[Run], name: str | None, prefix: Path) -> Run:
    """The run of this name, the last one without a name; no other than the last can be undone."""
    if not runs:
        fail(f"there is no run {name} in {prefix}", USAGE)
    chosen = runs[-1] if name is None else next((r for r in runs if r.id == name), None)
    if chosen is None:
        known = ", ".join(r.id for r in runs)
        fail(f"there is no run {name}; there are {known}", USAGE)
    if chosen is not runs[-1]:
        fail(f"run {runs[-1].id} came after {chosen.id}: undo that one first", USAGE)
    return chosen
