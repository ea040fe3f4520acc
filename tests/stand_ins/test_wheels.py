"""The small wheels are what they claim: for uv, for pip, for the doctor, and for a compiler."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from doctor.probes._proof import SOURCE
from doctor.probes.toolkit import measured_mixes
from tests.conftest import SYSTEM, Environment
from tests.stand_ins import index as indexes
from tests.stand_ins.compiler import RELEASES
from tests.stand_ins.fixtures import BAD_CUDA_HOME, FOR_H100, VLLM, Bench, isolated_doctor
from tests.stand_ins.index import Index
from tests.stand_ins.killer import Entry, tree
from tests.stand_ins.wheels import CU13, make_wheel

PIP = (sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check")


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """A wheel that has something of everything."""
    return make_wheel(
        tmp_path / "wheels",
        "A-Tool",
        "1.0.post1",
        requires=("filelock; extra == 'locks'",),
        files={
            "a_tool/__init__.py": "def main():\n    print('called')\n",
            "a_tool/bin/helper": "#!/bin/sh\necho helped\n",
            "shared/part.h": b"\x00\x01",
        },
        executable=("a_tool/bin/helper",),
        scripts={"a-script": "#!python\nprint('scripted')\n"},
        entry_points={"a-tool": "a_tool:main"},
        data={"share/a-tool/data.txt": "data"},
    )


def recorded(environment: Environment) -> dict[str, str]:
    """What the RECORD of A-Tool says of each file."""
    record = environment.site / "a_tool-1.0.post1.dist-info/RECORD"
    with record.open(newline="") as file:
        return {row[0]: row[1] for row in csv.reader(file)}


def of_the_wheel(environment: Environment) -> dict[str, Entry]:
    """What came with it, its metadata and what has the installer's own shebang left out."""
    found = tree(environment.prefix, without=["__pycache__"])
    names = ("a_tool/", "shared/", "share/a-tool", "bin/a-")
    return {
        name: one._replace(size=0, content="") if name.startswith("bin/") else one
        for name, one in found.items()
        if any(part in name for part in names) and ".dist-info" not in name
    }


def test_uv_and_pip_lay_a_wheel_out_alike_and_what_it_brings_runs(
    tool: Path, bench: Bench, tmp_path: Path
) -> None:
    pytest.importorskip("pip")
    with indexes.serve(tool.parent) as index:
        by_uv = bench.environment(tmp_path / "uv", "a-tool", index=index.url)
        by_pip = bench.environment(tmp_path / "pip", index=index.url)
        command: list[str | Path] = [
            *PIP,
            "--python",
            by_pip.python,
            "install",
            "-i",
            index.url,
            "a-tool",
        ]
        subprocess.run(command, env=SYSTEM, capture_output=True, check=True)
    for environment in (by_uv, by_pip):
        site = environment.site
        for program, said in {
            environment.prefix / "bin/a-tool": "called\n",
            environment.prefix / "bin/a-script": "scripted\n",
            site / "a_tool/bin/helper": "helped\n",
        }.items():
            assert (
                subprocess.run([program], capture_output=True, text=True, check=True).stdout == said
            )
        assert (site / "shared/part.h").read_bytes() == b"\x00\x01"
        assert (environment.prefix / "share/a-tool/data.txt").read_text() == "data"
        for path, digest in recorded(environment).items():
            if digest:
                made = hashlib.sha256((site / path).read_bytes()).digest()
                told = base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "==")
                assert made == told, path
    assert of_the_wheel(by_uv) == of_the_wheel(by_pip)


def test_a_wheel_for_another_python_is_not_installed(bench: Bench, tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "a-tool", "1.0", python=">=99")
    with indexes.serve(tmp_path / "wheels") as index:
        words = ("--target", tmp_path / "target", "--python", sys.executable, "a-tool")
        ran = bench.uv("pip", "install", *words, index=index.url)
    assert ran.returncode != 0
    assert "does not satisfy Python>=99" in ran.stderr


def test_the_same_files_make_the_same_wheel(tool: Path, tmp_path: Path) -> None:
    first, second = (
        make_wheel(tmp_path / name, "x", "1", files={"x.py": "1"}).read_bytes() for name in "ab"
    )
    assert first == second
    with zipfile.ZipFile(tool) as archive:
        assert archive.testzip() is None


