"""The next command, complete: what is printed asks the same of the same target as what just ran."""

from __future__ import annotations

import itertools
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from click.core import ParameterSource

from doctor import about
from doctor.probes.interpreter import FoundBy
from doctor.profile import PLACE
from doctor.redact import holds_secret

if TYPE_CHECKING:
    from doctor.command import ServerCommand
    from doctor.diagnose import Report
    from doctor.probes.interpreter import Where

COMMAND = "doctor.command"
"""The server's own command, among what click keeps of a running one."""

# One option with its value, as words: ("--set", "gpus=later"), ("--apply",).
_Row = tuple[str, ...]

# How an answer is shown, written or waited for: another command has its own way.
_MANNER = frozenset(("form", "verbose", "quiet", "script", "output", "wait", "dry_run", "replace"))
# What one option rules out.
_INSTEAD_OF = {"--apply": {"--script"}, "--forget": {"--list", "--purge"}}
# `env` prints nothing of a profile.
_UNUSED = {"env": frozenset(("profile_name", "sets"))}


def program() -> str:
    """The words that start this doctor, quoted for a shell: its name where PATH leads to it, else
    its full path, or `python -m doctor` as it was typed."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return shlex.join(sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1])
    if started.name != about.NAME:
        return about.NAME  # embedded in another program: how it was started says nothing
    found = shutil.which(about.NAME)
    if found and started.exists() and started.samefile(found):
        return about.NAME
    return shlex.quote(str(started.absolute()))


class RunningCommand:
    """The command that runs now, to be said again with changes (doctor.model.Again). `where`: what
    it judges, named also where it was found and not named; `declared`: the options of the installed
    vLLM, () where they are not known."""

    def __init__(self, where: Where | None = None, declared: Collection[str] = ()) -> None:
        self._context = click.get_current_context()
        self._where = where if where and where.found_by is not FoundBy.IMAGE else None
        self._declared = declared
        self._command: ServerCommand | None = self._context.meta.get(COMMAND)
        self._tape: str | None = self._context.params.get("tape")

    def __call__(self, verb: str, *words: str) -> str:
        """The command `verb` as one line for a shell: every option of the running command that it
        has too, and `words`, which replace what they contradict: switches like --apply stand first.
        In words only, where the line would show a secret. Of a server's own command, a setting
        among the words is put into it."""
        of_tape = self._tape is not None and verb == "diagnose" and "--deep" not in words
        elsewhere = self._tape is not None and not of_tape and verb != "rules"
        options = self._options(verb)
        words, behind, corrected = self._served(verb, words)
        without = {"--from"} if not of_tape else set[str]()
        if corrected:
            without |= {"--pid", "--unit"}
        for chosen, others in _INSTEAD_OF.items():
            without |= others if chosen in words else set()
        rows = [r for r in self._rows(verb, options) if r[0] not in without]
        if self._where and not of_tape and "--python" in options:
            rows = [("--python", str(self._where.python)), *(r for r in rows if r[0] != "--python")]
        switches = {name for p in options.values() if p.is_flag for name in p.opts}
        first = list(itertools.takewhile(switches.__contains__, words))
        said = [*first, *_said(rows, words, options), *words[len(first) :]]
        if verb == self._context.info_name and "--forget" not in words:
            said += self._arguments()
        said += behind
        if holds_secret(said):
            return self._described(verb, words, corrected, elsewhere)
        start = about.NAME if elsewhere else str(self._context.find_root().info_name)
        return f"{start} {shlex.join([verb, *said])}"

    def _served(
        self, verb: str, words: tuple[str, ...]
    ) -> tuple[tuple[str, ...], list[str], tuple[str, ...]]:
        """(the words without settings of the server, what stands behind them, the settings)."""
        root = cast("click.Group", self._context.find_root().command)
        if "words" not in {one.name for one in root.commands[verb].params}:
            return words, [], ()
        typed: tuple[str, ...] = self._context.params.get("words") or ()
        if self._command is None:
            return words, ["--", *typed] if typed else [], ()
        from doctor.command.change import changed

        kept: list[str] = []
        settings: list[str] = []
        pairs = iter(words)
        for word in pairs:
            if word != "--set":
                kept.append(word)
                continue
            one = next(pairs)
            is_place = self._is_place(one.partition("=")[0])
            settings += [] if is_place else [one]
            kept += [word, one] if is_place else []
        arguments = self._command.arguments
        for one in settings:
            key, _, value = one.partition("=")
            arguments = changed(arguments, key, value, self._declared)
        if not settings and self._command.found:
            return words, [], ()  # named by --pid or --unit
        whole = self._command.with_arguments(arguments)
        return tuple(kept), ["--", *whole], tuple(settings)

    def _is_place(self, key: str) -> bool:
        """Whether a setting is one of the place, and not the command's own option of that name."""
        from doctor.command.change import option_of

        own = self._command.arguments if self._command else ()
        said = {word.partition("=")[0] for word in own}
        return key.partition(".")[0] in PLACE and option_of(key) not in said

    def _described(
        self, verb: str, words: Sequence[str], corrected: Sequence[str], elsewhere: bool
    ) -> str:
        ours = self._context.info_name
        found = self._command.found if self._command and corrected else None
        said = [f"the command of {found}" if found else "the same command again"]
        if verb != ours:
            said.append(f"as {verb} in place of {ours}")
        if elsewhere and self._where:
            said.append("without --from")
            words = ("--python", str(self._where.python), *words)
        if words:
            said.append(f"with {shlex.join(words)}")
        said += [one if found else f"{one} behind --" for one in self._changes(corrected)]
        return ", ".join(said)

    def _changes(self, corrected: Sequence[str]) -> Iterator[str]:
        """In words. An option that is there already must go: vLLM takes no wrong value, also where
        a right one follows."""
        from doctor.command.change import changed, option_of

        own = self._command.arguments if self._command else ()
        for key, _, value in (one.partition("=") for one in corrected):
            option = option_of(key)
            given = shlex.quote(option if value == "true" else f"{option}={value}")
            if not value:
                yield f"without {option}"
            elif tuple(changed(own, key, "", self._declared)) != tuple(own):
                yield f"with {given} in place of its {option}"
            else:
                yield f"with {given}"

    def _options(self, verb: str) -> dict[str, click.Option]:
        """The options of a command, by the longest of their names."""
        root = cast("click.Group", self._context.find_root().command)
        return {_flag(p): p for p in root.commands[verb].params if isinstance(p, click.Option)}

    def _rows(self, verb: str, options: dict[str, click.Option]) -> Iterator[_Row]:
        """What was given to the running command, or to the group it is of, and `verb` takes."""
        unsaid = _UNUSED.get(verb, frozenset()) | (
            _MANNER if verb != self._context.info_name else frozenset()
        )
        context: click.Context | None = self._context
        while context:
            for one in context.command.params:
                theirs = options.get(_flag(one))
                if theirs is None or theirs.name != one.name or one.name in unsaid:
                    continue
                given = context.get_parameter_source(str(one.name))
                if given is not ParameterSource.DEFAULT:
                    yield from _as_words(theirs, context.params[str(one.name)])
            context = context.parent

    def _arguments(self) -> list[str]:
        """Those of the running command; what follows `--` is a program's."""
        made: list[str] = []
        for one in self._context.command.params:
            value = self._context.params.get(str(one.name))
            if isinstance(one, click.Argument) and value and one.name != "words":
                made += [value] if isinstance(value, str) else ["--", *value]
        return made


