"""Metadata and RECORDs of distributions, as a wheel of a stranger brings them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from doctor.probes.wheels import Packages
from doctor.repair.errors import StageError
from doctor.repair.stage import _leaving
from tests.conftest import Environment, facts_of
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutate import changed_bytes, words

pytestmark = pytest.mark.hardening

METADATA = b"""Metadata-Version: 2.4
Name: odd
Version: 1.0
Requires-Dist: torch==2.11.0; extra == 'x'
Requires-Dist: transformers>=4.56.0,<6
Requires-Dist: cuda-toolkit[cublas,cudart]==13.0.2; platform_system == 'Linux'
Requires-Python: >=3.10

About it.
"""
RECORD = b"""odd/__init__.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0
odd/more.py,,
../../../bin/odd,sha256=x,3
"odd/a,b.py",,
odd-1.0.dist-info/METADATA,,
odd-1.0.dist-info/RECORD,,
"""
ROWS = ("/etc/passwd", "../../../../../../etc/passwd", ".", "..", "", "../other/x", "odd/../../x")


def test_metadata(fuzz: Fuzz, bare: Environment) -> None:
    info = bare.install("odd", "1.0")

    def one(r: random.Random) -> None:
        (info / "METADATA").write_bytes(changed_bytes(r, METADATA))
        facts_of(bare).get(Packages)

    fuzz.each(one)


def test_a_record_names_nothing_outside_the_environment(
    fuzz: Fuzz, bare: Environment, tmp_path: Path
) -> None:
    info = bare.install("odd", "1.0", files={"odd/__init__.py": "", "odd/more.py": ""})
    bare.install("other", "1.0", files={"other/x": ""})

    def one(r: random.Random) -> None:
        data = changed_bytes(r, RECORD)
        if r.random() < 0.7:
            row = r.choice(ROWS) if r.random() < 0.5 else words(r)
            data = f"{row},,\n".encode("utf-8", "surrogateescape") + data
        (info / "RECORD").write_bytes(data)
        try:
            going = list(_leaving(bare.prefix, (bare.site,), ["odd"], ()))
        except StageError:
            return
        for path in going:
            assert path == os.path.normpath(path)
            assert not path.startswith(("/", "../"))
            assert path not in ("..", ".", "")
            assert "\0" not in path
        site = bare.site.relative_to(bare.prefix)
        assert f"{site}/other/x" not in going, "another distribution lists it"

    fuzz.each(one)
