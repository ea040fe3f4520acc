"""Commands for the server that was judged: launch, and env for a shell of one's own."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from doctor import profile as profiles
from doctor.cli.again import Again, told
from doctor.cli.output import fail, print_lines, rules_print_to_stderr, say, tell, verbatim
from doctor.cli.shared import (
    ALLOW_HELP,
    accept_option,
    fail_to_judge,
    ids,
    live,
    load,
    named,
    patience,
    profile,
    target_options,
    wait_option,
)
from doctor.engine import Crashed, Facts
from doctor.exits import HEALTHY, UNKNOWN, USAGE
from doctor.model import Missing, Severity, Verdict
from doctor.probes.environment import LaunchEnv, saved_below
from doctor.probes.interpreter import OWN, Interpreter, NotPython, Where
from doctor.probes.vllm_names import VllmOptions
from doctor.profile import Profile
from doctor.report.exports import FORMS, ExportError, exports, notes
from doctor.target import Target
from doctor.trust import ALLOW

if TYPE_CHECKING:
    from doctor.diagnose import Report
    from doctor.launch import Judged, Server

# What launch needs beyond env (processes, hashes, ctypes) is imported late: env is for a shell's
# start, and has 0.15 s.


@click.command()
@click.option(
    "--python",
    metavar="PATH",
    help="A python or an environment's folder. Else VIRTUAL_ENV, the conda prefix, the interpreter "
    "of `vllm` on PATH, the doctor's own.",
)
@click.option(
    "--shell",
    "form",
    type=click.Choice(FORMS),
    default=FORMS[0],
    show_default=True,
    help="For whom: a POSIX shell, fish, a drop-in of a systemd unit, a dotenv file, a program.",
)
@click.option(
    "--profile",
    "profile_name",
    default=profiles.DEFAULT,
    show_default=True,
    metavar="NAME|FILE",
    help="As for diagnose; what a profile sets for its server is not printed.",
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A value of the profile.")
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice([ALLOW]),
    help=ALLOW_HELP,
)
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr why each is set, or is not.")
def env(
    python: str | None,
    form: str,
    profile_name: str,
    sets: tuple[str, ...],
    allow: tuple[str, ...],
    verbose: bool,
) -> None:
    """Print the variables that fixes have saved: eval "$(vllm-doctor env)".

    Nothing on stdout where something is wrong, and exit code 2 (usage) or 3 (cannot tell).
    """
    if sets or profile_name != profiles.DEFAULT:
        profile(profile_name, sets)  # a slip in it is told here as everywhere
    target, where = live(python, allow)
    try:
        prefix = _prefix(target, where)
        saved = saved_below(target, prefix)
        shell = {} if form == "systemd" else target.env  # a unit has nothing of this shell
        text = exports(form, shell, saved, prefix)
        text.encode(sys.stdout.encoding)  # click would print what does not fit it as ?
    except (Missing, Crashed) as error:
        fail_to_judge(error)
    except ExportError as error:
        fail(str(error), UNKNOWN)
    except UnicodeEncodeError as error:
        fail(f"this locale ({error.encoding}) cannot print what was saved", UNKNOWN)
    if verbose:
        about = f"for {where.python} (found by {where.found_by})"
        for note in (about, *notes(shell, saved)):
            say(f"# {note}", err=True)
    elif where.found_by == OWN and not text:
        tell(
            "no environment is active, and nothing is saved for the doctor's own: "
            "name another with --python"
        )
    verbatim(text)


def _prefix(target: Target, where: Where) -> Path:
    """Where the interpreter's environment lies. A virtual environment says so itself, in one of two
    places (PEP 405); any other interpreter is asked, which takes the time of a Python's start."""
    for folder in (where.python.parent.parent, where.python.parent):
        if target.read(folder / "pyvenv.cfg") is not None:
            return folder
    return Facts(target, (where,)).get(Interpreter).prefix


