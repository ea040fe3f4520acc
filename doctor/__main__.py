"""The command's first lines. Before anything else is imported, Ctrl-C is answered, and what the
server would import is not what the doctor imports."""

import os
import sys


def main() -> None:
    """The console script, and `python -m doctor`."""
    try:
        _own_folders_first()
        _end_at_once_when_interrupted()
    except KeyboardInterrupt:
        _interrupted()
    try:
        from doctor import cli
    except Exception as error:
        why = "".join(c if c.isprintable() else "?" for c in f"{type(error).__name__}: {error}")
        _say(f"cannot be started: {why}")
        raise SystemExit(3) from None
    cli.main()


def _end_at_once_when_interrupted() -> None:
    """Until doctor.cli takes over: there is nothing yet to bring to an end, and an exception out of
    the middle of an import would be a traceback."""
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `vllm-doctor diagnose | head` ends quietly


def _interrupted(*_: object) -> None:
    _say("interrupted; nothing was changed")
    os._exit(130)


def _say(message: str) -> None:
    try:
        os.write(2, f"vllm-doctor: {message}\n".encode(errors="backslashreplace"))
    except OSError:
        pass  # nobody listens


def _own_folders_first() -> None:
    """The server's PYTHONPATH is judged, not obeyed, and the current directory is nobody's library:
    a stale `packaging` or `click.py` there must not become the doctor's own. These folders go last;
    one of them may be where the doctor itself lies."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        here = ""
    given = {os.path.join(here, p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    given.add(os.path.join(here, ""))
    given = {os.path.normpath(p) for p in given}
    sys.path.sort(key=lambda p: os.path.normpath(os.path.join(here, p)) in given)


if __name__ == "__main__":
    main()