NAIVE = {
    "transformers": "4.57.6",
    "huggingface-hub": "0.36.2",
    "tokenizers": "0.22.2",
    "xgrammar": "0.2.5.post1",
    "torch": "2.11.0",
    "nvidia-cuda-nvcc": "13.5.37",
    "nvidia-cuda-crt": "13.5.37",
    "nvidia-nvvm": "13.5.37",
    "nvidia-cuda-runtime": "13.0.96",
    "nvidia-cuda-cccl": "13.3.5.0.6",
}


def versions(rows: str) -> dict[str, str]:
    """name==version, one a line, as uv and pip freeze write them."""
    return dict(row.split("==") for row in rows.splitlines() if "==" in row)


def test_uv_makes_of_vllm_what_it_makes_of_the_real_one(
    reference: Environment, bench: Bench, index: Index
) -> None:
    about = ("--python", reference.python)
    have = versions(bench.uv("pip", "freeze", *about, index=index.url).stdout)
    assert {name: have[name] for name in NAIVE} == NAIVE
    assert bench.uv("pip", "check", *about, index=index.url).returncode == 0


def test_pip_resolves_it_alike(bench: Bench, index: Index, tmp_path: Path) -> None:
    pytest.importorskip("pip")
    empty = bench.environment(tmp_path / "venv", index=index.url)
    command: list[str | Path] = [
        *PIP,
        "--python",
        empty.python,
        "install",
        "-i",
        index.url,
        "--no-cache-dir",
    ]
    ran = subprocess.run(
        [*command, "--dry-run", VLLM], env=SYSTEM, capture_output=True, text=True, check=True
    )
    would = ran.stdout.rpartition("Would install ")[2].split()
    assert {f"{name}-{version}" for name, version in NAIVE.items()} <= set(would)


def test_the_repair_moves_what_it_moves_in_the_real_stack(
    reference: Environment, bench: Bench, index: Index
) -> None:
    toolkit = "cuda-toolkit[cccl,crt,cudart,curand,nvcc,nvvm]==13.0.2"
    words = ("--dry-run", "--python", reference.python, VLLM, "transformers>=5.0", toolkit)
    ran = bench.uv("pip", "install", *words, index=index.url)
    moved = versions("\n".join(r[3:] for r in ran.stderr.splitlines() if r.startswith(" + ")))
    assert moved == {
        "huggingface-hub": "2.4.0",
        "nvidia-cuda-cccl": "13.0.85",
        "nvidia-cuda-crt": "13.0.88",
        "nvidia-cuda-nvcc": "13.0.88",
        "nvidia-nvvm": "13.0.88",
        "tokenizers": "0.23.3",
        "transformers": "5.23.0",
        "xgrammar": "0.2.3",
    }


OF_THE_WHEELS = {
    "architecture-not-in-transformers",
    "nvcc-header-version-skew",
    "pip-toolkit-lib-layout",
    "model-not-downloaded",
}
JUDGE = ("diagnose", "--format", "json", *FOR_H100)


@pytest.mark.parametrize(
    ("more", "found"), [({}, "nvcc-missing"), (BAD_CUDA_HOME, "cuda-home-bad-path")]
)
def test_the_doctor_finds_in_it_what_it_finds_in_the_real_one(
    more: dict[str, str], found: str, reference: Environment, bench: Bench, index: Index
) -> None:
    said = bench.doctor(*JUDGE, environment=reference, index=index.url, **more)
    assert said.found() == {*OF_THE_WHEELS, found}
    assert {o["verdict"] for o in said.report["outcomes"]} == {"found", "ok"}


