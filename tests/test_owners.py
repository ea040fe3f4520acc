"""files-overwritten: two distributions that own the same modules, read from their RECORDs, and the
repair of the pair that today's resolvers make of cuda-bindings and cuda-python."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from doctor.engine import load_rules
from doctor.model import Finding, Missing, Severity
from doctor.probes.owners import Overlap, Owners
from doctor.shipped import rules_folder
from doctor.tape import Recorder, Tape, load_tape
from doctor.target import Live
from tests.conftest import SYSTEM, Environment, facts_of
from tests.stand_ins.fixtures import FOR_H100, Bench
from tests.stand_ins.index import Index
from tests.stand_ins.killer import tree

(RULE,) = (r for r in load_rules(rules_folder()) if r.id == "files-overwritten")
BINDINGS = {
    "cuda/bindings/__init__.py": "# 13\n",
    "cuda/bindings/runtime.abi3.so": "cudaLibrary_t, of thirteen",
    "cuda/bindings/utils/__init__.py": "",
    "cuda/bindings/only.abi3.so": "of thirteen alone",
}
PYTHON = {
    "cuda/__init__.py": "# the namespace of 12",
    "cuda/bindings/__init__.py": "# 12.6\n",
    "cuda/bindings/runtime.abi3.so": "of twelve",
    "cuda/bindings/utils/__init__.py": "",
}
SHARED = ("cuda/bindings/__init__.py", "cuda/bindings/runtime.abi3.so")


def put(
    environment: Environment,
    name: str,
    version: str,
    files: Mapping[str, str],
    requires: tuple[str, ...] = (),
    rows: str = "",
) -> Path:
    """Installs it as a wheel, which writes over what is there, with hashes in its RECORD."""
    info = environment.install(name, version, requires, files)
    listed = "".join(row_of(path, text) for path, text in files.items())
    (info / "RECORD").write_text(f"{listed}{rows}{info.name}/RECORD,,\n")
    return info


def row_of(path: str, text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    return f"{path},sha256={digest},{len(text)}\n"


def needed_by_vllm(environment: Environment, *requires: str) -> None:
    """FlashInfer, which vLLM requires, requires these too, and one of its modules imports them."""
    source = "import sys\n\nfrom cuda.bindings import runtime\n"
    put(environment, "cutlass-libs", "4.8.0", {"cutlass_libs/jit.py": source}, requires)
    info = next(environment.site.glob("flashinfer_python-*.dist-info"))
    text = (info / "METADATA").read_text()
    (info / "METADATA").write_text(text.replace("\n\n", "\nRequires-Dist: cutlass-libs\n\n", 1))


def overlaps(environment: Environment) -> tuple[Overlap, ...]:
    return facts_of(environment).get(Owners).overlaps


def found(environment: Environment) -> list[Finding]:
    answer = RULE.function(owners=facts_of(environment).get(Owners))
    assert isinstance(answer, Iterable)
    return list(answer)


@pytest.fixture
def pair(server: Environment) -> Environment:
    """cuda-bindings 13 and the cuda-python 12.6 that was installed after it."""
    put(server, "cuda-bindings", "13.5.0", BINDINGS)
    put(server, "cuda-python", "12.6.2.post1", PYTHON)
    return server


class TestWhatIsOverwritten:
    def test_an_older_cuda_python_over_cuda_bindings_is_an_error(self, pair: Environment) -> None:
        needed_by_vllm(pair, "cuda-bindings>=12.8", "cuda-python>=12.0")
        (one,) = overlaps(pair)
        assert (str(one.wanted), str(one.other)) == (
            "cuda-bindings 13.5.0",
            "cuda-python 12.6.2.post1",
        )
        assert (one.modules, one.lost, one.foreign) == (SHARED, SHARED, ())
        assert one.unmet == ("cutlass-libs: cuda-bindings>=12.8",)
        assert one.importers == ("cutlass_libs/jit.py",)
        (finding,) = found(pair)
        assert finding.severity is Severity.ERROR
        assert str(finding.message) == (
            "cuda-python 12.6.2.post1 has overwritten 2 modules of cuda-bindings 13.5.0"
        )
        assert [str(s) for s in finding.fixes[0].steps] == [
            "pip uninstall cuda-bindings cuda-python",
            "pip install cuda-bindings cuda-python==13.*",
        ]

    def test_the_same_pair_installed_the_other_way_round_only_warns(
        self, server: Environment
    ) -> None:
        put(server, "cuda-python", "12.6.2.post1", PYTHON)
        put(server, "cuda-bindings", "13.5.0", BINDINGS)
        needed_by_vllm(server, "cuda-bindings>=12.8")
        (one,) = overlaps(server)
        assert (one.wanted.name, one.lost) == ("cuda-bindings", ())
        (finding,) = found(server)
        assert finding.severity is Severity.WARNING
        assert "those of cuda-bindings 13.5.0 are installed" in str(finding.message)

    def test_it_only_warns_where_nothing_of_vllms_imports_it(self, pair: Environment) -> None:
        needed_by_vllm(pair, "cuda-bindings>=12.8")
        (pair.site / "cutlass_libs/jit.py").write_text("def late():\n    import cuda.bindings\n")
        (finding,) = found(pair)
        assert finding.severity is Severity.WARNING

    def test_a_file_that_is_neither_ones_is_said_to_be(self, pair: Environment) -> None:
        for path in SHARED:
            (pair.site / path).write_text("what somebody wrote with an editor")
        (one,) = overlaps(pair)
        assert one.foreign == one.lost == SHARED
        (finding,) = found(pair)
        assert str(finding.message).endswith("share are the files of neither")

    def test_two_variants_of_one_package_of_which_either_does_only_inform(
        self, server: Environment
    ) -> None:
        for name, text in (("opencv-python-headless", "# headless"), ("opencv-python", "# all")):
            libraries = f"{name.replace('-', '_')}.libs/libz.so.1"
            put(server, name, "4.12.0", {"cv2/__init__.py": text, libraries: ""})
        (finding,) = found(server)
        assert finding.severity is Severity.INFO
        assert "opencv-python" in str(finding.message)

    def test_a_variant_over_the_one_that_vllm_requires_warns(self, server: Environment) -> None:
        put(server, "opencv-python-headless", "4.12.0", {"cv2/__init__.py": "# headless"})
        put(server, "opencv-python", "4.12.0", {"cv2/__init__.py": "# with windows"})
        needed_by_vllm(server, "opencv-python-headless>=4.11")
        (finding,) = found(server)
        assert finding.severity is Severity.WARNING
        assert [str(s) for s in finding.fixes[0].steps] == [
            "pip uninstall opencv-python opencv-python-headless",
            "pip install opencv-python-headless==4.12.0",
        ]

    def test_a_single_module_that_two_own_is_seen(self, server: Environment) -> None:
        put(server, "nvidia-ml-py", "13.615", {"pynvml.py": "# thirteen"})
        put(server, "pynvml", "11.5.0", {"pynvml.py": "# eleven"})
        (one,) = overlaps(server)
        assert one.modules == ("pynvml.py",)

    def test_an_extension_that_was_written_over_by_what_it_extends_warns(
        self, server: Environment
    ) -> None:
        """CuTe DSL's libraries for CUDA 13, of which uv may install the base last."""
        put(server, "dsl-libs-cu13", "4.5.2", {"dsl/a.so": "cu13"}, ("dsl-libs-base==4.5.2",))
        put(server, "dsl-libs-base", "4.5.2", {"dsl/a.so": "base's"})
        (finding,) = found(server)
        assert finding.severity is Severity.WARNING
        assert [str(s) for s in finding.fixes[0].steps] == [
            "pip uninstall dsl-libs-cu13",
            "pip install dsl-libs-cu13==4.5.2",
        ]

    def test_a_long_record_is_read_where_another_has_the_same_package(
        self, server: Environment
    ) -> None:
        filler = "".join(row_of(f"big/data/{n:06}.bin", "") for n in range(4000))
        info = put(server, "one-big", "2.0", {"big/__init__.py": "# one"}, rows=filler)
        (info / "top_level.txt").write_text("big\n")
        put(server, "other-big", "1.0", {"big/__init__.py": "# another"})
        (one,) = overlaps(server)
        assert one.wanted.name == "one-big"


