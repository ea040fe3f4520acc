"""One module per area: its fact classes and the functions that find them out.

Importing this package registers every probe.
"""

from doctor.probes import (
    cuda_home,
    driver,
    environment,
    host,
    interpreter,
    jit,
    libraries,
    proof,
    repairs,
    toolkit,
    wheels,
)

__all__ = [
    "cuda_home",
    "driver",
    "environment",
    "host",
    "interpreter",
    "jit",
    "libraries",
    "proof",
    "repairs",
    "toolkit",
    "wheels",
]
