"""Whatever a machine answers where a version or a number is expected, no rule crashes."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from doctor import profile as profiles
from doctor.codec import CodecError
from doctor.diagnose import Question, diagnose
from doctor.engine import Crashed, Facts, load_rules
from doctor.model import Missing, Verdict
from doctor.numbers import cuda_version, number_of, version_of
from doctor.probes.interpreter import recorded_where
from doctor.profile import ServeRequest
from doctor.shipped import rules_folder
from doctor.tape import NotRecorded, Tape, load_tape
from doctor.target import READ_MOST, Ran, Stat

TAPES = sorted((Path(__file__).parent.parent / "fixtures/tapes").glob("*.json"))
RULES = load_rules(rules_folder())
ODD = ("", "²", "9.²", "１３", "١٣", "V13.0.", "13.", ".", "-3", "1e9", "nan", "0x9", "9" * 5000)
TRIES = 12  # of each tape


@pytest.mark.parametrize("text", [o for o in ODD if o != "13."])
def test_what_is_no_number_is_none(text: str) -> None:
    assert number_of(text) is None


@pytest.mark.parametrize("text", [o for o in ODD if o not in ("-3", "1e9")])
def test_what_is_no_version_is_none(text: str) -> None:
    assert version_of(text) is None


def test_what_is_one_is_read() -> None:
    assert number_of("13020") == 13020
    assert str(version_of("0.6.11.post2")) == "0.6.11.post2"
    assert str(cuda_version(13020)) == "13.2"
    assert cuda_version(-1) is None


class Forgetful(Tape):
    """A tape that says "nothing there" for what it was never asked, so that one odd answer does
    not end the questions."""

    def run(self, *argv: str, timeout: float = 10.0, env: Any = None) -> Ran:
        try:
            return super().run(*argv, timeout=timeout, env=env)
        except NotRecorded:
            return Ran(1)

    def read(self, path: Path, limit: int = READ_MOST) -> bytes | None:
        try:
            return super().read(path, limit)
        except NotRecorded:
            return None

    def search(self, path: Path, pattern: str) -> tuple[str, ...] | None:
        try:
            return super().search(path, pattern)
        except NotRecorded:
            return None

    def listdir(self, path: Path) -> tuple[str, ...] | None:
        try:
            return super().listdir(path)
        except NotRecorded:
            return None

    def stat(self, path: Path) -> Stat | None:
        try:
            return super().stat(path)
        except NotRecorded:
            return None

    def executable(self, path: Path) -> bool:
        try:
            return super().executable(path)
        except NotRecorded:
            return False

    def realpath(self, path: Path) -> Path:
        try:
            return super().realpath(path)
        except NotRecorded:
            return path

    def elf(self, path: Path) -> Any:
        try:
            return super().elf(path)
        except NotRecorded:
            return None

    def tensors(self, path: Path) -> Any:
        try:
            return super().tensors(path)
        except NotRecorded:
            return None


def garbled(value: Any, dice: random.Random) -> Any:
    """The answers with some of the numbers and versions in their text exchanged for odd ones; the
    interpreter's own answer is left whole, since without it there is no diagnosis."""
    if isinstance(value, dict):
        if any("_inspect.py" in str(word) for word in value.get("argv", ())):
            return value
        return {k: v if k == "argv" else garbled(v, dice) for k, v in value.items()}
    if isinstance(value, list):
        return [garbled(v, dice) for v in value]
    if isinstance(value, str):
        return re.sub(
            r"[0-9]+(?:\.[0-9]+)*",
            lambda m: dice.choice(ODD) if dice.random() < 0.15 else m[0],
            value,
        )
    return value


@pytest.mark.hardening
@pytest.mark.parametrize("tape", TAPES, ids=lambda t: t.stem)
def test_no_rule_crashes_on_an_odd_answer(tape: Path) -> None:
    data = json.loads(tape.read_text(encoding="utf-8"))
    answers = {k: data[k] for k in ("runs", "read", "search", "listdir", "elf", "env")}
    judged = 0
    for seed in range(TRIES):
        odd = garbled(answers, random.Random(seed))  # noqa: S311 - no secret
        odd["env"] = {**odd["env"], "CUDA_VISIBLE_DEVICES": ODD[seed]}
        profile = profiles.load_profile(
            profiles.DEFAULT_PROFILE, ("gpus=later", "archs=9.0") if seed % 2 else ()
        )
        try:
            recording = load_tape({**data, **odd})
            where = recorded_where(recording.python, recording.found_by)
            report = diagnose(
                Facts(Forgetful(recording), (where, ServeRequest(profile))), RULES, Question("it")
            )
        except (CodecError, Missing):  # an odd answer where a recording has none
            continue
        except Crashed as crash:
            pytest.fail(f"seed {seed}: {crash}")
        judged += 1
        crashed = [o for o in report.outcomes if o.verdict is Verdict.CRASHED]
        assert not crashed, f"seed {seed}: {crashed[0].rule.id}: {crashed[0].why}"
    assert judged > TRIES // 2
