"""From the hits in a log to one explanation: which line is the root cause, and what only follows.

A log holds one start of a server, or several, of which the last one counts. In it the first cause
that stopped the server is the primary one; wrappers and consequences are symptoms; and where a
failure is told that no signature knows, that is said instead of a guess.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from doctor.exits import FINDINGS, HEALTHY, UNKNOWN
from doctor.logs.budget import Budget
from doctor.logs.found import Attempt, Found, Unknown, is_bad
from doctor.logs.index import Index, Skim
from doctor.logs.judge import LogFinding, Verdict, judge
from doctor.logs.lines import (
    Line,
    Surroundings,
    enveloped,
    owner,
    split,
    tells_of_work,
    unwrapped,
)
from doctor.logs.prefix import without_unknown_prefix
from doctor.logs.scan import Hit
from doctor.logs.traceback import Block
from doctor.redact import redact
from doctor.signatures import LEVELS, Level, Signature

_SURE, _LOOKS, _LOOK_EVERY = 1, 50, 1 << 20
"""How often in an attempt a row has the surroundings of a line looked at in any case, how often
while the budget lasts, and then once in how many bytes. The last line is always looked at."""
_GLANCES = 6
"""So often a row has a line alone looked at that may fit it, when the budget is used up."""
_FAILURE, _HARMLESS = -1, -2
"""What all rows of these roles share their looks under."""
_PLAIN = ("harmless", "start", "ready", "stop", "failure")
"""Roles of rows that give no values and are taken as they are."""
_JUDGED = 50
"""Units of the budget that it takes to judge an attempt."""
_MANY, _NOW_AND_THEN = 100, 8
"""From so many rows on that had their share, these are searched for in one stretch of so many."""
_MARKS = ("start", "ready", "stop")
"""Roles of rows that tell in what state the server is."""
_BANNER = 12
"""Lines that a start prints before the one that is known as a start."""
_FOLLOWING = 100
"""Lines after a failure within which a process that works on says so."""
_FAILURES = 30
"""So many failures of an attempt are looked at as they come; of more, the last ones."""
_LAST = 16
_KEPT = 50
_COUNTED = 100
"""After so many harmless lines of a kind, further ones are counted by their literal alone."""
_SAID = 400
_ANSWERED = re.compile(r'"(?:GET|POST) \S+ HTTP/1\.[01]" [24]\d\d')
_SERVED = re.compile(r'"POST \S+ HTTP/1\.[01]" 2\d\d')

EXITS: Mapping[Verdict, int] = {
    "explained": FINDINGS,
    "unrecognised": UNKNOWN,
    "nothing-found": HEALTHY,
    "too-repetitive": UNKNOWN,
}


@dataclass(frozen=True)
class Harmless:
    id: str
    line: int
    count: int


@dataclass(frozen=True)
class Earlier:
    """An earlier attempt that failed: `id` None where no signature knows why."""

    line: int
    id: str | None


@dataclass(frozen=True)
class Explanation:
    """`primary`: the id to look at first. `ready`: the server of the last attempt served."""

    verdict: Verdict
    primary: str | None
    findings: tuple[LogFinding, ...]
    unknown: Unknown | None
    harmless: tuple[Harmless, ...]
    earlier: tuple[Earlier, ...]
    attempts: int
    ready: bool
    lines: int
    skimmed: int = 0
    """Lines that were not looked at one by one, for there were too many that could be something."""

    @property
    def exit_code(self) -> int:
        return EXITS[self.verdict]


def explain(blocks: Iterable[bytes], index: Index, budget: Budget | None = None) -> Explanation:
    """Reads the log to its end, in memory of a fixed size and time linear in it."""
    return _Reading(index, budget or Budget()).read(blocks)


class _Reading:
    """The state while a log is read."""

    def __init__(self, index: Index, budget: Budget) -> None:
        self._index = index
        self._budget = budget
        self._attempt = Attempt()
        self._attempts = 0
        self._earlier: deque[Earlier] = deque(maxlen=20)
        self._harmless: dict[str, Found] = {}
        self._looks: dict[int, tuple[int, int]] = {}
        self._glances: Counter[int] = Counter()
        self._weary: set[int] = set()
        self._skim: Skim | None = None
        self._few: Skim | None = None
        self._stretches = self._left_out = 0
        self._renewed = 0
        self._began = 0
        self._passed: dict[int, Hit] = {}
        self._unseen = False
        self._recent: deque[Hit] = deque(maxlen=_LAST)
        self._failure_until = -1

    def read(self, blocks: Iterable[bytes]) -> Explanation:
        unprefixed = without_unknown_prefix(blocks)
        for hit in self._index.scanner.hits(unprefixed, self._budget, self):
            around = Surroundings(hit, self._budget)
            rows = self._index.rows_of(hit.literals)
            self._budget.spend(len(rows) * (1 + (hit.end - hit.start >> 11)))
            for number, row in rows:
                if row.role == "failure":
                    self._failure(row, hit, around)
                else:
                    self._take(number, row, hit, around)
        self._look_at_passed()
        for hit in sorted(self._recent, key=lambda hit: hit.offset):
            self._look_at_failure(Block.at(hit))
        self._drop_unless_last()
        return self._conclude()

    def wanted(self, stretch: Hit) -> Iterable[int]:
        """The literals of rows to which a further line may tell more than that it is there again.
        Where they had their share, the last such line is kept for the end."""
        kept = stretch.apart()
        rows = self._fitting(stretch.text)
        weary = rows & self._weary
        self._passed.update(dict.fromkeys(weary, kept))
        self._unseen = self._unseen or not all(map(self._is_settled, weary))
        literals = set()
        for number in rows - weary:
            if self._is_settled(number):
                self._passed[number] = kept
            elif self._may_glance(number):
                literals.add(self._index.literal_of[number])
        return literals

    def _fitting(self, text: bytes) -> set[int]:
        """The rows that may fit a line; where very many had their share, those only now and then,
        for it is they that take time."""
        self._stretches += 1
        if len(self._weary) < _MANY or self._stretches % _NOW_AND_THEN == 0:
            self._skim = self._skim or self._index.skim()
            return self._skim.may_fit(text)
        if self._few is None or len(self._weary) >= self._left_out + _MANY:
            self._few = self._index.skim(self._weary)
            self._left_out = len(self._weary)
        return self._few.may_fit(text)

    def _is_settled(self, number: int) -> bool:
        """Whether a row is found, and no further line makes it a more certain or a worse one."""
        known = self._attempt.found.get(number)
        return known is not None and not known.outlived and known.count >= known.row.times

    def _may_glance(self, number: int) -> bool:
        """Whether a row may have one more line looked at though the budget is used up."""
        row = self._index.rows[number]
        if row.role == "harmless":
            return row.id not in self._harmless
        if row.role not in _MARKS:
            shared = _FAILURE if row.role == "failure" else number
            self._glances[shared] += 1
            if self._glances[shared] >= _GLANCES:
                self._weary.add(number)
        return True

    def _look_at_passed(self) -> None:
        """The last lines that rows were not allowed to look at: what ends a server stands last."""
        for number, stretch in sorted(self._passed.items(), key=lambda one: one[1].offset):
            hit = self._index.scanner.last(stretch, self._index.literal_of[number])
            row = self._index.rows[number]
            if hit is None or hit.offset < self._began:
                continue
            if row.role == "failure":
                self._recent.append(hit)
            else:
                self._looks.pop(number, None)
                self._take(number, row, hit, Surroundings(hit, self._budget))

    def _take(self, number: int, row: Signature, hit: Hit, around: Surroundings) -> None:
        if row.role == "harmless":
            self._count(row, hit, around)
            return
        known = self._attempt.found.get(number)
        if known and (
            not known.outlived
            or _below(row.level, around.alone.level)
            or not self._may_look(number, hit)
        ):
            self._again(known, hit, around)
            return
        found = self._fit(number, row, hit, around)
        if found is None:
            return
        if known and found.outlived:
            self._again(known, hit, around)
            return
        self._knows(row, hit, around)
        if found.soft:
            self._harmless.setdefault(row.id, dataclasses.replace(found, count=0)).count += 1
        if row.role == "start":
            self._begin(hit)
        elif row.role == "ready":
            self._serves(hit.offset)
        elif row.role == "stop":
            if self._attempt.last_bad < 0:
                self._attempt.stopped = min(self._attempt.stopped, hit.offset)
        else:
            found.count += known.count if known else 0
            self._attempt.found[number] = found

    def _count(self, row: Signature, hit: Hit, around: Surroundings) -> None:
        """A harmless line: past some, by its literal alone."""
        known = self._harmless.get(row.id)
        if known is None or known.count < _COUNTED:
            found = self._fit(_HARMLESS, row, hit, around)
            if found is None:
                return
            self._knows(row, hit, around)
            known = known or self._harmless.setdefault(row.id, dataclasses.replace(found, count=0))
        known.count += 1

    def _again(self, known: Found, hit: Hit, around: Surroundings) -> None:
        known.count += 1
        known.last = max(known.last, hit.offset)
        self._knows(known.row, hit, around)

    def _fit(self, number: int, row: Signature, hit: Hit, lines: Surroundings) -> Found | None:
        """What the row makes of the line; None where its pattern or the surroundings say no."""
        looked = self._matching(number, row, hit, lines)
        if looked is None:
            return None
        line, values, far = looked
        found = Found(row, hit.line, hit.offset, line.text, values, last=hit.offset)
        if row.role in _PLAIN:
            return found
        if lines.is_code:
            return None
        if (row.near or row.unless) and not (far and row.fits_among(lines.text())):
            return None
        if row.role != "symptom":
            if far:
                found.went_on, found.served = self._aftermath(lines.after, line.process)
            found.soft = _below(row.level, _level(line, lines, found.went_on))
        return found

    def _matching(
        self, number: int, row: Signature, hit: Hit, lines: Surroundings
    ) -> tuple[Line, Mapping[str, str], bool] | None:
        """(the line that fits the pattern, the values, whether it was looked at from all sides)."""
        if row.role in _PLAIN:
            values = row.values(lines.alone.text)
            if values is not None:
                return lines.alone, values, False
        far = self._may_look(number, hit)
        for line in lines.own if far else (lines.alone,):
            values = row.values(line.text)
            if values is not None:
                return line, values, far
        return None

    def _may_look(self, number: int, hit: Hit) -> bool:
        """Whether a row may have the surroundings of one more line looked at, which takes time."""
        many, last = self._looks.get(number, (0, -_LOOK_EVERY))
        if hit.offset == last:
            return True
        again = many < _LOOKS or hit.offset - last >= _LOOK_EVERY
        if many >= _SURE and not (again and self._budget.is_left):
            if number >= 0:
                self._passed[number] = hit.apart()
            return False
        self._looks[number] = many + 1, hit.offset
        return True

    def _aftermath(self, after: Iterable[Line], process: str | None) -> tuple[bool, bool]:
        """Whether the process told of further work in these lines, and whether it answered
        requests. One without a name is vouched for only by lines without one, and by more of
        them; what a new start tells of is not its work; a server that answers is at work."""
        needed = 4 if process is None else 2
        work: list[int] = []
        served = False
        for number, line in enumerate(after):
            if served and len(work) >= needed and number > work[needed - 1] + _BANNER:
                break
            if not tells_of_work(line):
                continue
            roles = {row.role for row in self._index.in_line(line.text.encode(errors="replace"))}
            if "start" in roles:
                work = [one for one in work if one < number - _BANNER]
                break
            served = served or bool(_SERVED.search(line.text))
            if "harmless" not in roles and process == line.process:
                work.append(number)
            if self._attempt.ready and _ANSWERED.search(line.text):
                return True, True
        return len(work) >= needed, served and bool(work)

    def _knows(self, row: Signature, hit: Hit, around: Surroundings) -> None:
        """Strikes out the failures that this line explains: a cause anywhere in one; a wrapper or a
        harmless line only at the bottom, for above it they say nothing of what they wrap, and only
        of the same process."""
        explained = [u for u in self._attempt.unknown if _explains(row, hit.offset, u)]
        if explained and row.role not in _WHOLE:
            # Of what a terminal broke off, the first piece has it.
            processes = (around.alone.process, around.own[0].process)
            explained = [u for u in explained if u.process in processes]
        for one in explained:
            self._attempt.unknown.remove(one)

    def _begin(self, hit: Hit) -> None:
        """A server begins to start. What was told since the last failure, or when there was none,
        is already of this start: some warnings come before its banner."""
        attempt, last_bad = self._attempt, self._attempt.last_bad
        if last_bad >= 0 or attempt.ready or not self._attempts:  # else its banner's second line
            self._attempts += 1
        fresh = Attempt()
        if last_bad >= 0:
            self._budget.spend(_JUDGED + len(attempt.found))
            told = judge(attempt, self._index)
            if told.verdict != "nothing-found":
                line = told.unknown.line if told.unknown else told.findings[0].line
                self._earlier.append(Earlier(line, told.primary))
        if not attempt.ready:
            fresh.found = {
                n: f for n, f in attempt.found.items() if f.last > last_bad and not f.is_bad
            }
        self._attempt = fresh
        self._began = hit.offset
        self._look_anew(hit.offset)

    def _look_anew(self, offset: int) -> None:
        """Another attempt, other looks; but not for each of thousands of short ones."""
        self._passed.clear()
        if offset - self._renewed >= _LOOK_EVERY and self._budget.is_left:
            self._looks.clear()
            self._renewed = offset

    def _serves(self, offset: int) -> None:
        attempt = self._attempt
        attempt.ready = True
        attempt.survived.update((n, f) for n, f in attempt.found.items() if is_bad(f.row))
        attempt.found = {}
        attempt.unknown = []
        self._recent.clear()
        self._look_anew(offset)

    def _failure(self, row: Signature, hit: Hit, around: Surroundings) -> None:
        """Notes that something failed, for the case that no row knows it."""
        if hit.offset < self._failure_until:
            return
        if self._matching(_FAILURE, row, hit, around) is None:
            return
        self._attempt.failures += 1
        if self._attempt.failures > _FAILURES:
            self._recent.append(hit.apart())
        elif not around.is_code:
            # Lines that are long by chance seem to go on in it: then it is said at their level.
            alone = around.alone.level is None and row.values(around.alone.text) is not None
            broken = not (alone and around.own[0].level in ("debug", "info"))
            self._look_at_failure(Block.at(hit, broken), around.before)

    def _look_at_failure(self, block: Block, before: Sequence[Line] = ()) -> None:
        self._budget.spend_on(block.data)
        failure, lines = block.failure, block.lines
        following = lines[failure.length : failure.length + _FOLLOWING]
        after, _ = self._aftermath(following, lines[0].process)
        self._failure_until = block.place(failure.length)
        if _below("error", lines[0].level or (owner(before) if after else None)):
            return
        if before and self._is_told(before[-1].text):
            return
        noted = Unknown(
            block.line(failure.line),
            redact(failure.said)[:_SAID],
            failure.raised_in,
            failure.called_from,
            block.place(0),
            self._failure_until,
            (block.place(failure.bottom[0]), block.place(failure.bottom[1])),
            lines[0].process,
            after,
        )
        known = any(_explains(f.row, f.last, noted) for f in self._attempt.found.values())
        if not known and len(self._attempt.unknown) < _KEPT:
            self._attempt.unknown.append(noted)

    def _is_told(self, header: str) -> bool:
        """Whether the line above a traceback says what it is about, and a row knows that."""
        return any(
            row.role in ("cause", "request") and row.values(header) is not None
            for row in self._index.in_line(header.encode(errors="replace"))
        )

    def _drop_unless_last(self) -> None:
        """Hangs: they count only where the log ends with them."""
        found, scanner = self._attempt.found, self._index.scanner
        for number, one in list(found.items()):
            if not one.row.last:
                continue
            near = one.last >= scanner.base
            rest = unwrapped(split(scanner.tail[one.last - scanner.base :])) if near else []
            if not near or any(self._tells_of_work(text) for _, text in rest[1:]):
                del found[number]

    def _tells_of_work(self, text: str) -> bool:
        if not tells_of_work(enveloped(text)):
            return False
        rows = self._index.in_line(text.encode(errors="replace"))
        return not any(r.last or r.role in ("symptom", "harmless") for r in rows)

    def _conclude(self) -> Explanation:
        told = judge(self._attempt, self._index)
        verdict = told.verdict
        if verdict == "nothing-found" and self._unseen:
            verdict = "too-repetitive"
        harmless = (Harmless(i, f.line, f.count) for i, f in self._harmless.items())
        return Explanation(
            verdict,
            told.primary,
            told.findings,
            told.unknown,
            tuple(sorted(harmless, key=lambda h: h.line)),
            tuple(self._earlier),
            max(1, self._attempts),
            self._attempt.ready,
            self._index.scanner.lines,
            self._index.scanner.skimmed,
        )


_WHOLE = ("cause", "generic", "request")
"""Roles of rows that explain all of a failure, wherever in it they are found."""


def _explains(row: Signature, offset: int, failure: Unknown) -> bool:
    """Whether a row that is found there is found in the failure, where it explains it."""
    whole = (failure.offset, failure.end)
    begin, end = whole if row.role in _WHOLE else failure.bottom
    return begin <= offset < end


def _level(line: Line, lines: Surroundings, after: bool) -> Level | None:
    """That of the line's record; a line without one belongs to a warning before it only where the
    process worked on."""
    return line.level or (owner(lines.before) if after else None)


def _below(least: Level, level: Level | None) -> bool:
    return level is not None and LEVELS.index(level) < LEVELS.index(least)