class TestQuiet:
    def test_an_environment_without_any(self, server: Environment) -> None:
        assert overlaps(server) == ()

    def test_equal_content(self, server: Environment) -> None:
        put(server, "otel-api", "1.0", {"otel/__init__.py": "# namespace", "otel/api.py": ""})
        put(server, "otel-sdk", "1.0", {"otel/__init__.py": "# namespace", "otel/sdk.py": ""})
        assert overlaps(server) == ()

    def test_a_distribution_that_extends_the_one_it_requires(self, server: Environment) -> None:
        put(server, "dsl-libs-base", "4.5.2", {"dsl/a.so": "base's"})
        put(server, "dsl-libs-cu13", "4.5.2", {"dsl/a.so": "cu13"}, ("dsl-libs-base==4.5.2",))
        assert overlaps(server) == ()

    def test_scripts_and_bytecode(self, server: Environment) -> None:
        for name, text in (("a-tool", "a"), ("b-tool", "bb")):
            cached = row_of("shared/__pycache__/x.cpython-311.pyc", text)
            put(server, name, "1.0", {}, rows=row_of("../../../bin/tool", text) + cached)
        assert overlaps(server) == ()

    def test_records_without_hashes(self, server: Environment) -> None:
        for name in ("one-cv", "two-cv"):
            server.install(name, "1.0", files={"cv2/__init__.py": name})
        assert overlaps(server) == ()

    def test_an_egg_and_an_editable_installation(self, server: Environment) -> None:
        put(server, "cuda-bindings", "13.5.0", BINDINGS)
        (server.site / "cuda_python-12.6.2.egg-info").mkdir()
        editable = {"__editable__.other_cuda-1.0.pth": "/somewhere/cuda\n"}
        put(server, "other-cuda", "1.0", editable)
        assert overlaps(server) == ()

    @pytest.mark.parametrize("left", ["no metadata", "a name with ~", "no RECORD"])
    def test_what_is_left_of_a_distribution_that_was_removed(
        self, pair: Environment, left: str
    ) -> None:
        info = next(pair.site.glob("cuda_python-*.dist-info"))
        if left == "no metadata":
            (info / "METADATA").unlink()
        elif left == "no RECORD":
            (info / "RECORD").unlink()
        else:
            info.rename(info.with_name(f"~{info.name[1:]}"))
        assert overlaps(pair) == ()

    def test_a_file_that_is_not_there(self, pair: Environment) -> None:
        for path in SHARED:
            (pair.site / path).unlink()
        assert overlaps(pair) == ()

    def test_an_owner_in_another_folder_of_the_path(
        self, server: Environment, tmp_path: Path
    ) -> None:
        put(server, "cuda-bindings", "13.5.0", BINDINGS)
        info = server.install("cuda-python", "12.6.2", files=PYTHON, folder=tmp_path / "other")
        (info / "RECORD").write_text("".join(row_of(p, t) for p, t in PYTHON.items()))
        (server.site / "other.pth").write_text(f"{tmp_path}/other\n")
        assert overlaps(server) == ()


