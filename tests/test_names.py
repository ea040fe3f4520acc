"""What is read of the variables and options that a version of vLLM declares."""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

from doctor import toml
from doctor.consumers import names
from doctor.consumers.names import NotAsKnown
from doctor.engine import Facts
from doctor.model import Missing, NotApplicable
from doctor.probes.vllm_names import VllmOptions, VllmVariables
from doctor.shipped import rules_folder
from tests import mine_names
from tests.conftest import Environment, facts_of
from tests.installed import VLLM_FILES

ENGINE = """
class EngineArgs:
    model: str = ModelConfig.model
    enforce_eager: bool = ModelConfig.enforce_eager
    enable_prefix_caching: bool | None = None
    hf_token: bool | str | None = ModelConfig.hf_token
    headless_engine: bool = False

        group.add_argument("--model", **kwargs["model"])
        group.add_argument(
            "--tensor-parallel-size", "-tp", **kwargs["tensor_parallel_size"]
        )
        group.add_argument("--enforce-eager", **kwargs["enforce_eager"])
        group.add_argument("--enable-prefix-caching", **kwargs)
        group.add_argument("--hf-token", **kwargs["hf_token"])
        group.add_argument(
            "--headless-engine",
            action="store_true",
        )


class AsyncEngineArgs(EngineArgs):
    pass
"""
SERVER = """
@config
class FrontendArgs:
    \"\"\"Arguments for the server.\"\"\"

    host: str | None = None
    \"\"\"Host name.
    Example: 127.0.0.1\"\"\"
    uvicorn_log_level: Literal[
        "debug", "info"
    ] = "info"
    enable_auto_tool_choice: bool = False

        group.add_argument(*extra_flags, f"--{key.replace('_', '-')}", **value)

    parser.add_argument(
        "model_tag",
        type=str,
    )
    parser.add_argument("--api-server-count", "-asc", type=int)
"""
FILES = {names.ENGINE: ENGINE, names.FRONTEND[-1]: SERVER}
READ = {
    *("-h", "--help", "--model", "--tensor-parallel-size", "-tp", "--enforce-eager"),
    *("--no-enforce-eager", "--enable-prefix-caching", "--no-enable-prefix-caching"),
    *("--hf-token", "--headless-engine", "--host", "--uvicorn-log-level"),
    *("--enable-auto-tool-choice", "--no-enable-auto-tool-choice", "--api-server-count", "-asc"),
}


def read(files: dict[str, str]) -> set[str]:
    return set(names.options(searching(files)))


def searching(files: dict[str, str]) -> names.FileSearch:
    def search(file: str, pattern: str) -> tuple[str, ...] | None:
        return tuple(re.findall(pattern, files[file])) if file in files else None

    return search


class TestOptions:
    def test_short_ones_and_pairs_are_read(self) -> None:
        assert read(FILES) == READ

    @pytest.mark.parametrize("file", names.FRONTEND)
    def test_the_servers_file_may_lie_where_any_release_had_it(self, file: str) -> None:
        assert read({names.ENGINE: ENGINE, file: SERVER}) == READ

    def test_0_33_pairs_enable_with_disable(self) -> None:
        parser = {names.PARSER: "\nclass EnableDisableAction(BooleanOptionalAction):\n"}
        more = {"--disable-prefix-caching", "--disable-auto-tool-choice"}
        assert read({**FILES, **parser}) == READ | more

    def test_the_loop_of_0_11_is_read(self) -> None:
        rows = '            ("--guided-decoding-backend", str),\n'
        loop = f"{ENGINE}{rows}            group.add_argument(\n                arg,\n"
        assert read({**FILES, names.ENGINE: loop}) == READ | {"--guided-decoding-backend"}

    @pytest.mark.parametrize(
        ("file", "old", "new"),
        [
            (names.ENGINE, ENGINE, ""),
            (names.ENGINE, '"--model", **', 'f"--{name}", **'),
            (names.ENGINE, '"--model", **', "arg, **"),
            (names.ENGINE, ": bool", ": Switch"),
            (names.FRONTEND[-1], SERVER, ""),
            (names.FRONTEND[-1], "*extra_flags, f", "*flags, f"),
            (names.FRONTEND[-1], "    host", "host"),
        ],
    )
    def test_what_is_written_otherwise_is_not_guessed_at(
        self, file: str, old: str, new: str
    ) -> None:
        text = FILES[file].replace(old, new)
        if file == names.FRONTEND[-1] and new == "host":
            text = text.replace("    uvicorn", "uvicorn").replace("    enable", "enable")
        with pytest.raises(NotAsKnown) as error:
            read({**FILES, file: text})
        assert error.value.files == (file,)

    def test_a_missing_file_is_named_with_every_place(self) -> None:
        with pytest.raises(NotAsKnown) as error:
            read({names.ENGINE: ENGINE})
        assert error.value.files == names.FRONTEND


DECLARED = sorted(READ | {"-n", "--nnodes", "--max-model-len", "--max-num-seqs"})


@pytest.mark.parametrize(
    "word",
    [
        *("-n2", "-n", "-tp", "-tp2", "-tp=2", "-t", "--max", "--max-model", "--max-num-seqs=1"),
        *("--enforce", "--no-enforce-eager", "--no-model", "--hos", "--x", "-x", "-asc=1", "-a"),
    ],
)
def test_a_word_means_what_argparse_takes_it_for(word: str) -> None:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for option in DECLARED:
        parser.add_argument(option, nargs="?", dest=option)
    meant = names.meant(word, DECLARED)
    if len(meant) > 1:
        with pytest.raises((argparse.ArgumentError, SystemExit)):
            parser.parse_known_args([word])
        return
    assert bool(parser.parse_known_args([word])[1]) == (not meant)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--max_model_len=1", "--max-model-len"),
        ("--hf-token.key.other", "--hf-token"),
        ("-O3", "--optimization-level"),
    ],
)
def test_what_vllms_parser_rewrites_is_known(word: str, meant: str) -> None:
    assert names.meant(word, [*DECLARED, "--optimization-level"]) == (meant,)


