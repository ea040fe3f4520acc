"""What those around the server print: Kubernetes, docker, systemd, shells, make, drivers, NCCL."""

from __future__ import annotations

import pytest

from tests.test_explain_pasted import assert_healthy, assert_unknown, named, told

SYMPTOM = 3
SCHEDULED = "  Normal   Scheduled  9m  default-scheduler  Successfully assigned llm/a to gpu-3\n"
NO_NODE = "  Warning  FailedScheduling  12m  default-scheduler  0/5 nodes are available: 5 {}.\n"
NO_PULL = '  Warning  Failed  3m  kubelet  Failed to pull image "acme/v:1": not found\n'
NO_MOUNT = '  Warning  FailedMount  3m  kubelet  MountVolume.SetUp failed for volume "m"\n'
PULLED = '  Normal   Pulled  1m  kubelet  Successfully pulled image "acme/v:1"\n'
ENDED = "    {} Terminated\n      Reason:       Error\n      Exit Code:    {}\n"
PODS = "NAME    READY   STATUS   RESTARTS   AGE\nvllm-7-q   {}   14m\n"
PS = '8f1ab2   vllm/vllm-openai:latest   "vllm serve"   9 minutes ago   {}   vllm\n'
NCCL_INFO = "g1:2231:2231 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.1<0>\n"
NO_ROUTE = (
    "g1:2231:2290 [0] misc/socket.cc:484 NCCL WARN socketStartConnect: "
    "Connect to 10.0.0.2<51234> failed : No route to host"
)


@named(
    {
        "kubectl": "command terminated with exit code 137\n",
        "pods": PODS.format("0/1     CrashLoopBackOff   12 (33s ago)"),
        "back-off": "  Warning  BackOff  2m  kubelet  Back-off restarting failed container vllm\n",
        "describe": ENDED.format("State:     ", 1),
        "systemd": "     Active: failed (Result: exit-code) since Wed 2025-06-11 10:00:01 UTC\n",
        "docker, ended": PS.format("Exited (137) 2 minutes ago"),
        "docker, again and again": PS.format("Restarting (1) 12 seconds ago"),
        "make": "make: *** [Makefile:12: serve] Error 1\n",
    }
)
def test_that_it_ended_is_a_symptom(text: str) -> None:
    made = told(text)
    assert (made.verdict, made.exit_code) == ("symptom", SYMPTOM)
    assert [f.id for f in made.findings] == ["process-exited"]


@pytest.mark.parametrize(
    "line",
    [
        "vllm-7-q   0/1   ImagePullBackOff   0   14m",
        "vllm-7-q   0/1   Init:ErrImagePull   0   14m",
        "Reason:       CreateContainerConfigError",
        NO_PULL.strip(),
        NO_MOUNT.strip(),
        NO_NODE.format("Insufficient memory").strip(),
        "Warning  Evicted  2m  kubelet  The node was low on resource: ephemeral-storage.",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "No devices were found",
        "Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error",
        "Memory access fault by GPU node-2 (Agent handle: 0x55) on address 0x7f. Reason: Unknown.",
        ":0:rocdevice.cpp :2984: aborting with error : HSA_STATUS_ERROR_OUT_OF_RESOURCES: it ended",
        "vllm : The term 'vllm' is not recognized as the name of a cmdlet, function, script file",
        "vllm : 无法将“vllm”项识别为 cmdlet、函数、脚本文件或可运行程序的名称。",
        "'vllm' is not recognized as an internal or external command,",
        "fatal: unable to access 'https://huggingface.co/acme/m/': Failed to connect",
        "acme.runtime.errors.OutOfSlots: none is left",
        "acme.exceptions.SlotsGone: none is left",
        "TimeoutError",
        "EOFError",
        NO_ROUTE,
    ],
)
def test_what_they_say_of_a_failure_is_quoted(line: str) -> None:
    assert_unknown(told(f"{line}\n"), line)


@named(
    {
        "a node came": NO_NODE.format("Insufficient memory") + SCHEDULED,
        "a GPU came": NO_NODE.format("Insufficient nvidia.com/gpu") + SCHEDULED,
        "pulled at last": NO_PULL + PULLED,
        "mounted at last": NO_MOUNT + PULLED,
        "it runs again": "    State:          Running\n" + ENDED.format("Last State:", 1),
        "it is complete": ENDED.format("State:     ", 0),
        "pods": PODS.format("1/1     Running   3 (2d ago)"),
        "docker": PS.format("Exited (0) 2 minutes ago"),
        "another container": '8f1  busybox  "sh"  9 minutes ago  Exited (1) 2 minutes ago  init\n',
        "systemd": "     Active: active (running) since Wed 2025-06-11 10:00:01 UTC\n",
        "a newer container": PS.format("Up 9 minutes") + PS.format("Exited (137) 8 days ago"),
        "make goes on": "make[1]: *** [Makefile:12: clean] Error 1 (ignored)\n",
        "no repository": "fatal: not a git repository (or any of the parent directories): .git\n",
    }
)
def test_what_came_right_is_no_failure(text: str) -> None:
    assert_healthy(told(text))


def test_what_nccl_warns_of_below_its_own_lines_is_no_hang() -> None:
    assert_unknown(told(f"{NCCL_INFO}{NO_ROUTE}\n{NCCL_INFO}"), NO_ROUTE)


def test_a_peer_that_is_gone_is_a_symptom() -> None:
    line = "g1:1:9 [0] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by remote peer"
    made = told(f"{line} g2<44321>\n")
    assert (made.verdict, [f.id for f in made.findings]) == ("symptom", ["worker-failed"])


def test_pip_s_own_lines_are_no_part_of_an_exception() -> None:
    text = (
        "  ╰─> [20 lines of output]\n"
        "      Traceback (most recent call last):\n"
        '        File "<string>", line 14, in <module>\n'
        "      AssertionError: ACME_HOME is not set\n"
        "      [end of output]\n"
        "\n"
        "  note: This error originates from a subprocess, and is likely not a problem with pip.\n"
    )
    assert_unknown(told(text), "AssertionError: ACME_HOME is not set")
