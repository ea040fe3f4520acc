"""vllm-doctor. What a rule's author imports stands here; the facts are in `doctor.probes`."""

from doctor.engine import probe, rule
from doctor.model import Fact, Finding, Fix, Missing, Needs, Severity, Stage, Text

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
