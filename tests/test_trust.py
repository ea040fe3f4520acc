"""What root does not run, load or read code from: one test for every row of SECURITY.md's table.

The other user is `nobody`, to whom the planted files really belong; whatever was planted leaves a
mark when it runs.
"""

from __future__ import annotations

import os
import pwd
import shutil
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from doctor import locate, trust
from doctor import profile as profiles
from doctor.repair import uv
from doctor.target import Live
from doctor.trust import NotTrusted, why_not_trusted
from tests.conftest import (
    BASE_PYTHON,
    PYTHON_FOLDER,
    SYSTEM,
    Environment,
    Said,
    bare_environment,
    run_doctor,
    run_inside,
    script,
    shared_library,
    toolkit,
    vllm_environment,
)

pytestmark = [
    pytest.mark.hardening,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses, or gives files away"),
]
NOBODY = pwd.getpwnam("nobody")


def give_away(path: Path) -> Path:
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid, follow_symlinks=False)
    return path


@dataclass(frozen=True)
class Place:
    """A healthy environment of root's with a toolkit beside it, and a folder of nobody's."""

    one: Environment
    kit: Path
    foreign: Path

    @property
    def mark(self) -> Path:
        return self.foreign / "mark"

    def plant(self, path: Path, then: str = "exit 1") -> Path:
        """A program of nobody's that leaves the mark."""
        return give_away(script(path, f"touch {self.mark}; {then}"))

    def library(self, path: Path, soname: str) -> Path:
        """A library of nobody's that leaves the mark when it is loaded."""
        call = f'extern int creat(const char *, int); creat("{self.mark}", 0644);'
        source = f"__attribute__((constructor)) static void planted(void) {{ {call} }}\n"
        return give_away(shared_library(path, soname=soname, source=source))

    def diagnose(self, *words: str, **variables: str) -> Said:
        env = {
            "PATH": f"{self.one.prefix}/bin:{SYSTEM['PATH']}",
            "CUDA_HOME": str(self.kit),
            **variables,
        }
        sets = ("--set", "gpus=later", "--set", "archs=9.0", "--format", "json")
        return run_doctor("diagnose", "--python", self.one.prefix, *sets, *words, env=env)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Place:
    at = tmp_path_factory.mktemp("trust")
    one = vllm_environment(at / "venv")
    script(one.prefix / "bin/ninja", "")
    return Place(one, toolkit(at / "kit"), at / "foreign")


