"""What the commands share: options, the target they name, and how they end in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from doctor import profile as profiles
from doctor.cli.output import fail, rules_print_to_stderr
from doctor.engine import Crashed, RuleError, load_rules
from doctor.exits import UNKNOWN, USAGE
from doctor.locate import LocateError, locate, refuse_foreign
from doctor.model import Missing, Rule
from doctor.probes.interpreter import NotPython, Where
from doctor.profile import Profile, ProfileError
from doctor.shipped import rules_folder
from doctor.target import Live, Target

F = TypeVar("F", bound=Callable[..., Any])


def did_you_mean(word: str, known: Collection[str], otherwise: str = "") -> str:
    """A hint for a slip of the pen, to be put behind a sentence."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, 1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else otherwise


_CONSENTS = (
    " core: change an installed torch, vLLM, FlashInfer or triton. running: change an environment "
    "that a process is using."
)


def python_options(command: F, consents: tuple[str, ...] = ()) -> F:
    """The options that name an environment; `consents`: what else --allow takes."""
    for option in reversed(
        (
            click.option(
                "--python",
                metavar="PATH",
                help="A python or an environment's folder. Else VIRTUAL_ENV, the conda prefix, the "
                "interpreter of `vllm` on PATH, the doctor's own.",
            ),
            click.option(
                "--allow",
                multiple=True,
                type=click.Choice(["foreign-owner", *consents]),
                help="foreign-owner: as root, start an interpreter that another user could change."
                + (_CONSENTS if consents else ""),
            ),
        )
    ):
        command = option(command)
    return command


def target_options(command: F, consents: tuple[str, ...] = ()) -> F:
    """The options that name what is judged: an environment, and what it is to serve."""
    for option in reversed(
        (
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
                "--rules",
                "rules_dir",
                metavar="DIR",
                help="A folder of further rules.",
            ),
        )
    ):
        command = option(command)
    return python_options(command, consents)


def profile(name: str, sets: Iterable[str]) -> Profile:
    try:
        return profiles.load(name, sets)
    except ProfileError as error:
        fail(str(error), USAGE)


def load(folder: str | None) -> tuple[Rule, ...]:
    try:
        ours = load_rules(rules_folder())
    except RuleError as error:
        fail(str(error), UNKNOWN)
    if folder is None:
        return ours
    try:
        with rules_print_to_stderr():
            more = load_rules(Path(folder))
    except RuleError as error:
        if any(Path(folder).glob("signatures/*.toml")) and not any(Path(folder).glob("*.py")):
            return ours  # it adds to what `explain` knows
        fail(f"--rules {error}", USAGE)
    known = {r.id for r in ours}
    if twice := [r.id for r in more if r.id in known]:
        fail(f"--rules {folder}: the id {twice[0]} is taken", USAGE)
    return (*ours, *more)


def rules_when_asked(folder: str | None) -> Iterator[Rule]:
    yield from load(folder)


def located(python: str | None, allow: tuple[str, ...]) -> tuple[Target, Where]:
    """This machine, and which interpreter on it. Raises LocateError."""
    target = Live()
    where = locate(python, target.env)
    if "foreign-owner" not in allow:
        refuse_foreign(where)
    return target, where


def live(python: str | None, allow: tuple[str, ...]) -> tuple[Target, Where]:
    try:
        return located(python, allow)
    except LocateError as error:
        fail(str(error), USAGE)


def fail_to_judge(error: Missing | Crashed) -> NoReturn:
    wrong = isinstance(error, NotPython) and error.wrong
    fail(str(error), USAGE if wrong else UNKNOWN)
