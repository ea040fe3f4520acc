"""Who holds the GPUs, and whether the server would still get what it requests of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers.shares import layout_of
from doctor.fit.sizes import GIB
from doctor.fixes import Command, Doctor, EndProcess, SetVariable
from doctor.probes.driver import BUS_ORDER, DEVICE_ORDER, ComputeMode, Device, Gpus
from doctor.probes.environment import LaunchEnv
from doctor.probes.memory import MainMemory
from doctor.probes.processes import GpuHolders, Holder, LivingServer, ours_among
from doctor.probes.served import Profile

# What the server's own context, cuBLAS and NCCL took of the free memory before vLLM looked at it:
# on H100, 0.61 GiB with one rank, 1.54 with two.
_CONTEXT_GIB = 0.6
_NCCL_GIB = 1.5
# Of the memory that NVML counts CUDA shows less: 0.35 to 0.85 GiB on ten kinds of cards.
_RESERVED_GIB, _RESERVED_PART = 0.9, 0.03
_IDLE_GIB = 0.25  # what nobody in particular holds: a display, the driver
_HOLDERS_SHOWN = 12
_MPS = "nvidia-cuda-mps-server"


@dataclass(frozen=True)
class _Budget:
    """Of one GPU, in GiB: what vLLM would request of `total`, and what is `free`; `before`: of that
    what the server's own context may take first; `held`: what others hold."""

    device: Device
    total: float
    free: float
    wanted: float
    before: float
    holders: tuple[Holder, ...]

    @property
    def refused(self) -> bool:
        return self.free < self.wanted

    @property
    def close(self) -> bool:
        return self.free - self.before < self.wanted

    def without(self, holders: Iterable[Holder]) -> float:
        """What would be free if these ended; all of it, where nobody knows what they hold."""
        held = [one.held for one in holders if one in self.holders]
        return self.free + sum(self.total if h is None else h / GIB for h in held)


@rule("gpu-memory-below-utilization", Severity.ERROR, Stage.GPUS)
def gpu_memory_below_utilization(
    gpus: Gpus,
    profile: Profile,
    holders: GpuHolders,
    env: LaunchEnv,
    memory: MainMemory | None,
) -> Iterator[Finding]:
    """Other processes use GPU memory that the server requests.

    At start vLLM requires `gpu_memory_utilization` (0.92 by default; 0.9 before release 0.20) of
    the whole GPU to be free: `Free memory on device cuda:0 (7.1/79.18 GiB) on startup is less than
    desired GPU memory utilization (0.9, 71.26 GiB)`. It looks after its own context, cuBLAS and
    NCCL have taken 0.6 GiB (one GPU) to 1.5 GiB (several): an error if even without them too little
    is free, a warning if too little would be left after them. A GPU with unified memory (GB10) has
    what the machine has available.

    The report names who holds the memory: process, user, command, container, and since when. A
    running server of this same environment and port is no fault, and only mentioned. Processes of
    other containers have process ids that are not visible here; WSL2 lists none at all.

    A small gap is usual on a card that also drives a display, or right after an upgrade of torch: a
    lower utilization solves it. If much of the GPU is in use, a lower utilization only moves the
    failure to the KV cache.

    Manual: Stop what is no longer needed, use GPUs that are free (`CUDA_VISIBLE_DEVICES`), or, for
    a small gap, lower the utilization: `--set gpu_memory_utilization=0.85`; the report names a
    value if one makes sense.

    Sources: vllm/v1/worker/utils.py (request_memory; 0.22.0 and 0.33.0), vllm#20305, vllm#36433

    See also: orphan-engine-holds-gpu, no-kv-cache-memory, kv-cache-too-small,
    gpu-busy-exclusive-mode
    """
    layout = layout_of(profile)
    if layout.elsewhere:
        raise NotApplicable(layout.elsewhere)
    if len(gpus.visible) < layout.ranks:
        raise Missing(Text("too few GPUs are visible"), ("tp-exceeds-visible-gpus",))
    rows = [_budget(d, profile, holders, memory) for d in gpus.visible]
    used = [row for row in rows[: layout.ranks] if row is not None]
    short = [row for row in used if row.refused or (row.close and _is_used(row))]
    if not short:
        return
    ours = ours_among((h for row in short for h in row.holders), profile.port)
    server = next((one.server for one in ours), None)
    if server and all(row.without(ours) >= row.wanted for row in short):
        yield _in_use([row.device for row in short], server)
        return
    worst = min(short, key=lambda row: row.free - row.wanted)
    free = [r for r in rows if r is not None and not r.close and r.total >= worst.total - 1]
    ways = (*_lower(profile, used), *_elsewhere(free, layout.ranks), *_stopped(short))
    fixes = (*_orphans(short), *ways)
    # Of unlike GPUs, CUDA may give the server others than the first of the bus.
    others = len({d.name for d in gpus.visible}) > 1 and env.get(DEVICE_ORDER) != BUS_ORDER
    sure = worst.refused and not (others and len(gpus.visible) > layout.ranks)
    severity = Severity.ERROR if sure else Severity.WARNING
    yield Finding(_too_little(worst, profile), tuple(_who(short)), fixes, severity)


