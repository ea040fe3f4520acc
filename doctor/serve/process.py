"""The server's life: it is started, or becomes this process; signals, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import NoReturn

from doctor.model import Text, os_reason
from doctor.serve.errors import LaunchError
from doctor.target import ending_with_us

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
