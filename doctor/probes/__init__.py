"""One module per area: its fact classes and the functions that find them out.

Importing this package registers every probe.
"""

from doctor.probes import (
    driver,
    environment,
    host,
    interpreter,
    jit,
    libraries,
    proof,
    toolkit,
    wheels,
)

__all__ = [
    "driver",
    "environment",
    "host",
    "interpreter",
    "jit",
    "libraries",
    "proof",
    "toolkit",
    "wheels",
]
