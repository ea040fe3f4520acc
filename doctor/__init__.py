"""vllm-doctor. What a rule's author imports stands here; the facts are in `doctor.probes`."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from doctor.engine import probe, rule
    from doctor.model import (
        Fact,
        Finding,
        Fix,
        Missing,
        Needs,
        NotApplicable,
        Severity,
        Stage,
        Text,
    )

__all__ = [
    "Fact",
    "Finding",
    "Fix",
    "Missing",
    "Needs",
    "NotApplicable",
    "Severity",
    "Stage",
    "Text",
    "probe",
    "rule",
]


def __getattr__(name: str) -> object:
    # Only when asked for: before the command answers Ctrl-C (doctor.__main__), it imports nothing.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from doctor import engine, model

    return getattr(engine if name in ("probe", "rule") else model, name)
