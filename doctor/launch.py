"""Starts the server that was judged: what it is started with, what was proven of it, its end.

There is no way past a finding but to accept it by its name: whoever starts a server with this
starts a judged one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from doctor import about
from doctor.codec import decode, encode, parse_json
from doctor.consumers import names
from doctor.diagnose import Question, Report, diagnose
from doctor.engine import Facts
from doctor.errors import DoctorError
from doctor.exits import HEALTHY, REFUSED, USAGE
from doctor.locate import locate
from doctor.model import Missing, NotApplicable, Rule, Severity, Text, Verdict, os_reason
from doctor.patience import AT_ONCE, Patience, busy_with
from doctor.probes.environment import HOME, HUB_SWITCH, LaunchEnv, own_file
from doctor.probes.host import HostCompilers
from doctor.probes.interpreter import Interpreter, distrusted
from doctor.probes.jit import Jit
from doctor.probes.libraries import Runtimes
from doctor.probes.repairs import LOCK
from doctor.probes.toolkit import HEADERS, Toolkit, Toolkits
from doctor.probes.wheels import FlashInfer, Packages, Torch
from doctor.profile import Profile
from doctor.redact import STARS, is_secret_name, redact, redacted_words
from doctor.target import Target, ending_with_us

class LaunchError(DoctorError):
    """The server is not started; one sentence."""

    def __init__(self, text: Text, exit_code: int = REFUSED) -> None:
        super().__init__(text, exit_code)


class WrongArguments(LaunchError):
    """What was asked for is no server's command line; one sentence."""

    def __init__(self, text: Text) -> None:
        super().__init__(text, USAGE)


# The command line.

# What the console script does; sys.path[0] would be the current folder.
_MODULE = (
    "import sys; sys.path[:1] = [p for p in sys.path[:1] if p]; "
    "from vllm.entrypoints.cli.main import main; sys.exit(main())"
)


def argv(
    target: Target,
    interpreter: Interpreter,
    profile: Profile,
    extra: Sequence[str] = (),
    options: Collection[str] | None = None,
) -> tuple[str, ...]:
    """The server's command: the target's own `vllm`, the profile's arguments, then `extra`.

    `options`: what the installed vLLM takes, None where that is not known. Raises LaunchError for
    an option that is none of them, WrongArguments where it stands in `extra`, and where `extra`
    says again what the profile says: the last one would win, and it was not judged.
    """
    if profile.model is None:
        raise WrongArguments(Text("a server needs a model: --set model=..."))
    if profile.model.startswith("-"):
        said = Text("model: {name} would be taken for an option of vLLM", name=profile.model)
        raise WrongArguments(said)
    _refuse_unjudged(extra)
    arguments: list[str] = []
    for _, option, value in names.passed(profile):
        # A value that begins with a dash would be taken for the next option.
        text = str(value)
        joined = [f"{option}={text}"] if text.startswith("-") else [option, text]
        arguments += [option] if value is True else joined
    if options is not None:
        _refuse_unknown(arguments, options, LaunchError)
        _refuse_unknown(extra, options, WrongArguments)
    return (*_program(target, interpreter), "serve", profile.model, *arguments, *extra)


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


def _refuse_unjudged(extra: Sequence[str]) -> None:
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


# What was proven.

_PROOFS = HOME / "proofs.json"
_KEPT = 32


@dataclass(frozen=True)
class Proofs:
    """What was proven by a test build and by imports: the key of each and when, in seconds
    since 1970."""

    schema_version: int = 1
    proven: dict[str, float] = field(default_factory=dict)


# What nvcc, c++, ld and the loader read of the environment.
_TOOLCHAIN_VARIABLES = (
    "CC",
    "CPATH",
    "CPLUS_INCLUDE_PATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "CXX",
    "FLASHINFER_EXTRA_CUDAFLAGS",
    "FLASHINFER_EXTRA_LDFLAGS",
    "LD_LIBRARY_PATH",
    "LIBRARY_PATH",
    "NVCC_APPEND_FLAGS",
    "NVCC_CCBIN",
    "NVCC_PREPEND_FLAGS",
)


# What besides decides what is imported, and from where.
_IMPORT_VARIABLES = (
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "PYTHONNOUSERSITE",
    "PYTHONPATH",
    "VLLM_USE_FLASHINFER_SAMPLER",
)