@pytest.fixture
def place(healthy: Place, tmp_path: Path) -> Place:
    """The same for all, with a folder of nobody's that is the test's own."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    return Place(healthy.one, healthy.kit, give_away(foreign))


def test_without_anything_of_others_all_is_healthy(place: Place) -> None:
    said = place.diagnose("--deep")
    assert said.code == 0, said.out


Row = Callable[[Place, Path], Mapping[str, str]]


def host_compiler(name: str) -> Row:
    return lambda place, tmp: {name: str(place.plant(place.foreign / "a-compiler"))}


def gcc_on_path(place: Place, tmp: Path) -> Mapping[str, str]:
    place.plant(place.foreign / "gcc")
    return {"PATH": f"{place.foreign}:{place.one.prefix}/bin:{SYSTEM['PATH']}"}


def cuda_home(name: str) -> Row:
    def row(place: Place, tmp: Path) -> Mapping[str, str]:
        kit = shutil.copytree(place.kit, tmp / "kit", symlinks=True)
        place.plant(kit / "bin/nvcc")
        return {"CUDA_HOME": "", name: str(kit)}

    return row


def nvcc_on_path(place: Place, tmp: Path) -> Mapping[str, str]:
    kit = shutil.copytree(place.kit, place.foreign / "kit", symlinks=True)
    place.plant(kit / "bin/nvcc")
    return {"CUDA_HOME": "", "PATH": f"{kit}/bin:{place.one.prefix}/bin:{SYSTEM['PATH']}"}


def flashinfer_nvcc(place: Place, tmp: Path) -> Mapping[str, str]:
    return {"FLASHINFER_NVCC": str(place.plant(place.foreign / "nvcc"))}


def cicc(place: Place, tmp: Path) -> Mapping[str, str]:
    kit = shutil.copytree(place.kit, tmp / "kit", symlinks=True)
    place.plant(kit / "nvvm/bin/cicc")
    return {"CUDA_HOME": str(kit)}


def nvcc_in_an_open_folder(place: Place, tmp: Path) -> Mapping[str, str]:
    kit = shutil.copytree(place.kit, tmp / "kit", symlinks=True)
    script(kit / "bin/nvcc", f"touch {place.mark}; exit 1")
    (kit / "bin").chmod(0o777)
    return {"CUDA_HOME": str(kit)}


def preloaded(place: Place, tmp: Path) -> Mapping[str, str]:
    return {"LD_PRELOAD": str(place.library(place.foreign / "libplanted.so", "libplanted.so"))}


def runtime(place: Place, tmp: Path) -> Mapping[str, str]:
    (tmp / "lib").mkdir()
    place.library(tmp / "lib/libcudart.so.12", "libcudart.so.12")
    return {"LD_LIBRARY_PATH": str(tmp / "lib")}


ROWS = {
    "CC": host_compiler("CC"),
    "CXX": host_compiler("CXX"),
    "NVCC_CCBIN": host_compiler("NVCC_CCBIN"),
    "gcc on PATH": gcc_on_path,
    "nvcc of CUDA_HOME": cuda_home("CUDA_HOME"),
    "nvcc of CUDA_PATH": cuda_home("CUDA_PATH"),
    "nvcc on PATH": nvcc_on_path,
    "FLASHINFER_NVCC": flashinfer_nvcc,
    "cicc": cicc,
    "an open folder": nvcc_in_an_open_folder,
    "libcudart": runtime,
}


@pytest.mark.parametrize("row", ROWS)
def test_a_compiler_or_library_of_another_user_is_not_run(
    place: Place, tmp_path: Path, row: str
) -> None:
    variables = ROWS[row](place, tmp_path)
    said = place.diagnose(**variables)
    assert not place.mark.exists()
    assert said.code == 3, said.out
    whys = {str(o["why"]) for o in said.report["outcomes"] if o["verdict"] == "unknown"}
    assert any("--allow foreign-owner allows it" in why for why in whys)
    place.diagnose("--allow", "foreign-owner", **variables)
    assert place.mark.exists()


def test_a_library_that_the_shell_preloads_ends_the_diagnosis(place: Place, tmp_path: Path) -> None:
    """It would be loaded by whatever is started; here the shell's value is set after the doctor's
    own start, which obeys it like any program's."""
    env = {**SYSTEM, **preloaded(place, tmp_path)}
    with pytest.raises(
        NotTrusted, match=r"LD_PRELOAD: as root, .* is not used: .* belongs to nobody"
    ):
        Live(env).run("/bin/true")
    assert not place.mark.exists()
    assert Live(env, foreign=True).run("/bin/true").ok
    assert place.mark.exists()


@pytest.mark.parametrize("name", ["libcuda.so.1", "libnvidia-ml.so.1"])
def test_a_driver_of_another_user_is_not_loaded(place: Place, tmp_path: Path, name: str) -> None:
    (tmp_path / "lib").mkdir()
    place.library(tmp_path / "lib" / name, name)
    where = {"LD_LIBRARY_PATH": str(tmp_path / "lib")}
    gpus = ("--set", "gpus=here")
    said = place.diagnose(*gpus, **where)
    assert not place.mark.exists()
    assert said.code == 3, said.out
    assert "belongs to nobody; --allow foreign-owner allows it" in said.out
    place.diagnose(*gpus, "--allow", "foreign-owner", **where)
    assert place.mark.exists()


@pytest.mark.parametrize("part", ["bin/ptxas", "nvvm/bin/cicc", "bin/nvcc.profile"])
def test_what_nvcc_starts_is_judged_before_a_test_build(
    place: Place, tmp_path: Path, part: str
) -> None:
    kit = Path(shutil.copytree(place.kit, tmp_path / "kit", symlinks=True))
    script(kit / "bin/ptxas", f"touch {place.mark}")
    script(kit / part, f"touch {place.mark}; echo 'release 13.0, V13.0.88'")
    give_away(kit / part)
    said = place.diagnose("--deep", CUDA_HOME=str(kit))
    assert not place.mark.exists()
    assert said.report["deep"] is None or not said.report["deep"]["ok"]
    assert f"{kit}/{part} belongs to nobody" in said.out
    place.diagnose("--deep", "--allow", "foreign-owner", CUDA_HOME=str(kit))
    assert place.mark.exists()


