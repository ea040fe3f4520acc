"""What one further fact and one further rule cost: `python -m tests.benchmarks.further`.

Measured is the marginal cost in milliseconds, over some hundred of each: of a fact, its class and
the registration of its probe; of a rule, its loading, and its run with that of the probe.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from doctor.engine import Facts, check, load_rules
from doctor.model import Rule
from doctor.target import Live

COUNT = 300
FACTS = """
from __future__ import annotations
from pathlib import Path
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact
from doctor.target import Target
"""
FACT = '''

@dataclass(frozen=True)
class Fact{i}(Fact):
    """What is found out."""

    name: str = ""
    folder: Path | None = None
    size: int | None = None


@probe
def fact{i}(target: Target) -> Fact{i}:
    return Fact{i}("a", None, {i})
'''
RULES = """
from __future__ import annotations
from doctor import Finding, Severity, Stage, Text, rule
from further_facts import *
"""
RULE = '''

@rule("rule-{i}", Severity.ERROR, Stage.SHELL)
def rule_{i}(one: Fact{i}) -> Finding | None:
    """Something is wrong.

    And why that is so.
    """
    if one.size is None:
        return Finding(Text("{{size}} is wrong", size=one.size))
    return None
'''


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def main(folder: Path) -> None:
    (folder / "further_facts.py").write_text(
        FACTS + "".join(FACT.format(i=i) for i in range(COUNT))
    )
    (folder / "rules").mkdir()
    rows = "".join(RULE.format(i=i) for i in range(COUNT))
    (folder / "rules/further.py").write_text(RULES + rows)
    sys.path.insert(0, str(folder))
    # Compiled as pip does it at the installation.
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(folder)], check=True)
    facts = milliseconds(lambda: __import__("further_facts"))
    rules: list[Rule] = []
    loading = milliseconds(lambda: rules.extend(load_rules(folder / "rules")))
    running = milliseconds(lambda: check(rules, Facts(Live({}))))
    print(f"a further fact: {facts / COUNT:.3f} ms")
    print(f"a further rule: {loading / COUNT:.3f} ms to load, {running / COUNT:.3f} ms to run")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
