"""The layers, held by reading imports: who may know whom, and who may touch the machine."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import doctor
import doctor.cli
from doctor.engine import REGISTRY, load_rules
from doctor.model import Fact
from doctor.probes.arguments import ServerOptions
from doctor.probes.driver import DeepAsked
from doctor.probes.every_gpu import EveryGpu
from doctor.probes.interpreter import Where
from doctor.probes.models import QuantizationLimits
from doctor.profile import ServeRequest
from doctor.shipped import rules_folder
from doctor.target import Target
from doctor.variables import VARIABLES, Trait, names_with

PACKAGE = Path(doctor.__file__).parent
MODULES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
# Scripts that run alone in a child process, in an interpreter that may have nothing installed.
CHILDREN = [m for m in MODULES if re.search(r"(^|/)_(?!_)", m)]
RULES = sorted(rules_folder().glob("*.py"))
GIVEN: set[type] = {Where, ServeRequest, DeepAsked}


def imports(path: Path) -> Iterator[str]:
    """The full names of all that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def of(*modules: str) -> set[str]:
    return {name for module in modules for name in imports(PACKAGE / module)}


@pytest.mark.parametrize("rule_file", RULES, ids=lambda p: p.name)
def test_rules_import_only_the_doctor_and_the_standard_library(rule_file: Path) -> None:
    foreign = tops(rule_file) - {"doctor", "packaging"} - sys.stdlib_module_names
    assert not foreign


@pytest.mark.parametrize("rule_file", RULES, ids=lambda p: p.name)
def test_rules_know_facts_and_fixes_and_nothing_of_the_machine(rule_file: Path) -> None:
    touched = tops(rule_file) & {"os", "subprocess", "sys", "shutil", "tempfile", "socket", "io"}
    assert not touched
    internal = {n for n in imports(rule_file) if n.startswith(("doctor.engine", "doctor.cli"))}
    assert not internal
    assert not {n for n in imports(rule_file) if n.startswith("doctor.target.Live")}


def test_the_model_imports_nothing_of_ours_but_how_its_classes_are_made() -> None:
    ours = {name for name in imports(PACKAGE / "model.py") if name.startswith("doctor")}
    assert ours == {"doctor.frozen.dataclass"}
    assert not tops(PACKAGE / "model.py") - sys.stdlib_module_names - {"doctor"}
    assert not tops(PACKAGE / "frozen.py") - sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_and_the_report_know_click_and_rich(module: str) -> None:
    if not module.startswith(("cli/", "report/")):
        assert not tops(PACKAGE / module) & {"click", "rich"}


