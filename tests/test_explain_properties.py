"""What holds for every log: nothing that surrounds the lines changes the primary cause, and no
bytes make the reader raise or take more than linear time."""

from __future__ import annotations

import functools
import random
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doctor.logs import regex, scan
from doctor.logs.explain import Explanation, explain_log
from doctor.logs.index import SignatureIndex
from doctor.signatures import shipped_catalogue
from tests.corpus import HEALTHY, Logged, explained, logs

LOGS = logs()
# What a terminal has broken is broken no further.
FEW = [one for one in LOGS if len(one.data) < 60_000 and "wrapped" not in one.name]


@functools.cache
def of(logged: Logged) -> Explanation:
    """What a log comes to as it lies there."""
    return explained(logged.data)


def verdict(told: Explanation) -> tuple[str, str | None]:
    return told.verdict, told.primary


def physical(data: bytes) -> list[bytes]:
    return re.split(rb"\r?\n|\r", data)


def seed_of(logged: Logged) -> random.Random:
    return random.Random(logged.name)  # noqa: S311


def in_docker(data: bytes, rng: random.Random) -> bytes:
    lines = physical(data)
    return b"\n".join(
        b"2026-11-25T10:%02d:%02d.%09dZ %s" % (i // 60 % 60, i % 60, rng.randrange(10**9), line)
        for i, line in enumerate(lines)
    )


def in_journald(data: bytes, rng: random.Random) -> bytes:
    pid = rng.randrange(10, 99999)
    return b"\n".join(b"Nov 25 10:00:00 node1 vllm[%d]: %s" % (pid, x) for x in physical(data))


def in_kubernetes(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(
        b"2026-11-25T10:00:00.%09dZ stderr F %s" % (rng.randrange(10**9), x) for x in physical(data)
    )


def of_compose(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b"vllm-%d  | %s" % (rng.randrange(1, 3), x) for x in physical(data))


def in_stern(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b"vllm-7d9c8-abcde vllm " + x for x in physical(data))


def in_srun(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b"%d: %s" % (rng.randrange(2), x) for x in physical(data))


def of_grep(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b"vllm.log:%d:%s" % (i, x) for i, x in enumerate(physical(data), 1))


def in_syslog(data: bytes, rng: random.Random) -> bytes:
    head = b"<30>1 2026-08-19T18:34:%02d.123456+02:00 node1 vllm 8727 - - %s"
    return b"\n".join(head % (i % 60, x) for i, x in enumerate(physical(data)))


def in_colour(data: bytes, rng: random.Random) -> bytes:
    """A colour somewhere in every line."""
    made = []
    for line in physical(data):
        at = rng.randrange(len(line) + 1)
        code = rng.choice([b"\x1b[0;31m", b"\x1b[0m", b"\x1b[1;36m", b"\x1b[K"])
        made.append(line[:at] + code + line[at:] + b"\x1b[0m")
    return b"\n".join(made)


def with_cr(data: bytes, rng: random.Random) -> bytes:
    return b"\r\n".join(physical(data))


def in_json(data: bytes, rng: random.Random) -> bytes:
    import json

    return b"\n".join(
        json.dumps({"log": x.decode("utf-8", "replace") + "\n", "stream": "stderr"}).encode()
        for x in physical(data)
    )


def with_nul(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b"\0" * rng.randrange(3) + x + b"\0" for x in physical(data))


def with_chatter(data: bytes, rng: random.Random) -> bytes:
    """Harmless lines anywhere between the lines of the log."""
    made = []
    for line in physical(data):
        if rng.random() < 0.2:
            made.append(rng.choice(CHATTER))
        made.append(line)
    return b"\n".join(made)


def indented(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b"    " + x for x in physical(data))


def behind_tabs(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b"\t" + x for x in physical(data))


def quoted_in_mail(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b"> " + x for x in physical(data))


def quoted_again(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b">> " + x for x in physical(data))


def in_a_list(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b"  - " + x if x.strip() else x for x in physical(data))


def in_a_table(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(b"| " + x + b" |" for x in physical(data))


def in_a_block_of_code(data: bytes, rng: random.Random) -> bytes:
    return "报错如下：\n```\n".encode() + data + b"\n```\nany ideas?"


def amid_chinese_words(data: bytes, rng: random.Random) -> bytes:
    return "启动失败，报错：".encode() + data.strip() + " 请问怎么解决？".encode()


def amid_english_words(data: bytes, rng: random.Random) -> bytes:
    return b"**Symptom.** I get this: " + data.strip() + b" - how do I mend it?"


def each_behind_words(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join("报错：".encode() + x if x.strip() else x for x in physical(data))


def with_blank_lines(data: bytes, rng: random.Random) -> bytes:
    return b"\n\n".join(physical(data))


def with_some_blank_lines(data: bytes, rng: random.Random) -> bytes:
    return b"\n".join(x if rng.random() < 0.7 else x + b"\n" for x in physical(data))


CHATTER = [
    b"(EngineCore pid=1) INFO 11-25 10:00:00 [__init__.py:7] NIXL is not available",
    b"[W1125 10:00:00.123456789 utils.cpp:68] Warning: some memory policy is used",
    b"Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.01s/it]",
    b"/opt/vllm-env/lib/python3.12/site-packages/a/b.py:7: FutureWarning: this will change",
    b"",
]

SURROUNDED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    f.__name__: f
    for f in (
        in_docker,
        in_journald,
        in_kubernetes,
        of_compose,
        in_stern,
        in_srun,
        of_grep,
        in_syslog,
        in_colour,
        with_cr,
        in_json,
        with_nul,
        with_chatter,
        indented,
        behind_tabs,
        quoted_in_mail,
        quoted_again,
        in_a_list,
        in_a_table,
        in_a_block_of_code,
        amid_chinese_words,
        amid_english_words,
        each_behind_words,
        with_blank_lines,
        with_some_blank_lines,
    )
}


LEARNED = ("in_stern", "in_srun", "of_grep", "in_syslog")
"""Prefixes that are not known, and can be learned where there are enough lines."""


EVERY = pytest.mark.parametrize(
    "every",
    [pytest.param(10, id="a-tenth"), pytest.param(1, id="all", marks=pytest.mark.hardening)],
)
"""How many of the logs: of every so many one, each test others."""


def some(logs: list[Logged], every: int, name: str) -> list[Logged]:
    return logs[random.Random(name).randrange(every) :: every]  # noqa: S311


def differing(change: Callable[[bytes, random.Random], bytes], every: int) -> dict[str, object]:
    """The logs whose verdict the change changes: what it was, and what it became."""
    made: dict[str, object] = {}
    for one in some(FEW, every, change.__name__):
        if change.__name__ in LEARNED and len(one.data.splitlines()) < 8:
            continue
        before, after = of(one), explained(change(one.data, seed_of(one)))
        if verdict(before) != verdict(after):
            made[one.name] = (verdict(before), verdict(after))
    return made


@EVERY
@pytest.mark.parametrize("change", SURROUNDED.values(), ids=SURROUNDED)
def test_what_surrounds_the_lines_does_not_change_the_primary_cause(
    change: Callable[[bytes, random.Random], bytes], every: int
) -> None:
    assert differing(change, every) == {}


FAILING = [one for one in FEW if one.verdict != "nothing-found"]
TOLD_BY_MANY = {"stopped-while-starting", "jit-lock-hang", "shm-broadcast-wait"}
"""What no single line tells: that it was still starting, that it waits and waits."""


def telling(logged: Logged) -> int:
    """The index of the line that tells most."""
    told = of(logged)
    return (told.unknown.line if told.unknown else told.findings[0].line) - 1


def without_head(lines: list[bytes], at: int) -> list[bytes]:
    return lines[at:]


def without_half_of_the_head(lines: list[bytes], at: int) -> list[bytes]:
    return lines[at // 2 :]


def without_tail(lines: list[bytes], at: int) -> list[bytes]:
    return lines[: at + 1]


def alone(lines: list[bytes], at: int) -> list[bytes]:
    return lines[at : at + 1]


@EVERY
@pytest.mark.parametrize(
    "cut", [without_head, without_half_of_the_head, without_tail, alone], ids=lambda f: f.__name__
)
def test_a_failing_log_is_never_taken_for_health_whatever_is_cut_off(
    cut: Callable[[list[bytes], int], list[bytes]], every: int
) -> None:
    passed = [
        one.name
        for one in some(FAILING, every, cut.__name__)
        if one.folder not in TOLD_BY_MANY
        and explained(b"\n".join(cut(one.data.split(b"\n"), telling(one)))).exit_code == 0
    ]
    assert passed == []


BANNER = b"""
(APIServer pid=1) INFO 11-25 12:00:00 [utils.py:299]
(APIServer pid=1) INFO 11-25 12:00:00 [utils.py:299]   version 0.22.0
(APIServer pid=1) INFO 11-25 12:00:00 [utils.py:299]   model   m
(APIServer pid=1) INFO 11-25 12:00:00 [utils.py:233] non-default args: {'model': 'm'}
"""


@EVERY
def test_a_start_that_goes_on_leaves_the_answer_to_the_one_before(every: int) -> None:
    changed = {}
    for one in some(FAILING, every, "banner"):
        told = explained(one.data + BANNER)
        # A server that starts is there: it cannot be what is missing.
        if one.folder != "vllm-missing" and verdict(told) != verdict(of(one)):
            changed[one.name] = verdict(told)
    assert changed == {}


@EVERY
@pytest.mark.parametrize("width", [60, 80, 100, 120, 132, 200])
def test_a_terminals_width_does_not_change_the_primary_cause(width: int, every: int) -> None:
    def wrapped(data: bytes, rng: random.Random) -> bytes:
        made = []
        for line in data.decode("utf-8", "replace").splitlines():
            # One that just fills the terminal cannot be told from one that goes on.
            line += "." * (line != "" and len(line) % width == 0)  # noqa: PLW2901
            made += [line[i : i + width] for i in range(0, len(line), width)] or [""]
        return "\n".join(made).encode()

    wrapped.__name__ += str(width)
    assert differing(wrapped, every) == {}


@EVERY
@pytest.mark.parametrize("block", [1000, 4096, 33_000])
def test_how_the_log_arrives_does_not_change_what_it_comes_to(block: int, every: int) -> None:
    for one in some(FEW, every, str(block)):
        assert explained(one.data, block) == of(one), one.name


@EVERY
def test_a_failed_start_before_a_healthy_one_is_mentioned_and_no_more(every: int) -> None:
    healthy = next(
        one
        for one in LOGS
        if one.folder == HEALTHY and explained(one.data).ready and b"non-default" in one.data
    )
    for one in some(FEW, every, "healthy"):
        before = of(one)
        grave = before.primary and before.findings[0].severity == "error"
        if grave and b"non-default args" in one.data:
            told = explained(one.data + b"\n" + healthy.data)
            assert verdict(told) == ("nothing-found", None), one.name
            assert before.ready or told.earlier[-1].id == before.primary, one.name


@pytest.mark.hardening
def test_without_re2_every_log_comes_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = {one.name: explained(one.data) for one in LOGS}
    monkeypatch.setattr(scan, "re2", None)
    monkeypatch.setattr(regex, "re2", None)
    regex.compile_pattern.cache_clear()
    try:
        plain = SignatureIndex(shipped_catalogue().signatures)
        assert {o.name: explain_log([o.data], plain) for o in LOGS} == fast
    finally:
        regex.compile_pattern.cache_clear()


LITERALS = sorted({s.literal for s in shipped_catalogue().signatures})
PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([one.encode() for one in LITERALS]),
    st.sampled_from(
        [
            b"\n",
            b"\r",
            b"\r\n",
            b"\0",
            b"\x1b[31m",
            b"\x1b]0;t\x07",
            b"\x1b]0;",
            b"{",
            b'{"log":"',
            b'"}',
            b"\xe2\x94\x82",
        ]
    ),
    st.sampled_from(
        [b"Traceback (most recent call last)", b'  File "x", line 1, in y', b"ValueError: z"]
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=60).map(b"".join))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    told = explained(data, 64)
    assert told.lines == data.count(b"\n") + (1 if data and not data.endswith(b"\n") else 0)


ADVERSARIAL: dict[str, bytes] = {
    "one line of a literal's first letter": b"N" * (4 << 20),
    "spaces inside of a literal": b"No space left on" + b" " * (4 << 20) + b"device",
    "beginnings only": b"Traceback (most recent call last\n" * 60_000,
    "tracebacks": b"Traceback (most recent call last):\n" * 60_000,
    "frames": b"Traceback (most recent call last):\n" + b'  File "a", line 1, in b\n' * 160_000,
    "exception lines": b"ValueError: nobody knows this\n" * 100_000,
    "colours": b"\x1b[31m" * 800_000,
    "open quotes of JSON": b'{"log":"' * 500_000,
    "backslashes of JSON": b'{"log":"Traceback (most recent call last)' + b"\\" * (4 << 20),
    "carriage returns": b"Traceback (most recent call last)\r" * 100_000,
    "a literal whose surroundings are asked for": b"No space left on device\n" * 150_000,
    "boxes": "│ │ │ │ │ │\n".encode() * 200_000,
    "prefixes": b"(EngineCore pid=1) " * 200_000,
}


@pytest.mark.hardening
@pytest.mark.parametrize("data", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_a_log_that_is_made_to_be_slow_takes_twice_the_time_for_twice_the_size(data: bytes) -> None:
    """The bound is a wide one: it tells linear from quadratic, where the ratio would be 4."""

    def seconds(log: bytes) -> float:
        began = time.process_time()
        explained(log)
        return time.process_time() - began

    seconds(data[: len(data) // 8])
    half, whole = seconds(data[: len(data) // 2]), seconds(data)
    assert whole < 3.2 * half + 1.0
    assert whole < 20
