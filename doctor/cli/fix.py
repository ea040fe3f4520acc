"""fix: shows what would put the environment right, and with --apply does it."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from doctor.cli.again import RunningCommand
from doctor.cli.changing import do_not_die_of_a_pipe, with_way_out
from doctor.cli.options import (
    CONSENT_HELP,
    CommonOptions,
    ServingCommand,
    accept_option,
    fail_on_option,
    form_option,
    ids,
    patience,
    serving_options,
    wait_option,
)
from doctor.cli.output import (
    fail,
    print_json,
    print_lines,
    print_report,
    rules_print_to_stderr,
    say,
    verbatim,
    write_file,
)
from doctor.cli.talking import Talking
from doctor.diagnose import Question
from doctor.exits import FAILED, FINDINGS, UNKNOWN, USAGE
from doctor.model import Installer, Severity
from doctor.probes.interpreter import FoundBy
from doctor.profile import ServeRequest
from doctor.report.formats import CASE_FORMS
from doctor.target import Live
from doctor.trust import ALLOW

if TYPE_CHECKING:
    from doctor.repair.context import RepairContext
    from doctor.repair.create import CreationPlan
    from doctor.repair.index import PackageIndex
    from doctor.repair.plan import Plan
    from doctor.repair.session import FixOutcome, FixRequest, Session


@click.command(cls=ServingCommand)
@functools.partial(serving_options, consents=tuple(CONSENT_HELP))
@click.option("--apply", "wanted", is_flag=True, help="Do it, diagnose again, say what was fixed.")
@click.option("--create", is_flag=True, help="Make the environment of --python if it is not there.")
@click.option(
    "--mirror",
    "mirrors",
    multiple=True,
    metavar="aliyun|tuna|ustc|default|URL",
    help="Where to fetch from; several are asked in turn. Else pip's configuration, else the "
    "profile's.",
)
@click.option(
    "--keep-extra-indexes", is_flag=True, help="With --mirror, keep pip's other indexes too."
)
@click.option(
    "--only",
    "only",
    multiple=True,
    metavar="ID[,ID...]",
    help="Fix these ailments and no others; may be given several times.",
)
@accept_option
@click.option("--script", metavar="FILE", help="Write the plan as a shell script; - for stdout.")
@form_option
@fail_on_option("Lowest severity that is fixed, and that sets exit code 1.")
@wait_option
def fix(
    common: CommonOptions,
    wanted: bool,
    create: bool,
    mirrors: tuple[str, ...],
    keep_extra_indexes: bool,
    only: tuple[str, ...],
    accept: tuple[str, ...],
    script: str | None,
    form: str,
    fail_on: str,
    wait: float | None,
) -> None:
    """Show what would fix the environment; with --apply, fix it.

    Behind -- stands the server's own command, as for diagnose.

    Exit codes: 0 healthy, 1 findings are left, 2 usage, 3 could not tell, 4 a fix failed and was
    rolled back, 75 another doctor is at work.
    """
    from doctor.repair.create import Creation, CreationPlan
    from doctor.repair.session import FixRequest, make, recover_below

    done: FixOutcome | CreationPlan
    python = common.python
    if create and python is None:
        fail("--create makes the environment that --python names; name one", USAGE)
    if script is not None and wanted:
        fail("--script writes down what --apply does; give one of them", USAGE)
    if script is not None and form != "text":
        fail(f"--script writes a shell script, and no report: leave out --format {form}", USAGE)
    new = Path(python).absolute() if create and python and not _is_environment(python) else None
    if new and not wanted and form in CASE_FORMS:
        fail(f"--format {form}: there is nothing to diagnose in {python} yet; add --apply", USAGE)
    if keep_extra_indexes and not mirrors:
        fail("--keep-extra-indexes belongs to --mirror; without one, they are kept", USAGE)
    rules = common.rules()
    served = common.request()
    accepted = ids("--accept", accept, rules)
    request = FixRequest(
        serve=served,
        question=Question(common.profile_name, False, Severity(fail_on), accepted),
        rules=rules,
        sources=functools.partial(_sources, served, mirrors, keep_extra_indexes),
        only=ids("--only", only, rules),
        allowed=frozenset(common.allow),
        patience=patience(wait),
    )
    if wanted:
        do_not_die_of_a_pipe()
    with Talking(form) as talk, with_way_out(), rules_print_to_stderr():
        if wanted and python:
            recover_below(Path(python).absolute(), request.patience, talk)
        begin = functools.partial(_begin, common, wanted, talk, form)
        if new:
            creation = Creation(new, served, request.sources(new), ALLOW in common.allow, talk)
            done = make(creation, request, begin) if wanted else creation.plan()
        else:
            session = begin(request)
            session.must_know_what_is_saved(FAILED if wanted else UNKNOWN)
            done = session.apply() if wanted else session.plan()
    if isinstance(done, CreationPlan):
        _show_creation(done, form, script)
        raise SystemExit(FINDINGS)
    try:
        _show_result(done, form, script)
    except KeyboardInterrupt:
        raise done.interrupted() from None
    raise SystemExit(done.exit_code)


def _begin(
    common: CommonOptions,
    wanted: bool,
    talk: Talking,
    form: str,
    request: FixRequest,
) -> Session:
    """The session, in which a person sees what is about to be done; programs read the result."""
    from doctor.repair.session import Person, Session

    target, where = common.entered(request.serve.command)
    if wanted and where.found_by is FoundBy.OWN:
        fail("no environment is active: name the one to fix with --python", USAGE)

    def show(plan: Plan, context: RepairContext) -> None:
        if form == "text":
            _print_plan(plan, context, sys.stderr)

    return Session(request, target, where, Person(talk, RunningCommand(where), show))


def _is_environment(python: str) -> bool:
    return Path(python).is_file() or (Path(python) / "bin/python").exists()


def _sources(
    served: ServeRequest, mirrors: tuple[str, ...], keep_extra: bool, prefix: Path
) -> tuple[PackageIndex, ...]:
    from doctor.repair.index import choose_indexes

    return choose_indexes(mirrors, keep_extra, served.profile.mirror, Live().env, prefix)


# What is shown.


def _show_result(done: FixOutcome, form: str, script: str | None) -> None:
    if form == "json":
        from doctor.report.repair_json import repair_json

        print_json(repair_json(done.report, done.plan, done.applied))
    elif form in CASE_FORMS:
        from doctor.report.repair_cases import repair_cases

        verbatim(CASE_FORMS[form](repair_cases(done.report, done.plan, done.applied)))
    elif script is not None:
        from doctor.report import sh

        _write_script(script, sh.script(done.plan, done.context))
    elif done.applied is not None:
        from doctor.report.repair import result_lines

        print_lines(result_lines(done.applied), sys.stderr)
        print_report(done.report, quiet=True)
    else:
        _print_plan(done.plan, done.context, sys.stdout)
        if done.plan.actions:
            consents = [word for consent in done.plan.asks for word in ("--allow", consent)]
            command = done.report.installer.again("fix", "--apply", *consents)
            say(f"Nothing was changed. To do it: {command}")
        else:
            print_report(done.report, quiet=True)


def _print_plan(plan: Plan, context: RepairContext, to: TextIO) -> None:
    from doctor.report.repair import plan_lines

    print_lines(plan_lines(plan, context.report), to)


def _show_creation(plan: CreationPlan, form: str, script: str | None) -> None:
    command = RunningCommand()("fix", "--apply")
    if form == "json":
        from doctor.report.repair_json import creation_json

        print_json(creation_json(plan, command))
    elif script is not None:
        from doctor.report import sh

        installer = Installer(plan.path / "bin/python", own_pip=False, again=RunningCommand())
        _write_script(script, sh.creation_script(plan, installer))
    else:
        from doctor.report.repair import creation_lines

        print_lines(creation_lines(plan, command))


def _write_script(file: str, text: str) -> None:
    if file == "-":
        verbatim(text)
        return
    write_file("--script", file, text, executable=True)
    say(f"wrote {file}; read it, then: {shlex.join(['sh', file])}", err=True)
