"""launch: judges, proves, and serves."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from doctor.cli.again import RunningCommand, told
from doctor.cli.output import fail, print_report, rules_print_to_stderr, say, tell
from doctor.cli.shared import (
    accept_option,
    ids,
    known_rules,
    named,
    patience,
    profile,
    target_options,
    wait_option,
)
from doctor.engine import Crashed, Facts
from doctor.exits import HEALTHY, USAGE
from doctor.model import Missing, Severity, Verdict
from doctor.probes.environment import LaunchEnv
from doctor.probes.interpreter import Interpreter, NotPython
from doctor.probes.vllm_names import VllmOptions
from doctor.profile import Profile
from doctor.target import Target

if TYPE_CHECKING:
    from doctor.diagnose import Report
    from doctor.launch import JudgedStart, Server


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
    from doctor.diagnose import Question

    asked = profile(profile_name, sets)
    rules = known_rules(rules_dir, allow)
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
                # What another doctor changed meanwhile is asked anew.
                judged = launching.judge_start(
                    Facts(target, (where, asked, interpreter)),
                    rules,
                    Question(profile_name, accept=accepted),
                    prove=not dry_run,
                    tell=tell,
                )
                judged = dataclasses.replace(
                    judged, report=told(judged.report, RunningCommand(where))
                )
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


def _start(judged: JudgedStart, profile: Profile, words: Sequence[str], replace: bool) -> Server:
    """Tells, and starts the server or becomes it; refuses what was not judged to be fine."""
    from doctor import launch as launching

    if judged.refused is not None:
        print_report(judged.report, to=sys.stderr)
        fail(f"not started: {judged.refused}", launching.REFUSED)
    if profile.gpus == "later" and profile.device != "cpu":
        tell("the profile says that the GPUs come later: nothing about them was judged")
    _tell_of_hub(judged)
    tell(f"{_health(judged.report)}; starting {launching.shown_command(words)}")
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


def _print_dry_run(target: Target, judged: JudgedStart, words: Sequence[str]) -> NoReturn:
    """The variables that differ and the command, as a shell would take them; on stderr, what a
    start would say. Ends with the code of a refusal where it would refuse."""
    from doctor import launch as launching

    for line in launching.difference(target.env, _variables(judged)):
        say(line)
    say(launching.shown_command(words))
    if judged.refused is not None:
        more = judged.report.installer.again("diagnose")
        fail(f"a start would be refused: {judged.refused}; see: {more}", launching.REFUSED)
    _tell_of_hub(judged)
    if judged.report.accepted:
        tell(_health(judged.report))
    if judged.unproven:
        tell("a start would first prove it with a test build and vLLM's own imports")
    raise SystemExit(HEALTHY)


def _tell_of_hub(judged: JudgedStart) -> None:
    """A token is for the hub, and not for whoever mirrors it."""
    if hub := judged.report.facts.get(LaunchEnv).hub:
        tell(
            f"the profile's HF_ENDPOINT is {hub}: the server gets no Hugging Face "
            "token; for a gated model set it yourself: --set env.HF_ENDPOINT=https://huggingface.co"
        )


def _variables(judged: JudgedStart) -> Mapping[str, str]:
    """Exactly those that were judged."""
    return judged.report.facts.get(LaunchEnv).vars
