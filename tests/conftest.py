"""What tests share: the doctor as a child process, and environments that lie in a folder as the
real ones do.

Nothing here is a mock: interpreters, links, ELF files and metadata are real, only small.
"""

from __future__ import annotations

import compileall
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from doctor import profile as profiles
from doctor.cli import cli
from doctor.engine import Facts
from doctor.errors import DoctorError
from doctor.model import Fact, printable
from doctor.probes.driver import DeepAsked
from doctor.probes.interpreter import FoundBy, Where
from doctor.probes.toolkit import HEADERS
from doctor.profile import ServeRequest
from doctor.redact import redact
from doctor.shipped import rules_folder
from doctor.target import Live, Target
from tests.installed import FLASHINFER_FILES, VLLM_FILES

pytest_plugins = ["tests.stand_ins.fixtures"]

os.environ["COLUMNS"] = (
    "100"  # a report is as wide as the terminal, and golden reports are this wide
)

# A shell ignores the keys' signals for what it starts in the background, and a child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: many tests only wait, for a child or a server."""
    return len(os.sched_getaffinity(0)) + 1


DOCTOR = Path(sys.executable).with_name("vllm-doctor")
BASE_PYTHON = Path(sys.executable).resolve()
PYTHON_FOLDER = f"python{sys.version_info.major}.{sys.version_info.minor}"
SYSTEM = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


def pytest_configure(config: pytest.Config) -> None:
    """Compiles our rules, as pip does when it installs them: the doctor leaves no bytecode beside
    them, and compiles them in every one of its processes where there is none."""
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(rules_folder(), quiet=2)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzz")
    group.addoption(
        "--fuzz-seconds", type=float, default=0.5, help="For how long each class of input is tried."
    )
    group.addoption(
        "--fuzz-seed", default="0", metavar="SEED[:INPUT]", help="Which inputs; from this one on."
    )


HANG = 120.0
"""Seconds after which a test gives up: what it waits for never comes, on however slow a machine."""

# The console script, which gives a child whose command holds the first argument a second, and all
# others as long as they take: what a hang comes to, without the wait.
IMPATIENT = f"""
import sys
from doctor import cli, target
from doctor.cli import options

hanging = sys.argv.pop(1)

class Impatient(target.Live):
    def run(self, *argv, timeout=10.0, env=None):
        seconds = 1.0 if hanging in " ".join(argv) else {HANG}
        return super().run(*argv, timeout=seconds, env=env)

options.Live = Impatient
cli.main()
"""
HANGS = "exec sleep 86400"


