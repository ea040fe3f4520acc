"""The reader of wheels on an index: which wheel it takes, and from where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import online
from tests.stand_ins import index as indexes
from tests.stand_ins.wheels import make_wheel

NAMES = (
    "vllm-0.9.2.tar.gz",
    "vllm-0.20.1-cp38-abi3-manylinux_2_35_x86_64.whl",
    "vllm-0.20.1-1-cp38-abi3-manylinux_2_35_x86_64.whl",
    "vllm-0.20.1-2-cp38-abi3-manylinux_2_35_aarch64.whl",
    "vllm-0.21.0-py3-none-any.whl",
)


def test_of_a_version_the_last_build_for_this_kind_of_machine_is_taken() -> None:
    files = [{"filename": name, "url": name} for name in NAMES]
    found = {str(version): url for version, url in online._newest_builds(files).items()}
    assert found == {"0.20.1": NAMES[2], "0.21.0": NAMES[4]}


def test_the_index_that_the_variables_name_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("0.9", "0.10", "0.11rc1"):
        make_wheel(tmp_path, "thing", version)
    with indexes.serve(tmp_path) as index:
        monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
        assert [str(v) for v in online.versions("thing")] == ["0.9", "0.10"]
        with (
            pytest.raises(LookupError, match=r"no wheel of thing 1\.0"),
            online.wheel("thing", "1.0"),
        ):
            pass
        assert set(index.paths) == {"/simple/thing/"}
