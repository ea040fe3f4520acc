"""The options that the commands share, and what they name: an environment, what it is to serve, and
the rules that judge it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import click
from click.core import ParameterSource

from doctor import about
from doctor import profile as profiles
from doctor.cli.output import rules_print_to_stderr, say, tell
from doctor.command import ServerCommand
from doctor.engine import load_rules
from doctor.errors import DoctorError, UsageError, naming
from doctor.exits import UNKNOWN, USAGE
from doctor.frozen import dataclass
from doctor.locate import environments, locate, nobody_named, refuse_foreign
from doctor.model import Rule, Severity, Text, os_refusal, printable
from doctor.patience import Patience
from doctor.probes.interpreter import FoundBy, Where
from doctor.profile import Profile, ServeRequest
from doctor.redact import hide_values_of
from doctor.shipped import rules_folder
from doctor.target import Live, Target
from doctor.trust import ALLOW, why_not_trusted

if TYPE_CHECKING:
    from doctor.signatures import Catalogue

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class CommonOptions:
    """What the common options say, as it was typed; a command that lacks one has its default."""

    python: str | None = None
    allow: tuple[str, ...] = ()
    profile_name: str = profiles.DEFAULT_PROFILE
    sets: tuple[str, ...] = ()
    rules_dir: str | None = None
    words: tuple[str, ...] = ()
    pid: int | None = None
    unit: str | None = None
    online: bool = False

    def profile(self) -> Profile:
        """The profile with its settings put in; says what of it does not count for another model.
        Raises UsageError."""
        base = profiles.load_profile(self.profile_name)
        made = profiles.with_settings(base, self.sets) if self.sets else base
        if left := profiles.left_out(base, made, self.sets):
            tell(
                Text(
                    "profile {name}: {left} belong to {its}, not to {model}, and are left out",
                    name=self.profile_name,
                    left=left,
                    its=base.model,
                    model=made.model or Text("a server without a model"),
                )
            )
        return made

    def request(self) -> ServeRequest:
        """What is to be served. Raises UsageError; DoctorError where what is running cannot be
        read."""
        command = self._command()
        if command is None:
            if self.words:
                from doctor.serve.argv import refuse_unjudged

                refuse_unjudged(self.words)
            return ServeRequest(self.profile(), self.words, online=self.online)
        hide_values_of({**(command.environ or {}), **command.env})
        from doctor.cli.again import COMMAND

        click.get_current_context().meta[COMMAND] = command
        return ServeRequest(self._place(), command=command, online=self.online)

    def _command(self) -> ServerCommand | None:
        """The server's own command; None where the words are further options of a profile's."""
        named = {"--pid": self.pid, "--unit": self.unit, "--": self.words or None}
        given = [name for name, value in named.items() if value is not None]
        if len(given) > 1:
            raise UsageError(Text("{given} exclude each other", given=given))
        if self.pid is not None:
            from doctor.command.process import read_process

            return read_process(self.pid)
        if self.unit is not None:
            from doctor.command.unit import read_unit, unit_folders

            home = Live().env.get("HOME")
            return read_unit(self.unit, *unit_folders(home), home)
        if not self.words or self.words[0].startswith("-"):
            return None
        from doctor.command.server import read_command

        return read_command(self.words)

    def _place(self) -> Profile:
        """Where a command is to be served, which is all that is said beside it."""
        source = click.get_current_context().get_parameter_source("profile_name")
        if source is ParameterSource.COMMANDLINE:
            raise UsageError(
                Text(
                    "--profile {name}: a command says itself what is served; leave one of them out",
                    name=self.profile_name,
                )
            )
        for one in self.sets:
            key = one.partition("=")[0].strip()
            if key.partition(".")[0] not in profiles.PLACE:
                raise UsageError(
                    Text(
                        "--set {key}: a command says itself what is served; put the option into "
                        "it, behind --",
                        key=key if "=" in one else "...",
                    )
                )
        return profiles.with_settings(Profile(), self.sets) if self.sets else Profile()

    def rules(self) -> tuple[Rule, ...]:
        """Our own rules, and those of --rules. Raises RuleError, UsageError."""
        ours = load_rules(rules_folder())
        if self.rules_dir is None:
            return ours
        self.must_be_trusted()
        folder = Path(self.rules_dir)
        if any(folder.glob("signatures/*.toml")) and not any(folder.glob("*.py")):
            return ours  # it adds to what `explain` knows
        with naming("--rules"), rules_print_to_stderr():
            more = load_rules(folder)
        known = {r.id for r in ours}
        if twice := [r.id for r in more if r.id in known]:
            said = Text("--rules {folder}: duplicate rule {id}", folder=folder, id=twice[0])
            raise UsageError(said)
        return (*ours, *more)

    def rules_when_asked(self) -> Iterator[Rule]:
        """The same, loaded when the first one is wanted."""
        yield from self.rules()

    def must_be_trusted(self) -> None:
        """As root, raises UsageError where another user could decide what a site's own rules do."""
        if self.rules_dir is None or ALLOW in self.allow:
            return
        folder = Path(self.rules_dir)
        for path in (folder, folder / "signatures", *folder.glob("*.py"), *folder.glob("*/*.toml")):
            if why := why_not_trusted(path, searched=path.is_dir()):
                raise UsageError(Text("--rules {folder}: {why}", folder=folder, why=why))

    def signatures(self) -> Catalogue:
        """The log signatures and ailments that are shipped, and those of --rules."""
        from doctor.signatures import load_catalogue, shipped_catalogue

        try:
            if self.rules_dir is None:
                return shipped_catalogue()
            return load_catalogue((rules_folder(), Path(self.rules_dir)))
        except (OSError, ValueError) as error:
            why = os_refusal(error) if isinstance(error, OSError) else error
            said = Text("signatures: {why}", why=why)
            raise DoctorError(said, USAGE if self.rules_dir else UNKNOWN) from None

    def located(self, command: ServerCommand | None = None) -> tuple[Target, Where]:
        """This machine, with the variables that the command has where it runs, and which
        interpreter on it. Raises LocateError."""
        target = Live(command.environ if command else None, foreign=ALLOW in self.allow)
        env = {**target.env, **command.env} if command else target.env
        where = locate(self.python, env, command)
        if ALLOW not in self.allow and where.found_by is not FoundBy.IMAGE:
            refuse_foreign(where.python)
        return target, where

    def entered(self, command: ServerCommand | None) -> tuple[Target, Where]:
        """As `named`. Raises UsageError for an image that was not entered."""
        target, where = self.named(command)
        if command and command.container and where.found_by is FoundBy.IMAGE:
            from doctor.command.container import entering_line

            raise UsageError(
                Text(
                    "the image {image} is not entered; run vllm-doctor in it: {command}",
                    image=command.container.image,
                    command=entering_line(command, command.container),
                )
            )
        return target, where

    def named(self, command: ServerCommand | None = None) -> tuple[Target, Where]:
        """As `located`, but never the doctor's own interpreter where no server could run on it:
        then the environments that there are, each with the command for it, and out."""
        target, where = self.located(command)
        if nobody_named(where):
            _list_environments()
        return target, where


