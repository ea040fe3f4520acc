"""The files of an installed package, from which one function at a time is read."""

from __future__ import annotations

import ast
import re
import threading
import warnings
from pathlib import Path

from doctor.frozen import dataclass
from doctor.model import Missing, Text
from doctor.target import Target


class Unreadable(Missing):
    """A file does not say, in the way that we can read, what the software does; the reason names
    the file. Of the installed version nothing is then assumed."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            Text("{path} does not say {what} in a way that can be read", path=path, what=what)
        )


@dataclass(frozen=True)
class Source:
    """The package below `root`."""

    target: Target
    root: Path

    def function(self, file: str, name: str, inside: bool = False) -> ast.FunctionDef:
        """The function of a module, or (`inside`) the first of that name in a class.

        A whole module takes fifty milliseconds to parse, so its text is cut out first. Raises
        Unreadable.
        """
        path, indent = self.root / file, " {4}" if inside else ""
        # It ends before what stands no deeper than itself, comments and closing brackets apart.
        end = rf"(?=^{indent}[^\s#)]|^[^\s#)]|\Z)"
        rows = self.target.search(path, rf"(?ms)^{indent}def {name}\(.{{0,{_LONGEST}}}?{end}")
        tree = parsed(re.sub(rf"(?m)^{indent}", "", rows[0])) if rows else None
        made = tree.body[0] if tree and tree.body else None
        if not isinstance(made, ast.FunctionDef):
            raise Unreadable(path, name)
        return made

    def has(self, file: str, pattern: str) -> bool:
        """Whether the pattern is found in a file that can be read. Raises Unreadable."""
        rows = self.target.search(self.root / file, pattern)
        if rows is None:
            raise Unreadable(self.root / file, pattern)
        return bool(rows)


_LONGEST = 1 << 16  # bytes of a function; vLLM's longest that is read here has 3 KiB


_parsing = threading.Lock()


def parsed(text: str | bytes) -> ast.Module | None:
    """A module's tree; None of what is no Python.

    One at a time: where the garbage collector lets another thread in while a tree is built, both
    count their depth in the same place, and one gets a SystemError (CPython 3.11).
    """
    try:
        with _parsing, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in their strings
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
