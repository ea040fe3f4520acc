"""What each kind of action puts in place: staged in a folder, as a swap that is ready to be made.

Nothing here touches the target; every function returns the Swap, or raises StageError.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from doctor.codec import decode, encode, parse_json
from doctor.fixes import CudaHome, PrependPath, SetAside, SetVariable, UnsetVariable
from doctor.model import Step
from doctor.probes.environment import HOME, SAVED, Saved, SavedValue
from doctor.probes.wheels import Distribution
from doctor.redact import redact
from doctor.repair import swap
from doctor.repair.manifest import Swap, is_kernel_cache, places
from doctor.repair.newest import Bounds
from doctor.repair.plan import Request
from doctor.repair.resolver import Resolution, Tool, ToolError, name_of
from doctor.repair.swap import SwapError
from doctor.repair.tree import why_not_private
from doctor.target import READ_MOST, Target, TooLarge, must_read, read_regular
from doctor.trust import NotTrusted


class StageError(Exception):
    """An action that cannot be carried out; one sentence. `tail`: what a tool printed."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


@dataclass(frozen=True)
class RepairContext:
    """What a repair works on: the target, and the means."""

    target: Target
    python: Path
    prefix: Path
    site_packages: tuple[Path, ...]
    installed: Mapping[str, Distribution]
    compiler: tuple[str, ...] | None
    tool: Tool | None
    tell: Callable[[str], None]
    bounds: Bounds


def stage_distributions(
    context: RepairContext, change: Path, request: Request, resolution: Resolution | None
) -> Swap:
    """The files of what is removed or replaced go, those of what uv installs come."""
    new = change / "new"
    if resolution and resolution.requirements:
        if context.tool is None:
            raise StageError("there is neither uv nor pip to install with")
        wanted = change / "requirements.txt"
        wanted.write_text(resolution.requirements, encoding="utf-8")
        shell = context.target.env
        try:
            context.tool.stage(context.python, wanted, resolution.index, shell, new, context.tell)
        except ToolError as error:
            raise StageError(f"the installation {error}", error.tail) from None
    leaving = [m.name for m in resolution.moves if m.old] if resolution else []
    leaving += [name for name in request.remove if name not in leaving]
    away = _leaving(context, leaving, request.broken)
    coming, digests = _recorded(new)
    try:
        made = swap.plan(
            context.prefix, new, change / "aside", away, digests, _together(away, coming)
        )
    except (SwapError, OSError) as error:
        raise StageError(str(error)) from None
    if ours := next((i.path for i in made.items if f"{i.path}/".startswith(f"{HOME}/")), None):
        raise StageError(f"a distribution would change {ours}, which is the doctor's own")
    return made