def test_the_program_itself_whatever_it_is(place: Place) -> None:
    """ldconfig, for one, which is asked by its path."""
    program = place.plant(place.foreign / "ldconfig")
    with pytest.raises(NotTrusted, match=r"ldconfig is not used: .* belongs to nobody"):
        Live({}).run(str(program), "-p")
    assert not place.mark.exists()
    Live({}, foreign=True).run(str(program), "-p")
    assert place.mark.exists()


@pytest.mark.parametrize("name", trust._CODE)
def test_a_variable_that_names_code_of_another_user(
    place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = f"/usr/lib:{place.foreign}/x"
    with pytest.raises(NotTrusted, match=f"{name}: as root, {place.foreign}/x is not used"):
        Live({name: value}).run("/bin/true")
    if "LIBRARY_PATH" in name:  # an empty entry is the current directory
        monkeypatch.chdir(place.foreign)
        with pytest.raises(NotTrusted):
            Live({name: "/usr/lib:"}).run("/bin/true")


@pytest.mark.parametrize(
    "word", ["{}", "-I{}", "-B{}", "-fplugin={}", "-Wl,-rpath,{}", "-specs={}"]
)
def test_a_path_behind_an_option_counts_too(place: Place, word: str) -> None:
    with pytest.raises(NotTrusted):
        Live({}).run("/bin/true", word.format(place.foreign / "x"))
    with pytest.raises(NotTrusted):
        Live({"NVCC_APPEND_FLAGS": word.format(place.foreign / "x")}).run("/bin/true")


def test_a_child_finds_no_program_in_a_folder_of_another_user(place: Place) -> None:
    """ccache and wrappers of nvcc start by name what they find on PATH."""
    place.plant(place.foreign / "helper")
    wrapper = script(place.kit / "wrapper", "helper")
    env = {"PATH": f"{place.foreign}:/usr/bin:/bin"}
    assert Live(env).run(str(wrapper)).code == 127
    assert not place.mark.exists()
    Live(env, foreign=True).run(str(wrapper))
    assert place.mark.exists()


class TestInterpreter:
    def refused(self, *words: str | Path, **variables: str) -> str:
        said = run_doctor(*words, env=variables)
        assert said.code == 2
        assert "--allow foreign-owner allows it" in said.err
        assert said.err.count("\n") == 1
        return said.err

    @pytest.fixture
    def theirs(self, place: Place) -> Environment:
        """An environment that belongs wholly to nobody, and leaves a mark when it is started."""
        made = Environment(place.foreign / "venv")
        place.plant(made.python)
        script(made.prefix / "bin/vllm", "", interpreter=str(made.python))
        (made.prefix / "pyvenv.cfg").write_text("")
        for path in (made.prefix, *made.prefix.rglob("*")):
            give_away(path)
        return made

    def test_a_prefix_does_not_vouch_for_itself(self, place: Place, theirs: Environment) -> None:
        for command in ("diagnose", "fix", "env", "undo", "launch"):
            self.refused(command, "--python", theirs.prefix)
        self.refused("snapshot", "-o", "-", "--python", theirs.prefix)
        self.refused("diagnose", VIRTUAL_ENV=str(theirs.prefix))
        self.refused("diagnose", PATH=f"{theirs.prefix}/bin:/usr/bin:/bin")
        assert not place.mark.exists()
        run_doctor("diagnose", "--python", theirs.prefix, "--allow", "foreign-owner")
        assert place.mark.exists()

    def test_a_home_of_another_user_would_bring_the_standard_library(
        self, place: Place, tmp_path: Path
    ) -> None:
        """pyvenv.cfg is root's and names it."""
        one = bare_environment(tmp_path / "venv")
        library = place.foreign / "lib" / PYTHON_FOLDER
        for name in ("os.py", "encodings/__init__.py"):
            (library / name).parent.mkdir(parents=True, exist_ok=True)
            # There is no open() yet.
            (library / name).write_text(f"import posix; posix.mkdir({str(place.mark)!r})\n")
        (place.foreign / "bin").mkdir()
        (one.prefix / "pyvenv.cfg").write_text(f"home = {place.foreign}/bin\n")
        assert "foreign belongs to nobody" in self.refused("diagnose", "--python", one.prefix)
        assert not place.mark.exists()
        run_doctor("diagnose", "--python", one.prefix, "--allow", "foreign-owner")
        assert place.mark.exists()

    @pytest.mark.parametrize(
        "part", ["os.py", "encodings", "lib-dynload", "../libpython3.so", "../python399.zip"]
    )
    def test_a_standard_library_of_another_user(self, tmp_path: Path, part: str) -> None:
        python = script(tmp_path / "bin/python", "")
        library = tmp_path / "lib/python3.99"
        for each in ("os.py", "../libpython3.so", "../python399.zip"):
            (library / each).parent.mkdir(parents=True, exist_ok=True)
            (library / each).write_text("")
        for each in ("encodings", "lib-dynload"):
            (library / each).mkdir()
        locate.refuse_foreign(python)
        trust._look.cache_clear()
        give_away(library / part)
        with pytest.raises(locate.LocateError, match="belongs to nobody"):
            locate.refuse_foreign(python)

    def test_a_python_on_path_of_which_an_environment_would_be_made(self, place: Place) -> None:
        minor = 12 if sys.version_info[1] != 12 else 13
        python = place.plant(place.foreign / f"python3.{minor}", "exit 0")
        here = Live({"PATH": str(place.foreign)})
        found, (refused,) = locate.base_pythons(here)
        assert [one.path for one in found] == [Path(sys._base_executable)]  # type: ignore[attr-defined]
        assert "belongs to nobody" in str(refused)
        assert not place.mark.exists()
        found, refused_then = locate.base_pythons(
            Live({"PATH": str(place.foreign)}, foreign=True), True
        )
        assert (found[1].path, refused_then) == (python, [])

    def test_an_environment_is_not_made_in_a_folder_of_another_user(self, place: Place) -> None:
        made = place.foreign / "venv"
        self.refused("fix", "--apply", "--create", "--python", made)
        assert not made.exists()


class TestRules:
    @pytest.fixture
    def folder(self, place: Place, tmp_path: Path) -> Path:
        folder = tmp_path / "rules"
        folder.mkdir()
        text = f"open({str(place.mark)!r}, 'w')\n"
        (folder / "site.py").write_text(text + "from doctor import rule\n")
        return folder

    @pytest.mark.parametrize("theirs", [".", "site.py", "signatures/a.toml"])
    @pytest.mark.parametrize(
        "command", ["diagnose", "fix", "launch", "snapshot -o -", "rules", "explain /dev/null"]
    )
    def test_those_of_another_user_are_not_loaded(
        self, place: Place, folder: Path, command: str, theirs: str
    ) -> None:
        (folder / "signatures").mkdir()
        (folder / "signatures/a.toml").write_text("")
        give_away(folder / theirs)
        python = () if command == "rules" else ("--python", str(place.one.prefix))
        words = (*command.split(), *python, "--rules", str(folder))
        said = run_inside(*words)
        assert (said.code, place.mark.exists()) == (2, False), said.out
        assert "belongs to nobody; --allow foreign-owner allows it" in said.err
        run_inside(*words, "--allow", "foreign-owner")
        assert place.mark.exists() or command.startswith("explain")

    def test_a_folder_into_which_everybody_may_put_one(self, folder: Path) -> None:
        folder.chmod(0o1777)
        said = run_inside("rules", "--rules", str(folder))
        assert said.code == 2
        assert f"{folder} is writable by everybody" in said.err


def test_a_uv_on_path_of_another_user_is_not_used(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = place.plant(place.foreign / "uv")
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", str(place.foreign))
    with pytest.raises(NotTrusted, match=r"uv is not used: .* belongs to nobody"):
        uv.find_uv(Live())
    made = uv.find_uv(Live(foreign=True))
    assert made is not None
    assert made.path == found


class TestLaunch:
    """The server imports all that is installed."""

    def launch(self, one: Environment, *words: str) -> Said:
        words = ("--dry-run", "--set", "device=cpu", *words)
        return run_doctor("launch", "--python", one.prefix, *words)

    @pytest.mark.parametrize("theirs", ["site-packages", "torch", "vllm", "bin/vllm"])
    def test_a_package_of_another_user_is_not_served(
        self, cpu_server: Environment, theirs: str
    ) -> None:
        script(cpu_server.prefix / "bin/vllm", "", interpreter=str(cpu_server.python))
        assert self.launch(cpu_server).code == 0
        places = {"site-packages": cpu_server.site, "bin/vllm": cpu_server.prefix / "bin/vllm"}
        give_away(places.get(theirs, cpu_server.site / theirs))
        said = self.launch(cpu_server)
        assert said.code == 78
        assert "belongs to nobody; --allow foreign-owner allows it" in said.err
        assert self.launch(cpu_server, "--allow", "foreign-owner").code == 0

    def test_a_profile_of_another_user_says_nothing_to_the_server(
        self, cpu_server: Environment, tmp_path: Path
    ) -> None:
        profile = tmp_path / "profile.toml"
        shutil.copy(profiles.__file__.replace(".py", "s/glm-4.7-flash.toml"), profile)
        assert self.launch(cpu_server, "--profile", str(profile)).code == 0
        give_away(profile)
        said = self.launch(cpu_server, "--profile", str(profile))
        assert said.code == 2
        assert f"--profile {profile}: as root, {profile} is not used" in said.err


class TestRefusal:
    """The one function that judges a path."""

    def test_what_is_roots_on_the_whole_way_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        (tmp_path / "link").symlink_to("file")
        for name in ("file", "link", "gone", "gone/below", "../x", "file/below"):
            assert why_not_trusted(tmp_path / name) is None
        for path in (BASE_PYTHON, Path("/dev/null"), Path("/usr/bin/cc"), Path("/")):
            assert why_not_trusted(path) is None

    @pytest.mark.parametrize(
        ("mode", "why"),
        [
            (0o777, "is writable by everybody"),
            (0o757, "is writable by everybody"),
            (0o775, "is writable by the group"),
            (0o1777, None),
            (0o1775, None),
            (0o755, None),
        ],
    )
    def test_who_may_write_a_folder(self, tmp_path: Path, mode: int, why: str | None) -> None:
        """In a sticky one nobody replaces what is another's, but anybody puts something new."""
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "file").write_text("")
        os.chown(folder, 0, NOBODY.pw_gid)
        folder.chmod(mode)
        said = why_not_trusted(folder / "file")
        assert (why in str(said)) if said and why else (said, why) == (None, None)
        for name in ("", "gone", "gone/below"):
            assert (why_not_trusted(folder / name, searched=True) is None) == (mode == 0o755)

    def test_the_group_of_root_may_write_and_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("")
        path.chmod(0o664)
        assert why_not_trusted(path) is None
        trust._look.cache_clear()
        os.chown(path, 0, NOBODY.pw_gid)
        assert why_not_trusted(path)

    def test_an_access_list_counts_like_a_group(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("")
        # linux/posix_acl_xattr.h: the owner, nobody, the group, the mask, all others.
        rows = ((1, 6, -1), (2, 6, NOBODY.pw_uid), (4, 4, -1), (16, 6, -1), (32, 4, -1))
        entries = b"".join(
            struct.pack("<HHI", tag, mode, id & 0xFFFFFFFF) for tag, mode, id in rows
        )
        try:
            os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + entries)
        except OSError as error:
            pytest.skip(f"this file system has no access lists: {error}")
        assert "access list" in str(why_not_trusted(path))

    def test_every_link_on_the_way_and_its_end(self, tmp_path: Path) -> None:
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / "file").write_text("")
        (theirs / "back").symlink_to(tmp_path / "mine")
        (tmp_path / "mine").write_text("")
        give_away(theirs)
        (tmp_path / "end").symlink_to("theirs/file")
        (tmp_path / "through").symlink_to("end")
        (tmp_path / "middle").symlink_to("theirs/back")
        (tmp_path / "loop").symlink_to("loop")
        give_away(tmp_path / "loop")
        for name in ("end", "through", "middle", "theirs/../mine", "loop"):
            assert "belongs to nobody" in str(why_not_trusted(tmp_path / name)), name

    def test_the_sentence_names_what_is_wrong_and_what_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        path = give_away(tmp_path / "folder") / "program"
        assert str(why_not_trusted(path)) == (
            f"as root, {path} is not used: {path.parent} belongs to nobody; "
            "--allow foreign-owner allows it"
        )

    def test_another_user_runs_what_that_user_may(self, place: Place) -> None:
        program = place.plant(place.foreign / "program")
        child = os.fork()
        if child == 0:
            os.setuid(NOBODY.pw_uid)
            ran = Live({"LD_LIBRARY_PATH": str(place.foreign)}).run("/bin/sh", "-c", "exit 7")
            os._exit(ran.code or 0 if why_not_trusted(program) is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
