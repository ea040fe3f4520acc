"""Lines freed of what is put around them, exceptions, learned prefixes, and values that follow."""

from __future__ import annotations

import pytest

from doctor.logs.lines import LogLine, clean, decoded, enveloped, owner, tells_of_work, unwrapped
from doctor.logs.prefix import learned, without_unknown_prefix
from doctor.logs.regex import compile_pattern
from doctor.logs.traceback import innermost
from doctor.logs.values import derive

MEMORY = "gpu-memory-below-utilization"
ENGINE = "EngineCore_DP0 pid=312"


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (
            f"\x1b[1;36m({ENGINE})\x1b[0;0m ERROR 11-22 10:01:02 [core.py:1136]   File x",
            LogLine("  File x", "error", "core.py:1136", ENGINE),
        ),
        ("(Worker_TP1 pid=7) text", LogLine("text", process="Worker_TP1 pid=7")),
        ("(VllmWorker rank=1 pid=4) text", LogLine("text", process="VllmWorker rank=1 pid=4")),
        ("(VllmWorker TP0 pid=4) text", LogLine("text", process="VllmWorker TP0 pid=4")),
        ("(RayActor pid=1, ip=10.0.0.5) x", LogLine("x", process="RayActor pid=1, ip=10.0.0.5")),
        ("[rank0]: ValueError: x", LogLine("ValueError: x", process="rank0")),
        ("ERROR 11-22 10:01:02 core.py:866] x", LogLine("x", "error", "core.py:866")),
        ("WARNING 11-22 10:01:02 [v1/x.py:749] x", LogLine("x", "warning", "v1/x.py:749")),
        ("INFO:     10.0.0.5:1 - x", LogLine("    10.0.0.5:1 - x", "info")),
        ("2026-11-22T10:00:00.123456789Z stderr F x", LogLine("x")),
        ("Nov 22 10:00:00 node1 vllm[123]: [rank1]: x", LogLine("x", process="rank1")),
        ("vllm-1  | WARNING: x", LogLine("x", "warning")),
        ("[W1122 10:00:00.1 ProcessGroupNCCL.cpp:123] x", LogLine("x", "warning")),
        ("2026-11-22 10:00:00,123 - vllm - INFO - x", LogLine("x")),
        ("│ x            │", LogLine("x")),
        (
            '{"log":"ERROR 11-22 10:01:02 [a.py:1] x \\"y\\"\\n","stream":"stderr"}',
            LogLine('x "y"', "error", "a.py:1"),
        ),
        (
            '{"level":"error","message":"x","exc_info":"Traceback\\nValueError: y"}',
            LogLine("x\nTraceback\nValueError: y", "error"),
        ),
        ('{"a": 1}', LogLine('{"a": 1}')),
        ("plain text (with brackets)", LogLine("plain text (with brackets)")),
    ],
)
def test_a_line_says_what_its_prefixes_say_and_keeps_its_text(raw: str, line: LogLine) -> None:
    assert clean(raw.encode()) == line


def test_control_characters_go_and_text_stays() -> None:
    assert decoded(b"\x1b]0;title\x07a\x1b[2Kb\x00c\x08\x7fd\xff") == "abcd\ufffd"


def test_a_title_that_never_ends_takes_no_line_with_it() -> None:
    assert decoded(b"\x1b]0;title\nnext\n\x1b]\nlast").split("\n") == ["", "next", "", "last"]


class TestBrokenLines:
    def test_three_lines_of_the_same_greatest_length_were_broken(self) -> None:
        width = 50
        long = ["a" * 120, "b" * 101, "short"]
        broken = [one[i : i + width].encode() for one in long for i in range(0, len(one), width)]
        assert [text for _, text in unwrapped(broken)] == long

    def test_lines_that_are_long_by_chance_were_not(self) -> None:
        lines = [b"x" * 60, b"y" * 30, b"z" * 60]
        assert [text for _, text in unwrapped(lines)] == [line.decode() for line in lines]

    def test_a_line_with_a_prefix_of_its_own_is_no_rest_of_another(self) -> None:
        head = "INFO 11-22 10:01:02 [a.py:1] "
        lines = [(head + "x" * 40).encode()] * 4
        assert len(unwrapped(lines)) == 4


class TestInnermost:
    def lines(self, *texts: str) -> list[LogLine]:
        return [enveloped(text) for text in texts]

    def test_of_a_chain_it_is_the_first_exception(self) -> None:
        made = innermost(
            self.lines(
                "Traceback (most recent call last):",
                '  File "a.py", line 1, in outer',
                '  File "b.py", line 2, in inner',
                "KeyError: 'x'",
                "",
                "The above exception was the direct cause of the following exception:",
                "",
                "Traceback (most recent call last):",
                '  File "c.py", line 3, in handler',
                "RuntimeError: cannot go on",
            )
        )
        assert (made.said, made.raised_in, made.called_from, made.length) == (
            "KeyError: 'x'",
            "b.py:2 in inner",
            "a.py:1 in outer",
            10,
        )

    def test_another_traceback_is_not_a_part_of_it(self) -> None:
        one = ["Traceback (most recent call last):", '  File "a.py", line 1, in f', "ValueError: 1"]
        other = ["Traceback (most recent call last):", '  File "b.py", line 2', "ValueError: 2"]
        made = innermost(self.lines(*one, *other))
        assert (made.said, made.length) == ("ValueError: 1", 3)

    def test_a_message_may_have_more_lines(self) -> None:
        made = innermost(
            self.lines(
                "Traceback (most recent call last):",
                '  File "a.py", line 1, in f',
                "pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, this is the reason",
            )
        )
        assert made.said.endswith("for ModelConfig Value error, this is the reason")

    def test_uvicorn_gives_a_level_to_the_header_alone(self) -> None:
        made = innermost(
            self.lines(
                "ERROR:    Traceback (most recent call last):",
                '  File "a.py", line 1, in f',
                "asyncio.exceptions.CancelledError",
            )
        )
        assert made.said == "asyncio.exceptions.CancelledError"

    def test_lines_of_other_ranks_stand_between_and_do_not_count(self) -> None:
        text = []
        for own, other in (
            ("Traceback (most recent call last):", "Traceback (most recent call last):"),
            ('  File "own.py", line 1, in f', '  File "other.py", line 9, in g'),
            ("AssertionError", "OtherError: x"),
        ):
            text += [f"(Worker_TP0 pid=1) {own}", f"(Worker_TP1 pid=2) {other}"]
        made = innermost(self.lines(*text))
        assert (made.said, made.raised_in) == ("AssertionError", "own.py:1 in f")

    def test_without_an_exception_it_is_the_line_itself(self) -> None:
        made = innermost(self.lines("ERROR 11-22 10:01:02 [a.py:7] it is broken"))
        assert (made.said, made.raised_in) == ("it is broken", None)


