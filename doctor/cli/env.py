"""env: the variables that fixes have saved, for a shell of one's own."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from doctor import profile as profiles
from doctor.cli.options import ALLOW_HELP, CommonOptions
from doctor.cli.output import say, tell, verbatim
from doctor.engine import Facts
from doctor.errors import DoctorError
from doctor.exits import UNKNOWN
from doctor.model import Text
from doctor.probes.environment import saved_below
from doctor.probes.interpreter import FoundBy, Interpreter, Where
from doctor.report.exports import EXPORT_FORMS, exports, notes
from doctor.target import Target
from doctor.trust import ALLOW


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
    type=click.Choice(EXPORT_FORMS),
    default=EXPORT_FORMS[0],
    show_default=True,
    help="For whom: a POSIX shell, fish, a drop-in of a systemd unit, a dotenv file, a program.",
)
@click.option(
    "--profile",
    "profile_name",
    default=profiles.DEFAULT_PROFILE,
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
    common = CommonOptions(python, allow, profile_name, sets)
    if sets or profile_name != profiles.DEFAULT_PROFILE:
        common.profile()  # a slip in it is told here as everywhere
    target, where = common.located()
    prefix = _prefix(target, where)
    saved = saved_below(target, prefix)
    shell = {} if form == "systemd" else target.env  # a unit has nothing of this shell
    text = exports(form, shell, saved, prefix)
    _must_fit(text, sys.stdout.encoding)
    if verbose:
        about = Text("for {python} (found by {how})", python=where.python, how=where.how)
        for note in (about, *notes(shell, saved)):
            say(f"# {note}", err=True)
    elif where.found_by is FoundBy.OWN and not text:
        tell(
            Text(
                "no environment is active, and nothing is saved for vllm-doctor's own: "
                "name one with --python"
            )
        )
    verbatim(text)


def _must_fit(text: str, encoding: str) -> None:
    """Raises DoctorError for what click would print as ?."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        said = Text("this locale ({name}) cannot print what was saved", name=encoding)
        raise DoctorError(said, UNKNOWN) from None


def _prefix(target: Target, where: Where) -> Path:
    """Where the interpreter's environment lies. A virtual environment says so itself, in one of two
    places (PEP 405); any other interpreter is asked, which takes the time of a Python's start."""
    for folder in (where.python.parent.parent, where.python.parent):
        if target.read(folder / "pyvenv.cfg") is not None:
            return folder
    return Facts(target, (where,)).get(Interpreter).prefix
