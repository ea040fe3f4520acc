"""Several logs of one server: ranks, nodes, rotated parts, folders. One primary cause over all, and
each finding says in which file it is."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
from pathlib import Path

import pytest

from doctor.logs import several
from doctor.logs.several import Whole, wholes
from doctor.logs.source import LogError
from tests.conftest import DOCTOR, SYSTEM
from tests.test_explain_cli import NOTHING, RECOGNISED, UNKNOWN, USAGE, explain, told

BANNER = "(APIServer pid=41) INFO 09-12 08:00:01 [utils.py:302] non-default args: {'model': 'm'}\n"
READY = "(APIServer pid=41) INFO:     Application startup complete.\n"
INIT = (
    "(APIServer pid=41) RuntimeError: Engine core initialization failed. See root cause above. "
    "Failed core proc(s): {}\n"
)
TIMEOUT = (
    "(Worker_TP1 pid=9) ERROR 09-12 08:40:00 [multiproc_executor.py:772] "
    "acme.StoreError: wait timeout after 1800000ms\n"
)
KERNEL = (
    "(Worker_TP0 pid=8) ERROR 09-12 08:03:00 [multiproc_executor.py:772] RuntimeError: CUDA error: "
    "no kernel image is available for execution on the device\n"
)
QUIET = "(Worker_TP2 pid=7) INFO 09-12 08:01:00 [gpu_worker.py:298] Available KV cache memory\n"
SLOW = (
    "W0912 08:01:00.123000 7 torch/_inductor/utils.py:1613] "
    "Not enough SMs to use max_autotune_gemm mode\n"
)
LATER_KERNEL = KERNEL.replace("08:03", "08:30")
PORT = (
    "(APIServer pid=41) ERROR 09-12 08:09:00 [server.py:167] [Errno 98] error while attempting to "
    "bind on address ('0.0.0.0', 8000): address already in use\n"
)


def written(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = data.encode() if isinstance(data, str) else data
        if path.suffix == ".gz":
            raw = gzip.compress(raw)
        elif path.suffix == ".xz":
            raw = lzma.compress(raw)
        path.write_bytes(raw)
    return folder


def names(found: list[Whole]) -> list[list[str]]:
    return [[Path(log.name).name for log in whole.logs] for whole in found]


class TestParts:
    @pytest.mark.parametrize(
        ("files", "parts"),
        [
            (["a.log.1", "a.log", "a.log.2.gz"], ["a.log.2.gz", "a.log.1", "a.log"]),
            (["a.log.10", "a.log.9", "a.log"], ["a.log.10", "a.log.9", "a.log"]),
            (
                ["a.log", "a.log-20260912", "a.log-20260911.gz"],
                ["a.log-20260911.gz", "a.log-20260912", "a.log"],
            ),
            (
                ["a.log.2026-09-12", "a.log", "a.log.2026-09-11"],
                ["a.log.2026-09-11", "a.log.2026-09-12", "a.log"],
            ),
            (["a.log.2.xz", "a.log.1.xz"], ["a.log.2.xz", "a.log.1.xz"]),
            (["a.log", "a.log.1", "a.log"], ["a.log.1", "a.log"]),
            (["c-json.log.1", "c-json.log"], ["c-json.log.1", "c-json.log"]),
        ],
    )
    def test_they_are_one_log_the_oldest_first(self, files: list[str], parts: list[str]) -> None:
        assert names(wholes(files)) == [parts]

    @pytest.mark.parametrize(
        "files",
        [
            ["rank0.log", "rank1.log"],
            ["node0/a.log", "node1/a.log"],
            ["a.log", "b.log.1"],
            ["a.out", "a.err"],
            ["worker-0-1.log", "worker-0-2.log"],
            ["job.4711.out", "job.4712.out"],
        ],
    )
    def test_others_are_logs_of_their_own(self, files: list[str]) -> None:
        assert names(wholes(files)) == [[Path(one).name] for one in files]

    def test_a_line_is_one_of_its_part(self, tmp_path: Path) -> None:
        folder = written(tmp_path, {"a.log.2": "1\n2\n", "a.log.1": "1\n2", "a.log": "1\n2\n3"})
        (whole,) = wholes([str(folder)])
        data = b"".join(whole.blocks())
        assert data == b"1\n2\n1\n2\n1\n2\n3"
        where = [whole.place(n + 1) for n in range(data.count(b"\n") + 1)]
        assert [(Path(name).suffix, line) for name, line in where] == [
            (".2", 1),
            (".2", 2),
            (".1", 1),
            (".1", 2),
            (".log", 1),
            (".log", 2),
            (".log", 3),
        ]

    @pytest.mark.parametrize("end", ["\n", ""])
    def test_a_failure_in_an_older_part_is_said_to_be_there(self, tmp_path: Path, end: str) -> None:
        parts: dict[str, str | bytes] = {
            "a.log.2.gz": BANNER + QUIET,
            "a.log.1": QUIET + KERNEL.rstrip("\n") + end,
            "a.log": QUIET + INIT,
        }
        report = told(written(tmp_path, parts))
        (first, *rest) = report["findings"]
        assert (first["id"], first["role"], first["line"]) == ("no-kernel-image", "primary", 2)
        assert first["file"] == str(tmp_path / "a.log.1")
        assert [(f["id"], f["file"], f["line"]) for f in rest] == [
            ("engine-core-failed", str(tmp_path / "a.log"), 2)
        ]
        assert report["source"]["lines"] == 6
        assert [Path(one["path"]).name for one in report["files"]] == [
            "a.log.2.gz",
            "a.log.1",
            "a.log",
        ]

    def test_a_start_that_was_rotated_away_and_failed_is_an_earlier_one(
        self, tmp_path: Path
    ) -> None:
        parts: dict[str, str | bytes] = {"a.log.1": BANNER + KERNEL, "a.log": BANNER + READY}
        report = told(written(tmp_path, parts))
        assert (report["verdict"], report["ready"]) == ("nothing-found", True)
        file = str(tmp_path / "a.log.1")
        assert report["earlier"] == [{"file": file, "line": 2, "id": "no-kernel-image"}]

    def test_a_traceback_over_the_end_of_a_part_is_whole(self, tmp_path: Path) -> None:
        head = 'Traceback (most recent call last):\n  File "/srv/a.py", line 3, in f\n    g()\n'
        parts: dict[str, str | bytes] = {"a.log.1": BANNER + head, "a.log": "AcmeError: no slot\n"}
        unknown = told(written(tmp_path, parts))["unrecognised"]
        assert (unknown["exception"], unknown["raised_in"]) == (
            "AcmeError: no slot",
            "/srv/a.py:3 in f",
        )
        assert (unknown["file"], unknown["line"]) == (str(tmp_path / "a.log"), 1)


class TestRanksAndNodes:
    def test_what_came_first_is_the_one_primary(self, tmp_path: Path) -> None:
        nodes: dict[str, str | bytes] = {
            "node0.log": QUIET + TIMEOUT,
            "node1.log": QUIET * 3 + KERNEL,
            "node2.log": QUIET + LATER_KERNEL + INIT,
        }
        report = told(written(tmp_path, nodes))
        primaries = [f for f in report["findings"] if f["role"] == "primary"]
        assert [(f["id"], f["file"], f["line"], f["also_in"]) for f in primaries] == [
            ("no-kernel-image", str(tmp_path / "node1.log"), 4, [str(tmp_path / "node2.log")])
        ]
        assert {f["file"] for f in report["findings"] if f["role"] == "symptom"} == {
            str(tmp_path / "node2.log")
        }
        assert report["source"]["path"] == "3 files"
        assert report["source"]["lines"] == 9
        sizes = [(tmp_path / f"node{n}.log").stat().st_size for n in range(3)]
        assert [one["bytes"] for one in report["files"]] == sizes
        assert report["source"]["bytes"] == sum(sizes)

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
    def test_in_which_order_they_are_named_does_not_matter(
        self, tmp_path: Path, order: tuple[int, ...]
    ) -> None:
        logs = (KERNEL, PORT, QUIET + INIT)
        written(tmp_path, {f"rank{n}.log": text for n, text in enumerate(logs)})
        report = told(*(tmp_path / f"rank{n}.log" for n in order))
        assert report["primary"] == "no-kernel-image"
        roles = {f["id"]: f["role"] for f in report["findings"]}
        assert roles == {
            "no-kernel-image": "primary",
            "port-in-use": "contributing",
            "engine-core-failed": "symptom",
        }

    @pytest.mark.parametrize(
        ("one", "other", "verdict"),
        [
            (QUIET, BANNER + READY, "nothing-found"),
            (INIT, BANNER + READY, "symptom"),
            (INIT, TIMEOUT, "unrecognised"),
            (TIMEOUT, KERNEL, "explained"),
            (INIT, QUIET, "symptom"),
            (QUIET, TIMEOUT, "unrecognised"),
        ],
    )
    def test_the_file_that_says_most_decides(
        self, tmp_path: Path, one: str, other: str, verdict: str
    ) -> None:
        written(tmp_path, {"a.log": one, "b.log": other})
        for files in (("a.log", "b.log"), ("b.log", "a.log")):
            report = told(*(tmp_path / name for name in files))
            assert report["verdict"] == verdict
            assert report["ready"] is (READY in other)

    def test_an_unknown_failure_says_its_file(self, tmp_path: Path) -> None:
        written(tmp_path, {"r0.log": QUIET + INIT, "r1.log": QUIET * 2 + TIMEOUT})
        report = told(tmp_path)
        unknown = report["unrecognised"]
        assert (unknown["file"], unknown["line"]) == (str(tmp_path / "r1.log"), 3)
        assert unknown["exception"] == "acme.StoreError: wait timeout after 1800000ms"
        said = explain(tmp_path)
        assert said.code == UNKNOWN
        assert "r1.log, line 3: acme.StoreError" in " ".join(said.out.split())

    def test_the_text_names_the_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(
            written(tmp_path, {"a.log": KERNEL, "b.log": KERNEL, "c.log": QUIET + INIT})
        )
        said = explain("a.log", "b.log", "c.log")
        assert said.code == RECOGNISED
        assert said.out.startswith("3 files: 4 lines")
        assert said.out.count("PRIMARY") == 1
        assert "a.log, line 1: " in said.out
        assert "also in b.log" in said.out
        assert "~ engine-core-failed (c.log, line 2): only a symptom" in said.out

    def test_of_one_file_the_text_names_the_line_alone(self, tmp_path: Path) -> None:
        said = explain(written(tmp_path, {"a.log": KERNEL}) / "a.log")
        assert "    line 1: " in said.out
        assert "also in" not in said.out


class TestFolders:
    BLOB = bytes(range(256)) * 20

    @pytest.mark.parametrize(
        "others",
        [
            {},
            {"core.812": BLOB},
            {"empty.log": ""},
            {"empty.log": "", "x/core.812": BLOB, "x/y/readme.txt": "how to start it\n"},
            {"x/empty.log.gz": ""},
            {"script.sh": "#!/bin/sh\nexec vllm serve m\n"},
        ],
    )
    def test_what_lies_beside_the_logs_does_no_harm(
        self, tmp_path: Path, others: dict[str, str | bytes]
    ) -> None:
        report = told(written(tmp_path, {**others, "n/0/rank0.log": QUIET + KERNEL}))
        assert (report["primary"], report["verdict"]) == ("no-kernel-image", "explained")
        assert report["findings"][0]["file"] == str(tmp_path / "n/0/rank0.log")
        assert report["findings"][0]["line"] == 2
        listed = {Path(one["path"]).name for one in report["files"]}
        assert "rank0.log" in listed
        assert not listed & {"core.812", "empty.log", "empty.log.gz"}

    def test_a_healthy_one_is_healthy(self, tmp_path: Path) -> None:
        written(tmp_path, {"a.log": BANNER + READY, "b.log": QUIET, "core.1": self.BLOB})
        assert (told(tmp_path)["verdict"], explain(tmp_path).code) == ("nothing-found", NOTHING)

    def test_what_links_lead_to_is_not_read(self, tmp_path: Path) -> None:
        outside = written(tmp_path / "outside", {"bad.log": KERNEL})
        folder = written(tmp_path / "logs", {"a.log": QUIET})
        (folder / "bad.log").symlink_to(outside / "bad.log")
        (folder / "more").symlink_to(outside)
        (folder / "loop").symlink_to(folder)
        (folder / "gone.log").symlink_to("nowhere")
        os.mkfifo(folder / "pipe")
        assert [Path(one["path"]).name for one in told(folder)["files"]] == ["a.log"]

    def test_a_link_that_is_named_is_read(self, tmp_path: Path) -> None:
        outside = written(tmp_path / "outside", {"bad.log": KERNEL})
        (tmp_path / "link").symlink_to(outside)
        (tmp_path / "log").symlink_to(outside / "bad.log")
        for name in ("link", "log"):
            assert told(tmp_path / name)["primary"] == "no-kernel-image"

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({}, "holds no file"),
            ({"x/core.1": BLOB, "core.2": BLOB}, "there is no log among these 2 files"),
            ({"a.log": "", "b.log": "", "c.log": ""}, "there is no log among these 3 files"),
            ({"core.1": BLOB}, "is not a text file"),
            ({"a.log": KERNEL, "b.log.bz2": b"BZh91AY" * 99}, "b.log.bz2 is packed with bzip2"),
        ],
    )
    def test_where_there_is_no_log_that_is_wrong_use(
        self, tmp_path: Path, files: dict[str, str | bytes], words: str
    ) -> None:
        said = explain(written(tmp_path, files))
        assert (said.code, said.out, said.err.count("\n")) == (USAGE, "", 1)
        assert words in said.err

    def test_a_folder_that_cannot_be_listed_is_no_healthy_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written(tmp_path, {"a.log": BANNER + READY, "closed/b.log": KERNEL})
        scandir = os.scandir

        def refusing(path: str) -> object:
            if Path(path).name == "closed":
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        said = explain(tmp_path)
        assert (said.code, said.out) == (USAGE, "")
        assert f"{tmp_path / 'closed'}: permission denied" in said.err

    def test_a_harmless_line_says_its_file(self, tmp_path: Path) -> None:
        written(tmp_path, {"a.log": BANNER + READY, "b.log": QUIET + SLOW})
        assert told(tmp_path)["harmless"] == [
            {"id": "few-sms-for-autotune", "file": str(tmp_path / "b.log"), "line": 2, "count": 1}
        ]

    def test_too_many_files_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(several, "_MOST", 5)
        written(tmp_path, {f"{n % 2}/{n}.log": QUIET for n in range(5)})
        assert len(wholes([str(tmp_path)])) == 5
        written(tmp_path, {"one-more.log": QUIET})
        with pytest.raises(LogError, match="holds more than 5 files"):
            wholes([str(tmp_path)])
        said = explain(tmp_path)
        assert (said.code, "more than 5 files" in said.err) == (USAGE, True)

    @pytest.mark.parametrize("name", ["absent.log", "absent"])
    def test_of_several_one_that_is_not_there_is_wrong_use(self, tmp_path: Path, name: str) -> None:
        said = explain(written(tmp_path, {"a.log": KERNEL}) / "a.log", tmp_path / name)
        assert (said.code, said.out) == (USAGE, "")
        assert f"{name}: no such file" in said.err

    def test_a_packed_one_that_is_cut_off_beside_others_is_told(self, tmp_path: Path) -> None:
        noise = os.urandom(200_000).hex()
        cut = gzip.compress((QUIET + noise).encode())[:-5000]
        (tmp_path / "a.log").write_text(KERNEL)
        (tmp_path / "b.log.gz").write_bytes(cut)
        report = told(tmp_path)
        assert report["primary"] == "no-kernel-image"
        assert any("b.log.gz: cut off or damaged" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("file", "pipe", "primary", "where"),
    [
        (QUIET, KERNEL, "no-kernel-image", "-"),
        (KERNEL, QUIET, "no-kernel-image", "a.log"),
        (LATER_KERNEL, PORT, "port-in-use", "-"),
        (BANNER + READY, QUIET, None, None),
    ],
)
def test_a_pipe_may_stand_beside_a_file(
    tmp_path: Path, file: str, pipe: str, primary: str | None, where: str | None
) -> None:
    written(tmp_path, {"a.log": file})
    ran = subprocess.run(
        [str(DOCTOR), "explain", "--no-live", "--format", "json", "-", "a.log"],
        input=pipe.encode(),
        capture_output=True,
        env=SYSTEM,
        cwd=tmp_path,
        check=False,
    )
    report = json.loads(ran.stdout)
    assert (ran.returncode, report["primary"]) == (RECOGNISED if primary else NOTHING, primary)
    assert [f["file"] for f in report["findings"] if f["role"] == "primary"] == [where] * bool(
        where
    )
    assert [one["path"] for one in report["files"]] == ["-", "a.log"]
