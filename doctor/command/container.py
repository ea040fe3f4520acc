"""`docker run ... vllm/vllm-openai ...`: what it gives the server. The container is not entered."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from doctor.command.server import Container, ServerCommand
from doctor.command.shell import brief
from doctor.errors import UsageError, naming
from doctor.model import Text
from doctor.redact import is_secret_name, redacted_words
from doctor.target import must_read

# The options of `run` that take no value: all others take one (`docker run --help` of 28.2,
# podman-run(1) of 5).
_SWITCHES = frozenset(
    f"--{name}"
    for name in [
        "detach",
        "disable-content-trust",
        "help",
        "init",
        "interactive",
        "no-healthcheck",
        "oom-kill-disable",
        "privileged",
        "publish-all",
        "quiet",
        "read-only",
        "rm",
        "sig-proxy",
        "tty",
        "use-api-socket",
        "env-host",
        "http-proxy",
        "no-hostname",
        "no-hosts",
        "passwd",
        "read-only-tmpfs",
        "replace",
        "rmi",
        "rootfs",
        "tls-verify",
        "unsetenv-all",
    ]
)
# Short ones by their long names; several switches may stand in one word (-it).
_SHORT = {"d": "--detach", "i": "--interactive", "t": "--tty", "P": "--publish-all"}
_SHORT |= {"q": "--quiet", "e": "--env", "v": "--volume", "p": "--publish", "m": "--memory"}
# Left out where the image is only entered.
_NOT_TO_ENTER = frozenset(
    f"--{name}"
    for name in [
        "cidfile",
        "detach",
        "entrypoint",
        "health-cmd",
        "name",
        "publish",
        "publish-all",
        "restart",
        "rm",
    ]
)
_FILE_MOST = 1 << 20

_Option = tuple[str, str, tuple[str, ...]]  # long name, value ("" of a switch), its words


def read_container(words: tuple[str, ...], rest: Sequence[str]) -> ServerCommand:
    """The server in a container. `rest`: from docker or podman on. Raises UsageError."""
    program, verbs = Path(rest[0]).name, list(rest[1:])
    if verbs[:1] == ["container"]:
        del verbs[0]
    if verbs[:1] != ["run"]:
        raise UsageError(_not_run(program, verbs))
    options, behind = _options(program, verbs[1:])
    if not behind:
        said = Text("{program} run: no image is named behind its options", program=program)
        raise UsageError(said)
    image, *arguments = behind
    env, inherited = _variables(options)
    made = _server(image, _last(options, "--entrypoint"), tuple(arguments))
    shown = verbs[1 : len(verbs) - len(behind)]
    count, names = _gpus(program, options, env)
    container = Container(
        program=program,
        options=tuple(shown),
        image=image,
        ipc=_last(options, "--ipc"),
        shm_size=_bytes(program, _last(options, "--shm-size")),
        gpu_count=count,
        gpu_names=names,
        inherited=inherited,
        mounts=dict(_mounts(options)),
    )
    # Nothing of this machine: its paths are the image's.
    return dataclasses.replace(
        made,
        words=words,
        env={**env, **made.env},
        python=None,
        script=None,
        container=container,
    )


def _not_run(program: str, verbs: Sequence[str]) -> Text:
    if verbs[:1] == ["exec"]:
        return Text(
            "{program} exec: a container is not entered; run the doctor in it, in the place of the "
            "server's command: {program} exec CONTAINER vllm-doctor diagnose -- vllm serve ...",
            program=program,
        )
    return Text(
        "{program} {verb}: only `{program} run ...` is read; give the command of the service as "
        "one, or run the doctor in the container",
        program=program,
        verb=brief(verbs[0]) if verbs else "",
    )


def _server(image: str, entrypoint: str | None, arguments: tuple[str, ...]) -> ServerCommand:
    """What the image starts: its own entrypoint, for vllm/vllm-openai `vllm serve` or, in older
    ones, the module; both take --model."""
    from doctor.command.server import read_command

    if entrypoint is None and image.rpartition("/")[2].startswith("vllm-openai"):
        return ServerCommand(arguments, arguments)
    started = (entrypoint, *arguments) if entrypoint else arguments
    if not started or started[0].startswith("-"):
        raise UsageError(
            Text(
                "{image}: which program this image starts is not known; name it behind the image, "
                "such as `vllm serve MODEL`",
                image=brief(image),
            )
        )
    made = read_command(started)
    if made.container:
        raise UsageError(Text("{image}: a container in a container is not read", image=image))
    return made


def _options(program: str, words: Sequence[str]) -> tuple[list[_Option], list[str]]:
    """(the options, the words from the image on)."""
    found: list[_Option] = []
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        word = words[at]
        if word == "--":
            at += 1
            break
        name, value, whole = _option(word)
        if whole:
            found.append((name, value, (word,)))
            at += 1
            continue
        if at + 1 >= len(words):
            said = Text(
                "{program} run {option}: its value is missing", program=program, option=word
            )
            raise UsageError(said)
        found.append((name, words[at + 1], (word, words[at + 1])))
        at += 2
    return found, list(words[at:])


def _option(word: str) -> tuple[str, str, bool]:
    """(long name, value, whether the value is in this word or there is none)."""
    name, equals, value = word.partition("=")
    if name.startswith("--"):
        return name, value, bool(equals) or name in _SWITCHES
    letters = name[1:]
    while letters[:1] and _SHORT.get(letters[0]) in _SWITCHES:
        if len(letters) == 1:
            return _SHORT[letters], value, True
        letters = letters[1:]
    long = _SHORT.get(letters[0], f"-{letters[0]}")
    inside = word[word.index(letters[0], len(name) - len(letters)) + 1 :]
    return long, inside.removeprefix("="), bool(inside)


def _last(options: Iterable[_Option], *names: str) -> str | None:
    return next((value for name, value, _ in reversed(list(options)) if name in names), None)


def _variables(options: Iterable[_Option]) -> tuple[dict[str, str], tuple[str, ...]]:
    """(variables with their values, those taken from the shell): -e wins over --env-file."""
    rows = [*options]
    lines = [line for name, value, _ in rows if name == "--env-file" for line in _file(value)]
    lines += [value for name, value, _ in rows if name == "--env"]
    env: dict[str, str] = {}
    inherited: dict[str, None] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if equals:
            env[name] = value
            inherited.pop(name, None)
        else:
            inherited[name] = None
            env.pop(name, None)
    return env, tuple(inherited)


def _file(name: str) -> Iterator[str]:
    """Lines of a file of variables, as docker reads it: nothing is quoted in it."""
    with naming("--env-file", brief(name)):
        text = must_read(Path(name), _FILE_MOST).decode("utf-8")
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.lstrip()


def _mounts(options: Iterable[_Option]) -> Iterator[tuple[str, str]]:
    """(folder of the container, of the machine) of -v and --mount; a volume by its name lies where
    docker says."""
    for name, value, _ in options:
        if name == "--volume":
            here, _, rest = value.partition(":")
            there = rest.partition(":")[0]
        elif name == "--mount":
            fields = dict(field.partition("=")[::2] for field in value.split(","))
            here = fields.get("source", fields.get("src", ""))
            names = ("target", "destination", "dst")
            there = next((fields[one] for one in names if one in fields), "")
        else:
            continue
        if here.startswith(("/", ".")) and there.startswith("/"):
            yield there, str(Path(here).absolute())


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp])?i?b?", re.IGNORECASE | re.ASCII)


def _bytes(program: str, text: str | None) -> int | None:
    """A size as docker writes it: 64m, 8g, 8gb."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    if found is None or len(text) > 32:
        said = Text(
            "{program} run --shm-size {text}: not a size such as 8g",
            program=program,
            text=brief(text),
        )
        raise UsageError(said)
    power = " kmgtp".index((found[2] or " ").lower())
    return int(float(found[1]) * 1024**power)