def _flag(one: click.Parameter) -> str:
    return max(one.opts, key=len)


def _as_words(option: click.Option, value: object) -> Iterator[_Row]:
    """An option's value as it is typed; without what its command does not take."""
    if option.is_flag:
        yield from [(_flag(option),)] if value else []
        return
    for one in value if isinstance(value, tuple) else (value,):
        if not isinstance(option.type, click.Choice) or one in option.type.choices:
            yield (_flag(option), str(one))


def _said(
    rows: Iterable[_Row], words: Sequence[str], options: dict[str, click.Option]
) -> Iterator[str]:
    """The words of the rows that `words` neither repeat nor replace: of an option that may be given
    several times only the same value, or the same key's."""
    later: set[_Row] = set()
    for flag, value in zip(words, (*words[1:], ""), strict=False):
        if flag in options and not options[flag].is_flag and options[flag].multiple:
            later.add((flag, value.partition("=")[0]))
        else:
            later.add((flag,))
    for row in rows:
        key = (row[0], row[1].partition("=")[0]) if len(row) > 1 else row
        if key not in later and row[:1] not in later:
            yield from row


def told(report: Report, where: Where) -> Report:
    """The report, whose commands of the doctor's own are said as the running one was."""
    from doctor.report.machine import fact

    declared: Collection[str] = ()
    if report.command:
        from doctor.probes.vllm_names import VllmOptions

        known = fact(report, VllmOptions)
        declared = known.names if known else ()
    again = RunningCommand(where, declared)
    return replace(report, installer=replace(report.installer, again=again))
