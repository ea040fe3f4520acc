"""The option table of a vLLM, read from its files; tests/real_stack holds it against vLLM's own."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable

import pytest

from doctor.consumers import names
from doctor.consumers.names import NotAsKnown
from doctor.consumers.server_options import OptionTable, ServerOption, Takes, option_table

ENGINE = """
from vllm.config.cache import (
    PASSTHROUGH,
)

def _compute_kwargs(cls):
            elif name in (
                "max_num_batched_tokens",
            ):
                kwargs[name]["type"] = human_readable_int
            if kwargs[name].get("choices"):
                kwargs[name]["choices"].append("None")


class EngineArgs:
        model_kwargs = get_kwargs(ModelConfig)
        if not ("serve" in sys.argv[1:] and "--help" in sys.argv[1:]):
            model_group.add_argument("--model", **model_kwargs["model"])
        model_group.add_argument("--dtype", **model_kwargs["dtype"])
        model_group.add_argument("--max-model-len", **model_kwargs["max_model_len"])
        model_group.add_argument("--quantization", "-q", **model_kwargs["quantization"])
        model_group.add_argument("--hf-token", **model_kwargs["hf_token"])
        model_group.add_argument(
            "--enforce-eager", **model_kwargs["enforce_eager"]
        )
        model_group.add_argument("--hf-overrides", **model_kwargs["hf_overrides"])
        model_group.add_argument("--odd", **model_kwargs["odd"])
        cache_kwargs = get_kwargs(CacheConfig)
        cache_kwargs["backend"]["choices"].remove(
            PASSTHROUGH
        )
        backend_kwargs = cache_kwargs["backend"]
        backend_kwargs["type"] = lambda s: s.lower().replace("-", "_")
        group.add_argument("--backend", **backend_kwargs)
        group.add_argument(
            "--max-num-batched-tokens",
            **{
                **cache_kwargs["max_num_batched_tokens"],
                "default": None,
            },
        )
        group.add_argument("--cache-config", "-cc", **cache_kwargs["cache_config"])
        group.add_argument("--sizes", **cache_kwargs["sizes"])
        group.add_argument("--traces", **cache_kwargs["traces"])
        cache_kwargs["lost"]["type"] = something(else_)
        group.add_argument("--lost", **cache_kwargs["lost"])
        group.add_argument(
            "--data-parallel-rank",
            "-dpn",
            type=int,
            help="Data parallel rank of this instance. "
            "When set, (enables) external mode.",
        )
        parser.add_argument("--enable-stats", action="store_true", help="x")
        parser.add_argument(
            "--prefill",
            dest="prefill_backend",
            choices=["flashinfer", "triton"],
            default=None,
        )
        parser.add_argument(
            "--fail", help="If set", default=False, action=argparse.BooleanOptionalAction
        )
"""
MODEL = '''
import torch
from vllm.config.cache import CacheConfig, Alias
from vllm.config.utils import config
from vllm.elsewhere import Choice

if TYPE_CHECKING:
    from vllm.methods import Methods
else:
    Methods = Any

ModelDType = Literal[
    "auto", "half", "float16"
]


@config(config=ConfigDict(arbitrary_types_allowed=True))
class ModelConfig:
    """Configuration for the model.

    dtype: not this one
    """

    model: str = "Qwen/Qwen3-0.6B"
    """Name or path.
    seed: of a docstring"""
    dtype: ModelDType | torch.dtype = "auto"
    max_model_len: int = Field(default=None, ge=-1)
    quantization: Methods | str | None = None
    hf_token: bool | str | None = None
    enforce_eager: bool = False
    hf_overrides: dict[str, Any] | Callable[[X], Y] = field(default_factory=dict)
    odd: Literal["a", 1] = "a"
    """Two types of choices."""

    def __post_init__(
        self,
        other: int,
    ) -> None:
        seed: int = 3
'''
CACHE = """
from vllm.config.utils import config

PASSTHROUGH: Final = "passthrough"
Backend = Literal[
    "auto",  # the best
    "flash_x",
    "passthrough",
]
More = Literal["b", Backend]


@config
class Base:
    base: int = 1
    hidden: int = field(default=1, init=False)


