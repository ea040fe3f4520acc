"""The command line: thin, and the only place (with report/) that knows click and rich."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from doctor import about
from doctor import profile as profiles
from doctor.codec import CodecError, parse_json
from doctor.diagnose import UNKNOWN, USAGE, Report
from doctor.diagnose import diagnose as run_diagnosis
from doctor.engine import Crashed, RuleError, load_rules, place
from doctor.locate import LocateError, locate, refuse_foreign
from doctor.model import Missing, Rule, Severity, printable
from doctor.probes.interpreter import NotPython, Where
from doctor.profile import Profile, ProfileError
from doctor.shipped import rules_folder
from doctor.tape import Recorder, Tape, load_tape
from doctor.target import Live, Target

F = TypeVar("F", bound=Callable[..., Any])

_TAPE_MOST = 64 << 20  # bytes; a real snapshot is far below one MiB


def _fail(message: str, code: int) -> NoReturn:
    """One sentence on stderr, and out."""
    click.echo(f"vllm-doctor: {printable(message)}", err=True)
    raise SystemExit(code)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        known = f"{about.rules()} rules, {about.signatures()} signatures"
        click.echo(f"{about.NAME} {about.VERSION} ({known})")
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and how many rules and signatures there are.",
)
def cli() -> None:
    """Judge, and say how to repair, the environment that would serve a model with vLLM."""


def _target_options(command: F) -> F:
    for option in reversed(
        (
            click.option(
                "--python",
                metavar="PATH",
                help="A python or an environment's folder. Else VIRTUAL_ENV, the conda prefix, the "
                "interpreter of `vllm` on PATH, the doctor's own.",
            ),
            click.option(
                "--profile",
                "profile_name",
                default=profiles.DEFAULT,
                show_default=True,
                metavar="NAME|FILE",
                help="What is to be served.",
            ),
            click.option(
                "--set",
                "sets",
                multiple=True,
                metavar="KEY=VALUE",
                help="A value of the profile, such as device=cpu or gpus=later.",
            ),
            click.option(
                "--allow",
                multiple=True,
                type=click.Choice(["foreign-owner"]),
                help="As root, start an interpreter that another user could change.",
            ),
            click.option(
                "--rules",
                "rules_dir",
                metavar="DIR",
                help="A folder of further rules.",
            ),
        )
    ):
        command = option(command)
    return command


def _profile(name: str, sets: Iterable[str]) -> Profile:
    try:
        return profiles.load(name, sets)
    except ProfileError as error:
        _fail(str(error), USAGE)


def _rules(folder: str | None) -> tuple[Rule, ...]:
    try:
        ours = load_rules(rules_folder())
    except RuleError as error:
        _fail(str(error), UNKNOWN)
    if folder is None:
        return ours
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a rule that prints must not spoil JSON
            more = load_rules(Path(folder))
    except RuleError as error:
        _fail(f"--rules {error}", USAGE)
    known = {r.id for r in ours}
    if twice := [r.id for r in more if r.id in known]:
        _fail(f"--rules {folder}: the id {twice[0]} is taken", USAGE)
    return (*ours, *more)


def _rules_when_asked(folder: str | None) -> Iterator[Rule]:
    yield from _rules(folder)


def _live(python: str | None, allow: tuple[str, ...]) -> tuple[Target, Where]:
    target = Live()
    try:
        where = locate(python, target.env)
        if "foreign-owner" not in allow:
            refuse_foreign(where)
    except LocateError as error:
        _fail(str(error), USAGE)
    return target, where


def _fail_to_judge(error: Missing | Crashed) -> NoReturn:
    wrong = isinstance(error, NotPython) and error.wrong
    _fail(str(error), USAGE if wrong else UNKNOWN)


def _from_tape(path: str) -> tuple[Target, Where]:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_TAPE_MOST + 1)
        if len(data) > _TAPE_MOST:
            _fail(f"--from {path}: larger than {_TAPE_MOST >> 20} MiB, no snapshot of ours", USAGE)
        tape = load_tape(parse_json(data))
    except OSError as error:
        _fail(f"--from {path}: {(error.strerror or str(error)).lower()}", USAGE)
    except CodecError as error:
        _fail(f"--from {path}: {error}", USAGE)
    except ValueError as error:
        _fail(f"--from {path}: no JSON, or cut off ({error})", USAGE)
    return Tape(tape), Where(Path(tape.python), tape.found_by)


@cli.command()
@_target_options
@click.option("--deep", is_flag=True, help="Prove it: compile, link and load a small kernel.")
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
    tape: str | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Judge the environment that would serve the model. Read-only, no network.

    Exit codes: 0 healthy, 1 findings, 2 usage, 3 could not tell.
    """
    if tape and (python or deep):
        _fail(f"--from {tape}: a snapshot has its own python, and cannot be built with", USAGE)
    if verbose and quiet:
        _fail("--verbose and --quiet exclude each other", USAGE)
    profile = _profile(profile_name, sets)
    target, where = _from_tape(tape) if tape else _live(python, allow)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            report = run_diagnosis(
                target,
                where,
                profile,
                _rules_when_asked(rules_dir),
                profile_name=profile_name,
                source="tape" if tape else "live",
                deep=deep,
                fail_on=Severity(fail_on),
            )
    except (Missing, Crashed) as error:
        _fail_to_judge(error)
    if form == "json":
        from doctor.report.json import to_json

        click.echo(json.dumps(to_json(report)))  # no indent: that takes the slow encoder
    else:
        _print_text(report, verbose, quiet)
    raise SystemExit(report.exit_code)