def test_a_record_that_leads_out_of_site_packages_is_not_followed(pair: Environment) -> None:
    for name in ("cuda_python-12.6.2.post1", "cuda_bindings-13.5.0"):
        record = pair.site / f"{name}.dist-info/RECORD"
        rows = row_of("../../up.so", name) + row_of("cuda/../../up.so", name)
        record.write_text(rows + '"a,b/c.so",sha256=x,1\n\x00,,\n,\n' + "a/" * 5000)
    assert all(".." not in path for one in overlaps(pair) for path in one.modules)


def test_a_snapshot_answers_as_the_machine_does_and_stays_small(pair: Environment) -> None:
    recorder = Recorder(Live(SYSTEM))
    live = facts_of(pair, target=recorder).get(Owners)
    data = json.loads(json.dumps(recorder.recording("vllm-doctor 0.4.0", "p", "--python")))
    assert facts_of(pair, target=Tape(load_tape(data))).get(Owners) == live
    assert live.overlaps
    older = Tape(load_tape({**data, "tool": "vllm-doctor 0.3.0", "search": {}}))
    with pytest.raises(Missing):
        facts_of(pair, target=older).get(Owners)


@pytest.fixture
def overwritten(bench: Bench, index: Index, broken: Environment) -> Environment:
    """The broken environment of the stand-in wheels, and the pair in it."""
    for name in ("cuda-bindings==13.4.4", "cuda-python==12.6.2.post1"):
        bench.install(broken, "--no-deps", name, index=index.url)
    needed_by_vllm(broken, "cuda-bindings>=12.8", "cuda-python>=12.0")
    return broken


