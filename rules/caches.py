"""Kernels that FlashInfer built earlier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from doctor import Finding, Fix, Severity, Stage, Text, rule
from doctor.fixes import SetAside
from doctor.probes.jit import Jit, KernelCache
from doctor.probes.toolkit import Toolkits
from doctor.probes.wheels import Torch


@rule("flashinfer-stale-cache", Severity.ERROR, Stage.LOAD)
def flashinfer_stale_cache(
    cache: KernelCache, torch: Torch, toolkits: Toolkits, jit: Jit
) -> Iterator[Finding]:
    """A kernel in FlashInfer's cache was built for another CUDA major.

    `libcudart.so.12: cannot open shared object file` with a path in cached_ops. The cache's key is
    FlashInfer's version and the GPUs, not the toolkit, and ninja rebuilds only what its commands or
    headers changed: an op built by the same CUDA_HOME is loaded as it is. Where CUDA_HOME is
    another string now, FlashInfer builds it again by itself. Only the op is set aside, never the
    cache: everything else in it took minutes to build.
    """
    if torch.cuda is None:
        return
    home = toolkits.found.root if toolkits.found else None
    builder = toolkits.found.nvcc if toolkits.found else None
    for op in cache.ops:
        if op.cudart is None or op.cudart == torch.cuda.major:
            continue
        if builder and builder.major == op.cudart:
            continue  # today's toolkit would build the same: another major alone is no fault
        reused = op.cuda_home is None or home is None or Path(op.cuda_home) == home
        yield Finding(
            Text(
                "the cached kernel {op} was built for CUDA {major}, torch is for CUDA {cuda}",
                op=op.name,
                major=op.cudart,
                cuda=torch.cuda,
            ),
            (
                Text("{folder}", folder=op.folder),
                Text("its .so needs libcudart.so.{major}", major=op.cudart),
                Text("CUDA_HOME is the same: it is not built again")
                if reused
                else Text("it was built by {home}: FlashInfer builds it again", home=op.cuda_home),
            ),
            (Fix(Text("set this kernel aside"), (SetAside(op.folder),)),),
            None if reused else Severity.INFO,
        )