def _list_environments() -> NoReturn:
    """Each with the whole command for it, which can be copied with what is said of it."""
    from doctor.cli.again import RunningCommand
    from doctor.repair.running import servers

    again, verb = RunningCommand(), str(click.get_current_context().info_name)
    rows = {
        str(python): Text("{python}: used by {process}", python=python, process=process)
        for python, process in servers().items()
    }
    for name, has_vllm in environments(Path()):
        folder = f"./{name}"
        rows[folder] = Text("{folder}: without vLLM", folder=folder)
        if has_vllm:
            rows[folder] = Text("{folder}: has vLLM", folder=folder)
    said = [(what, again(verb, "--python", python)) for python, what in rows.items()]
    if not said:
        said = [
            (
                Text("the environment that serves"),
                again(verb, "--python", "/path/to/the/environment"),
            )
        ]
    fresh = again("fix", "--apply", "--create", "--python", "./vllm-env")
    tell(
        Text("no environment is active, and vllm-doctor's own has no vLLM: name one with --python")
    )
    for what, command in (*said, (Text("a new one"), fresh)):
        say(f"  # {what}\n  {printable(command)}", err=True)
    raise SystemExit(USAGE)


ALLOW_HELP = "foreign-owner: as root, run and load also what another user could change."
CONSENT_HELP = {
    "core": " core: change an installed torch, vLLM, FlashInfer or triton.",
    "running": " running: change an environment that a process is using.",
    "processes": " processes: end engine processes whose server is gone.",
    "download": " download: fetch more than 1 GiB of a model.",
}


def python_options(command: F, consents: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> F:
    """The options that name an environment, as one CommonOptions, the command's `common`.
    `consents`: what else --allow takes; `more`: the command's own options that are part of it."""
    return _python(_with_common(command, "python", "allow", *more), consents)


def target_options(command: F, consents: tuple[str, ...] = ()) -> F:
    """The options that name what is judged: an environment, and what it is to serve; as one
    CommonOptions, the command's `common`."""
    return _target(_with_common(command, *_TARGET), consents)


_TARGET = ("python", "allow", "profile_name", "sets", "rules_dir")


def _target(command: F, consents: tuple[str, ...], rules: bool = True) -> F:
    made = _rules_option(command) if rules else command
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
        )
    ):
        made = option(made)
    return _python(made, consents)


