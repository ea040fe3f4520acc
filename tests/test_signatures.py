"""What compilers, linkers and loaders print, and the ailment it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from doctor.engine import load_rules
from doctor.shipped import rules_folder
from doctor.signatures import Signature, ids_of, shipped_catalogue
from tests.real_stack.signature_versions import contradictions, seen

# Exact lines, as printed by the real tools.
LINES = {
    '/f/cuda_toolkit.h:41:8: error: #error "CUDA compiler and CUDA toolkit headers are '
    'incompatible, please check your include paths"': "nvcc-header-version-skew",
    "ptxas /tmp/x.ptx, line 9; fatal   : Unsupported .version 9.5; current version is '9.0'": (
        "nvvm-ptxas-skew"
    ),
    "Command-line error: invalid option: --simt-only": "nvvm-ptxas-skew",
    'stub.c:13:8: error: macro "__cudaLaunch" passed 2 arguments, but takes just 1': "crt-skew",
    'stub.c:13:8: error: macro "__cudaLaunch" requires 2 arguments, but only 1 given': "crt-skew",
    "stub.c:13:2: error: ‘__cudaLaunch’ was not declared in this scope": "crt-skew",
    "probe.cu:4:10: fatal error: curand.h: No such file or directory": "cuda-headers-missing",
    "<command-line>: fatal error: cuda_runtime.h: No such file or directory": (
        "cuda-headers-missing"
    ),
    "cuda_utils.c:6:10: fatal error: Python.h: No such file or directory": (
        "python-headers-missing"
    ),
    "nvcc fatal   : Unsupported gpu architecture 'compute_90a'": "nvcc-too-old-for-arch",
    "nvcc fatal   : Unknown option '--compress-mode=size'": "nvcc-too-old-for-flags",
    "host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later than 12 "
    "are not supported!": "host-gcc-too-new-for-nvcc",
    "mathcalls.h(206): error: exception specification is incompatible with that of previous "
    'function "rsqrt"': "glibc-headers-vs-cuda",
    "/usr/bin/ld: cannot find -lcudart: No such file or directory": "pip-toolkit-lib-layout",
    "/usr/bin/ld: cannot find -lcuda": "pip-toolkit-lib-layout",
    "OSError: libcudart.so.12: cannot open shared object file: No such file or directory": (
        "libcudart-major-mismatch"
    ),
}


@pytest.mark.parametrize(("line", "id"), LINES.items())
def test_a_compilers_line_names_its_ailment(line: str, id: str) -> None:
    assert ids_of(f"some note\n{line}\nmore\n") == ((id,), line)


@pytest.mark.parametrize(
    "line",
    [
        "probe.cu:4:10: fatal error: my_own.h: No such file or directory",
        "mathcalls.h(9): error: exception specification is incompatible with that of previous "
        'function "mine"',
        "warning: variable __cudaLaunch was set but never used",
        "loading /opt/cuda/lib64/libcudart.so.12",
    ],
)
def test_a_line_that_only_looks_like_it_names_nothing(line: str) -> None:
    assert ids_of(line)[0] == ()


def test_the_telling_line_of_an_unknown_failure_is_its_last_error() -> None:
    assert ids_of("a\nx.cu(3): error: what is this\ndone\n") == ((), "x.cu(3): error: what is this")


def test_every_ailment_that_a_log_can_name_is_explained_once() -> None:
    """By its rule where there is one, else beside its signatures."""
    rules = {rule.id for rule in load_rules(rules_folder())}
    known = shipped_catalogue()
    told = {i for i, a in known.ailments.items() if a.title and a.explanation}
    named = {s.id for s in known.signatures if s.role in ("cause", "generic", "request", "symptom")}
    assert named - rules - told == set()
    assert told & rules == set()
    assert set(known.ailments) - named == set()


@pytest.mark.parametrize(
    "row", shipped_catalogue().signatures, ids=lambda row: f"{row.id}-{row.literal}"
)
def test_every_signature_can_be_found_and_in_linear_time(row: Signature) -> None:
    """Its literal has six characters or more that JSON does not escape; its patterns are RE2's."""
    row.check()


def test_a_long_value_is_cut_without_leaving_half_of_a_secret() -> None:
    row = Signature("x", "it says", "python", pattern="it says: (?P<what>.+)")
    for before in range(1960, 2001):
        url = "https://me:pass-9f3kq7zt0w@example.com/"
        values = row.values(f"it says: {'y' * before} {url} and more")
        assert values is not None
        assert len(values["what"]) <= 2000
        assert "pass-9f" not in values["what"]
    assert row.values("it says: all") == {"what": "all"}


class TestVersionsOfARow:
    """What tests/real_stack/signature_versions.py says of folders that hold distributions."""

    @pytest.fixture
    def folders(self, tmp_path: Path) -> list[Path]:
        """acme 1 prints it, acme 2 does so from another file, acme 3 does no longer; of acme 4 only
        the metadata are there."""
        printing = {
            "1": "acme/log.py",
            "2": "acme/new.py",
            "3": "acme/other.py",
            "4": "acme/log.py",
        }
        for version, file in printing.items():
            info = tmp_path / version / f"Acme-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "RECORD").write_text(f"{file},sha256=x,1\nacme/log.py,sha256=y,1\n")
            if version != "4":
                (tmp_path / version / "acme").mkdir()
                (tmp_path / version / "acme" / "log.py").touch()
                (tmp_path / version / file).write_text("say('it broke')")
        return [tmp_path / version for version in printing]

    def test_the_text_is_looked_for_in_each_version_whose_file_is_there(
        self, folders: list[Path]
    ) -> None:
        row = Signature("x", "it broke", "acme:acme/log.py")
        one, two, three = map(Version, "123")
        assert seen(row, folders) == {one: True, two: False, three: False}
        moved = Signature("x", "it broke", "acme:acme/log.py or acme/n*.py")
        assert seen(moved, folders) == {one: True, two: True, three: False}

    @pytest.mark.parametrize(
        ("versions", "wrong"), [(None, "3"), ("<3", ""), ("<2", "2"), (">=2", "13")]
    )
    def test_a_row_that_says_otherwise_is_told(
        self, folders: list[Path], versions: str | None, wrong: str
    ) -> None:
        row = Signature("x", "it broke", "acme:acme/log.py or acme/n*.py", versions=versions)
        assert contradictions(row, folders) == [Version(v) for v in wrong]
