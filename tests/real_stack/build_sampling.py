"""Runs in an environment of the lab: builds and loads FlashInfer's sampling module, as vLLM does at its start."""

from flashinfer.jit.sampling import gen_sampling_module

spec = gen_sampling_module()
spec.build_and_load()
print("built and loaded", spec.jit_library_path)
