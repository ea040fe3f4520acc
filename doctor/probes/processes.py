"""Who holds the GPUs: the processes that NVML lists, as /proc shows them.

NVML counts processes as the host does. In a container a number of its may be another process's, or
none's: there, one is taken for the same only where it has the driver's library loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, printable
from doctor.numbers import YEAR_10000, number_of
from doctor.probes.driver import InstalledDriver, ProcessOnGpu
from doctor.probes.interpreter import Interpreter
from doctor.redact import redact, redacted_words
from doctor.target import Target

_PROC = Path("/proc")
_HOSTS_NAMES = "pid:[4026531836]"  # linux/proc_ns.h: PROC_PID_INIT_INO
_TICKS = 100  # of a second, in which /proc counts (USER_HZ)
_PORT = 8000  # of `vllm serve` that names none
_GENERATIONS = 32  # processes that started each other
_NAME_MOST = 60
_SIGKILL = 1 << 8  # the bit of signal 9 in a mask of /proc/PID/status

# The command up to the first option, whose value may be secret; python's own are passed over.
_WORDS = r"\A(?:(?:-m|-[uISBEsOPq]+|[^\0-][^\0]*)(?:\0+|\Z)){1,6}"
_PYTHONS_OWN = re.compile(r"-[uISBEsOPq]+")
_PYTHON = re.compile(r"(?:python|pypy)[\d.]*t?")
_SERVER = re.compile(r"(?:.*/)?vllm|vllm\.entrypoints\..+")
_SERVERS_TITLE = re.compile(r"VLLM::(?:APIServer|DPSupervisor|Router)\w*")
_ENGINE = re.compile(r"VLLM::(?:EngineCore|Worker|DPCoordinator)\w*")
_CONTAINER = r"/(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?(?=[/\n]|\Z)"


@dataclass(frozen=True)
class EngineRoot:
    """An engine whose server is gone, with all that it has started. `started`: in ticks since the
    boot, which with `pid` names a process for good; `reachable`: it is in our own namespace of
    processes, so that we can end it."""

    pid: int
    started: int
    title: str
    reachable: bool = True


@dataclass(frozen=True)
class LivingServer:
    """A server of vLLM that lives. `here`: it runs out of the environment under judgement; `port`:
    the one that its command names, 8000 where it names none, None where a file may."""

    pid: int
    here: bool = False
    port: int | None = None


@dataclass(frozen=True)
class Holder:
    """A process that has something on a GPU. `gpu`: NVML's index; `held`: bytes, None where NVML
    does not say; `seen`: /proc shows it, and only then is more known of it.

    `computes`: it does not only draw; `own`: of the same user as the doctor; `command`: up to its
    first option, without secrets; `container`: the first 12 letters of its id; `began`: seconds
    since 1970; `killed`: SIGKILL was sent and it is still there; `state`: as in proc(5); `server`:
    what it works for, if that lives; `orphan`: proven to have lost its server.
    """

    gpu: int
    pid: int
    held: int | None = None
    computes: bool = True
    seen: bool = False
    command: str = ""
    uid: int | None = None
    user: str | None = None
    own: bool = False
    container: str | None = None
    began: float | None = None
    state: str = ""
    killed: bool = False
    server: LivingServer | None = None
    orphan: EngineRoot | None = None


@dataclass(frozen=True)
class GpuHolders(Fact):
    """Who is on the GPUs. `untold`: the GPUs, by NVML's index, of which it lists nobody's."""

    since: ClassVar[str] = "0.7.0"
    holders: tuple[Holder, ...] = ()
    untold: tuple[int, ...] = ()

    def on(self, gpu: int) -> tuple[Holder, ...]:
        """Those of one GPU, who holds most first."""
        return tuple(sorted((h for h in self.holders if h.gpu == gpu), key=_largest))


def _largest(holder: Holder) -> tuple[int, int]:
    return (-(holder.held or 0), holder.pid)


@probe
def gpu_holders(target: Target, driver: InstalledDriver, interpreter: Interpreter) -> GpuHolders:
    """Each process is looked at once, whatever it holds; also where this server needs no GPU, since
    a snapshot may be judged for another one."""
    look = ProcessTable(target, interpreter.prefix)
    devices = driver.nvml.devices
    return GpuHolders(
        tuple(look.holder(d.index, row) for d in devices for row in d.processes or ()),
        tuple(d.index for d in devices if d.processes is None),
    )


@dataclass(frozen=True)
class Seen:
    """A process as /proc shows it. `words`: its command up to the first option."""

    pid: int
    parent: int
    state: str
    started: int
    words: tuple[str, ...]
    name: str
    uid: int | None
    killed: bool

    @property
    def title(self) -> str:
        """What it calls itself."""
        return self.words[0] if self.words else self.name

    @property
    def is_engine(self) -> bool:
        return bool(_ENGINE.fullmatch(self.title))

    @property
    def is_server(self) -> bool:
        """It runs a server itself: what only waits for one (timeout, dumb-init) has its words."""
        program = Path(self.title).name
        if program != "vllm" and not _PYTHON.fullmatch(program):
            return bool(_SERVERS_TITLE.fullmatch(self.title))
        return any(_SERVER.fullmatch(word) for word in self.words[:4])


class ProcessTable:
    """/proc, asked through `target`. `prefix`: of the environment under judgement, if any is."""

    def __init__(self, target: Target, prefix: Path | None = None) -> None:
        self._target = target
        # Read in any case, so that a snapshot of a doctor that did not ask is known by it.
        booted = target.search(_PROC / "stat", r"(?m)^btime ([0-9]+)$")
        self._booted = number_of(booted[0]) if booted else None
        self._names = target.realpath(_PROC / "self/ns/pid").name
        owner = target.stat(_PROC / "self")
        self._uid = owner.uid if owner else None
        self._container = self._container_of("self")
        self._prefixes = {prefix, target.realpath(prefix)} if prefix else set()
        self._known: dict[int, Seen | None] = {}

    def holder(self, gpu: int, row: ProcessOnGpu) -> Holder:
        one = self.seen(row.pid)
        if one is None or not self._is_the_same(one):
            return Holder(gpu, row.pid, row.held, row.computes)
        line = self.line(one)
        container = self._container_of(str(one.pid))
        return Holder(
            gpu,
            row.pid,
            row.held,
            row.computes,
            seen=True,
            command=_shown(one),
            uid=one.uid,
            user=self._user(one.uid),
            own=one.uid is not None and one.uid == self._uid,
            container=container if container != self._container else None,
            began=self._moment(one.started),
            state=one.state,
            killed=one.killed,
            server=self._server(line),
            orphan=self.orphan(line),
        )

    def seen(self, pid: int) -> Seen | None:
        """What /proc shows of it, None where it shows nothing."""
        if pid not in self._known:
            self._known[pid] = self._look(pid)
        return self._known[pid]

    def line(self, one: Seen) -> tuple[Seen, ...]:
        """The process, who started it, and so on, as far as /proc shows them."""
        made: list[Seen] = [one]
        while len(made) < _GENERATIONS and made[-1].parent > 0:
            parent = self.seen(made[-1].parent)
            if parent is None or parent in made:
                break
            made.append(parent)
        return tuple(made)

    def orphan(self, line: tuple[Seen, ...]) -> EngineRoot | None:
        """The engine that has lost its server, of the process that `line` begins with; None where
        that is not proven. Engines are started by a program of Python's, which for Linux is their
        parent as long as it lives; then they are given to another process, init or what started
        the server. So an engine is an orphan if its parent can be told to be no program of
        Python's, and no one above it is a server."""
        engines = [one for one in line if one.is_engine]
        above = line[len(engines) :]
        if not engines or list(line[: len(engines)]) != engines or not above:
            return None
        root = engines[-1]
        if root.uid is None or root.uid != self._uid or any(one.is_server for one in above):
            return None
        if not self._is_no_python(above[0]):
            return None
        names = self._target.realpath(_PROC / str(root.pid) / "ns/pid").name
        return EngineRoot(root.pid, root.started, root.title, names == self._names)

    def _look(self, pid: int) -> Seen | None:
        folder = _PROC / str(pid)
        text = (self._target.read(folder / "stat", 4096) or b"").decode("utf-8", "replace")
        before, _, behind = text.rpartition(") ")
        fields = behind.split()
        parent, started = (number_of(fields[i]) if len(fields) > 19 else None for i in (1, 19))
        if parent is None or started is None:
            return None
        words = self._target.search(folder / "cmdline", _WORDS)
        rows = self._target.search(folder / "status", r"(?m)^(?:Uid|SigPnd|ShdPnd):.*$") or ()
        status = {key: value.split() for key, _, value in (row.partition(":") for row in rows)}
        pending = (status.get(name) for name in ("SigPnd", "ShdPnd"))
        return Seen(
            pid,
            parent,
            fields[0],
            started,
            tuple(word for word in words[0].split("\0") if word) if words else (),
            before.partition("(")[2],
            number_of(status["Uid"][0]) if status.get("Uid") else None,
            any(_mask(value[0]) & _SIGKILL for value in pending if value),
        )

    def _is_the_same(self, one: Seen) -> bool:
        """The number is of the process that NVML means."""
        return self._names == _HOSTS_NAMES or self._loaded(one.pid, r"libcuda\.so|/dev/nvidia")

    def _loaded(self, pid: int, what: str) -> bool:
        return bool(self._target.search(_PROC / str(pid) / "maps", rf"(?s)\A.*?({what})"))

    def _is_no_python(self, one: Seen) -> bool:
        """It is surely no program of Python's, nor a server by another name."""
        if one.is_engine or one.is_server or one.title.startswith(("VLLM::", "ray::")):
            return False
        link = _PROC / str(one.pid) / "exe"
        program = self._target.realpath(link)
        names = [one.name, Path(one.title).name]
        if program != link:
            names.insert(0, program.name.removesuffix(" (deleted)"))
        elif one.uid == self._uid:
            return False  # our own user's, and we may not look: nothing is known of it
        if any(map(_PYTHON.fullmatch, names)) or any("vllm" in name.lower() for name in names):
            return False
        return not self._loaded(one.pid, r"/(?:lib)?python[23][\w.-]*[/ \n]")

    def _server(self, line: tuple[Seen, ...]) -> LivingServer | None:
        """The outermost server in the line."""
        found = [one for one in line if one.is_server]
        if not found:
            return None
        one = found[-1]
        given = self._target.search(
            _PROC / str(one.pid) / "cmdline", r"\0--(?:port(?:=|\0)[0-9]{1,5}|config)(?=[\0=]|\Z)"
        )
        ports = [re.sub(r"\D", "", row) for row in given or () if "port" in row]
        port = number_of(ports[-1]) if ports else None if given else _PORT
        return LivingServer(one.pid, any(map(self._is_here, line)), port)

    def _is_here(self, one: Seen) -> bool:
        """It runs out of the environment under judgement."""
        folders = {Path(word).parent for word in one.words[:2] if word.startswith("/")}
        bins = {prefix / "bin" for prefix in self._prefixes}
        if folders & bins or {self._target.realpath(f) for f in folders} & bins:
            return True
        below = "|".join(re.escape(str(prefix)) for prefix in sorted(self._prefixes))
        return self._loaded(one.pid, rf" (?:{below})/lib/python[\w.]+/site-packages/")

    def _moment(self, ticks: int) -> float | None:
        """In seconds since 1970, where that is a time."""
        made = None if self._booted is None else self._booted + ticks / _TICKS
        return made if made is None or made < YEAR_10000 else None

    def _container_of(self, pid: str) -> str | None:
        found = self._target.search(_PROC / pid / "cgroup", _CONTAINER)
        return found[-1][:12] if found else None

    def _user(self, uid: int | None) -> str | None:
        """The name of a local user."""
        if uid is None:
            return None
        row = rf"(?m)^([^:\n]*):[^:\n]*:{uid}:"
        found = self._target.search(Path("/etc/passwd"), row)
        return printable(found[0])[:_NAME_MOST] if found else None


def _mask(text: str) -> int:
    return int(text, 16) if re.fullmatch(r"[0-9a-fA-F]{1,32}", text) else 0


def _shown(one: Seen) -> str:
    """Its command for a person: programs without their folders, no secret, one line."""
    words = [w for w in one.words if not _PYTHONS_OWN.fullmatch(w)] or [f"[{one.name}]"]
    shown = [Path(word).name if word.startswith("/") else word for word in words]
    return printable(redact(" ".join(redacted_words(shown))))[:_NAME_MOST]


def ours_among(holders: Iterable[Holder], port: int) -> tuple[Holder, ...]:
    """Those that work for a living server of this environment and port."""
    return tuple(
        one for one in holders if one.server and one.server.here and one.server.port in (None, port)
    )
