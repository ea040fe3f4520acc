"""One module per area: its fact classes and the functions that find them out.

Importing a module registers its probes, and those of every fact that they ask for; a rule that
names a fact has imported its module. So nothing is imported here: `vllm-doctor env` wants two.
"""
