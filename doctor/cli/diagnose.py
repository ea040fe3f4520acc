"""diagnose: judges an environment, or a snapshot of one, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import click

from doctor.cli.again import RunningCommand, told
from doctor.cli.output import (
    fail,
    print_json,
    print_report,
    rules_print_to_stderr,
)
from doctor.cli.shared import (
    accept_option,
    fail_to_judge,
    ids,
    known_rules,
    named,
    profile,
    rules_when_asked,
    target_options,
)
from doctor.codec import CodecError, parse_json
from doctor.diagnose import Question, Recorded
from doctor.diagnose import diagnose as run_diagnosis
from doctor.engine import Crashed, Facts
from doctor.exits import USAGE
from doctor.model import Missing, Severity, os_reason
from doctor.probes.interpreter import Where, recorded_where
from doctor.tape import Tape, load_tape
from doctor.target import Target, TooLarge, must_read

_TAPE_MOST = 4 << 20  # bytes; a real snapshot is far below one MiB


_PARTS_MOST = 100_000  # lists and tables; a real one holds some hundreds


def _from_tape(path: str) -> tuple[Target, Where, Recorded]:
    try:
        tape = load_tape(parse_json(must_read(Path(path), _TAPE_MOST), _PARTS_MOST))
    except OSError as error:
        fail(f"--from {path}: {os_reason(error)}", USAGE)
    except TooLarge as error:
        fail(f"--from {error}", USAGE)
    except CodecError as error:
        fail(f"--from {path}: {error}", USAGE)
    except ValueError as error:
        fail(f"--from {path}: no JSON, or cut off ({error})", USAGE)
    recorded = Recorded(tape.tool, tape.recorded, tape.host)
    return Tape(tape), recorded_where(tape.python, tape.found_by), recorded


@click.command()
@target_options
@click.option(
    "--deep",
    is_flag=True,
    help="Prove it: compile, link and load a small kernel; import what vLLM does.",
)
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option(
    "--fail-on",
    type=click.Choice([s.value for s in Severity]),
    default=Severity.ERROR.value,
    show_default=True,
    help="The least finding that makes the exit code 1.",
)
@accept_option
@click.option("--from", "tape", metavar="FILE", help="Judge a snapshot instead of this machine.")
@click.option("-v", "--verbose", is_flag=True, help="Everything that was checked.")
@click.option("-q", "--quiet", is_flag=True, help="Findings only.")
def diagnose(
    python: str | None,
    profile_name: str,
    sets: tuple[str, ...],
    allow: tuple[str, ...],
    rules_dir: str | None,
    deep: bool,
    form: str,
    fail_on: str,
    accept: tuple[str, ...],
    tape: str | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Judge the environment that would serve the model. Read-only, no network.

    Exit codes: 0 healthy, 1 findings, 2 usage, 3 could not tell.
    """
    if tape and (python or deep):
        fail(f"--from {tape}: a snapshot has its own python, and cannot be built with", USAGE)
    if verbose and quiet:
        fail("--verbose and --quiet exclude each other", USAGE)
    asked = profile(profile_name, sets)
    with rules_print_to_stderr():
        known = known_rules(rules_dir, allow) if accept else rules_when_asked(rules_dir, allow)
        accepted = ids("--accept", accept, known) if accept else frozenset()
    target, where, recorded = _from_tape(tape) if tape else (*named(python, allow), None)
    question = Question(profile_name, deep, Severity(fail_on), accepted, recorded)
    try:
        with rules_print_to_stderr():
            report = run_diagnosis(Facts(target, (where, asked)), known, question)
    except (Missing, Crashed) as error:
        fail_to_judge(error)
    report = told(report, RunningCommand(where))
    if form == "json":
        from doctor.report.json import to_json

        print_json(to_json(report))
    else:
        print_report(report, verbose=verbose, quiet=quiet)
    raise SystemExit(report.exit_code)
