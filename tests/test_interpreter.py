"""Every kind of Python environment says truthfully who it is and where it imports from, and the
doctor's answer is what the interpreter itself would say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from doctor import profile as profiles
from doctor.engine import Facts
from doctor.probes.interpreter import FoundBy, Interpreter, Where, import_path
from doctor.probes.wheels import Packages
from doctor.profile import ServeRequest
from doctor.target import Live
from tests.conftest import BASE_PYTHON, SYSTEM, Environment, bare_environment, run_doctor

PYENV = Path("/root/.pyenv/versions")
SYSTEM_PYTHON = Path("/usr/bin/python3")
# What `site` makes of it, once `.pth` lines run and paths that do not exist are left out.
ASK = """
import json, site, sys, sysconfig
print(json.dumps({
    "path": sys.path, "prefix": sys.prefix, "base_prefix": sys.base_prefix,
    "version": "%d.%d.%d" % sys.version_info[:3], "include": sysconfig.get_paths()["include"],
    "purelib": sysconfig.get_paths()["purelib"], "platlib": sysconfig.get_paths()["platlib"],
}))
"""


def bases() -> list[Any]:
    """Interpreters of this machine: every release the doctor judges, and the system's own."""
    found = [PYENV / v / "bin/python" for v in ("3.10.13", "3.12.1", "3.13.0")]
    rows: list[Any] = [p if p.exists() else _absent(p) for p in (*found, SYSTEM_PYTHON)]
    return [*rows, Path(sys.base_prefix) / "bin/python3"]


def _absent(path: Path) -> Any:
    return pytest.param(path, marks=pytest.mark.skip(reason=f"there is no {path}"))


@pytest.fixture(params=bases(), ids=str)
def base(request: pytest.FixtureRequest) -> Path:
    made: Path = request.param
    return made


def make_venv(base: Path, prefix: Path, *options: str) -> Environment:
    """A virtual environment made by the interpreter itself."""
    made = subprocess.run(
        [base, "-m", "venv", "--without-pip", *options, prefix],
        env=SYSTEM,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"{base} cannot make environments: {made.stderr[-100:]}")
    return Environment(prefix)


