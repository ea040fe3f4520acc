"""What is read of the judged software's own files, and what becomes of a file that says nothing.

That the real files of many releases are read right is held by tests/assumptions.
"""

from __future__ import annotations

import ast
import gc
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from doctor.consumers import flashinfer, vllm
from doctor.consumers.conditions import UNKNOWN, AssumedCase, ComputeCapability, Raised, Undecided
from doctor.consumers.source import Source, Unreadable, parsed
from doctor.engine import check, load_rules
from doctor.model import Missing, NotApplicable, Verdict
from doctor.probes.cubins import Cubins
from doctor.probes.jit import Jit, Workaround
from doctor.probes.toolkit import Toolkits
from doctor.report.json import report_schema
from doctor.shipped import rules_folder
from doctor.target import Live
from tests.conftest import Environment, facts_of, must_fit, run_inside
from tests.installed import FLASHINFER_FILES, VLLM_FILES

RULES = load_rules(rules_folder())
LATER = ("gpus=later", "archs=9.0")
ORACLE = "vllm/model_executor/layers/fused_moe/oracle/unquantized.py"
OFF = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}


def function(text: str) -> ast.FunctionDef:
    made = ast.parse(text).body[0]
    assert isinstance(made, ast.FunctionDef)
    return made


def returned(body: str, calls: dict[str, Callable[..., Any]] | None = None, **names: Any) -> Any:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return AssumedCase(names, calls or {}).returned(function(f"def f(x=3):\n{lines}\n"))


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("return 1 if gpu.major == 9 else 2", 1),
        ("return gpu >= (8, 0) and gpu <= (12, 1)", True),
        ("return gpu.major in [9, 10] and other()", UNKNOWN),
        ("return gpu.major in [10] and other()", False),
        ("return gpu.major == 9 or other()", True),
        ("return not gpu.minor", True),
        ("if x > 2:\n    return [Kind.A, *[Kind.B]]", ["A", "B"]),
        ("rows = [Kind.A, Kind.B]\nrows.remove(Kind.A)\nreturn rows", ["B"]),
        ("if gpu.major == 8:\n    return 1", None),
        ('import os\n"text"\nreturn str(gpu.major) + "a"', "9a"),
    ],
)
def test_a_condition_comes_to_what_python_would_make_of_it(body: str, value: Any) -> None:
    gpu = ComputeCapability((9, 0))
    if value is UNKNOWN:
        with pytest.raises(Undecided):
            returned(body, gpu=gpu)
    else:
        assert returned(body, {"str": str}, gpu=gpu) == value


@pytest.mark.parametrize(
    "body",
    [
        "if config.new:\n    return 1\nreturn 2",
        "rows = [Kind.A]\nshuffle(rows)\nreturn rows",
        "for row in rows:\n    return row",
        "a, b = 1, 2\nreturn a",
        "return [*rows]",
        "return gpu < None",
    ],
)
def test_what_hangs_on_something_unknown_is_not_guessed(body: str) -> None:
    with pytest.raises(Undecided):
        returned(body, gpu=ComputeCapability((9, 0)))


@pytest.mark.parametrize("start", ["'ab'", "[1, 2]"])
@pytest.mark.parametrize("line", ["x = x + x", "x = [*x, *x]", "x = [x, x]", "x = (x, (x, x))"])
def test_what_doubles_in_every_line_is_not_followed(start: str, line: str) -> None:
    with pytest.raises(Undecided):
        returned("\n".join([f"x = {start}", *[line] * 60, "return str(x)"]), {"str": str})


@pytest.mark.parametrize(
    "body",
    [
        "return " + "not " * 2000 + "x",
        "return gpu.nothing",
        "move(1, 2)\nreturn 1",
        "return number('many')",
        "return x.a.b < 3",
    ],
)
def test_what_python_would_break_on_is_not_decided(body: str) -> None:
    calls: dict[str, Callable[..., Any]] = {"move": lambda a, b: a.pop(b), "number": int}
    with pytest.raises(Undecided):
        returned(body, calls, gpu=ComputeCapability((9, 0)))


