"""Small wheels that are real: uv and pip install them, and what lies in them runs and links.

`make_wheel` makes any; `vllm_world` makes a set that looks to the doctor's probes, and behaves in a
resolver, as vLLM 0.22.0 and all that it needs do on the real index.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import FLASHINFER, shared_library
from tests.installed import FLASHINFER_FILES, VLLM_FILES
from tests.stand_ins import compiler
from tests.stand_ins.compiler import RELEASES, Release

Content = str | bytes
_EPOCH = (2026, 1, 1, 0, 0, 0)  # the same files make the same wheel, byte for byte


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    requires: Iterable[str] = (),
    files: Mapping[str, Content] | None = None,
    executable: Collection[str] = (),
    scripts: Mapping[str, Content] | None = None,
    entry_points: Mapping[str, str] | None = None,
    data: Mapping[str, Content] | None = None,
    python: str = ">=3.10",
    tag: str = "py3-none-any",
) -> Path:
    """Writes a wheel into `folder` and returns its path.

    `files` go to site-packages (None: an empty package of that name), those in `executable` with
    their x; `scripts` go to bin as they are, but for a first line "#!python"; `entry_points` are
    console scripts, such as {"tool": "package.module:main"}; `data` goes below the prefix, such as
    "share/man/man1/tool.1". Extras are those that the markers of `requires` name.
    """
    stem = f"{re.sub(r'[-_.]+', '_', name).lower()}-{version}"
    info = f"{stem}.dist-info"
    requires = tuple(requires)
    extras = sorted(set(re.findall(r"extra == ['\"]([\w-]+)['\"]", "\n".join(requires))))
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        f"Requires-Python: {python}",
        *(f"Requires-Dist: {row}" for row in requires),
        *(f"Provides-Extra: {extra}" for extra in extras),
    ]
    members: dict[str, tuple[bytes, bool]] = {}
    if files is None:
        files = {f"{re.sub(r'[-.]', '_', name).lower()}/__init__.py": ""}
    for path, content in files.items():
        members[path] = (_bytes(content), path in executable)
    for script, content in (scripts or {}).items():
        members[f"{stem}.data/scripts/{script}"] = (_bytes(content), True)
    for path, content in (data or {}).items():
        members[f"{stem}.data/data/{path}"] = (_bytes(content), False)
    if entry_points:
        rows = [f"{script} = {where}" for script, where in entry_points.items()]
        text = "\n".join(["[console_scripts]", *rows, ""])
        members[f"{info}/entry_points.txt"] = (text.encode(), False)
    kind = f"Wheel-Version: 1.0\nGenerator: stand-in\nRoot-Is-Purelib: true\nTag: {tag}\n"
    members[f"{info}/WHEEL"] = (kind.encode(), False)
    members[f"{info}/METADATA"] = ("\n".join([*metadata, "", "About it.\n"]).encode(), False)
    record = [f"{path},{_digest(made)},{len(made)}\n" for path, (made, _) in members.items()]
    members[f"{info}/RECORD"] = ("".join([*record, f"{info}/RECORD,,\n"]).encode(), False)
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, (made, runs) in members.items():
            member = zipfile.ZipInfo(path, _EPOCH)
            member.external_attr = (0o100755 if runs else 0o100644) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, made)
    return wheel


def _bytes(content: Content) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _digest(made: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(made).digest()).decode().rstrip("=")
    return f"sha256={digest}"


CU13 = "nvidia/cu13"
VLLM_TRANSFORMERS = "transformers!=5.0.*,!=5.1.*,!=5.2.*,!=5.3.*,!=5.4.*,!=5.5.0,>=4.56.0"
_LINUX = "sys_platform == 'linux'"


def vllm_world(folder: Path) -> Path:
    """The wheels of an index in which `pip install vllm==0.22.0` goes as wrong as on the real one:
    nothing pins nvcc and so it comes as 13.5 over the headers of 13.0, and the newest xgrammar
    keeps transformers below 5. Returns `folder`, with less than a hundred kilobytes in it."""
    made = _binaries()
    for release in RELEASES.values():
        _compiler_wheels(folder, release, made)
    _cuda_wheels(folder, made)
    _torch_wheels(folder, made)
    _vllm_wheels(folder, made)
    _model_wheels(folder)
    return folder


_NUMBERS = {"12.8": 12080, "13.0": 13000, "13.5": 13050}


def _binaries() -> dict[str, bytes]:
    """Everything that is compiled, all at once: it is what takes the time."""
    jobs: dict[str, Callable[[], bytes]] = {
        "_C.abi3.so": functools.partial(
            _library, None, needed=("libtorch.so", "libcudart.so.13", "libcuda.so.1")
        ),
        "libtorch_global_deps.so": functools.partial(
            _library,
            "libtorch_global_deps.so",
            needed=("libcudart.so.13",),
            rpath=f"$ORIGIN/../../{CU13}/lib:$ORIGIN",
        ),
    }
    for name in ("libtorch_python.so", "libcurand.so.10", "libnvrtc.so.13", "libnvvm.so.4"):
        jobs[name] = functools.partial(_library, name)
    for minor, number in _NUMBERS.items():
        source = (
            "int cudaLaunchKernel(const void *kernel) { return !kernel; }\n"
            f"int cudaRuntimeGetVersion(int *version) {{ return *version = {number}, 0; }}\n"
        )
        soname = f"libcudart.so.{number // 1000}"
        jobs[f"libcudart {minor}"] = functools.partial(_library, soname, source=source)
    for minor, release in RELEASES.items():
        jobs[f"nvcc {minor}"] = functools.partial(compiler.nvcc, release)
        jobs[f"cicc {minor}"] = functools.partial(compiler.cicc, release)
    with ThreadPoolExecutor() as pool:
        return dict(zip(jobs, pool.map(lambda job: job(), jobs.values()), strict=True))


def _compiler_wheels(folder: Path, release: Release, made: Mapping[str, bytes]) -> None:
    """What makes a compiler, each part a wheel of its own that is laid out into one folder."""
    minor, version = release.minor, release.version
    make_wheel(
        folder,
        "nvidia-cuda-nvcc",
        version,
        requires=("nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-crt"),
        files={
            f"{CU13}/bin/nvcc": made[f"nvcc {minor}"],
            f"{CU13}/bin/nvcc.profile": "TOP = $(_HERE_)/..\n",
            f"{CU13}/include/fatbinary_section.h": "",
        },
        executable=(f"{CU13}/bin/nvcc",),
    )
    make_wheel(
        folder,
        "nvidia-nvvm",
        version,
        files={
            f"{CU13}/nvvm/bin/cicc": made[f"cicc {minor}"],
            f"{CU13}/nvvm/libdevice/libdevice.10.bc": b"BC\xc0\xde",
            f"{CU13}/lib/libnvvm.so.4": made["libnvvm.so.4"],
            f"{CU13}/include/nvvm.h": "",
        },
        executable=(f"{CU13}/nvvm/bin/cicc",),
    )
    make_wheel(folder, "nvidia-cuda-crt", version, files=_headers(compiler.crt_headers(release)))
    make_wheel(
        folder,
        "nvidia-cuda-runtime",
        "13.0.96" if minor == "13.0" else version,
        files={
            **_headers(compiler.runtime_headers(release)),
            f"{CU13}/lib/libcudart.so.13": made[f"libcudart {minor}"],
        },
    )


def _cuda_wheels(folder: Path, made: Mapping[str, bytes]) -> None:
    """The rest of a toolkit, and the metapackage that says what goes together."""
    curand = dict.fromkeys(("curand.h", "curand_kernel.h", "curand_philox4x32_x.h"), "")
    make_wheel(
        folder,
        "nvidia-curand",
        "10.4.0.35",
        files={**_headers(curand), f"{CU13}/lib/libcurand.so.10": made["libcurand.so.10"]},
    )
    nvrtc = {"libnvrtc.so.13": made["libnvrtc.so.13"], "libnvrtc.alt.so.13": b""}
    make_wheel(
        folder,
        "nvidia-cuda-nvrtc",
        "13.0.88",
        files={
            **_headers({"nvrtc.h": ""}),
            **{f"{CU13}/lib/{name}": content for name, content in nvrtc.items()},
        },
    )
    for version in ("13.0.85", "13.3.5.0.6"):
        make_wheel(folder, "nvidia-cuda-cccl", version, files=_headers({"nv/target": ""}))
    for release, cccl, runtime, parts in (
        ("13.0.2", "13.0.85", "13.0.96", "13.0.88"),
        ("13.5.0", "13.3.5.0.6", "13.5.37", "13.5.37"),
    ):
        pins = {
            "cccl": f"nvidia-cuda-cccl=={cccl}",
            "crt": f"nvidia-cuda-crt=={parts}.*",
            "cudart": f"nvidia-cuda-runtime=={runtime}.*",
            "curand": "nvidia-curand==10.4.0.35.*",
            "nvcc": f"nvidia-cuda-nvcc=={parts}.*",
            "nvrtc": "nvidia-cuda-nvrtc==13.0.88.*",
            "nvvm": f"nvidia-nvvm=={parts}.*",
        }
        rows = [f"{pin}; ({_LINUX}) and extra == '{extra}'" for extra, pin in pins.items()]
        make_wheel(folder, "cuda-toolkit", release, requires=rows, files={})
    for version in ("13.0.3", "13.4.4"):
        files = {
            "cuda/bindings/__init__.py": "",
            "cuda/bindings/runtime.py": "cudaLibrary_t = int\n",
        }
        make_wheel(folder, "cuda-bindings", version, files=files)
        # Nothing but a requirement, since 12.8; the one before it has cuda/bindings itself.
        requires = (f"cuda-bindings~={version}",)
        make_wheel(folder, "cuda-python", version, requires=requires, files={})
    old = {
        "cuda/bindings/__init__.py": "__version__ = '12.6.2'\n",
        "cuda/bindings/runtime.py": "\n",
    }
    make_wheel(folder, "cuda-python", "12.6.2.post1", files={**old, "cuda/cudart.py": ""})
    make_wheel(
        folder,
        "nvidia-cuda-runtime-cu12",
        "12.8.90",
        files={"nvidia/cuda_runtime/lib/libcudart.so.12": made["libcudart 12.8"]},
    )


def _torch_wheels(folder: Path, made: Mapping[str, bytes]) -> None:
    """torch 2.11.0 and the release before, which is for CUDA 12 and fits no vLLM here."""
    toolkit = 'cuda-toolkit[cudart,curand,nvrtc]==13.0.2; platform_system == "Linux"'
    for version, cuda, requires in (
        ("2.11.0", "13.0", (toolkit, 'triton==3.6.0; platform_system == "Linux"')),
        ("2.10.0", "12.8", ("nvidia-cuda-runtime-cu12==12.8.90", "triton==3.6.0")),
    ):
        local = f"{version}+cu{cuda.replace('.', '')}"
        make_wheel(
            folder,
            "torch",
            version,
            requires=("filelock", "sympy>=1.13.3", *requires),
            files={
                "torch/__init__.py": "",
                "torch/version.py": (
                    "from typing import Optional\n\n"
                    f"__version__ = '{local}'\ndebug = False\ncuda: Optional[str] = '{cuda}'\n"
                    "hip: Optional[str] = None\n"
                ),
                "torch/lib/libtorch_global_deps.so": made["libtorch_global_deps.so"],
                "torch/lib/libtorch_python.so": made["libtorch_python.so"],
            },
            entry_points={"torchrun": "torch.distributed.run:main"},
        )
    driver = "libraries = ['libcuda.so.1']\n"
    files = {"triton/__init__.py": "", "triton/backends/nvidia/driver.py": driver}
    make_wheel(folder, "triton", "3.6.0", files=files)
    make_wheel(folder, "filelock", "3.20.0")
    make_wheel(
        folder,
        "sympy",
        "1.14.0",
        files={"sympy/__init__.py": "", "isympy.py": "def main():\n    print('isympy')\n"},
        entry_points={"isympy": "isympy:main"},
        data={"share/man/man1/isympy.1": ".TH isympy 1\n"},
    )


def _vllm_wheels(folder: Path, made: Mapping[str, bytes]) -> None:
    make_wheel(
        folder,
        "vllm",
        "0.22.0",
        requires=(
            VLLM_TRANSFORMERS,
            "tokenizers>=0.21.1",
            'xgrammar<1.0.0,>=0.2.0; platform_machine == "x86_64" or platform_machine == "aarch64"',
            "filelock>=3.16.1",
            "ninja",
            "torch==2.11.0",
            f"flashinfer-python=={FLASHINFER}",
            f"flashinfer-cubin=={FLASHINFER}",
            "apache-tvm-ffi==0.1.9",
            "humming-kernels[cu13]==0.1.2",
        ),
        files={**VLLM_FILES, "vllm/_C.abi3.so": made["_C.abi3.so"]},
        entry_points={"vllm": "vllm.entrypoints.cli.main:main"},
    )
    # As the real one, it asks for a compiler and for no release of it.
    unpinned = ("nvidia-cuda-runtime", "nvidia-cuda-cccl", "nvidia-cuda-nvcc", "nvidia-cuda-nvrtc")
    make_wheel(
        folder,
        "humming-kernels",
        "0.1.2",
        requires=("torch>=2.7", "triton", *(f'{name}; extra == "cu13"' for name in unpinned)),
    )
    make_wheel(
        folder,
        "flashinfer-python",
        FLASHINFER,
        requires=("ninja", "torch"),
        files={
            **FLASHINFER_FILES,
            "flashinfer/data/cccl/libcudacxx/include/cuda/std/type_traits": compiler.CCCL_CHECK,
        },
        entry_points={"flashinfer": "flashinfer.__main__:cli"},
    )
    for version in (FLASHINFER, "0.6.10"):
        make_wheel(folder, "flashinfer-cubin", version)
    make_wheel(
        folder,
        "ninja",
        "1.13.2",
        files={"ninja/__init__.py": ""},
        scripts={"ninja": "#!/bin/sh\necho 1.13.2\n"},
    )


def _model_wheels(folder: Path) -> None:
    """transformers and what has to move together with it."""
    table = "\nCONFIG_MAPPING_NAMES = OrderedDict(\n    [\n{}    ]\n)\n"
    rows = ('        ("glm4_moe", "X1Config"),\n', '        ("glm4_moe_lite", "X2Config"),\n')
    auto = "transformers/models/auto"
    without = {f"{auto}/configuration_auto.py": table.format(rows[0])}
    having = {
        f"{auto}/configuration_auto.py": "",
        f"{auto}/auto_mappings.py": table.format("".join(rows)),
    }
    old = ("huggingface-hub<1.0,>=0.34.0", "tokenizers<=0.23.0,>=0.22.0", "filelock")
    new = ("huggingface-hub<3.0,>=1.31.0", "tokenizers<0.24.0,>=0.23.1")
    for version, requires, files in (
        ("4.56.2", old, without),
        ("4.57.6", old, without),
        ("5.3.0", new, having),
        ("5.23.0", new, having),
    ):
        make_wheel(
            folder,
            "transformers",
            version,
            requires=requires,
            files={"transformers/__init__.py": f"__version__ = '{version}'\n", **files},
            entry_points={"transformers": "transformers.cli:main"},
        )
    hub_script = {"hf": "huggingface_hub.cli.hf:main"}
    for version in ("0.36.2", "2.4.0"):
        make_wheel(folder, "huggingface-hub", version, entry_points=hub_script)
    for version, most in (("0.22.2", "2.0"), ("0.23.3", "3.0")):
        hub = f"huggingface-hub<{most},>=0.16.4"
        make_wheel(folder, "tokenizers", version, requires=(hub,))
    # The three newest, which vLLM's pin of apache-tvm-ffi rules out, are why uv ends at an old
    # transformers: after so many conflicts about xgrammar it decides on that before all others.
    for version, tvm, below in (
        ("0.2.3", "0.1.9", ""),
        ("0.2.5.post1", "0.1.9", "<5,"),
        ("0.2.6", "0.1.10", ""),
        ("0.2.7", "0.1.10", ""),
        ("0.2.8", "0.1.11", ""),
    ):
        needs = (f"apache-tvm-ffi>={tvm}", "torch>=1.10.0", f"transformers{below}>=4.38.0")
        make_wheel(folder, "xgrammar", version, requires=needs)
    for version in ("0.1.9", "0.1.11"):
        make_wheel(folder, "apache-tvm-ffi", version, files={"tvm_ffi/__init__.py": ""})


def _headers(files: Mapping[str, str]) -> dict[str, Content]:
    return {f"{CU13}/include/{name}": text for name, text in files.items()}


def _library(
    soname: str | None, *, source: str = "", needed: Iterable[str] = (), rpath: str | None = None
) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "library.so"
        shared_library(path, needed=needed, soname=soname, rpath=rpath, source=source)
        return path.read_bytes()
