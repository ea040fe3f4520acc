"""Prints the version of the CUDA runtime at argv[1]: 1000 x major + 10 x minor. In a child, since
loading a foreign library may do anything. `cudaRuntimeGetVersion` needs no driver."""

import ctypes
import sys

number = ctypes.c_int()
if ctypes.CDLL(sys.argv[1]).cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
    print(number.value)