def _budget(
    device: Device, profile: Profile, holders: GpuHolders, memory: MainMemory | None
) -> _Budget | None:
    """None where its memory is not known, or is that of MIG instances."""
    if device.mig:
        return None
    total, free = device.total, device.free
    if total is None or free is None:
        if "GB10" not in device.name or memory is None:
            return None
        total, free, reserved = memory.total, memory.available, 0
    elif device.reserved:
        reserved = device.reserved
    else:
        reserved = int(min(_RESERVED_GIB * GIB, _RESERVED_PART * total))
    shown = total - reserved
    if shown <= 0:
        return None
    several = layout_of(profile).ranks > 1
    return _Budget(
        device,
        shown / GIB,
        free / GIB,
        math.ceil(shown * profile.gpu_memory_utilization) / GIB,
        _NCCL_GIB if several else _CONTEXT_GIB,
        holders.on(device.index),
    )


def _is_used(row: _Budget) -> bool:
    """Somebody holds more of it than a display does, or it is too small even when idle."""
    return row.total - row.free > _IDLE_GIB or row.free - _CONTEXT_GIB < row.wanted


def _in_use(devices: list[Device], server: LivingServer) -> Finding:
    return Finding(
        Text(
            "GPU {gpus}: in use by the running server, pid {pid}",
            gpus=[device.index for device in devices],
            pid=server.pid,
        ),
        (Text("it runs out of this environment, on the same port"),),
        severity=Severity.INFO,
    )


def _too_little(row: _Budget, profile: Profile) -> Text:
    gpu, part = row.device.index, f"{profile.gpu_memory_utilization:g}"
    free, total, wanted = (f"{gib:.1f}" for gib in (row.free, row.total, row.wanted))
    if row.refused:
        return Text(
            "{free} of the {total} GiB of GPU {gpu} are free; gpu_memory_utilization {part} "
            "requires {wanted} GiB",
            free=free,
            total=total,
            gpu=gpu,
            part=part,
            wanted=wanted,
        )
    return Text(
        "{free} of the {total} GiB of GPU {gpu} are free, of which the server's own context and "
        "NCCL take up to {before} GiB; gpu_memory_utilization {part} requires {wanted} GiB",
        free=free,
        total=total,
        gpu=gpu,
        before=f"{row.before:g}",
        part=part,
        wanted=wanted,
    )


def _who(rows: Iterable[_Budget]) -> Iterator[Text]:
    """Who holds the GPUs, who holds most first."""
    shown = 0
    for row in rows:
        if not row.holders:
            yield Text("GPU {gpu}: the driver lists no process on it", gpu=row.device.index)
        for one in row.holders[: _HOLDERS_SHOWN - shown]:
            shown += 1
            yield described(one)


def described(one: Holder) -> Text:
    """A process on a GPU, in one line."""
    held = (
        Text("an unknown amount")
        if one.held is None
        else Text("{n} GiB", n=f"{one.held / GIB:.1f}")
    )
    if not one.seen:
        return Text(
            "GPU {gpu}: pid {pid} holds {held}; it is not visible here (another container's, or "
            "the host's)",
            gpu=one.gpu,
            pid=one.pid,
            held=held,
        )
    return Text(
        "GPU {gpu}: {command} (pid {pid}, {user}{container}{since}) holds {held}",
        gpu=one.gpu,
        command=one.command,
        pid=one.pid,
        user=one.user or f"uid {one.uid}",
        container=f", container {one.container}" if one.container else "",
        since=f", since {_moment(one.began)}" if one.began else "",
        held=held,
    )


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"