def test_what_would_raise_is_told() -> None:
    with pytest.raises(Raised, match="no"):
        returned("raise RuntimeError('no')")


@pytest.mark.parametrize(
    "text",
    [
        "def g():\n    return 1\n",
        "def f(:\n",
        "\x00def f():\n",
        "def f():\n" + "(" * 5000,
        "",
        "class A:\n    def f(self):\n        return 1\n",
        "def f():\n" + "    x = 1\n" * 10_000 + "    return 1\n",
    ],
)
def test_a_function_that_cannot_be_read_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "one.py").write_text(text)
    with pytest.raises(Unreadable, match=r"one\.py"):
        Source(Live({}), tmp_path).function("one.py", "f")


def test_a_function_ends_where_the_next_begins(tmp_path: Path) -> None:
    text = (
        "def f(\n    a,\n) -> int:\n    # one\n\n# two\n    return 1\n\n\n@x\ndef g():\n    pass\n"
    )
    (tmp_path / "one.py").write_text(text)
    made = Source(Live({}), tmp_path).function("one.py", "f")
    assert AssumedCase({}, {}).returned(made) == 1


class TestJudged:
    """A server in a healthy environment, whose vLLM or FlashInfer is then laid out otherwise."""

    def jit(self, one: Environment, *sets: str, **env: str) -> Jit:
        return facts_of(one, env, sets or LATER).get(Jit)

    def put(self, one: Environment, file: str, text: str) -> None:
        (one.site / file).write_text(text)

    def test_triton_first_on_hopper_compiles_no_experts(self, server: Environment) -> None:
        later = VLLM_FILES[ORACLE].replace(
            "    return rows",
            "    if current_platform.is_device_capability_family(90):\n"
            "        _move_to_back(rows, UnquantizedMoeBackend.FLASHINFER_TRTLLM)\n"
            "        _move_to_back(rows, UnquantizedMoeBackend.FLASHINFER_CUTLASS)\n"
            "    return rows",
        )
        assert self.jit(server, **OFF).libraries == ("cudart", "cuda", "nvrtc")
        self.put(server, ORACLE, later)
        with pytest.raises(Missing, match="nothing is compiled"):
            self.jit(server, **OFF)
        assert self.jit(server).libraries == ("cudart", "cuda")
        assert "nvrtc" in self.jit(server, "gpus=later", "archs=12.0", **OFF).libraries

    def test_a_variable_that_vllm_does_not_declare_decides_nothing(
        self, server: Environment
    ) -> None:
        name = "VLLM_USE_FLASHINFER_MOE_FP16"
        off = {**OFF, name: "0"}
        with pytest.raises(Missing, match="nothing is compiled"):
            self.jit(server, **off)
        self.put(server, "vllm/envs.py", VLLM_FILES["vllm/envs.py"].replace(name, "VLLM_OTHER"))
        made = self.jit(server, **off)
        assert made.libraries == ("cudart", "cuda", "nvrtc")
        assert made.workaround == Workaround(OFF, "triton")

    @pytest.mark.parametrize(
        ("backend", "compiles"), [("triton", False), ("flashinfer_cutlass", True), ("auto", True)]
    )
    def test_the_profile_may_name_the_experts(
        self, shared_server: Environment, backend: str, compiles: bool
    ) -> None:
        sets = (*LATER, f"moe_backend={backend}")
        if compiles:
            assert "nvrtc" in self.jit(shared_server, *sets, **OFF).libraries
        else:
            with pytest.raises(Missing, match="nothing is compiled"):
                self.jit(shared_server, *sets, **OFF)

    def test_without_cubins_and_without_nvcc_vllm_leaves_flashinfer_alone(
        self, server: Environment
    ) -> None:
        """But for the sampler, which asks for nothing."""
        next(server.site.glob("flashinfer_cubin-*")).rename(server.prefix / "gone")
        with pytest.raises(Missing, match="nothing is compiled"):
            self.jit(server, **OFF)
        assert self.jit(server).libraries == ("cudart", "cuda")
        nvcc = server.prefix / "cuda/bin/nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text("")
        nvcc.chmod(0o755)
        assert "nvrtc" in self.jit(server, **OFF, PATH=f"{nvcc.parent}:/usr/bin:/bin").libraries

    @pytest.mark.parametrize(
        "file", ["vllm/envs.py", "vllm/v1/attention/backends/flashinfer.py", ORACLE]
    )
    def test_a_file_that_says_nothing_leaves_an_error_inconclusive_and_names_itself(
        self, server: Environment, file: str
    ) -> None:
        env, gpu = (OFF, "archs=9.0") if file == ORACLE else ({}, "archs=8.0")
        self.put(server, file, "what is this\n")
        facts = facts_of(server, {**env, "PATH": "/nowhere"}, ("gpus=later", gpu))
        assert file in str(facts.get(Toolkits).doubt)
        outcomes, _ = check([r for r in RULES if r.id == "nvcc-missing"], facts)
        assert [(o.verdict, file in str(o.why)) for o in outcomes] == [(Verdict.UNKNOWN, True)]

    def test_another_search_for_cuda_is_not_taken_for_the_known_one(
        self, server: Environment
    ) -> None:
        file = "flashinfer/jit/cpp_ext.py"
        for old, new in (("CUDA_HOME", "CUDA_ROOT"), ('"/usr/local/cuda"', '"/opt/cuda"')):
            self.put(server, file, FLASHINFER_FILES[file].replace(old, new))
            with pytest.raises(Missing, match=r"cpp_ext\.py does not say how it looks for CUDA"):
                facts_of(server, {}, LATER).get(Toolkits)

    def test_ready_kernels_of_another_version_are_told_only_by_a_file_that_can_be_read(
        self, server: Environment
    ) -> None:
        info = next(server.site.glob("flashinfer_cubin-*"))
        info.rename(server.site / "flashinfer_cubin-0.6.1.dist-info")
        rules = [r for r in RULES if r.id == "flashinfer-cubin-mismatch"]
        outcomes, _ = check(rules, facts_of(server, {}, LATER))
        assert [o.verdict for o in outcomes] == [Verdict.FOUND]
        self.put(server, "flashinfer/jit/env.py", "")
        outcomes, _ = check(rules, facts_of(server, {}, LATER))
        assert [(o.verdict, "jit/env.py" in str(o.why)) for o in outcomes] == [
            (Verdict.UNKNOWN, True)
        ]

    def test_architectures_that_cannot_be_read_are_in_doubt(self, server: Environment) -> None:
        self.put(server, "flashinfer/compilation_context.py", "")
        made = self.jit(server)
        assert (made.archs, made.doubt) == (("90a",), None)
        assert "compilation_context.py" in str(made.arch_doubt)


