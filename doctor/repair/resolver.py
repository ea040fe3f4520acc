"""What a transaction comes to, asked of one index after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from doctor.model import Text
from doctor.repair import pip, uv
from doctor.repair.index import PackageIndex
from doctor.repair.installer import Move, Tool, ToolError, Wanted
from doctor.target import Target

ANSWER_IN = 3
"""Seconds within which a mirror has to answer while there is another one to ask."""
_LAST_ANSWER_IN = 15


@dataclass(frozen=True)
class PassedOver:
    """A mirror that was asked, and why it could not serve."""

    name: str
    why: Text

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


@dataclass(frozen=True)
class Resolution:
    """What one transaction comes to. `requirements`: a requirements file of exactly what is
    installed, with hashes, "" where nothing is; `passed_over`: the mirrors that were asked before;
    `why`: where a vLLM was chosen, why this one."""

    index: PackageIndex
    moves: tuple[Move, ...]
    requirements: str = ""
    passed_over: tuple[PassedOver, ...] = ()
    why: Text | None = None

    @property
    def download_bytes(self) -> int | None:
        """What has to be fetched; None where the index does not say how large it is."""
        return _sum(m.size for m in self.moves if m.new and not m.cached)

    @property
    def installed_bytes(self) -> int | None:
        """Bytes of all wheels that are installed; None where the index does not say."""
        return _sum(m.size for m in self.moves if m.new)


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = list(sizes)
    return None if None in known else sum(one for one in known if one is not None)


def fetched(size: int | None) -> Text:
    """How many bytes have to be downloaded, for a person; None where it is not known."""
    if size is None:
        return Text("download size unknown (this index does not say)")
    if size == 0:
        return Text("nothing to download")
    return Text("{size} MiB to download", size=round(size / 2**20))


def find_tool(target: Target) -> Tool | None:
    """uv, else a current pip of the doctor's own environment. Raises NotTrusted where root would
    have to start a uv that another user could exchange."""
    return uv.find_uv(target) or pip.find_pip()


def resolve(
    tool: Tool, wanted: Wanted, indexes: Sequence[PackageIndex], shell: Mapping[str, str]
) -> Resolution:
    """What `wanted` changes in the target, asked of one index after the other until one has all.

    Raises ToolError, which names every index that was asked and why it could not serve.
    """
    passed_over: list[PassedOver] = []
    tail, no_solution = "", False
    for number, index in enumerate(indexes, 1):
        seconds = ANSWER_IN if number < len(indexes) else _LAST_ANSWER_IN
        try:
            moves, requirements = tool.resolve(wanted, index, shell, seconds)
            return Resolution(index, moves, requirements, tuple(passed_over))
        except ToolError as error:
            passed_over.append(PassedOver(index.name, error.text))
            tail, no_solution = error.tail, no_solution or error.no_solution
    whys = "; ".join(str(one) for one in passed_over)
    raise ToolError(Text("{whys}", whys=whys), tail, no_solution)
