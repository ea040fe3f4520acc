"""diagnose: judges an environment, or a snapshot of one, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import click

from doctor.cli.again import told
from doctor.cli.options import (
    CommonOptions,
    ServingCommand,
    accept_option,
    fail_on_option,
    form_option,
    ids,
    serving_options,
)
from doctor.cli.output import (
    print_json,
    print_report,
    rules_print_to_stderr,
    verbatim,
)
from doctor.codec import parse_json
from doctor.diagnose import Question, Recorded, facts_about
from doctor.diagnose import diagnose as run_diagnosis
from doctor.errors import UsageError, naming
from doctor.model import Severity, Text
from doctor.probes.interpreter import FoundBy, Where, recorded_where
from doctor.report.formats import CASE_FORMS
from doctor.tape import Tape, load_tape
from doctor.target import Target, must_read

_TAPE_MOST = 4 << 20  # bytes; a real snapshot is far below one MiB


_PARTS_MOST = 100_000  # lists and tables; a real one holds some hundreds


def from_tape(path: str) -> tuple[Target, Where, Recorded]:
    """What --from names. Raises UsageError."""
    with naming("--from", path):
        tape = load_tape(parse_json(must_read(Path(path), _TAPE_MOST), _PARTS_MOST))
        where = recorded_where(tape.python, tape.found_by)
    return Tape(tape), where, Recorded(tape.tool, tape.recorded, tape.host)


@click.command(cls=ServingCommand)
@serving_options
@click.option(
    "--deep",
    is_flag=True,
    help="Prove it: compile, link and load a small kernel; import what vLLM does.",
)
@form_option
@fail_on_option("Lowest severity that sets exit code 1.")
@accept_option
@click.option("--from", "tape", metavar="FILE", help="Judge a snapshot instead of this machine.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Everything: evidence, every command, each check."
)
@click.option("-q", "--quiet", is_flag=True, help="One line per finding.")
def diagnose(
    common: CommonOptions,
    deep: bool,
    form: str,
    fail_on: str,
    accept: tuple[str, ...],
    tape: str | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Judge the environment that would serve the model. Read-only; no network without --online.

    Behind -- stands the server's own command, such as `vllm serve MODEL ...` or `docker run ...`;
    or, beginning with a dash, further options of the profile's server.

    Exit codes: 0 healthy, 1 findings, 2 usage, 3 could not tell.
    """
    if tape and (common.python or deep):
        said = Text(
            "--from {file}: a snapshot has its own python, and --deep is not possible", file=tape
        )
        raise UsageError(said)
    if verbose and quiet:
        raise UsageError(Text("--verbose and --quiet exclude each other"))
    if tape and (common.pid or common.unit):
        raise UsageError(Text("--from {file}: a snapshot has no processes and units", file=tape))
    asked = common.request()
    with rules_print_to_stderr():
        known = common.rules() if accept else common.rules_when_asked()
        accepted = ids("--accept", accept, known) if accept else frozenset()
    target, where, recorded = from_tape(tape) if tape else (*common.named(asked.command), None)
    if deep and where.found_by is FoundBy.IMAGE:
        common.entered(asked.command)
    question = Question(common.profile_name, deep, Severity(fail_on), accepted, recorded)
    if deep:
        from doctor.cli.talking import Talking
        from doctor.talk import VERIFYING

        Talking(form).phase(VERIFYING)
    with rules_print_to_stderr():
        report = run_diagnosis(facts_about(target, where, asked), known, question)
    report = told(report, where)
    if form == "json":
        from doctor.report.json import to_json

        print_json(to_json(report))
    elif form in CASE_FORMS:
        from doctor.report.report_cases import report_cases

        verbatim(CASE_FORMS[form](report_cases(report)))
    else:
        print_report(report, verbose=verbose, quiet=quiet)
    raise SystemExit(report.exit_code)
