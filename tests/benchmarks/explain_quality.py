"""How often `explain` names the right cause: precision and recall over the corpus, per ailment.

    python -m tests.benchmarks.explain_quality

A signature may have been written from the very log that it is measured on. Therefore each log is
also judged leave-one-out: without the rows of its ailment that neither another log nor the software
itself (in the lab of tests/real_stack) confirms. Prints a Markdown table of the ailments, worst
first; those for which all is right are summed up in one row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from doctor.logs.budget import Budget
from doctor.logs.explain import explain_log
from doctor.logs.index import SignatureIndex, shipped_index
from doctor.logs.lines import Surroundings
from doctor.signatures import shipped_catalogue
from tests.corpus import Logged, explained, logs
from tests.real_stack import lab
from tests.real_stack.texts import is_there


@dataclass
class Score:
    """Of one ailment: its logs, how many were named rightly (with all rows, without those that
    nothing but their own log confirms), and logs of others that were given its name."""

    logs: int = 0
    right: int = 0
    left_out: int = 0
    wrong: int = 0
    real: int = 0
    missed: list[str] = field(default_factory=list)


def main() -> None:
    corpus = logs()
    installed = (lab.environment(lab.REFERENCE), lab.environment(lab.COHERENT), lab.cpu_server())
    in_software = {
        i for i, r in enumerate(shipped_catalogue().signatures) if is_there(r, installed)
    }
    scores: defaultdict[str, Score] = defaultdict(Score)
    matching = {one.name: rows_in(one) for one in corpus}
    confirmed = Counter(number for rows in matching.values() for number in rows)
    for one in corpus:
        score = scores[one.folder]
        told = explained(one.data)
        score.logs += 1
        score.real += one.is_real
        score.right += (told.verdict, told.primary) == (one.verdict, one.primary)
        if told.primary and told.primary != one.primary:
            scores[told.primary].wrong += 1
        alone = {n for n in matching[one.name] - in_software if confirmed[n] == 1}
        rows = [
            row for number, row in enumerate(shipped_catalogue().signatures) if number not in alone
        ]
        again = explain_log([one.data], SignatureIndex(rows)) if alone else told
        if (again.verdict, again.primary) == (one.verdict, one.primary):
            score.left_out += 1
        else:
            score.missed.append(one.name)
    show(scores)


def rows_in(one: Logged) -> set[int]:
    """The numbers of the rows of its own ailment whose literal is in a line that they fit."""
    found = set()
    for hit in shipped_index().scanner.hits([one.data]):
        for number, row in shipped_index().rows_of(hit.literals):
            lines = Surroundings(hit, Budget())
            if row.id == one.folder and any(
                row.values(line.text) is not None for line in lines.readings()
            ):
                found.add(number)
    return found


def show(scores: dict[str, Score]) -> None:
    print("| ailment | logs | real | recall | leave-one-out | precision |")
    print("| --- | --- | --- | --- | --- | --- |")
    perfect = [s for s in scores.values() if s.left_out == s.logs and not s.wrong]
    for name, one in sorted(scores.items(), key=lambda item: item[1].left_out / item[1].logs):
        if one.left_out < one.logs or one.wrong:
            row(name, one)
    row(f"{len(perfect)} others", total(perfect))
    row("**all**", total(list(scores.values())))
    missed = [name for one in scores.values() for name in one.missed]
    print(f"\nnot named without the rows that nothing else confirms: {', '.join(missed)}")


def total(scores: list[Score]) -> Score:
    made = Score()
    for one in scores:
        made.logs += one.logs
        made.right += one.right
        made.left_out += one.left_out
        made.wrong += one.wrong
        made.real += one.real
    return made


def row(name: str, one: Score) -> None:
    precision = one.right / (one.right + one.wrong) if one.right + one.wrong else 1.0
    print(
        f"| {name} | {one.logs} | {one.real} | {one.right / one.logs:.2f} | "
        f"{one.left_out / one.logs:.2f} | {precision:.2f} |"
    )


if __name__ == "__main__":
    main()
