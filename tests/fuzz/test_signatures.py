"""Signature files of others: one is loaded, or refused with a sentence that names it."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from doctor.codec import CodecError
from doctor.logs.index import SignatureIndex
from doctor.shipped import rules_folder
from doctor.signatures import load_catalogue, shipped_catalogue

pytestmark = pytest.mark.hardening

FILES = [path.read_text() for path in sorted((rules_folder() / "signatures").glob("*.toml"))]
PIECES = ("(", "[", "*", "{1000}", "(?P<x>", "(?=a)", "\\1", '"', "'", "\n", "²", "[[signature]]",
          "=", "pattern = 'a'", "times = -1", "role = 'start'", "\0", "\ud7ff")  # fmt: skip


def mutated(rng: random.Random) -> str:
    text = rng.choice(FILES)
    at = text.find("[[signature]]", rng.randrange(len(text)))
    text = text[max(0, at) : at + rng.randrange(200, 2000)]
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice(PIECES) + text[place + rng.randrange(5) :]
    return text


def test_any_signature_file_is_loaded_or_refused(seconds: float, tmp_path: Path) -> None:
    rng = random.Random(13)
    path = tmp_path / "signatures" / "theirs.toml"
    path.parent.mkdir()
    line = shipped_catalogue().signatures[0].literal.encode()
    until = time.process_time() + seconds
    while time.process_time() < until:
        path.write_text(mutated(rng), encoding="utf-8")
        try:
            rows = load_catalogue((tmp_path,)).signatures
        except (CodecError, ValueError) as error:
            said = str(error)
        else:
            said = str(path)
            assert SignatureIndex(rows).skim().may_fit(line) <= set(range(len(rows)))
        assert path.name in said