@pytest.mark.parametrize("word", ["-1", "-.5", "-", "--x y", "x", '{"a": 1}'])
def test_values_are_no_options(word: str) -> None:
    assert not names.is_option(word)


# Variables.

ENVS = """
if TYPE_CHECKING:
    VLLM_ONE: bool = False
environment_variables: dict[str, Callable[[], Any]] = {
    # "VLLM_OLD": lambda: 1,
    "VLLM_ONE": lambda: bool(int(os.getenv("VLLM_ONE", "0"))),
    "VLLM_TWO": lambda: (
        int(os.environ["VLLM_TWO"]) if "VLLM_TWO" in os.environ else None
    ),
    "VLLM_PORT": get_vllm_port,
    "VLLM_WORD": lambda: os.environ.get("VLLM_WORD", "x"),
    "CUDA_HOME": lambda: os.environ.get("CUDA_HOME", None),
}
"""


def test_the_keys_are_the_variables_and_int_reads_some() -> None:
    search = searching({names.ENVS: ENVS})
    assert names.variables(search) == (
        "CUDA_HOME",
        "VLLM_ONE",
        "VLLM_PORT",
        "VLLM_TWO",
        "VLLM_WORD",
    )
    assert names.whole_number_variables(search) == ("VLLM_ONE", "VLLM_PORT", "VLLM_TWO")


@pytest.mark.parametrize("text", ["", "import os\n", "x = {\n  'VLLM_ONE': 1}\n"])
def test_a_file_without_the_table_declares_nothing(text: str) -> None:
    with pytest.raises(NotAsKnown, match=r"envs\.py"):
        names.variables(searching({names.ENVS: text}))


# The installed files.

OWN = [names.ENVS, names.ENGINE, names.FRONTEND[-1]]


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def rewritten(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(40):
        made[chance.randrange(len(made))] = chance.randrange(256)
    return bytes(made)


def binary(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(4096)


def empty(data: bytes, chance: random.Random) -> bytes:
    return b""


def huge(data: bytes, chance: random.Random) -> bytes:
    return data + b'\n    "VLLM_X":' * 500_000


@pytest.mark.parametrize("damage", [cut, rewritten, binary, empty, huge])
@pytest.mark.parametrize("file", OWN)
def test_a_damaged_file_is_read_or_named(
    server: Environment, file: str, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    path = server.site / "vllm" / file
    data = VLLM_FILES[f"vllm/{file}"].encode()
    chance = random.Random(7)  # noqa: S311 - repeatable
    for _ in range(1 if damage in (empty, huge) else 8):
        path.write_bytes(damage(data, chance))
        facts = facts_of(server)
        _read_or_named(facts, VllmVariables, path if file == names.ENVS else None)
        _read_or_named(facts, VllmOptions, None if file == names.ENVS else path)


def _read_or_named(
    facts: Facts, kind: type[VllmVariables] | type[VllmOptions], path: Path | None
) -> None:
    why = None
    try:
        assert facts.get(kind).names
    except Missing as missing:
        why = missing
    if why:
        assert path is not None
        assert str(path) in str(why.reason)
        assert isinstance(why, NotApplicable) == (kind is VllmVariables)


@pytest.mark.parametrize(
    ("kind", "file"), [(VllmVariables, names.ENVS), *((VllmOptions, f) for f in OWN[1:])]
)
def test_a_file_that_is_not_there_is_named(
    server: Environment, kind: type[VllmVariables] | type[VllmOptions], file: str
) -> None:
    (server.site / "vllm" / file).unlink()
    with pytest.raises(Missing, match=file):
        facts_of(server).get(kind)


# The table of what is gone.


def test_the_table_names_releases_in_order_and_successors_by_kind() -> None:
    table = toml.load_toml(rules_folder() / "tables" / names.NAMES_TABLE)
    newest = Version(table["newest"])
    rows = {**table["variables"], **table["options"]}
    assert len(rows) > 100
    for name, row in rows.items():
        assert Version(row["first"]) <= Version(row["last"]) < newest, name
        assert name.startswith("--") == (name in table["options"])
        assert all(use.startswith(("--", "VLLM_")) for use in row.get("use", ()))


def test_what_vllm_said_of_its_own_is_in_the_table() -> None:
    row = names.gone("VLLM_USE_FLASHINFER_MOE_FP16")
    assert row
    assert (row.last, row.use) == ("0.23.0", ("--moe-backend",))
    assert names.gone("VLLM_PORT") is None
    assert names.gone("--model") is None


def test_the_table_has_a_row_for_what_a_later_release_lacks() -> None:
    lives = {
        "0.10.0": frozenset({"--old", "--no-old", "--stays", "--back", "-o"}),
        "0.11.0": frozenset({"--stays", "--new", "VLLM_X"}),
        "0.12.0": frozenset({"--stays", "--new", "--back"}),
    }
    assert list(mine_names.rows(lives, {"--old": ["--new", "--stays"]})) == [
        '"--back" = { first = "0.10.0", last = "0.10.0" }',
        '"--old" = { first = "0.10.0", last = "0.10.0", use = ["--new", "--stays"] }',
        'VLLM_X = { first = "0.11.0", last = "0.11.0" }',
    ]
