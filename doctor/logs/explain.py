"""From the hits in a log to one explanation: which line is the root cause, and what only follows.

A log holds one start of a server, or several, of which the last one counts. In it the first cause
that stopped the server is the primary one; wrappers and consequences are symptoms; and where a
failure is told that no signature knows, that is said instead of a guess.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from doctor.exits import FINDINGS, HEALTHY, UNKNOWN
from doctor.logs.budget import Budget
from doctor.logs.found import Attempt, Found, Unknown, is_bad
from doctor.logs.index import SignatureIndex, Skim
from doctor.logs.judge import JudgedAttempt, LogFinding, LogVerdict, judge_attempt
from doctor.logs.lines import (
    LogLine,
    Surroundings,
    enveloped,
    owner,
    placed,
    split,
    tells_of_work,
    unwrapped,
)
from doctor.logs.localised import InEnglish
from doctor.logs.prefix import without_unknown_prefix
from doctor.logs.scan import Hit
from doctor.logs.traceback import Block, Failure
from doctor.redact import beginning
from doctor.signatures import EXPLAINING, FAILURE_ROLES, LEVELS, Level, Signature

_SURE, _LOOKS, _LOOK_EVERY = 1, 50, 1 << 20
"""How often in an attempt a row has the surroundings of a line looked at in any case, how often
while the budget lasts, and then once in how many bytes. The last line is always looked at."""
_GLANCES = 6
"""So often a row has a line alone looked at that may fit it, when the budget is used up."""
_FAILURE, _HARMLESS = -1, -2
"""What all rows of these roles share their looks under."""
_PLAIN = ("harmless", "start", "ready", "stop", "platform", *FAILURE_ROLES)
"""Roles of rows that give no values and are taken as they are."""
_JUDGED = 50
"""Units of the budget that it takes to judge an attempt."""
_MANY, _NOW_AND_THEN = 100, 8
"""From so many rows on that had their share, these are searched for in one stretch of so many."""
_MARKS = ("start", "ready", "stop")
"""Roles of rows that tell in what state the server is."""
_OF_NO_FAILURE = ("harmless", "platform", "stop")
"""Roles of rows of which no further line says more."""
_BANNER = 12
"""Lines that a start prints before the one that is known as a start, and before any line that are
looked at for what it does not say itself."""
_EARLIER = 20
"""So many earlier starts that failed are told of."""
_FOLLOWING = 100
"""Lines after a failure within which a process that works on says so."""
_FAILURES = 16
"""So many failures of an attempt are looked at as they come; of more, the last ones."""
_LAST = 16
_KEPT = 50
_COUNTED = 100
"""After so many harmless lines of a kind, further ones are counted by their literal alone."""
_SAID, _BEGUN = 400, 20
_KEPT_OF = 4 << 10
"""Characters that are kept of a line."""
_ANSWERED = re.compile(r'"(?:GET|POST) \S+ HTTP/1\.[01]" [24]\d\d')
_REFUSED = re.compile(r'"POST \S+ HTTP/1\.[01]" ([45])\d\d')
_SERVER = re.compile(r"Started server process \[(\d+)\]")
_OF_A_REQUEST = "Exception in ASGI application"
"""What uvicorn says above the failure of a request."""
_IGNORED = "Exception ignored in"
"""What Python says above a traceback that nothing comes of."""
_SERVED = re.compile(r'"POST \S+ HTTP/1\.[01]\\?" 2\d\d')

EXITS: Mapping[LogVerdict, int] = {
    "explained": FINDINGS,
    "unrecognised": UNKNOWN,
    "symptom": UNKNOWN,
    "nothing-found": HEALTHY,
    "too-repetitive": UNKNOWN,
}


@dataclass(frozen=True)
class Harmless:
    id: str
    line: int
    count: int
    log: str = ""


@dataclass(frozen=True)
class Earlier:
    """An earlier attempt that failed: `id` None where no signature knows why."""

    line: int
    id: str | None
    log: str = ""


@dataclass(frozen=True)
class Explanation:
    """`primary`: the id to look at first. `ready`: the server of the last attempt served.
    `restarting`: the last start neither failed nor got ready, and this is about the one before."""

    verdict: LogVerdict
    primary: str | None
    findings: tuple[LogFinding, ...]
    unknown: Unknown | None
    harmless: tuple[Harmless, ...]
    earlier: tuple[Earlier, ...]
    attempts: int
    ready: bool
    restarting: bool
    lines: int
    skimmed: int = 0
    """Lines that were not looked at one by one, for there were too many that could be something."""
    certain: bool = False
    """The primary one is a cause by itself."""
    time: str | None = None
    """When that was, or the failure."""

    @property
    def exit_code(self) -> int:
        return EXITS[self.verdict]


def explain_log(
    blocks: Iterable[bytes], index: SignatureIndex, budget: Budget | None = None
) -> Explanation:
    """Reads the log to its end, in memory of a fixed size and time linear in it."""
    return _Reading(index, budget or Budget()).read(blocks)


class _Reading:
    """The state while a log is read."""

    def __init__(self, index: SignatureIndex, budget: Budget) -> None:
        self._index = index
        self._budget = budget
        self._english = InEnglish()
        self._attempt = Attempt()
        self._attempts = 0
        self._earlier: deque[Earlier] = deque(maxlen=_EARLIER)
        self._failed: JudgedAttempt | None = (
            None  # the start before this one, if that is what it did
        )
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
        english = self._english.read(without_unknown_prefix(blocks))
        for hit in self._index.scanner.hits(english, self._budget, self):
            around = Surroundings(hit, self._budget)
            rows = self._index.rows_of(hit.literals)
            self._budget.spend(len(rows) * (1 + (hit.end - hit.start >> 11)))
            for number, row in rows:
                if row.role in FAILURE_ROLES:
                    self._failure(row, hit, around)
                else:
                    self._take(number, row, hit, around)
        self._look_at_passed()
        for hit in sorted(self._recent, key=lambda hit: hit.offset):
            self._look_at_failure(Block.at(hit))
        self._drop_unless_last(self._index.scanner.tail, self._index.scanner.base)
        return self._conclude()

    def wanted(self, stretch: Hit) -> Iterable[int]:
        """The literals of rows to which a further line may tell more than that it is there again.
        Where they had their share, the last such line is kept for the end."""
        kept = stretch.apart()
        rows = self._fitting(stretch.text)
        weary = rows & self._weary
        self._unseen = self._unseen or not all(map(self._is_settled, weary))
        settled = {number for number in rows - weary if self._is_settled(number)}
        for number in weary | settled:
            if self._index.rows[number].role not in _OF_NO_FAILURE:
                self._passed[number] = kept
        fresh = rows - weary - settled
        for number in fresh:
            self._glance(number)
        return {self._index.literal_of[number] for number in fresh}

    def fits(self, line: bytes, literal: int) -> bool:
        """Whether a row of the literal may fit this line."""
        self._skim = self._skim or self._index.skim()
        rows = self._skim.may_fit(line)
        return any(self._index.literal_of[number] == literal for number in rows)

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
        """Whether a row is found, and no further line makes it a more certain or a worse one; or it
        tells of no failure, and had its share."""
        row = self._index.rows[number]
        if row.role == "stop":
            return self._attempt.stopped < math.inf
        if row.role == "harmless":
            return number in self._weary or row.id in self._harmless
        if row.role == "platform":
            return number in self._weary or self._attempt.elsewhere
        known = self._attempt.found.get(number)
        return known is not None and not known.outlived and known.count >= known.row.times

    def _glance(self, number: int) -> None:
        """Counts one more line that a row has looked at though the budget is used up."""
        row = self._index.rows[number]
        if row.role not in _MARKS:
            shared = _FAILURE if row.role in FAILURE_ROLES else number
            self._glances[shared] += 1
            if self._glances[shared] >= _GLANCES:
                self._weary.add(number)

    def _look_at_passed(self) -> None:
        """The last lines that rows were not allowed to look at: what ends a server stands last."""
        for number, stretch in sorted(self._passed.items(), key=lambda one: one[1].offset):
            hit = self._index.scanner.last(stretch, self._index.literal_of[number])
            row = self._index.rows[number]
            if hit is None or hit.offset < self._began:
                continue
            if row.role in FAILURE_ROLES:
                self._recent.append(hit)
            else:
                self._looks.pop(number, None)
                self._take(number, row, hit, Surroundings(hit, self._budget))

    def _take(self, number: int, row: Signature, hit: Hit, around: Surroundings) -> None:
        if row.role == "harmless":
            self._count(row, hit, around)
            return
        if row.role == "platform":
            self._runs_elsewhere(number, row, hit, around)
            return
        if row.stage and (row.stage == "run") != self._is_serving(around):
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
        if row.role in _MARKS:
            self._mark(row, hit, around)
        else:
            found.count += known.count if known else 0
            self._attempt.found[number] = found

    def _mark(self, row: Signature, hit: Hit, around: Surroundings) -> None:
        """The server begins to start, is ready, or is told to end."""
        if row.role == "start":
            self._begin(hit, around.alone.process)
        elif row.role == "ready" and self._is_ours(around):
            self._serves(hit.offset)
        elif row.role == "stop" and self._attempt.last_bad < 0:
            self._attempt.stopped = min(self._attempt.stopped, hit.offset)

    def _runs_elsewhere(self, number: int, row: Signature, hit: Hit, around: Surroundings) -> None:
        attempt = self._attempt
        attempt.elsewhere = attempt.elsewhere or self._fit(number, row, hit, around) is not None

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
        found = Found(row, hit.line, hit.offset, line.text[:_KEPT_OF], values, last=hit.offset)
        if row.role in _PLAIN and not (row.near or row.unless):
            return found
        if lines.is_quoted:
            return None
        if (row.near or row.unless) and not (far and row.fits_among(lines.text())):
            return None
        if row.role in _PLAIN:
            return found
        found.warned = _below("error", line.level)
        found.time = _time(line, lines.before if far else ())
        if row.role != "symptom":
            if far:
                found.went_on, found.served = self._aftermath(lines.after, line.process)
            found.soft = _below(row.level, _level(line, lines, found.went_on))
        return found

    def _matching(
        self, number: int, row: Signature, hit: Hit, lines: Surroundings
    ) -> tuple[LogLine, Mapping[str, str], bool] | None:
        """(the line that fits the pattern, the values, whether it was looked at from all sides)."""
        if row.role in _PLAIN and not (row.near or row.unless):
            values = row.values(lines.alone.text)
            if values is not None:
                return lines.alone, values, False
        far = self._may_look(number, hit)
        for line in lines.readings() if far else (lines.alone,):
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

    def _aftermath(self, after: Iterable[LogLine], process: str | None) -> tuple[bool, bool]:
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
        if explained and row.role not in EXPLAINING:
            # Of what a terminal broke off, the first piece has it.
            processes = (around.alone.process, around.whole.process)
            explained = [u for u in explained if u.process in processes]
        for one in explained:
            self._attempt.unknown.remove(one)

    def _begin(self, hit: Hit, process: str | None) -> None:
        """A server begins to start. What was told since the last failure, or when there was none,
        is already of this start: some warnings come before its banner."""
        attempt, last_bad = self._attempt, self._attempt.last_bad
        self._drop_unless_last(hit.window, hit.base, hit.start, _BANNER)
        hung = any(f.row.last for f in attempt.found.values())
        if last_bad >= 0 or hung or attempt.ready or not self._attempts:
            self._attempts += 1  # else it is its banner's second line
        if last_bad >= 0 or hung or attempt.ready:
            self._budget.spend(_JUDGED + len(attempt.found))
            told = judge_attempt(attempt, self._index)
            failed = told.verdict != "nothing-found"
            self._failed = told if failed else self._failed
            if failed and (last_bad >= 0 or hung):
                self._earlier.append(Earlier(told.line, told.id))
        fresh = Attempt()
        fresh.elsewhere = attempt.elsewhere
        fresh.started_by = process or (attempt.started_by if last_bad < 0 else None)
        if not (attempt.ready or hung):
            fresh.found = {
                n: f for n, f in attempt.found.items() if f.last > last_bad and not f.is_bad
            }
        self._attempt = fresh
        self._began = hit.offset
        self._look_anew(hit.offset)

    def _is_serving(self, around: Surroundings) -> bool:
        """Whether the server got ready, as far as the log tells; of some the beginning is lost."""
        return self._attempt.ready or bool(_SERVED.search(around.text()))

    def _is_ours(self, around: Surroundings) -> bool:
        """Whether it is vLLM's own server that got ready. Either the process stands before the
        line, or, with uvicorn's own format, the process that uvicorn names is that of an API
        server."""
        started = self._attempt.started_by
        if not started or around.alone.process:
            return True
        named = [
            found[1] for one in around.before[-_BANNER:] if (found := _SERVER.search(one.text))
        ]
        servers = {one.process for one in around.before if one.process} | {started}
        return bool(named) and any(
            one.endswith(f"pid={named[-1]}") for one in servers if one.lower().startswith("api")
        )

    def _look_anew(self, offset: int) -> None:
        """Another attempt, other looks; but not for each of thousands of short ones."""
        self._passed.clear()
        if offset - self._renewed >= _LOOK_EVERY and self._budget.is_left:
            self._looks.clear()
            self._renewed = offset

    def _serves(self, offset: int) -> None:
        attempt = self._attempt
        attempt.ready = True
        self._failed = None
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
        if row.unless and not row.fits_among(around.text()):
            return
        logged = row.role == "logged"
        if logged and (around.alone.level != "error" or not around.alone.text.strip()):
            return
        self._attempt.failures += 1
        if self._attempt.failures > _FAILURES:
            self._recent.append(hit.apart())
        elif not around.is_quoted:
            # Lines that are long by chance seem to go on in it: then it is said at their level.
            alone = around.alone.level is None and row.values(around.alone.text) is not None
            broken = not (alone and around.whole.level in ("debug", "info"))
            rest = around.may_be_a_rest
            self._look_at_failure(Block.at(hit, broken), around.before, logged, rest)

    def _look_at_failure(
        self,
        block: Block,
        before: Sequence[LogLine] = (),
        logged: bool = False,
        rest: bool = False,
    ) -> None:
        self._budget.spend_on(block.data)
        failure, lines = block.failure(before), block.lines
        following = lines[failure.length : failure.length + _FOLLOWING]
        after, _ = self._aftermath(following, lines[0].process)
        refused = _refused(following) if self._attempt.ready else ""
        if _OF_A_REQUEST in lines[0].text:
            refused = refused or "4"  # unless it is said, it may be the client's affair
        self._failure_until = block.place(failure.length)
        if _below("error", lines[0].level or (owner(before) if after else None)):
            return
        header = next((one.text for one in reversed(before) if one.text.strip()), "")
        if self._is_told(header):
            return
        # Words that go on from a record that is no error are of its level.
        goes_on = rest and before and lines[0].level is None
        goes_on = goes_on and _below("error", before[-1].level)
        if goes_on and lines[0].text.strip().find(failure.said[:_BEGUN]) > 0:
            return
        noted = Unknown(
            block.line(failure.line),
            beginning(failure.said, _SAID),
            failure.raised_in,
            failure.called_from,
            lines[failure.line].place,
            block.place(0),
            self._failure_until,
            self._bottom(block, failure),
            lines[0].process,
            after,
            refused,
            logged and not failure.is_exception,
            _time(lines[failure.line], before),
        )
        known = any(_explains(f.row, f.last, noted) for f in self._attempt.found.values())
        if not known and len(self._attempt.unknown) < _KEPT:
            self._attempt.unknown.append(noted)

    def _bottom(self, block: Block, failure: Failure) -> tuple[int, int]:
        """Where the innermost exception is. Of several lines in one of JSON it has no place of its
        own: there a wrapper stands beside it, unless it is one itself."""
        begin, end = (block.place(number) for number in failure.bottom)
        inside = "\n" in block.lines[0].text
        wraps = inside and any(
            row.role in ("symptom", "harmless") and row.values(failure.said) is not None
            for row in self._index.in_line(failure.said.encode(errors="replace"))
        )
        return (begin, begin if inside and not wraps else end)

    def _is_told(self, header: str) -> bool:
        """Whether the line above a traceback says what it is about, and a row was found in it, or
        that it is ignored."""
        found = {f.row.id for f in self._attempt.found.values()}
        return header.lstrip().startswith(_IGNORED) or any(
            row.role in ("cause", "request")
            and not (row.last and row.role == "cause")  # a hang is not what failed
            and row.id in found
            and row.values(header) is not None
            for row in self._index.in_line(header.encode(errors="replace"))
        )

    def _drop_unless_last(
        self, window: bytes, base: int, until: int | None = None, spare: int = 0
    ) -> None:
        """What counts only where a start ends with it: a hang, and requests that were refused.
        `window`, from the byte `base` of the log on, up to `until` holds its last lines, and
        `spare` of the next one."""
        found, unknown = self._attempt.found, self._attempt.unknown
        last = {number: one for number, one in found.items() if one.row.last}
        requests = {n: one.last for n, one in last.items() if one.row.role == "request"}
        refused = [u.end for u in unknown if u.refused == "4"]
        since = min([*requests.values(), *refused], default=None)
        answered = _last_answered(window, base, until, since)
        for number, one in last.items():
            if number in requests:
                is_last = one.last > answered
            else:
                is_last = self._is_last(one, window, base, until, spare)
            if not is_last:
                del found[number]
        unknown[:] = [u for u in unknown if u.refused != "4" or u.end > answered]

    def _is_last(self, one: Found, window: bytes, base: int, until: int | None, spare: int) -> bool:
        if one.last < base:
            return False
        rest = window[one.last - base : until]
        self._budget.spend_on(rest)
        lines = [text for _, text in unwrapped(split(rest))]
        return not any(map(self._tells_of_work, lines[1 : max(1, len(lines) - spare)]))

    def _tells_of_work(self, text: str) -> bool:
        if not tells_of_work(enveloped(text)):
            return False
        rows = self._index.in_line(text.encode(errors="replace"))
        return not any(r.last or r.role in ("symptom", "harmless") for r in rows)

    def _conclude(self) -> Explanation:
        told = judge_attempt(self._attempt, self._index)
        again = told.verdict == "nothing-found" and not self._attempt.ready and self._failed
        if again:
            told = again
            if self._earlier and self._earlier[-1].line == told.line:
                self._earlier.pop()
        verdict = told.verdict
        if verdict == "nothing-found" and self._unseen:
            verdict = "too-repetitive"
        harmless = (Harmless(i, f.line, f.count) for i, f in self._harmless.items())
        printed = self._english.printed
        return Explanation(
            verdict,
            told.primary.row.id if told.primary else None,
            told.findings(printed),
            told.quoted(printed),
            tuple(sorted(harmless, key=lambda h: h.line)),
            tuple(self._earlier),
            max(1, self._attempts),
            self._attempt.ready,
            bool(again),
            self._index.scanner.lines,
            self._index.scanner.skimmed,
            told.certain,
            told.time,
        )


def _explains(row: Signature, offset: int, failure: Unknown) -> bool:
    """Whether a row that is found there is found in the failure, where it explains it."""
    whole = (failure.offset, failure.end)
    begin, end = whole if row.role in EXPLAINING else failure.bottom
    return begin <= offset < end


def _last_answered(window: bytes, base: int, until: int | None, since: int | None) -> int:
    """Where in the log the last request `since` then was answered, as far as the `window` tells;
    -1: nowhere. What is wrong with one that others follow is its client's affair."""
    if since is None:
        return -1
    begin = max(0, since - base)
    rest = window[begin:until]
    answered = [number for number, text in unwrapped(split(rest)) if _SERVED.search(text)]
    return base + begin + placed(rest)[answered[-1]] if answered else -1


def _refused(following: Iterable[LogLine]) -> str:
    """As of the Unknown: of the next request of which these lines tell."""
    for line in following:
        if found := _REFUSED.search(line.text):
            return found[1]
        if _ANSWERED.search(line.text):
            break
    return ""


def _time(line: LogLine, before: Sequence[LogLine]) -> str | None:
    """What the line says of when it was printed, or the last one before that says so."""
    near = (one.time for one in itertools.islice(reversed(before), _BANNER) if one.time)
    return line.time or next(near, None)


def _level(line: LogLine, lines: Surroundings, after: bool) -> Level | None:
    """That of the line's record; a line without one belongs to a warning before it only where the
    process worked on."""
    return line.level or (owner(lines.before) if after else None)


def _below(least: Level, level: Level | None) -> bool:
    return level is not None and LEVELS.index(level) < LEVELS.index(least)
