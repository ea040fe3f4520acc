"""The command that reads a server's log: explain."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from doctor.cli.again import RunningCommand
from doctor.cli.options import CommonOptions, form_option, target_options
from doctor.cli.output import (
    print_json,
    print_lines,
    rules_print_to_stderr,
    tell,
    text_width,
    verbatim,
)
from doctor.exits import UNKNOWN
from doctor.locate import LocateError, nobody_named
from doctor.logs.explain import Explanation, explain_log
from doctor.logs.index import SignatureIndex, shipped_index
from doctor.logs.several import Whole, together, wholes, with_place
from doctor.logs.source import LogError
from doctor.logs.started import MemoryWatch, StartedMemory
from doctor.model import Installer, Rule, Text
from doctor.profile import ServeRequest
from doctor.report.formats import CASE_FORMS

if TYPE_CHECKING:
    from doctor.logs.confirm import Confirmed
    from doctor.logs.predicted import PredictedMemory


@click.command()
@click.argument("names", metavar="FILE|FOLDER|-...", nargs=-1, required=True)
@target_options
@click.option(
    "--no-live", is_flag=True, help="Do not check whether this machine still has the problem."
)
@form_option
def explain(
    names: tuple[str, ...],
    common: CommonOptions,
    no_live: bool,
    form: str,
) -> None:
    """Name the root cause in a failed server's log, and its fix. Read-only, no network.

    FILE may be packed with gzip or xz; - reads a pipe: vllm serve ... 2>&1 | vllm-doctor explain -
    Of several files, of ranks or nodes, and of the parts of a rotated log, one cause is the
    primary one. Of a folder, all files in it are read.

    Exit codes: 0 nothing failed, 1 the failure is recognised, or a request was refused, 2 usage,
    3 a failure that no signature knows, only symptoms of one, or a log that is unreadable or too
    repetitive to examine each line.
    """
    asked = common.request()
    common.must_be_trusted()
    known = common.signatures()
    index = SignatureIndex(known.signatures) if common.rules_dir else shipped_index()
    with contextlib.suppress(AttributeError, OSError, ValueError):  # stdin may be closed
        if "-" in names and sys.stdin.isatty():
            tell("paste the log, then Ctrl-D")
    logs, told, started = _read(names, index)
    ids = [f.id for f in told.findings]
    # Of most ailments that only a log can name there is no rule to load.
    carried = all(known.explains(id) for id in ids) and common.rules_dir is None
    rules = () if carried else common.rules()
    installer = Installer(Path(sys.executable), own_pip=True, again=RunningCommand())
    confirmed: Mapping[str, Confirmed] = {}
    if not no_live:
        with rules_print_to_stderr():
            installer, confirmed = _ask(ids, common, asked, rules, installer)
    from doctor.report.explained import Explained, explained_json, explained_lines
    from doctor.report.lines import Style

    made = Explained(
        logs,
        told,
        {r.id: r for r in rules},
        known.ailments,
        confirmed,
        not no_live,
        installer,
        _predicted(started),
    )
    if form == "json":
        print_json(explained_json(made))
    elif form in CASE_FORMS:
        from doctor.report.explained_cases import explained_cases

        verbatim(CASE_FORMS[form](explained_cases(made)))
    else:
        print_lines(explained_lines(made, Style(width=text_width())))
    raise SystemExit(told.exit_code)


def _predicted(started: StartedMemory | None) -> PredictedMemory | None:
    if started is None:
        return None
    from doctor.logs.predicted import predicted

    return predicted(started)


def _read(
    names: Iterable[str], index: SignatureIndex
) -> tuple[list[Whole], Explanation, StartedMemory | None]:
    """The logs that could be read, what they come to together, and what the first that says so
    tells of its server's memory. Raises LogError."""
    logs, told = [], []
    started = None
    found = wholes(names)
    for whole in found:
        watch = MemoryWatch()
        one = explain_log(watch.watching(whole.blocks()), index)
        started = started or watch.started()
        if len(found) == 1 or not _says_nothing(whole, one):
            logs.append(whole)
            told.append(with_place(one, whole))
    if not logs:
        raise LogError(
            Text("there is no log among these {n} files: name the server's log", n=len(found))
        )
    over_all = together(told)
    if len(logs) == 1 or over_all.verdict in ("nothing-found", "too-repetitive"):
        for whole, one in zip(logs, told, strict=True):
            _must_tell_something(whole, one)
    return logs, over_all, started


def _says_nothing(whole: Whole, told: Explanation) -> bool:
    """Of files among others: those that are no log, or hold nothing."""
    return told.verdict == "nothing-found" and all(
        log.is_binary or not (log.size or log.damaged) for log in whole.logs
    )


def _must_tell_something(whole: Whole, told: Explanation) -> None:
    """Raises LogError where nothing can be said: that is not the same as nothing wrong."""
    if told.verdict == "explained":
        return
    for log in whole.logs:
        if not log.size and not log.damaged and len(whole.logs) == 1:
            raise LogError(
                Text("{name} is empty: there is nothing to explain", name=log.name), UNKNOWN
            )
        if log.is_binary:
            raise LogError(Text("{name} is not a text file: name the server's log", name=log.name))
        if log.damaged and told.verdict in ("nothing-found", "too-repetitive"):
            raise LogError(
                Text(
                    "{name}: {why}; nothing was found in what could be read",
                    name=log.name,
                    why=log.notes[0],
                ),
                UNKNOWN,
            )


def _ask(
    ids: Collection[str],
    common: CommonOptions,
    asked: ServeRequest,
    rules: Collection[Rule],
    otherwise: Installer,
) -> tuple[Installer, Mapping[str, Confirmed]]:
    """What this machine says. Without a target of its own a log is explained all the same."""
    from doctor.logs.confirm import confirm_on_machine, unknown

    ruled = {r.id for r in rules}
    try:
        target, where = common.located()
    except LocateError as error:
        if common.python is not None:
            raise
        return otherwise, unknown((i for i in ids if i in ruled), str(error))
    if nobody_named(where):
        why = "no environment is active; name it with --python"
        return otherwise, unknown((i for i in ids if i in ruled), why)
    installer = Installer(where.python, own_pip=True, again=RunningCommand(where))
    return installer, confirm_on_machine(ids, target, where, asked, rules)