def _rules_option(command: F) -> F:
    made = click.option("--rules", "rules_dir", metavar="DIR", help="A folder of further rules.")
    return made(command)


def serving_options(
    command: F, consents: tuple[str, ...] = (), rules: bool = True, online: bool = True
) -> F:
    """The same, and those that name the server's own command; `command` is of the class
    ServingCommand. `rules`: whether it judges by any; `online`: whether it asks the hub only where
    it is told to."""
    named = [name for name in _TARGET if rules or name != "rules_dir"]
    asked = ["online"] if online else []
    made = _with_common(command, "words", "pid", "unit", *asked, *named)
    options = [
        click.option(
            "--pid",
            type=click.IntRange(min=1),
            metavar="N",
            help="A running server: its command, environment and interpreter.",
        ),
        click.option(
            "--unit", metavar="NAME", help="A systemd service: what its files say it starts."
        ),
        click.option(
            "--online", is_flag=True, help="Ask the hub for what is not known of the model."
        ),
        command_option,
    ]
    if not online:
        del options[2]
    for option in reversed(options):
        made = option(made)
    return _target(made, consents, rules)


def command_option(command: F) -> F:
    """What follows --."""
    made = click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND]")
    return made(command)


class ServingCommand(click.Command):
    """A command behind whose `--` the server's own stands, or further options of it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        behind = len(args) - args.index("--") - 1 if "--" in args else 0
        example = f"{about.NAME} {ctx.info_name} [OPTIONS] -- vllm serve MODEL ..."
        try:
            rest = super().parse_args(ctx, list(args))
        except click.NoSuchOption as error:
            said = f"{error.format_message()} Put -- before the server's command: {example}"
            raise click.UsageError(said, ctx) from None
        words = ctx.params["words"]
        if len(words) > behind:
            said = f"{words[0]}: put -- before the server's command: {example}"
            raise click.UsageError(said, ctx)
        return rest


def _python(command: F, consents: tuple[str, ...]) -> F:
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
                help=ALLOW_HELP + "".join(CONSENT_HELP[one] for one in consents),
            ),
        )
    ):
        command = option(command)
    return command


def _with_common(command: F, *names: str) -> F:
    """The command, whose `common` is made of these options. click still knows them by their names
    (doctor.cli.again)."""

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        common = CommonOptions(**{name: given.pop(name) for name in names})
        return command(*args, common=common, **given)

    return cast("F", run)


def accept_option(command: F) -> F:
    """--accept; its ids are read by `ids`."""
    return click.option(
        "--accept",
        "accept",
        multiple=True,
        metavar="ID[,ID...]",
        help="Ignore this finding or inconclusive check; may be given several times.",
    )(command)


def ids(option: str, given: Iterable[str], rules: Iterable[Rule]) -> frozenset[str]:
    """The ids of an option that takes several. Raises UsageError for one that no rule has."""
    known = {r.id for r in rules}
    asked = [id for words in given for id in filter(None, words.split(","))]
    for id in asked:
        if id not in known:
            hint = did_you_mean(id, known)
            raise UsageError(
                Text("{option} {id}: unknown rule{hint}", option=option, id=id, hint=hint)
            )
    return frozenset(asked)


def did_you_mean(word: str, known: Collection[str], otherwise: Text | None = None) -> Text:
    """A hint for a slip of the pen, to be put behind a sentence."""
    from difflib import get_close_matches

    if close := get_close_matches(word, known, 1, cutoff=0.4):
        return Text("; did you mean {near}?", near=close[0])
    return otherwise or Text("")


def form_option(command: F) -> F:
    """--format, of the commands whose reports have every form (doctor.report.formats)."""
    from doctor.report.formats import FORMS

    return click.option(
        "--format", "form", type=click.Choice(FORMS), default="text", show_default=True
    )(command)


def fail_on_option(help: str) -> Callable[[F], F]:
    """--fail-on, a severity; `help` says what it decides in this command."""
    return click.option(
        "--fail-on",
        type=click.Choice([s.value for s in Severity]),
        default=Severity.ERROR.value,
        show_default=True,
        help=help,
    )


def wait_option(command: F) -> F:
    return click.option(
        "--wait",
        type=click.FloatRange(min=0),
        is_flag=False,
        flag_value=0,
        metavar="[SECONDS]",
        help="Wait for another vllm-doctor that is changing the environment, for so long, or for "
        "ever without a number or with 0. Otherwise, and after that time, exit code 75.",
    )(command)


def patience(wait: float | None) -> Patience:
    return Patience(wait, tell)
