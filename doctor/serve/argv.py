"""The server's command line and environment, as it is started and as it is shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from doctor.arguments import profile_words
from doctor.command import MODULE, ServerCommand
from doctor.consumers import names
from doctor.consumers.server_options import OptionTable
from doctor.locate import locate
from doctor.model import Text
from doctor.probes.environment import HUB_SWITCH
from doctor.probes.interpreter import Interpreter
from doctor.profile import Profile
from doctor.redact import STARS, is_secret_name, redact, redacted_words
from doctor.serve.errors import LaunchError, WrongArguments
from doctor.target import Target

# What the console script does; sys.path[0] would be the current folder.
_MODULE = (
    "import sys; sys.path[:1] = [p for p in sys.path[:1] if p]; "
    "from vllm.entrypoints.cli.main import main; sys.exit(main())"
)

# What `python -m` does.
_API_SERVER = (
    "import runpy, sys; sys.path[:1] = [p for p in sys.path[:1] if p]; "
    f"runpy.run_module({MODULE!r}, run_name='__main__', alter_sys=True)"
)


def argv(
    target: Target,
    interpreter: Interpreter,
    profile: Profile,
    extra: Sequence[str] = (),
    options: Collection[str] | None = None,
    table: OptionTable | None = None,
) -> tuple[str, ...]:
    """The server's command: the target's own `vllm`, the profile's arguments, then `extra`.

    `options`: what the installed vLLM takes, `table`: and how, None where that is not known. Raises
    LaunchError for an option that is none of them, WrongArguments where it stands in `extra`, and
    where `extra` says again what the profile says: the last one would win, and it was not judged.
    """
    if profile.model is None:
        raise WrongArguments(Text("a server needs a model: --set model=..."))
    if profile.model.startswith("-"):
        said = Text("model: {name} would be taken for an option of vLLM", name=profile.model)
        raise WrongArguments(said)
    refuse_unjudged(extra)
    arguments = profile_words(profile, table)[1:]
    if options is not None:
        _refuse_unknown(arguments, options, LaunchError)
        _refuse_unknown(extra, options, WrongArguments)
    return (*_program(target, interpreter), "serve", profile.model, *arguments, *extra)


def must_be_startable(command: ServerCommand) -> None:
    """Raises WrongArguments for a server that is started elsewhere, and says how."""
    if container := command.container:
        line = shown_command(command.words)
        said = Text("{program} starts this server: {line}", program=container.program, line=line)
        raise WrongArguments(said)
    if command.found:
        raise WrongArguments(
            Text(
                "{what}: it is judged by diagnose, and started by what started it; to launch the "
                "same command, give it behind --",
                what=command.found,
            )
        )
    if left := _left_out(command):
        raise WrongArguments(
            Text(
                "{program}: the server would be started without it; put it in front of the doctor "
                "itself: {program} ... vllm-doctor launch -- vllm serve MODEL",
                program=left,
            )
        )


def _left_out(command: ServerCommand) -> str | None:
    """A program in front of the server, such as numactl, that changes how it runs."""
    from doctor.command.words import IN_FRONT

    outer = command.words[:-1] if command.inner else ()
    whole = (*outer, *(command.inner or command.words))
    front = (Path(word).name for word in whole[: len(whole) - len(command.arguments)])
    return next((n for n in front if n in IN_FRONT and n not in ("exec", "time")), None)


def argv_of(target: Target, interpreter: Interpreter, command: ServerCommand) -> tuple[str, ...]:
    """The same for a whole command: exactly its arguments."""
    if command.by == "serve":
        return (*_program(target, interpreter), "serve", *command.arguments)
    return (str(interpreter.python), "-c", _API_SERVER, *command.arguments)


def _refuse_unknown(
    words: Sequence[str], options: Collection[str], error: type[LaunchError]
) -> None:
    """Raises `error` for the first option that vLLM would end for."""
    for word in words:
        if word == "--":  # what follows is no option
            return
        if not names.is_option(word):
            continue
        meant, name = names.meant(word, options), word.partition("=")[0]
        if len(meant) > 1:
            raise error(Text("{name} is ambiguous: it could be {meant}", name=name, meant=meant))
        if not meant:
            near, row = names.nearest(name, options), names.gone(name)
            raise error(_no_option(name, row.last if row else None, near))


def _no_option(name: str, last: str | None, near: str | None) -> Text:
    if last and near:
        return Text(
            "the installed vLLM has no option {name}; vLLM {last} was the last that had it; "
            "did you mean {near}?",
            name=name,
            last=last,
            near=near,
        )
    if last:
        return Text(
            "the installed vLLM has no option {name}; vLLM {last} was the last that had it",
            name=name,
            last=last,
        )
    if near:
        return Text(
            "the installed vLLM has no option {name}; did you mean {near}?", name=name, near=near
        )
    return Text("the installed vLLM has no option {name}", name=name)


def refuse_unjudged(extra: Sequence[str]) -> None:
    """Raises WrongArguments for further words that are no options, or say again what a profile
    says: the last one would win, and it was not judged."""
    if extra and not extra[0].startswith("-"):
        raise WrongArguments(
            Text(
                "{word}: only options of `vllm serve` follow --; choose the model by "
                "--set model=...",
                word=extra[0],
            )
        )
    settings = {option: name for name, option in names.OPTIONS.items()}
    settings["--model"] = "model"
    settings["--device-memory-utilization"] = "gpu_memory_utilization"  # from vLLM 0.33 on
    for word in extra:
        option = word.partition("=")[0].replace("_", "-")
        if re.match(r"-tp\b|-tp\d", option):
            option = "--tensor-parallel-size"
        # vLLM's parser takes any beginning that is clear, --no- before a switch, and from 0.33 on
        # --disable- for --enable-.
        asked = re.sub(r"^--(?:no-disable-|disable-|no-enable-)", "--enable-", option)
        asked = asked.replace("--no-", "--", 1)
        known = [name for full, name in settings.items() if full.startswith(asked)]
        if asked.startswith("--") and len(asked) > 3 and known:
            raise WrongArguments(
                Text(
                    "{word}: use --set {setting}=... instead, so that it is checked too",
                    word=word,
                    setting=known[0],
                )
            )


def _program(target: Target, interpreter: Interpreter) -> tuple[str, ...]:
    """The console script `vllm` beside the interpreter or below its prefix, where it starts this
    interpreter; else the same module without it. (An environment that was moved has scripts which
    start another one, or none.)"""
    for folder in dict.fromkeys((interpreter.python.parent, interpreter.prefix / "bin")):
        script = folder / "vllm"
        if target.executable(script) and _starts(target, script, interpreter):
            if why := target.distrust(script):
                raise LaunchError(why)
            return (str(script),)
    return (str(interpreter.python), "-c", _MODULE)


def _starts(target: Target, script: Path, interpreter: Interpreter) -> bool:
    first, second, *_ = [*(target.read(script, 4096) or b"").split(b"\n"), b"", b""]
    if b"python" not in first and not second.startswith(b"'''exec'"):
        return True  # a program or a wrapper of somebody's own, put there on purpose
    behind = locate(None, {"PATH": str(script.parent)}).python
    return target.realpath(behind.parent) == target.realpath(interpreter.python.parent)


def shown_command(words: Sequence[str]) -> str:
    """A command line for a person to read or paste, quoted, without its secrets."""
    return shlex.join(redacted_words(words))


def difference(shell: Mapping[str, str], server: Mapping[str, str]) -> Iterator[str]:
    """What the server's environment has otherwise than the shell's, as a shell's commands; the
    values of secrets are hidden."""
    for name in sorted({*shell, *server}):
        if name not in server:
            yield f"unset {name}"
        elif shell.get(name) != server[name]:
            secret = is_secret_name(name) and name != HUB_SWITCH
            value = STARS if secret else redact(server[name])
            yield f"export {name}={shlex.quote(value)}"
