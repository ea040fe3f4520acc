"""Whether a model fits, and what would make it fit."""

from __future__ import annotations

import dataclasses

from doctor.fit.advice import smallest_tp, ways
from doctor.fit.reckoning import reckon
from doctor.fit.verdict import Fit, FitQuestion


def judge_fit(question: FitQuestion) -> Fit:
    """The whole answer. What cannot be told makes it unknown; nothing is raised."""
    fit = reckon(question)
    smallest = smallest_tp(fit)
    found = next(iter(ways(fit, smallest)), None)
    return dataclasses.replace(fit, smallest_tp=smallest, flags=found.flags if found else ())
