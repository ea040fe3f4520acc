"""Imports modules as a server would, in children of its Python, and says what they died of.

Twice this file: run by the doctor's own Python with `seconds python module...` it makes a temporary
folder for all that the modules write, starts the second, and starts another one after a crash; run
by the target's Python with `--in folder module...` it imports them one after the other. Standard
library only, Python 3.9 and newer.
"""

import sys

if __name__ == "__main__" and sys.path and sys.path[0] == __file__.rpartition("/")[0]:
    del sys.path[0]  # nothing of the doctor's stands in for a module of the server's

import faulthandler
import importlib
import json
import os
import re
import resource
import signal
import site
import subprocess
import tempfile
import time
import traceback

MARK = "VLLM_DOCTOR_MARK"
CRASHES = 3  # each costs the seconds that torch takes
# An import that a signal of these ends would end the server in the same way; any other signal was
# somebody's.
FAULTS = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGTRAP", "SIGSYS")
# As faulthandler prints the stack of a crash, the innermost first.
FRAME = r'most recent call first\):\n(?:  File "<.*\n)*  File "(.+?)", line (\d+)'
MOST = 100000  # characters of what a child printed that are looked at
FILE_MOST = 1 << 30  # bytes of a file that a child writes: one that never stops fills no disk
# Caches and settings of what a server imports, each in a folder of its own; HOME is not among them,
# since Python finds the user's site-packages there.
FOLDERS = (
    "CUDA_CACHE_PATH",
    "DG_JIT_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE",
    "HF_HOME",
    "HUMMING_CACHE_DIR",
    "MPLCONFIGDIR",
    "NUMBA_CACHE_DIR",
    "TILELANG_CACHE_DIR",
    "TILELANG_TMP_DIR",
    "TMPDIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_EXTENSIONS_DIR",
    "TORCH_HOME",
    "TRITON_CACHE_DIR",
    "TRITON_HOME",
    "VLLM_CACHE_ROOT",
    "VLLM_CONFIG_ROOT",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
)


def died(error: BaseException) -> "dict[str, object]":
    """What an exception says, and the innermost file that it came through."""
    try:
        message = str(error)
    except Exception:
        message = ""
    frames = traceback.extract_tb(error.__traceback__)
    real = [f for f in frames if not f.filename.startswith("<frozen ") and f.filename != __file__]
    where = (real[-1].filename, real[-1].lineno) if real else (None, None)
    if isinstance(error, SyntaxError) and error.filename:
        where = (error.filename, error.lineno)
    try:
        output = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        output = message
    return {
        "kind": type(error).__name__,
        "kinds": [c.__name__ for c in type(error).__mro__],
        "message": message[-2000:],
        "file": where[0],
        "line": where[1],
        "output": output[-8000:],
    }


def import_all(folder: str, modules: "list[str]") -> None:
    mark = os.environ.pop(MARK)
    os.environ["PYTHONUSERBASE"] = site.getuserbase() or ""
    os.environ["HOME"] = folder
    # What the modules print is not what is read.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    faulthandler.enable()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = FILE_MOST if most == resource.RLIM_INFINITY else min(FILE_MOST, most)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    for module in modules:
        print(mark + json.dumps({"begins": module}), file=answers, flush=True)
        began = time.perf_counter()
        error = None
        try:
            importlib.import_module(module)
        except BaseException as raised:
            error = died(raised)
        row = {"module": module, "seconds": time.perf_counter() - began, "error": error}
        print(mark + json.dumps(row), file=answers, flush=True)
    print(mark + json.dumps({"cuda": sees_gpu()}), file=answers, flush=True)
    # No thread and no exit handler of theirs has anything left to do.
    os._exit(0)


def sees_gpu() -> bool:
    """Whether torch can use a GPU here; asked last, since it initialises the driver."""
    try:
        return bool(sys.modules["torch"].cuda.is_available())
    except Exception:
        return False


def crashed(code: int, printed: str) -> "dict[str, object] | None":
    """What ended a child in the middle of an import; None where somebody ended it."""
    kind, message = "exit", "it ended the process with code %d" % code
    if code < 0:
        kind = signal.Signals(-code).name
        if kind not in FAULTS:
            return None
        message = "it crashed the process (%s)" % kind
    frame = re.search(FRAME, printed)
    where = (frame[1], int(frame[2])) if frame else (None, None)
    return {
        "kind": kind,
        "kinds": [],
        "message": message,
        "file": where[0],
        "line": where[1],
        "output": printed[-8000:],
    }


def child(
    folder: str, python: str, modules: "list[str]", seconds: float
) -> "tuple[int | None, list[dict[str, object]], str]":
    """(its exit code, None where it ran out of time; what it said; what else it printed)."""
    mark = "--vllm-doctor-" + os.urandom(8).hex()
    env = {**os.environ, MARK: mark}
    for name in FOLDERS:
        env[name] = os.path.join(folder, "cache", name)
        os.makedirs(env[name], exist_ok=True)
    out, err = (os.path.join(folder, name) for name in ("out", "err"))
    with open(out, "wb") as to, open(err, "wb") as errors:
        command = [python, os.path.abspath(__file__), "--in", folder, *modules]
        started = subprocess.Popen(command, cwd=folder, env=env, stdout=to, stderr=errors)
        try:
            code = started.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            started.kill()
            started.wait()
    with open(out, encoding="utf-8", errors="replace") as file:
        rows = [row[len(mark) :] for row in file.read(1 << 20).split("\n") if row.startswith(mark)]
    with open(err, "rb") as file:
        file.seek(max(0, os.path.getsize(err) - MOST))
        printed = file.read().decode("utf-8", "backslashreplace")
    return code, [json.loads(row) for row in rows], printed


def prove(folder: str, python: str, modules: "list[str]", seconds: float) -> "dict[str, object]":
    """{"rows": what each import came to, "cuda": torch can use a GPU, "failure": what kept the rest
    from being tried}."""
    ends = time.monotonic() + seconds
    rows = []
    failure, cuda = None, False
    left = modules
    for _ in range(CRASHES):
        code, said, printed = child(folder, python, left, max(1.0, ends - time.monotonic()))
        done = [row for row in said if "module" in row]
        rows += done
        cuda = any(row.get("cuda") for row in said)
        left = left[len(done) :]
        if not left:
            break
        if len(said) == len(done):  # it began with none of them
            line = (printed.strip() or "exit code %s" % code).rpartition("\n")[2]
            failure = "%s does not start: %s" % (python, line)
            break
        error = None if code is None else crashed(code, printed)
        if error is None:
            why = "did not end within %g s" % seconds if code is None else "was killed"
            failure = "importing %s %s" % (left[0], why)
            break
        rows.append({"module": left[0], "seconds": 0.0, "error": error})
        left = left[1:]
    return {"rows": rows, "cuda": cuda, "failure": failure}


def main(arguments: "list[str]") -> None:
    if arguments[0] == "--in":
        import_all(arguments[1], arguments[2:])
    seconds, python = float(arguments[0]), arguments[1]
    try:
        with tempfile.TemporaryDirectory(
            prefix="vllm-doctor-", ignore_cleanup_errors=True
        ) as folder:
            answer = prove(folder, python, arguments[2:], seconds)
    except OSError as error:
        answer = {
            "rows": [],
            "cuda": False,
            "failure": "no temporary folder for the imports: %s" % error,
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    # So that the folder is removed.
    if sys.argv[1] != "--in":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main(sys.argv[1:])
