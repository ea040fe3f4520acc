"""The exit codes of the commands; those that judge, repair or print share them."""

HEALTHY, FINDINGS, USAGE, UNKNOWN, FAILED = 0, 1, 2, 3, 4
