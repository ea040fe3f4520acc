"""fix, undo and the script of a plan, in small environments of real wheels (tests/stand_ins)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest
from packaging.version import Version

from doctor.engine import Facts
from doctor.probes.interpreter import FoundBy, Interpreter, Where
from doctor.repair import pip, uv
from doctor.repair.index import choose_indexes
from doctor.repair.installer import Wanted
from doctor.report.repair_json import repair_schema
from doctor.target import Live
from tests.conftest import Environment, Said, must_fit, run_doctor
from tests.stand_ins.fixtures import FOR_H100, VLLM, Bench
from tests.stand_ins.index import Index
from tests.stand_ins.killer import tree
from tests.test_interpreter import bases

MOVED = {"nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "transformers"}
HOME = "share/vllm-doctor/cuda-13.0"
OTHER_PYTHONS = [base for base in bases() if isinstance(base, Path) and base.parts[1] != "usr"]


@pytest.fixture
def fix(bench: Bench, index: Index, broken: Environment) -> Fix:
    return Fix(bench, index, broken)


class Fix:
    """`vllm-doctor fix` and its kin in the broken environment."""

    def __init__(self, bench: Bench, index: Index, environment: Environment) -> None:
        self.bench, self.index, self.environment = bench, index, environment

    def __call__(self, *words: str, **variables: str) -> Said:
        return self.run("fix", *FOR_H100, *words, **variables)

    def json(self, *words: str, **variables: str) -> Said:
        said = self("--format", "json", *words, **variables)
        must_fit(said.report, repair_schema)
        return said

    def run(self, command: str, *words: str, **variables: str) -> Said:
        said = self.bench.doctor(
            command, *words, index=self.index.url, environment=self.environment, **variables
        )
        assert "Traceback" not in said.err
        return said

    def tree(self) -> dict[str, object]:
        return dict(tree(self.environment.prefix, without={"__pycache__"}))


def outcomes(said: Said) -> dict[str, str]:
    return {r["action"]: r["outcome"] for r in said.report["results"]}


def test_the_plan_says_what_moves_and_changes_nothing(fix: Fix) -> None:
    was = fix.tree()
    said = fix()
    assert said.code == 1
    assert "nvidia-cuda-nvcc" in said.out
    assert "13.5.37 → 13.0.88" in said.out
    assert "MiB to download" in said.out or "nothing to download" in said.out
    assert "Nothing was changed" in said.out
    assert fix.tree() == was


def test_the_plan_for_programs_has_the_same(fix: Fix) -> None:
    report = fix.json().report
    assert [a["action"] for a in report["plan"]] == ["install", "cuda-home", "environment"]
    assert {m["name"] for m in report["moves"]} >= MOVED
    assert not {m["name"] for m in report["moves"]} & {"torch", "vllm", "triton"}
    assert isinstance(report["download_bytes"], int)
    assert "results" not in report


def test_it_heals_and_the_second_run_changes_nothing_and_undo_puts_all_back(fix: Fix) -> None:
    was = fix.tree()
    first = fix.json("--apply")
    assert outcomes(first) == {
        "install": "healed",
        "cuda-home": "healed",
        "environment": "healed",
    }
    assert first.code == 0
    healed = fix.tree()
    second = fix.json("--apply")
    assert set(outcomes(second).values()) == {"already-healed"}
    assert (second.code, second.report["plan"], second.report["run"]) == (0, [], None)
    assert fix.tree() == healed
    listed = fix.run("undo", "--list")
    assert first.report["run"] in listed.out
    undone = fix.run("undo")
    assert undone.code == 0
    assert fix.tree() == was
    assert fix.run("undo").code == 0
    assert fix.run("undo", "--list").out.startswith("nothing to undo")


def test_the_cuda_home_is_made_of_relative_links(fix: Fix) -> None:
    fix.json("--apply")
    home = fix.environment.prefix / HOME
    links = [p for p in home.rglob("*") if p.is_symlink()]
    assert links
    assert not [p for p in links if p.readlink().is_absolute() and p.name != "libcuda.so"]
    assert all(p.exists() for p in links)
    assert (home / "bin/nvcc").exists()
    assert (home / "lib64/libcudart.so").resolve().name.startswith("libcudart.so.13")
    assert (home / "lib").readlink() == Path("lib64")
    assert (home / "lib64/stubs/libcuda.so").exists()


def test_what_env_prints_is_what_was_judged(fix: Fix) -> None:
    fix.json("--apply")
    said = fix.run("env")
    assert said.code == 0
    shell = subprocess.run(
        ["sh", "-c", f'{said.out}\necho "$CUDA_HOME"; command -v nvcc; env'],
        env={"PATH": fix.bench.path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    home = str(fix.environment.prefix / HOME)
    assert shell[:2] == [home, f"{home}/bin/nvcc"]
    assert not [row for row in shell if row.startswith(("CPATH=", "LIBRARY_PATH=", "LD_LIB"))]


def test_a_shell_that_names_another_good_toolkit_later_wins(fix: Fix) -> None:
    bad = {"CUDA_HOME": "/nowhere/cuda"}
    fix.json("--apply", **bad)
    kept = fix.environment.prefix / "share/vllm-doctor/environment.json"
    saved = json.loads(kept.read_text())["variables"]["CUDA_HOME"]
    assert saved["instead_of"] == ["/nowhere/cuda"]
    assert "CUDA_HOME" in fix.run("env", **bad).out
    assert "CUDA_HOME" not in fix.run("env", CUDA_HOME="/opt/other").out


def test_an_environment_is_made_from_nothing_and_unmade(
    bench: Bench, index: Index, tmp_path: Path
) -> None:
    one = Fix(bench, index, Environment(tmp_path / "fresh/env"))
    said = one.json("--apply", "--create")
    assert said.code == 0, said.err
    assert outcomes(said)["install"] == "healed"
    assert one.run("undo").code == 0
    assert not (tmp_path / "fresh/env").exists()


@pytest.mark.parametrize("content", ["file", "folder"])
def test_nothing_is_made_where_something_else_is(
    bench: Bench, index: Index, tmp_path: Path, content: str
) -> None:
    place = tmp_path / "place"
    if content == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").touch()
    was = tree(tmp_path)
    said = Fix(bench, index, Environment(place))("--apply", "--create")
    assert said.code == 2
    assert str(place) in said.err
    assert tree(tmp_path) == was


def test_the_script_does_what_apply_does(fix: Fix, tmp_path: Path) -> None:
    script = tmp_path / "repair.sh"
    assert fix("--script", str(script)).code == 1
    env = fix.bench.shell(fix.index.url, fix.environment, UV_DEFAULT_INDEX=fix.index.url)
    env["PATH"] += f":{Path(sys.executable).parent}"  # uv, for an environment without pip
    subprocess.run(["sh", str(script)], env=env, check=True, capture_output=True)
    by_script = names(fix.environment)
    judged = fix.run("diagnose", "--format", "json", "--deep", *FOR_H100)
    assert judged.code == 0, judged.found()
    kept = fix.environment.prefix / "share/vllm-doctor/environment.json"
    saved = kept.read_text()
    other = Fix(fix.bench, fix.index, fix.environment)
    assert other.json("--apply").report["plan"] == []
    assert "nvidia_cuda_nvcc-13.0.88.dist-info" in by_script
    assert kept.read_text() == saved


def names(environment: Environment) -> set[str]:
    return {p.name for p in environment.site.glob("*.dist-info")}


def test_changing_torch_needs_a_yes(fix: Fix) -> None:
    (fix.environment.site / "torch/lib/libtorch_python.so").unlink()
    was = fix.tree()
    asked = fix.json("--apply")
    assert {w["allow"] for w in asked.report["withheld"]} == {"core"}
    assert asked.code == 1
    assert fix.run("undo").code == 0
    assert fix.tree() == was
    given = fix.json("--apply", "--allow", "core")
    assert given.code == 0, given.err
    assert (fix.environment.site / "torch/lib/libtorch_python.so").exists()
    assert fix.run("undo").code == 0
    assert fix.tree() == was


def test_an_environment_in_use_needs_a_yes_and_the_pid_is_named(fix: Fix) -> None:
    python = fix.environment.python
    with subprocess.Popen([python, "-c", "input()"], stdin=subprocess.PIPE) as server:
        said = fix.json("--apply")
        assert {w["allow"] for w in said.report["withheld"]} == {"running"}
        assert all(f"pid {server.pid}" in w["why"] for w in said.report["withheld"])
        assert said.report["results"] == []
        assert said.code == 1
        assert fix.json("--apply", "--allow", "running").code == 0
        server.kill()


def test_what_a_person_changed_since_is_left_and_named(fix: Fix) -> None:
    fix.json("--apply")
    mine = fix.environment.site / "transformers/__init__.py"
    mine.unlink()
    mine.write_text("# mine")
    said = fix.run("undo")
    assert said.code == 1
    assert said.err == "vllm-doctor: transformers was modified since; left untouched\n"
    assert mine.read_text() == "# mine"
    site = fix.environment.site
    assert not list(site.glob("transformers-4*")), "not half of it was taken back"
    assert list(site.glob("nvidia_cuda_nvcc-13.5*")), "everything else was"
    assert "kept" in fix.run("undo", "--list").out


def test_a_purge_frees_what_was_set_aside_and_keeps_the_repair(fix: Fix) -> None:
    fix.json("--apply")
    assert fix.run("undo", "--purge").code == 0
    assert not any((fix.environment.prefix / "share/vllm-doctor/runs").iterdir())
    assert fix.json().code == 0


def test_runs_are_undone_last_first(fix: Fix, index: Index) -> None:
    first = fix.json("--apply").report["run"]
    fix.bench.install(fix.environment, "transformers==4.57.6", index=index.url)
    second = fix.json("--apply").report["run"]
    assert second
    said = fix.run("undo", first)
    assert said.code == 2
    assert second in said.err


def test_a_wrong_run_is_named(fix: Fix) -> None:
    said = fix.run("undo", "20000101-000000")
    assert said.code == 2
    assert "20000101-000000" in said.err


def test_a_stale_kernel_is_set_aside_and_put_back_and_healthy_ones_stay(
    fix: Fix, tmp_path: Path
) -> None:
    fix.json("--apply")
    cache = tmp_path / "cache/.cache/flashinfer/0.6.11.post2/90a/cached_ops"
    for name in ("half", "tmp"):
        (cache / name).mkdir(parents=True)
        (cache / name / "build.ninja").write_text("cuda_home = /opt/cuda\n")
    workspace = {"FLASHINFER_WORKSPACE_BASE": str(tmp_path / "cache")}
    was = tree(tmp_path / "cache")
    said = fix.json("--apply", **workspace)
    assert outcomes(said) == {"set-aside": "healed"}
    assert not (cache / "half").exists()
    assert (cache / "tmp").exists()
    assert fix.run("undo", **workspace).code == 0
    assert tree(tmp_path / "cache") == was


def test_nothing_is_set_aside_while_it_is_being_built(fix: Fix, tmp_path: Path) -> None:
    fix.json("--apply")
    op = tmp_path / "cache/.cache/flashinfer/0.6.11.post2/90a/cached_ops/half"
    op.mkdir(parents=True)
    (op / "build.ninja").write_text("cuda_home = /opt/cuda\n")
    workspace = {"FLASHINFER_WORKSPACE_BASE": str(tmp_path / "cache")}
    with subprocess.Popen(["sleep", "60"], cwd=op) as builder:
        said = fix.json("--apply", **workspace)
        assert [w["id"] for w in said.report["withheld"]] == ["flashinfer-stale-cache"]
        assert f"pid {builder.pid}" in said.report["withheld"][0]["why"]
        builder.kill()
    assert op.exists()


def test_without_an_active_environment_nothing_is_repaired(bench: Bench, index: Index) -> None:
    shell = {"PATH": "/usr/bin:/bin", "HOME": str(bench.home), "PIP_INDEX_URL": index.url}
    said = run_doctor("fix", "--apply", env=shell)
    assert said.code == 2
    assert "--python" in said.err


@pytest.mark.parametrize(
    "words",
    [
        ("--create",),
        ("--apply", "--script", "x"),
        ("--script", "x", "--format", "json"),
        ("--script", "-", "--format", "github"),
        ("--keep-extra-indexes",),
        ("--mirror", "aliyn"),
        ("--mirror", "http://mirror.example/simple"),
        ("--allow", "everything"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_two_and_one_sentence(
    bench: Bench, index: Index, words: tuple[str, ...]
) -> None:
    shell = {"PATH": "/usr/bin:/bin", "HOME": str(bench.home), "PIP_INDEX_URL": index.url}
    said = run_doctor("fix", *words, env=shell)
    assert said.code == 2, said.err
    assert said.out == ""


def test_its_uv_reads_nothing_of_the_current_directory(
    fix: Fix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "uv.toml").write_text('[pip]\nindex-url = "http://192.0.2.1/simple"\n')
    (here / "pyproject.toml").write_text("[tool.uv]\nno-index = true\n")
    monkeypatch.chdir(here)
    assert fix.json().code == 1
    assert {p.name for p in here.iterdir()} == {"pyproject.toml", "uv.toml"}


def test_pip_is_the_tool_where_there_is_no_uv(
    bench: Bench, index: Index, reference: Environment
) -> None:
    """The same moves, by the doctor's own pip."""
    shell = bench.shell(index.url, reference)
    (source, *_) = choose_indexes((), False, None, shell, reference.prefix)
    version = Version(".".join(map(str, sys.version_info[:3])))
    roots = (VLLM, "transformers>=5.0", "cuda-toolkit[crt,nvcc,nvvm]==13.0.2")
    site = (reference.site,)
    wanted = Wanted(reference.python, version, site, roots, pinned=("torch==2.11.0",))
    by_pip, by_uv = pip.find_pip(), uv.find_uv(Live())
    assert by_uv
    if by_pip is None:
        pytest.skip("the tests' environment has no pip")
    ours, rows = by_pip.resolve(wanted, source, shell, 15)
    theirs, their_rows = by_uv.resolve(wanted, source, shell, 15)
    assert [(m.name, m.old, m.new) for m in ours] == [(m.name, m.old, m.new) for m in theirs]
    assert rows == their_rows


