"""env: the variables that fixes have saved, for a shell of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from doctor import profile as profiles
from doctor.cli.output import fail, say, tell, verbatim
from doctor.cli.shared import (
    ALLOW_HELP,
    fail_to_judge,
    live,
    profile,
)
from doctor.engine import Crashed, Facts
from doctor.exits import UNKNOWN
from doctor.model import Missing
from doctor.probes.environment import saved_below
from doctor.probes.interpreter import FoundBy, Interpreter, Where
from doctor.report.exports import FORMS, ExportError, exports, notes
from doctor.target import Target
from doctor.trust import ALLOW

if TYPE_CHECKING:
    pass


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
    if sets or profile_name != profiles.DEFAULT_PROFILE:
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
        about = f"for {where.python} (found by {where.how})"
        for note in (about, *notes(shell, saved)):
            say(f"# {note}", err=True)
    elif where.found_by is FoundBy.OWN and not text:
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
