"""Which machine a report is about, and of when: what a reader who was not there has to know."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from doctor.frozen import dataclass
from doctor.model import Fact, Missing

if TYPE_CHECKING:
    from doctor.diagnose import Report

F = TypeVar("F", bound=Fact)


@dataclass(frozen=True)
class Machine:
    """`time`: ISO 8601, UTC. `gpus`: the names of those that CUDA would show the server. None where
    it is not known; of a snapshot all is of the machine and the time that were recorded."""

    host: str | None = None
    time: str | None = None
    vllm: str | None = None
    torch: str | None = None
    driver: str | None = None
    gpus: tuple[str, ...] | None = None


def here_and_now() -> Machine:
    """This machine, of which nothing was asked."""
    return Machine(os.uname().nodename, iso(time.time()))


def machine(report: Report) -> Machine:
    """The machine that was judged."""
    from doctor.probes.driver import Driver, Gpus
    from doctor.probes.wheels import Torch, Vllm

    vllm, torch = fact(report, Vllm), fact(report, Torch)
    driver, gpus = fact(report, Driver), fact(report, Gpus)
    recorded = report.recorded
    if recorded is None:
        whose = here_and_now()
    else:
        whose = Machine(recorded.host, None if recorded.at is None else iso(recorded.at))
    return Machine(
        host=whose.host,
        time=whose.time,
        vllm=str(vllm.version) if vllm else None,
        torch=str(torch.version) if torch else None,
        driver=driver.nvml.driver if driver else None,
        gpus=tuple(device.name for device in gpus.visible) if gpus else None,
    )


def prefix_of(report: Report) -> Path:
    """Of the environment that was judged; the name of an image that was not entered."""
    return report.asked.prefix if report.asked else report.where.python


def fact(report: Report, kind: type[F]) -> F | None:
    """What the diagnosis found out of this kind; None where it could not."""
    from doctor.engine import Crashed  # of a log, nothing of it is wanted

    try:
        return report.facts.get(kind)
    except (Missing, Crashed):
        return None


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
