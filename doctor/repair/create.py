"""`fix --create`: the environment that is to be made, of which Python, and with which vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from doctor.engine import Facts
from doctor.exits import FAILED, UNKNOWN, USAGE
from doctor.fixes.recipes import DISTRIBUTION, install_vllm
from doctor.locate import BasePython, base_pythons
from doctor.model import Text, os_reason
from doctor.probes.driver import DeepAsked
from doctor.probes.environment import HOME
from doctor.probes.interpreter import FoundBy, Where
from doctor.probes.served import Profile
from doctor.profile import ServeRequest
from doctor.repair import newest
from doctor.repair.apply import Room, rooms
from doctor.repair.errors import Interrupted, RepairError
from doctor.repair.index import PackageIndex
from doctor.repair.installer import ToolError
from doctor.repair.resolver import Resolution, find_tool
from doctor.repair.state import MAKING, State
from doctor.repair.tree import Tree
from doctor.talk import Talk
from doctor.target import Live


@dataclass(frozen=True)
class CreationPlan:
    """What `--create --apply` makes: the environment at `path`, of the interpreter `base`, with
    what was resolved; `rooms`: the disks that it needs, and what is free on them; `shell`: the
    variables of the person."""

    path: Path
    base: BasePython
    resolution: Resolution
    rooms: tuple[Room, ...]
    shell: Mapping[str, str]

    @property
    def vllm(self) -> Version | None:
        return newest.vllm_of(self.resolution)

    @property
    def fits(self) -> bool:
        return all(room.fits for room in self.rooms)


class Creation:
    """One environment that is not there yet. `foreign`: as root, also what another user could
    change is run. Raises RepairError where it cannot be made."""

    def __init__(
        self,
        path: Path,
        serve: ServeRequest,
        indexes: Sequence[PackageIndex],
        foreign: bool,
        talk: Talk,
    ) -> None:
        self._path, self._indexes = path, indexes
        self._talk = talk
        self._here = here = Live(foreign=foreign)
        if why := here.distrust(path):
            raise self._error(Text("{why}", why=why), USAGE)
        self._mark = State(path).folder / MAKING
        if path.is_dir() and any(path.iterdir()) and not self._mark.is_file():
            raise self._error(Text("the folder is there, and holds something else"), USAGE)
        tool = find_tool(here)
        self._bases, self._refused = base_pythons(here, foreign)
        if tool is None:
            raise RepairError(Text("there is no uv to make an environment with: pip install uv"))
        self._tool = tool
        facts = Facts(here, (Where(self._bases[0].path, FoundBy.OPTION), serve, DeepAsked()))
        self._profile = facts.get(Profile)
        self._bounds = newest.Bounds(self._profile.needs, newest.cuda_of_driver(facts))
        self._base = self._bases[0]

    def _error(self, why: Text, code: int = FAILED, tail: str = "") -> RepairError:
        return RepairError(Text("--create {path}: {why}", path=self._path, why=why), tail, code)

    def choose(self, below: Version | None = None) -> Resolution:
        """What would be installed, on the Python that `make` then takes: the newest vLLM there is,
        or the newest that is older than `below`. Raises ToolError."""
        profile = self._profile
        roots = install_vllm(DISTRIBUTION[profile.device], profile.needs).requirements
        bounds = dataclasses.replace(self._bounds, below=below)
        shell = self._here.env
        self._talk.phase(Text("choosing the newest vLLM that installs here ..."))
        base, made = newest.base(self._tool, self._bases, roots, self._indexes, shell, bounds)
        chosen = newest.vllm_of(made)
        if below and (chosen is None or chosen >= below):
            specifiers = profile.needs.vllm_specifiers
            raise ToolError(Text("the profile holds vLLM {specifiers}", specifiers=specifiers))
        self._base = base
        return made

    def plan(self, code: int = UNKNOWN) -> CreationPlan:
        """What would be made. Raises RepairError, with this exit code, where no index can say."""
        try:
            made = self.choose()
        except ToolError as error:
            why = Text(
                "no index can give a vLLM{bounds}: {why}{way_out}",
                bounds=self._bounds,
                why=error.text,
                way_out=self._bounds.way_out if error.no_solution else "",
            )
            if self._refused:
                why = Text("{why}; {refused}", why=why, refused="; ".join(map(str, self._refused)))
            raise self._error(why, code, error.tail if error.no_solution else "") from None
        cache = self._tool.cache(self._here.env)
        needed = rooms(self._path, cache, made)
        return CreationPlan(self._path, self._base, made, needed, self._here.env)

    def must_fit(self) -> None:
        """Raises RepairError where there is no vLLM to install, or no room for it."""
        made = self.plan(FAILED)
        for room in made.rooms:
            if not room.fits:
                raise self._error(room.too_small)

    def make(self) -> None:
        """An empty virtual environment, or the rest of one whose making was interrupted."""
        path, base = self._path, self._base
        self._talk.phase(
            Text("making a virtual environment of Python {version} ...", version=base.version)
        )
        try:
            path.mkdir(parents=True, exist_ok=True)
            with Tree(path.resolve()) as tree:  # what others may write into is obeyed by no doctor
                tree.mkdir(str(HOME))
            self._mark.touch()
            self._tool.make_environment(str(base.path), path, self._here.env)
        except ToolError as error:
            raise self._error(error.text, tail=error.tail) from None
        except OSError as error:
            raise self._error(Text("{why}", why=os_reason(error))) from None
        except KeyboardInterrupt:
            raise self.interrupted() from None

    def interrupted(self) -> Interrupted:
        """What Ctrl-C leaves of the environment before anything is installed in it."""
        return Interrupted(
            Text(
                "interrupted: {path} is only half made; the same command finishes it",
                path=self._path,
            )
        )