def _print_text(report: Report, verbose: bool, quiet: bool) -> None:
    from doctor.report import text

    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    _print_lines(text.lines(report, text.Style(verbose, quiet, width)))


def _print_lines(lines: Iterable[tuple[tuple[str, str], ...]]) -> None:
    """Coloured by rich on a terminal; plain, and without rich, elsewhere."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        for line in lines:
            click.echo("".join(piece for _, piece in line))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        made = Text()
        for style, piece in line:
            made.append(piece, style)
        console.print(made)


@cli.group(invoke_without_command=True)
@click.option("--rules", "rules_dir", metavar="DIR", help="A folder of further rules.")
@click.pass_context
def rules(ctx: click.Context, rules_dir: str | None) -> None:
    """List what the doctor knows."""
    ctx.obj = _rules(rules_dir)
    if ctx.invoked_subcommand is None:
        width = max(len(r.id) for r in ctx.obj)
        for one in sorted(ctx.obj, key=lambda r: (r.area, r.id)):
            click.echo(f"{one.id:<{width}}  {one.severity.value:<7}  {one.area:<11}  {one.title}")


@rules.command()
@click.argument("id")
@click.pass_obj
def show(known: tuple[Rule, ...], id: str) -> None:
    """Explain one ailment."""
    from difflib import get_close_matches

    found = {r.id: r for r in known}
    if id not in found:
        close = get_close_matches(id, found, 1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else "; `vllm-doctor rules` lists them"
        _fail(f"there is no rule {id!r}{hint}", USAGE)
    one = found[id]
    click.echo(f"{one.id}  ({one.severity.value}, {one.area})\n\n{one.explanation}")


@cli.command()
@_target_options
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="Where to write it; - for stdout."
)
def snapshot(
    python: str | None,
    profile_name: str,
    sets: tuple[str, ...],
    allow: tuple[str, ...],
    rules_dir: str | None,
    output: str,
) -> None:
    """Record this machine, redacted, so that `diagnose --from` judges it anywhere."""
    from doctor.redact import redact

    profile = _profile(profile_name, sets)
    known = _rules(rules_dir)
    target, where = _live(python, allow)
    recorder = Recorder(target)
    try:
        for one in (profile, *profiles.variants(profile)):
            run_diagnosis(recorder, where, one, known, profile_name=profile_name)
    except (Missing, Crashed) as error:
        _fail_to_judge(error)
    tool = f"{about.NAME} {about.VERSION}"
    recording = recorder.recording(tool, str(where.python), where.found_by)
    text = json.dumps(redact(recording, target.env.get("HOME")), indent=1, sort_keys=True) + "\n"
    if output == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        _fail(f"--output {output}: {(error.strerror or str(error)).lower()}", USAGE)
    click.echo(
        f"wrote {output} ({len(text) >> 10} KiB); look it through before you share it", err=True
    )


@cli.command()
@click.argument("what", type=click.Choice(["report", "snapshot"]), default="report")
def schema(what: str) -> None:
    """Print the JSON Schema of the report or of the snapshot."""
    from doctor.report.json import report_schema
    from doctor.report.schema import snapshot_schema

    made = report_schema() if what == "report" else snapshot_schema()
    click.echo(json.dumps(made, indent=1))


class _Terminated(BaseException):
    """SIGTERM, as an exception that no rule can swallow, so that children are ended too."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def main() -> None:
    """The console script. Ends with the documented exit code and never with a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with the descriptor closed
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for good
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale without ✓ is no reason to fail
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `vllm-doctor diagnose | head` ends quietly
    try:
        try:
            cli.main(standalone_mode=False)
        finally:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        raise SystemExit(USAGE) from None
    except (click.Abort, KeyboardInterrupt):
        click.echo("vllm-doctor: interrupted", err=True)
        raise SystemExit(130) from None
    except _Terminated:
        raise SystemExit(143) from None
    except OSError as error:
        _give_up(f"cannot write: {(error.strerror or str(error)).lower()}")
    except Exception as error:
        _give_up(f"crashed, and could not judge anything: {place(error)}; please report it")


def _give_up(message: str) -> NoReturn:
    # What stdout still holds cannot be written; Python would try again while it ends.
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    _fail(message, UNKNOWN)
