"""Real servers that really fail, each broken in one way: their logs are fixtures of `explain`.

`python -m tests.real_stack.failing [ID ...]` makes the logs below fixtures/logs again, all or those
of the named ids. A log is what `vllm serve ... > server.log 2>&1` leaves.

A case is written with the names that its log shall show, such as /opt/vllm-env. This machine's are
put in their place before it runs, and they are put back into what it printed.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests import stand_ins
from tests.real_stack import isolate, lab
from tests.real_stack.place import BUILD_SAMPLING

LOGS = Path(__file__).parents[2] / "fixtures" / "logs"
MOST = 60_000  # bytes of a log
LATEST = 560  # seconds; the slowest case compiles for three minutes on two cores

MakeEnvironment = Callable[[], lab.Environment]
CPU: MakeEnvironment = lab.cpu_server
REFERENCE: MakeEnvironment = functools.partial(lab.environment, lab.REFERENCE)
HALF: MakeEnvironment = functools.partial(lab.environment, lab.HALF)
COHERENT: MakeEnvironment = functools.partial(lab.environment, lab.COHERENT)
NEWER_CRT: MakeEnvironment = functools.partial(
    lab.environment,
    lab.Recipe("newer-crt", (*lab.COHERENT.requirements[:-1], "nvidia-cuda-crt==13.5.37")),
)

ON_CPU = {"VLLM_MLA_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
"""What vLLM needs for the tiny model without a GPU; and it asks no one on the network."""

ASK = """
import json, os, sys, time, urllib.error, urllib.request

server, model, url = sys.argv[1], sys.argv[2], "http://127.0.0.1:8000"
while os.path.exists("/proc/" + server):
    try:
        urllib.request.urlopen(url + "/health")
        break
    except OSError:
        time.sleep(1)
chat = {"model": model, "messages": [{"role": "user", "content": "the fox"}], "max_tokens": 5}
text = {"model": model, "prompt": "the quick", "max_tokens": 5}
for path, body in (("/v1/chat/completions", chat), ("/v1/completions", text), ("/v1/models", None)):
    data = body and json.dumps(body).encode()
    try:
        urllib.request.urlopen(
            urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
        )
    except urllib.error.HTTPError:
        pass
"""
"""Waits until the server with this pid answers, then asks it thrice for this model."""

OWN_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""In a pid namespace no process of a server outlives its case."""

SETUP = r"""
exec >"$1" 2>&1
mount -t tmpfs none /dev/shm  # a server that is killed leaves its segments there
cover() {  # cover DIR: what is changed in it from here on, only this case sees
    mkdir -p "/tmp/work/covers$1/upper" "/tmp/work/covers$1/work"
    mount -t overlay none "$1" \
        -o "lowerdir=$1,upperdir=/tmp/work/covers$1/upper,workdir=/tmp/work/covers$1/work"
}
"""


@dataclass(frozen=True)
class Case:
    """One way to fail.

    `id`: the ailment, or `healthy`. `name`: what this log shows it on; the file is
    `real-<name>.log`. `start`: the script that would start the server. `breaks`: shell, run first,
    as root of namespaces of its own. `limits`: by cgroup controller; only root can set them.
    """

    id: str
    name: str
    start: str
    breaks: str = ":"
    environment: MakeEnvironment = CPU
    variables: Mapping[str, str] = field(default_factory=lambda: ON_CPU)
    path: str = f"/opt/vllm-env/bin:{isolate.SYSTEM_PATH}"
    limits: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return LOGS / self.id / f"real-{self.name}.log"


def run(case: Case, scratch: Path) -> bytes:
    """Runs a case and returns its log.

    Cases that share `scratch` share what is made there: the model and the stand-in of a driver.
    """
    tiny, driver = scratch / "tiny-glm", scratch / "driver"
    if not tiny.exists():
        lab.tiny_model(lab.cpu_server(), tiny)
        stand_ins.build(driver)
    work = Path(tempfile.mkdtemp(prefix=f"{case.id}-", dir=scratch))
    shutil.copytree(tiny, work / "models" / "tiny-glm")
    (work / "home").mkdir()
    names = Names(case.environment(), work, driver, _free_port())
    log = work / "server.log"
    with _groups(case.limits) as groups:
        _write_scripts(case, work, names, groups)
        variables = {"HOME": "/home/user", "PATH": case.path, **case.variables}
        isolate.run(
            [*OWN_PIDS, "bash", work / "setup.sh", log],
            {name: names.into(value) for name, value in variables.items()},
            cwd=work / "home",
        )
    return _short(names.back(log.read_bytes()))


