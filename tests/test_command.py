"""A server's command, taken apart: as it is typed, in a shell's text, of a container, a process, a
unit; and what no command is, in one sentence."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from doctor.command import MODULE, ServerCommand, read_command
from doctor.command.change import changed
from doctor.command.container import entering
from doctor.command.inside import Inside
from doctor.command.process import read_process
from doctor.command.unit import read_unit
from doctor.errors import DoctorError, UsageError
from doctor.exits import UNKNOWN, USAGE
from doctor.target import Live
from tests.conftest import BASE_PYTHON, Environment, script
from tests.test_running import SLEEP, running_as

SERVE = ("vllm", "serve", "org/m", "-tp", "2")
ROOT = Path(__file__).parent.parent


class TestWords:
    @pytest.mark.parametrize(
        ("line", "env"),
        [
            ("vllm serve org/m -tp 2", {}),
            ("VLLM_X=1 Y='a b' vllm serve org/m -tp 2", {"VLLM_X": "1", "Y": "a b"}),
            ("env A=1 vllm serve org/m -tp 2", {"A": "1"}),
            ("A=1 env -- B=2 exec vllm serve org/m -tp 2", {"A": "1", "B": "2"}),
            ("nohup nice -n 5 vllm serve org/m -tp 2", {}),
            ("time -p numactl -N 0 --membind=0 vllm serve org/m -tp 2", {}),
            ("taskset -c 0-7 timeout -k 5 1h vllm serve org/m -tp 2", {}),
            ("'vllm serve org/m \\\n  -tp 2'", {}),
            ("python3.12 -u -X dev -m vllm.entrypoints.cli.main serve org/m -tp 2", {}),
            ("/v/bin/python /v/bin/vllm serve org/m -tp 2", {}),
            ("bash -c 'exec vllm serve org/m -tp 2'", {}),
            ("sh -lc 'A=1 nohup vllm serve \"org/m\" -tp 2'", {"A": "1"}),
            ("B=2 bash -l -c 'A=1 vllm serve org/m -tp 2'", {"A": "1", "B": "2"}),
        ],
    )
    def test_what_starts_a_server_is_read(self, line: str, env: dict[str, str]) -> None:
        made = read_command(shlex.split(line))
        assert (made.by, made.arguments, made.env) == ("serve", ("org/m", "-tp", "2"), env)

    @pytest.mark.parametrize(
        "words",
        [
            ("python", "-m", MODULE, "--model", "m"),
            ("/v/bin/python3.11", "-u", "-m", MODULE, "--model", "m"),
            ("/v/bin/python", f"/v/site/{MODULE.replace('.', '/')}.py", "--model", "m"),
        ],
    )
    def test_the_module_has_a_parser_of_its_own(self, words: tuple[str, ...]) -> None:
        made = read_command(words)
        assert (made.by, made.arguments) == ("module", ("--model", "m"))
        assert made.python == (Path(words[0]) if words[0].startswith("/") else None)

    def test_an_interpreter_is_named_by_a_path_alone(self, tmp_path: Path) -> None:
        assert read_command(SERVE).script is None
        assert read_command(("/v/bin/vllm", "serve")).script == Path("/v/bin/vllm")
        made = read_command(("v/bin/python", "/v/bin/vllm", "serve"), tmp_path)
        assert made.python == tmp_path / "v/bin/python"

    @pytest.mark.parametrize(
        "line",
        [
            "A=1 vllm serve org/m -tp 2",
            "bash -lc \"A='a b' vllm serve org/m --x '{}' -tp 2\"",
            "docker run --gpus all img vllm serve org/m -tp 2",
            "docker run --entrypoint sh img -c 'vllm serve org/m -tp 2'",
        ],
    )
    def test_it_is_whole_again_with_other_arguments(self, line: str) -> None:
        made = read_command(shlex.split(line))
        again = made.with_arguments((*made.arguments, "--port", "80 81"))
        assert read_command(again).arguments == (*made.arguments, "--port", "80 81")
        assert read_command(again).env == made.env
        assert read_command(made.with_arguments(made.arguments)) == made

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (("",), "'': not the command of a vLLM server"),
            (("serve", "m"), "serve: not the command of a vLLM server, such as `vllm serve MODEL`"),
            (("A=1",), "'': not the command"),
            (("nohup",), "'': not the command"),
            (("org/model",), "org/model: not the command"),
            (("vllm", "bench", "serve"), "vllm bench: not the command of a server"),
            (("vllm",), "vllm: not the command of a server"),
            (("python", "-m", "http.server"), "python -m http.server: not the command"),
            (("python",), "python: not the command"),
            (("sudo", "-E", *SERVE), "sudo: the server would have another environment"),
            (("uv", "run", *SERVE), "uv: which environment it takes is not known"),
            (("env", "-i", *SERVE), "env -i: options of env are not read"),
            (("bash", "start.sh"), "bash: of a shell only -c and one text"),
            (("bash", "-c"), "bash: of a shell only -c and one text"),
            (("bash", "-c", "bash -c 'vllm serve m'"), "a shell in a shell is not read"),
            (("bash", "-c", "cd /x && vllm serve m"), "'&' is for a shell"),
            (("bash", "-c", "vllm serve m | tee log"), "'|' is for a shell"),
            (("bash", "-c", "vllm serve $MODEL"), "'$' is for a shell"),
            (("bash", "-c", 'vllm serve "$(cat x)"'), "'$' is for a shell"),
            (("bash", "-c", "vllm serve `cat x`"), "'`' is for a shell"),
            (("bash", "-c", "vllm serve m\nvllm serve n"), "'\\n' is for a shell"),
            (("bash", "-c", "vllm serve 'm"), "no closing quotation"),
            (("vllm serve 'm",), "no closing quotation"),
            (("vllm serve m \\",), "no escaped character"),
            (("vllm", "serve", "m\0n"), "a NUL is in this word"),
            (("vllm", "serve", "x" * (1 << 20)), "longer than the 131072 bytes"),
            (("bash", "-c", "x " * (1 << 19)), "longer than the 131072 bytes"),
            (("vllm", "serve", "m", *("-x",) * 5000), "more than 4096 words"),
            (("vllm", "serve", "m", " ", "-tp"), "nothing but blanks"),
            (("vllm", "serve", "m", "\n"), "nothing but blanks"),
            (("docker", "compose", "up"), "docker compose: only `docker run ...` is read"),
            (("docker",), "docker : only"),
            (("docker", "exec", "c", *SERVE), "docker exec: a container is not entered"),
            (("docker", "run"), "no image is named"),
            (("docker", "run", "--gpus"), "docker run --gpus: its value is missing"),
            (("docker", "run", "--rm"), "no image is named"),
            (("docker", "run", "--gpus", "0,1", "vllm/vllm-openai"), "not `all`, a number"),
            (("docker", "run", "--shm-size", "big", "vllm/vllm-openai"), "not a size such as 8g"),
            (("docker", "run", "--env-file", "/no/such", "vllm/vllm-openai"), "no such file"),
            (("docker", "run", "img", "--model", "m"), "which program this image starts"),
            (("docker", "run", "img", "docker", "run", "i", *SERVE), "a container in a container"),
        ],
    )
    def test_anything_else_is_refused_in_one_sentence(
        self, words: tuple[str, ...], why: str
    ) -> None:
        with pytest.raises(UsageError) as error:
            read_command(words)
        said = str(error.value)
        assert why in said
        assert error.value.exit_code == USAGE
        assert "\n" not in said
        assert "\0" not in said
        assert len(said) < 600

    def test_a_secret_is_not_in_the_sentence(self) -> None:
        token = "hf_" + "abcdefghij" * 3
        with pytest.raises(UsageError) as error:
            read_command(("bash", "-c", f"HF_TOKEN={token} vllm serve m; x"))
        assert token[:20] not in str(error.value)


class TestContainer:
    def made(self, line: str) -> Any:
        return read_command(shlex.split(line))

    @pytest.mark.parametrize(
        ("line", "count", "names"),
        [
            ("--gpus all", None, None),
            ("--gpus 2", 2, None),
            ("--gpus '\"device=0,3\"'", None, ("0", "3")),
            ("--gpus device=1", None, ("1",)),
            ("--gpus 'count=2'", 2, None),
            ("--gpus 'all,\"capabilities=compute,utility\"'", None, None),
            ("-e NVIDIA_VISIBLE_DEVICES=1,2 --runtime=nvidia", None, ("1", "2")),
            ("-e NVIDIA_VISIBLE_DEVICES=all --runtime nvidia", None, None),
            ("-e NVIDIA_VISIBLE_DEVICES=void", None, ()),
            ("--device nvidia.com/gpu=all", None, None),
            ("--device nvidia.com/gpu=0 --device nvidia.com/gpu=1", None, ("0", "1")),
            ("", None, None),
        ],
    )
    def test_it_has_the_gpus_that_it_is_given(
        self, line: str, count: int | None, names: tuple[str, ...] | None
    ) -> None:
        container = self.made(f"docker run {line} vllm/vllm-openai:v1 --model m").container
        assert (container.gpu_count, container.gpu_names) == (count, names)

    @pytest.mark.parametrize(
        ("text", "size"),
        [("64m", 64 << 20), ("8g", 8 << 30), ("8GB", 8 << 30), ("1.5g", 3 << 29), ("1024", 1024)],
    )
    def test_a_size_is_read_as_docker_reads_it(self, text: str, size: int) -> None:
        made = self.made(f"docker run --shm-size={text} vllm/vllm-openai --model m")
        assert made.container.shm_size == size

    def test_the_image_stands_behind_all_options(self, tmp_path: Path) -> None:
        rows = tmp_path / "variables"
        rows.write_text("# of it\nA=from file\nB=2\nHF_TOKEN\n\n")
        line = (
            f"podman run -itd --rm --name v -eA=1 --env-file {rows} --env C -v /x:/y -p 8000:8000 "
            "--ipc=host --init --ulimit memlock=-1 -u 0 docker.io/vllm/vllm-openai@sha256:1 m -tp 2"
        )
        made = self.made(line)
        assert made.container.image == "docker.io/vllm/vllm-openai@sha256:1"
        assert made.arguments == ("m", "-tp", "2")
        assert made.env == {"A": "1", "B": "2"}
        assert made.container.inherited == ("HF_TOKEN", "C")
        assert made.container.ipc == "host"
        assert made.script is None

    def test_a_mounted_folder_is_looked_for_where_the_machine_has_it(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m/config.json").write_text("{}")
        (tmp_path / "m/link").symlink_to("config.json")
        line = f"-v {tmp_path}:/models:ro -v named:/other --mount type=bind,src={tmp_path}/m,dst=/m"
        made = self.made(f"docker run {line} vllm/vllm-openai /models/m")
        mounts = made.container.mounts
        assert mounts == {"/models": str(tmp_path), "/m": f"{tmp_path}/m"}
        inside = Inside(Live({}), mounts)
        assert inside.read(Path("/models/m/config.json")) == b"{}"
        assert inside.read(inside.realpath(Path("/m/link"))) == b"{}"
        assert inside.listdir(Path("/models")) == ("m",)
        for elsewhere in (ROOT, ROOT / "README.md", Path("/root"), Path("/modelsx")):
            assert inside.stat(elsewhere) is None
        assert inside.stat(Path("/proc/self")) is not None

    def test_another_entrypoint_names_the_program(self) -> None:
        made = self.made(f"docker run --entrypoint python3 img -m {MODULE} --model m")
        assert (made.by, made.arguments, made.python) == ("module", ("--model", "m"), None)

    def test_the_command_that_enters_it_keeps_what_the_server_has(self) -> None:
        made = self.made(
            "docker run -d --name x --gpus all -p 1:1 -e A=1 -eHF_TOKEN=x vllm/vllm-openai m"
        )
        assert shlex.join(entering(made, made.container)) == (
            "docker run --rm --gpus all -e A=1 -e HF_TOKEN --entrypoint vllm-doctor "
            "vllm/vllm-openai diagnose -- vllm serve m"
        )


TP = "--tensor-parallel-size"


class TestChanges:
    @pytest.mark.parametrize(
        ("before", "setting", "value", "after"),
        [
            ("m", "tensor_parallel_size", "4", "m --tensor-parallel-size 4"),
            ("m -tp 2 --x", "tensor_parallel_size", "4", "m --tensor-parallel-size 4 --x"),
            ("m -tp2", "tensor_parallel_size", "4", "m --tensor-parallel-size 4"),
            ("m -tp=2", "tensor_parallel_size", "4", "m --tensor-parallel-size 4"),
            ("m --tensor-par=2", "tensor_parallel_size", "4", "m --tensor-parallel-size 4"),
            (
                "--tensor_parallel_size 2 m",
                "tensor_parallel_size",
                "4",
                "--tensor-parallel-size 4 m",
            ),
            (
                "m -tp 1 --port 1 -tp 2",
                "tensor_parallel_size",
                "4",
                "m --port 1 --tensor-parallel-size 4",
            ),
            ("m -tp 2", "tensor_parallel_size", "", "m"),
            ("m --enforce-eager", "enforce_eager", "", "m"),
            ("m --no-enable-x --y", "enable_x", "true", "m --enable-x --y"),
            ("m --enable-auto-tool-choice", "enable_auto_tool_choice", "false", "m"),
            (
                "m --served-model-name a b --x",
                "served_model_name",
                "c",
                "m --served-model-name c --x",
            ),
            ("m --model-impl x", "model", "n", "n --model-impl x"),
            ("--model m", "model", "n", "--model n"),
            ("m -- x", "port", "9", "m --port 9 -- x"),
            ("m --port 1 -- --port 2", "port", "9", "m --port 9 -- --port 2"),
            ("m", "hf_overrides", "-1", "m --hf-overrides=-1"),
            ("m -q awq", "quantization", "fp8", "m --quantization fp8"),
            ("m -dpn 1", "data_parallel_size", "2", "m -dpn 1 --data-parallel-size 2"),
        ],
    )
    @pytest.mark.parametrize("declared", [(), ("--tensor-parallel-size", "-tp", "-dpn", "--port")])
    def test_an_option_is_changed_where_it_stands(
        self, before: str, setting: str, value: str, after: str, declared: tuple[str, ...]
    ) -> None:
        assert changed(shlex.split(before), setting, value, declared) == tuple(shlex.split(after))


# Processes.


class Proc:
    """A folder as /proc is, of processes that are not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.link(folder / "self/ns/mnt", "mnt:[1]")

    def link(self, path: Path, to: str | Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(to)

    def add(
        self,
        pid: int,
        *words: str,
        parent: int = 0,
        env: Mapping[str, str] | None = None,
        exe: str = "/usr/bin/python3.12",
        mounts: str = "mnt:[1]",
        group: str = "0::/user.slice",
    ) -> None:
        folder = self.folder / str(pid)
        self.link(folder / "ns/mnt", mounts)
        self.link(folder / "exe", exe)
        self.link(folder / "cwd", "/srv/work")
        rows = (f"{name}={value}" for name, value in (env or {}).items())
        (folder / "cmdline").write_bytes("".join(f"{word}\0" for word in words).encode())
        (folder / "environ").write_bytes("".join(f"{row}\0" for row in rows).encode())
        (folder / "status").write_text(f"Name:\tx\nPPid:\t{parent}\nNSpid:\t{pid}\t7\n")
        (folder / "cgroup").write_text(f"{group}\n")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


class TestProcess:
    def test_a_server_says_its_command_environment_and_folder(self, proc: Proc) -> None:
        env = {"HF_HOME": "/hf", "EMPTY": "", "WITH": "a=b\nc"}
        proc.add(7, "/v/bin/python3", "/v/bin/vllm", "serve", "org/m", "--port", "1", env=env)
        made = read_process(7, proc.folder)
        assert made.arguments == ("org/m", "--port", "1")
        assert (made.environ, made.env, made.found) == (env, {}, "pid 7")
        assert (made.python, made.folder) == (Path("/v/bin/python3"), Path("/srv/work"))

    def test_a_relative_interpreter_is_of_its_own_folder(self, proc: Proc) -> None:
        proc.add(7, "v/bin/python3", "v/bin/vllm", "serve", "org/m")
        assert read_process(7, proc.folder).python == Path("/srv/work/v/bin/python3")

    def test_a_bare_python_is_the_one_on_its_path_that_runs(
        self, proc: Proc, bare: Environment
    ) -> None:
        env = {"PATH": f"/nowhere:{bare.python.parent}:/usr/bin"}
        proc.add(7, "python", "-m", MODULE, env=env, exe=str(BASE_PYTHON))
        assert read_process(7, proc.folder).python == bare.python
        proc.add(8, "python", "-m", MODULE, exe="/usr/bin/python3.12 (deleted)")
        assert read_process(8, proc.folder).python == Path("/usr/bin/python3.12")

    @pytest.mark.parametrize("title", ["VLLM::EngineCore", "VLLM::Worker_TP0", "VLLM::APIServer_1"])
    def test_its_workers_lead_to_it(self, proc: Proc, title: str) -> None:
        proc.add(7, "/v/bin/python3", "/v/bin/vllm", "serve", "org/m", env={"A": "1"})
        proc.add(8, "/v/bin/python3", "-c", "from multiprocessing.spawn import x", parent=7)
        proc.add(9, title, parent=8)
        made = read_process(9, proc.folder)
        assert (made.found, made.environ) == ("pid 7", {"A": "1"})

    def test_a_process_of_a_container_is_judged_there(self, proc: Proc) -> None:
        id = "0123456789abcdef" * 4
        for pid, group, there in (
            (7, f"0::/system.slice/docker-{id}.scope", "docker exec -it 0123456789ab vllm-doctor"),
            (8, f"12:cpu:/docker/{id}", "docker exec -it 0123456789ab vllm-doctor"),
            (9, f"0::/machine.slice/libpod-{id}.scope", "podman exec -it 0123456789ab vllm-doctor"),
            (10, "0::/../x", "run the doctor there: vllm-doctor"),
        ):
            proc.add(pid, "python3", "/bin/vllm", "serve", "m", mounts="mnt:[2]", group=group)
            with pytest.raises(UsageError, match=f"{there} diagnose --pid 7"):
                read_process(pid, proc.folder)

    @pytest.mark.parametrize(
        "words",
        [
            ("/usr/bin/sleep", "9"),
            (),
            ("nginx: master process /usr/sbin/nginx",),
            ("bash", "-c", "vllm serve m"),
            ("docker", "run", "vllm/vllm-openai", "--model", "m"),
            ("VLLM::Worker",),
            ("vllm", "bench"),
            ("\x1b[31m" * 100,),
        ],
    )
    def test_what_is_no_server_is_a_slip(self, proc: Proc, words: tuple[str, ...]) -> None:
        proc.add(1, "/sbin/init")
        proc.add(7, *words, parent=1)
        with pytest.raises(UsageError, match=r"--pid 7: .* is not a server of vLLM") as error:
            read_process(7, proc.folder)
        assert "\x1b" not in str(error.value)

    def test_a_circle_of_parents_ends(self, proc: Proc) -> None:
        proc.add(7, "x", parent=8)
        proc.add(8, "x", parent=7)
        with pytest.raises(UsageError, match="not a server"):
            read_process(7, proc.folder)

    @pytest.mark.parametrize("gone", ["cmdline", "environ", "cwd", "ns/mnt", "status"])
    def test_what_ends_meanwhile_cannot_be_told(self, proc: Proc, gone: str) -> None:
        proc.add(7, "VLLM::Worker", parent=6)
        proc.add(6, "/v/bin/python3", "/v/bin/vllm", "serve", "org/m")
        (proc.folder / ("7" if gone == "status" else "6") / gone).unlink()
        with pytest.raises(DoctorError, match="--pid 7: the process has ended meanwhile") as error:
            read_process(7, proc.folder)
        assert error.value.exit_code == UNKNOWN

    def test_what_never_was_is_a_slip(self, proc: Proc) -> None:
        with pytest.raises(UsageError, match="there is no such process"):
            read_process(99, proc.folder)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads all")
    def test_another_users_process_cannot_be_told(self) -> None:
        with pytest.raises(DoctorError) as error:
            read_process(1)
        assert error.value.exit_code in (USAGE, UNKNOWN)

    def test_too_much_to_be_a_command_line_is_not_read(self, proc: Proc) -> None:
        proc.add(7)
        with (proc.folder / "7/cmdline").open("wb") as file:
            file.truncate(1 << 30)
        with pytest.raises(DoctorError, match="larger than 8 MiB") as error:
            read_process(7, proc.folder)
        assert error.value.exit_code == UNKNOWN

    def test_a_real_process_is_read(self, bare: Environment, tmp_path: Path) -> None:
        vllm = script(bare.prefix / "bin/vllm", SLEEP, str(bare.python))
        with running_as(vllm, "serve", "org/m", cwd=tmp_path) as pid:
            made = read_process(pid)
        assert (made.python, made.arguments, made.folder) == (bare.python, ("org/m",), tmp_path)
        assert made.environ


# Units.


class Units:
    """Folders of units, as systemd looks for them."""

    def __init__(self, folder: Path) -> None:
        self.system = (folder / "etc", folder / "run", folder / "lib")
        self.user = (folder / "user",)
        for one in (*self.system, *self.user):
            one.mkdir()

    def write(self, text: str, name: str = "vllm.service", at: int = 0) -> Path:
        path = self.system[at] / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if text.startswith("[") else f"[Service]\n{text}\n")
        return path

    def read(self, name: str = "vllm") -> ServerCommand:
        return read_unit(name, self.system, self.user, "/home/me")