def imports(environment: Environment) -> bool:
    ask = "from cuda.bindings.runtime import cudaLibrary_t"
    ran = subprocess.run([environment.python, "-B", "-c", ask], env=SYSTEM, cwd="/", check=False)
    return ran.returncode == 0


def test_the_fix_puts_the_wanted_files_back_and_undo_the_others(
    bench: Bench, index: Index, overwritten: Environment
) -> None:
    was = tree(overwritten.prefix, without={"__pycache__"})
    assert not imports(overwritten)
    about = ("--format", "json", *FOR_H100)
    fixed = bench.doctor("fix", "--apply", *about, index=index.url, environment=overwritten)
    assert fixed.code == 0, fixed.err
    assert "files-overwritten" in {i for r in fixed.report["results"] for i in r["ids"]}
    assert imports(overwritten)
    assert [p.name for p in overwritten.site.glob("cuda_python*")] == [
        "cuda_python-13.4.4.dist-info"
    ]
    assert not (overwritten.site / "cuda/cudart.py").exists()
    undone = bench.doctor("undo", index=index.url, environment=overwritten)
    assert undone.code == 0, undone.err
    assert tree(overwritten.prefix, without={"__pycache__"}) == was
    assert not imports(overwritten)


def test_every_transaction_keeps_cuda_python_to_torchs_cuda(
    bench: Bench, index: Index, overwritten: Environment
) -> None:
    """Also one for something else; and what shares files with it is installed anew."""
    bench.install(overwritten, "--no-deps", "--reinstall", "cuda-bindings==13.4.4", index=index.url)
    assert imports(overwritten)
    fixed = bench.doctor(
        "fix", "--apply", "--format", "json", *FOR_H100, index=index.url, environment=overwritten
    )
    assert "files-overwritten" not in {i for r in fixed.report["results"] for i in r["ids"]}
    moves = {m["name"]: (m["old"], m["new"]) for m in fixed.report["moves"]}
    assert moves["cuda-python"] == ("12.6.2.post1", "13.4.4")
    assert "cuda-bindings" in moves
    assert imports(overwritten)


def test_the_script_of_a_plan_does_the_same(
    bench: Bench, index: Index, overwritten: Environment, tmp_path: Path
) -> None:
    script = tmp_path / "fix.sh"
    bench.doctor(
        "fix", "--script", str(script), *FOR_H100, index=index.url, environment=overwritten
    )
    lines = script.read_text().splitlines()
    removes = next(n for n, line in enumerate(lines) if "uninstall" in line)
    assert "cuda-bindings cuda-python" in lines[removes]
    assert removes < next(n for n, line in enumerate(lines) if "requirements=" in line)
