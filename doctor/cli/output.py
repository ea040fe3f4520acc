"""All that a command prints or writes goes through here, so that no secret gets out and nothing
drives a terminal: text and JSON are redacted (doctor.redact) and printable.

What a program executes or reads is the exception: the lines of `env` and a script hold the values
that they set, and go through `verbatim`; so do the forms that are made of cases, whose texts are
redacted one by one, before they are escaped (doctor.report.cases).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

from doctor.cli.signs import missing_signs
from doctor.errors import UsageError, naming
from doctor.model import Text, printable, shortened
from doctor.redact import redact, redacted

if TYPE_CHECKING:
    from doctor.diagnose import Report
    from doctor.report.lines import Line

_SENTENCE = 2000  # characters


def say(text: str, err: bool = False) -> None:
    """Lines of text."""
    for line in redact(text).split("\n"):
        _echo(f"{printable(line)}\n", sys.stderr if err else sys.stdout)


def _echo(text: str, to: TextIO) -> None:
    """click would write to a stream of its own where this one is of ASCII, without our signs."""
    click.echo(text, file=to, nl=False)


def tell(message: Text | str) -> None:
    """What goes on, on stderr, as a sentence of the doctor's."""
    say(f"vllm-doctor: {message}", err=True)


def fail(message: str, code: int) -> NoReturn:
    """One sentence on stderr, and out. What it names may be of megabytes, the sentence is not."""
    sentence = shortened(printable(redact(message)), _SENTENCE)
    _echo(f"vllm-doctor: {sentence}\n", sys.stderr)
    raise SystemExit(code)


def fail_usage(error: click.ClickException) -> None:
    """What click says of a command line; it quotes what was typed."""
    said = io.StringIO()
    error.show(said)
    say(said.getvalue().rstrip("\n"), err=True)


def confirm(question: str) -> bool:
    """Asks the person at the terminal, on stderr."""
    return click.confirm(printable(redact(question)), err=True)


def print_json(data: Any, indent: int | None = None) -> None:
    """One object on stdout. Without an indent json has a fast encoder."""
    _echo(json.dumps(redacted(data), indent=indent) + "\n", sys.stdout)


def verbatim(text: str) -> None:
    """What a program takes as it is, on stdout."""
    _echo(text, sys.stdout)


def print_lines(lines: Iterable[Line], to: TextIO | None = None) -> None:
    """Coloured by rich on a terminal; plain, and without rich, elsewhere."""
    stream = to or sys.stdout
    cleaned = _cleaned(list(lines))
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        for line in cleaned:
            _echo("".join(piece for _, piece in line) + "\n", stream)
        return
    from rich.console import Console
    from rich.text import Text as Coloured

    console = Console(highlight=False, soft_wrap=True, file=stream)
    for line in cleaned:
        made = Coloured()
        for style, piece in line:
            made.append(piece, style)
        console.print(made)


def print_report(
    report: Report, *, verbose: bool = False, quiet: bool = False, to: TextIO | None = None
) -> None:
    """The report as text, on stdout or another stream, as wide as the terminal."""
    from doctor.report.lines import Style
    from doctor.report.text import report_lines

    stream = to or sys.stdout
    style = Style(verbose, quiet, text_width(), missing_signs(stream.encoding))
    print_lines(report_lines(report, style), stream)


def text_width() -> int:
    """Columns of a text: those of the terminal, and no more than are read with ease."""
    return min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)


_WIDEST = 100


def _cleaned(lines: list[Line]) -> Iterator[Line]:
    """The lines, redacted as one text, since a secret may go on in the next line. A line that holds
    one loses its colours."""
    made = [tuple((style, printable(piece)) for style, piece in line) for line in lines]
    texts = ["".join(piece for _, piece in line) for line in made]
    clean = redact("\n".join(texts)).split("\n") if texts else []
    for line, before, after in zip(made, texts, clean, strict=True):
        yield line if before == after else (("", after),)


@contextlib.contextmanager
def rules_print_to_stderr() -> Iterator[None]:
    """What a rule prints must not spoil the JSON on stdout."""
    printed = _Printed()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        if printed.rest:
            say(printed.rest, err=True)


class _Printed(io.TextIOBase):
    """Says on stderr, line by line, what is written to it."""

    rest = ""

    def write(self, text: str) -> int:
        *whole, self.rest = (self.rest + text).split("\n")
        for line in whole:
            say(line, err=True)
        return len(text)


def write_file(option: str, path: str, text: str, executable: bool = False) -> None:
    """Writes what a person asked for to the file that `option` names, whole or not at all. Raises
    UsageError where it may not.

    Somebody else may have put what stands there: no link is followed, no fifo opened, and a file is
    replaced, not written into. Devices, and names like /dev/stdout that only root makes, are.
    """
    place = Path(path)
    with naming(option, path):
        if str(place.absolute().parent) in _ROOTS_OWN or _kind(place) == stat.S_IFCHR:
            with place.open("w", encoding="utf-8", errors="surrogateescape") as device:
                device.write(text)
        elif wrong := _REFUSED.get(_kind(place)):
            raise UsageError(wrong)
        else:
            _replace(place, text, 0o755 if executable else 0o644)


_ROOTS_OWN = ("/dev", "/dev/fd", "/proc/self/fd")
_REFUSED = {
    stat.S_IFLNK: Text("it is a link; name a file"),
    stat.S_IFIFO: Text("it is a fifo; name a file"),
    stat.S_IFSOCK: Text("it is a socket; name a file"),
    stat.S_IFDIR: Text("it is a directory; name a file"),
    stat.S_IFBLK: Text("it is a disk; name a file"),
}


def _kind(place: Path) -> int:
    """Of what stands there itself, 0 where there is nothing."""
    try:
        return stat.S_IFMT(place.lstat().st_mode)
    except FileNotFoundError:
        return 0


def _replace(place: Path, text: str, mode: int) -> None:
    with contextlib.ExitStack() as stack:
        folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        fresh = f".vllm-doctor.{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(fresh, flags, mode, dir_fd=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
            os.rename(fresh, place.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(fresh, dir_fd=folder)
            raise
