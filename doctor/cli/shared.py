"""What the commands share: options, the target they name, and how they end in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from doctor import profile as profiles
from doctor.cli.output import fail, rules_print_to_stderr, say, tell
from doctor.engine import Crashed, RuleError, load_rules
from doctor.exits import UNKNOWN, USAGE
from doctor.locate import LocateError, environments, locate, nobody_named, refuse_foreign
from doctor.model import Missing, Rule, os_refusal, printable
from doctor.patience import Patience
from doctor.probes.interpreter import NotPython, Where
from doctor.profile import Profile, ProfileError
from doctor.shipped import rules_folder
from doctor.target import Live, Target
from doctor.trust import ALLOW, why_not_trusted

if TYPE_CHECKING:
    from doctor.signatures import Catalogue

F = TypeVar("F", bound=Callable[..., Any])


def did_you_mean(word: str, known: Collection[str], otherwise: str = "") -> str:
    """A hint for a slip of the pen, to be put behind a sentence."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, 1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else otherwise


ALLOW_HELP = "foreign-owner: as root, run and load also what another user could change."
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
                type=click.Choice([ALLOW, *consents]),
                help=ALLOW_HELP + (_CONSENTS if consents else ""),
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
                default=profiles.DEFAULT_PROFILE,
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


def accept_option(command: F) -> F:
    """--accept; its ids are read by `ids`."""
    return click.option(
        "--accept",
        "accept",
        multiple=True,
        metavar="ID[,ID...]",
        help="Go on though this was found, or could not be told; may be given several times.",
    )(command)


def ids(option: str, given: Iterable[str], rules: Iterable[Rule]) -> frozenset[str]:
    """The ids of an option that takes several; none that no rule has."""
    known = {r.id for r in rules}
    asked = [id for words in given for id in filter(None, words.split(","))]
    for id in asked:
        if id not in known:
            fail(f"{option} {id}: there is no such rule{did_you_mean(id, known)}", USAGE)
    return frozenset(asked)


def wait_option(command: F) -> F:
    return click.option(
        "--wait",
        type=click.FloatRange(min=0),
        is_flag=False,
        flag_value=0,
        metavar="[SECONDS]",
        help="Wait for another doctor that is changing the environment; for ever without a number, "
        "or with 0. Else, and when the time is over, exit code 75.",
    )(command)


def patience(wait: float | None) -> Patience:
    return Patience(wait, tell)


def profile(name: str, sets: Collection[str]) -> Profile:
    """The profile with its settings put in; says what of it does not count for another model."""
    try:
        base = profiles.load_profile(name)
        made = profiles.with_settings(base, sets) if sets else base
    except ProfileError as error:
        fail(str(error), USAGE)
    if left := profiles.left_out(base, made):
        whose = f"{name}'s {', '.join(left)}"
        whom = made.model or "a server without a model"
        tell(f"{whose} belong to {base.model}, not to {whom}, and are left out")
    return made


def known_rules(folder: str | None, allow: Collection[str]) -> tuple[Rule, ...]:
    try:
        ours = load_rules(rules_folder())
    except RuleError as error:
        fail(str(error), UNKNOWN)
    if folder is None:
        return ours
    trusted_rules(Path(folder), allow)
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


def trusted_rules(folder: Path, allow: Collection[str]) -> None:
    """As root, ends where another user could decide what a site's own rules do."""
    if ALLOW in allow:
        return
    for path in (folder, folder / "signatures", *folder.glob("*.py"), *folder.glob("*/*.toml")):
        if why := why_not_trusted(path, searched=path.is_dir()):
            fail(f"--rules {folder}: {why}", USAGE)


def known_signatures(folder: str | None) -> Catalogue:
    """The log signatures and ailments that are shipped, and those of a site's folder."""
    from doctor.signatures import load_catalogue

    folders = [rules_folder(), *([Path(folder)] if folder else [])]
    try:
        return load_catalogue(folders)
    except (OSError, ValueError) as error:
        why = os_refusal(error) if isinstance(error, OSError) else error
        fail(f"signatures: {why}", USAGE if folder else UNKNOWN)


def rules_when_asked(folder: str | None, allow: Collection[str]) -> Iterator[Rule]:
    yield from known_rules(folder, allow)


def located(python: str | None, allow: tuple[str, ...]) -> tuple[Target, Where]:
    """This machine, and which interpreter on it. Raises LocateError."""
    target = Live(foreign=ALLOW in allow)
    where = locate(python, target.env)
    if ALLOW not in allow:
        refuse_foreign(where)
    return target, where


def live(python: str | None, allow: tuple[str, ...]) -> tuple[Target, Where]:
    try:
        return located(python, allow)
    except LocateError as error:
        fail(str(error), USAGE)


def named(python: str | None, allow: tuple[str, ...]) -> tuple[Target, Where]:
    """As `live`, but never the doctor's own interpreter where no server could run on it: then the
    environments that there are, each with the command for it, and out."""
    target, where = live(python, allow)
    if nobody_named(where):
        _list_environments()
    return target, where


def _list_environments() -> NoReturn:
    """Each with the whole command for it, which can be copied with what is said of it."""
    from doctor.cli.again import RunningCommand
    from doctor.repair.running import servers

    again, verb = RunningCommand(), str(click.get_current_context().info_name)
    rows = {str(python): f"{process} runs it" for python, process in servers().items()}
    for folder, has_vllm in environments(Path()):
        rows[f"./{folder}"] = "vLLM is installed in it" if has_vllm else "without vLLM"
    said = [(f"{python}: {what}", again(verb, "--python", python)) for python, what in rows.items()]
    if not said:
        said = [("the one that serves", again(verb, "--python", "/path/to/the/environment"))]
    fresh = again("fix", "--apply", "--create", "--python", "./vllm-env")
    sentence = "no environment is active, and the doctor's own has no vLLM: name the one to use"
    tell(sentence)
    for what, command in (*said, ("a new one", fresh)):
        say(f"  # {printable(what)}\n  {printable(command)}", err=True)
    raise SystemExit(USAGE)


def fail_to_judge(error: Missing | Crashed) -> NoReturn:
    wrong = isinstance(error, NotPython) and error.wrong
    fail(str(error), USAGE if wrong else UNKNOWN)
