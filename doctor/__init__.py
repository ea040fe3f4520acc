"""vllm-doctor. What a rule's author imports stands here; the facts are in `doctor.probes`."""

import os
import sys

# The server's PYTHONPATH is judged, not obeyed: a stale `packaging` or `json.py` there must not
# become the doctor's own. Its folders go last; one of them may be where the doctor itself lies.
_given = {os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p}
sys.path.sort(key=lambda p: os.path.abspath(p) in _given)

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