@config
class CacheConfig(Base):
    DEFAULT: ClassVar[int] = 16

    backend: Backend = "auto"
    max_num_batched_tokens: int | None = None
    cache_config: "Any" = None
    sizes: list[int] | None = None
    traces: list[More] | None = None
    lost: int = 1
    share: Annotated[float, Field(gt=0)] = 0.5
"""
CACHE = CACHE.replace('cache_config: "Any" = None', "cache_config: Base | None = None")
SERVER = '''
from vllm.chat import FormatOption

@config
class BaseArgs:
    """Base arguments."""

    lora_modules: list[Path] | None = None
    chat_template_format: FormatOption = "auto"

        frontend_kwargs["lora_modules"]["action"] = LoRAParserAction
        frontend_kwargs = get_kwargs(cls)
        for key, value in frontend_kwargs.items():
            frontend_group.add_argument(
                *extra_flags, f"--{key.replace('_', '-')}", **value
            )

@config
class FrontendArgs(BaseArgs):
    port: int = 8000
    allowed_origins: list[str] = field(default_factory=lambda: ["*"])
    middleware: list[str] = field(default_factory=lambda: [])

        frontend_kwargs["allowed_origins"]["type"] = json.loads
        del frontend_kwargs["allowed_origins"]["nargs"]
        frontend_kwargs["middleware"]["action"] = "append"
        if "nargs" in frontend_kwargs["middleware"]:
            del frontend_kwargs["middleware"]["nargs"]


def make_arg_parser(parser):
    parser.add_argument(
        "model_tag",
        type=str,
        nargs="?",
    )
    parser.add_argument("--config")
'''
INIT = """
from vllm.config.cache import CacheConfig
from vllm.config.model import (
    ModelConfig,
)
"""
CHAT = "\nfrom .types import *\n"
FILES = {
    names.ENGINE: ENGINE,
    names.FRONTEND[-1]: SERVER,
    "config/__init__.py": INIT,
    "config/model.py": MODEL,
    "config/cache.py": CACHE,
    "chat/__init__.py": CHAT,
    "chat/types.py": '\nFormatOption = Literal["auto", "openai"]\n',
    "entrypoints/cli/serve.py": '\n    "used with --headless (no API servers are started in "\n',
}


def read(files: dict[str, str]) -> OptionTable:
    def search(file: str, pattern: str) -> tuple[str, ...] | None:
        return tuple(re.findall(pattern, files[file])) if file in files else None

    return option_table(search)


TABLE = read(FILES)
ROWS = [
    ServerOption(("--model",), "model", default="Qwen/Qwen3-0.6B"),
    ServerOption(("--dtype",), "dtype", choices=("auto", "float16", "half"), default="auto"),
    ServerOption(("--max-model-len",), "max_model_len", Takes.LENGTH),
    ServerOption(("--quantization", "-q"), "quantization", optional=True),
    ServerOption(("--hf-token",), "hf_token", many="?", without=True),
    ServerOption(
        ("--enforce-eager", "--no-enforce-eager"),
        "enforce_eager",
        Takes.PAIR,
        negative=("--no-enforce-eager",),
        default=False,
    ),
    ServerOption(("--hf-overrides",), "hf_overrides", Takes.TEXT_OR_JSON),
    ServerOption(("--odd",), "odd", Takes.UNKNOWN),
    ServerOption(
        ("--backend",), "backend", choices=("auto", "flash_x"), default="auto", lowered=True
    ),
    ServerOption(
        ("--max-num-batched-tokens",), "max_num_batched_tokens", Takes.SIZE, optional=True
    ),
    ServerOption(
        ("--cache-config", "-cc"), "cache_config", Takes.CONFIG, optional=True, keys=("base",)
    ),
    ServerOption(("--sizes",), "sizes", Takes.INT, many="+", optional=True),
    ServerOption(
        ("--traces",),
        "traces",
        many="+",
        choices=("auto", "b", "flash_x", "passthrough", "None"),
        optional=True,
    ),
    ServerOption(("--lost",), "lost", Takes.UNKNOWN, default=1),
    ServerOption(("--data-parallel-rank", "-dpn"), "data_parallel_rank", Takes.INT),
    ServerOption(("--enable-stats",), "enable_stats", Takes.SWITCH),
    ServerOption(("--prefill",), "prefill_backend", choices=("flashinfer", "triton")),
    ServerOption(
        ("--fail", "--no-fail"), "fail", Takes.PAIR, negative=("--no-fail",), default=False
    ),
    ServerOption(("--config",), "config"),
    ServerOption(("--port",), "port", Takes.INT, default=8000),
    ServerOption(("--allowed-origins",), "allowed_origins", Takes.JSON),
    ServerOption(("--middleware",), "middleware", repeated=True),
    ServerOption(("--lora-modules",), "lora_modules", Takes.UNKNOWN, many="+"),
    ServerOption(
        ("--chat-template-format",),
        "chat_template_format",
        choices=("auto", "openai"),
        default="auto",
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_option_is_read_as_vllm_makes_it(row: ServerOption) -> None:
    assert TABLE.find(row.name) == row


def test_there_are_no_others() -> None:
    assert {one.name for one in TABLE.options} == {"help", *(row.name for row in ROWS)}


def test_0_33_pairs_enable_with_disable_and_takes_none_itself() -> None:
    parser = '\nclass EnableDisableAction(BooleanOptionalAction):\n (no_key := f"--no-{key}")'
    engine = ENGINE.replace('append("None")', "append(None)").replace('"--fail"', '"--enable-fail"')
    table = read({**FILES, names.PARSER: parser, names.ENGINE: engine})
    fail, traces = table.find("enable_fail"), table.find("traces")
    assert fail
    assert traces
    assert fail.negative == ("--no-enable-fail", "--disable-fail")
    assert traces.choices[-1] is None
    assert table.config_says_no


def test_what_vllm_refuses_later_is_only_what_its_files_say() -> None:
    assert TABLE.demands == ("used with --headless (no API servers are started",)


@pytest.mark.parametrize("file", [names.ENGINE, names.FRONTEND[-1]])
def test_a_file_that_adds_no_option_is_named(file: str) -> None:
    with pytest.raises(NotAsKnown) as error:
        read({**FILES, file: "\n"})
    assert file in error.value.files


def test_without_a_servers_file_every_place_is_named() -> None:
    with pytest.raises(NotAsKnown) as error:
        read({names.ENGINE: ENGINE})
    assert error.value.files == names.FRONTEND


@pytest.mark.parametrize("file", ["config/__init__.py", "config/model.py", "config/cache.py"])
def test_what_cannot_be_read_makes_its_options_unknown(file: str) -> None:
    table = read({name: text for name, text in FILES.items() if name != file})
    dtype = table.find("dtype" if file != "config/cache.py" else "backend")
    assert dtype
    assert dtype.takes is Takes.UNKNOWN or dtype.choices == ()
    assert set(table.strings) <= set(TABLE.strings)


def test_files_that_import_each_other_end() -> None:
    loop = {**FILES, "chat/types.py": "\nfrom vllm.chat import FormatOption\n"}
    row = read(loop).find("chat_template_format")
    assert row
    assert row.choices == ()


def cut(text: str, chance: random.Random) -> str:
    return text[: chance.randrange(len(text))]


def rewritten(text: str, chance: random.Random) -> str:
    made = list(text)
    for _ in range(20):
        made[chance.randrange(len(made))] = chance.choice("()[]{}\"'\n :=,*x0")
    return "".join(made)


def without_lines(text: str, chance: random.Random) -> str:
    return "\n".join(line for line in text.split("\n") if chance.random() > 0.1)


@pytest.mark.parametrize("damage", [cut, rewritten, without_lines])
def test_a_damaged_file_is_read_or_named(damage: Callable[[str, random.Random], str]) -> None:
    chance = random.Random(11)  # noqa: S311 - repeatable
    for _ in range(60):
        file = chance.choice(list(FILES))
        try:
            table = read({**FILES, file: damage(FILES[file], chance)})
        except NotAsKnown:
            continue
        assert all(one.strings and one.name for one in table.options)


@pytest.mark.parametrize("row", ["x: [\n", "class A(\n"])
def test_a_file_that_never_closes_what_it_opens_is_read_in_time(row: str) -> None:
    endless = "\n" + row * (100_000 // len(row))
    began = time.process_time()
    read({**FILES, "config/model.py": MODEL + endless})
    assert time.process_time() - began < 5  # where each is followed to the end, a minute
