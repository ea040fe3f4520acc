"""How much main memory a server may take, as /proc and control groups of both versions say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from doctor.engine import Facts
from doctor.model import Missing
from doctor.probes.memory import ControlGroup, MainMemory
from doctor.target import READ_MOST, Live, Stat

MEMINFO = "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\nSwapTotal: 1024 kB\n"
GIB = 1 << 30


class Below(Live):
    """A machine whose files lie below a folder."""

    def __init__(self, root: Path, files: dict[str, str]) -> None:
        super().__init__({})
        self._root = root
        for path, text in files.items():
            place = root / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")

    def _at(self, path: Path) -> Path:
        return self._root / str(path).lstrip("/")

    def read(self, path: Path, limit: int = READ_MOST) -> bytes | None:
        return super().read(self._at(path), limit)

    def stat(self, path: Path) -> Stat | None:
        return super().stat(self._at(path))


def memory(root: Path, files: dict[str, str]) -> MainMemory:
    target = Below(root, {"/proc/meminfo": MEMINFO, **files})
    return Facts(target).get(MainMemory)


def second(group: str, **files: str) -> dict[str, str]:
    at = f"/sys/fs/cgroup{group}".rstrip("/")
    return {f"{at}/memory.{name}": text for name, text in files.items()}


def test_without_groups_it_is_the_machines(tmp_path: Path) -> None:
    assert memory(tmp_path, {}) == MainMemory(16 * GIB, 8 * GIB, 1 << 20)


def test_the_tightest_of_the_groups_around_it_counts_and_its_page_cache_is_free(
    tmp_path: Path,
) -> None:
    made = memory(
        tmp_path,
        {
            "/proc/self/cgroup": "0::/a/b\n",
            **second("/a", max=f"{4 * GIB}\n", current=f"{3 * GIB}\n"),
            **second("/a", stat=f"anon 5\nfile 9\ninactive_file {GIB}\nactive_file {GIB}\n"),
            **second("/a/b", max="max\n", current="1\n", events="oom 3\noom_kill 2\n"),
        },
    )
    assert made.group == ControlGroup(Path("/sys/fs/cgroup/a"), 4 * GIB, 3 * GIB)
    assert made.oom_kills == 2


def test_a_group_of_the_first_version_and_a_container_that_has_it_at_the_root(
    tmp_path: Path,
) -> None:
    at = "/sys/fs/cgroup/memory/memory"
    made = memory(
        tmp_path,
        {
            "/proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n",
            f"{at}.limit_in_bytes": f"{2 * GIB}\n",
            f"{at}.usage_in_bytes": f"{GIB}\n",
            f"{at}.stat": f"active_file 7\ntotal_active_file {GIB // 2}\ntotal_inactive_file 0\n",
        },
    )
    assert made.group == ControlGroup(Path("/sys/fs/cgroup/memory"), 2 * GIB, 3 * GIB // 2)


def test_a_limit_above_the_machines_memory_is_none(tmp_path: Path) -> None:
    groups = {
        "/proc/self/cgroup": "4:memory:/\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    assert memory(tmp_path, groups).group is None
    roomy = {"/proc/self/cgroup": "0::/\n", **second("", max=f"{32 * GIB}\n", current="0\n")}
    assert memory(tmp_path / "another", roomy).group is None


@pytest.mark.parametrize(
    "files",
    [
        {"/proc/self/cgroup": "0::/../../etc\n"},
        {"/proc/self/cgroup": "0::\x00\n4:memory\n"},
        {"/proc/self/cgroup": "0::/" + "a/" * 4000 + "\n"},
        {"/proc/self/cgroup": "0::/\n", **second("", max="-5\n", current="x\n")},
        {"/proc/self/cgroup": "0::/\n", **second("", max="9" * 500 + "\n", current="1\n")},
    ],
    ids=["climbs", "odd bytes", "deep", "no numbers", "huge"],
)
def test_what_is_no_answer_is_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    assert memory(tmp_path, files).group is None


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 5 kB\n"])
def test_a_machine_that_does_not_say_it_cannot_be_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(Missing, match="/proc/meminfo cannot be read"):
        memory(tmp_path, {"/proc/meminfo": text})
