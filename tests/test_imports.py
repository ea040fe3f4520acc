"""What vLLM imports at its start is imported: in the server's environment, without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from doctor.consumers.imports import Import, Start, imports
from doctor.consumers.source import Source, Unreadable
from doctor.target import Live
from tests.conftest import DOCTOR, SYSTEM, Environment, Said, gone, run_doctor, wait_for

# No toolkit is found, so that nothing is built: the imports are what is looked at.
NO_TOOLKIT = {"CUDA_HOME": "/nowhere/cuda"}
FOR_H100 = ("--set", "gpus=later", "--set", "archs=9.0")
FLASHINFER = "vllm.v1.attention.backends.flashinfer"


def deep(one: Environment, *more: str, env: Mapping[str, str] | None = None, **how: Any) -> Said:
    words = ("diagnose", "--format", "json", "--deep", "--python", str(one.prefix), *FOR_H100)
    return run_doctor(*words, *more, env={**NO_TOOLKIT, **(env or {})}, **how)


def outcomes(said: Said) -> dict[str, str]:
    return {row["module"]: row["outcome"] for row in said.report["deep"]["imports"]["modules"]}


def write(one: Environment, module: str, text: str) -> Path:
    path = one.site / f"{module.replace('.', '/')}.py"
    package = path.with_suffix("") / "__init__.py"
    path = package if package.exists() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def messages(said: Said) -> list[str]:
    return [f["message"] for f in said.outcome("import-fails")["findings"]]


class TestWhatIsImported:
    def test_what_this_server_needs_in_the_order_that_tells_most(self, server: Environment) -> None:
        said = deep(server, "--set", "tensor_parallel_size=2")
        assert list(outcomes(said)) == [
            "torch",
            "vllm",
            "flashinfer",
            FLASHINFER,
            "vllm.v1.attention.backends.flash_attn",
            "vllm.v1.attention.backends.mla.triton_mla",
            "vllm.distributed.device_communicators.cuda_communicator",
            "vllm.distributed.device_communicators.pynccl",
        ]
        assert set(outcomes(said).values()) == {"ok"}
        assert said.outcome("import-fails")["verdict"] == "ok"

    def test_the_communicator_only_where_ranks_have_to_be_joined(self, server: Environment) -> None:
        names = outcomes(deep(server, "--set", "tensor_parallel_size=1"))
        assert not [name for name in names if "communicator" in name]

    def test_the_models_own_module_and_the_attention_of_its_kind(self, server: Environment) -> None:
        write(server, "vllm.model_executor.models.glm4_moe_lite", "kv_lora_rank = 512\n")
        names = outcomes(deep(server))
        assert "vllm.model_executor.models.glm4_moe_lite" in names
        assert "vllm.v1.attention.backends.mla.flashinfer_mla" in names
        assert "vllm.v1.attention.backends.flash_attn" not in names

    def test_nothing_by_a_plain_diagnosis(self, server: Environment, tmp_path: Path) -> None:
        write(server, "torch", f"open('{tmp_path}/ran', 'w')\n")
        plain = run_doctor(
            "diagnose", "--format", "json", "--python", server.prefix, *FOR_H100, env=NO_TOOLKIT
        )
        assert (plain.report["deep"]["imports"]["ran"], outcomes(plain)) == (False, {})
        assert "import-fails" in {row["id"] for row in plain.report["not_checked"]}
        assert not (tmp_path / "ran").exists()

    def test_nothing_for_a_server_on_the_cpu(self, cpu_server: Environment) -> None:
        said = deep(cpu_server, "--set", "device=cpu")
        assert said.report["deep"]["imports"]["why"] == "this server runs on the CPU"
        assert said.code == 0

    @pytest.mark.parametrize(
        "file",
        [
            "vllm/platforms/cuda.py",
            "vllm/v1/attention/backends/registry.py",
            "vllm/distributed/device_communicators/cuda_communicator.py",
        ],
    )
    def test_a_file_that_does_not_say_it_is_named_and_never_guessed(
        self, server: Environment, file: str
    ) -> None:
        (server.site / file).write_text("")
        with pytest.raises(Unreadable, match=file):
            list(imports(Source(Live(SYSTEM), server.site / "vllm"), Start(None, (), 2, True)))

    def test_what_is_caught_there_is_read_too(self, server: Environment) -> None:
        source = Source(Live(SYSTEM), server.site / "vllm")
        path = server.site / "vllm/platforms/cuda.py"
        made = set(imports(source, Start(None, (), 1, sampler=False)))
        assert Import("flashinfer", ("ImportError",)) in made
        text = path.read_text().replace(
            "except ImportError:", "except (ImportError, OSError) as e:"
        )
        path.write_text(text)
        made = set(imports(source, Start(None, (), 1, sampler=False)))
        assert Import(FLASHINFER, ("ImportError", "OSError")) in made
        assert Import(FLASHINFER) in set(imports(source, Start(None, (), 1, sampler=True)))


class TestWhatDies:
    def test_an_exception_is_a_finding_with_its_place(self, server: Environment) -> None:
        path = write(server, "flashinfer.deeper", "\nraise AttributeError('no cudaLibrary_t')\n")
        write(server, "flashinfer", "import flashinfer.deeper\n")
        write(server, FLASHINFER, "import flashinfer\n")
        said = deep(server)
        assert said.code == 1
        assert messages(said) == [
            f"importing flashinfer fails: AttributeError: no cudaLibrary_t ({path}:2)"
        ]
        (finding,) = said.outcome("import-fails")["findings"]
        assert finding["evidence"] == [f"importing {FLASHINFER} fails as well"]
        assert outcomes(said)["vllm.v1.attention.backends.flash_attn"] == "ok"

    def test_the_report_shows_it(self, server: Environment) -> None:
        write(server, "flashinfer", "raise AttributeError('gone \\x1b[31m')\n")
        words = ("diagnose", "-v", "--deep", "--python", server.prefix, *FOR_H100)
        said = run_doctor(*words, env=NO_TOOLKIT)
        assert "✗ imports" in said.out
        assert "failed: flashinfer: AttributeError: gone \\x1b[31m" in said.out.replace("\n", "")
        assert "\x1b" not in said.out

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("raise SystemExit(3)", "SystemExit: 3"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("import os; os._exit(7)", "exit: it ended the process with code 7"),
            ("import os; os.abort()", "SIGABRT: it crashed the process (SIGABRT)"),
            ("import ctypes; ctypes.string_at(0)", "SIGSEGV: it crashed the process (SIGSEGV)"),
            ("def broken(:", "SyntaxError: "),
            ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ],
    )
    def test_whatever_it_dies_of_the_others_are_tried(
        self, server: Environment, text: str, message: str
    ) -> None:
        write(server, "flashinfer", text + "\n")
        said = deep(server)
        assert said.code == 1
        (told,) = messages(said)
        assert told.startswith(f"importing flashinfer fails: {message}")
        if "exit" not in told and "SIGSEGV" not in told:  # whose place is in ctypes
            assert f"({server.site}/flashinfer/__init__.py:1)" in told
        others = {n: o for n, o in outcomes(said).items() if n != "flashinfer"}
        assert set(others.values()) == {"ok"}

    def test_where_torch_dies_what_its_users_die_of_is_not_told(self, server: Environment) -> None:
        write(server, "torch", "raise OSError('libcudart.so.99: cannot open')\n")
        write(server, "flashinfer", "import torch\nraise ValueError('half')\n")
        assert ["importing torch" in m for m in messages(deep(server))] == [True]

    def test_what_vllm_catches_is_no_finding(self, server: Environment) -> None:
        write(server, "vllm.v1.attention.backends.flash_attn", "import not_there_at_all\n")
        said = deep(server)
        assert outcomes(said)["vllm.v1.attention.backends.flash_attn"] == "caught"
        assert said.outcome("import-fails")["verdict"] == "ok"

    def test_where_it_catches_only_that_anything_else_ends_the_server(
        self, server: Environment
    ) -> None:
        write(server, "vllm.v1.attention.backends.flash_attn", "raise AttributeError('x')\n")
        said = deep(server)
        (finding,) = said.outcome("import-fails")["findings"]
        assert finding["evidence"] == ["vLLM continues there only after ImportError"]
        assert said.code == 1

    def test_what_only_some_models_import_is_a_warning(self, server: Environment) -> None:
        write(server, "tilelang", "raise ValueError('x')\n")
        said = deep(server)
        assert said.outcome("import-fails")["severity"] == "warning"

    def test_what_needs_a_gpu_is_not_checked_where_there_is_none(self, server: Environment) -> None:
        write(server, FLASHINFER, "raise RuntimeError('Failed to infer device type')\n")
        said = deep(server)
        assert outcomes(said)[FLASHINFER] == "not-checked"
        assert said.outcome("import-fails")["verdict"] == "ok"

    def test_the_same_words_count_where_torch_can_use_a_gpu(self, server: Environment) -> None:
        write(server, FLASHINFER, "raise RuntimeError('Failed to infer device type')\n")
        cuda = "class cuda:\n    is_available = staticmethod(lambda: True)\n"
        write(server, "torch", cuda)
        assert deep(server).outcome("import-fails")["verdict"] == "found"

    def test_words_that_a_signature_knows_are_told_under_its_ailment(
        self, server: Environment
    ) -> None:
        write(
            server,
            "vllm",
            "raise ImportError('/x/vllm/_C.abi3.so: undefined symbol: _ZN3c104impl')\n",
        )
        said = deep(server)
        told = said.outcome("vllm-torch-abi-mismatch")
        assert told["verdict"] == "found"
        assert "importing vllm fails" in str(told["findings"])
        assert said.outcome("import-fails")["verdict"] == "ok"


class TestWhatCannotBeTold:
    def test_an_import_that_hangs(self, server: Environment) -> None:
        write(server, "flashinfer", "import time; time.sleep(86400)\n")
        said = deep(server, hanging="_imports.py")
        one = said.outcome("import-fails")
        assert (one["verdict"], one["why"]) == ("unknown", "the imports did not end within 1 s")

    def test_a_child_that_somebody_killed(self, server: Environment) -> None:
        write(server, "flashinfer", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n")
        one = deep(server).outcome("import-fails")
        assert (one["verdict"], one["why"]) == ("unknown", "importing flashinfer was killed")

    def test_what_died_before_stays_a_finding(self, server: Environment) -> None:
        write(server, "flashinfer", "raise AttributeError('x')\n")
        write(server, FLASHINFER, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n")
        said = deep(server)
        assert len(messages(said)) == 1
        assert said.report["deep"]["imports"]["why"] == f"importing {FLASHINFER} was killed"
        assert "not-reached" in outcomes(said).values()

    def test_a_python_that_does_not_get_as_far(self, server: Environment) -> None:
        (server.site / "sitecustomize.py").write_text("import os; os._exit(5)\n")
        one = deep(server).outcome("import-fails")
        assert one["verdict"] == "unknown"
        assert one["why"].endswith("does not start: exit code 5")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_root_imports_nothing_that_another_user_could_change(
        self, server: Environment, tmp_path: Path
    ) -> None:
        path = write(server, "flashinfer", f"open('{tmp_path}/ran', 'w')\n")
        os.chown(path.parent, 12345, 12345)
        one = deep(server).outcome("import-fails")
        assert one["verdict"] == "unknown"
        assert f"{path.parent} belongs to 12345" in one["why"]
        assert not (tmp_path / "ran").exists()


class TestWithoutATrace:
    def test_what_it_prints_and_forges_is_not_read(self, server: Environment) -> None:
        write(
            server,
            "flashinfer",
            "import os, sys\n"
            'forged = \'--vllm-doctor-0{"module": "torch", "seconds": 1, "error": null}\'\n'
            "print(forged, flush=True); os.write(1, forged.encode()); print('x' * 4000000)\n"
            "assert 'VLLM_DOCTOR_MARK' not in os.environ\n",
        )
        assert set(outcomes(deep(server)).values()) == {"ok"}

    def test_it_gets_the_servers_variables_and_folders_of_its_own(
        self, server: Environment, tmp_path: Path
    ) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (tmp_path / "cwd").mkdir()
        (tmp_path / "cwd/torch.py").write_text("raise AttributeError('of the current folder')\n")
        write(
            server,
            "flashinfer",
            "import os, pathlib, sys, tempfile\n"
            "assert os.environ['MINE'] == 'server'\n"
            "assert os.environ['HF_HUB_OFFLINE'] == os.environ['VLLM_NO_USAGE_STATS'] == '1'\n"
            "assert '' not in sys.path and os.getcwd() not in sys.path\n"
            "assert not [p for p in sys.path if p.endswith('probes')]\n"
            "assert 'doctor' not in sys.modules\n"
            "pathlib.Path('in-cwd').write_text('x')\n"
            "pathlib.Path('~/in-home').expanduser().write_text('x')\n"
            "pathlib.Path(tempfile.gettempdir(), 'in-tmp').write_text('x')\n"
            "folder = pathlib.Path(os.environ['FLASHINFER_WORKSPACE_BASE'])\n"
            "(folder / '.cache').mkdir(); (folder / '.cache/jit').write_text('x')\n",
        )
        before = {path: path.stat().st_mtime_ns for path in server.prefix.rglob("*")}
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        env = {"HOME": str(home), "MINE": "server", "PYTHONPATH": ":.", "TMPDIR": str(scratch)}
        said = deep(server, env=env, cwd=tmp_path / "cwd")
        assert set(outcomes(said).values()) == {"ok"}
        assert {path: path.stat().st_mtime_ns for path in server.prefix.rglob("*")} == before
        assert list(home.iterdir()) == list(scratch.iterdir()) == []
        assert [path.name for path in (tmp_path / "cwd").iterdir()] == ["torch.py"]

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupted_doctor_leaves_neither_child_nor_folder(
        self, server: Environment, tmp_path: Path, how: signal.Signals
    ) -> None:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        noted = tmp_path / "pid"
        write(
            server,
            "flashinfer",
            "import os, pathlib, signal, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            f"pathlib.Path('{noted}.new').write_text(str(os.getpid()))\n"
            f"os.rename('{noted}.new', '{noted}')\ntime.sleep(86400)\n",
        )
        env = {**SYSTEM, **NO_TOOLKIT, "TMPDIR": str(scratch)}
        words = [str(DOCTOR), "diagnose", "--deep", "--python", str(server.prefix), *FOR_H100]
        with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL) as doctor:
            wait_for(noted.exists)
            doctor.send_signal(how)
        assert gone(int(noted.read_text()))
        assert list(scratch.iterdir()) == []
