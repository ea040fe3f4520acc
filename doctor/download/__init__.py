"""Fetches the files of a model through a client that the target has, and proves each of them."""
