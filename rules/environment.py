"""The shell's environment against the server's."""

from __future__ import annotations

from collections.abc import Iterator

from doctor import Finding, Fix, Needs, Severity, Stage, Text, rule
from doctor.fixes import LoadVariables, UnsetVariable
from doctor.probes.environment import LaunchEnv
from doctor.probes.jit import Jit


@rule("shell-env-not-loaded", Severity.INFO, Stage.SHELL)
def shell_env_not_loaded(env: LaunchEnv) -> Finding | None:
    """What an earlier fix saved for this environment is not in this shell.

    It is judged as part of the server's environment, and `vllm-doctor launch` starts the server
    with it; a `vllm serve` typed here by hand would not see it.
    """
    if not env.differs:
        return None
    return Finding(
        Text("a `vllm serve` typed in this shell would not see {names}", names=env.differs),
        tuple(_as_launched(env, name) for name in env.differs),
        (
            Fix(
                Text("load them into this shell"),
                (LoadVariables(),),
                Needs.PERSON,
            ),
        ),
    )


def _as_launched(env: LaunchEnv, name: str) -> Text:
    value = env.get(name)
    if value is None:
        return Text("{name} is taken out", name=name)
    return Text("{name}={value}", name=name, value=value)


@rule("variable-unreadable", Severity.ERROR, Stage.IMPORT)
def variable_unreadable(env: LaunchEnv, jit: Jit | None) -> Iterator[Finding]:
    """A variable has a value on which vLLM or FlashInfer breaks when it starts.

    vLLM reads its switches as `bool(int(value))`: "true" and an empty value end it. FlashInfer
    takes FLASHINFER_CUDA_ARCH_LIST apart at single spaces ("9.0a 10.0a"); torch's own spelling with
    semicolons ends it.
    """
    for name in ("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_USE_FLASHINFER_MOE_FP16"):
        value = env.get(name)
        if value is not None and not _is_whole(value):
            yield Finding(
                Text("{name}={value}: vLLM takes a number, 0 or 1", name=name, value=repr(value)),
                (),
                (Fix(Text("leave it to vLLM"), (UnsetVariable(name),)),),
            )
    if jit and jit.unreadable:
        name = "FLASHINFER_CUDA_ARCH_LIST"
        yield Finding(
            Text(
                "{name}={value}: FlashInfer takes entries such as 9.0a, one space between them",
                name=name,
                value=repr(env.get(name)),
            ),
            (),
            (Fix(Text("leave it to FlashInfer"), (UnsetVariable(name),)),),
        )


def _is_whole(value: str) -> bool:
    """Whether Python's `int` takes it, as vLLM does."""
    try:
        int(value)
    except ValueError:
        return False
    return True
