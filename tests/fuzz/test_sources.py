"""The files of vLLM, FlashInfer and transformers that are read, and what names their versions."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from doctor.diagnose import exit_code
from doctor.model import Severity
from tests.conftest import not_for_ever
from tests.damage import FILES, Place, make_place
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutate import changed_bytes, changed_text, words

pytestmark = pytest.mark.hardening

VERSIONS = (
    *("0.33.1.dev12+gabc1234", "0.33.0+cu129", "0.34.0rc1", "1!0.22.0", "0.22.0.post1", "v0.22"),
    *("0.22", "0", "99999999999999999999", "0.22.0+cu130.git", "0.22.0-1", "0.22.*", "latest"),
)
DISTRIBUTIONS = ("vllm", "torch", "flashinfer_python", "flashinfer_cubin", "transformers")
HUGE = 8 << 20  # bytes, what is read of a file at most


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("sources"))


def _shuffled(r: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True)
    r.shuffle(lines)
    return "".join(lines)


def _nested(r: random.Random, text: str) -> str:
    deep = r.choice(("not ", "-", "(", "[", "x if x else ", "a.b(", "f(", "1 + ")) * r.choice(
        (50, 5000)
    )
    return text.replace("return ", f"return {deep}", r.randint(1, 3))


def _doubling(r: random.Random, text: str) -> str:
    line = r.choice(("x = x + x", "x = [*x, *x]", "x = [x, x]", "x = (x, x)", "x.append(x)"))
    start = r.choice(('x = "ab"', "x = [1, 2]"))
    body = "".join(
        f"    {row}\n" for row in (start, *[line] * 60, r.choice(("return x", "x = str(x)")))
    )
    return text.replace(":\n", f":\n{body}", r.randint(1, 2))


def test_whatever_a_file_says_no_rule_breaks(fuzz: Fuzz, place: Place) -> None:
    def one(r: random.Random) -> None:
        path = place.server.site / r.choice(FILES)
        kept = path.read_bytes()
        change = r.choice((changed_text, changed_text, _shuffled, _nested, _doubling))
        text = change(r, kept.decode())
        path.write_bytes(
            changed_bytes(r, kept) if r.random() < 0.3 else text.encode("utf-8", "surrogateescape")
        )
        try:
            place.judge(broken=r.random() < 0.5)
        finally:
            path.write_bytes(kept)

    fuzz.each(one)


def test_a_file_that_is_cut_off_makes_no_broken_server_healthy(fuzz: Fuzz, place: Place) -> None:
    def one(r: random.Random) -> None:
        path = place.server.site / r.choice(FILES)
        kept = path.read_bytes()
        path.write_bytes(kept[: r.randint(0, len(kept))])
        try:
            code = exit_code(place.judge(broken=True), Severity.ERROR)
        finally:
            path.write_bytes(kept)
        assert code != 0, path

    fuzz.each(one)


@pytest.mark.parametrize(
    "piece",
    [
        "VLLM_USE_FLASHINFER_SAMPLER: ",
        "def supports_compute_capability(",
        "    def supports_compute_capability(\n",
        "def has_flashinfer(\n",
        "@XParserManager.register_module(\n",
        "_CONFIG_REGISTRY(",
        '        ("x", "',
        '    "a": (\n',
        "CONFIG_MAPPING_NAMES = (",
        "if major >= 1",
        "(",
        " ",
        "\n",
        "x = 1\n",
    ],
)
def test_eight_megabytes_of_anything_are_read_in_time_that_grows_with_them(
    place: Place, piece: str
) -> None:
    """Seconds; what grows with the square of that size takes days."""
    for name in ("envs.py", "tool_parsers/__init__.py", "v1/attention/backends/flashinfer.py"):
        path = place.server.site / "vllm" / name
        kept = path.read_bytes()
        path.write_bytes((piece.encode() * (HUGE // len(piece)))[:HUGE])
        try:
            with not_for_ever():
                place.judge()
        finally:
            path.write_bytes(kept)


def test_whatever_is_the_version_no_rule_breaks(fuzz: Fuzz, place: Place) -> None:
    def one(r: random.Random) -> None:
        name = r.choice(DISTRIBUTIONS)
        info = next(p for p in place.server.site.iterdir() if p.name.startswith(f"{name}-"))
        metadata = info / "METADATA"
        kept = metadata.read_bytes()
        version = r.choice(VERSIONS) if r.random() < 0.7 else words(r, 2)
        other = Path(
            info.parent / f"{name}-{version.replace('/', '').replace(chr(0), '')[:99]}.dist-info"
        )
        if r.random() < 0.5:
            metadata.write_bytes(changed_bytes(r, kept))
        pin = f"{r.choice(DISTRIBUTIONS)}{r.choice(('==', '>=', '~=', '@ ', ' ('))}{version}"
        row = f"Requires-Dist: {pin}\n"
        if r.random() < 0.5:
            metadata.write_bytes(row.encode("utf-8", "surrogateescape") + metadata.read_bytes())
        info.rename(other)
        try:
            place.judge(broken=r.random() < 0.5)
        finally:
            other.rename(info)
            metadata.write_bytes(kept)

    fuzz.each(one)
