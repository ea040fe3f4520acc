"""The words of a command that starts vLLM's server: what stands in front, which program it is, and
what vLLM's own parser gets."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from doctor.command.server import MODULE, ServerCommand
from doctor.command.shell import ASSIGNMENT, brief, must_be_words, words_of
from doctor.errors import UsageError
from doctor.model import Text

# Programs that only start another one: those of their options that take a word, and how many words
# stand before the command (coreutils, util-linux, numactl; bash for exec and time).
IN_FRONT: dict[str, tuple[frozenset[str], int]] = {
    "exec": (frozenset(("-a",)), 0),
    "time": (frozenset(("-f", "-o", "--format", "--output")), 0),
    "nohup": (frozenset(), 0),
    "setsid": (frozenset(), 0),
    "nice": (frozenset(("-n", "--adjustment")), 0),
    "ionice": (frozenset(("-c", "-n", "--class", "--classdata")), 0),
    "stdbuf": (frozenset(("-i", "-o", "-e", "--input", "--output", "--error")), 0),
    "timeout": (frozenset(("-k", "-s", "--kill-after", "--signal")), 1),
    "taskset": (frozenset(), 1),
    "numactl": (
        frozenset(
            [
                "-N",
                "-C",
                "-m",
                "-i",
                "-p",
                "-P",
                "-w",
                "--cpunodebind",
                "--physcpubind",
                "--membind",
                "--interleave",
                "--preferred",
                "--preferred-many",
                "--weighted-interleave",
            ]
        ),
        0,
    ),
}
_OTHER_USERS = ("sudo", "doas", "su", "runuser")
_RUNNERS = ("uv", "uvx", "poetry", "pdm", "hatch", "pixi", "pipenv", "conda", "mamba", "micromamba")
_SHELLS = ("sh", "bash", "dash", "ash", "zsh")
CONTAINERS = ("docker", "podman", "nerdctl")
# Options of Python that take a word (python --help).
_PYTHON_TAKES = frozenset(("-X", "-W", "--check-hash-based-pycs"))
_COMMAND_LINE = "vllm.entrypoints.cli.main"


def taken_apart(words: Sequence[str], folder: Path | None = None) -> ServerCommand:
    """The command in these words, or in the text of a single one; relative paths are of `folder`.
    Raises UsageError where they start no server of vLLM's, or not in a way that can be read."""
    must_be_words(words)
    if len(words) == 1 and len(words[0].split()) > 1:
        words = words_of(words[0])
    return _read(tuple(words), folder)


def _read(words: tuple[str, ...], folder: Path | None, in_shell: bool = False) -> ServerCommand:
    env, rest = _peeled(words)
    name = Path(rest[0]).name if rest else ""
    if name in _SHELLS:
        if in_shell:
            said = Text("{word}: a shell in a shell is not read; give the command alone", word=name)
            raise UsageError(said)
        made = _of_shell(words, rest, folder)
    elif name in CONTAINERS:
        from doctor.command.container import read_container

        made = read_container(words, rest)
    elif name == "vllm":
        made = _of_script(words, rest[1:], _path(rest[0], folder))
    elif re.fullmatch(r"python[0-9.]*", name):
        made = _of_python(words, rest, folder)
    else:
        raise _not_a_server(rest[0] if rest else "")
    return dataclasses.replace(made, env={**env, **made.env}, folder=folder)


def _not_a_server(word: str) -> UsageError:
    name = Path(word).name
    if name in _OTHER_USERS:
        return UsageError(
            Text(
                "{word}: the server would have another environment; run the doctor itself that "
                "way: {word} vllm-doctor ... -- vllm serve MODEL",
                word=name,
            )
        )
    if name in _RUNNERS:
        return UsageError(
            Text(
                "{word}: which environment it takes is not known; leave it out, and name the "
                "environment by --python",
                word=name,
            )
        )
    shown = brief(word) or "''"
    return UsageError(
        Text("{word}: not the command of a vLLM server, such as `vllm serve MODEL`", word=shown)
    )


def _peeled(words: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """(the variables in front of the program, the words from it on)."""
    env: dict[str, str] = {}
    rest = list(words)
    while rest:
        name = Path(rest[0]).name
        if variable := ASSIGNMENT.fullmatch(rest[0]):
            env[variable[1]] = variable[2]
            del rest[0]
        elif name == "env":
            rest = rest[2:] if rest[1:2] == ["--"] else rest[1:]
            if rest and rest[0].startswith("-"):
                said = Text("env {option}: options of env are not read", option=brief(rest[0]))
                raise UsageError(said)
        elif name in IN_FRONT:
            rest = _without(rest[1:], *IN_FRONT[name])
        else:
            break
    return env, tuple(rest)


def _without(words: list[str], takes: frozenset[str], positional: int) -> list[str]:
    """What follows the options of a program, and its own words."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        if words[at] == "--":
            at += 1
            break
        at += 2 if words[at] in takes else 1
    return words[at + positional :]


def _path(word: str, folder: Path | None) -> Path | None:
    """The file that a word names; None for a name that is looked for on PATH."""
    return (folder or Path.cwd()) / word if "/" in word else None


def _of_script(
    words: tuple[str, ...], rest: Sequence[str], script: Path | None = None
) -> ServerCommand:
    """`rest`: what follows `vllm`."""
    if rest[:1] != ("serve",):
        said = Text(
            "{words}: not the command of a server, which is `vllm serve MODEL`",
            words=brief(" ".join(("vllm", *rest[:1]))),
        )
        raise UsageError(said)
    return ServerCommand(words, tuple(rest[1:]), script=script)


def _of_python(words: tuple[str, ...], rest: Sequence[str], folder: Path | None) -> ServerCommand:
    python = _path(rest[0], folder)
    at = 1
    while at < len(rest) and rest[at].startswith("-") and rest[at] not in ("-m", "-c"):
        at += 2 if rest[at] in _PYTHON_TAKES else 1
    what = tuple(rest[at : at + 2])
    if what == ("-m", MODULE):
        return ServerCommand(words, tuple(rest[at + 2 :]), "module", python=python)
    if what == ("-m", _COMMAND_LINE):
        return dataclasses.replace(_of_script(words, rest[at + 2 :]), python=python)
    if what and Path(what[0]).name == "vllm":
        return dataclasses.replace(_of_script(words, rest[at + 1 :]), python=python)
    if what and what[0].endswith(MODULE.replace(".", "/") + ".py"):
        return ServerCommand(words, tuple(rest[at + 1 :]), "module", python=python)
    raise _not_a_server(" ".join((Path(rest[0]).name, *what)))


def _of_shell(words: tuple[str, ...], rest: Sequence[str], folder: Path | None) -> ServerCommand:
    """`bash -c TEXT`, `sh -lc TEXT`."""
    options = [word for word in rest[1:-1] if word.startswith("-")]
    if not options or len(options) != len(rest) - 2 or not re.fullmatch(r"-[a-z]*c", options[-1]):
        said = Text(
            "{shell}: of a shell only -c and one text behind it are read; give the command that "
            "starts the server",
            shell=Path(rest[0]).name,
        )
        raise UsageError(said)
    inner = words_of(rest[-1])
    made = _read(inner, folder, in_shell=True)
    if made.container:
        return made
    return dataclasses.replace(made, words=words, inner=inner)
