"""`python -m tests.assumptions VERSION…` reads the wheels of these vLLMs with doctor/consumers and
says what is otherwise than expected.versions says. `newest`: whatever the index has.

Exit code 1 where something cannot be read, or a known version is read otherwise than expected; of a
newer version, what differs from the newest known one is told.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

from packaging.version import Version

from tests import online
from tests.assumptions.expected import KNOWN, expected
from tests.assumptions.readers import UNREADABLE, answers
from tests.assumptions.wheels import environment


def read(version: str) -> dict[str, str]:
    """The answer to each question about a version. Raises as `online.wheel` does."""
    with contextlib.ExitStack() as closing:
        site = Path(closing.enter_context(tempfile.TemporaryDirectory())).resolve()
        return dict(answers(environment(version, site, closing)))


def check(version: str) -> bool:
    """Prints what is otherwise; whether nothing is that should not be."""
    if version == "newest":
        version = str(online.versions("vllm")[-1])
    known = version in KNOWN
    base = (
        version if known else max((v for v in KNOWN if Version(v) < Version(version)), key=Version)
    )
    wanted, found = expected(base), read(version)
    unreadable = [q for q, answer in found.items() if answer.startswith(UNREADABLE)]
    other = [q for q in {**wanted, **found} if wanted.get(q) != found.get(q)]
    what = "as expected" if known else f"as in {base}"
    print(
        f"{version:<10} {len(found) - len(unreadable):>3} read {len(unreadable):>3} unreadable "
        f"{len(found) - len(other):>3} {what}"
    )
    for question in other:
        print(f"    {question}: {found.get(question)}\n        ({base}: {wanted.get(question)})")
    return not unreadable and not (known and other)


if __name__ == "__main__":
    asked = sys.argv[1:] or [*KNOWN, "newest"]
    sys.exit(sum(not check(version) for version in asked) > 0)
