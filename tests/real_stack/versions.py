"""The doctor against the truth, on real vLLM environments of several versions.

    python -m tests.real_stack.versions [--pip] [--with REQUIREMENT] [--keep] VERSION…

For each version, one after another: the environment that `uv pip install vllm==VERSION` gives (or
pip; beside another requirement, where what it resolves to does not know the model), five GPUs,
three places. What really happens in each (`_start.py`) stands beside the doctor's verdict; then the
doctor repairs a copy, FlashInfer builds its whole sampling module in it, and the
repair is undone. The version's section of docs/versions.md is written anew. Exits 1 where a verdict
was a false alarm or a false comfort, or a repair did not hold. The environment is removed unless
it is to be kept. Minutes per version, and up to 10 GB.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.real_stack import cells, lab
from tests.real_stack.cells import CAPABILITIES, Cell, Judged
from tests.real_stack.place import Place
from tests.real_stack.repairs import Broken, copy_of, manifest, network, without_bytecode

PAGE = Path(__file__).parents[2] / "docs" / "versions.md"
# Of these, 10.0 compiles in every version.
FIXED_FOR = ("--set", "gpus=later", "--set", "archs=8.9,10.0")
_CUDA = "import torch; print(torch.version.cuda)"
_TITLE = "## vLLM {version}, by {made_by}"
_HEAD = (
    "| GPU | place | what really happens | the doctor | primary | |",
    "| --- | --- | --- | --- | --- | --- |",
)
_SAYS = {0: "healthy", 1: "findings", 3: "could not tell"}


def matrix(target: lab.Environment) -> list[Cell]:
    """Every GPU in every place."""
    named = cells.places(target).items()
    return [Cell(gpu, place, env) for place, env in named for gpu in CAPABILITIES]


def row(one: Judged) -> str:
    """The cell's row of the table."""
    primary = one.here.data["primary"] or "-"
    says = _SAYS[one.here.code]
    if one.later.code != one.here.code:
        says = f"{says} (to come: {_SAYS[one.later.code]})"
    told = one.truth.text.replace("|", "\\|")
    what = (one.cell.capability, one.cell.place, told, says, primary, one.outcome)
    return f"| {' | '.join(what)} |"


def repaired(target: lab.Environment, scratch: Path) -> Iterator[str]:
    """Repairs a copy and undoes it; yields what was seen, one sentence each, and what is wrong
    beginning with `WRONG`."""
    scratch.mkdir()
    copy = copy_of(target, scratch / "env")
    one = Broken(Place(copy, scratch, network()))
    was = manifest(copy.prefix)
    fixed = one.fix("--apply", *FIXED_FOR)
    done = ", ".join(f"{action} {outcome}" for action, outcome in fixed.outcomes.items())
    # Of CUDA 12 no wheel has nvcc: there is no toolkit that it could install.
    by_hand = fixed.code == 1 and not done and one.place.python(_CUDA).out.startswith("12.")
    wrong = "WRONG: " if fixed.code and not by_hand else ""
    said = done or ("by hand" if by_hand else "nothing")
    yield f"{wrong}`fix --apply` exits {fixed.code}: {said}"
    exports = {k: v for k, v in one.variables().items() if k in ("CUDA_HOME", "PATH")}
    for judged in cells.judged(copy, scratch, [Cell(g, "repaired", exports) for g in CAPABILITIES]):
        wrong = (
            "" if judged.outcome == "right" and (by_hand or not judged.truth.died) else "WRONG: "
        )
        yield f"{wrong}repaired, {judged.cell.capability}: {judged.truth.text}; {judged.outcome}"
    if not by_hand:
        whole = one.place.having(**exports, FLASHINFER_CUDA_ARCH_LIST="8.9").build_sampling()
        built = "built and loaded" if whole.code == 0 else f"WRONG: {whole.text[-300:]}"
        yield f"`build_and_load` of sampling for 8.9: {built}"
    undone = one.run("undo")
    same = without_bytecode(manifest(copy.prefix)) == without_bytecode(was)
    yield f"undo: exit {undone.code}, {'exact' if same else 'WRONG: not what it was'}"


def section(target: lab.Environment, version: str, made_by: str) -> tuple[str, list[str]]:
    """The version's section of the page, and all that is wrong with it."""
    lines = [_TITLE.format(version=version, made_by=made_by), ""]
    with tempfile.TemporaryDirectory(dir=lab.folder()) as folder:
        home = Path(folder)
        found = cells.judged(target, home, matrix(target))
        notes = list(repaired(target, home / "repair"))
    rows = [row(one) for one in found]
    wrong = [line for line in rows if not line.endswith("| right |")]
    wrong += [note for note in notes if "WRONG" in note]
    counted = {
        name: sum(o.outcome == name for o in found)
        for name in ("false alarm", "false comfort", "could not tell")
    }
    lines.append(
        f"{datetime.date.today()}: {len(rows)} cells, "
        + ", ".join(f"{n} {name}" for name, n in counted.items())
        + "."
    )
    lines += ["", *_HEAD, *rows, "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines), wrong


def write(page: Path, text: str) -> None:
    """Puts a section into the page, where the one of the same title was or at its end."""
    title = text.splitlines()[0]
    old = page.read_text(encoding="utf-8")
    parts = re.split(r"(?m)^(?=## )", old)
    kept = [part for part in parts if not part.startswith(title + "\n")]
    page.write_text("".join([*kept, text]), encoding="utf-8")


def environment(version: str, beside: str | None) -> lab.Environment:
    """What uv makes of `vllm==VERSION`, and of what is asked for beside it, in the lab."""
    wanted = (f"vllm=={version}", *((beside,) if beside else ()))
    return lab.environment(lab.Recipe(f"vllm-{version}", ("pip", *wanted)))


def pip_environment(version: str) -> lab.Environment:
    """What pip itself makes of `pip install vllm==VERSION`, in a fresh environment of the lab."""
    made = lab.Environment(lab.folder() / f"vllm-{version}-pip")
    shutil.rmtree(made.prefix, ignore_errors=True)
    lab.run([lab.base_python(), "-m", "venv", str(made.prefix)])
    lab.run([str(made.python), "-m", "pip", "install", "--quiet", f"vllm=={version}"])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("versions", nargs="+", metavar="VERSION")
    parser.add_argument("--pip", action="store_true", help="have pip make the environment, not uv")
    parser.add_argument("--with", dest="beside", metavar="REQUIREMENT", help="have uv take it too")
    parser.add_argument("--keep", action="store_true", help="leave the environment in the lab")
    options = parser.parse_args()
    all_wrong = []
    for version in options.versions:
        if options.pip:
            target, made_by = pip_environment(version), "pip"
        else:
            target = environment(version, options.beside)
            made_by = f"uv beside {options.beside}" if options.beside else "uv"
        text, wrong = section(target, version, made_by)
        write(PAGE, text)
        print(text)
        all_wrong += wrong
        if not options.keep:
            shutil.rmtree(target.prefix)
    sys.exit("\n".join(all_wrong) or None)


if __name__ == "__main__":
    main()