KINDS = ("venv", "system-site-packages", "behind a link", "no venv")


@pytest.mark.parametrize(("base", "kind"), [*zip(cycle(OTHER_PYTHONS), KINDS)], ids=str)
def test_a_plan_is_what_uv_would_do_which_asks_the_target_itself(
    bench: Bench, index: Index, tmp_path: Path, base: Path, kind: str
) -> None:
    """Of what is installed uv sees the metadata, and of the target's Python the version alone."""
    python = base
    if kind != "no venv":
        option = ("--system-site-packages",) if kind == "system-site-packages" else ()
        made = bench.uv("venv", *option, "--python", base, tmp_path / "venv", index=index.url)
        assert made.returncode == 0, made.stderr
        python = tmp_path / "venv/bin/python"
        bench.install(Environment(tmp_path / "venv"), VLLM, index=index.url)
    if kind == "behind a link":
        (tmp_path / "link").symlink_to("venv")
        python = tmp_path / "link/bin/python"
    who = Facts(Live({}), (Where(python, FoundBy.OPTION),)).get(Interpreter)
    roots = (VLLM, "transformers>=5.0", "cuda-toolkit[crt,nvcc,nvvm]==13.0.2")
    held = ("torch==2.11.0",) if kind != "no venv" else ()
    wanted = Wanted(python, who.version, who.installs_to, roots, held, ("flashinfer-python",))
    shell = bench.shell(index.url, Environment(who.prefix))
    (source, *_) = choose_indexes((), False, None, shell, who.prefix)
    tool = uv.find_uv(Live({}))
    assert tool is not None
    moves, rows = tool.resolve(wanted, source, shell, 15)
    (tmp_path / "held").write_text("\n".join(held))
    words = ("--dry-run", "--no-build", "--python", python, "--constraints", tmp_path / "held")
    again = ("--reinstall-package", "flashinfer-python")
    asked = bench.uv("pip", "install", *words, *again, *roots, index=index.url)
    said = re.findall(r"(?m)^ ([-+~]) ([\w.-]+?)==(\S+)", asked.stderr)
    assert {(m.name, m.old) for m in moves if m.old} == {(n, v) for s, n, v in said if s in "-~"}
    assert {(m.name, m.new) for m in moves if m.new} == {(n, v) for s, n, v in said if s in "+~"}
    assert {m.name for m in moves} > {"transformers", "flashinfer-python"}
    assert rows.count("--hash=sha256:") == len([m for m in moves if m.new])


def test_the_proof_loads_what_a_server_has_loaded_already(fix: Fix) -> None:
    """Where the linker keeps what no symbol asks for, the kernel needs nvrtc, as torch does."""
    linker = {"CXX": "c++ -Wl,--no-as-needed"}
    said = fix.json("--apply", **linker)
    assert said.report["deep"]["ok"], said.report["deep"]
