"""Hostile input of every class, made at random from a seed: no exception escapes, the exit code is
a documented one, what is said is a sentence that drives no terminal, and nothing takes for ever.

`pytest -m hardening tests/fuzz --fuzz-seconds 60` gives each class a minute; what fails is repeated
with the `--fuzz-seed` that the failure names.
"""