def test_flashinfers_older_name_for_blackwell(tmp_path: Path) -> None:
    text = "    if major >= 9:\n        minor = str(minor) + 'a'\n"
    (tmp_path / "compilation_context.py").write_text(text)
    source = Source(Live({}), tmp_path)
    names = [flashinfer.arch(source, c, Version("13.0")) for c in ((8, 9), (9, 0), (12, 0))]
    assert names == ["89", "90a", "120a"]


def test_another_question_for_nvcc_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils/flashinfer.py").write_text(
        'def has_flashinfer():\n    return shutil.which("nvrtc") is not None\n'
    )
    with pytest.raises(Unreadable, match=r"utils/flashinfer\.py"):
        vllm.needs_for_flashinfer(Source(Live({}), tmp_path))


BLACKWELL = ("gpus=later", "archs=10.0")
NEWER = """\
def _get_cubin_dir():
    env_dir = os.getenv("FLASHINFER_CUBIN_DIR")
    if env_dir:
        if has_flashinfer_cubin():
            logger.warning("it overrides the package")
        return pathlib.Path(env_dir)
    if has_flashinfer_cubin():
        try:
            check(flashinfer_cubin.__version__)
        except RuntimeError as error:
            logger.warning("ignored: %s", error)
        else:
            return pathlib.Path(flashinfer_cubin.get_cubin_dir())
    return FLASHINFER_CACHE_DIR / "cubins"


def _get_aot_providers():
    try:
        check(flashinfer_jit_cache.__version__)
    except RuntimeError:
        return ()
"""


