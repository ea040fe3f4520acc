"""The variables and the options that a version of vLLM declares, read from its sources as text.

Read in vLLM 0.10.0 to 0.33.0 (`python -m tests.mine_names` reads them all again). Against vLLM's
own parser, built in an environment of it: the same 354 strings in 0.22.0, the same 485 in 0.33.0.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from doctor import toml
from doctor.frozen import dataclass
from doctor.profile import Profile
from doctor.shipped import rules_folder

FileSearch = Callable[[str, str], tuple[str, ...] | None]
"""What a pattern matches in a file of vLLM's package, named from its folder; None: no such file."""


class NotAsKnown(Exception):
    """A file is not there, or does not declare names as it did in the versions that were read."""

    def __init__(self, *files: str) -> None:
        super().__init__(f"{' and '.join(files)}: not as in the versions of vLLM that were read")
        self.files = files


# Variables.

ENVS = "envs.py"
# The keys of `environment_variables`, which `validate_environ` knows, and no other ones.
_KEY = r'\n    "(\w+)":'
# Read by `int`, which ends vLLM for any other text: EngineCore and each worker read all variables
# once (`enable_envs_cache`, 0.19 to 0.33). VLLM_PORT has a function of its own.
_WHOLE = (
    r"\b(?:int|maybe_convert_int|maybe_convert_bool)"
    r'\(\s*os\.(?:getenv\(|environ\.get\(|environ\[)\s*"(\w+)"'
)
_PORT = r'\n    "(\w+)": get_vllm_port\b'

READ_ELSEWHERE = {
    "VLLM_CPU_CI_ENV": "platforms/cpu.py, to 0.28",
    "VLLM_CPU_SIM_MULTI_NUMA": "v1/worker/cpu_worker.py, utils/ompmultiprocessing.py",
    "VLLM_CUSTOM_ALLREDUCE_ALGO": "_C_stable_libtorch.abi3.so",
    "VLLM_DIST_IDENT": "distributed/device_communicators/cpu_communicator.py",
    "VLLM_MINIMAX_M3_MSA_CUTLASS_MIN_BATCH": "models/minimax_m3/nvidia/sparse_attention_msa.py",
    "VLLM_MORIIO_TRANSFER_TIMEOUT_S": "distributed/kv_transfer/kv_connector/v1/moriio, from 0.28",
    "VLLM_PRECOMPILED_WHEEL_LOCATION": "envs.py, for another one's value",
    "VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES": "vllm-rs, in 0.33",
    "VLLM_SNAPSHOT_TIMEOUT_S": "snapshot/runtime.py, from 0.33",
}
"""Variables that vLLM reads and envs.py does not declare, and where."""


def variables(search: FileSearch) -> tuple[str, ...]:
    """Those that envs.py declares, sorted. Raises NotAsKnown."""
    names = set(search(ENVS, _KEY) or ())
    if not names:
        raise NotAsKnown(ENVS)
    return tuple(sorted(names))


def whole_number_variables(search: FileSearch) -> tuple[str, ...]:
    """Those that must be whole numbers, sorted. Raises NotAsKnown."""
    found = {*(search(ENVS, _WHOLE) or ()), *(search(ENVS, _PORT) or ())}
    if not found:
        raise NotAsKnown(ENVS)
    return tuple(sorted(found))


# Options of `vllm serve`.

OPTIONS = {
    "served_model_name": "--served-model-name",
    "host": "--host",
    "port": "--port",
    "tensor_parallel_size": "--tensor-parallel-size",
    "max_model_len": "--max-model-len",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "reasoning_parser": "--reasoning-parser",
    "tool_call_parser": "--tool-call-parser",
    "enable_auto_tool_choice": "--enable-auto-tool-choice",
    "moe_backend": "--moe-backend",
}
"""Each setting of a profile and the option that says it (0.10 to 0.33, --moe-backend from 0.17 on).
On a CPU too: there --gpu-memory-utilization is the share of the memory of a NUMA node, and each
rank of tensor parallelism has a node (vllm/v1/worker/cpu_worker.py)."""

