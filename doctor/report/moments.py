"""The moments of a server's start, as who watches it would say."""

from __future__ import annotations

from doctor.model import Stage, Text

MOMENTS = (
    (Text("starting vLLM"), (Stage.INSTALL,)),
    (Text("importing torch and vLLM"), (Stage.IMPORT,)),
    (Text("finding the GPU driver"), (Stage.DEVICE,)),
    (Text("loading the model's config"), (Stage.MODEL,)),
    (Text("placing the model on the GPUs"), (Stage.GPUS,)),
    (Text("Triton's first build"), (Stage.HOST_COMPILER,)),
    (Text("the first kernel build"), (Stage.TOOLKIT, Stage.COMPILE, Stage.LINK)),
    (Text("loading the first kernel"), (Stage.LOAD,)),
)
"""Where an error of these stages stops the server, in their order."""


def moment_of(stage: Stage) -> Text | None:
    """Where an error of this stage stops the server; None where it stops none."""
    return next((moment for moment, stages in MOMENTS if stage in stages), None)
