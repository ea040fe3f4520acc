"""Which interpreter is judged, in which order it is looked for, and when it may not be started."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from doctor.locate import LocateError, locate, refuse_foreign
from doctor.probes.interpreter import FoundBy, Where
from tests.conftest import BASE_PYTHON, Environment, bare_environment, run_doctor, script

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
SOMEONE, SOMEONE_ELSE = 12345, 23456


@pytest.fixture
def other(tmp_path: Path) -> Environment:
    return bare_environment(tmp_path / "other")


def vllm_script(folder: Path, first_line: str, *more: str) -> Path:
    """A console script `vllm` as an installer writes it; returns the folder for PATH."""
    text = "\n".join([first_line, *more, "import sys", "from vllm import main", "main()"])
    path = folder / "vllm"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    path.chmod(0o755)
    return folder


def trampoline(python: str) -> tuple[str, str, str]:
    """What pip (distlib) and uv write where a shebang would be too long or has spaces."""
    return ("#!/bin/sh", f"'''exec' {python} \"$0\" \"$@\"", "' '''")


class TestPythonOption:
    def test_a_python_is_taken_as_it_is_called(self, bare: Environment) -> None:
        """Its links are not followed: a venv's python is known by the folder it is called in."""
        assert locate(str(bare.python), {}) == Where(bare.python, FoundBy.OPTION)

    def test_a_folder_means_the_python_in_it(self, bare: Environment) -> None:
        for value in (str(bare.prefix), f"{bare.prefix}/", f"{bare.prefix}/."):
            assert locate(value, {}).python == bare.python

    def test_a_folder_with_only_a_python3_is_an_environment_too(self, bare: Environment) -> None:
        """As /usr is on Debian and Fedora, which have no bin/python."""
        bare.python.rename(bare.python.with_name("python3"))
        assert locate(str(bare.prefix), {}).python == bare.python.with_name("python3")

    def test_a_relative_path_is_that_of_the_shell(
        self, bare: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(bare.prefix.parent)
        assert locate(bare.prefix.name, {}).python == bare.python

    def test_it_beats_everything_else(self, bare: Environment, other: Environment) -> None:
        env = {"VIRTUAL_ENV": str(other.prefix), "CONDA_PREFIX": str(other.prefix)}
        assert locate(str(bare.prefix), env) == Where(bare.python, FoundBy.OPTION)


class TestDiscovery:
    def test_an_active_venv_comes_before_conda_and_path(
        self, bare: Environment, other: Environment
    ) -> None:
        folder = vllm_script(other.prefix / "bin", f"#!{other.python}")
        env = {
            "VIRTUAL_ENV": str(bare.prefix),
            "CONDA_PREFIX": str(other.prefix),
            "PATH": str(folder),
        }
        assert locate(None, env) == Where(bare.python, FoundBy.VIRTUAL_ENV)

    def test_an_active_conda_prefix_comes_before_path(
        self, bare: Environment, other: Environment
    ) -> None:
        folder = vllm_script(other.prefix / "bin", f"#!{other.python}")
        env = {"CONDA_PREFIX": str(bare.prefix), "PATH": str(folder)}
        assert locate(None, env) == Where(bare.python, FoundBy.CONDA_PREFIX)

    @pytest.mark.parametrize("name", ["VIRTUAL_ENV", "CONDA_PREFIX"])
    def test_one_that_is_set_and_gone_is_named_and_not_passed_over(
        self, tmp_path: Path, name: str
    ) -> None:
        with pytest.raises(
            LocateError, match=f"^{name} {tmp_path}/gone: {tmp_path}/gone does not exist"
        ):
            locate(None, {name: f"{tmp_path}/gone"})

    def test_an_empty_variable_is_none(self, bare: Environment) -> None:
        folder = vllm_script(bare.prefix / "bin", f"#!{bare.python}")
        made = locate(None, {"VIRTUAL_ENV": "", "CONDA_PREFIX": "", "PATH": str(folder)})
        assert made == Where(bare.python, FoundBy.VLLM_ON_PATH, folder / "vllm")

    def test_the_first_vllm_on_path_counts(self, bare: Environment, other: Environment) -> None:
        first = vllm_script(bare.prefix / "bin", f"#!{bare.python}")
        second = vllm_script(other.prefix / "bin", f"#!{other.python}")
        assert locate(None, {"PATH": f"/nowhere:{first}:{second}"}).python == bare.python

    def test_a_vllm_that_cannot_be_executed_does_not_count(
        self, bare: Environment, other: Environment
    ) -> None:
        (vllm_script(bare.prefix / "bin", f"#!{bare.python}") / "vllm").chmod(0o644)
        second = vllm_script(other.prefix / "bin", f"#!{other.python}")
        path = f"{bare.prefix}/bin:{second}"
        assert locate(None, {"PATH": path}).python == other.python

    def test_the_link_that_pipx_or_uv_tool_makes_leads_to_the_environment(
        self, bare: Environment, tmp_path: Path
    ) -> None:
        vllm_script(bare.prefix / "bin", f"#!{bare.python}")
        (tmp_path / "local").mkdir()
        (tmp_path / "local/vllm").symlink_to(bare.prefix / "bin/vllm")
        assert locate(None, {"PATH": str(tmp_path / "local")}).python == bare.python

    @pytest.mark.parametrize("name", ["plain", "with space", "it's", "größe", 'a "quote"'])
    def test_a_trampoline_is_followed_whatever_the_path(self, tmp_path: Path, name: str) -> None:
        one = bare_environment(tmp_path / name)
        path = str(one.python)
        # distlib puts double quotes around a path with spaces and leaves any other as it is.
        quoted = f'"{path}"' if " " in path and '"' not in path else path
        if "'" in path or '"' in path:
            quoted = "'" + path.replace("'", "'\"'\"'") + "'"
        folder = vllm_script(one.prefix / "bin", *trampoline(quoted))
        assert locate(None, {"PATH": str(folder)}).python == one.python

    def test_a_trampoline_really_starts_what_is_located(self, tmp_path: Path) -> None:
        one = bare_environment(tmp_path / "with space")
        folder = tmp_path / "on path"
        folder.mkdir()
        run = script(folder / "vllm", "")
        body = "import sys; print(sys.executable)"
        run.write_text("\n".join([*trampoline(f'"{one.python}"'), body]) + "\n")
        env = {"PATH": f"{folder}:/usr/bin:/bin"}
        started = subprocess.run([run], env=env, capture_output=True, text=True, check=True)
        assert Path(started.stdout.strip()) == locate(None, env).python

    def test_uv_starts_its_python_through_a_relative_trampoline(self, bare: Environment) -> None:
        """`uv venv --relocatable`: the python beside the script."""
        lines = (
            "#!/bin/sh",
            '\'\'\'exec\' "$(dirname -- "$(realpath -- "$0")")"/\'python\' "$0" "$@"',
            "' '''",
        )
        folder = vllm_script(bare.prefix / "bin", *lines)
        assert locate(None, {"PATH": str(folder)}).python == bare.python

    @pytest.mark.parametrize("first", ["#!/usr/bin/env python3", "#! /usr/bin/env -S python3 -s"])
    def test_env_in_a_shebang_means_the_python_on_path(
        self, bare: Environment, tmp_path: Path, first: str
    ) -> None:
        bare.python.with_name("python3").symlink_to(BASE_PYTHON)
        folder = vllm_script(tmp_path / "scripts", first)
        made = locate(None, {"PATH": f"{folder}:{bare.prefix}/bin"})
        assert made.python == bare.python.with_name("python3")

    @pytest.mark.parametrize(
        "first",
        [
            "",
            "#!",
            "#!/bin/sh",
            "#!/nowhere/python3",
            "\x7fELF",
            "#!python",
            "'''exec' x",
            "#!\udcff",
        ],
        ids=ascii,
    )
    def test_a_vllm_that_names_no_interpreter_is_passed_over(
        self, tmp_path: Path, first: str
    ) -> None:
        (tmp_path / "vllm").write_bytes(first.encode("utf-8", "surrogateescape") + b"\n")
        (tmp_path / "vllm").chmod(0o755)
        made = locate(None, {"PATH": str(tmp_path)})
        assert made == Where(Path(sys.executable), FoundBy.OWN)

    def test_the_doctors_own_interpreter_is_the_last_resort(self) -> None:
        for env in ({}, {"PATH": ""}, {"PATH": "/nowhere"}):
            assert locate(None, env) == Where(Path(sys.executable), FoundBy.OWN)

    def test_the_report_says_which_and_why(self, bare: Environment) -> None:
        env = {"VIRTUAL_ENV": str(bare.prefix)}
        said = run_doctor("diagnose", "--set", "device=cpu", env=env)
        assert said.out.startswith(f"{bare.prefix} (VIRTUAL_ENV)")
        said = run_doctor("diagnose", "-v", "--set", "device=cpu", env=env)
        assert said.out.startswith(
            f"Judged {bare.python} (found by VIRTUAL_ENV) for zai-org/GLM-4.7-Flash (profile "
        )


class TestForeignOwner:
    """As root, what another user can change is not started."""

    def refused(self, one: Environment, *options: str) -> bool:
        said = run_doctor("diagnose", "--python", one.prefix, "--set", "device=cpu", *options)
        assert "Traceback" not in said.err
        if said.code == 2:
            assert "--allow foreign-owner" in said.err
        return said.code == 2

    @ROOT_ONLY
    def test_an_interpreter_of_another_user_is_refused(self, bare: Environment) -> None:
        os.chown(bare.python, SOMEONE, SOMEONE, follow_symlinks=False)
        assert self.refused(bare)
        assert not self.refused(bare, "--allow", "foreign-owner")

    @ROOT_ONLY
    def test_a_copied_interpreter_of_another_user_is_refused(self, bare: Environment) -> None:
        bare.python.unlink()
        script(bare.python, "exit 0")
        os.chown(bare.python, SOMEONE, SOMEONE)
        with pytest.raises(LocateError):
            refuse_foreign(bare.python)

    @ROOT_ONLY
    def test_settings_of_another_user_are_refused(self, bare: Environment) -> None:
        """pyvenv.cfg names the base interpreter, whose standard library is loaded."""
        os.chown(bare.prefix / "pyvenv.cfg", SOMEONE, SOMEONE)
        assert self.refused(bare)

    @ROOT_ONLY
    def test_the_owner_of_a_prefix_does_not_vouch_for_what_is_in_it(
        self, bare: Environment
    ) -> None:
        for path in (bare.prefix, bare.python.parent, bare.prefix / "pyvenv.cfg"):
            os.chown(path, SOMEONE, SOMEONE)
        os.chown(bare.python, SOMEONE, SOMEONE, follow_symlinks=False)
        assert self.refused(bare)
        assert not self.refused(bare, "--allow", "foreign-owner")

    @ROOT_ONLY
    @pytest.mark.parametrize("mode", [0o757, 0o775])
    def test_a_folder_above_in_which_others_may_exchange_it_is_refused(
        self, bare: Environment, mode: int
    ) -> None:
        os.chown(bare.prefix.parent, 0, SOMEONE)
        bare.prefix.parent.chmod(mode)
        assert self.refused(bare)
        bare.prefix.parent.chmod(mode | stat.S_ISVTX)
        assert not self.refused(bare)

    @ROOT_ONLY
    def test_a_third_user_in_the_prefix_of_another_is_refused(self, bare: Environment) -> None:
        os.chown(bare.prefix, SOMEONE, SOMEONE)
        os.chown(bare.python, SOMEONE_ELSE, SOMEONE_ELSE, follow_symlinks=False)
        assert self.refused(bare)

    @ROOT_ONLY
    def test_a_bin_folder_of_another_user_is_refused(self, bare: Environment) -> None:
        """Who owns the folder can put another python into it at any time."""
        os.chown(bare.python.parent, SOMEONE, SOMEONE)
        assert self.refused(bare)

    @ROOT_ONLY
    def test_a_file_or_folder_that_everybody_may_write_is_refused(self, bare: Environment) -> None:
        (bare.prefix / "pyvenv.cfg").chmod(0o666)
        assert self.refused(bare)
        (bare.prefix / "pyvenv.cfg").chmod(0o644)
        assert not self.refused(bare)
        bare.python.parent.chmod(0o777)
        assert self.refused(bare)

    @ROOT_ONLY
    def test_the_interpreter_behind_a_foreign_vllm_on_path_is_refused(
        self, bare: Environment
    ) -> None:
        folder = vllm_script(bare.prefix / "bin", f"#!{bare.python}")
        os.chown(bare.python, SOMEONE, SOMEONE, follow_symlinks=False)
        said = run_doctor("diagnose", env={"PATH": f"{folder}:/usr/bin:/bin"})
        assert said.code == 2
        assert "--allow foreign-owner" in said.err

    def test_a_user_starts_what_the_user_may(
        self, bare: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        bare.python.parent.chmod(0o777)
        refuse_foreign(bare.python)
