"""`vllm-doctor env`: what fixes have saved, in the words of a shell, a unit, a file, a program.

Each form is read back by whom it is meant for, as far as this machine has it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from doctor.fixes import PrependPath, SetVariable, UnsetVariable
from doctor.probes.environment import (
    SAVED,
    LaunchEnv,
    Saved,
    SavedValue,
)
from doctor.probes.interpreter import Interpreter
from doctor.report import exports as reporting
from doctor.report.exports import EXPORT_FORMS, ExportError, notes
from doctor.shipped import rules_folder
from doctor.variables import PATH_LIKE, SETTABLE
from tests.conftest import (
    DOCTOR,
    HANGS,
    SYSTEM,
    Environment,
    bare_environment,
    cpu_environment,
    facts_of,
    run_doctor,
    script,
)
from tests.test_rule_cases import cases, run

SHELLS = [s for s in ("sh", "dash", "bash", "zsh", "ksh", "busybox") if shutil.which(s)]
# What each shell, unit or file would take for something else, were it not quoted.
NASTY = [
    "/plain",
    "/two words",
    "it's",
    'a "word"',
    "$HOME ${PATH} $(touch x) `touch x`",
    "back\\slash\\",
    "\\",
    "%h %% %",
    "* ? [a] ~ # ; & | < > ( ) { }",
    "-n",
    "=",
    "!history",
    "中文",
]


def exports(form: str, shell: Mapping[str, str], saved: Saved) -> str:
    return reporting.exports(form, shell, saved, Path("/env"))


def kept(**variables: SavedValue) -> Saved:
    return Saved(variables=variables)


def save(one: Environment, **variables: Any) -> None:
    path = one.prefix / SAVED
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema_version": 1, "variables": variables}))


def after(command: list[str], text: str, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program that is started behind `text`, evaluated twice."""
    show = f"{shutil.which('env')} -0"
    ran = subprocess.run(
        [*command, f"set -u\n{text}\n{text}\n{show}" if "fish" not in command else f"{text}{show}"],
        env={**SYSTEM, **env},
        capture_output=True,
        check=True,
    )
    assert ran.stderr == b""
    rows = ran.stdout.decode().split("\0")
    return dict(row.split("=", 1) for row in rows if row)


class TestShells:
    """What the lines come to where they are evaluated."""

    def command(self, shell: str) -> list[str]:
        return [shell, "sh", "-c"] if shell == "busybox" else [shell, "-c"]

    @pytest.mark.parametrize("shell", SHELLS)
    def test_every_value_arrives_as_it_was_saved(self, shell: str) -> None:
        for value in NASTY:
            saved = kept(CUDA_HOME=SavedValue(value))
            made = after(self.command(shell), exports("sh", {}, saved), {})
            assert made["CUDA_HOME"] == value

    @pytest.mark.parametrize("shell", SHELLS)
    @pytest.mark.parametrize("old", [None, "", "/a:/b", "/x y:/b", "/x y/sub", "/n", "/n:/x y"])
    def test_folders_are_put_in_front_once(self, shell: str, old: str | None) -> None:
        one = SavedValue("/x y:/n", prepend=True)
        env = {} if old is None else {"LD_LIBRARY_PATH": old}
        text = exports("sh", env, kept(LD_LIBRARY_PATH=one))
        assert after(self.command(shell), text, env)["LD_LIBRARY_PATH"] == one.over(old)

    @pytest.mark.parametrize("shell", SHELLS)
    def test_a_folder_is_no_pattern(self, shell: str) -> None:
        """`*` in a folder's name must not match another folder of PATH."""
        env = {"PATH": "/usr/bin:/bin:/opt/abc/bin"}
        text = exports("sh", env, kept(PATH=SavedValue("/opt/*/bin", prepend=True)))
        made = after([shutil.which(shell) or shell, *self.command(shell)[1:]], text, env)
        assert made["PATH"] == "/opt/*/bin:/usr/bin:/bin:/opt/abc/bin"

    @pytest.mark.parametrize("shell", SHELLS)
    def test_what_was_judged_bad_is_taken_out(self, shell: str) -> None:
        saved = kept(CUDA_PATH=SavedValue(None, instead_of=("/bad",)))
        env = {"CUDA_PATH": "/bad"}
        assert "CUDA_PATH" not in after(self.command(shell), exports("sh", env, saved), env)
        assert exports("sh", {}, saved) == ""
        assert exports("sh", {"CUDA_PATH": "/another"}, saved) == ""

    @pytest.mark.skipif(not shutil.which("fish"), reason="there is no fish here")
    @pytest.mark.parametrize("old", [None, "/a:/b", "/x y:/b"])
    def test_fish_takes_it_as_well(self, old: str | None, tmp_path: Path) -> None:
        env = {"HOME": str(tmp_path), "CUDA_PATH": "/bad"}
        if old is not None:
            env["LD_LIBRARY_PATH"] = old
        for value in NASTY:
            saved = kept(
                CUDA_HOME=SavedValue(value),
                CUDA_PATH=SavedValue(None, instead_of=("/bad",)),
                LD_LIBRARY_PATH=SavedValue(f"/x y:{value}", prepend=True),
            )
            text = exports("fish", env, saved)
            made = after(["fish", "--no-config", "-c"], text * 2, env)
            assert made["CUDA_HOME"] == value
            assert made["LD_LIBRARY_PATH"] == saved.variables["LD_LIBRARY_PATH"].over(old)
            assert "CUDA_PATH" not in made

    def test_python_reads_the_same_as_a_shell(self) -> None:
        for value in NASTY:
            words = shlex.split(exports("sh", {}, kept(CUDA_HOME=SavedValue(value))))
            assert words == ["export", f"CUDA_HOME={value}"]