def _gpus(
    program: str, options: Sequence[_Option], env: dict[str, str]
) -> tuple[int | None, tuple[str, ...] | None]:
    """(the first so many, these): --gpus of docker, --device nvidia.com/gpu=... of CDI, else
    NVIDIA_VISIBLE_DEVICES of the NVIDIA container toolkit. Both None: all, or nothing is said."""
    asked = _last(options, "--gpus")
    if asked is not None:
        return _asked(program, asked)
    devices = [value for name, value, _ in options if name == "--device"]
    named = [one.partition("=")[2] for one in devices if one.startswith("nvidia.com/gpu=")]
    if named:
        return (None, None) if "all" in named else (None, tuple(named))
    visible = env.get("NVIDIA_VISIBLE_DEVICES", "all")
    if visible == "all":
        return None, None
    if visible in ("", "none", "void"):
        return None, ()
    return None, tuple(visible.split(","))


def _asked(program: str, text: str) -> tuple[int | None, tuple[str, ...] | None]:
    """Of --gpus: all, a number, `device=0,1` (in quotes of its own, which docker takes off)."""
    if re.fullmatch(r"[0-9]{1,4}", text):
        return int(text), None
    fields = re.findall(r'"([^"]*)"|([^,"]+)', text)
    named: list[str] = []
    count: int | None = None
    for quoted, plain in fields:
        key, equals, value = (quoted or plain).partition("=")
        if key == "device" and equals:
            named += value.split(",")
        elif key == "count" and re.fullmatch(r"[0-9]{1,4}", value):
            count = int(value)
        elif not equals and key != "all":
            # docker takes 0,1 without its own quotes for a number and a key, and refuses it.
            said = Text(
                "{program} run --gpus {text}: not `all`, a number, or '\"device=0,1\"'",
                program=program,
                text=brief(text),
            )
            raise UsageError(said)
    return (None, tuple(named)) if named else (count, None)


def _without_secret(option: _Option) -> Sequence[str]:
    """Its words; of a variable whose value is a secret the name, for which docker takes the value
    of the shell."""
    name, value, words = option
    variable, equals, _ = value.partition("=")
    secret = name == "--env" and equals and is_secret_name(variable)
    return ("-e", variable) if secret else words


def entering(command: ServerCommand, container: Container) -> tuple[str, ...]:
    """The command that runs the doctor in the image, for the same server."""
    options, _ = _options(container.program, (*container.options, container.image))
    kept = [w for one in options if one[0] not in _NOT_TO_ENTER for w in _without_secret(one)]
    doctor = ("diagnose", "--", "vllm", "serve", *command.arguments)
    return (
        *(container.program, "run", "--rm", *kept, "--entrypoint", "vllm-doctor"),
        *(container.image, *doctor),
    )


def entering_line(command: ServerCommand, container: Container) -> str:
    """The same as a line for a shell, without its secrets."""
    return shlex.join(redacted_words(entering(command, container)))
