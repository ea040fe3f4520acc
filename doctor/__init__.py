"""vllm-doctor. What a rule's author imports stands here; the facts are in `doctor.probes`."""

import os
import sys

# The server's PYTHONPATH is judged, not obeyed, and the current directory is nobody's library: a
# stale `packaging` or `click.py` there must not become the doctor's own. These folders go last;
# one of them may be where the doctor itself lies.
try:
    _here = os.getcwd()
except OSError:  # it was removed
    _here = ""
_given = {os.path.join(_here, p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep)}
_given.add(os.path.join(_here, ""))
_given = {os.path.normpath(p) for p in _given}
sys.path.sort(key=lambda p: os.path.normpath(os.path.join(_here, p)) in _given)

from doctor.engine import probe, rule  # noqa: E402
from doctor.model import Fact, Finding, Fix, Missing, Needs, Severity, Stage, Text  # noqa: E402

__all__ = [
    "Fact",
    "Finding",
    "Fix",
    "Missing",
    "Needs",
    "Severity",
    "Stage",
    "Text",
    "probe",
    "rule",
]