def test_the_doctor_finds_the_same_on_a_machine_without_a_toolkit(
    reference: Environment, bench: Bench, index: Index
) -> None:
    path = f"{reference.prefix}/bin:{SYSTEM['PATH']}"
    env = bench.shell(index.url, reference, PATH=path)
    said = isolated_doctor(*JUDGE, "--python", reference.prefix, env=env)
    assert said.found() - {"nvcc-missing", "cuda-home-bad-path"} == OF_THE_WHEELS
    assert len(said.found()) == len(OF_THE_WHEELS) + 1


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("cuda-toolkit[nvcc]==13.0.2",), {"nvvm-ptxas-skew", "crt-skew"}),
        (("--no-deps", "torch==2.10.0"), {"vllm-torch-abi-mismatch", "libcudart-major-mismatch"}),
        (("--no-deps", "flashinfer-cubin==0.6.10"), {"flashinfer-cubin-mismatch"}),
    ],
)
def test_it_can_be_broken_further(
    words: tuple[str, ...], found: set[str], broken: Environment, bench: Bench, index: Index
) -> None:
    bench.install(broken, *words, index=index.url)
    said = bench.doctor(*JUDGE, environment=broken, index=index.url)
    assert found <= said.found()


@pytest.fixture(scope="module")
def parts(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels that make a toolkit, each unpacked into a folder of its name."""
    at = tmp_path_factory.mktemp("parts")
    for wheel in [*world.glob("nvidia_*.whl"), *world.glob("flashinfer_python-*.whl")]:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(at / "-".join(wheel.name.split("-")[:2]))
    return at


def toolkit(parts: Path, where: Path, nvcc: str, nvvm: str, crt: str, headers: str) -> Path:
    """A toolkit of parts of these minors."""
    of = {minor: release.version for minor, release in RELEASES.items()}
    runtime = {"13.0": "13.0.96", "13.5": "13.5.37"}[headers]
    folders = (
        f"nvidia_cuda_nvcc-{of[nvcc]}",
        f"nvidia_nvvm-{of[nvvm]}",
        f"nvidia_cuda_crt-{of[crt]}",
        f"nvidia_cuda_runtime-{runtime}",
        "nvidia_curand-10.4.0.35",
    )
    for folder in folders:
        source = parts / folder / CU13
        for at, _, files in os.walk(source):
            place = where / Path(at).relative_to(source)
            place.mkdir(parents=True, exist_ok=True)
            for name in files:
                (place / name).write_bytes((Path(at) / name).read_bytes())
    for program in ("bin/nvcc", "nvvm/bin/cicc"):
        (where / program).chmod(0o755)
    return where


def compile_with(kit: Path, parts: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Compiles the doctor's own test kernel with a toolkit, as FlashInfer does."""
    source = kit / "probe.cu"
    source.write_text(SOURCE)
    cccl = next(parts.glob("flashinfer_python-*")) / "flashinfer/data/cccl/libcudacxx/include"
    include = (f"-I{cccl}", "-isystem", f"{kit}/include", "--compiler-options=-fPIC")
    command = [f"{kit}/bin/nvcc", *include, *words, "-c", str(source), "-o", f"{kit}/probe.o"]
    return subprocess.run(command, env=SYSTEM, capture_output=True, text=True, check=False)


MINORS = tuple(RELEASES)
MIXES = [(a, b, c, d) for a in MINORS for b in MINORS for c in MINORS for d in MINORS]


@pytest.mark.parametrize("mix", MIXES, ids="/".join)
def test_a_mix_of_parts_compiles_or_fails_as_the_real_ones_were_measured_to(
    mix: tuple[str, str, str, str], parts: Path, tmp_path: Path
) -> None:
    measured = measured_mixes()
    kit = toolkit(parts, tmp_path, *mix)
    ran = compile_with(kit, parts, "-gencode=arch=compute_90a,code=sm_90a", "-O3")
    name = "/".join(mix)
    if name in measured.compiles:
        assert ran.returncode == 0, ran.stderr
        assert (kit / "probe.o").read_bytes()[:4] == b"\x7fELF"
    else:
        words = measured.fails[name].removeprefix("ptxas fatal: ").removesuffix("...")
        assert ran.returncode != 0
        assert words in ran.stderr


def test_a_header_that_is_not_there_and_a_gpu_that_is_unknown_end_a_build(
    parts: Path, tmp_path: Path
) -> None:
    kit = toolkit(parts, tmp_path, "13.0", "13.0", "13.0", "13.0")
    unknown = compile_with(kit, parts, "-gencode=arch=compute_50,code=sm_50")
    assert "nvcc fatal   : Unsupported gpu architecture 'compute_50'" in unknown.stderr
    (kit / "include/curand.h").unlink()
    assert "curand.h: No such file or directory" in compile_with(kit, parts).stderr