def proof_key(target: Target, facts: Facts) -> str | None:
    """The key of all that decides how the test build and the imports end, None where there is
    nothing to prove. Raises Missing or Crashed where it cannot be told."""
    profile, torch = facts.get(Profile), facts.get(Torch)
    if profile.device == "cpu" or torch.hip:
        return None
    parts = {"build": toolchain(target, facts), "imports": _imported(target, facts, profile)}
    text = json.dumps(encode(parts), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _imported(target: Target, facts: Facts, profile: Profile) -> dict[str, object]:
    env, packages = facts.get(LaunchEnv), facts.get(Packages)
    python = facts.get(Interpreter).python
    return {
        "doctor": about.VERSION,
        "python": _identity(target, python),
        # An installer writes the RECORD anew, also of the same version.
        "packages": {
            f"{one.folder}/{one.info}": _identity(target, one.folder / one.info / "RECORD")
            for one in packages.installed.values()
        },
        "profile": (profile.needs.architecture, profile.tensor_parallel_size, profile.archs),
        "variables": {name: env.get(name) for name in _IMPORT_VARIABLES},
    }


def toolchain(target: Target, facts: Facts) -> dict[str, object] | None:
    """All that decides how the test build ends, None where there is nothing to build.

    Raises Missing or Crashed where it cannot be told.
    """
    try:
        jit, found = facts.get(Jit), facts.get(Toolkits).found
        hosts, flashinfer = facts.get(HostCompilers), facts.get(FlashInfer)
    except NotApplicable:
        return None
    env, runtimes = facts.get(LaunchEnv), facts.get(Runtimes)
    paths = [] if found is None else _parts(found, jit.libraries)
    if runtimes.own:
        paths.append(runtimes.own.path)
    compilers = [s.compiler for s in (hosts.cxx, hosts.nvcc_host) if s.compiler]
    return {
        "doctor": about.VERSION,
        "python": facts.get(Interpreter).version,
        "archs": jit.archs,
        "flashinfer": (flashinfer.version, flashinfer.root),
        "compilers": compilers,
        "files": {p: _identity(target, p) for p in (*paths, *(c.path for c in compilers))},
        "toolkit": None if found is None else (found.root, found.parts),
        "variables": {name: env.get(name) for name in _TOOLCHAIN_VARIABLES},
    }


def _parts(kit: Toolkit, libraries: Sequence[str]) -> list[Path]:
    tops = list(dict.fromkeys((kit.root, kit.top or kit.root)))
    folders = list(dict.fromkeys(f for f in (kit.include, *(t / "include" for t in tops)) if f))
    return [
        kit.compiler,
        *(t / name for t in tops for name in ("bin/ptxas", "nvvm/bin/cicc")),
        *(f / header for f in folders for header in HEADERS),
        *(kit.root / f / f"lib{n}.so" for f in ("lib64", "lib64/stubs") for n in libraries),
    ]


def _identity(target: Target, path: Path) -> tuple[str, int, int] | None:
    stat = target.stat(path)
    return (str(target.realpath(path)), stat.size, stat.mtime) if stat else None


def is_proven(target: Target, prefix: Path, key: str) -> bool:
    """Whether an earlier start proved exactly this toolchain. A file that is not ours or cannot be
    read proves nothing."""
    return key in _proofs(target, prefix).proven


def _proofs(target: Target, prefix: Path) -> Proofs:
    try:
        data = own_file(target, prefix, _PROOFS)
        made: Proofs = decode(Proofs, parse_json(data)) if data is not None else Proofs()
    except (Missing, ValueError):
        return Proofs()
    return made


def remember(target: Target, prefix: Path, key: str) -> None:
    """Keeps that this toolchain is proven, for the next start. Silently does not where it may not
    write there, or where what root writes would be in the way of the prefix's owner later."""
    owner = target.stat(prefix)
    if owner is None or owner.uid != os.geteuid():
        return
    known = {**_proofs(target, prefix).proven, key: time.time()}
    newest = dict(sorted(known.items(), key=lambda item: item[1])[-_KEPT:])
    text = json.dumps(encode(Proofs(proven=newest)), indent=1) + "\n"
    with contextlib.suppress(OSError):
        _write(prefix, text)


def _write(prefix: Path, text: str) -> None:
    """Whole or not at all, and through no link below the prefix."""
    with contextlib.ExitStack() as stack:
        at = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, at)
        for name in _PROOFS.parent.parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=at)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            at = os.open(name, flags, dir_fd=at)
            stack.callback(os.close, at)
        fresh = f".{_PROOFS.name}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(fresh, flags, 0o644, dir_fd=at)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(fresh, _PROOFS.name, src_dir_fd=at, dst_dir_fd=at)
        except BaseException:
            os.unlink(fresh, dir_fd=at)
            raise


# The judgement.


@dataclass(frozen=True)
class JudgedStart:
    """What a start is decided by. `refused`: why there is none, in a few words; `unproven`: the
    test build has still to be made (only where it was not to be made now)."""

    report: Report
    refused: Text | None = None
    unproven: bool = False


def judge_start(
    facts: Facts,
    rules: Sequence[Rule],
    question: Question,
    *,
    prove: bool,
    tell: Callable[[Text], None],
) -> JudgedStart:
    """Judges as `diagnose --deep` does, but builds only what no earlier start has proven, and
    nothing where `prove` is False. Raises Missing or Crashed where the interpreter does not answer.
    """
    target = facts.target
    report = diagnose(facts, rules, question)
    if report.exit_code != HEALTHY:
        return JudgedStart(report, _why(report))
    if foreign := distrusted(target, report.interpreter, report.facts.get(LaunchEnv).vars):
        return JudgedStart(report, foreign)
    prefix = report.interpreter.prefix
    key = proof_key(target, report.facts)
    if key is None or is_proven(target, prefix, key):
        return JudgedStart(report)
    if not prove:
        return JudgedStart(report, unproven=True)
    tell(Text("verifying: a test build and vLLM's imports; once, for up to a minute"))
    report = diagnose(report.facts, rules, dataclasses.replace(question, deep=True))
    if report.exit_code != HEALTHY:
        return JudgedStart(report, _why(report))
    builds = toolchain(target, report.facts) is not None
    if builds and report.proof is None and _UNPROVEN not in question.accept:
        why = Text(
            "the toolchain could not be verified: {why}; --accept {id} starts without that",
            why=report.proof_missing,
            id=_UNPROVEN,
        )
        return JudgedStart(report, why)
    keep(target, report)
    return JudgedStart(report)


