"""What a command that starts vLLM's server comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal

from doctor.frozen import dataclass

MODULE = "vllm.entrypoints.openai.api_server"
DEFAULT_SHM = 64 << 20
"""Bytes of /dev/shm in a container of which nothing else is said (docker run --shm-size)."""


@dataclass(frozen=True)
class Container:
    """What a container gives the server. `program`: docker, podman or nerdctl; `options`: the words
    between `run` and the image; `shm_size`: bytes, None where it is not said; `gpu_count`: the
    first so many GPUs, `gpu_names`: these by index or UUID, both None where all are given or
    nothing is said of them; `inherited`: variables that it takes from the shell;
    `mounts`: its folders that the machine has, and where."""

    program: str
    options: tuple[str, ...]
    image: str
    ipc: str | None = None
    shm_size: int | None = None
    gpu_count: int | None = None
    gpu_names: tuple[str, ...] | None = None
    inherited: tuple[str, ...] = ()
    mounts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerCommand:
    """`words`: the whole command, as it was typed or found; `arguments`: those of them that vLLM's
    own parser gets, without `serve`. `by`: whether that is the parser of `vllm serve`, which takes
    the model first, or of the module. `env`: the variables that the command itself sets; `python`:
    the interpreter that it names by a path, None where it names none; `script`: `vllm` so named.

    `found`: where it was found, such as "pid 4711", None where it was typed; `environ`: all
    variables that are set there, None where those of the shell are; `folder`: the current one
    there. `inner`: the words in the text that a shell is given (`bash -c TEXT`), which is the last
    of `words`; `container`: the one that it runs in.
    """

    words: tuple[str, ...]
    arguments: tuple[str, ...]
    by: Literal["serve", "module"] = "serve"
    env: dict[str, str] = field(default_factory=dict)
    python: Path | None = None
    script: Path | None = None
    found: str | None = None
    environ: dict[str, str] | None = None
    folder: Path | None = None
    inner: tuple[str, ...] = ()
    container: Container | None = None

    def with_arguments(self, arguments: Sequence[str]) -> tuple[str, ...]:
        """The whole command again, with these in the place of its own."""
        flat = self.inner or self.words
        made = (*flat[: len(flat) - len(self.arguments)], *arguments)
        if not self.inner:
            return made
        from doctor.command.shell import as_text

        return (*self.words[:-1], as_text(made))


def read_command(words: Sequence[str], folder: Path | None = None) -> ServerCommand:
    """The command in these words, or in the text of a single one; relative paths are of `folder`.
    Raises UsageError where they start no server of vLLM's, or not in a way that can be read."""
    from doctor.command.words import taken_apart  # late: only who gives a command needs it

    return taken_apart(words, folder)