SYSTEMD = Path("/lib/systemd/systemd")
UNITS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def read_by_systemd(lines: str) -> dict[str, str | None]:
    """What systemd's own parser makes of a drop-in; None for what it takes out."""
    as_user = []
    if os.geteuid() == 0:  # as root it does not run as a user's instance
        as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with tempfile.TemporaryDirectory(prefix="units-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        quiet = "[Unit]\nDefaultDependencies=no\n"
        for unit in ("basic.target", "shutdown.target", "sysinit.target"):
            (folder / unit).write_text(quiet)
        (folder / "default.target").write_text(f"{quiet}Requires=x.service\n")
        (folder / "x.service").write_text("[Service]\nExecStart=/bin/true\n")
        (folder / "x.service.d").mkdir()
        (folder / "x.service.d/ours.conf").write_text(lines)
        ran = subprocess.run(
            [*as_user, str(SYSTEMD), "--user", "--test", "--unit=default.target"],
            env={
                **SYSTEM,
                "SYSTEMD_UNIT_PATH": name,
                "XDG_RUNTIME_DIR": name,
                "HOME": name,
                "SYSTEMD_LOG_TARGET": "console",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    _, found, unit = ran.stdout.partition("-> Unit x.service:")
    if not found:
        pytest.skip(f"systemd does not run here: {ran.stderr[-200:]}")
    made: dict[str, str | None] = {}
    for row in unit.partition("-> Unit")[0].splitlines():
        kind, _, rest = row.strip("\t").partition(": ")
        if kind == "Environment":
            name, _, value = rest.partition("=")
            made[name] = value
        elif kind == "UnsetEnvironment":
            made[rest] = None
    return made


ESCAPES = {"\\": "\\", '"': '"'}


def read_as_systemd(lines: str) -> dict[str, str | None]:
    """The same by what systemd.syntax(7) and systemd.exec(5) say, in the part that is used here."""
    section, made = "", dict[str, str | None]()
    for line in lines.splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = heading[1]
            continue
        key, _, words = line.partition("=")
        assert section == "Service", f"systemd ignores what stands in no section: {line}"
        quoted = re.fullmatch(r'"((?:[^"\\]|\\.)*)"', words)
        assert quoted, f"more than one word: {line}"
        word = re.sub(r"\\(.)", lambda escape: ESCAPES[escape[1]], quoted[1])
        assert not re.search(r"(?<!%)(?:%%)*%(?!%)", word), f"a specifier: {line}"
        word = word.replace("%%", "%")
        if key == "Environment":
            name, _, value = word.partition("=")
            made[name] = value
        else:
            assert key == "UnsetEnvironment"
            made[word] = None
    return made


def complaints_of_systemd(unit: Path) -> list[str]:
    """What `systemd-analyze verify` says of a unit's own files."""
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        env={**SYSTEM, "SYSTEMD_UNIT_PATH": f"{unit.parent}:"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return [row for row in verified.stderr.splitlines() if str(unit.parent) in row]


class TestOthers:
    """Forms that no shell reads."""

    @pytest.mark.skipif(not SYSTEMD.exists(), reason="there is no systemd here")
    def test_systemd_reads_what_was_saved(self) -> None:
        for value in NASTY:
            saved = kept(
                CUDA_HOME=SavedValue(value),
                CUDA_PATH=SavedValue(None, instead_of=("/bad",)),
                PATH=SavedValue("/x y", prepend=True),
            )
            made = read_by_systemd(exports("systemd", {"PATH": "/of/the/shell"}, saved))
            path = f"/x y:/env/bin:{UNITS_PATH}"
            assert made == {"CUDA_HOME": value, "CUDA_PATH=/bad": None, "PATH": path}

    def test_a_unit_gets_nothing_of_the_calling_shell(self) -> None:
        shell = dict.fromkeys(PATH_LIKE, "/of/the/shell") | {"CUDA_HOME": "/of/the/shell"}
        saved = kept(
            CUDA_HOME=SavedValue("/ours", instead_of=("/bad",)),
            LD_LIBRARY_PATH=SavedValue("/ours/lib", prepend=True),
        )
        assert exports("systemd", shell, saved).splitlines() == [
            "[Service]",
            'Environment="CUDA_HOME=/ours"',
            'Environment="LD_LIBRARY_PATH=/ours/lib"',
            f'Environment="PATH=/env/bin:{UNITS_PATH}"',
        ]

    def test_a_parser_with_the_rules_of_systemd_reads_what_was_saved(self) -> None:
        for value in NASTY:
            saved = kept(
                CUDA_HOME=SavedValue(value),
                CUDA_PATH=SavedValue(None, instead_of=(value,)),
                PATH=SavedValue("/x y", prepend=True),
            )
            made = read_as_systemd(exports("systemd", {}, saved))
            path = f"/x y:/env/bin:{UNITS_PATH}"
            assert made == {"CUDA_HOME": value, f"CUDA_PATH={value}": None, "PATH": path}

    @pytest.mark.parametrize("page", ["docs/provisioning.md", "docs/zh/provisioning.md"])
    def test_the_recipe_of_the_docs_makes_a_unit_that_systemd_takes(
        self, page: str, bare: Environment, tmp_path: Path
    ) -> None:
        """Its own lines, in a folder of the test's; only systemctl is a stand-in."""
        text = (Path(__file__).parent.parent / page).read_text(encoding="utf-8")
        (recipe,) = re.findall(r"<!-- systemd -->\n```sh\n(.*?)```\n<!-- /systemd -->", text, re.S)
        units = tmp_path / "units"
        units.mkdir()
        (units / "vllm.service").write_text("[Service]\nExecStart=/bin/true\n")
        save(
            bare,
            CUDA_HOME={"value": "/our home/100%"},
            PATH={"value": "/our home/100%/bin", "prepend": True},
        )
        recipe = recipe.replace("/etc/systemd/system", str(units))
        recipe = recipe.replace("/opt/vllm", str(bare.prefix))
        script(tmp_path / "bin/systemctl", f'echo "$@" > {tmp_path}/reloaded')
        path = f"{tmp_path}/bin:{DOCTOR.parent}:/usr/bin:/bin"
        subprocess.run(["sh", "-eu", "-c", recipe], env={**SYSTEM, "PATH": path}, check=True)
        assert (tmp_path / "reloaded").read_text() == "daemon-reload\n"
        (drop_in,) = units.glob("vllm.service.d/*.conf")
        assert read_as_systemd(drop_in.read_text()) == {
            "CUDA_HOME": "/our home/100%",
            "PATH": f"/our home/100%/bin:{bare.prefix}/bin:{UNITS_PATH}",
        }
        if shutil.which("systemd-analyze"):
            assert not complaints_of_systemd(units / "vllm.service")

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
    def test_systemd_complains_of_lines_without_a_section(self, tmp_path: Path) -> None:
        """As they were printed once: or the test above would prove nothing."""
        unit = tmp_path / "vllm.service"
        unit.write_text("[Service]\nExecStart=/bin/true\n")
        (tmp_path / "vllm.service.d").mkdir()
        (tmp_path / "vllm.service.d/cuda.conf").write_text('Environment="CUDA_HOME=/ours"\n')
        assert "Assignment outside of section" in complaints_of_systemd(unit)[0]

    @pytest.mark.parametrize(
        ("value", "line"),
        [
            ("/plain-1.0/x", "CUDA_HOME=/plain-1.0/x"),
            ("", "CUDA_HOME=''"),
            ("two words #1", "CUDA_HOME='two words #1'"),
            ('a "word"', "CUDA_HOME='a \"word\"'"),
        ],
    )
    def test_a_dotenv_file_has_quotes_only_where_they_are_needed(
        self, value: str, line: str
    ) -> None:
        assert exports("dotenv", {}, kept(CUDA_HOME=SavedValue(value))) == f"{line}\n"

    @pytest.mark.parametrize("value", ["it's", "$HOME", "a\\b", "`id`"])
    def test_a_dotenv_file_holds_nothing_that_its_readers_take_differently(
        self, value: str
    ) -> None:
        with pytest.raises(ExportError, match="readers of dotenv files"):
            exports("dotenv", {}, kept(CUDA_HOME=SavedValue(value)))

    def test_a_dotenv_file_can_take_nothing_out_and_says_so(self) -> None:
        saved = kept(CUDA_PATH=SavedValue(None, instead_of=("/bad",)))
        with pytest.raises(ExportError, match="cannot unset CUDA_PATH"):
            exports("dotenv", {"CUDA_PATH": "/bad"}, saved)
        assert exports("dotenv", {}, saved) == ""

    def test_a_program_gets_whole_values_and_null_for_what_is_taken_out(self) -> None:
        saved = kept(
            CUDA_HOME=SavedValue("/ours"),
            CUDA_PATH=SavedValue(None, instead_of=("/bad",)),
            PATH=SavedValue("/ours/bin", prepend=True),
        )
        shell = {"CUDA_PATH": "/bad", "PATH": "/usr/bin"}
        made = {"CUDA_HOME": "/ours", "CUDA_PATH": None, "PATH": "/ours/bin:/usr/bin"}
        assert json.loads(exports("json", shell, saved)) == made


class TestWhatIsPrinted:
    @pytest.mark.parametrize("form", EXPORT_FORMS)
    @pytest.mark.parametrize("bad", ["a\nexport LD_PRELOAD=x", "a\rb", "a\0b", "\x1b[0m", "\udcff"])
    def test_nothing_with_a_control_character(self, form: str, bad: str) -> None:
        for saved in (
            kept(CUDA_HOME=SavedValue("/fine"), NVCC_APPEND_FLAGS=SavedValue(bad)),
            kept(PATH=SavedValue(bad, prepend=True)),
        ):
            with pytest.raises(ExportError, match="control character"):
                exports(form, {}, saved)

    @pytest.mark.parametrize("form", EXPORT_FORMS)
    def test_nothing_of_the_shells_own_that_a_form_cannot_hold(self, form: str) -> None:
        saved = kept(PATH=SavedValue("/ours", prepend=True))
        shell = {"PATH": "/a\nb"}
        if form in ("sh", "fish", "systemd"):
            assert "/a" not in exports(form, shell, saved)
        else:
            with pytest.raises(ExportError):
                exports(form, shell, saved)

    @pytest.mark.parametrize("form", EXPORT_FORMS)
    def test_only_names_that_a_fix_sets_and_lists_only_where_they_are_lists(
        self, form: str
    ) -> None:
        saved = kept(
            LD_PRELOAD=SavedValue("/evil.so"),
            CUDA_HOME=SavedValue("/x", prepend=True),
            **{"A;id": SavedValue("x"), "": SavedValue("x")},
        )
        assert exports(form, {}, saved) == ""

    @pytest.mark.parametrize("form", [f for f in EXPORT_FORMS if f != "systemd"])
    def test_the_shells_own_value_wins_where_it_was_never_judged_bad(self, form: str) -> None:
        saved = kept(CUDA_HOME=SavedValue("/ours", instead_of=("/bad",)))
        assert exports(form, {"CUDA_HOME": "/theirs"}, saved) == ""
        for shell in ({}, {"CUDA_HOME": ""}, {"CUDA_HOME": "/bad"}, {"CUDA_HOME": "/ours"}):
            assert "/ours" in exports(form, shell, saved)

    def test_what_a_shell_evaluates_is_what_the_server_would_get(self, bare: Environment) -> None:
        save(
            bare,
            CUDA_HOME={"value": "/ours"},
            CUDA_PATH={"value": None, "instead_of": ["/bad"]},
            CC={"value": "gcc-12", "instead_of": ["gcc-15"]},
            PATH={"value": "/ours/bin:/more", "prepend": True},
        )
        for env in ({"CUDA_PATH": "/bad"}, {"CUDA_PATH": "/good", "CC": "clang"}):
            judged = facts_of(bare, env).get(LaunchEnv)
            said = run_doctor("env", "--python", bare.prefix, env=env)
            assert (said.code, said.err) == (0, "")
            made = after(["/bin/sh", "-c"], said.out, env)
            for name in SETTABLE:
                assert made.get(name) == judged.get(name), name

    def test_what_the_profile_adds_is_the_servers_alone(self, bare: Environment) -> None:
        assert facts_of(bare).get(LaunchEnv).get("HF_ENDPOINT")
        save(bare, CUDA_HOME={"value": "/ours"})
        assert run_doctor("env", "--python", bare.prefix).out == "export CUDA_HOME='/ours'\n"


class TestCommand:
    def test_nothing_saved_is_nothing_to_say(self, bare: Environment) -> None:
        said = run_doctor("env", "--python", bare.prefix)
        assert (said.code, said.out, said.err) == (0, "", "")
        said = run_doctor("env", "--python", bare.prefix, "-v")
        assert (said.code, said.out) == (0, "")
        assert "nothing is saved for this environment" in said.err

    def test_nothing_for_an_environment_that_nobody_named_is_told(self) -> None:
        said = run_doctor("env")
        assert (said.code, said.out) == (0, "")
        assert "no environment is active" in said.err

    @pytest.mark.parametrize("form", EXPORT_FORMS)
    def test_why_is_told_on_stderr_alone(self, bare: Environment, form: str) -> None:
        save(
            bare,
            CUDA_HOME={"value": "/ours", "instead_of": ["/bad"]},
            CC={"value": "gcc-12"},
            PATH={"value": "/ours/bin", "prepend": True},
        )
        env = {"CUDA_HOME": "/bad", "CC": "clang"}
        options = ("env", "--python", bare.prefix, "--shell", form)
        plain, told = run_doctor(*options, env=env), run_doctor(*options, "-v", env=env)
        assert (plain.code, plain.err) == (0, "")
        assert told.out == plain.out
        if form == "systemd":
            assert "CUDA_HOME: /ours (" in told.err
            assert "CC: gcc-12 (" in told.err
        else:
            assert "CUDA_HOME: /ours, since this shell's /bad was judged bad" in told.err
            assert "CC: this shell's own value clang wins; saved: gcc-12" in told.err
        assert "PATH: /ours/bin put in front" in told.err
        assert "not set: CPATH, LIBRARY_PATH, LD_LIBRARY_PATH; CUDA_HOME and PATH are enough" in (
            told.err
        )
        assert "clang" not in plain.out

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            (b"", 3),
            (b"{", 3),
            (b"[]", 3),
            (b'{"variables": {"CUDA_HOME": {"value": 1}}}', 3),
            (b'{"variables": {"CUDA_HOME": {"value": "a\\nb"}}}', 3),
            (b'{"variables": {"CUDA_HOME": {"value": "\\udcff"}}}', 3),
            (b'{"variables": {"PATH": {"value": "\\t", "prepend": true}}}', 3),
            (b"\xff\xfe", 3),
        ],
    )
    def test_a_file_that_does_not_fit_is_an_error_and_nothing_on_stdout(
        self, bare: Environment, content: bytes, code: int
    ) -> None:
        save(bare)
        (bare.prefix / SAVED).write_bytes(content)
        said = run_doctor("env", "--python", bare.prefix)
        assert (said.code, said.out) == (code, "")
        assert len(said.err.splitlines()) == 1
        assert said.err.startswith("vllm-doctor: ")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_what_another_user_or_a_link_put_there_is_not_ours(self, bare: Environment) -> None:
        save(bare, CUDA_HOME={"value": "/theirs"})
        path = bare.prefix / SAVED
        os.chown(path, 12345, 12345)
        assert run_doctor("env", "--python", bare.prefix).out == ""
        os.chown(path, 0, 0)
        path.rename(path.with_name("other.json"))
        path.symlink_to("other.json")
        assert run_doctor("env", "--python", bare.prefix).out == ""

    @pytest.mark.parametrize("mode", [0o666, 0o602])
    def test_a_file_that_everybody_may_write_is_not_obeyed(
        self, bare: Environment, mode: int
    ) -> None:
        save(bare, CUDA_HOME={"value": "/theirs"})
        (bare.prefix / SAVED).chmod(mode)
        said = run_doctor("env", "--python", bare.python)
        assert (said.code, said.out) == (3, "")
        assert "can be written by others: chmod go-w it" in said.err

    def test_a_folder_in_its_place_cannot_be_told(self, bare: Environment) -> None:
        (bare.prefix / SAVED).mkdir(parents=True)
        said = run_doctor("env", "--python", bare.prefix)
        assert (said.code, said.out) == (3, "")
        assert "environment.json cannot be read" in said.err

    @pytest.mark.parametrize(
        "options",
        [
            ("--python", "/nowhere"),
            ("--python", "/bin/true"),
            ("--shell", "csh"),
            ("--profile", "nowhere"),
            ("--set", "tensor_paralel_size=1"),
            ("--force",),
            ("CUDA_HOME",),
        ],
    )
    def test_wrong_use_prints_nothing_on_stdout(self, options: tuple[str, ...]) -> None:
        said = run_doctor("env", *options)
        assert (said.code, said.out) == (2, "")
        assert said.err

    @pytest.mark.parametrize("settings", ["pyvenv.cfg", "bin/pyvenv.cfg", None])
    def test_it_looks_where_the_interpreter_says_that_it_lives(
        self, bare: Environment, settings: str | None
    ) -> None:
        """Told without asking it where a virtual environment says so itself."""
        found = bare.prefix / "pyvenv.cfg"
        if settings is None:
            found.unlink()
        else:
            found.rename(bare.prefix / settings)
        prefix = facts_of(bare).get(Interpreter).prefix
        assert (prefix == bare.prefix) == (settings == "pyvenv.cfg")
        if settings is None:
            bare = Environment(prefix)
            assert run_doctor("env", "--python", prefix, "-v").code == 0
        else:
            save(Environment(prefix), CUDA_HOME={"value": "/ours"})
            said = run_doctor("env", "--python", bare.python)
            assert said.out == "export CUDA_HOME='/ours'\n"

    def test_a_python_that_hangs_cannot_be_told(self, tmp_path: Path) -> None:
        script(tmp_path / "bin/python", HANGS)
        said = run_doctor("env", "--python", tmp_path, hanging=tmp_path)
        assert (said.code, said.out) == (3, "")

    def test_a_locale_that_cannot_print_it_is_an_error(self, tmp_path: Path) -> None:
        one = bare_environment(tmp_path / "中文")
        save(one, CUDA_HOME={"value": f"{one.prefix}/cuda"})
        env = {"PYTHONIOENCODING": "ascii"}
        said = run_doctor("env", "--python", one.prefix, env=env)
        assert (said.code, said.out) == (3, "")
        assert "this locale (ascii) cannot print" in said.err

    def test_a_finding_about_the_shell_names_this_command(self, tmp_path: Path) -> None:
        """What it prints can be pasted, and then the finding is gone."""
        one = cpu_environment(tmp_path / "my 'own' env")
        save(one, CUDA_HOME={"value": "/ours"}, CC={"value": None, "instead_of": ["gcc"]})
        options = ("--python", one.prefix, "--set", "device=cpu", "--format", "json")
        said = run_doctor("diagnose", *options, env={"CC": "gcc"})
        (finding,) = said.outcome("shell-env-not-loaded")["findings"]
        assert "CC is unset" in finding["evidence"]
        (step,) = finding["fixes"][0]["steps"]
        doctor = {"PATH": f"{DOCTOR.parent}:/usr/bin:/bin", "CC": "gcc"}
        made = after(["/bin/sh", "-c"], step["line"], doctor)
        assert (made["CUDA_HOME"], made.get("CC")) == ("/ours", None)


def test_no_rules_are_loaded_and_nothing_heavy_is_imported(bare: Environment) -> None:
    code = (
        "import sys\nfrom doctor.cli import cli\n"
        f"try: cli.main(['env', '--python', {str(bare.prefix)!r}])\n"
        "except SystemExit: pass\n"
        "heavy = {'rich', 'torch', 'vllm', 'psutil', 'pynvml', 'importlib.metadata', 'ctypes',\n"
        "         'hashlib', 'doctor.serve', 'doctor.diagnose', 'doctor.probes.toolkit'}\n"
        "rules = {m for m in sys.modules if m.startswith('_vllm_doctor_rules')}\n"
        "print(sorted(heavy & set(sys.modules) | rules))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# The list of names.


def test_every_variable_that_a_fix_changes_can_be_saved_and_printed() -> None:
    steps = [
        step
        for case in cases()
        if not (case.not_checked or case.cannot_tell)
        for finding in run(case)
        for fix in finding.fixes
        for step in fix.steps
    ]
    changed = {s.name for s in steps if isinstance(s, (SetVariable, UnsetVariable, PrependPath))}
    assert {"CUDA_HOME", "PATH", "CUDA_VISIBLE_DEVICES"} <= changed
    assert not changed - SETTABLE
    assert {s.name for s in steps if isinstance(s, PrependPath)} <= PATH_LIKE


def test_every_name_in_the_rules_own_words_can_be_saved() -> None:
    """Also those that no case happens to produce: the names that are handed to a step as text."""
    folders = (rules_folder(), Path(rules_folder().parent, "doctor/fixes"))
    step = r"(?:SetVariable|UnsetVariable|PrependPath|_unset)\(\s*\"(\w+)\""
    named = {
        name
        for folder in folders
        for path in folder.glob("*.py")
        for name in re.findall(step, path.read_text(encoding="utf-8"))
    }
    assert named
    assert not named - SETTABLE


def test_a_list_of_which_a_part_can_be_ours_may_be_set() -> None:
    assert PATH_LIKE <= SETTABLE


def test_a_list_that_was_saved_is_not_called_unneeded() -> None:
    saved = kept(CUDA_HOME=SavedValue("/x"), LD_LIBRARY_PATH=SavedValue("/y", prepend=True))
    told = "\n".join(map(str, notes({}, saved)))
    assert "not set: CPATH, LIBRARY_PATH;" in told
    assert "LD_LIBRARY_PATH: /y put in front" in told
