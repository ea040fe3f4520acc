"""launch: checks, verifies, and serves."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from doctor.cli.again import told
from doctor.cli.options import (
    CommonOptions,
    ServingCommand,
    accept_option,
    ids,
    patience,
    serving_options,
    wait_option,
)
from doctor.cli.output import print_report, rules_print_to_stderr, say, tell
from doctor.engine import Crashed, Facts
from doctor.errors import UsageError
from doctor.exits import HEALTHY
from doctor.model import Missing, Severity, Text, Verdict
from doctor.probes.arguments import ServerOptions
from doctor.probes.environment import LaunchEnv
from doctor.probes.interpreter import Interpreter
from doctor.probes.served import Profile
from doctor.probes.vllm_names import VllmOptions
from doctor.target import Target

if TYPE_CHECKING:
    from doctor.consumers.server_options import OptionTable
    from doctor.diagnose import Report
    from doctor.serve.gate import JudgedStart
    from doctor.serve.process import Server


@click.command(cls=ServingCommand)
@serving_options
@accept_option
@click.option("--exec", "replace", is_flag=True, help="Become the server instead of its parent.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check without the test build, print the command and what differs in its environment, "
    "start nothing.",
)
@wait_option
def launch(
    common: CommonOptions,
    accept: tuple[str, ...],
    replace: bool,
    dry_run: bool,
    wait: float | None,
) -> None:
    """Check, verify, and serve: `vllm serve` with the profile's arguments, or the command behind
    --, if nothing is wrong.

    Runs it in the foreground, forwards signals, and ends with its exit code. Refuses with the
    report and exit code 78 where there is an error or an inconclusive check, unless --accept names
    it. Exit code 75 where another vllm-doctor is changing the environment. The test build is made
    once for a toolchain.
    """
    from doctor.diagnose import Question
    from doctor.serve.argv import argv, argv_of, must_be_startable
    from doctor.serve.errors import refusing
    from doctor.serve.gate import judge_start, undisturbed
    from doctor.serve.process import attend

    request = common.request()
    if request.command:
        must_be_startable(request.command)
    rules = common.rules()
    accepted = ids("--accept", accept, rules)
    target, where = common.named(request.command)
    # A profile gives the server its variables and arguments, and so what it loads.
    name = common.profile_name
    if Path(name).is_file() and (why := target.distrust(Path(name))):
        raise UsageError(Text("--profile {name}: {why}", name=name, why=why))
    with refusing():
        with rules_print_to_stderr():
            facts = Facts(target, (where, request))
            asked, interpreter = facts.get(Profile), facts.get(Interpreter)
            if request.command:
                words = argv_of(target, interpreter, request.command)
            else:
                options = None if OPTION_UNKNOWN in accepted else _options(facts)
                table = _table(facts) if request.profile.options else None
                words = argv(target, interpreter, request.profile, request.extra, options, table)
            with undisturbed(interpreter.prefix, patience(wait)):
                # What another doctor changed meanwhile is asked anew.
                judged = judge_start(
                    Facts(target, (where, request, interpreter)),
                    rules,
                    Question(name, accept=accepted),
                    prove=not dry_run,
                    tell=tell,
                )
                judged = dataclasses.replace(judged, report=told(judged.report, where))
                server = None if dry_run else _start(judged, asked, words, replace)
        if server is None:
            _print_dry_run(target, judged, words)
    raise SystemExit(attend(server))


OPTION_UNKNOWN = "unknown-server-option"


def _options(facts: Facts) -> tuple[str, ...] | None:
    """Those of the installed vLLM. None where they cannot be told: a rule of that name says so."""
    try:
        return facts.get(VllmOptions).names
    except (Missing, Crashed):
        return None


def _table(facts: Facts) -> OptionTable | None:
    """How the installed vLLM takes them, where that can be read."""
    try:
        return facts.get(ServerOptions).table
    except (Missing, Crashed):
        return None


def _start(judged: JudgedStart, profile: Profile, words: Sequence[str], replace: bool) -> Server:
    """Tells, and starts the server or becomes it; refuses what was not judged to be fine."""
    from doctor.serve.argv import shown_command
    from doctor.serve.errors import LaunchError
    from doctor.serve.process import become, start

    if judged.refused is not None:
        print_report(judged.report, to=sys.stderr)
        raise LaunchError(Text("not started: {why}", why=judged.refused))
    if profile.gpus == "later" and profile.device != "cpu":
        tell(Text("the profile says that the GPUs come later: GPU checks were skipped"))
    _tell_of_hub(judged)
    health, command = _health(judged.report), shown_command(words)
    tell(Text("{health}; starting {command}", health=health, command=command))
    sys.stdout.flush()
    sys.stderr.flush()
    variables = _variables(judged)
    if replace:
        become(words, variables)
    return start(words, variables)


def _health(report: Report) -> Text:
    """In a few words, what a start goes over."""
    found = report.deciding(Verdict.FOUND)
    warnings = [o.rule.id for o in found if o.severity is Severity.WARNING]
    accepted = report.accepted
    if warnings and accepted:
        return Text(
            "healthy, with warnings ({warnings}), accepted ({accepted})",
            warnings=warnings,
            accepted=accepted,
        )
    if warnings:
        return Text("healthy, with warnings ({warnings})", warnings=warnings)
    if accepted:
        return Text("healthy, accepted ({accepted})", accepted=accepted)
    return Text("healthy")


def _print_dry_run(target: Target, judged: JudgedStart, words: Sequence[str]) -> NoReturn:
    """The variables that differ and the command, as a shell would take them; on stderr, what a
    start would say. Ends with the code of a refusal where it would refuse."""
    from doctor.serve.argv import difference, shown_command
    from doctor.serve.errors import LaunchError

    for line in difference(target.env, _variables(judged)):
        say(line)
    say(shown_command(words))
    if (why := judged.refused) is not None:
        more = judged.report.installer.again("diagnose")
        raise LaunchError(Text("a start would be refused: {why}; see: {more}", why=why, more=more))
    _tell_of_hub(judged)
    if judged.report.accepted:
        tell(_health(judged.report))
    if judged.unproven:
        tell(Text("a start would first verify it with a test build and vLLM's own imports"))
    raise SystemExit(HEALTHY)


def _tell_of_hub(judged: JudgedStart) -> None:
    """A token is for the hub, and not for whoever mirrors it."""
    if hub := judged.report.facts.get(LaunchEnv).hub:
        tell(
            Text(
                "the profile's HF_ENDPOINT is {hub}: the server gets no Hugging Face token; for a "
                "gated model set it yourself: --set env.HF_ENDPOINT=https://huggingface.co",
                hub=hub,
            )
        )


def _variables(judged: JudgedStart) -> Mapping[str, str]:
    """Exactly those that were judged."""
    return judged.report.facts.get(LaunchEnv).vars
