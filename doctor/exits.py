"""The exit codes of the commands; those that judge, repair or print share them."""

HEALTHY, FINDINGS, USAGE, UNKNOWN, FAILED = 0, 1, 2, 3, 4

BUSY = 75
"""EX_TEMPFAIL of sysexits.h: another doctor is at work on this environment. Try again."""

REFUSED = 78
"""EX_CONFIG of sysexits.h: systemd's RestartPreventExitStatus and supervisors know it."""

INTERRUPTED = 130
"""128 and SIGINT, as a shell says it: Ctrl-C, also while waiting."""