@dataclass(frozen=True)
class Said:
    """How a run of the doctor ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """Standard output, which has to be one JSON object and nothing else."""
        made: dict[str, Any] = json.loads(self.out)
        return made

    def outcome(self, id: str) -> dict[str, Any]:
        (one,) = (o for o in self.report["outcomes"] if o["id"] == id)
        return dict(one)

    def found(self) -> set[str]:
        return {o["id"] for o in self.report["outcomes"] if o["verdict"] == "found"}


def run_doctor(
    *arguments: str | bytes | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    hanging: str | Path | None = None,
    program: Sequence[str] = (str(DOCTOR),),
    before: Callable[[], None] | None = None,
) -> Said:
    """`vllm-doctor ARGUMENTS` in a child process that has the variables of `env` and PATH.
    `hanging`: what the commands hold that are not waited for. `program`: what is started in the
    console script's stead. `before`: what the child does first."""
    start = [sys.executable, "-c", IMPATIENT, str(hanging)] if hanging else program
    ran = subprocess.run(
        [*start, *map(_argument, arguments)],
        env={**SYSTEM, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=HANG,
        check=False,
        preexec_fn=before,
    )
    return Said(ran.returncode, *(s.decode("utf-8", "replace") for s in (ran.stdout, ran.stderr)))


def run_inside(*arguments: str | Path) -> Said:
    """The same command in this process, where a crash is a failure of the test: for tables of bad
    input, each too small for a process of its own."""
    made = CliRunner().invoke(cli, [os.fspath(a) for a in arguments])
    if isinstance(made.exception, DoctorError):  # as `main` says it
        said = f"{made.stderr}vllm-doctor: {printable(redact(str(made.exception)))}\n"
        return Said(made.exception.exit_code, made.stdout, said)
    if made.exception and not isinstance(made.exception, SystemExit):
        raise made.exception
    return Said(made.exit_code, made.stdout, made.stderr)


@functools.cache
def _validator(schema: Callable[[], dict[str, Any]]) -> Any:
    """Checked and made once: that takes longer than a validation."""
    made = schema()
    kind = jsonschema.validators.validator_for(made)
    kind.check_schema(made)
    return kind(made)


def must_fit(data: object, schema: Callable[[], dict[str, Any]]) -> None:
    """Fails where `data` is not of the JSON Schema that the function `schema` returns."""
    _validator(schema).validate(data)


def _argument(value: str | bytes | Path) -> str | bytes:
    return value if isinstance(value, bytes) else os.fspath(value)


def script(path: Path, text: str, interpreter: str = "/bin/sh") -> Path:
    """An executable script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{interpreter}\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def shared_library(
    path: Path,
    *,
    needed: Iterable[str] = (),
    soname: str | None = None,
    rpath: str | None = None,
    runpath: str | None = None,
    source: str = "",
) -> Path:
    """A real shared library made by the system's cc, empty but for `source` (C) and its headers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-Wl,--no-as-needed"]
    if soname:
        flags.append(f"-Wl,-soname,{soname}")
    if rpath:
        flags.append(f"-Wl,--disable-new-dtags,-rpath,{rpath}")
    if runpath:
        flags.append(f"-Wl,--enable-new-dtags,-rpath,{runpath}")
    path.write_bytes(_linked(tuple(flags), tuple(needed), source))
    path.chmod(0o755)
    return path


@functools.cache
def _linked(flags: tuple[str, ...], needed: tuple[str, ...], source: str) -> bytes:
    """Linked once for all tests that want such a library."""
    with tempfile.TemporaryDirectory(prefix="vllm-doctor-") as folder:
        made = Path(folder, "made.so")
        for name in needed:
            shared_library(Path(folder, name), soname=name)
        command = ["cc", "-shared", "-fPIC", "-nostdlib", "-o", str(made), "-x", "c", "-"]
        others = ["-x", "none", f"-L{folder}", *flags, *(f"-l:{name}" for name in needed)]
        subprocess.run([*command, *others], input=source.encode(), check=True)
        return made.read_bytes()


def toolkit_files(kit: Path) -> None:
    """What a toolkit of CUDA 13.0 consists of besides nvcc."""
    script(kit / "bin/ptxas", "")
    script(kit / "nvvm/bin/cicc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    (kit / "include/crt").mkdir(parents=True)
    for name in HEADERS:
        (kit / "include" / name).write_text("")
    (kit / "include/cuda_runtime_api.h").write_text("#define CUDART_VERSION  13000\n")
    (kit / "include/crt/host_config.h").write_text("#if __GNUC__ > 15\n")
    (kit / "include/crt/math_functions.h").write_text("")
    for name in ("libcudart.so", "libnvrtc.so", "stubs/libcuda.so"):
        shared_library(kit / "lib64" / name)


# As real ones answer what they are asked; it compiles nothing.
NVCC = """
case $1 in
--version) echo 'Cuda compilation tools, release 13.0, V13.0.88';;
--list-gpu-arch) printf "compute_%s\\n" 80 89 90;;
--dryrun) echo "#\\$ TOP=$(dirname "$0")/.." >&2;;
*) "$(dirname "$0")/ptxas" || exit 1
   for last; do :; done; exec cc -fPIC -x c -c /dev/null -o "$last";;
esac
"""


def toolkit(kit: Path) -> Path:
    """A toolkit of CUDA 13.0 that works, as far as is looked at."""
    script(kit / "bin/nvcc", NVCC)
    toolkit_files(kit)
    return kit


@dataclass(frozen=True)
class Environment:
    """A virtual environment in a folder: a link to a real interpreter, and what is put into it."""

    prefix: Path

    @property
    def python(self) -> Path:
        return self.prefix / "bin/python"

    @property
    def site(self) -> Path:
        return self.prefix / "lib" / PYTHON_FOLDER / "site-packages"

    def install(
        self,
        name: str,
        version: str,
        requires: Iterable[str] = (),
        files: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> Path:
        """Lays a distribution out as an installer does; returns its dist-info folder."""
        site = folder or self.site
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        rows = [f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}"]
        rows += [f"Requires-Dist: {row}" for row in requires]
        (info / "METADATA").write_text("\n".join(rows) + "\n\nAbout it.\n", encoding="utf-8")
        for path, text in (files or {}).items():
            file = site / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        listed = "".join(f"{path},,\n" for path in files or {})
        (info / "RECORD").write_text(listed, encoding="utf-8")
        return info

    def add_vllm(self, cpu: bool = False) -> Path:
        """vllm 0.22.0, in the few files that are read of it; returns its dist-info."""
        needed = ("libtorch.so", "libc10.so") if cpu else ("libcudart.so.13", "libcuda.so.1")
        shared_library(self.site / "vllm/_C.abi3.so", needed=needed)
        requires = ["torch==2.11.0", "transformers>=4.56.0"]
        if not cpu:
            requires.append(f"flashinfer-python=={FLASHINFER}")
        return self.install("vllm", "0.22.0+cpu" if cpu else "0.22.0", requires, VLLM_FILES)

    def add_torch(self, version: str = "2.11.0+cu130", cuda: str | None = "13.0") -> Path:
        requires = ["cuda-toolkit[cublas,cudart]==13.0.2; platform_system == 'Linux'"]
        source = (
            "from typing import Optional\n\n"
            f"__version__ = {version!r}\ndebug = False\ncuda: Optional[str] = {cuda!r}\n"
            "hip: Optional[str] = None\n"
        )
        files = {"torch/__init__.py": "", "torch/version.py": source}
        files["torch/lib/libtorch_python.so"] = ""
        return self.install("torch", version.partition("+")[0], requires if cuda else (), files)


def wait_for(what: Callable[[], object]) -> None:
    """Waits until it is so."""
    end = time.monotonic() + HANG
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


@contextlib.contextmanager
def not_for_ever() -> Iterator[None]:
    """Fails the test, instead of hanging the suite, where what is called does not come back."""

    def fail(*what: object) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


FLASHINFER = "0.6.11.post2"
TRANSFORMERS_FILES = {
    "transformers/__init__.py": "",
    "transformers/models/auto/auto_mappings.py": (
        "\nCONFIG_MAPPING_NAMES = OrderedDict(\n    [\n"
        '        ("glm4_moe", "Glm4MoeConfig"),\n        ("glm4_moe_lite", "Glm4MoeLiteConfig"),\n'
        "    ]\n)\n"
    ),
    "transformers/models/auto/configuration_auto.py": (
        'CONFIG_MAPPING_NAMES.update(\n    {\n        "mlcd": "MLCDVisionConfig",\n    }\n)\n'
    ),
}


def bare_environment(prefix: Path, system_site_packages: bool = False) -> Environment:
    """A virtual environment with nothing in it."""
    made = Environment(prefix)
    made.python.parent.mkdir(parents=True)
    made.python.symlink_to(BASE_PYTHON)
    made.site.mkdir(parents=True)
    (prefix / "pyvenv.cfg").write_text(
        f"home = {BASE_PYTHON.parent}\n"
        f"include-system-site-packages = {str(system_site_packages).lower()}\n",
        encoding="utf-8",
    )
    return made


def vllm_environment(prefix: Path) -> Environment:
    """`pip install vllm==0.22.0` with a transformers that knows the model, without any toolkit."""
    made = bare_environment(prefix)
    made.add_vllm()
    made.add_torch()
    made.install("transformers", "5.6.0", files=TRANSFORMERS_FILES)
    cccl = {"flashinfer/data/cccl/libcudacxx/include/cuda/std/version": ""}
    made.install("flashinfer-python", FLASHINFER, files={**FLASHINFER_FILES, **cccl})
    made.install("flashinfer-cubin", FLASHINFER)
    triton = "libraries = ['libcuda.so.1']\n"
    made.install("triton", "3.6.0", files={"triton/backends/nvidia/driver.py": triton})
    return made


def cpu_environment(prefix: Path) -> Environment:
    """vLLM built for the CPU: with `--set device=cpu` nothing is wrong with it."""
    made = bare_environment(prefix)
    made.add_vllm(cpu=True)
    made.add_torch("2.11.0+cpu", None)
    made.install("transformers", "5.6.0", files=TRANSFORMERS_FILES)
    return made


def facts_of(
    environment: Environment,
    env: Mapping[str, str] | None = None,
    sets: Iterable[str] = ("gpus=later", "archs=9.0"),
    target: Target | None = None,
    given: Iterable[Fact] = (),
) -> Facts:
    """The facts about an environment on this machine, as a server started with `env` (and PATH)
    would meet it; `sets` changes the default profile, `given` is known already."""
    request = ServeRequest(profiles.load_profile(profiles.DEFAULT_PROFILE, sets))
    given = (Where(environment.python, FoundBy.OPTION), request, DeepAsked(), *given)
    return Facts(target or Live({**SYSTEM, **(env or {})}), given)


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that lies in memory where the machine has such: for what is asked to be on
    disk a thousand times."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared, prefix="vllm-doctor-") as folder:
        yield Path(folder)


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    """An empty virtual environment."""
    return bare_environment(tmp_path / "venv")


@pytest.fixture
def server(tmp_path: Path) -> Environment:
    """An environment that holds vLLM and all that it needs but a toolkit."""
    return vllm_environment(tmp_path / "venv")


@pytest.fixture
def cpu_server(tmp_path: Path) -> Environment:
    """An environment that is healthy for a server on the CPU."""
    return cpu_environment(tmp_path / "venv")


@pytest.fixture(scope="session")
def shared_cpu_server(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The same, made once: for tests that only read it."""
    return cpu_environment(tmp_path_factory.mktemp("shared-cpu") / "venv")


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The same, made once: for tests that only read it."""
    return vllm_environment(tmp_path_factory.mktemp("shared") / "venv")