@pytest.fixture
def units(tmp_path: Path) -> Units:
    return Units(tmp_path)


START = "ExecStart=/v/bin/vllm serve org/m"


class TestUnit:
    def test_a_service_says_its_command_and_environment(self, units: Units) -> None:
        units.write(
            "[Unit]\nDescription=x\nExecStart=/bin/other\n[Service]\n"
            "Environment=A=1 \"B=two words\" 'C=x'\nEnvironment=D=4\n"
            "WorkingDirectory=/srv/work\nExecStartPre=/bin/true\n"
            "ExecStart=-/v/bin/vllm serve org/m \\\n  # a comment\n  --port ${A} '--x={\"a\": 1}'\n"
            "[Install]\nWantedBy=multi-user.target\n"
        )
        made = units.read()
        assert made.arguments == ("org/m", "--port", "1", '--x={"a": 1}')
        assert made.environ is not None
        assert {n: made.environ[n] for n in "ABCD"} == {
            **{"A": "1", "B": "two words", "C": "x", "D": "4"}
        }
        assert made.environ["PATH"].startswith("/usr/local/sbin:")
        assert (made.found, made.folder) == ("unit vllm.service", Path("/srv/work"))
        assert made.script == Path("/v/bin/vllm")

    def test_the_first_folder_wins_and_what_is_dropped_in_counts_last(self, units: Units) -> None:
        units.write("ExecStart=/old/vllm serve a\nEnvironment=A=lib", at=2)
        units.write(f"{START}\nEnvironment=A=etc")
        units.write("Environment=A=drop", "vllm.service.d/10.conf", at=2)
        units.write("Environment=B=lower", "vllm.service.d/20.conf", at=2)
        units.write("Environment=B=upper", "vllm.service.d/20.conf")
        units.write("Environment=C=all", "service.d/05.conf")
        made = units.read("vllm.service")
        assert made.environ is not None
        assert [made.environ[n] for n in "ABC"] == ["drop", "upper", "all"]

    def test_what_is_dropped_in_for_a_beginning_of_its_name_counts(self, units: Units) -> None:
        units.write(START, "vllm-qwen-32b.service")
        units.write("Environment=A=1", "vllm-.service.d/10.conf")
        units.write("Environment=B=2", "vllm-qwen-.service.d/20.conf")
        units.write("Environment=A=other", "vllm-qw-.service.d/30.conf")
        made = units.read("vllm-qwen-32b")
        assert made.environ is not None
        assert (made.environ["A"], made.environ["B"]) == ("1", "2")

    def test_a_masked_file_that_is_dropped_in_says_nothing(self, units: Units) -> None:
        units.write(START)
        units.write("Environment=A=1", "vllm.service.d/10.conf", at=2)
        (units.system[0] / "vllm.service.d").mkdir()
        (units.system[0] / "vllm.service.d/10.conf").symlink_to("/dev/null")
        assert "A" not in (units.read().environ or {})

    def test_an_empty_value_takes_back_what_was_said(self, units: Units) -> None:
        units.write(
            f"ExecStart=/old/vllm serve a\nEnvironment=A=1\nExecStart=\nEnvironment=\n{START}"
        )
        made = units.read()
        assert made.arguments == ("org/m",)
        assert "A" not in (made.environ or {})

    def test_an_instance_is_made_of_its_template(self, units: Units) -> None:
        units.write("ExecStart=/v/bin/vllm serve /models/%i --served-model-name %n%%", "v@.service")
        assert units.read("v@qwen").arguments == (
            *("/models/qwen", "--served-model-name", "v@qwen.service%"),
        )

    def test_a_users_own_unit_is_found_too(self, units: Units) -> None:
        (units.user[0] / "mine.service").write_text(f"[Service]\n{START} --download-dir %h/x\n")
        made = units.read("mine")
        assert made.arguments[-1] == "/home/me/x"
        assert (made.environ or {})["HOME"] == "/home/me"

    def test_a_file_of_variables_is_read(self, units: Units, tmp_path: Path) -> None:
        rows = tmp_path / "rows"
        rows.write_text("# x\nA=plain text \nB='quoted # text'\n C = \"3\"\nnothing\n; y\n")
        units.write(f"{START}\nEnvironmentFile={rows}\nEnvironmentFile=-/no/such\nEnvironment=A=0")
        environ = units.read().environ or {}
        assert [environ[n] for n in "ABC"] == ["plain text", "quoted # text", "3"]

    @pytest.mark.parametrize(
        ("row", "arguments"),
        [
            ("ExecStart=@/v/bin/vllm title serve org/m", ("org/m",)),
            ("ExecStart=+/v/bin/vllm serve org/m $MORE", ("org/m", "-tp", "2")),
            ("ExecStart=:/v/bin/vllm serve $$x ${MORE}", ("$$x", "${MORE}")),
            ("ExecStart=/v/bin/vllm serve $$x a${MORE}b", ("$x", "a-tp 2b")),
            ("ExecStart=/usr/bin/env X=1 vllm serve org/m", ("org/m",)),
            ("ExecStart=/bin/bash -c 'exec vllm serve org/m'", ("org/m",)),
        ],
    )
    def test_the_command_is_put_together_as_systemd_does(
        self, units: Units, row: str, arguments: tuple[str, ...]
    ) -> None:
        units.write(f'{row}\nEnvironment="MORE=-tp 2"')
        assert units.read().arguments == arguments

    def test_a_user_has_a_home(self, units: Units) -> None:
        units.write(f"{START}\nUser=root\nWorkingDirectory=~")
        made = units.read()
        assert (made.environ or {})["HOME"] == "/root"
        assert made.folder == Path("/root")

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("Environment=A=1", "0 lines of ExecStart"),
            (f"{START}\n{START}", "2 lines of ExecStart"),
            ("ExecStart=/usr/sbin/nginx -g x", "ExecStart: /usr/sbin/nginx: not the command"),
            (f"{START} %m", "what systemd puts in for %m is not known"),
            (f"{START} %", "what systemd puts in for % is not known"),
            (f"{START} ${{NO}}", "$NO is not set in the unit's files"),
            (f"{START} 'x", "ExecStart: no closing quotation"),
            (f"{START} a\\x20b", "escapes with a backslash are not read"),
            (f"{START} ; /bin/true", "several commands in one line"),
            (f"{START}\nEnvironment=x", "a word of it is not NAME=VALUE"),
            (f"{START}\nEnvironment='A=1", "Environment: no closing quotation"),
            (f"{START}\nEnvironmentFile=/no/such", "/no/such: no such file or directory"),
            (f"{START}\nEnvironmentFile=/etc/*.env", "is not the full path of one file"),
            (f"{START}\nEnvironmentFile=/dev/zero", "not a regular file"),
            (f'{START}\nEnvironment="A=x\0y"', "a word of it is not NAME=VALUE"),
            (f"{START}\nWorkingDirectory=x", "WorkingDirectory=x is not a full path"),
            (f"{START}\nRootImage=/x.raw", "RootImage, and sees other files"),
            ("ExecStart=/bin/bash -c 'a && vllm serve m'", "'&' is for a shell"),
            ("[Service]", "0 lines of ExecStart"),
        ],
    )
    def test_what_only_systemd_knows_is_said_in_one_sentence(
        self, units: Units, text: str, why: str
    ) -> None:
        units.write(text)
        with pytest.raises(UsageError, match=r"--unit vllm\.service: ") as error:
            units.read()
        assert why in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_masked_unit_starts_nothing(self, units: Units) -> None:
        (units.system[0] / "vllm.service").symlink_to("/dev/null")
        units.write(START, at=2)
        with pytest.raises(UsageError, match="the unit is masked"):
            units.read()

    @pytest.mark.parametrize("name", ["no-such", "../x", "a/b", "x\0", "x.timer", "", "a\nb"])
    def test_a_name_of_no_service_is_a_slip(self, units: Units, name: str) -> None:
        with pytest.raises(UsageError, match="--unit "):
            units.read(name)

    def test_large_and_binary_files_are_refused(self, units: Units) -> None:
        path = units.write("x")
        with path.open("wb") as file:
            file.truncate(1 << 31)
        with pytest.raises(UsageError, match="larger than 1 MiB"):
            units.read()
        path.write_bytes(b"[Service]\nExecStart=\xff\xfe\n")
        with pytest.raises(UsageError, match=r"vllm\.service"):
            units.read()


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Files of another user are not readable, also where root runs the tests."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(12345)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read_leaves_it_open(
    units: Units, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("A=1\n")
    units.write(f"{START}\nEnvironmentFile=-{secret}")
    secret.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001 == 0:
            pytest.skip("the folder of the tests is closed to others")
    request.getfixturevalue("unprivileged")
    with pytest.raises(DoctorError, match="permission denied; run the doctor as root") as error:
        units.read()
    assert error.value.exit_code == UNKNOWN
