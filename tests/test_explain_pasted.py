"""What people paste: one line, indented, quoted, behind words, without a head or a tail. No failure
in it is passed over, the useful line is quoted, and what only looks like a failure is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from doctor.logs.explain import Explanation
from tests.conftest import run_inside
from tests.corpus import explained

NOTHING, RECOGNISED, UNKNOWN = 0, 1, 3
API = "(APIServer pid=41) INFO 09-12 08:00:0"
BANNER = f"{API}1 [utils.py:302] non-default args: {{'model': 'acme/m-7b'}}\n"
STOP = "(APIServer pid=41) INFO:     Shutting down\n"
READY = "(APIServer pid=41) INFO:     Application startup complete.\n"
SERVED = '(APIServer pid=41) INFO:     10.1.0.9:4{n} - "POST /v1/completions HTTP/1.1" 200 OK\n'
ANSWERS = "".join(SERVED.format(n=n) for n in range(3))
CORE = "(EngineCore_DP0 pid=77) ERROR 09-12 08:03:11 [core.py:866] "
WORKER = "(Worker_TP1 pid=81) ERROR 09-12 08:03:10 [multiproc_executor.py:772] "
INIT = (
    "RuntimeError: Engine core initialization failed. See root cause above. "
    "Failed core proc(s): {}\n"
)
OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total "
    "capacity of 44.39 GiB of which 90.31 MiB is free."
)


def answer(status: str, path: str = "/v1/chat/completions") -> str:
    return f'(APIServer pid=41) INFO:     10.1.0.9:4 - "POST {path} HTTP/1.1" {status}\n'


def told(text: str | bytes) -> Explanation:
    return explained(text.encode() if isinstance(text, str) else text)


def under(prefix: str, text: str) -> str:
    """Each line of the text behind the prefix."""
    return "".join(f"{prefix}{line}\n" for line in text.splitlines())


def named(cases: dict[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("text", cases.values(), ids=cases)


def assert_unknown(made: Explanation, said: str) -> None:
    """It failed, no signature knows why, and this is the line that is quoted."""
    assert (made.verdict, made.primary, made.exit_code) == ("unrecognised", None, UNKNOWN)
    assert made.unknown
    assert made.unknown.said == said


def assert_healthy(made: Explanation) -> None:
    assert made.unknown is None, made.unknown
    assert (made.verdict, made.primary, made.exit_code) == ("nothing-found", None, NOTHING)


class TestNoFailureIsPassedOver:
    """Kind 1."""

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (f"{CORE}the block table is out of step", "the block table is out of step"),
            (
                "CRITICAL 09-12 08:03:11 [launcher.py:143] the loop has ended",
                "the loop has ended",
            ),
            ("FATAL 09-12 08:03:11 [a.py:1] no peer is left", "no peer is left"),
            (
                "[rank3]:E0912 08:03:11.442000 881 torch/_dynamo/utils.py:77] [0/0] it came to nan",
                "[0/0] it came to nan",
            ),
            ("2026-09-12 08:03:11,442 - lmcache - ERROR - the pool is gone", "the pool is gone"),
            ("ERROR:    [Errno 22] the socket is of no use", "[Errno 22] the socket is of no use"),
            ("E0912 08:03:11.442000 881 store.cpp:12] peer 3 is lost", "peer 3 is lost"),
            (
                "LLVM ERROR: Cannot select: t12: f8 = fp_round t11",
                "LLVM ERROR: Cannot select: t12: f8 = fp_round t11",
            ),
            (
                "ptxas fatal   : Unresolved extern function '__nv_acme'",
                "ptxas fatal   : Unresolved extern function '__nv_acme'",
            ),
            (
                "nvcc fatal   : Value 'sm_acme' is not defined for option 'gpu-code'",
                "nvcc fatal   : Value 'sm_acme' is not defined for option 'gpu-code'",
            ),
            (
                "/srv/k/norm.cuh:14:10: fatal error: acme/pack.h: No such file or directory",
                "/srv/k/norm.cuh:14:10: fatal error: acme/pack.h: No such file or directory",
            ),
            (
                "CUDA error: misaligned address",
                "CUDA error: misaligned address",
            ),
            ("CUDA driver error: invalid argument", "CUDA driver error: invalid argument"),
            (
                "it returned cudaErrorLaunchTimeout in stream 7",
                "it returned cudaErrorLaunchTimeout in stream 7",
            ),
            (
                "[ 812.11] NVRM: nvAssertOkFailedNoLog: Assertion failed: x [NV_ERR_TIMEOUT] @ a:1",
                "[ 812.11] NVRM: nvAssertOkFailedNoLog: Assertion failed: x [NV_ERR_TIMEOUT] @ a:1",
            ),
            ("we then saw AcmeError: no slot", "AcmeError: no slot"),
            ("and so: acme.core.SlotException: none left", "acme.core.SlotException: none left"),
            (
                "ERROR 09-12 08:03:11 [a.py:305] RuntimeError('Engine process (pid 812) died.')",
                "RuntimeError('Engine process (pid 812) died.')",
            ),
            (
                "run.sh: line 9: 4122 Aborted                 (core dumped) python serve.py",
                "run.sh: line 9: 4122 Aborted                 (core dumped) python serve.py",
            ),
            ("Segmentation fault (core dumped)", "Segmentation fault (core dumped)"),
            (
                "[ 9.2] python3[812]: segfault at 7f10 ip 00007f sp 00007f error 4 in _C.so[7f+1]",
                "[ 9.2] python3[812]: segfault at 7f10 ip 00007f sp 00007f error 4 in _C.so[7f+1]",
            ),
            ("Worker rank 2 died with exit code 1", "Worker rank 2 died with exit code 1"),
            (
                "thread 'main' panicked at src/router.rs:19:5:",
                "thread 'main' panicked at src/router.rs:19:5:",
            ),
        ],
    )
    def test_a_line_alone_is_quoted(self, text: str, said: str) -> None:
        assert_unknown(told(f"{text}\n"), said)
        assert_unknown(told(f"{API}1 [a.py:1] one\n{text}"), said)

    @named(
        {
            "a level in a name": f"{API}1 [a.py:1] VLLM_LOGGING_LEVEL=ERROR is set\n",
            "an exception that is quoted at DEBUG": (
                "(APIServer pid=41) DEBUG 09-12 08:00:01 [a.py:1] Arguments: (AcmeError('x'),)\n"
            ),
            "the name of a class alone": f"{API}1 [a.py:1] registered handler for AcmeError\n",
            "no errors": f"{API}1 [a.py:1] finished with 0 errors, 0 failed\n",
            "a warning of a fallback": (
                "WARNING 09-12 08:00:01 [a.py:1] AcmeError: no slot; falling back to none\n"
            ),
            "a method of torch": f"{API}1 [a.py:1] cudaErrors are checked after each launch\n",
            "an option": f"{API}1 [a.py:1] Namespace(log_level='error', disable_log_stats=False)\n",
            "a driver that speaks": "[ 8.1] NVRM: loading NVIDIA UNIX Kernel Module  580.82\n",
            "a request that failed among those that did not": (
                f"{READY}(APIServer pid=41) ERROR 09-12 08:09:00 [serving_chat.py:211] too long\n"
                f"{ANSWERS}"
            ),
        }
    )
    def test_what_looks_like_one_is_none(self, text: str) -> None:
        assert_healthy(told(text))
        assert_healthy(told(f"{BANNER}{text}{READY}"))

    NO_PLATFORM = (
        "INFO 09-12 08:00:01 [__init__.py:259] No platform detected, vLLM is running on "
        "UnspecifiedPlatform\n"
    )

    def test_that_no_platform_is_found_is_harmless_where_none_is_needed(self) -> None:
        assert_healthy(told(f"{self.NO_PLATFORM}============ Serving Benchmark Result =====\n"))
        assert told(self.NO_PLATFORM).primary == "driver-lib-invisible"

    def test_that_platforms_are_refused_is_harmless_where_one_is_chosen(self) -> None:
        refused = "".join(
            f"DEBUG 09-12 08:00:01 [__init__.py:60] {name} platform is not available because: no\n"
            for name in ("TPU", "CUDA", "ROCm", "XPU")
        )
        chosen = "INFO 09-12 08:00:02 [__init__.py:244] Automatically detected platform cpu.\n"
        assert_healthy(told(refused + chosen))
        assert told(refused).primary == "driver-lib-invisible"

    def test_no_cuda_runtime_is_no_noise_after_a_device_count_that_failed(self) -> None:
        noise = "No CUDA runtime is found, using CUDA_HOME='/usr/local/cuda'\n"
        assert_healthy(told(noise))
        failed = (
            "UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). Did you "
            "run some cuda functions before calling NumCudaDevices() that might have already set "
            "an error? Error 304: OS call failed or operation not supported on this OS\n"
        )
        made = told(failed + noise)
        assert made.exit_code in (RECOGNISED, UNKNOWN), made


SAID = "AcmeError: the slot is not free"
FRAME = '  File "/srv/acme/slots.py", line 61, in take\n    return self._free[n]\n'


class TestFoundWhereverItStands:
    """Kind 2."""

    @pytest.mark.parametrize(
        "around",
        [
            "    {}",
            "\t{}",
            "\t\t{}",
            " * {}",
            "- {}",
            "1. {}",
            "> {}",
            "> > {}",
            "`{}`",
            "'{}'",
            '"{}"',
            "“{}”",
            "「{}」",
            "**{}**",
            "| vllm 0.22 | {} | open |",
            "报错：{}",
            "启动时报错：{}",
            "错误信息如下：`{}`，怎么办",
            "**Symptom.** {}",
            "**现象**：“{}”",
            "It says: {}",
            "node3.log:{}",
            "logs/node3.log:112:{}",
            "(EngineCore_DP0 pid=77) {}",
            "ERROR [slots.py:61] {}",
            "ERROR slots.py:61 {}",
            "ERROR 2026-09-12T08:03:11.442132Z [resource.labels.containerName: vllm] {}",
            "ERROR 2026-09-12T08:03:11.442132Z {}",
            "2026-09-12T08:03:11.4421327Z ##[error]{}",
            "::error file=slots.py,line=61::{}",
            "2026-09-12T08:03:11.4421327Z {}",
            "Sep 12 08:03:11 node3 vllm[812]: {}",
            "[pod/vllm-0/server] {}",
            "vllm-1  | {}",
            "[rank2]: {}",
            "[1,3]<stderr>:{}",
        ],
    )
    def test_the_exception_alone_is_quoted(self, around: str) -> None:
        assert_unknown(told(around.format(SAID) + "\n"), SAID)

    @named(
        {
            "JSON of docker": json.dumps({"log": f"{CORE}{SAID}\n", "stream": "stderr"}),
            "JSON of a logger": json.dumps({"level": "error", "message": SAID}),
            "JSON of Cloud Logging": json.dumps({"severity": "ERROR", "textPayload": SAID}),
            "JSON with a traceback": json.dumps(
                {"level": "error", "msg": "it failed", "exc_info": f"Traceback\n{FRAME}{SAID}"}
            ),
        }
    )
    def test_in_json_it_is_quoted_without_it(self, text: str) -> None:
        assert_unknown(told(f"{text}\n"), SAID)

    @pytest.mark.parametrize(
        "name", ["acme._bind.acmeBackendError", "acmeError", "rt.kvException", "_AcmeError"]
    )
    def test_a_class_may_begin_with_a_small_letter(self, name: str) -> None:
        head = f"{CORE}Traceback (most recent call last):\n"
        made = told(head + under(CORE, f"{FRAME}{name}: no slot"))
        assert_unknown(made, f"{name}: no slot")
        assert made.unknown
        assert made.unknown.raised_in == "/srv/acme/slots.py:61 in take"
        assert_unknown(told(f"报错：{name}: no slot\n"), f"{name}: no slot")

    @pytest.mark.parametrize("prefix", [CORE, "", "    ", "> ", "vllm-1  | ", "ERROR [core.py:8] "])
    @pytest.mark.parametrize("between", ["", "\n", "\n\n"])
    def test_blank_lines_do_not_part_a_traceback(self, prefix: str, between: str) -> None:
        lines = ["Traceback (most recent call last):", *FRAME.splitlines(), SAID]
        made = told("".join(f"{prefix}{line}\n{between}" for line in lines))
        assert_unknown(made, SAID)
        assert made.unknown
        assert made.unknown.raised_in == "/srv/acme/slots.py:61 in take"

    @pytest.mark.parametrize(
        "before", ["", CORE, "(Worker_TP0 pid=8) INFO 09-12 08:00:01 [a.py:1] x\n"]
    )
    def test_sentences_of_one_message_may_stand_in_lines_of_their_own(self, before: str) -> None:
        made = told(before + OOM.replace(". GPU", ".\nGPU") + "\n")
        assert made.primary == "cuda-oom-startup"
        assert made.findings[0].values["total"] == "44.39 GiB"

    @pytest.mark.parametrize(
        "path", ["...", "…", "/opt/venv/lib/python3.12/site-packages", ".../site-packages", "~/x"]
    )
    def test_a_path_may_be_cut(self, path: str) -> None:
        made = told(
            f"ImportError: {path}/vllm/_C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEa\n"
        )
        assert (made.primary, made.exit_code) == ("vllm-torch-abi-mismatch", RECOGNISED)

    KNOWN = "ValueError: To serve at least one request with the models's max seq len (131072), "
    KNOWN += "(16.00 GiB KV cache is needed, which is larger than the available KV cache memory "
    KNOWN += "(7.20 GiB). Based on the available memory, the estimated maximum model length is "
    KNOWN += "58976. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`."

    @pytest.mark.parametrize(
        "around", ["  - {}", "> {}", "报错：{}", "“{}”", "| {} |", "a.log:7:{}", "```{}```"]
    )
    def test_what_a_signature_knows_is_known_there_too(self, around: str) -> None:
        made = told(around.format(self.KNOWN) + "\n")
        assert (made.primary, made.exit_code) == ("kv-cache-too-small", RECOGNISED)
        assert made.findings[0].values["estimate"] == "58976"

    @pytest.mark.parametrize(
        "around", ["    {}", "> {}", "报错：{}", "`{}`", "| {} |", "a.log:7:{}", "- {}"]
    )
    def test_a_healthy_line_is_healthy_there_too(self, around: str) -> None:
        assert_healthy(told(around.format(f"{API}1 [a.py:1] Loading weights took 3.1 s") + "\n"))


HEAD = "Traceback (most recent call last):\n"
CHAINED = "\nDuring handling of the above exception, another exception occurred:\n\n"
OUTER = (
    f'{HEAD}  File "/srv/acme/boot.py", line 9, in run\n    go()\nAcmeBootError: it did not start\n'
)


class TestTheUsefulLine:
    """Kind 3."""

    @pytest.mark.parametrize("prefix", ["", CORE, WORKER, "    "])
    @pytest.mark.parametrize(
        ("text", "said", "raised_in"),
        [
            (f"{HEAD}{FRAME}{SAID}\n{CHAINED}{OUTER}", SAID, "/srv/acme/slots.py:61 in take"),
            (f"{FRAME}{SAID}\n", SAID, "/srv/acme/slots.py:61 in take"),
            (f'{HEAD}  File "/srv/a.py", line 3, in f\n    g()\n{FRAME}{SAID}\n', SAID,
             "/srv/acme/slots.py:61 in take"),
            (f"{HEAD}{FRAME}AssertionError\n", "AssertionError: return self._free[n]",
             "/srv/acme/slots.py:61 in take"),
            (f"{HEAD}{FRAME}AssertionError: slot 4 is held\n", "AssertionError: slot 4 is held",
             "/srv/acme/slots.py:61 in take"),
            (f"{HEAD}{FRAME}AcmeError: these do not fit:\n  4 slots and 7 blocks\n",
             "AcmeError: these do not fit: 4 slots and 7 blocks", "/srv/acme/slots.py:61 in take"),
            (f"{HEAD}{FRAME}KeyError: 'w2.scale'\n", "KeyError: 'w2.scale'",
             "/srv/acme/slots.py:61 in take"),
        ],
        ids=["chain", "no head", "two frames", "empty assertion", "assertion", "two lines", "key"],
    )  # fmt: skip
    def test_it_is_the_innermost_exception_and_its_last_frame(
        self, prefix: str, text: str, said: str, raised_in: str
    ) -> None:
        made = told(under(prefix, text))
        assert_unknown(made, said)
        assert made.unknown
        assert made.unknown.raised_in == raised_in

    @pytest.mark.parametrize(
        "payload",
        [
            "head dim must be 64 for this cache",
            "it's not a power of two",
            "slot 3: 'free' is not held",
            "block_size (24) has to be a multiple of 16",
            "ACME_ERR_7",
            "no kernel for (bf16, fp4)",
        ],
    )
    @pytest.mark.parametrize("quote", ["'", '"'])
    def test_of_a_worker_that_failed_it_is_the_payload(self, payload: str, quote: str) -> None:
        line = (
            f"RuntimeError: Worker failed with error {quote}{payload}{quote}, please check the "
            "stack trace above for the root cause\n"
        )
        for text in (
            line,
            f"{CORE}{line}",
            f"{WORKER}WorkerProc hit an exception.\n{CORE}{line}{INIT}",
        ):
            made = told(text)
            assert_unknown(made, payload)
            assert "worker-failed" in {f.id for f in made.findings}

    def test_of_a_worker_that_failed_a_known_payload_is_known(self) -> None:
        made = told(
            f"{CORE}RuntimeError: Worker failed with error '{OOM}', please check the stack trace "
            "above for the root cause\n"
        )
        assert made.primary == "cuda-oom-startup"

    @pytest.mark.parametrize(
        "line",
        [
            "nvcc fatal   : Don't know what to do with 'acme.ptx9'",
            '/srv/k/norm.cu(41): error: identifier "acme_pack" is undefined',
            "norm.cu:41:3: error: 'acme_pack' was not declared in this scope",
            "norm.h:9:10: fatal error: acme/pack.h: No such file or directory",
            "ptxas fatal   : Unresolved extern function 'acme_pack'",
            "/usr/bin/ld: cannot find -lacme: No such file or directory",
            "norm.o: In function `pack': undefined reference to `acme_pack'",
        ],
    )
    @pytest.mark.parametrize("more", ["", 'norm.cu(90): error: expected a ";"\n'])
    def test_of_a_build_it_is_the_first_line_with_an_error(self, line: str, more: str) -> None:
        build = (
            f"{CORE}RuntimeError: Ninja build failed. Ninja output:\n"
            "ninja: Entering directory `/srv/cache/norm'\n[1/2] nvcc -c norm.cu -o norm.o\n"
            f"FAILED: [code=1] norm.o\n{line}\n{more}1 error detected in the compilation.\n"
            "ninja: build stopped: subcommand failed.\n"
        )
        made = told(build)
        assert_unknown(made, line)
        assert "jit-build-failed" in {f.id for f in made.findings}

    @pytest.mark.parametrize("tail", ["", FRAME.splitlines()[0] + "\n"])
    @pytest.mark.parametrize("prefix", [CORE, WORKER])
    def test_of_a_traceback_that_is_cut_it_is_the_record_above(
        self, prefix: str, tail: str
    ) -> None:
        made = told(under(prefix, f"The slots could not be taken.\n{HEAD}{tail}"))
        assert_unknown(made, "The slots could not be taken.")

    def test_the_logger_s_place_is_no_place_of_an_exception(self) -> None:
        made = told(f"{CORE}{SAID}\n")
        assert made.unknown
        assert (made.unknown.raised_in, made.unknown.logged_at) == (None, "core.py:866")

    @named(
        {
            "at DEBUG": under("DEBUG 09-12 08:00:01 [a.py:1] ", f"{HEAD}{FRAME}{SAID}"),
            "of a fallback": under("WARNING 09-12 08:00:01 [a.py:1] ", f"{HEAD}{FRAME}{SAID}"),
        }
    )
    def test_a_traceback_that_is_only_told_of_is_no_failure(self, text: str) -> None:
        assert_healthy(told(f"{BANNER}{text}{READY}{ANSWERS}"))


STATUSES = {
    "-4": "SIGILL",
    "-6": "SIGABRT",
    "-7": "SIGBUS",
    "-11": "SIGSEGV",
    "137": "SIGKILL",
    "139": "SIGSEGV",
}


class TestSymptomsAlone:
    """Kind 4."""

    @pytest.mark.parametrize(
        ("text", "id"),
        [
            (INIT, "engine-core-failed"),
            (f"{CORE}EngineCore failed to start.\n", "engine-core-failed"),
            (f"{CORE}EngineCore encountered a fatal error.\n", "engine-core-failed"),
            (
                "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See "
                "stack trace (above) for the root cause.\n",
                "engine-core-failed",
            ),
            (f"{WORKER}WorkerProc failed to start.\n", "worker-failed"),
            (f"{WORKER}WorkerProc hit an exception.\n{CORE}RuntimeError: Executor failed.\n",
             "worker-failed"),
            ("ninja: build stopped: subcommand failed.\n", "jit-build-failed"),
            ("collect2: error: ld returned 1 exit status\n", "jit-build-failed"),
            ("vllm-1 exited with code 1\n", "process-exited"),
            ("ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing.\n",
             "ray-actor-died"),
        ],
    )  # fmt: skip
    def test_they_are_no_cause_and_say_what_to_look_at(self, text: str, id: str) -> None:
        made = told(text)
        assert (made.verdict, made.primary, made.exit_code) == ("symptom", None, UNKNOWN)
        assert made.unknown is None
        assert id in {f.id for f in made.findings if f.role == "symptom"}
        assert told(f"{BANNER}{text}").verdict == "symptom"

    @pytest.mark.parametrize(("status", "meaning"), STATUSES.items())
    def test_an_exit_status_is_decoded(self, status: str, meaning: str) -> None:
        made = told(INIT.replace("{}", f"{{'EngineCore_DP0': {status}}}"))
        assert (made.verdict, made.exit_code) == ("symptom", UNKNOWN)
        message = made.findings[0].message
        assert message
        assert message.startswith(f"EngineCore_DP0 exited with {status}: {meaning}")

    def test_a_kill_is_the_kernel_s_as_a_rule(self) -> None:
        made = told(INIT.replace("{}", "{'EngineCore_DP0': -9}"))
        assert (made.primary, made.exit_code) == ("host-oom-killed", RECOGNISED)
        assert any("SIGKILL" in (f.message or "") for f in made.findings)

    @pytest.mark.parametrize(
        ("text", "meaning"),
        [
            ("vllm-1 exited with code 137\n", "it exited with 137: SIGKILL"),
            ("server exited with code 139\n", "it exited with 139: SIGSEGV"),
            ("server exited with code 132\n", "it exited with 132: SIGILL"),
            ("server exited with code 127\n", "it exited with 127: there is no such command"),
            ("server exited with code 3\n", "it exited with 3"),
            (
                "vllm.service: Main process exited, code=killed, status=9/KILL\n",
                "systemd reports that it exited with 9/KILL: SIGKILL",
            ),
            (
                "vllm.service: Main process exited, code=dumped, status=11/SEGV\n",
                "systemd reports that it exited with 11/SEGV: SIGSEGV",
            ),
            (
                "vllm.service: Main process exited, code=exited, status=1/FAILURE\n",
                "systemd reports that it exited with 1/FAILURE",
            ),
        ],
    )
    def test_so_is_that_of_a_container_and_of_a_service(self, text: str, meaning: str) -> None:
        made = told(text)
        assert (made.verdict, made.exit_code) == ("symptom", UNKNOWN)
        assert (made.findings[0].message or "").startswith(meaning)

    @pytest.mark.parametrize("above", [SAID, "CRITICAL 09-12 08:00:01 [a.py:1] no slot", OOM])
    def test_with_anything_above_they_are_not_all(self, above: str) -> None:
        made = told(f"{above}\n{CORE}EngineCore failed to start.\n{INIT}")
        assert made.verdict in ("explained", "unrecognised")
        assert {f.role for f in made.findings if f.id == "engine-core-failed"} == {"symptom"}

    @named(
        {
            "a code of none": "vllm-1 exited with code 0\n",
            "a service that ended": "a.service: Main process exited, code=exited, status=0/OK\n",
            "after a stop": BANNER + READY + ANSWERS + STOP + INIT,
        }
    )  # fmt: skip
    def test_an_end_that_was_asked_for_is_none(self, text: str) -> None:
        assert_healthy(told(text))


KV = (
    "ValueError: No available memory for the cache blocks. Try increasing "
    "`gpu_memory_utilization` when initializing the engine.\n"
)
FAILED = f"{BANNER}{CORE}{KV}{INIT}"
LOADING = (
    "(EngineCore_DP0 pid=77) INFO 09-12 08:02:00 [gpu_model_runner.py:3552] Starting to load "
    "model acme/m-7b...\n"
)
DIED = (
    "(APIServer pid=41) ERROR 09-12 09:00:00 [core_client.py:600] Engine core proc EngineCore_DP0 "
    "died unexpectedly, shutting down client.\n"
)


class TestStarts:
    """Kind 5."""

    @pytest.mark.parametrize("after", ["", LOADING, LOADING * 3])
    @pytest.mark.parametrize("failures", [1, 2, 5])
    def test_in_a_restart_loop_the_last_failed_start_is_the_answer(
        self, failures: int, after: str
    ) -> None:
        made = told(FAILED * failures + BANNER + after)
        assert (made.primary, made.exit_code) == ("no-kv-cache-memory", RECOGNISED)
        assert (made.restarting, made.ready, made.attempts) == (True, False, failures + 1)
        assert len(made.earlier) == failures - 1

    def test_an_unknown_failure_in_a_loop_is_quoted(self) -> None:
        made = told(f"{BANNER}{HEAD}{FRAME}{SAID}\n{BANNER}")
        assert_unknown(made, SAID)
        assert made.restarting

    def test_a_start_that_gets_ready_ends_the_loop(self) -> None:
        made = told(FAILED * 2 + BANNER + LOADING + READY)
        assert_healthy(made)
        assert (made.restarting, made.ready, len(made.earlier)) == (False, True, 2)

    @named(
        {
            "no process before it": "INFO:     Application startup complete.\n",
            "with its port": (
                "INFO:     Started server process [12]\nINFO:     Application startup complete.\n"
                "INFO:     Uvicorn running on http://0.0.0.0:9010 (Press CTRL+C to quit)\n"
            ),
            "indented": "   INFO:     Application startup complete.\n",
            "in docker": "2026-09-12T08:09:00.1Z INFO:     Application startup complete.\n",
            "of a proxy": "Proxy is up\nINFO:     Application startup complete.\n",
            "twice": "INFO:     Application startup complete.\n" * 2,
        }
    )
    def test_another_program_s_uvicorn_is_not_vllm_s_readiness(self, text: str) -> None:
        made = told(FAILED + text)
        assert (made.primary, made.ready) == ("no-kv-cache-memory", False)

    def test_before_vllm_named_its_process_its_uvicorn_did_not_either(self) -> None:
        banner = "INFO 09-12 08:00:01 [api_server.py:1043] vLLM API server version 0.8.5\n"
        made = told(f"{banner}INFO:     Application startup complete.\n")
        assert (made.exit_code, made.ready) == (NOTHING, True)

    @pytest.mark.parametrize(
        "end",
        [
            "(APIServer pid=41) KeyboardInterrupt: terminated\n",
            "KeyboardInterrupt: terminated\n",
            "Normal  Killing  Container vllm failed liveness probe, will be restarted\n",
            "systemd[1]: vllm.service: start operation timed out. Terminating.\n",
        ],
    )
    def test_what_is_ended_while_it_loads_was_ended_from_outside(self, end: str) -> None:
        made = told(BANNER + LOADING + end)
        assert (made.primary, made.exit_code) == ("stopped-while-starting", RECOGNISED)

    @pytest.mark.parametrize(
        "end",
        [
            "(APIServer pid=41) KeyboardInterrupt: terminated\n",
            "(APIServer pid=41) INFO:     Shutting down\n",
            f'{HEAD}  File "/srv/a.py", line 1, in f\n    f()\nKeyboardInterrupt: terminated\n',
            f'{HEAD}  File "/srv/a.py", line 1, in f\n    f()\nasyncio.exceptions.CancelledError\n',
            "(APIServer pid=41) INFO:     Waiting for application shutdown.\n",
        ],
    )
    def test_once_it_is_ready_that_is_harmless(self, end: str) -> None:
        assert_healthy(told(BANNER + LOADING + READY + ANSWERS + end))

    @named(
        {
            "after answers": ANSWERS + DIED,
            "after readiness": BANNER + READY + DIED,
            "with its end": BANNER + READY + ANSWERS + DIED + STOP,
            "with what clients saw": READY + ANSWERS + DIED + answer("500 Internal Server Error"),
            "in docker": under("vllm-1  | ", READY + ANSWERS + DIED),
        }
    )  # fmt: skip
    def test_an_engine_that_dies_while_it_serves_is_a_failure(self, text: str) -> None:
        made = told(text)
        assert (made.primary, made.exit_code) == ("engine-died", RECOGNISED)

    def test_where_no_process_says_that_it_is_a_server_it_is_quoted(self) -> None:
        bare = DIED.partition(") ")[2]
        said = "Engine core proc EngineCore_DP0 died unexpectedly, shutting down client."
        assert_unknown(told(bare), said)

    @pytest.mark.parametrize(
        "output",
        [
            "Processed prompts: 100%|##########| 4/4 [00:01<00:00,  3.1it/s]\n",
            "Prompt: 'Hello', Generated text: ' world'\n",
            "Generated text: ' world'\n",
        ],
    )
    @pytest.mark.parametrize("prefix", ["", "vllm-1  | ", "    "])
    def test_so_ends_an_offline_script(self, output: str, prefix: str) -> None:
        died = DIED.removeprefix("(APIServer pid=41) ")
        assert_healthy(told(under(prefix, LOADING + output + died)))

    def test_an_offline_script_that_raised_did_fail(self) -> None:
        died = DIED.removeprefix("(APIServer pid=41) ")
        made = told(f"{LOADING}Generated text: ' world'\n{HEAD}{FRAME}{SAID}\n{died}")
        assert_unknown(made, SAID)


class TestRequests:
    """Kind 6."""

    @pytest.mark.parametrize(
        "status",
        [
            "400 Bad Request",
            "401 Unauthorized",
            "404 Not Found",
            "422 Unprocessable Entity",
            "422 Unprocessable Content",
            "500 Internal Server Error",
        ],
    )
    @pytest.mark.parametrize("times", [1, 3])
    def test_refused_ones_alone_are_told(self, status: str, times: int) -> None:
        made = told(BANNER + READY + answer(status) * times)
        assert (made.primary, made.exit_code) == ("request-refused", RECOGNISED)
        assert made.findings[0].severity.value == "warning"
        assert made.findings[0].values["status"] == status[:3]
        assert made.findings[0].values["path"] == "/v1/chat/completions"
        assert made.findings[0].values["times"] == ("a request" if times == 1 else "3 requests")

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ('{"error":{"message":"no such slot","type":"BadRequestError","code":400}}',
             "no such slot"),
            ('{"object":"error","message":"no such slot","type":"BadRequestError","param":null,'
             '"code":400}', "no such slot"),
            ('{"object":"error","message":"The route is gone","type":"NotFoundError","param":null,'
             '"code":404}', "The route is gone"),
            ('{"error":{"message":"it broke","type":"InternalServerError","code":500}}',
             "it broke"),
            ("openai.BadRequestError: Error code: 400 - {'error': {'message': 'no such slot', "
             "'type': 'BadRequestError', 'param': None, 'code': 400}}", "no such slot"),
            ("openai.NotFoundError: Error code: 404 - {'object': 'error', 'message': 'not here', "
             "'type': 'NotFoundError', 'param': None, 'code': 404}", "not here"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("around", ["{}", "    {}", "> {}", "curl: {}", "返回：{}", "`{}`"])
    def test_an_answer_s_error_is_read(self, text: str, error: str, around: str) -> None:
        made = told(around.format(text) + "\n")
        assert (made.primary, made.exit_code) == ("request-refused", RECOGNISED)
        assert made.findings[0].values["error"] == error

    @pytest.mark.parametrize("around", ["{}", "  {}", "> {}", "报错：{}", "```{}```", "$ curl: {}"])
    def test_tools_that_were_not_switched_on_are_named(self, around: str) -> None:
        text = (
            r'{"object":"error","message":"\"auto\" tool choice requires --enable-auto-tool-choice '
            r'and --tool-call-parser to be set","type":"BadRequestError","param":null,"code":400}'
        )
        made = told(around.format(text) + "\n")
        assert (made.primary, made.exit_code) == ("tool-choice-not-enabled", RECOGNISED)

    @named(
        {
            "one among many": READY + ANSWERS + answer("400 Bad Request") + ANSWERS,
            "first, then answers": READY + answer("404 Not Found") + ANSWERS,
            "a path that a browser asks for": READY
            + answer("404 Not Found", "/favicon.ico").replace("POST", "GET"),
            "an answer without an error": '{"id":"x","object":"chat.completion","choices":[]}\n',
            "answers": READY + ANSWERS,
            "a scanner": READY
            + '(APIServer pid=41) INFO:     10.1.0.9:4 - "GET /.env HTTP/1.1" 404 Not Found\n' * 3,
        }
    )  # fmt: skip
    def test_clients_own_affairs_are_no_failure(self, text: str) -> None:
        assert_healthy(told(text))


PLATFORMS = {
    "ascend": "INFO 09-12 08:00:01 [__init__.py:43] Platform plugin ascend is activated",
    "ascend's package": "INFO 09-12 08:00:01 [__init__.py:36] - ascend -> vllm_ascend:register",
    "torch_npu": "/opt/x/torch_npu/utils/collect_env.py:58: UserWarning: the owner does not match",
    "_C_ascend": "INFO 09-12 08:00:01 [a.py:1] loaded vllm_ascend_C with _C_ascend ops",
    "CANN": "INFO 09-12 08:00:01 [a.py:1] CANN version: 8.3.RC1",
    "rocm": "INFO 09-12 08:00:01 [__init__.py:244] Automatically detected platform rocm.",
    "xpu": "INFO 09-12 08:00:01 [__init__.py:244] Automatically detected platform xpu.",
    "tpu": "INFO 09-12 08:00:01 [__init__.py:244] Automatically detected platform tpu.",
}
IMPORT_NOTES = {
    "no extension": (
        "WARNING 09-12 08:00:02 [interface.py:226] Failed to import from vllm._C: "
        "ModuleNotFoundError(\"No module named 'vllm._C'\")"
    ),
    "no library": (
        "WARNING 09-12 08:00:02 [interface.py:199] Failed to import from vllm._C with "
        "ImportError('libcudart.so.12: cannot open shared object file: No such file or directory')"
    ),
    "an undefined symbol": (
        "WARNING 09-12 08:00:02 [interface.py:226] Failed to import from vllm._C: ImportError("
        "'/opt/x/vllm/_C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEa')"
    ),
}


class TestOtherPlatforms:
    """Kind 7."""

    @pytest.mark.parametrize("platform", PLATFORMS.values(), ids=PLATFORMS)
    @pytest.mark.parametrize("note", IMPORT_NOTES.values(), ids=IMPORT_NOTES)
    def test_an_import_note_of_cuda_s_extension_is_none_there(
        self, platform: str, note: str
    ) -> None:
        version = "INFO 09-12 08:00:03 [api_server.py:1201] vLLM API server version 0.13.0"
        for lines in ((platform, note, version), (platform, note), (note, platform, version)):
            assert_healthy(told("\n".join(lines) + "\n"))

    @pytest.mark.parametrize("platform", PLATFORMS.values(), ids=PLATFORMS)
    @pytest.mark.parametrize(
        "line",
        [
            "ModuleNotFoundError: No module named 'vllm._C'",
            "AttributeError: '_OpNamespace' '_C' object has no attribute 'rms_norm'",
            "ImportError: libcudart.so.13: cannot open shared object file: No such file",
            "RuntimeError: Found no NVIDIA driver on your system. Please check it",
            "AssertionError: Torch not compiled with CUDA enabled",
            "ImportError: /opt/x/vllm/_C.abi3.so: undefined symbol: _ZN3c104cuda9SetDeviceEa",
        ],
    )
    def test_a_failure_there_is_quoted_without_cuda_s_advice(
        self, platform: str, line: str
    ) -> None:
        made = told(f"{platform}\n{HEAD}{FRAME}{line}\n")
        assert_unknown(made, line)
        assert made.findings == ()

    @pytest.mark.parametrize(
        "line",
        [
            "HIP error: invalid device function",
            "it came to hipErrorNoBinaryForGpu",
            "RuntimeError: HIP error: an illegal memory access was encountered",
            "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB.",
            "RuntimeError: level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)",
            "RuntimeError: npu error: 507015, the aicore execution is abnormal",
        ],
    )
    def test_what_those_platforms_print_is_a_failure(self, line: str) -> None:
        made = told(f"{line}\n")
        assert made.exit_code in (RECOGNISED, UNKNOWN)
        assert not {f.id for f in made.findings} & CUDA_ONLY

    INFER = (
        "RuntimeError: Failed to infer device type, please set the environment variable "
        "`VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.\n"
    )

    @pytest.mark.parametrize("note", IMPORT_NOTES.values(), ids=IMPORT_NOTES)
    @pytest.mark.parametrize("infer", [INFER, "RuntimeError: Failed to infer device type\n"])
    def test_that_no_device_is_inferred_wins_over_the_import_notes(
        self, note: str, infer: str
    ) -> None:
        nothing = TestNoFailureIsPassedOver.NO_PLATFORM
        for text in (f"{note}\n{nothing}{infer}", f"{note}\n{infer}", f"{nothing}{infer}"):
            made = told(text)
            assert (made.primary, made.exit_code) == ("driver-lib-invisible", RECOGNISED)

    @pytest.mark.parametrize("note", list(IMPORT_NOTES.values())[:1])
    def test_on_cuda_the_same_note_is_told(self, note: str) -> None:
        made = told(f"{self.ON_CUDA}{note}\n{BANNER}")
        assert (made.primary, made.exit_code) == ("vllm-ext-missing", RECOGNISED)

    ON_CUDA = "INFO 09-12 08:00:01 [__init__.py:216] Automatically detected platform cuda.\n"
    SINCE_0_25 = (
        "Failed to import from vllm._C: ModuleNotFoundError(\"No module named 'vllm._C'\")\n"
    )

    def test_an_extension_that_vllm_no_longer_has_for_cuda_is_not_missed(self) -> None:
        """0.33 prints this line on each start without a GPU, and knows no `_C` for CUDA."""
        assert_healthy(told(self.SINCE_0_25))
        made = told(f"{self.SINCE_0_25}{self.INFER}")
        assert [f.id for f in made.findings] == ["driver-lib-invisible"]

    @pytest.mark.parametrize("before", ["", "WARNING 11-29 01:56:39 [cuda.py:244] "])
    def test_the_extension_that_it_has_is_missed(self, before: str) -> None:
        made = told(f"{before}{self.SINCE_0_25.replace('_C', '_C_stable_libtorch')}")
        assert (made.primary, made.exit_code) == ("vllm-ext-missing", RECOGNISED)


CUDA_ONLY = {
    "vllm-ext-missing",
    "libcudart-major-mismatch",
    "vllm-torch-abi-mismatch",
    "driver-lib-invisible",
    "torch-cpu-build",
    "no-kernel-image",
}


class TestTheKernelKills:
    """Kind 10."""

    @pytest.mark.parametrize(
        "name", ["lmcache", "nixl_agent", "uvicorn", "VLLM::EngineCor", "ray::IDLE", "mooncake_m"]
    )
    @pytest.mark.parametrize(
        "line",
        [
            "Out of memory: Killed process 812 ({}) total-vm:9kB, anon-rss:8kB, file-rss:0kB",
            "Memory cgroup out of memory: Killed process 812 ({}) total-vm:9kB, anon-rss:8kB",
            "[Sat Sep 12 08:03:11 2026] Out of memory: Killed process 812 ({}) total-vm:9kB",
            "Sep 12 08:03:11 node3 kernel: Memory cgroup out of memory: Killed process 812 ({})",
            "> [812.1] Killed process 812 ({}), UID 1000, total-vm:9kB, anon-rss:8kB",
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task_memcg=/x,task={},pid=812,uid=0",
        ],
    )
    def test_any_process_counts_and_is_named(self, name: str, line: str) -> None:
        made = told(line.format(name) + "\n")
        assert (made.primary, made.exit_code) == ("host-oom-killed", RECOGNISED)
        assert (made.findings[0].values["name"], made.findings[0].values["pid"]) == (name, "812")

    @pytest.mark.parametrize("name", ["cicc", "ptxas", "cc1plus"])
    def test_a_compiler_is_one_of_a_build(self, name: str) -> None:
        made = told(f"Out of memory: Killed process 812 ({name}) total-vm:9kB, anon-rss:8kB\n")
        assert (made.primary, made.exit_code) == ("jit-oom-parallelism", RECOGNISED)

    @named(
        {
            "a setting": "INFO 09-12 08:00:01 [a.py:1] oom_score_adj is -997\n",
            "a container that was not": '"State": {"OOMKilled": false, "ExitCode": 0}\n',
            "a count of none": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n",
            "of the reaper": "[ 9.1] oom_reaper: started\n",
            "words of a manual": f"{API}1 [a.py:1] a process that is killed has no traceback\n",
            "a person's request": "$ kill 812\n",
        }
    )
    def test_what_only_speaks_of_it_is_none(self, text: str) -> None:
        assert_healthy(told(text))


class TestTheCommand:
    """End to end: what a person reads, and what a script gets."""

    @pytest.mark.parametrize(
        ("text", "code", "words"),
        [
            (f"报错：{SAID}\n", UNKNOWN, ["? unrecognised failure", SAID]),
            (f"{CORE}no slot\n", UNKNOWN, ["logged at   core.py:866", "line 1: no slot"]),
            (
                INIT.replace("{}", "{'EngineCore_DP0': -4}"),
                UNKNOWN,
                ["SIGILL", "the cause of the failure is not in this log"],
            ),
            (
                FAILED + BANNER,
                RECOGNISED,
                ["last start is still under way", "no-kv-cache-memory  PRIMARY"],
            ),
            (
                READY + answer("400 Bad Request") * 2,
                RECOGNISED,
                ["refused 2 requests to /v1/chat/completions with 400", "curl -sS -i"],
            ),
            (BANNER + READY + ANSWERS, NOTHING, ["Nothing found: the server became ready"]),
            (BANNER + LOADING, NOTHING, ["no failure in this log"]),
        ],
    )
    def test_it_says_so_and_ends_so(
        self, tmp_path: Path, text: str, code: int, words: list[str]
    ) -> None:
        path = tmp_path / "pasted.txt"
        path.write_text(text, encoding="utf-8")
        said = run_inside("explain", "--no-live", path)
        assert said.code == code
        whole = " ".join(said.out.split())
        assert [one for one in words if " ".join(one.split()) not in whole] == [], said.out