def keep(target: Target, report: Report) -> None:
    """Remembers what a deep report proved, by the facts that it was made with. What failed and was
    accepted, or could not be tried, proves nothing."""
    imports, facts = report.imports, report.facts
    if imports is None or imports.failure or any(row.always for row in imports.died):
        return
    built = report.proof.ok if report.proof else toolchain(target, facts) is None
    if built and (key := proof_key(target, facts)):
        remember(target, report.interpreter.prefix, key)


_UNPROVEN = "deep-check-failed"


def _why(report: Report) -> Text:
    errors = (o for o in report.deciding(Verdict.FOUND) if o.severity is Severity.ERROR)
    found = [o.rule.id for o in errors]
    unknown = [o.rule.id for o in report.deciding(Verdict.UNKNOWN, Verdict.CRASHED)]
    if found and unknown:
        return Text("{found}; inconclusive: {unknown}", found=found, unknown=unknown)
    if unknown:
        return Text("inconclusive: {unknown}", unknown=unknown)
    return Text("{found}", found=found)


@contextlib.contextmanager
def undisturbed(prefix: Path, patience: Patience = AT_ONCE) -> Iterator[None]:
    """Keeps other doctors from changing the environment meanwhile (the lock of
    doctor.repair.state, which is there as long as one works). Raises Busy where one does, unless
    there is patience to wait for it.
    """
    handle = patience.get(lambda: _shared(prefix))
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _shared(prefix: Path) -> int | None:
    """The lock, held with others; None where no doctor is at work here, or one of a user whose lock
    we may not read. Raises Busy where a doctor holds it alone."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(prefix / LOCK, flags)
    except OSError:
        return None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy_with(prefix, handle) from None
    except BaseException:
        os.close(handle)
        raise
    return handle


# The server's life.

_PASSED_ON = frozenset(
    (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
    )
)

Server = subprocess.Popen[bytes]
"""A started server, our child."""


def become(words: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Replaces this process by the server. Raises LaunchError where it cannot be started."""
    _join_threads()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execve(words[0], list(words), env)  # noqa: S606 - no shell is wanted
    except (OSError, ValueError) as error:
        raise LaunchError(_not_started(words, error)) from None


def start(words: Sequence[str], env: Mapping[str, str]) -> Server:
    """Starts the server as a child in our process group, with our terminal and descriptors.

    From here on its signals wait for `attend`. Raises LaunchError where it cannot be started.
    """
    # A thread that does not block them would take our signals; those of a diagnosis are ending.
    _join_threads()
    end_with_us = ending_with_us(signal.SIGTERM)

    def prepare() -> None:
        # Before an exec resets them, Python's handlers would swallow what the terminal sends. What
        # is ignored stays ignored: of `nohup`, the server has to know.
        for number in _PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        end_with_us()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, no end could be told
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    try:
        return subprocess.Popen(
            list(words),
            env=dict(env),
            close_fds=False,  # ours close by themselves; sockets of systemd are the server's
            preexec_fn=prepare,  # noqa: PLW1509 - no thread is left
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_PASSED_ON, signal.SIGCHLD})
        raise LaunchError(_not_started(words, error)) from None


def attend(server: Server) -> int:
    """Passes signals on until the server ends; returns its exit code, 128+N where the signal N
    ended it.

    What the terminal sends (Ctrl-C) goes to the whole process group, and so already to the server:
    of such signals, whose sender is the kernel, only a hangup is passed on where we lead the
    session, because it goes to the session's leader alone.
    """
    leader = os.getsid(0) == os.getpid()
    while True:
        came = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
        if came.si_signo == signal.SIGCHLD:
            code = _ended(server)
            if code is not None:
                return code
        elif came.si_code <= 0 or (came.si_signo == signal.SIGHUP and leader):
            os.kill(server.pid, came.si_signo)  # not reaped yet, so that the pid is still its own


def _ended(server: Server) -> int | None:
    """The server's exit code, None while it runs. Whatever else has become our child is reaped:
    as the first process of a container, we inherit every orphan."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return None
        if pid == server.pid:
            server.returncode = os.waitstatus_to_exitcode(status)
            return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _join_threads() -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()


def _not_started(words: Sequence[str], error: Exception) -> Text:
    why = os_reason(error) if isinstance(error, OSError) else str(error).lower()
    return Text("{program} cannot be started: {why}", program=words[0], why=why)