class TestOwner:
    WARNING = enveloped("WARNING 11-22 10:01:02 [a.py:1] Failed to build it, falling back")

    def test_the_lines_under_a_warning_about_a_failure_are_its_own(self) -> None:
        assert owner([self.WARNING, enveloped("Ninja output:")]) == "warning"

    def test_those_under_an_ordinary_line_are_nobody_s(self) -> None:
        assert owner([enveloped("INFO 11-22 10:01:02 [a.py:1] Loading weights")]) is None

    def test_a_traceback_further_down_was_printed_by_a_dying_process(self) -> None:
        lines = [self.WARNING, LogLine("output"), LogLine("Traceback (most recent call last):")]
        assert owner(lines) is None


@pytest.mark.parametrize(
    ("text", "works"),
    [
        ("INFO 11-22 10:01:02 [a.py:1] Loading weights took 3 s", True),
        ('INFO:     10.0.0.5:1 - "POST /v1/completions HTTP/1.1" 200 OK', True),
        ("INFO:     Shutting down", False),
        ("ERROR 11-22 10:01:02 [a.py:1] Loading weights", False),
        ("no level", False),
    ],
)
def test_a_process_tells_of_work_or_of_its_end(text: str, works: bool) -> None:
    assert tells_of_work(enveloped(text)) is works


class TestLearnedPrefixes:
    LOG = (
        "(APIServer pid=1) INFO 11-22 10:00:01 [utils.py:278] non-default args: {}",
        "INFO 11-22 10:00:02 [a.py:1] one",
        "Traceback (most recent call last):",
        '  File "a.py", line 1, in f',
        "    f()",
        "ValueError: it is 12 of 40",
        "",
        "done",
    )

    @pytest.mark.parametrize(
        "prefix",
        ["vllm-7d9c8-abcde vllm ", "0: ", "<30>1 2026-08-19T18:34:2{n}+02:00 node1 vllm 8 - - ",
         "a.log:{n}:", "    {n}  ", "> ", "18:34:0{n} vllm.1 | ", "2026-11-22T10:00:0{n}Z 01O "],
    )  # fmt: skip
    def test_it_is_taken_away_and_the_line_is_whole(self, prefix: str) -> None:
        lines = [prefix.format(n=n) + line for n, line in enumerate(self.LOG)]
        data = "\n".join(lines).encode()
        made = b"".join(without_unknown_prefix([data[:70], b"", data[70:]])).decode().split("\n")
        assert [clean(a.encode()).text for a in made] == [enveloped(b).text for b in self.LOG]

    def test_a_log_without_one_stays_as_it_is(self) -> None:
        data = "\n".join(self.LOG).encode()
        assert learned(data) is None
        assert b"".join(without_unknown_prefix([data[:9], data[9:]])) == data

    def test_what_a_server_says_again_and_again_is_none(self) -> None:
        lines = [f"ptxas /tmp/x{n}.ptx, line {n}; error : no such thing {n}" for n in range(20)]
        assert learned("\n".join(lines).encode()) is None


@pytest.mark.parametrize(
    ("id", "values", "name", "made"),
    [
        (MEMORY, {"free": "70.0", "total": "80.0"}, "utilization_fits", "0.86"),
        (MEMORY, {"free": "7.3", "total": "139.8"}, "utilization_fits", None),
        ("tp-not-dividing-heads", {"tp": "8", "heads": "20"}, "tensor_parallel_fits", "4"),
        ("tp-not-dividing-heads", {"tp": "3", "heads": "28"}, "tensor_parallel_fits", "2"),
        ("tp-exceeds-visible-gpus", {"gpus": "3", "tp": "8"}, "tensor_parallel_fits", "2"),
        ("tp-exceeds-visible-gpus", {"gpus": "0", "tp": "8"}, "tensor_parallel_fits", None),
        (MEMORY, {"free": "x"}, "utilization_fits", None),
    ],
)
def test_values_that_follow_from_those_of_the_log(
    id: str, values: dict[str, str], name: str, made: str | None
) -> None:
    assert derive(id, values).get(name) == made


def test_a_space_of_a_pattern_is_any_white_space_and_none() -> None:
    search = compile_pattern("KV cache of (?P<size>[0-9.]+) GiB")
    assert search("KVcache of\n3.5GiB") == {"size": "3.5"}
    assert search("KV cash of 3.5 GiB") is None
