"""`fix --create`: the environment that is to be made, of which Python, and with which vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from doctor.cli.again import RunningCommand
from doctor.cli.output import fail, print_lines, say
from doctor.engine import Facts
from doctor.errors import UsageError
from doctor.exits import FAILED, UNKNOWN, USAGE
from doctor.fixes.recipes import DISTRIBUTION, install_vllm
from doctor.locate import base_pythons
from doctor.model import Text, os_reason
from doctor.probes.driver import DeepAsked
from doctor.probes.environment import HOME
from doctor.probes.interpreter import FoundBy, Where
from doctor.profile import Profile
from doctor.repair import newest, resolver
from doctor.repair.state import MAKING, State
from doctor.repair.tree import Tree
from doctor.report.repair import fetched
from doctor.target import Live
from doctor.trust import ALLOW, NotTrusted

if TYPE_CHECKING:
    from doctor.repair.index import PackageIndex
    from doctor.report.lines import Line


class Creation:
    """One environment that is not there yet. What cannot be made ends the command in a sentence."""

    def __init__(
        self, path: Path, profile: Profile, indexes: Sequence[PackageIndex], allow: Collection[str]
    ) -> None:
        self._path, self._profile, self._indexes = path, profile, indexes
        self._here = Live(foreign=ALLOW in allow)
        if why := self._here.distrust(path):
            raise UsageError(Text("--create {path}: {why}", path=path, why=why))
        self._mark = State(path).folder / MAKING
        if path.is_dir() and any(path.iterdir()) and not self._mark.is_file():
            fail(f"--create {path}: the folder is there, and holds something else", USAGE)
        try:
            tool = resolver.find_tool(self._here)
            self._bases, self._refused = base_pythons(self._here, ALLOW in allow)
        except NotTrusted as error:
            fail(str(error), FAILED)
        if tool is None:
            fail("there is no uv to make an environment with: pip install uv", FAILED)
        self._tool = tool
        where = Where(self._bases[0].path, FoundBy.OPTION)
        facts = Facts(self._here, (where, profile, DeepAsked()))
        self._bounds = newest.Bounds(profile.needs, newest.cuda_of_driver(facts))

    def choose(self, below: Version | None = None) -> resolver.Resolution:
        """What would be installed, on the Python that `make` then takes: the newest vLLM there is,
        or the newest that is older than `below`. Raises ToolError."""
        profile = self._profile
        roots = install_vllm(DISTRIBUTION[profile.device], profile.needs).requirements
        bounds = dataclasses.replace(self._bounds, below=below)
        shell = self._here.env
        base, made = newest.base(self._tool, self._bases, roots, self._indexes, shell, bounds)
        chosen = newest.vllm_of(made)
        if below and (chosen is None or chosen >= below):
            raise resolver.ToolError(f"the profile holds vLLM {profile.needs.vllm_specifiers}")
        self._base = base
        return made

    def must_choose(self, code: int) -> resolver.Resolution:
        """The same; where no index can say, ends with this exit code."""
        try:
            return self.choose()
        except resolver.ToolError as error:
            for line in error.tail.splitlines()[-12:] if error.no_solution else ():
                say(f"  {line}", err=True)
            way_out = self._bounds.way_out if error.no_solution else ""
            said = f"no index can give a vLLM{self._bounds}: {error}{way_out}"
            fail(f"--create {self._path}: {'; '.join(map(str, (said, *self._refused)))}", code)

    def show(self) -> None:
        """The plan, as far as it goes before there is anything to judge."""
        print_lines(self._lines(self.must_choose(UNKNOWN)))

    def _lines(self, made: resolver.Resolution) -> Iterator[Line]:
        yield (("", "Plan for "), ("bold", str(self._path)), ("", ", which is not there yet"))
        yield ()
        yield (("bold", "1. make a virtual environment"),)
        yield (("", f"   of {self._base.path} (Python {self._base.version})"),)
        yield (("bold", "2. install distributions, in one transaction"),)
        held = f"vLLM {newest.vllm_of(made)}, which the profile holds"
        yield (("", f"   {made.why or held}"),)
        yield (("", f"   {len(made.moves)} distributions from {made.index.name}, {fetched(made)}"),)
        yield (("bold", "3. judge it, repair what is found, and prove it"),)
        yield ()
        command = RunningCommand()("fix", "--apply")
        yield (("", f"Nothing was changed. To do it: {command}"),)

    def make(self) -> None:
        """An empty virtual environment, or the rest of one whose making was cut off."""
        path = self._path
        try:
            path.mkdir(parents=True, exist_ok=True)
            with Tree(path.resolve()) as tree:  # what others may write into is obeyed by no doctor
                tree.mkdir(str(HOME))
            self._mark.touch()
            self._tool.make_environment(str(self._base.path), path, self._here.env)
        except resolver.ToolError as error:
            fail(f"--create {path}: it {error}", FAILED)
        except OSError as error:
            fail(f"--create {path}: {os_reason(error)}", FAILED)