class TestCubins:
    """FlashInfer's kernels that come as machine code, of a server whose flashinfer-cubin is gone
    unless a test says otherwise."""

    def cubins(self, one: Environment, *sets: str, **env: str) -> Cubins:
        for info in one.site.glob("flashinfer_cubin-0.6.11*"):
            info.rename(one.prefix / "gone")
        home = {"HOME": "/home/user", "PATH": "/nowhere"}
        return facts_of(one, {**home, **env}, sets or BLACKWELL).get(Cubins)

    def with_nvcc(self, one: Environment) -> dict[str, str]:
        nvcc = one.prefix / "cuda/bin/nvcc"
        nvcc.parent.mkdir(parents=True, exist_ok=True)
        nvcc.write_text("")
        nvcc.chmod(0o755)
        return {"PATH": str(nvcc.parent)}

    def test_on_blackwell_attention_and_experts_are_fetched(self, server: Environment) -> None:
        folder = Path("/home/user/.cache/flashinfer/cubins")
        made = self.cubins(server, **self.with_nvcc(server))
        assert made == Cubins(folder, "https://cubins.test/generic/", ("attention", "experts"))
        # Without nvcc vLLM leaves FlashInfer's experts alone, and asks nothing for attention.
        assert self.cubins(server).lacking == ("attention",)
        cutlass = self.cubins(
            server, *BLACKWELL, "moe_backend=flashinfer_cutlass", **self.with_nvcc(server)
        )
        assert cutlass.lacking == ("attention",)

    @pytest.mark.parametrize("arch", ["8.9", "9.0", "11.0", "12.0"])
    def test_on_other_gpus_nothing_is_fetched(self, server: Environment, arch: str) -> None:
        with pytest.raises(
            Missing, match="no GPU that is known here takes downloaded kernels"
        ) as why:
            self.cubins(server, "gpus=later", f"archs={arch}", **self.with_nvcc(server))
        assert isinstance(why.value, NotApplicable)

    def test_its_package_brings_them(self, shared_server: Environment) -> None:
        with pytest.raises(Missing, match="brings the kernels"):
            facts_of(shared_server, {"FLASHINFER_CUBIN_DIR": "/other"}, BLACKWELL).get(Cubins)

    def test_from_0_6_16_on_a_folder_that_is_named_wins_over_the_package(
        self, server: Environment
    ) -> None:
        self.put_newer(server)
        made = facts_of(server, {"FLASHINFER_CUBIN_DIR": "/other"}, BLACKWELL).get(Cubins)
        assert made.folder == Path("/other")

    def put_newer(self, one: Environment) -> None:
        (one.site / "flashinfer/jit/env.py").write_text(NEWER)

    def test_a_package_of_another_version_is_ignored_by_flashinfer_0_7(
        self, server: Environment
    ) -> None:
        """FlashInfer 0.6 does not start with it, which another rule tells."""
        info = next(server.site.glob("flashinfer_cubin-*"))
        info.rename(server.site / "flashinfer_cubin-0.6.1.dist-info")
        with pytest.raises(Missing, match="brings the kernels"):
            self.cubins(server)
        self.put_newer(server)
        assert self.cubins(server).lacking == ("attention", "experts")
        with pytest.raises(Missing, match="brings the kernels"):
            self.cubins(server, FLASHINFER_DISABLE_VERSION_CHECK="1")

    @pytest.mark.parametrize("variable", ["FLASHINFER_CUBIN_DIR", "FLASHINFER_CUBINS_REPOSITORY"])
    def test_what_was_fetched_or_copied_earlier_is_not_fetched_again(
        self, server: Environment, tmp_path: Path, variable: str
    ) -> None:
        manifest = tmp_path / "158f6f/fmha/trtllm-gen/checksums.txt"
        manifest.parent.mkdir(parents=True)
        manifest.write_text("")
        made = self.cubins(server, **{variable: str(tmp_path)}, **self.with_nvcc(server))
        assert made.lacking == ("experts",)

    def test_a_file_that_says_nothing_leaves_it_unasked(self, server: Environment) -> None:
        for file in ("artifacts.py", "jit/cubin_loader.py", "jit/env.py"):
            (server.site / "flashinfer" / file).write_text("what is this\n")
            with pytest.raises(Missing, match="does not say") as why:
                self.cubins(server)
            assert isinstance(why.value, NotApplicable)
            (server.site / "flashinfer" / file).write_text(FLASHINFER_FILES[f"flashinfer/{file}"])


