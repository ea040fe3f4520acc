"""The shell's environment against the server's."""

from __future__ import annotations

from doctor import Finding, Fix, Needs, Severity, Stage, Text, rule
from doctor.fixes import Command
from doctor.probes.environment import LaunchEnv


@rule("shell-env-not-loaded", Severity.INFO, Stage.SHELL)
def shell_env_not_loaded(env: LaunchEnv) -> Finding | None:
    """What an earlier fix saved for this environment is not in this shell.

    `vllm-doctor launch` starts the server with it; a `vllm serve` typed here by hand would not see
    it.
    """
    if not env.differs:
        return None
    return Finding(
        Text("a `vllm serve` typed in this shell would not see {names}", names=env.differs),
        tuple(Text("{name}={value}", name=n, value=env.vars[n]) for n in env.differs),
        (
            Fix(
                Text("load them into this shell"),
                (Command('eval "$(vllm-doctor env)"'),),
                Needs.PERSON,
            ),
        ),
    )