def _together(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The distribution of each path; those that hand a file on to one another have one name, since
    they can only be undone together."""
    of: dict[str, frozenset[str]] = {}
    for name in {*old.values(), *new.values()}:
        of.setdefault(name, frozenset((name,)))
    for path in old.keys() & new.keys():
        merged = of[old[path]] | of[new[path]]
        of.update(dict.fromkeys(merged, merged))
    return {path: ", ".join(sorted(of[name])) for path, name in {**old, **new}.items()}


def _leaving(
    context: RepairContext, names: Collection[str], half: tuple[Path, ...]
) -> dict[str, str]:
    """Every file of these distributions, relative to the prefix, and whose it is; what another
    distribution also lists stays."""
    going: dict[str, str] = {}
    top = f"{context.prefix}/"
    folders = {*half, *_metadata(context, names)}
    for info in sorted(folders):
        rows = _record(info)
        if rows is None:
            if info not in half:
                raise StageError(
                    f"{info.name} has no RECORD of its files (not installed from a wheel): "
                    f"remove {_distribution(info)} with the tool that installed it"
                )
            rows = []
        site = info.parent
        rows += [
            str((Path(at) / f).relative_to(site)) for at, _, files in os.walk(info) for f in files
        ]
        for row in rows:
            path = os.path.normpath(f"{site}/{row}")
            if path.startswith(top) and _can_go(path):
                going[path[len(top) :]] = _distribution(info)
    for site in context.site_packages:
        # As a RECORD of this folder writes them: seventy thousand rows are compared as they are.
        here = f"{site}/"
        rows_here = {
            full[len(here) :] if full.startswith(here) else os.path.relpath(full, site): path
            for path in going
            for full in (top + path,)
        }
        for info in sorted(site.glob("*.dist-info")):
            if info not in folders:
                for row in rows_here.keys() & set(_record(info) or ()):
                    going.pop(rows_here[row], None)
    for path in list(swap.bytecode_of(context.prefix, list(going))):
        going[path] = going[swap.module_of(path)]
    return going


def _distribution(info: Path) -> str:
    return name_of(info.name.partition("-")[0])


def _can_go(path: str) -> bool:
    """Whether it is no folder, and a name that the system takes: a RECORD may list anything."""
    try:
        return not stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False


def _metadata(context: RepairContext, names: Collection[str]) -> Iterator[Path]:
    """The metadata folders below the prefix that have one of these names: not by what is imported,
    for PYTHONPATH may put another copy before the one that goes."""
    for site in context.site_packages:
        if site.is_relative_to(context.prefix):
            for info in (*site.glob("*.dist-info"), *site.glob("*.egg-info")):
                if _distribution(info) in names:
                    yield info


def _record(info: Path) -> list[str] | None:
    """The paths that a RECORD lists, relative to site-packages (PEP 376); None where it is gone."""
    rows = _rows(info / "RECORD")
    return None if rows is None else [row[0] for row in rows]


_RECORD_MOST = 8 << 20  # bytes; the longest that is known, of 12,000 files, is 1 MiB


def _rows(record: Path) -> list[list[str]] | None:
    """The rows of a RECORD; None where it is gone or no table. Raises StageError where it is larger
    than any: what it lists is not known then."""
    try:
        data = read_regular(record, _RECORD_MOST)
        if data is None:
            return None
        text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
        return [row for row in csv.reader(text) if row]
    except csv.Error:
        return None
    except TooLarge as error:
        raise StageError(str(error)) from None


def _recorded(new: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Of the staged files, by path below `new`, as their RECORDs have it: the distribution, and the
    sha256 in hexadecimal."""
    import base64

    owners: dict[str, str] = {}
    digests: dict[str, str] = {}
    for record in new.glob("lib*/python*/*-packages/*.dist-info/RECORD"):
        site = record.parent.parent.relative_to(new)
        for row in _rows(record) or ():
            path = os.path.normpath(site / row[0])
            twice = path in owners
            owners[path] = _distribution(record.parent)
            if twice:  # whose is there only the file itself says
                digests.pop(path, None)
            elif len(row) > 1 and row[1].startswith("sha256="):
                padded = row[1][len("sha256=") :] + "=="
                with contextlib.suppress(ValueError):  # else the file itself is read
                    digests[path] = base64.urlsafe_b64decode(padded).hex()
    return owners, digests


def stage_cuda_home(context: RepairContext, change: Path, steps: Iterable[Step]) -> Swap:
    """Folders of relative links over the wheels (doctor.fixes.cuda_home)."""
    new = change / "new"
    away: list[str] = []
    for step in steps:
        if isinstance(step, CudaHome):
            place = step.home.relative_to(context.prefix)
            _links(context, step, new / place)
            away += _ours(step.home, context.prefix)
    try:
        return swap.plan(context.prefix, new, change / "aside", away)
    except (SwapError, OSError) as error:
        raise StageError(str(error)) from None


_SHARED = re.compile(r"(lib.+\.so)\.[\d.]+")


def _links(context: RepairContext, step: CudaHome, folder: Path) -> None:
    """Links as seen from where the folder will stand. `bin`, `include` and `nvvm` are the wheels'
    own; nvcc works from the name it is called by, so that it takes this folder for its own."""
    (folder / "lib64/stubs").mkdir(parents=True)

    def link(name: str, to: Path) -> None:
        at = step.home / name
        inside = to.is_relative_to(context.prefix)
        (folder / name).symlink_to(os.path.relpath(to, at.parent) if inside else to)

    for part in ("bin", "include", "nvvm", "cccl"):
        if (step.wheels / part).exists():
            link(part, step.wheels / part)
    unversioned = set()
    for library in sorted((step.wheels / "lib").glob("*.so*")):
        link(f"lib64/{library.name}", library)
        match = _SHARED.fullmatch(library.name)
        # libnvrtc.so is libnvrtc.so.13, not libnvrtc.alt.so.13: the plain name of each its own.
        if match and match[1] not in unversioned and not (step.wheels / "lib" / match[1]).exists():
            unversioned.add(match[1])
            (folder / "lib64" / match[1]).symlink_to(library.name)
    (folder / "lib").symlink_to("lib64")
    stub = folder / "lib64/stubs/libcuda.so"
    if step.libcuda:
        stub.symlink_to(step.libcuda)
    elif context.compiler:
        words = ("-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null", "-o", str(stub))
        try:
            ran = context.target.run(*context.compiler, *words, timeout=60)
        except NotTrusted as refused:
            raise StageError(str(refused)) from None
        if not ran.ok:
            why = redact(ran.failure or ran.err.strip())[-300:]
            raise StageError(f"no stand-in for libcuda.so can be linked: {why}")


def _ours(home: Path, prefix: Path) -> Iterator[str]:
    """What stands in an older home of links; a file that we would not make stays."""
    for at, names, files in os.walk(home):
        for name in [*names, *files]:
            path = Path(at) / name
            if path.is_symlink() or path.relative_to(home) == Path("lib64/stubs/libcuda.so"):
                yield str(path.relative_to(prefix))


def stage_environment(context: RepairContext, change: Path, steps: Iterable[Step]) -> Swap:
    """The saved variables with these steps put in (doctor.probes.environment)."""
    path = context.prefix / SAVED
    try:
        kept = merged(path, steps, context.target.env)
    except (OSError, ValueError) as error:
        raise StageError(f"{path} cannot be read: {error}") from None
    fresh = change / "new" / SAVED
    fresh.parent.mkdir(parents=True)
    fresh.write_text(as_file(kept), encoding="utf-8")
    try:
        return swap.plan(context.prefix, change / "new", change / "aside", [str(SAVED)])
    except (SwapError, OSError) as error:
        raise StageError(str(error)) from None


def merged(path: Path, steps: Iterable[Step], shell: Mapping[str, str]) -> Saved:
    """What the file at `path` holds, with these steps put in. Raises OSError, ValueError."""
    variables: dict[str, SavedValue] = {}
    with contextlib.suppress(FileNotFoundError):
        variables = dict(decode(Saved, parse_json(must_read(path, READ_MOST))).variables)
    for step in steps:
        if isinstance(step, (SetVariable, UnsetVariable, PrependPath)):
            variables[step.name] = saved_value(step, variables.get(step.name), shell)
    return Saved(variables=variables)


def as_file(kept: Saved) -> str:
    """The text of environment.json."""
    return json.dumps(encode(kept), indent=1, sort_keys=True) + "\n"


def saved_value(
    step: SetVariable | UnsetVariable | PrependPath,
    before: SavedValue | None,
    shell: Mapping[str, str],
) -> SavedValue:
    """How a step is kept. The shell's value of today was judged bad: ours stands instead of it,
    and of no other value that someone may set later."""
    if isinstance(step, PrependPath):
        rest = before.value.split(os.pathsep) if before and before.prepend and before.value else []
        folders = [str(step.folder), *(f for f in rest if f != str(step.folder))]
        return SavedValue(os.pathsep.join(folders), prepend=True)
    value = step.value if isinstance(step, SetVariable) else None
    bad = list(before.instead_of) if before and not before.prepend else []
    today = shell.get(step.name)
    if today is not None and today != value and today not in bad:
        bad.append(today)
    return SavedValue(value, instead_of=tuple(bad))


def stage_set_aside(prefix: Path, run: str, step: SetAside, change: Path) -> Swap:
    """A file or folder goes, by renames on its own filesystem, to a place where its owner does not
    look for it; one below the prefix goes to the run's own folder."""
    path = Path(os.path.realpath(step.path.parent)) / step.path.name
    prefix = Path(os.path.realpath(prefix))
    root = prefix if path.is_relative_to(prefix) else path.parent
    if root != prefix and not is_kernel_cache(root):
        raise StageError(
            f"{path} is outside of the environment, and nothing of FlashInfer's: set it aside by "
            "hand"
        )
    _, aside = places(prefix, run, int(change.name), root)
    if root != prefix and (why := why_not_private(aside)):
        raise StageError(f"{path} stays: {why}")
    if path.is_dir() and not path.is_symlink():
        away = [
            os.path.relpath(Path(at) / name, root)
            for at, names, files in os.walk(path)
            for name in [*files, *(n for n in names if (Path(at) / n).is_symlink())]
        ]
    else:
        away = [os.path.relpath(path, root)]
    try:
        return swap.plan(root, change / "new", aside, away)
    except (SwapError, OSError) as error:
        raise StageError(str(error)) from None
