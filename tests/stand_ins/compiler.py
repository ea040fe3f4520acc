"""Stand-ins of nvcc and cicc that fail as the real ones do when their parts do not go together.

They are small ELF programs around a shell script, and nothing in them compiles for a GPU: nvcc has
the host's compiler read the source and the headers, asks cicc which PTX it writes, and makes an
object of what cicc generates. What they print, and how a mix of releases fails, is what CUDA 13.0
and 13.5 were seen to do.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Release:
    """One release of the compiler. `archs`: of --list-gpu-arch; `generates`: what cicc's host code
    asks of crt/host_runtime.h, `launch` the macro that is there; `cicc_options`: what nvcc tells
    its cicc, which an older one does not know."""

    version: str
    built: str
    build: str
    archs: str
    ptx: str
    generates: str
    launch: str
    cicc_options: str = ""

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])


RELEASES = {
    "13.0": Release(
        version="13.0.88",
        built="Wed_Aug_20_01:58:59_PM_PDT_2025",
        build="cuda_13.0.r13.0/compiler.36424714_0",
        archs="75 80 86 87 88 89 90 100 110 103 120 121",
        ptx="9.0",
        generates="__cudaLaunch(out, 0)",
        launch="#define __cudaLaunch(fun, isTileKernel) cudaLaunchKernel(fun)",
    ),
    "13.5": Release(
        version="13.5.37",
        built="Mon_Oct_12_19:25:48_PDT_2026",
        build="cuda_13.5.r13.5/compiler.39125733_0",
        archs="75 80 86 87 88 89 90 100 110 103 120 121 107",
        ptx="9.5",
        generates="__cudaLaunch(out)",
        launch="#define __cudaLaunch(fun) cudaLaunchKernel(fun)",
        cicc_options="--simt-only",
    ),
}

# As the real one, it takes the folder above its own from the name that it is called by.
_NVCC = r"""
case $0 in
    */*) here=${0%/*} ;;
    *) here=$(command -v "$0") && here=${here%/*} ;;
esac
top=$here/..
host=${NVCC_CCBIN:-gcc} source= object= dry=
set -- ${NVCC_PREPEND_FLAGS-} "$@" ${NVCC_APPEND_FLAGS-}
left=$#
while [ "$left" -gt 0 ]; do  # what the host's compiler is to know goes to the end, and stays
    word=$1 value=
    shift
    left=$((left - 1))
    case $word in
        -o | -x | -ccbin | -isystem)
            value=$1
            shift
            left=$((left - 1))
            ;;
    esac
    case $word in
        --version | -V)
            echo 'nvcc: NVIDIA (R) Cuda compiler driver'
            echo 'Copyright (c) 2005-2026 NVIDIA Corporation'
            echo 'Built on @built@'
            echo 'Cuda compilation tools, release @minor@, V@version@'
            echo 'Build @build@'
            exit 0
            ;;
        --list-gpu-arch)
            printf 'compute_%s\n' @archs@
            exit 0
            ;;
        --dryrun | -dryrun) dry=1 ;;
        -gencode=arch=compute_*)
            arch=${word#*compute_}
            arch=${arch%%,*}
            case " @archs@ " in
                *" ${arch%[af]} "*) ;;
                *)
                    echo "nvcc fatal   : Unsupported gpu architecture 'compute_$arch'" >&2
                    exit 1
                    ;;
            esac
            ;;
        -ccbin) host=$value ;;
        -o) object=$value ;;
        -isystem) set -- "$@" "$word" "$value" ;;
        -I* | -D* | -std=*) set -- "$@" "$word" ;;
        --compiler-options=*) set -- "$@" "${word#*=}" ;;
        -*) ;;
        *) source=$word ;;
    esac
done
if [ -n "$dry" ]; then
    printf '#$ %s\n' "_HERE_=$here" "TOP=$top" "CICC_PATH=$top/nvvm/bin" >&2
    exit 0
fi
if [ -z "$source" ]; then
    echo 'nvcc fatal   : No input files specified; use option --help for more information' >&2
    exit 1
fi
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
minor=@minor@
set -- "-I$top/include" "$@" -isystem "$top/include/cccl" -D__CUDACC__ -D__NVCC__ \
    "-D__CUDACC_VER_MAJOR__=${minor%.*}" "-D__CUDACC_VER_MINOR__=${minor#*.}" -x c++
"$host" "$@" -include cuda_runtime.h -E "$source" >/dev/null || exit 1
set -- "$@" -include crt/host_runtime.h
"$top/nvvm/bin/cicc" @cicc_options@ --stub_file_name "$scratch/stub.c" -o "$scratch/ptx" || exit 1
ptx=$(sed -n 's/^\.version //p' "$scratch/ptx")
if [ "${ptx#*.}" -gt "${minor#*.}" ]; then
    said="Unsupported .version $ptx; current version is '@ptx@'"
    echo "ptxas $scratch/ptx, line 9; fatal   : $said" >&2
    exit 255
fi
"$host" "$@" -c "$scratch/stub.c" -o "$object"
"""

_CICC = r"""
output=- stub=/dev/null
while [ $# -gt 0 ]; do
    case $1 in
        -o) shift && output=$1 ;;
        --stub_file_name) shift && stub=$1 ;;
        @cicc_options@) ;;
        --*)
            echo "Command-line error: invalid option: $1" >&2
            exit 1
            ;;
    esac
    shift
done
echo 'extern "C" int probe(float *out) { return @generates@; }' > "$stub"
if [ "$output" != - ]; then
    exec > "$output"
fi
echo '//'
echo '// Generated by NVIDIA NVVM Compiler'
echo '//'
echo '// Cuda compilation tools, release @minor@, V@version@'
echo '// Based on NVVM 7.0.1'
echo '//'
echo
echo '.version @ptx@'
echo '.target sm_75'
echo '.address_size 64'
"""

_PROGRAM = """
#include <unistd.h>
static char *const script = %s;
int main(int count, char **words) {
  char *all[count + 4];
  all[0] = "sh";
  all[1] = "-c";
  all[2] = script;
  for (int i = 0; i <= count; i++) all[3 + i] = words[i];
  execv("/bin/sh", all);
  return 127;
}
"""


def nvcc(release: Release) -> bytes:
    """The program `bin/nvcc`: of --version, --list-gpu-arch, --dryrun and `-c SOURCE -o OBJECT`."""
    return _program(_NVCC, release)


def cicc(release: Release) -> bytes:
    """The program `nvvm/bin/cicc`."""
    return _program(_CICC, release)


def _program(script: str, release: Release) -> bytes:
    values = {**vars(release), "minor": release.minor}
    if script is _CICC:
        values["cicc_options"] = release.cicc_options or "none"  # no option is called so
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return compiled(_PROGRAM % json.dumps(script))


def compiled(source: str) -> bytes:
    """A small program of C source text, made by the system's cc."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "program"
        flags = ["-Os", "-s", "-w", "-Wl,-z,noseparate-code", "-x", "c", "-", "-o", str(program)]
        subprocess.run(["cc", *flags], input=source.encode(), check=True)
        return program.read_bytes()


def crt_headers(release: Release) -> dict[str, str]:
    """nvidia-cuda-crt, in what is read of it: no host compiler is too new for it."""
    return {
        "crt/host_config.h": (
            "#if __GNUC__ > 99\n#error -- unsupported GNU version!\n#endif\n"
            "#if (__clang_major__ >= 99)\n#error -- unsupported clang version!\n#endif\n"
        ),
        "crt/math_functions.h": (
            "#ifdef __CUDA_ARCH__\n"
            "extern __device_builtin__ double rsqrt(double x) _NV_RSQRT_SPECIFIER;\n"
            "extern __device_builtin__ double sinpi(double x) "
            "__NV_IEC_60559_FUNCS_EXCEPTION_SPECIFIER;\n"
            "#endif\n"
        ),
        "crt/host_runtime.h": (
            f'extern "C" int cudaLaunchKernel(const void *);\n{release.launch}\n'
        ),
    }


def runtime_headers(release: Release) -> dict[str, str]:
    """nvidia-cuda-runtime; its cuda_runtime_api.h says of which release it is."""
    major, minor = release.minor.split(".")
    empty = ("cuda.h", "cuda_fp16.h", "cuda_fp8.h", "cooperative_groups.h")
    return {
        **dict.fromkeys(empty, ""),
        "cuda_runtime_api.h": f"#define CUDART_VERSION  {major}0{minor}0\n",
        "cuda_runtime.h": (
            "#include <crt/host_config.h>\n#include <cuda_runtime_api.h>\n"
            "#include <crt/math_functions.h>\n"
        ),
    }


# FlashInfer's own CCCL makes the comparison.
CCCL_CHECK = """\
#if !defined(CCCL_DISABLE_CTK_COMPATIBILITY_CHECK) && \\
    __CUDACC_VER_MAJOR__ * 1000 + __CUDACC_VER_MINOR__ * 10 != CUDART_VERSION
#error "CUDA compiler and CUDA toolkit headers are incompatible, please check your include paths"
#endif
"""