def itself(python: Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the interpreter says when it is simply started, as the server would be."""
    ran = subprocess.run(
        [python, "-c", ASK], env={**SYSTEM, **(env or {})}, capture_output=True, check=True
    )
    made: dict[str, Any] = json.loads(ran.stdout)
    return made


def facts(python: Path, env: Mapping[str, str] | None = None) -> Facts:
    given = (
        Where(python, FoundBy.OPTION),
        ServeRequest(profiles.load_profile(profiles.DEFAULT_PROFILE)),
    )
    return Facts(Live({**SYSTEM, **(env or {})}), given)


def asked(python: Path, env: Mapping[str, str] | None = None) -> Interpreter:
    return facts(python, env).get(Interpreter)


def packages(python: Path, env: Mapping[str, str] | None = None) -> Packages:
    return facts(python, env).get(Packages)


def existing(paths: tuple[Path, ...] | list[str]) -> list[Path]:
    """Folders of distributions among them, in order; the standard library's own left out."""
    folders = (Path(p) for p in paths if p)
    return [p for p in folders if p.is_dir() and p.name in ("site-packages", "dist-packages")]


def test_a_virtual_environment_of_any_python(base: Path, tmp_path: Path) -> None:
    one = make_venv(base, tmp_path / "venv")
    said, made = itself(one.python), asked(one.python)
    assert made.python == one.python
    assert made.prefix == Path(said["prefix"]) == one.prefix
    assert made.base_prefix == Path(said["base_prefix"])
    assert made.version == Version(said["version"])
    assert made.virtual
    assert made.user_site is None
    assert Path(said["purelib"]) in made.site_packages
    assert {Path(said["purelib"]), Path(said["platlib"])} == {*made.installs_to}
    assert existing(import_path(made, {})) == existing(said["path"])
    assert (made.include / "Python.h").exists() or not (Path(said["include"]) / "Python.h").exists()


def test_an_interpreter_without_an_environment(base: Path) -> None:
    env = {"HOME": "/nowhere"}
    said, made = itself(base, env), asked(base, env)
    assert made.prefix == Path(said["prefix"])
    assert made.version == Version(said["version"])
    assert not made.virtual
    assert {Path(said["purelib"]), Path(said["platlib"])} == {*made.installs_to}
    assert existing(import_path(made, env)) == existing(said["path"])


@pytest.mark.parametrize("how", ["symlink to python", "symlink to bin", "symlink to prefix"])
def test_an_environment_reached_by_a_link(tmp_path: Path, how: str) -> None:
    one = make_venv(Path(sys.executable).resolve(), tmp_path / "venv")
    one.install("torch", "2.11.0")
    if how == "symlink to prefix":
        (tmp_path / "link").symlink_to(one.prefix)
        python = tmp_path / "link/bin/python"
    elif how == "symlink to bin":
        (tmp_path / "link").mkdir()
        (tmp_path / "link/bin").symlink_to(one.prefix / "bin")
        python = tmp_path / "link/bin/python"
    else:
        (tmp_path / "link").mkdir()
        (tmp_path / "link/mypython").symlink_to(one.python)
        python = tmp_path / "link/mypython"
    made = asked(python, {})
    assert existing(import_path(made, {})) == existing(itself(python)["path"])
    said = run_doctor("diagnose", "--format", "json", "--python", python, "--set", "device=cpu")
    assert said.err == ""
    assert said.report["target"]["prefix"] == itself(python)["prefix"]


def test_a_venv_that_sees_the_systems_packages(base: Path, tmp_path: Path) -> None:
    one = make_venv(base, tmp_path / "venv", "--system-site-packages")
    env = {"HOME": str(tmp_path / "home")}
    user = existing_user_site(one.python, env)
    one.install("numpy", "1.0")
    said, made = itself(one.python, env), asked(one.python, env)
    assert existing(import_path(made, env)) == existing(said["path"])
    assert made.user_site == user
    assert str(made.site_packages[0]).startswith(str(one.prefix))


def existing_user_site(python: Path, env: Mapping[str, str]) -> Path:
    """The user's own site-packages, made."""
    ask = "import site; print(site.getusersitepackages())"
    said = subprocess.run(
        [python, "-c", ask], env={**SYSTEM, **env}, capture_output=True, text=True, check=True
    )
    made = Path(said.stdout.strip())
    made.mkdir(parents=True)
    return made


class TestShadows:
    """What comes first where two folders hold the same distribution: as `site` orders them."""

    @pytest.fixture
    def one(self, tmp_path: Path) -> Environment:
        made = bare_environment(tmp_path / "venv", system_site_packages=True)
        made.install("torch", "2.11.0")
        return made

    def version(self, one: Environment, env: Mapping[str, str]) -> str:
        return str(packages(one.python, env).version("torch"))

    def imported(self, one: Environment, env: Mapping[str, str]) -> str:
        """What the interpreter itself finds first."""
        ask = "import importlib.metadata as m; print(m.version('torch'))"
        said = subprocess.run(
            [one.python, "-c", ask],
            env={**SYSTEM, **env},
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        return said.stdout.strip()

    def test_pythonpath_comes_first(self, one: Environment, tmp_path: Path) -> None:
        one.install("torch", "9.0", folder=tmp_path / "shadow")
        env = {"PYTHONPATH": f"/nowhere:{tmp_path}/shadow"}
        assert self.version(one, env) == self.imported(one, env) == "9.0"

    def test_an_empty_entry_of_pythonpath_is_the_servers_folder_and_not_judged(
        self, one: Environment
    ) -> None:
        assert self.version(one, {"PYTHONPATH": ":"}) == "2.11.0"

    def test_an_environment_comes_before_the_users_site_that_it_lets_in(
        self, one: Environment, tmp_path: Path
    ) -> None:
        env = {"HOME": str(tmp_path / "home")}
        one.install("torch", "8.0", folder=existing_user_site(one.python, env))
        assert self.version(one, env) == self.imported(one, env) == "2.11.0"

    def test_the_users_site_comes_before_the_systems(
        self, one: Environment, tmp_path: Path
    ) -> None:
        env = {"HOME": str(tmp_path / "home")}
        user = existing_user_site(BASE_PYTHON, env)
        one.install("pip", "99.0", folder=user)
        found = packages(BASE_PYTHON, env).installed["pip"]
        assert (str(found.version), found.folder) == ("99.0", user)

    @pytest.mark.parametrize(("value", "version"), [("1", "None"), ("x", "None"), ("", "8.0")])
    def test_the_users_site_can_be_switched_off(
        self, one: Environment, tmp_path: Path, value: str, version: str
    ) -> None:
        home = {"HOME": str(tmp_path / "home")}
        one.install("triton", "8.0", folder=existing_user_site(one.python, home))
        env = {**home, "PYTHONNOUSERSITE": value}
        assert str(packages(one.python, env).version("triton")) == version

    def test_a_venv_on_its_own_sees_no_users_site(self, bare: Environment, tmp_path: Path) -> None:
        env = {"HOME": str(tmp_path / "home")}
        bare.install("torch", "2.11.0")
        user = existing_user_site(Path(sys.executable).resolve(), env)
        bare.install("torch", "8.0", folder=user)
        assert self.version(bare, env) == self.imported(bare, env) == "2.11.0"

    def test_pythonuserbase_moves_the_users_site(self, one: Environment, tmp_path: Path) -> None:
        env = {"HOME": "/nowhere", "PYTHONUSERBASE": str(tmp_path / "base")}
        one.install("triton", "7.0", folder=existing_user_site(one.python, env))
        assert str(packages(one.python, env).version("triton")) == "7.0"

    def test_pythonhome_does_not_lead_the_doctor_astray(self, one: Environment) -> None:
        assert self.version(one, {"PYTHONHOME": "/nowhere"}) == "2.11.0"

    def test_pth_folders_of_the_users_site_count(self, one: Environment, tmp_path: Path) -> None:
        env = {"HOME": str(tmp_path / "home")}
        one.install("torch", "6.0", folder=tmp_path / "editable")
        (one.site / "torch-2.11.0.dist-info").rename(tmp_path / "away")
        (existing_user_site(one.python, env) / "e.pth").write_text(f"{tmp_path}/editable\n")
        assert self.version(one, env) == self.imported(one, env) == "6.0"


def test_a_pyvenv_cfg_beside_the_python_counts_too(tmp_path: Path) -> None:
    """`site` looks beside the executable, then one folder up (PEP 405)."""
    one = bare_environment(tmp_path / "venv")
    (one.prefix / "pyvenv.cfg").rename(one.python.parent / "pyvenv.cfg")
    said = itself(one.python)
    assert asked(one.python).virtual == (said["prefix"] != said["base_prefix"])


def test_an_old_python_gets_an_answer_and_no_traceback(tmp_path: Path) -> None:
    old = PYENV / "3.8.18/bin/python"
    if not old.exists():
        pytest.skip("there is no Python 3.8")
    one = make_venv(old, tmp_path / "venv")
    said = run_doctor("diagnose", "--format", "json", "--python", one.prefix)
    assert (said.code, said.err) == (1, "")
    assert said.report["target"]["python"] == str(one.python)


def test_python_2_is_no_interpreter_to_judge(tmp_path: Path) -> None:
    old = PYENV / "2.7.18/bin/python"
    if not old.exists():
        pytest.skip("there is no Python 2.7")
    said = run_doctor("diagnose", "--python", old)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)


def test_a_conda_prefix_is_judged_as_it_is(tmp_path: Path) -> None:
    """A whole Python in a prefix, without pyvenv.cfg."""
    base = PYENV / "3.12.1"
    if not base.exists():
        pytest.skip("there is no Python 3.12.1")
    made = asked(base / "bin/python", {"CONDA_PREFIX": str(base), "HOME": str(tmp_path)})
    assert (made.prefix, made.virtual) == (base, False)
    assert made.site_packages[0] == base / "lib/python3.12/site-packages"
    assert made.include == base / "include/python3.12"
