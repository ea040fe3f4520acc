"""The corpus of server logs: which there are, and what is expected of each.

`fixtures/logs/<id>/<name>.log`: the folder is the ailment that has to be the primary one, or of a
log that holds no cause the symptom; in `healthy` lie logs that must give nothing, in `unrecognised`
failures that no signature knows. A
`<name>.toml` beside a log may say more. Logs called `real-…` are of real runs (tests/real_stack).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

from doctor import toml
from doctor.codec import decode
from doctor.logs.explain import Explanation, explain_log
from doctor.logs.index import shipped_index
from doctor.signatures import shipped_catalogue

FOLDER = Path(__file__).parent.parent / "fixtures" / "logs"
HEALTHY = "healthy"
UNRECOGNISED = "unrecognised"


@dataclass(frozen=True)
class More:
    """`values`: what has to be taken out of the log. `says`: texts that the message or a command
    has to contain. `contributing`: ids that have to be found beside the primary one."""

    values: dict[str, str] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    contributing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Logged:
    """One log of the corpus."""

    path: Path

    @property
    def folder(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.path.stem}"

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()

    @property
    def primary(self) -> str | None:
        return self.folder if self.verdict == "explained" else None

    @property
    def verdict(self) -> str:
        named = {HEALTHY: "nothing-found", UNRECOGNISED: "unrecognised"}
        return named.get(self.folder, "symptom" if self.folder in symptoms() else "explained")

    @property
    def more(self) -> More:
        path = self.path.with_suffix(".toml")
        made: More = decode(More, toml.load_toml(path), path.name) if path.exists() else More()
        return made

    @property
    def is_real(self) -> bool:
        return self.path.name.startswith("real-")


def logs() -> list[Logged]:
    """All of them, by name."""
    return [Logged(path) for path in sorted(FOLDER.glob("*/*.log"))]


@functools.cache
def symptoms() -> frozenset[str]:
    """The ids that only follow from a cause."""
    rows = shipped_catalogue().signatures
    return frozenset(r.id for r in rows) - {r.id for r in rows if r.role != "symptom"}


def explained(data: bytes, block: int = 1 << 20) -> Explanation:
    """What the log comes to, read in blocks of so many bytes."""
    return explain_log((data[i : i + block] for i in range(0, len(data), block)), shipped_index())
