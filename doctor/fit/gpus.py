"""The GPUs that are known by name, for a machine that is not here."""

from __future__ import annotations

import re

from doctor.errors import UsageError
from doctor.fit.sizes import GIB
from doctor.fit.verdict import GpuMemory
from doctor.frozen import dataclass
from doctor.model import Text, shortened
from doctor.shipped import rules_folder
from doctor.toml import load_toml

_TABLE = "tables/gpus.toml"
_SHOWN = 80  # characters of a name that nobody knows


@dataclass(frozen=True)
class KnownGpu:
    """One row of the table. `keys`: what it is called beside its `name`; `box`: the gigabytes that
    are on the box; `source`: where its total was read."""

    name: str
    keys: tuple[str, ...]
    box: int
    memory: GpuMemory
    source: str


def known_gpus() -> tuple[KnownGpu, ...]:
    """The whole table. Raises OSError and ValueError for a damaged one."""
    return tuple(_row(row) for row in load_toml(rules_folder() / _TABLE)["gpu"])


def _row(row: dict[str, object]) -> KnownGpu:
    name, keys, gib = str(row["name"]), row["keys"], row["gib"]
    box, capability = row["gb"], row["capability"]
    if not isinstance(keys, list) or not isinstance(gib, (int, float)) or not isinstance(box, int):
        raise ValueError(f"{_TABLE}: {name}")
    memory = GpuMemory(
        name,
        round(gib * GIB),
        capability=capability if isinstance(capability, int) else None,
        unified=row.get("unified") is True,
    )
    return KnownGpu(name, tuple(map(str, keys)), box, memory, str(row["source"]))


def gpu_named(name: str) -> KnownGpu:
    """The GPU that a person means by this name; case, dashes and the maker's name do not count.
    Raises UsageError with the nearest names."""
    rows = known_gpus()
    named = {plain: row for row in rows for plain in _names(row)}
    if (found := named.get(_plain(name))) is not None:
        return found
    asked = shortened(name, _SHOWN)
    near = _nearest(_plain(asked), rows)
    if not near:
        raise UsageError(
            Text("--gpu {name}: unknown GPU; say its memory with --gpu-memory", name=asked)
        )
    raise UsageError(
        Text(
            "--gpu {name}: unknown GPU; did you mean {near}? Else say its memory with --gpu-memory",
            name=asked,
            near=near,
        )
    )


def _nearest(plain: str, rows: tuple[KnownGpu, ...]) -> list[str]:
    """Those that begin so, such as A100s of both sizes; else what looks like it."""
    from difflib import get_close_matches

    keys = {_plain(key): key for row in rows for key in row.keys}
    longer = sorted((key for one, key in keys.items() if plain and one.startswith(plain)), key=len)
    return longer[:3] or [keys[one] for one in get_close_matches(plain, keys, 3, cutoff=0.5)]


def _names(row: KnownGpu) -> set[str]:
    """Also with the size of its memory behind."""
    plain = {_plain(one) for one in (row.name, *row.keys)}
    return plain | {f"{one}{row.box}{unit}" for one in plain for unit in ("gb", "g", "gib")}


_MAKER = ("nvidia", "geforce", "quadro", "tesla", "amd", "instinct")


def _plain(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "".join(word for word in words if word not in _MAKER)