def uses(path: Path, owner: str, *names: str) -> bool:
    """Whether the file says `owner.name` for one of the names."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in names
        and isinstance(node.value, ast.Name)
        and node.value.id == owner
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


START_PROCESSES = {
    "target.py": "what a probe asks the machine",
    "serve/process.py": "the server",
    "repair/installer.py": "uv or pip",
    "download/fetch.py": "the target's client for the hub",
}


@pytest.mark.parametrize("module", [m for m in MODULES if m not in CHILDREN])
def test_processes_are_started_by_the_target_the_installer_and_the_hand_off(module: str) -> None:
    path = PACKAGE / module
    starts = "subprocess" in tops(path) or uses(path, "os", "system", "popen", "execv", "execve")
    assert starts == (module in START_PROCESSES)


# What each reads is its own input, named by the person or shipped with the doctor.
READ_THE_ENVIRONMENT = {
    "target.py": "what the server would be started with",
    "cli/output.py": "NO_COLOR, for its own output",
    "redact.py": "the values of secrets, which no output may hold",
    "__main__.py": "PYTHONPATH, so that what the server imports does not run in the doctor",
}
# Whatever else is read comes through `read_regular` and `must_read` of target.py, which no fifo
# holds up and no size fills the memory of.
OPEN_FILES = {
    "target.py": "the machine under judgement",
    "cli/__init__.py": "/dev/null, where a standard stream is closed",
    "cli/output.py": "the snapshot or the script that a person asked for",
    "logs/source.py": "the log that is explained",
    "serve/gate.py": "the lock of a fix",
    "serve/proofs.py": "the proofs of earlier starts",
    "download/hub.py": "the locks of the hub's client",
    "download/session.py": "the lock of a download",
    "download/verify.py": "the files that are proven",
    "fixes/environment.py": "the variables that it stages",
    "repair/pip.py": "what pip is asked",
    "repair/stage.py": "what it stages",
    "repair/swap.py": "the files that are replaced, to know them again",
    "repair/tree.py": "folders, so that no path leads through a link",
    "repair/uv.py": "what uv is asked",
    "about.py": "the rules, to count them",
}


@pytest.mark.parametrize("module", [m for m in MODULES if m not in CHILDREN])
def test_only_the_target_and_the_command_line_read_the_environment(module: str) -> None:
    path = PACKAGE / module
    if uses(path, "os", "environ", "getenv", "environb"):
        assert module in READ_THE_ENVIRONMENT


@pytest.mark.parametrize("module", [m for m in MODULES if m not in CHILDREN])
def test_files_are_opened_only_by_the_target_and_for_ones_own_input(module: str) -> None:
    openers = {"open", "read_text", "read_bytes", "write_text", "write_bytes"}
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    names = {f.id if isinstance(f, ast.Name) else getattr(f, "attr", "") for f in calls}
    assert bool(names & openers) == (module in OPEN_FILES)


PRINT = {
    "cli/output.py": "all that a command prints",
    "cli/talking.py": "how far a download is, in numbers alone",
    "__main__.py": "that it was interrupted or cannot be started, before anything is imported",
}


@pytest.mark.parametrize("module", [m for m in MODULES if m not in CHILDREN])
def test_all_that_is_printed_goes_through_the_one_module_that_redacts(module: str) -> None:
    path = PACKAGE / module
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    names = {f.id for f in calls if isinstance(f, ast.Name)}
    written = {
        f.value.attr
        for f in calls
        if isinstance(f, ast.Attribute)
        and f.attr in ("write", "writelines")
        and isinstance(f.value, ast.Attribute)
    }
    prints = (
        bool(names & {"print", "input"} or written & {"stdout", "stderr", "buffer"})
        or uses(path, "click", "echo", "secho", "confirm", "prompt", "pause", "echo_via_pager")
        or uses(path, "error", "show")
        or uses(path, "os", "write")
        or "rich" in tops(path)
    )
    assert prints == (module in PRINT)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("probes/")])
def test_probes_reach_the_machine_only_through_the_target(module: str) -> None:
    if module in CHILDREN:
        return
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    asked = {"exists", "is_file", "is_dir", "iterdir", "glob", "rglob", "resolve", "lstat"}
    found = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not found & asked
    assert not set(imports(PACKAGE / module)) & {
        "doctor.target.read_regular",
        "doctor.target.must_read",
    }


ASKED_BY = {
    "probes/_driver.py": {"pynvml"},
    "download/_hub_listing.py": {"huggingface_hub"},
    "download/_modelscope.py": {"modelscope_hub"},
}
"""What a script is there to ask."""


@pytest.mark.parametrize("module", CHILDREN)
def test_a_script_for_a_child_needs_only_the_standard_library(module: str) -> None:
    assert not tops(PACKAGE / module) - sys.stdlib_module_names - ASKED_BY.get(module, set())


@pytest.mark.parametrize("module", CHILDREN)
def test_a_script_for_the_target_is_understood_by_old_pythons(module: str) -> None:
    """The inspection runs in the target, 3.6 and newer, to say that it is too old."""
    source = (PACKAGE / module).read_text(encoding="utf-8")
    oldest = (3, 6) if module == "probes/_inspect.py" else (3, 10)
    ast.parse(source, feature_version=oldest)


def test_a_diagnosis_in_json_imports_nothing_heavy_that_it_does_not_need() -> None:
    import subprocess

    code = (
        "import sys\nfrom doctor.cli import cli\n"
        "try: cli.main(['diagnose', '--format', 'json', '--set', 'gpus=later', '--python', "
        "sys.executable])\n"
        "except SystemExit: pass\n"
        "heavy = {'rich', 'torch', 'vllm', 'psutil', 'pynvml', 'importlib.metadata', 're2', "
        "'doctor.signatures'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"


# Shape.

MOST_PARAMETERS = 7


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def decorated_as(node: ast.FunctionDef, *names: str) -> bool:
    """A rule, a probe or a command: what it takes is said by its parameters."""
    shown = (ast.unparse(one).partition("(")[0] for one in node.decorator_list)
    return any(one.rpartition(".")[2] in names for one in shown)


def parameters(node: ast.FunctionDef) -> list[str]:
    args = node.args
    named = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    rest = [a.arg for a in (args.vararg, args.kwarg) if a]
    return [name for name in (*named, *rest) if name not in ("self", "cls")]


@pytest.mark.parametrize("module", MODULES)
def test_no_function_has_more_parameters_than_a_reader_keeps_apart(module: str) -> None:
    long = [
        one.name
        for one in functions(PACKAGE / module)
        if not decorated_as(one, "rule", "probe", "command", "group")
        and len(parameters(one)) > MOST_PARAMETERS
    ]
    assert not long


def public_names(path: Path) -> Iterator[str]:
    """What a module defines at its top for others; not commands, and not type variables."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.FunctionDef) and not decorated_as(node, "command", "group")
        ) or isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and "TypeVar(" not in ast.unparse(node.value):
            yield from (one.id for one in node.targets if isinstance(one, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


TWICE = {"main": "the console script, and what it starts"}


def test_no_public_name_has_two_meanings() -> None:
    found: dict[str, list[str]] = {}
    for module in MODULES:
        if module not in CHILDREN:
            for name in public_names(PACKAGE / module):
                found.setdefault(name, []).append(module)
    twice = {
        name: modules
        for name, modules in found.items()
        if len(modules) > 1 and not name.startswith("_")
    }
    assert set(twice) == set(TWICE), twice


def ladders(path: Path) -> list[int]:
    """The lines of each `try` with several handlers, or with one that only ends the command: what
    ends a command is raised, and printed in one place."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Try)
        and (len(node.handlers) > 1 or any(map(only_fails, node.handlers)))
    ]


def only_fails(handler: ast.ExceptHandler) -> bool:
    return len(handler.body) == 1 and ast.unparse(handler.body[0]).startswith("fail(")


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("cli/")])
def test_what_ends_a_command_is_told_in_one_place(module: str) -> None:
    assert bool(ladders(PACKAGE / module)) == (module == "cli/__init__.py")


# Variables.


def names_in(node: ast.expr) -> list[str]:
    """The texts that a table holds directly."""
    if isinstance(node, ast.Dict):
        rows = [key for key in node.keys if key]
    else:
        rows = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else []
    return [r.value for r in rows if isinstance(r, ast.Constant) and isinstance(r.value, str)]


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("variables.py", *CHILDREN)])
def test_variables_stand_in_one_table(module: str) -> None:
    judged = {row.name for row in VARIABLES}
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    tables = [names_in(node) for node in ast.walk(tree) if isinstance(node, ast.expr)]
    assert not [table for table in tables if len(judged.intersection(table)) > 3]


def test_each_row_of_variables_says_what_it_is_kept_for() -> None:
    assert len({row.name for row in VARIABLES}) == len(VARIABLES)
    assert [row.name for row in VARIABLES] == sorted(row.name for row in VARIABLES)
    for row in VARIABLES:
        assert row.traits
        assert str(row.why)
    assert all(names_with(trait) for trait in Trait)


# Facts and probes.


def needs_of_probe(kind: type) -> dict[type, bool]:
    """The facts that the probe of `kind` asks for, and whether it can do without."""
    return {need: optional for _, need, optional in REGISTRY.needs(kind) if need is not Target}


def test_every_fact_that_is_needed_has_a_probe_or_is_given() -> None:
    wanted = {need for rule in load_rules(rules_folder()) for _, need, _ in rule.needs}
    for kind in REGISTRY.kinds():
        wanted |= set(needs_of_probe(kind))
    assert not {w.__name__ for w in wanted - GIVEN - {Target} - set(REGISTRY.kinds())}


def test_what_is_given_has_no_probe_that_would_never_run() -> None:
    assert not GIVEN & set(REGISTRY.kinds())


# What no rule wants, and snapshots hold all the same.
KEPT: dict[type, str] = {
    EveryGpu: "a snapshot may be judged for GPUs that the profile of its maker did not name",
    QuantizationLimits: "a snapshot may be judged for another model than its maker's",
    ServerOptions: "a snapshot may be judged for a command that its maker did not name",
}


def test_every_probe_returns_a_fact_and_is_wanted() -> None:
    wanted = {need for rule in load_rules(rules_folder()) for _, need, _ in rule.needs}
    for kind in REGISTRY.kinds():
        assert issubclass(kind, Fact)
        wanted |= set(needs_of_probe(kind))
    assert {k for k in REGISTRY.kinds() if k not in wanted} == set(KEPT)


def test_probes_do_not_ask_each_other_in_a_circle() -> None:
    done: set[type] = set()

    def visit(kind: type, path: tuple[type, ...]) -> None:
        assert kind not in path, " -> ".join(k.__name__ for k in (*path, kind))
        if kind in done or REGISTRY.find(kind) is None:
            return
        for need in needs_of_probe(kind):
            visit(need, (*path, kind))
        done.add(kind)

    for kind in REGISTRY.kinds():
        visit(kind, ())


def test_whoever_names_a_fact_has_registered_all_that_it_asks_for() -> None:
    """Each module by itself, in a process of its own."""
    for path in sorted((PACKAGE / "probes").glob("[!_]*.py")):
        code = (
            f"import doctor.probes.{path.stem}\nfrom doctor.engine import REGISTRY\n"
            "known = set(REGISTRY.kinds())\n"
            "wanted = {k for kind in known for _, k, _ in REGISTRY.needs(kind)}\n"
            "given = {'Target', 'Where', 'ServeRequest', 'DeepAsked'}\n"
            "print({k.__name__ for k in wanted - known} - given)\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert ran.stdout == "set()\n", path


def test_facts_are_frozen_and_hold_what_the_codec_knows() -> None:
    for kind in [*REGISTRY.kinds(), *GIVEN]:
        assert dataclasses.is_dataclass(kind), kind.__name__
        assert kind.__setattr__ is not object.__setattr__, kind.__name__
        assert typing.get_type_hints(kind)