@click.command()
@target_options
@accept_option
@click.option("--exec", "replace", is_flag=True, help="Become the server instead of its parent.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Judge without the test build, print the command and what is different in its "
    "environment, start nothing.",
)
@wait_option
@click.argument("extra", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM OPTIONS]")
def launch(
    python: str | None,
    profile_name: str,
    sets: tuple[str, ...],
    allow: tuple[str, ...],
    rules_dir: str | None,
    accept: tuple[str, ...],
    replace: bool,
    dry_run: bool,
    wait: float | None,
    extra: tuple[str, ...],
) -> None:
    """Judge, prove, and serve: `vllm serve` with the profile's arguments, if nothing is wrong.

    Runs it in the foreground, passes signals on, and ends with its exit code. Refuses with the
    report and exit code 78 where there is an error, or something that could not be told, unless
    --accept names it. Exit code 75 where another doctor is at work on the environment. The test
    build is made once for a toolchain.
    """
    from doctor import launch as launching

    asked = profile(profile_name, sets)
    rules = load(rules_dir, allow)
    accepted = ids("--accept", accept, rules)
    target, where = named(python, allow)
    # A profile gives the server its variables and arguments, and so what it loads.
    if Path(profile_name).is_file() and (why := target.distrust(Path(profile_name))):
        fail(f"--profile {profile_name}: {why}", USAGE)
    try:
        with rules_print_to_stderr():
            facts = Facts(target, (where, asked))
            interpreter = facts.get(Interpreter)
            options = None if OPTION_UNKNOWN in accepted else _options(facts)
            words = launching.argv(target, interpreter, asked, extra, options)
            with launching.undisturbed(interpreter.prefix, patience(wait)):
                judged = launching.judge(
                    target,
                    where,
                    asked,
                    rules,
                    profile_name=profile_name,
                    prove=not dry_run,
                    accept=accepted,
                    tell=tell,
                )
                judged = dataclasses.replace(judged, report=told(judged.report, Again(where)))
                server = None if dry_run else _start(judged, asked, words, replace)
        if server is None:
            _print_dry_run(target, judged, words)
    except launching.WrongArguments as error:
        fail(str(error), USAGE)
    except launching.LaunchError as error:
        fail(str(error), launching.REFUSED)
    except (Missing, Crashed) as error:
        wrong = isinstance(error, NotPython) and error.wrong
        fail(str(error), USAGE if wrong else launching.REFUSED)
    raise SystemExit(launching.attend(server))


OPTION_UNKNOWN = "unknown-server-option"


def _options(facts: Facts) -> tuple[str, ...] | None:
    """Those of the installed vLLM. None where they cannot be told: a rule of that name says so."""
    try:
        return facts.get(VllmOptions).names
    except (Missing, Crashed):
        return None


def _start(judged: Judged, profile: Profile, words: Sequence[str], replace: bool) -> Server:
    """Tells, and starts the server or becomes it; refuses what was not judged to be fine."""
    from doctor import launch as launching

    if judged.refused is not None:
        _print_report(judged.report)
        fail(f"not started: {judged.refused}", launching.REFUSED)
    if profile.gpus == "later" and profile.device != "cpu":
        tell("the profile says that the GPUs come later: nothing about them was judged")
    _tell_of_hub(judged)
    tell(f"{_health(judged.report)}; starting {launching.shown(words)}")
    sys.stdout.flush()
    sys.stderr.flush()
    variables = _variables(judged)
    if replace:
        launching.become(words, variables)
    return launching.start(words, variables)


def _health(report: Report) -> str:
    """In a few words, what a start goes over."""
    warnings = (o for o in report.deciding(Verdict.FOUND) if o.severity is Severity.WARNING)
    known = {"with warnings": [o.rule.id for o in warnings], "accepted": report.accepted}
    told = (f", {word} ({', '.join(ids)})" for word, ids in known.items() if ids)
    return "healthy" + "".join(told)


def _print_dry_run(target: Target, judged: Judged, words: Sequence[str]) -> NoReturn:
    """The variables that differ and the command, as a shell would take them; on stderr, what a
    start would say. Ends with the code of a refusal where it would refuse."""
    from doctor import launch as launching

    for line in launching.difference(target.env, _variables(judged)):
        say(line)
    say(launching.shown(words))
    if judged.refused is not None:
        more = judged.report.installer.again("diagnose")
        fail(f"a start would be refused: {judged.refused}; see: {more}", launching.REFUSED)
    _tell_of_hub(judged)
    if judged.report.accepted:
        tell(_health(judged.report))
    if judged.unproven:
        tell("a start would first prove it with a test build and vLLM's own imports")
    raise SystemExit(HEALTHY)


def _tell_of_hub(judged: Judged) -> None:
    """A token is for the hub, and not for whoever mirrors it."""
    if hub := judged.report.facts.get(LaunchEnv).hub:
        tell(
            f"the profile's HF_ENDPOINT is {hub}: the server gets no Hugging Face "
            "token; for a gated model set it yourself: --set env.HF_ENDPOINT=https://huggingface.co"
        )


def _variables(judged: Judged) -> Mapping[str, str]:
    """Exactly those that were judged."""
    return judged.report.facts.get(LaunchEnv).vars


def _print_report(report: Report) -> None:
    from doctor.report import text

    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    print_lines(text.lines(report, text.Style(width=width)))