def _write_scripts(case: Case, work: Path, names: Names, groups: list[Path]) -> None:
    setup = [SETUP, case.breaks, *(f"echo $$ >{group}/cgroup.procs" for group in groups)]
    setup.append(f"exec timeout -k 9 {LATEST} bash /tmp/work/start.sh")
    for name, text in (
        ("ask.py", ASK),
        ("build.py", BUILD_SAMPLING),
        ("start.sh", case.start),
        ("setup.sh", "\n".join(setup)),
    ):
        (work / name).write_text(names.into(text) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _groups(limits: Mapping[str, str]) -> Iterator[list[Path]]:
    """A cgroup for each limit, gone afterwards; of version 1 or 2, whichever the machine has."""
    groups = []
    for controller, limit in limits.items():
        of_its_own = Path("/sys/fs/cgroup") / controller
        parent = of_its_own if of_its_own.is_dir() else of_its_own.parent
        group = Path(tempfile.mkdtemp(prefix="failing-", dir=parent))
        groups.append(group)
        files = (group / f"{controller}.max", group / f"{controller}.limit_in_bytes")
        next(file for file in files if file.exists()).write_text(limit)
    try:
        yield groups
    finally:
        for group in groups:
            while (group / "cgroup.procs").read_text():  # killed, and not yet gone
                time.sleep(0.1)
            group.rmdir()


@dataclass(frozen=True)
class Names:
    """The names in a log, and what they stand for on this machine."""

    target: lab.Environment
    work: Path
    driver: Path
    port: int

    def _ours(self) -> dict[str, str]:
        return {
            "/opt/vllm-env": str(self.target.prefix),
            "/opt/driver": str(self.driver),
            "/models/": f"{self.work}/models/",
            "/home/user": f"{self.work}/home",
            "/tmp/work": str(self.work),
        }

    def into(self, text: str) -> str:
        """Text of a case as this machine must read it."""
        for name, ours in self._ours().items():
            text = text.replace(name, ours)
        return re.sub(r"\b8000\b", str(self.port), text)

    def back(self, log: bytes) -> bytes:
        """A log without anything of this machine."""
        for name, ours in self._ours().items():
            log = log.replace(ours.encode(), name.encode())
        base = self.target.python.resolve().parents[1]
        log = log.replace(bytes(base), b"/usr/local").replace(bytes(Path.home()), b"/home/user")
        for pattern, name in ((str(self.port), "8000"), (re.escape(socket.gethostname()), "node1")):
            log = re.sub(rf"(?<![\w.-]){pattern}(?![\w-])".encode(), name.encode(), log)
        for address in _addresses():
            log = log.replace(address.encode(), b"10.0.0.5")
        return log


def _addresses() -> list[str]:
    """This machine's own, longest first."""
    found = {
        address.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
    return sorted(found - {"127.0.0.1", "::1"}, key=len, reverse=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _short(log: bytes) -> bytes:
    """A log without its middle, where it is too long for the repository."""
    if len(log) <= MOST:
        return log
    head = log[: MOST // 2].rpartition(b"\n")[0]
    tail = log[-MOST // 2 :].partition(b"\n")[2]
    left_out = log.count(b"\n") - head.count(b"\n") - tail.count(b"\n")
    return b"%s\n[... %d lines left out ...]\n%s" % (head, left_out, tail)


SERVE = "vllm serve /models/tiny-glm --port 8000 --enforce-eager --max-model-len 512"
COMPILED = SERVE.replace(" --enforce-eager", "")
OF_HUB = "vllm serve zai-org/GLM-4.7-Flash --port 8000 --enforce-eager"
BUILD = "python /tmp/work/build.py"
TRITON = "python -c 'from triton.backends.nvidia.driver import CudaUtils; CudaUtils()'"
AS_4711 = "exec unshare --map-user=4711 --map-group=4711"  # a user without a passwd entry
SITE = "/opt/vllm-env/lib/python3.*/site-packages"
WHEELS = "$(echo /opt/vllm-env/lib/python3.*/site-packages/nvidia/cu13)"

CPU_NAME = "vllm-0.22.0-cpu"
CUDA_NAME = "vllm-0.22.0-cuda"
BUILD_NAME = "flashinfer-0.6.11.post2"
TRITON_NAME = "triton-3.6.0"

ONLINE = {"VLLM_MLA_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""What vLLM for CUDA has where no driver is."""

H100 = {"LD_LIBRARY_PATH": "/opt/driver", "STAND_IN_GPUS": "2", **OFFLINE}
"""Where the stand-in says that there are two. vLLM believes it until the CUDA runtime asks more."""

H100_QUIET = {**H100, "PYTHONWARNINGS": "ignore::UserWarning"}
"""And torch does not say that the stand-in is none that the CUDA runtime can use."""

FOR_H100 = {"FLASHINFER_CUDA_ARCH_LIST": "9.0a"}

NO_COMPILER = """
cover /usr/bin
rm -f /usr/bin/*gcc* /usr/bin/*g++* /usr/bin/clang* /usr/bin/cc /usr/bin/c++ /usr/bin/c[89]9*
"""
NO_PYTHON_HEADERS = """
mount -t tmpfs none "$(/opt/vllm-env/bin/python -c '
import sysconfig
print(sysconfig.get_path("include"))')"
"""
LFS_POINTER = r"""
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 2551088\n' 0 \
    >/models/tiny-glm/model.safetensors
"""
INTERRUPTED_DOWNLOAD = """
hub=/home/user/.cache/huggingface/hub/models--zai-org--GLM-4.7-Flash
commit=7dd20894a642a0aa287e9827cb1a1f7f91386b67
mkdir -p $hub/refs $hub/blobs $hub/snapshots
printf %s $commit >$hub/refs/main
mv /models/tiny-glm $hub/snapshots/$commit
cd $hub/snapshots/$commit
/opt/vllm-env/bin/python - <<'END'
import json
from safetensors.torch import load_file, save_file

tensors = load_file("model.safetensors")
shards = {}
for number in (1, 2):
    name = f"model-0000{number}-of-00002.safetensors"
    part = sorted(tensors)[number - 1 :: 2]
    save_file({key: tensors[key] for key in part}, name, {"format": "pt"})
    shards.update(dict.fromkeys(part, name))
with open("model.safetensors.index.json", "w") as index:
    json.dump({"metadata": {"total_size": 2551088}, "weight_map": shards}, index)
END
rm model.safetensors
mv model-00002-of-00002.safetensors $hub/blobs/0a1b2c3d.incomplete
"""
SERVED = """
{serve} &
python /tmp/work/ask.py $! {model}
kill -TERM $!
wait $!
"""

CASES: tuple[Case, ...] = (
    Case("model-path-missing", CPU_NAME, "vllm serve /models/GLM-4.7-Flash --port 8000"),
    Case(
        "tool-parser-unknown",
        CPU_NAME,
        f"{SERVE} --enable-auto-tool-choice --tool-call-parser glm4_7",
    ),
    Case("reasoning-parser-unknown", CPU_NAME, f"{SERVE} --reasoning-parser glm47"),
    Case(
        "port-in-use",
        CPU_NAME,
        SERVE,
        breaks="python3 -m http.server 8000 >/dev/null 2>&1 & sleep 2",
    ),
    Case(
        "hf-endpoint-unreachable",
        CPU_NAME,
        OF_HUB,
        variables={**ONLINE, "HF_ENDPOINT": "http://127.0.0.1:9"},
    ),
    Case("hf-offline-missing-files", CPU_NAME, OF_HUB),
    Case("hf-incomplete-cache", CPU_NAME, OF_HUB, breaks=INTERRUPTED_DOWNLOAD),
    Case("max-model-len-too-big", CPU_NAME, f"{SERVE} --max-model-len 32768"),
    Case(
        "vllm-port-env-is-uri",
        CPU_NAME,
        SERVE,
        variables={**ON_CPU, "VLLM_PORT": "tcp://10.96.0.1:8000"},
    ),
    Case(
        "truncated-safetensors",
        f"{CPU_NAME}-cut-off",
        SERVE,
        breaks="truncate -s 1000000 /models/tiny-glm/model.safetensors",
    ),
    Case("truncated-safetensors", f"{CPU_NAME}-lfs-pointer", SERVE, breaks=LFS_POINTER),
    Case(
        "kv-cache-too-small",
        CPU_NAME,
        SERVE.replace("512", "1048576"),
        breaks="sed -i 's/2048,/1048576,/' /models/tiny-glm/config.json",
    ),
    Case(
        "architecture-not-in-vllm",
        CPU_NAME,
        SERVE,
        breaks="sed -i s/Glm4MoeLiteForCausalLM/Glm6MoeForCausalLM/ /models/tiny-glm/config.json",
    ),
    Case(
        "architecture-not-in-transformers",
        f"{CPU_NAME}-transformers-5.23.0",
        SERVE,
        breaks="sed -i s/glm4_moe_lite/glm6_moe/ /models/tiny-glm/config.json",
    ),
    Case(
        "architecture-not-in-transformers",
        f"{CUDA_NAME}-transformers-4.57.6",
        SERVE,
        environment=REFERENCE,
        variables=H100_QUIET,
    ),
    Case("uid-without-passwd-entry", CPU_NAME, f"{AS_4711} {SERVE}"),
    Case("tp-not-dividing-heads", CPU_NAME, f"{SERVE} --tensor-parallel-size 3"),
    Case("fd-limit", CPU_NAME, SERVE, breaks="ulimit -n 48"),
    Case("process-or-thread-limit", f"{CPU_NAME}-pids-6", SERVE, limits={"pids": "6"}),
    Case("process-or-thread-limit", f"{CPU_NAME}-pids-13", SERVE, limits={"pids": "13"}),
    Case("process-or-thread-limit", f"{CPU_NAME}-pids-24", SERVE, limits={"pids": "24"}),
    Case("host-oom-killed", f"{CPU_NAME}-server", SERVE, limits={"memory": "500M"}),
    # Of a worker that the kernel killed, 0.22 tells no more than that it is gone.
    Case("worker-failed", f"{CPU_NAME}-out-of-memory", SERVE, limits={"memory": "2400M"}),
    Case(
        "worker-failed",
        f"{CPU_NAME}-while-serving",
        # Not by the kernel: a limit that lets it start and then does not hold is hard to hit.
        SERVED.format(serve=SERVE, model="/models/tiny-glm").replace(
            "kill -TERM $!", "pkill -KILL -f VLLM::Worker"
        ),
    ),
    Case(
        "torchvision-mismatch",
        CPU_NAME,
        SERVE,
        breaks=f"cover /opt/vllm-env; cp /dev/null {SITE}/torchvision/_C.so",
    ),
    Case("c-compiler-missing", CPU_NAME, COMPILED, breaks=NO_COMPILER),
    Case("python-headers-missing", CPU_NAME, COMPILED, breaks=NO_PYTHON_HEADERS),
    Case(
        "cache-dir-unwritable",
        CPU_NAME,
        f"{AS_4711} {COMPILED}",
        breaks="chmod 555 /home/user",
        variables={**ON_CPU, "USER": "vllm"},
    ),
    Case(
        "served-model-name-mismatch",
        CPU_NAME,
        SERVED.format(
            serve=f"{SERVE} --served-model-name glm-4.7-flash", model="zai-org/GLM-4.7-Flash"
        ),
    ),
    Case("healthy", f"{CPU_NAME}-eager", SERVED.format(serve=SERVE, model="/models/tiny-glm")),
    Case(
        "healthy",
        f"{CPU_NAME}-parsers-home-unwritable",
        SERVED.format(
            serve=f"{AS_4711} {SERVE} --served-model-name glm-4.7-flash --reasoning-parser glm45"
            " --enable-auto-tool-choice --tool-call-parser glm47",
            model="glm-4.7-flash",
        ),
        breaks="chmod 555 /home/user",
        variables={**ON_CPU, "USER": "vllm"},
    ),
    Case(
        "healthy",
        f"{CPU_NAME}-compiled-then-restarted",
        2 * SERVED.format(serve=COMPILED, model="/models/tiny-glm"),
    ),
    Case(
        "driver-lib-invisible",
        f"{CUDA_NAME}-no-gpu",
        SERVE,
        environment=COHERENT,
        variables=OFFLINE,
    ),
    Case(
        "driver-lib-invisible",
        f"{CUDA_NAME}-no-gpu-debug",
        SERVE,
        environment=COHERENT,
        variables={**OFFLINE, "VLLM_LOGGING_LEVEL": "DEBUG"},
    ),
    Case("driver-lib-invisible", TRITON_NAME, TRITON, environment=COHERENT, variables={}),
    Case(
        "driver-too-old",
        f"{CUDA_NAME}-driver-stand-in",
        SERVE,
        environment=COHERENT,
        variables={**H100, "STAND_IN_CUDA": "12080", "STAND_IN_DRIVER_VERSION": "570.172.08"},
    ),
    *(
        Case(
            ailment,
            f"{CUDA_NAME}-driver-stand-in",
            SERVE,
            environment=COHERENT,
            variables={**H100, "STAND_IN_CUINIT": code},
        )
        for ailment, code in (
            ("fabric-manager-not-running", "802"),
            ("cuda-compat-shadow-803", "803"),
            ("forward-compat-unsupported-804", "804"),
            ("cuda-unknown-error", "999"),
        )
    ),
    Case(
        "tp-exceeds-visible-gpus",
        f"{CUDA_NAME}-driver-stand-in",
        f"{SERVE} --tensor-parallel-size 4",
        environment=COHERENT,
        variables={**H100_QUIET, "CUDA_VISIBLE_DEVICES": ""},
    ),
    Case(
        "cuda-visible-devices-uuid",
        f"{CUDA_NAME}-driver-stand-in",
        SERVE,
        environment=COHERENT,
        variables={
            **H100_QUIET,
            "CUDA_VISIBLE_DEVICES": "GPU-5b6d9c5e-0c1a-4f0e-9d55-7b1c2f3a4e5d",
        },
    ),
    Case(
        "vllm-ext-missing",
        f"{CUDA_NAME}-driver-stand-in",
        SERVE,
        environment=COHERENT,
        variables=H100_QUIET,
        breaks=f"cover /opt/vllm-env; rm {SITE}/vllm/_C.abi3.so",
    ),
    Case(
        "libcudart-major-mismatch",
        f"{CUDA_NAME}-driver-stand-in",
        SERVE,
        environment=COHERENT,
        variables=H100_QUIET,
        breaks=f"""
cover /opt/vllm-env
sed -i 's/libcudart\\.so\\.13/libcudart.so.12/' {SITE}/vllm/_C.abi3.so
""",
    ),
    Case(
        "vllm-torch-abi-mismatch",
        f"{CUDA_NAME}-driver-stand-in",
        SERVE,
        environment=COHERENT,
        variables=H100_QUIET,
        # The last letters are the types of the parameters: those of torch 2.8 and before.
        breaks=f"""
cover /opt/vllm-env
sed -i s/c10_cuda_check_implementationEiPKcS2_jb/c10_cuda_check_implementationEiPKcS2_ib/ \\
    {SITE}/vllm/_C.abi3.so
""",
    ),
    Case(
        "nccl-wheel-mismatch",
        CUDA_NAME,
        SERVE,
        environment=COHERENT,
        variables=OFFLINE,
        # Renamed away, as an older NCCL has it not at all.
        breaks=f"""
cover /opt/vllm-env
sed -i s/ncclCommWindowRegister/ncclCommWindowRegisteX/g {SITE}/nvidia/nccl/lib/libnccl.so.2
""",
    ),
    Case(
        "flashinfer-cubin-mismatch",
        BUILD_NAME,
        BUILD,
        environment=COHERENT,
        variables=FOR_H100,
        breaks=f"""
cover /opt/vllm-env
sed -i s/0.6.11.post2/0.6.10/ {SITE}/flashinfer_cubin/_build_meta.py
""",
    ),
    Case("nvcc-missing", BUILD_NAME, BUILD, environment=REFERENCE, variables=FOR_H100),
    Case(
        "nvcc-header-version-skew",
        BUILD_NAME,
        f"export CUDA_HOME={WHEELS}; {BUILD}",
        environment=REFERENCE,
        variables=FOR_H100,
    ),
    Case(
        "nvvm-ptxas-skew",
        BUILD_NAME,
        f"export CUDA_HOME={WHEELS}; {BUILD}",
        environment=HALF,
        variables=FOR_H100,
    ),
    Case(
        "crt-skew",
        BUILD_NAME,
        f"export CUDA_HOME={WHEELS}; {BUILD}",
        environment=NEWER_CRT,
        variables=FOR_H100,
    ),
    Case(
        "cuda-home-bad-path",
        f"{BUILD_NAME}-colon",
        BUILD,
        environment=COHERENT,
        variables={**FOR_H100, "CUDA_HOME": ":/usr/local/cuda-13.0"},
    ),
    Case(
        "cuda-home-bad-path",
        f"{BUILD_NAME}-absent",
        BUILD,
        environment=COHERENT,
        variables={**FOR_H100, "CUDA_HOME": "/usr/local/cuda-12.4"},
    ),
    Case(
        "ninja-missing",
        BUILD_NAME,
        f"export CUDA_HOME={WHEELS}; /opt/vllm-env/bin/{BUILD}",
        environment=COHERENT,
        variables=FOR_H100,
        path=isolate.SYSTEM_PATH,
        breaks="cover /usr/bin; rm -f /usr/bin/ninja",
    ),
    Case(
        "nvcc-too-old-for-arch",
        BUILD_NAME,
        f"export CUDA_HOME={WHEELS}; {BUILD}",
        environment=COHERENT,
        variables={"FLASHINFER_CUDA_ARCH_LIST": "13.0a"},
    ),
    Case(
        "nvcc-too-old-for-flags",
        BUILD_NAME,
        f"export CUDA_HOME={WHEELS}; {BUILD}",
        environment=COHERENT,
        variables={**FOR_H100, "FLASHINFER_EXTRA_CUDAFLAGS": "--simt-only"},
    ),
    Case(
        "cuda-headers-missing",
        BUILD_NAME,
        f"export CUDA_HOME={WHEELS}; {BUILD}",
        environment=COHERENT,
        variables=FOR_H100,
        breaks=f"cover /opt/vllm-env; rm {SITE}/nvidia/cu13/include/curand*",
    ),
    Case(
        "pip-toolkit-lib-layout",
        BUILD_NAME,
        f"export CUDA_HOME={WHEELS}; {BUILD}",
        environment=COHERENT,
        variables=FOR_H100,
    ),
    Case(
        "python-headers-missing",
        TRITON_NAME,
        TRITON,
        environment=COHERENT,
        variables=H100_QUIET,
        breaks=NO_PYTHON_HEADERS,
    ),
    Case(
        "c-compiler-missing",
        TRITON_NAME,
        TRITON,
        environment=COHERENT,
        variables=H100_QUIET,
        breaks=NO_COMPILER,
    ),
)


def main(ids: list[str]) -> None:
    """Makes the logs of these ids again, of all where none is named."""
    if unknown := set(ids) - {case.id for case in CASES}:
        sys.exit(f"no case of {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="failing-") as scratch:
        for case in CASES:
            if ids and case.id not in ids:
                continue
            began = time.monotonic()
            log = run(case, Path(scratch))
            case.log.parent.mkdir(parents=True, exist_ok=True)
            case.log.write_bytes(log)
            seconds = time.monotonic() - began
            print(f"{case.log.relative_to(LOGS)}  {len(log)} bytes  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
