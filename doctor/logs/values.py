"""Values that follow from those that a log gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

_RANK_NEEDS = 0.6
"""GiB that CUDA's context and NCCL's buffers take of a GPU before vLLM measures it (estimate)."""


def derive(id: str, values: Mapping[str, str]) -> dict[str, str]:
    """The values of an ailment and what follows from them; what cannot be computed is left out."""
    made = dict(values)
    for name, (ids, compute) in _DERIVED.items():
        if id in ids:
            try:
                if (value := compute(values)) is not None:
                    made[name] = value
            except (KeyError, ValueError, ZeroDivisionError, OverflowError):
                continue
    return made


def _utilization_fits(values: Mapping[str, str]) -> str | None:
    """The largest share of the GPU's memory that is free, to two places, rounded down; none where
    so little is free that a lower share is no answer."""
    share = (float(values["free"]) - _RANK_NEEDS) / float(values["total"])
    return f"{math.floor(share * 100) / 100:.2f}" if share >= 0.3 else None


def _tensor_parallel_fits(values: Mapping[str, str]) -> str | None:
    """The largest power of two, which divides most that a model has to divide, that divides the
    heads and is no more than asked for, or than there are GPUs."""
    most = int(values.get("gpus") or values["tp"])
    heads = int(values.get("heads", "0"))
    fitting = (1 << n for n in range(most.bit_length()) if heads % (1 << n) == 0)
    return str(max(fitting)) if most > 0 else None


def _ended(values: Mapping[str, str]) -> str | None:
    """What an exit status says: ": " and its meaning; "" where it says no more than itself."""
    number = int(values["status"].partition("/")[0])
    by_systemd = values.get("how") in ("killed", "dumped")
    signal = number if by_systemd else -number if number < 0 else number - 128
    if meaning := _SIGNALS.get(signal):
        return f": {meaning}"
    return {126: ": it cannot be executed", 127: ": there is no such command"}.get(number, "")


_SIGNALS = {
    4: "SIGILL, the processor lacks an instruction that it was built with",
    6: "SIGABRT, it gave up by itself: what it said stands above",
    7: "SIGBUS, a file that it had mapped went away, or /dev/shm is full",
    8: "SIGFPE, a division by zero in native code",
    9: "SIGKILL, as a rule by the kernel for want of memory",
    11: "SIGSEGV, a crash in native code",
    15: "SIGTERM, it was told to end",
}
"""Signals by number (signal(7), x86 and ARM)."""
_Compute = Callable[[Mapping[str, str]], "str | None"]
_DERIVED: dict[str, tuple[tuple[str, ...], _Compute]] = {
    "ended": (("engine-core-failed", "worker-failed", "process-exited"), _ended),
    "utilization_fits": (("gpu-memory-below-utilization",), _utilization_fits),
    "tensor_parallel_fits": (
        ("tp-not-dividing-heads", "tp-exceeds-visible-gpus"),
        _tensor_parallel_fits,
    ),
}
