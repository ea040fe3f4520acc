"""A container that is to run the server, by its `docker run`."""

from __future__ import annotations

import shlex

from doctor import Finding, Fix, Missing, Needs, Severity, Stage, Text, rule
from doctor.command import DEFAULT_SHM
from doctor.consumers.shares import layout_of
from doctor.fixes import Command
from doctor.probes.interpreter import FoundBy, Where
from doctor.probes.served import Profile
from doctor.profile import ServeRequest
from doctor.redact import holds_secret

# What NCCL and vLLM's own processes were seen to need for two GPUs.
_ENOUGH = 1 << 30


@rule("container-not-entered", Severity.ERROR, Stage.INSTALL)
def container_not_entered(request: ServeRequest, where: Where) -> None:
    """The software of a container's image was not looked at.

    `docker run ... vllm/vllm-openai ...` is read, and what it says of the host, the GPUs, the model
    and the options is judged; vLLM, torch and CUDA are those of the image, which the doctor does
    not enter. So it cannot tell whether the server would start.

    Manual: Run vllm-doctor in the image, with the line that the report prints, where the image has
    it; or record the image there by `vllm-doctor snapshot`, and judge that by
    `diagnose --from SNAPSHOT -- docker run ...`.

    Workaround: `--python` judges an environment of this machine in the place of the image's.

    See also: container-shm-too-small
    """
    command = request.command
    container = command.container if command else None
    if command is None or container is None or where.found_by is not FoundBy.IMAGE:
        return
    from doctor.command.container import entering_line  # late: few commands are a container's

    raise Missing(
        Text(
            "the image {image} was not entered; run vllm-doctor in it: {line}",
            image=container.image,
            line=entering_line(command, container),
        )
    )


@rule("container-shm-too-small", Severity.WARNING, Stage.GPUS)
def container_shm_too_small(request: ServeRequest, profile: Profile) -> Finding | None:
    """The container gives the ranks too little shared memory.

    NCCL and vLLM's own processes exchange data through files in /dev/shm. Docker and podman give a
    container 64 MiB; two GPUs need about 1 GiB, unless they reach each other without it. The server
    then stops with `Error while creating shared memory segment`, which is nccl-shm-too-small.

    Manual: Start the container with more: `docker run --ipc=host ...` or
    `docker run --shm-size=8g ...`; the report has the whole line.

    Sources: vllm#1710, vllm#6574, nccl#290

    See also: nccl-shm-too-small, container-not-entered
    """
    command = request.command
    container = command.container if command else None
    ranks = layout_of(profile).ranks
    if command is None or container is None or ranks < 2:
        return None
    shared = container.ipc is not None and container.ipc not in ("", "private", "shareable", "none")
    size = DEFAULT_SHM if container.shm_size is None else container.shm_size
    if shared or size >= _ENOUGH or any("dev/shm" in word for word in container.options):
        return None
    at = command.words.index("run") + 1
    corrected = (*command.words[:at], "--ipc=host", *command.words[at:])
    line = f"{container.program} run --ipc=host ..."
    if not holds_secret(corrected):
        line = shlex.join(corrected)
    return Finding(
        Text(
            "{ranks} ranks share {size} MiB of /dev/shm in the container, and need about 1 GiB",
            ranks=ranks,
            size=size >> 20,
        ),
        (Text("{option}", option=_said(container.shm_size)),),
        (Fix(Text("give it the host's shared memory"), (Command(line),), Needs.PERSON),),
    )


def _said(size: int | None) -> Text:
    if size is None:
        return Text("neither --ipc=host nor --shm-size is given: 64 MiB is the default")
    return Text("--shm-size is {size} bytes", size=size)