ENGINE = "engine/arg_utils.py"
FRONTEND = (
    "entrypoints/common/cli_args.py",  # from 0.33
    "entrypoints/launchers/cli_args.py",  # 0.29 to 0.32
    "entrypoints/openai/cli_args.py",  # to 0.28
)
"""Of the server: the first that is there."""
PARSER = "utils/argparse_utils.py"

# One match for each call, so that one which is written otherwise is seen to be.
_CALL = (
    r"""add_argument\(\s*((?:["'][\w-]+["'],?\s*)*"""
    r"""(?:action=["']store_true|(?:\*extra_flags, )?f"--\{key\.|arg,)?)"""
)
_GENERIC = 'f"--{key.'  # the server's options, made of the fields of its classes
# 0.10.2 to 0.11: a loop over those that were to go.
_LOOP, _ROW = "arg,", r'\(["\'](--[\w-]+)["\'], \w+\)'
# What follows all of them: without it, the file is cut off.
_AFTER = r"\nclass (AsyncEngineArgs)\b"
# Fields of EngineArgs, which get_kwargs makes a pair --x and --no-x of.
_SWITCH = r"\n    (\w+): (?:bool(?: \| None)?|Optional\[bool\]) = "
_FIELD = r"\n    ([a-z]\w*: [A-Za-z]\w*)(?= =| \||\[)"
# 0.33: --enable-x is a pair with --disable-x as well.
_PAIRS = r"\nclass (EnableDisableAction)\b"


def options(search: FileSearch) -> tuple[str, ...]:
    """Every string that `vllm serve` takes for an option, short ones, aliases and those with --no-
    among them; sorted. Raises NotAsKnown."""
    engine, switches = search(ENGINE, _CALL) or (), search(ENGINE, _SWITCH)
    listed = (search(ENGINE, _ROW) or ()) if _LOOP in engine else ()
    readable = all(_named(call) or (call == _LOOP and listed) for call in engine)
    if not (engine and switches and readable and search(ENGINE, _AFTER)):
        raise NotAsKnown(ENGINE)
    server, fields = _server(search)
    pairs = {_option(field) for field in switches}
    pairs |= {_option(field) for field in fields if field.endswith(": bool")}
    declared = {"-h", "--help", *listed, *map(_option, fields)}
    alone: set[str] = set()
    for call in (*engine, *server):
        declared |= _named(call)
        if "store_true" in call:
            alone |= _named(call)
    both = bool(search(PARSER, _PAIRS))
    made = (_opposites(option, both) for option in (declared & pairs) - alone)
    return tuple(sorted(declared.union(*made)))


def _server(search: FileSearch) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The calls and the fields of the server's own options. Raises NotAsKnown."""
    for file in FRONTEND:
        calls = search(file, _CALL)
        if calls is None:
            continue
        fields = search(file, _FIELD)
        if not fields or not any(call.endswith(_GENERIC) for call in calls):
            raise NotAsKnown(file)
        return calls, fields
    raise NotAsKnown(*FRONTEND)


def _named(call: str) -> set[str]:
    return set(re.findall(r"""["'](-[\w-]+)["']""", call))


def _option(field: str) -> str:
    return "--" + field.partition(":")[0].replace("_", "-")


_INVERSE = {"--enable-": "--disable-", "--disable-": "--enable-"}


def _opposites(option: str, both: bool) -> Iterator[str]:
    yield f"--no-{option[2:]}"
    for prefix, inverse in _INVERSE.items():
        if both and option.startswith(prefix):
            yield inverse + option.removeprefix(prefix)


def passed(profile: Profile) -> Iterator[tuple[str, str, object]]:
    """What a start passes: each setting of the profile that says something, its option, its value;
    a switch that is off is not passed."""
    for setting, option in OPTIONS.items():
        value = getattr(profile, setting)
        if value is not None and value is not False:
            yield setting, option, value