@pytest.mark.parametrize(
    ("version", "newer"),
    [
        ("0.22.0", False),
        (vllm.CHECKED_UP_TO, False),
        (f"{vllm.CHECKED_UP_TO}+cu129", False),
        (f"{vllm.CHECKED_UP_TO}.post1", False),
        ("0.99.0", True),
        ("0.99.0rc1", True),
        ("0.99.1.dev12+gabc1234", True),
        ("1.0", True),
    ],
)
def test_a_vllm_newer_than_what_is_known_is_judged_all_the_same_and_told(
    cpu_server: Environment, version: str, newer: bool
) -> None:
    (info,) = cpu_server.site.glob("vllm-*.dist-info")
    info.rename(cpu_server.site / f"vllm-{version}.dist-info")
    quiet = ("--accept", "model-not-downloaded")
    options = ("diagnose", "--python", cpu_server.prefix, "--set", "device=cpu", *quiet)
    said = run_inside(*options)
    assert (said.code, "Healthy" in said.out) == (0, True)
    told = f"checked up to vLLM {vllm.CHECKED_UP_TO}"
    assert (told in said.out.splitlines()[-1]) is newer
    report = run_inside(*options, "--format", "json").report
    must_fit(report, report_schema)
    assert report["target"]["checked_up_to"] == (vllm.CHECKED_UP_TO if newer else None)


@pytest.mark.parametrize("priorities", ["None", "True", "[1, 2]", "'FLASHINFER'", "['(', '[']"])
@pytest.mark.parametrize("file", [ORACLE, "vllm/platforms/cuda.py"])
def test_a_list_that_is_none_is_not_taken_for_one(
    server: Environment, file: str, priorities: str
) -> None:
    name = "_get_priority_backends" if file == ORACLE else "_get_backend_priorities"
    arguments = "moe_config" if file == ORACLE else "use_mla, device_capability"
    (server.site / file).write_text(f"def {name}({arguments}):\n    return {priorities}\n")
    kernels = vllm.Installed(Source(Live({}), server.site / "vllm"))
    ask = kernels.experts if file == ORACLE else kernels.attention
    if (file, priorities) == (ORACLE, "['(', '[']"):
        assert ask((9, 0)) is None  # other kernels than FlashInfer's
        return
    with pytest.raises(Unreadable):
        ask((9, 0))


def test_a_tree_is_built_while_another_thread_asks_for_one() -> None:
    """The collector lets the other in, in the middle: without a lock that is a SystemError."""
    inside, read = threading.Event(), threading.Event()
    collections = itertools.count()

    def let_the_other_in(phase: str, info: dict[str, int]) -> None:
        if next(collections) == 1000:
            inside.set()
            read.wait(0.2)  # it cannot come, where one waits for the other

    def other() -> None:
        inside.wait()
        parsed("x = (1, [2])")
        read.set()

    thread = threading.Thread(target=other)
    before = gc.get_threshold()
    gc.callbacks.append(let_the_other_in)
    thread.start()
    try:
        gc.set_threshold(1)
        assert parsed("def f(x):\n" + "    x = [x, (1, 2)]\n" * 300) is not None
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(let_the_other_in)
        inside.set()
        thread.join()
    assert read.is_set()
