"""Commands that judge and change nothing: diagnose, rules, snapshot, schema."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
from pathlib import Path

import click

from doctor import about
from doctor import profile as profiles
from doctor.cli.again import Again, told
from doctor.cli.output import (
    fail,
    print_json,
    print_lines,
    rules_print_to_stderr,
    say,
    verbatim,
    write_file,
)
from doctor.cli.shared import (
    ALLOW_HELP,
    accept_option,
    did_you_mean,
    fail_to_judge,
    ids,
    load,
    named,
    profile,
    rules_when_asked,
    target_options,
)
from doctor.codec import CodecError, parse_json
from doctor.diagnose import Recorded, Report
from doctor.diagnose import diagnose as run_diagnosis
from doctor.engine import Crashed
from doctor.exits import USAGE
from doctor.model import Missing, Rule, Severity, reason
from doctor.probes.interpreter import Where
from doctor.tape import Recorder, Tape, load_tape
from doctor.target import Target, TooLarge, must_read
from doctor.trust import ALLOW

_TAPE_MOST = 4 << 20  # bytes; a real snapshot is far below one MiB
_PARTS_MOST = 100_000  # lists and tables; a real one holds some hundreds


def _from_tape(path: str) -> tuple[Target, Where, Recorded]:
    try:
        tape = load_tape(parse_json(must_read(Path(path), _TAPE_MOST), _PARTS_MOST))
    except OSError as error:
        fail(f"--from {path}: {reason(error)}", USAGE)
    except TooLarge as error:
        fail(f"--from {error}", USAGE)
    except CodecError as error:
        fail(f"--from {path}: {error}", USAGE)
    except ValueError as error:
        fail(f"--from {path}: no JSON, or cut off ({error})", USAGE)
    recorded = Recorded(tape.tool, tape.recorded, tape.host)
    return Tape(tape), Where(Path(tape.python), tape.found_by), recorded


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
        known = load(rules_dir, allow) if accept else rules_when_asked(rules_dir, allow)
        accepted = ids("--accept", accept, known) if accept else frozenset()
    target, where, recorded = _from_tape(tape) if tape else (*named(python, allow), None)
    try:
        with rules_print_to_stderr():
            report = run_diagnosis(
                target,
                where,
                asked,
                known,
                profile_name=profile_name,
                source="tape" if tape else "live",
                deep=deep,
                fail_on=Severity(fail_on),
                accept=accepted,
            )
    except (Missing, Crashed) as error:
        fail_to_judge(error)
    report = told(dataclasses.replace(report, recorded=recorded), Again(where))
    if form == "json":
        from doctor.report.json import to_json

        print_json(to_json(report))
    else:
        _print_text(report, verbose, quiet)
    raise SystemExit(report.exit_code)


def _print_text(report: Report, verbose: bool, quiet: bool) -> None:
    from doctor.report import text

    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    print_lines(text.lines(report, text.Style(verbose, quiet, width)))


@click.group(invoke_without_command=True)
@click.option("--rules", "rules_dir", metavar="DIR", help="A folder of further rules.")
@click.option("--allow", multiple=True, type=click.Choice([ALLOW]), help=ALLOW_HELP)
@click.pass_context
def rules(ctx: click.Context, rules_dir: str | None, allow: tuple[str, ...]) -> None:
    """List what the doctor knows."""
    ctx.obj = load(rules_dir, allow)
    if ctx.invoked_subcommand is None:
        width = max(len(r.id) for r in ctx.obj)
        for one in sorted(ctx.obj, key=lambda r: (r.area, r.id)):
            say(f"{one.id:<{width}}  {one.severity.value:<7}  {one.area:<11}  {one.title}")


@rules.command()
@click.argument("id")
@click.pass_obj
def show(known: tuple[Rule, ...], id: str) -> None:
    """Explain one ailment, also one that only a log can name."""
    from doctor import signatures

    found = {r.id: r for r in known}
    if id in found:
        one = found[id]
        say(f"{one.id}  ({one.severity.value}, {one.area})\n\n{one.explanation}")
        return
    in_logs = signatures.shipped().ailments
    if id not in in_logs:
        hint = did_you_mean(id, {*found, *in_logs}, f"; `{Again()('rules')}` lists them")
        fail(f"there is no rule {id!r}{hint}", USAGE)
    ailment = in_logs[id]
    say(f"{id}  (found in a server's log)\n\n{ailment.title}.\n\n{ailment.explanation}")


@click.command()
@target_options
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="Where to write it; - for stdout."
)
@click.option("--host", is_flag=True, help="Keep this machine's name in it.")
def snapshot(
    python: str | None,
    profile_name: str,
    sets: tuple[str, ...],
    allow: tuple[str, ...],
    rules_dir: str | None,
    output: str,
    host: bool,
) -> None:
    """Record this machine, redacted, so that `diagnose --from` judges it anywhere."""
    from doctor.snapshot import shareable

    asked = profile(profile_name, sets)
    known = load(rules_dir, allow)
    target, where = named(python, allow)
    recorder = Recorder(target)
    try:
        for one in (asked, *profiles.variants(asked)):
            run_diagnosis(recorder, where, one, known, profile_name=profile_name)
    except (Missing, Crashed) as error:
        fail_to_judge(error)
    tool = f"{about.NAME} {about.VERSION}"
    name = platform.node() if host else None
    recording = recorder.recording(tool, str(where.python), where.found_by, name)
    kept = shareable(recording, target.env.get("HOME"))
    text = json.dumps(kept, indent=1, sort_keys=True) + "\n"
    if output == "-":
        verbatim(text)
        return
    write_file("--output", output, text)
    say(f"wrote {output} ({len(text) >> 10} KiB); look it through before you share it", err=True)


@click.command()
@click.argument(
    "what", type=click.Choice(["report", "fix", "snapshot", "explain"]), default="report"
)
def schema(what: str) -> None:
    """Print the JSON Schema of the report, of what fix or explain give, or of the snapshot."""
    from doctor.report.explained import explained_schema
    from doctor.report.json import repair_schema, report_schema
    from doctor.report.schema import snapshot_schema

    made = {
        "report": report_schema,
        "fix": repair_schema,
        "snapshot": snapshot_schema,
        "explain": explained_schema,
    }
    print_json(made[what](), indent=1)
