"""The command of a process that serves with vLLM, as /proc has it. Nothing of it is touched."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from doctor.command.server import ServerCommand, read_command
from doctor.command.shell import brief
from doctor.errors import DoctorError, UsageError
from doctor.exits import UNKNOWN
from doctor.model import Text, os_reason
from doctor.redact import redacted_words
from doctor.target import TooLarge, must_read

PROC = Path("/proc")
# All words and variables of a process: a quarter of its stack, 6 MiB at most (execve(2)).
_MOST = 8 << 20
_STATUS_MOST = 1 << 16
_ANCESTORS = 64  # more than any real process has
_OF_VLLM = re.compile(rb"VLLM::")
"""What the processes of a server that does the work call themselves (vllm/utils, 0.10 to 0.33)."""


def read_process(pid: int, proc: Path = PROC) -> ServerCommand:
    """The command of this process, or of the server that it belongs to, with its environment and
    its current folder. Raises UsageError where it is no server of vLLM's, or lives in a container;
    DoctorError (could not tell) where it cannot be read, or is gone."""
    if not (proc / str(pid)).is_dir():
        raise UsageError(Text("--pid {pid}: there is no such process", pid=pid))
    with _reading(pid):
        holder, words = _holder(pid, proc)
        _must_be_here(holder, proc)
        environ = _environ(holder, proc)
        folder = Path((proc / str(holder) / "cwd").readlink())
        made = read_command(words, folder)
        python = made.python or _interpreter(words, environ, holder, proc)
    return dataclasses.replace(
        made,
        env={},
        python=python,
        found=f"pid {holder}",
        environ=environ,
        folder=folder,
    )


@contextlib.contextmanager
def _reading(pid: int) -> Iterator[None]:
    """What /proc refuses, as one sentence."""
    try:
        yield
    except (OSError, TooLarge) as error:
        if isinstance(error, (FileNotFoundError, ProcessLookupError)):
            said = Text("--pid {pid}: the process has ended meanwhile", pid=pid)
        elif isinstance(error, PermissionError):
            said = Text(
                "--pid {pid}: the process is another user's, and cannot be read; run the doctor "
                "as that user, or as root",
                pid=pid,
            )
        else:
            why = os_reason(error) if isinstance(error, OSError) else error
            said = Text("--pid {pid}: cannot be read: {why}", pid=pid, why=why)
        raise DoctorError(said, UNKNOWN) from None


def _holder(pid: int, proc: Path) -> tuple[int, tuple[str, ...]]:
    """(the process that holds the server's command, its words): this one, or the one that started
    it; workers and the engine's core have another title."""
    first = _words(pid, proc)
    at, words, wrong = pid, first, None
    for _ in range(_ANCESTORS):
        if words and not _OF_VLLM.match(os.fsencode(words[0])):
            try:
                _must_be_direct(read_command(words))
                return at, words
            except UsageError as error:
                wrong = wrong or error
        at = _parent(at, proc)
        if at < 1:
            break
        words = _words(at, proc)
    shown = brief(" ".join(redacted_words(first))) or "a process without a command line"
    said = Text("--pid {pid}: {shown} is not a server of vLLM", pid=pid, shown=shown)
    raise UsageError(said) from wrong


def _must_be_direct(made: ServerCommand) -> None:
    """Raises UsageError for a shell, or docker's own client, which is not the server itself."""
    if made.inner or made.container:
        raise UsageError(Text("a shell or a container's client is not the server itself"))


def _words(pid: int, proc: Path) -> tuple[str, ...]:
    data = must_read(proc / str(pid) / "cmdline", _MOST)
    rest = data.removesuffix(b"\0")
    return tuple(map(os.fsdecode, rest.split(b"\0"))) if rest else ()


def _status(pid: int, proc: Path, key: str) -> list[str]:
    text = must_read(proc / str(pid) / "status", _STATUS_MOST).decode("utf-8", "replace")
    found = re.search(rf"(?m)^{key}:[ \t]*(.*)$", text)
    return found[1].split() if found else []


def _parent(pid: int, proc: Path) -> int:
    said = _status(pid, proc, "PPid")
    return int(said[0]) if said and said[0].isdigit() else 0


def _environ(pid: int, proc: Path) -> dict[str, str]:
    data = must_read(proc / str(pid) / "environ", _MOST)
    rows = (os.fsdecode(row).partition("=") for row in data.split(b"\0"))
    return {name: value for name, equals, value in rows if name and equals}


def _must_be_here(pid: int, proc: Path) -> None:
    """Raises UsageError for a process that sees other files than the doctor, which would judge
    those of this machine in their place."""
    theirs = (proc / str(pid) / "ns/mnt").readlink()
    if theirs == (proc / "self/ns/mnt").readlink():
        return
    inside = (_status(pid, proc, "NSpid") or [str(pid)])[-1]
    container = _container(pid, proc)
    doctor = ["vllm-doctor", "diagnose", "--pid", inside]
    if container is None:
        said = Text(
            "--pid {pid}: the process sees other files than this machine (a container); run the "
            "doctor there: {command}",
            pid=pid,
            command=shlex.join(doctor),
        )
        raise UsageError(said)
    program, name = container
    said = Text(
        "--pid {pid}: the process runs in a container; run the doctor there: {command}",
        pid=pid,
        command=shlex.join([program, "exec", "-it", name, *doctor]),
    )
    raise UsageError(said)


# The last part of a path below /sys/fs/cgroup: of docker, podman (libpod), and what Kubernetes has.
_CGROUP = re.compile(r"(docker|libpod|crio|cri-containerd)[-/]([0-9a-f]{64})\b")
_ENTERED_BY = {"docker": "docker", "libpod": "podman"}


def _container(pid: int, proc: Path) -> tuple[str, str] | None:
    """(the program that enters it, the first digits of its id), where the control group says so."""
    text = must_read(proc / str(pid) / "cgroup", _STATUS_MOST).decode("utf-8", "replace")
    if found := _CGROUP.search(text):
        return _ENTERED_BY.get(found[1], "crictl"), found[2][:12]
    return None


def _interpreter(words: tuple[str, ...], env: dict[str, str], pid: int, proc: Path) -> Path:
    """As it was called: by its path, else the one of its PATH that is the running program. The
    program itself is what a virtual environment was made of, not the environment."""
    program = (proc / str(pid) / "exe").readlink()
    real = Path(str(program).removesuffix(" (deleted)"))
    name = words[0]
    folders = [f"{env.get('VIRTUAL_ENV', '')}/bin", *env.get("PATH", "").split(os.pathsep)]
    for folder in folders:
        called = Path(folder, name)
        if "/" not in name and folder.startswith("/") and os.path.realpath(called) == str(real):
            return called
    return real