def _lower(profile: Profile, used: list[_Budget]) -> Iterator[Fix]:
    """The highest utilization that the free memory allows, where the model can still fit: with 7 of
    140 GiB free it is no advice."""
    least = min((row.free - row.before) / row.total for row in used)
    part = math.floor(least * 100) / 100
    layout, weights = layout_of(profile), profile.needs.weights_gib
    needed = 0.8 * profile.gpu_memory_utilization * min(row.total for row in used)
    if weights is not None:
        needed = max(needed / 2, weights / (layout.tensor * layout.pipeline) + 1.0)
    if part >= profile.gpu_memory_utilization or part * min(r.total for r in used) < needed:
        return
    line = Doctor("diagnose", ("--set", f"gpu_memory_utilization={part:g}"))
    yield Fix(Text("request what is free"), (line,), Needs.PERSON)


def _elsewhere(free: list[_Budget], ranks: int) -> Iterator[Fix]:
    """Other GPUs that have the memory."""
    if len(free) >= ranks:
        names = ",".join(str(row.device.index) for row in free[:ranks])
        title = Text("use GPUs that are free")
        order = SetVariable(DEVICE_ORDER, BUS_ORDER)
        steps = (order, SetVariable("CUDA_VISIBLE_DEVICES", names))
        yield Fix(title, steps, Needs.PERSON)


def _orphans(rows: Iterable[_Budget]) -> Iterator[Fix]:
    """What holds the memory may be nobody's any more."""
    if any(one.orphan and one.own for row in rows for one in row.holders):
        yield Fix(Text("same fix as {id}", id="orphan-engine-holds-gpu"), (), Needs.PERSON)


def _stopped(rows: Iterable[_Budget]) -> Iterator[Fix]:
    """By who is there: an orphan has a finding, and a fix, of its own."""
    everybody = [one for row in rows for one in row.holders]
    holders = [one for one in everybody if not one.orphan]
    if everybody and not holders:
        return
    lines = []
    for one in holders:
        if one.container:
            lines.append(f"docker stop {one.container}")
        elif one.seen:
            lines.append(f"kill {one.server.pid if one.server else one.pid}")
    if not holders or not all(one.seen for one in holders):
        lines.append("nvidia-smi --query-compute-apps=pid,used_memory,name --format=csv")
    commands = tuple(Command(line) for line in dict.fromkeys(lines))
    yield Fix(Text("stop what is no longer needed"), commands[:_HOLDERS_SHOWN], Needs.PERSON)


def _listed(gpus: Gpus, holders: GpuHolders) -> set[int]:
    """The visible GPUs, by NVML's index, whose processes NVML lists. Raises NotApplicable where it
    lists nobody's."""
    listed = {device.index for device in gpus.visible}.difference(holders.untold)
    if gpus.visible and not listed:
        raise NotApplicable(Text("the driver does not list the processes on a GPU"))
    return listed


@rule("orphan-engine-holds-gpu", Severity.ERROR, Stage.GPUS)
def orphan_engine_holds_gpu(gpus: Gpus, holders: GpuHolders) -> Iterator[Finding]:
    """An engine whose server is gone still holds GPU memory.

    If `vllm serve` is killed with SIGKILL (`docker rm -f`, systemd, the OOM killer), its engine
    processes, `VLLM::EngineCore` and `VLLM::Worker`, live on: the port is free at once, the memory
    is not, and the next start stops with gpu-memory-below-utilization.

    Reported is only what is proven: a process of this same user that calls itself so, that the
    driver lists with memory, and whose parent is now neither a server nor any program of Python's
    (an engine's real parent is one of them). A second server that lives, and a script that uses
    `LLM()`, have the same process names and are left alone. That its parent is process 1 proves
    nothing: in a container the server itself can be that.

    Fix: With `--allow processes`: verifies again who it is (start time, user, proof), sends SIGTERM
    to it and all that it has started, and SIGKILL to what is still there after 15 seconds. It
    cannot be undone.

    Manual: End it with `kill`, and with `kill -9` only if it does not end. Stop servers with
    SIGTERM: then they end their engines themselves.

    Sources: vllm#55510, vllm#34643, vllm#1908, proc(5)

    See also: gpu-memory-below-utilization, unkillable-gpu-process
    """
    visible = _listed(gpus, holders)
    found: dict[int, list[Holder]] = {}
    for one in holders.holders:
        if one.orphan and one.held != 0 and one.own and one.gpu in visible:
            found.setdefault(one.orphan.pid, []).append(one)
    for rows in found.values():
        orphan = rows[0].orphan
        if orphan is None:
            continue
        step = EndProcess(orphan.pid, orphan.started, orphan.title)
        needs = Needs.ASK if orphan.reachable and not any(r.killed for r in rows) else Needs.PERSON
        yield Finding(
            Text(
                "{title} (pid {pid}) holds {held} GiB of GPU memory, and its server is gone",
                title=orphan.title,
                pid=orphan.pid,
                held=f"{sum(row.held or 0 for row in rows) / GIB:.1f}",
            ),
            tuple(described(row) for row in rows[:_HOLDERS_SHOWN]),
            (Fix(Text("end it (cannot be undone)"), (step,), needs),),
            subject=str(orphan.pid),
        )


