"""Starts the server that was judged: what it is started with, what was proven of it, its end.

There is no way past a finding but to accept it by its name: whoever starts a server with this
starts a judged one.
"""
