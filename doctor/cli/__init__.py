"""The command line: thin, and the only place (with report/) that knows click and rich."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click

from doctor import about
from doctor.cli import signs
from doctor.cli.again import program
from doctor.cli.output import fail, fail_usage, say, tell
from doctor.engine import place
from doctor.errors import DoctorError, UsageError
from doctor.exits import INTERRUPTED, UNKNOWN, USAGE
from doctor.model import Missing, Text, os_reason
from doctor.target import OUT_OF_FILES


class _Commands(MutableMapping[str, click.Command]):
    """The commands by name, each in a file of its name, imported when it is asked for: `env` has
    0.15 s in all."""

    def __init__(self, *names: str) -> None:
        self._names = list(names)
        self._made: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self[name] = getattr(import_module(f"doctor.cli.{name}"), name)
        return self._made[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        self._names.remove(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


_COMMANDS = _Commands(
    *("diagnose", "explain", "fit", "fix", "undo", "download", "launch", "profile"),
    *("env", "rules", "snapshot", "schema"),
)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        known = f"{about.count_rules()} rules, {about.count_signatures()} signatures"
        say(f"{about.NAME} {about.VERSION} ({known})")
        ctx.exit()


class _Group(click.Group):
    """Prints what ends a command, in one place: whatever it is called by."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (DoctorError, Missing) as error:
            _end(error)
        except KeyboardInterrupt as stop:  # click would forget what it says
            fail(str(stop) or _NOTHING_CHANGED, INTERRUPTED)


_NOTHING_CHANGED = "interrupted; nothing was changed"


@click.group(
    about.NAME,
    cls=_Group,
    commands=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and how many rules and signatures there are.",
)
def cli() -> None:
    """Check, fix and start the environment that serves a model with vLLM."""


class _Terminated(BaseException):
    """SIGTERM, as an exception that no rule can swallow, so that children are ended too."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def main() -> None:
    """What doctor.__main__ starts. Ends with the documented exit code, never with a traceback."""
    try:
        _prepare()
        try:
            cli.main(prog_name=program(), standalone_mode=False)
        finally:
            sys.stdout.flush()
    except click.ClickException as error:
        fail_usage(error)
        raise SystemExit(USAGE) from None
    except (click.Abort, KeyboardInterrupt):
        tell(_NOTHING_CHANGED)
        raise SystemExit(INTERRUPTED) from None
    except _Terminated:
        raise SystemExit(143) from None
    except Exception as error:
        # What stdout still holds cannot be written; Python would try again while it ends.
        sys.stdout = io.StringIO()
        _end(error)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # children are ended now (doctor.target)


def _prepare() -> None:
    """Streams that can be written to, and signals that end the doctor in order, with its children:
    doctor.__main__ would end it at once."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # a lost connection; nohup ignores it
        signal.signal(signal.SIGHUP, _terminate)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with the descriptor closed
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for good
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=signs.register())  # a locale without ✓ is no reason to fail


def _end(error: Exception) -> NoReturn:
    """The one place where what ends a command is printed, with what a tool said of it before."""
    told = _told(error)
    for line in told.tail.splitlines()[-_TAIL:]:
        say(f"  {line}", err=True)
    fail(str(told), told.exit_code)


_TAIL = 12  # lines


def _told(error: Exception) -> DoctorError:
    """What was raised, as a person is told."""
    if isinstance(error, DoctorError):
        return error
    if isinstance(error, Missing):
        from doctor.probes.interpreter import NotPython

        wrong = isinstance(error, NotPython) and error.wrong
        return DoctorError(error.reason, USAGE if wrong else UNKNOWN)
    if isinstance(error, OSError):
        return _refused(error)
    why = Text("crashed, and could not judge anything: {why}; please report it", why=place(error))
    return DoctorError(why, UNKNOWN)


def _refused(error: OSError) -> DoctorError:
    """What the system refused where no command expects it."""
    if error.errno in OUT_OF_FILES:
        return DoctorError(Text("{why}: raise `ulimit -n`", why=os_reason(error)), UNKNOWN)
    try:
        os.getcwd()  # noqa: PTH109 - relative paths hang on it
    except FileNotFoundError:
        return UsageError(Text("the current directory was removed: change to one that exists"))
    return DoctorError(Text("cannot write: {why}", why=os_reason(error)), UNKNOWN)