def meant(word: str, declared: Iterable[str]) -> tuple[str, ...]:
    """The options that vLLM's parser takes a word of the command line for: none where it ends with
    "unrecognized arguments", several where it finds it ambiguous.

    As argparse does it: a whole name, or the beginning of one; of a short one also its value
    behind it (-n2). Underscores are dashes, what follows a dot is a key, and -O3 is
    --optimization-level (FlexibleArgumentParser).
    """
    option = word.partition("=")[0]
    if option.startswith("--"):
        option = option.partition(".")[0].replace("_", "-")
    elif option.startswith("-O"):
        return ("--optimization-level",)
    declared = tuple(declared)
    if option in declared:
        return (option,)
    short = () if option.startswith("--") else tuple(n for n in declared if n == option[:2])
    return short + tuple(sorted(n for n in declared if n.startswith(option)))


def is_option(word: str) -> bool:
    """Whether argparse takes a word for an option, and not for a value or a number."""
    if not word.startswith("-") or word == "-" or re.fullmatch(r"-\d+|-\d*\.\d+", word):
        return False
    return " " not in word.partition("=")[0]


# What is not known.


def nearest(name: str, known: Iterable[str]) -> str | None:
    """What was probably meant by a name that is not known; what all of them begin with is no
    likeness."""
    from difflib import get_close_matches

    start = re.match(r"VLLM_|-*(?:no-)?|", name)
    prefix = start[0] if start else ""
    rest = [one.removeprefix(prefix) for one in known if one.startswith(prefix)]
    close = get_close_matches(name.removeprefix(prefix), rest, 1, cutoff=0.8)
    return prefix + close[0] if close else None


NAMES_TABLE = "vllm-names.toml"


@dataclass(frozen=True)
class Gone:
    """A name that later releases lack: the first release that had it (0.10.0: or one before), the
    last, and what vLLM says to use instead."""

    first: str
    last: str
    use: tuple[str, ...] = ()


def gone(name: str) -> Gone | None:
    """Of a variable or an option, by rules/tables/vllm-names.toml; None too where that cannot be
    read: it is a hint."""
    kind = "options" if name.startswith("-") else "variables"
    row = _table().get(kind, {}).get(name)
    return Gone(row["first"], row["last"], tuple(row.get("use", ()))) if row else None


@functools.cache
def _table() -> dict[str, Any]:
    try:
        return toml.load_toml(rules_folder() / "tables" / NAMES_TABLE)
    except (OSError, ValueError):
        return {}


def takes(successor: str, variables: Collection[str], options: Collection[str]) -> bool:
    """Whether a version that declares these knows what the table says to use instead."""
    if successor.startswith("-"):
        return successor.partition(".")[0].replace("_", "-") in options
    return successor in variables


# A service `vllm` of Kubernetes, or a link of docker's, sets these in every container beside it.
_SERVICE = re.compile(r"_SERVICE_(?:HOST|PORT(?:_\w+)?)|_PORT_\d+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?")
_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://")
# Of the build (setup.py, CMakeLists.txt), which nothing reads at a start.
_OF_THE_BUILD = re.compile(
    r"VLLM_(?:\w+_SRC_DIR|VERSION_OVERRIDE|PYTHON_EXECUTABLE|GPU_LANG|PRECOMPILED_\w+|WHEEL_\w+)"
)
# Platforms and other parts that have variables of their own: distributions beside vLLM, and its
# server in Rust (vllm-rs).
_PARTS = (
    *("ASCEND", "GAUDI", "HPU", "KUNLUN", "METAL", "MUSA", "NEURON", "OMNI", "RBLN", "SPYRE"),
    "RS",
)


def is_of_others(variable: str, value: str, distributions: Iterable[str]) -> bool:
    """Whether a variable VLLM_... is not meant for vLLM itself: of a plugin (`distributions`: the
    normalised names of what is installed beside vLLM), of a service or a link, or of its build."""
    installed = [n[5:].replace("-", "_").upper() for n in distributions if n.startswith("vllm-")]
    return bool(
        variable.startswith(tuple(f"VLLM_{part}_" for part in (*_PARTS, *installed)))
        or _SERVICE.search(variable)
        or _OF_THE_BUILD.fullmatch(variable)
        or _ADDRESS.match(value)
    )