@rule("unkillable-gpu-process", Severity.WARNING, Stage.GPUS)
def unkillable_gpu_process(gpus: Gpus, holders: GpuHolders) -> Iterator[Finding]:
    """A process on the GPU was killed and does not end.

    SIGKILL was sent to it (it is pending in /proc/PID/status), and it is still there, running or in
    uninterruptible sleep: it hangs inside the driver, for instance in `uvm_spin_loop`. Another
    `kill -9` changes nothing. A process that frees much memory can look like this for some seconds:
    diagnose again first.

    Manual: Reboot the machine, or have its administrator reset the GPU.

    Sources: proc(5), vllm#25127

    See also: orphan-engine-holds-gpu, gpu-hardware-error
    """
    done, listed = set(), _listed(gpus, holders)
    for one in holders.holders:
        if one.gpu in listed and one.killed and one.state in ("D", "R") and one.pid not in done:
            done.add(one.pid)
            yield Finding(
                Text(
                    "{command} (pid {pid}) was killed with SIGKILL and is still on GPU {gpu}",
                    command=one.command,
                    pid=one.pid,
                    gpu=one.gpu,
                ),
                (Text("state {state}, SIGKILL pending", state=one.state), described(one)),
                (
                    Fix(
                        Text("look where it hangs; if it stays, reboot the machine"),
                        (Command(f"cat /proc/{one.pid}/stack"), Command("reboot")),
                        Needs.PERSON,
                    ),
                ),
                subject=str(one.pid),
            )


@rule("gpu-busy-exclusive-mode", Severity.ERROR, Stage.GPUS)
def gpu_busy_exclusive_mode(gpus: Gpus, profile: Profile, holders: GpuHolders) -> Iterator[Finding]:
    """The GPU does not accept another process.

    In compute mode EXCLUSIVE_PROCESS a GPU serves one process at a time, and another process has
    it; in mode PROHIBITED it serves none: `CUDA-capable device(s) is/are busy or unavailable`. In
    mode DEFAULT the same message comes from a driver that needs a reset or a reboot.

    Exclusive mode is not a fault in itself: it works as long as each GPU has one process.

    Manual: Stop the process that has the GPU, or allow several, as root: `nvidia-smi -c DEFAULT`.

    Sources: nvml.h (nvmlComputeMode_t), pytorch#3871

    See also: gpu-memory-below-utilization
    """
    layout = layout_of(profile)
    if layout.elsewhere:
        raise NotApplicable(layout.elsewhere)
    used = gpus.visible[: layout.ranks]
    if used and all(device.mode is None for device in used):
        raise NotApplicable(Text("the driver does not say in which compute mode the GPUs are"))
    several = Command("nvidia-smi -c DEFAULT")
    for device in used:
        if device.mode == ComputeMode.PROHIBITED:
            yield Finding(
                Text("GPU {gpu} is in compute mode PROHIBITED", gpu=device.index),
                (),
                (Fix(Text("allow processes on it, as root"), (several,), Needs.PERSON),),
            )
        elif device.mode in (ComputeMode.EXCLUSIVE_PROCESS, ComputeMode.EXCLUSIVE_THREAD):
            there = tuple(h for h in holders.on(device.index) if h.computes)
            if any(h.command.startswith(_MPS) for h in there):
                continue  # it lets several processes share the one place
            ours = ours_among(there, profile.port)
            if ours and ours[0].server:
                yield _in_use([device], ours[0].server)
            elif there:
                yield Finding(
                    Text(
                        "GPU {gpu} is in compute mode EXCLUSIVE_PROCESS, and in use",
                        gpu=device.index,
                    ),
                    tuple(map(described, there[:_HOLDERS_SHOWN])),
                    (
                        Fix(
                            Text("allow several processes on it, as root"), (several,), Needs.PERSON
                        ),
                    ),
                )
