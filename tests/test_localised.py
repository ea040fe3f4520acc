"""What programs of a Chinese system print leads to what their English twins do."""

from __future__ import annotations

from pathlib import Path

import pytest

from doctor.logs import localised
from doctor.logs.lines import LogLine, clean
from doctor.logs.localised import InEnglish, shipped_texts
from doctor.shipped import rules_folder
from doctor.signatures import shipped_catalogue as signatures
from tests import catalogues
from tests.corpus import explained

TABLE = dict(shipped_texts())
INSTALLED = Path("/usr/share/locale/zh_CN/LC_MESSAGES")
LITERALS = {row.literal.strip() for row in signatures().signatures}
# As the programs print them: what stands before a text and after it.
SHAPES = (
    "{}",
    "bash: line 1: vllm: {}",
    "run.sh: line 3:   812 {}                  vllm serve acme/m-7b",
    "/usr/bin/ld: {} -lcudart: x",
    "/srv/venv/bin/python: {}: /srv/x/libacme.so: undefined symbol: acme_pack",
    "OSError: [Errno 28] {}: '/dev/shm/psm_4b1c'",
    "ImportError: libcudart.so.12: {}: x",
    "norm.cu:3:10: {}: acme/pack.h: x",
    "collect2: error: {} 1 exit status",
    "env: {} ‘vllm’: x",
)


def verdict(line: str) -> tuple[object, ...]:
    made = explained(f"one\ntwo\n{line}\n".encode())
    at = made.unknown.line if made.unknown else made.findings[0].line if made.findings else None
    known = [(f.id, f.role, f.line) for f in made.findings]
    return made.verdict, made.primary, made.exit_code, at, known


def read(data: bytes, block: int = 1 << 20, texts: dict[str, str] | None = None) -> bytes:
    pieces = (data[i : i + block] for i in range(0, len(data), block))
    return b"".join(InEnglish(texts).read(pieces))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_chinese_line_comes_to_what_its_english_twin_does(shape: str) -> None:
    pairs = TABLE.items()
    differ = {z: e for z, e in pairs if verdict(shape.format(z)) != verdict(shape.format(e))}
    assert differ == {}


@pytest.mark.parametrize("chinese", [z for z, e in TABLE.items() if e in LITERALS])
def test_what_a_signature_searches_for_is_found_in_chinese(chinese: str) -> None:
    assert any(verdict(shape.format(chinese))[2] for shape in SHAPES)


@pytest.mark.parametrize(
    ("line", "verdict", "primary"),
    [
        ("bash: 第 1 行：vllm：未找到命令", "explained", "vllm-missing"),
        (
            "run.sh: 第 3 行：   812 已杀死               vllm serve m",
            "explained",
            "host-oom-killed",
        ),
        ("已杀死", "explained", "host-oom-killed"),
        ("/usr/bin/ld: 找不到 -lnvrtc: 没有那个文件或目录", "explained", "pip-toolkit-lib-layout"),
        ("段错误（核心已转储）", "unrecognised", None),
        (
            "run.sh: 第 3 行：   812 已放弃               （核心已转储） python a.py",
            "unrecognised",
            None,
        ),
        ("norm.cu:3:10: 致命错误： acme/pack.h：没有那个文件或目录", "unrecognised", None),
        ("run.sh: 第 9 行：/srv/venv/bin/vllm: 权限不够", "unrecognised", None),
        ("collect2: 错误：ld 返回 1", "symptom", None),
        ("norm.cu:3:10: 致命错误： 没有那个文件或目录", "unrecognised", None),
    ],
)
def test_lines_as_a_chinese_system_prints_them(
    line: str, verdict: str, primary: str | None
) -> None:
    made = explained(f"one\n{line}\n".encode())
    assert (made.verdict, made.primary) == (verdict, primary)
    quoted = made.unknown.said if made.unknown else made.findings[0].excerpt
    assert quoted == line
    assert (made.unknown.line if made.unknown else made.findings[0].line) == 2


@pytest.mark.parametrize(
    "text",
    [
        "我不知道错误在哪里，求助",
        "这个错误我找不到原因",
        "启动后一切正常，没有段错误了吧",
        "模型文件夹里没有那个文件或目录吗",
        "他说进程已杀死就好",
        "设备上没有空间了怎么办",
        "权限不够的用户也能用",
    ],
)
def test_words_amid_a_chinese_sentence_stay(text: str) -> None:
    assert read(text.encode()) == text.encode()
    assert explained(f"{text}\n".encode()).exit_code == 0


def test_lines_keep_their_number_and_are_known_as_they_were_printed() -> None:
    english = InEnglish({"未找到命令": "command not found"})
    data = "one\r\n\nbash: a：未找到命令\nthree\n  bash: b: 未找到命令  \nend".encode()
    made = b"".join(english.read([data]))
    assert made.count(b"\n") == data.count(b"\n")
    lines = made.decode().split("\n")
    assert (lines[2], lines[4]) == ("bash: a: command not found", "  bash: b: command not found  ")
    assert english.printed == {3: "bash: a：未找到命令", 5: "bash: b: 未找到命令"}


def test_a_text_behind_another_ones_colon_is_put_into_english() -> None:
    for colon in ("：", "： ", ": "):
        line = f"错误{colon}没有那个文件或目录".encode()
        assert read(line) == b"error: No such file or directory"


def test_a_line_of_very_many_texts_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[int] = []

    def counting(raw: bytes) -> LogLine:
        cleaned.append(len(raw))
        return clean(raw)

    monkeypatch.setattr(localised, "clean", counting)
    read("未找到命令 ".encode() * 5000)
    assert cleaned == [localised._LOOKED_AT]


def test_what_is_quoted_of_a_long_line_holds_no_half_of_a_secret() -> None:
    url = "https://me:pass-9f3kq7zt0w@example.com/x "
    for before in range(330, 400):
        english = InEnglish()
        list(english.read([f"{'x' * before} {url} 未找到命令 {'y' * 9000}\n".encode()]))
        assert len(english.printed[1]) <= 400
        assert "pass-9f" not in english.printed[1]


def test_an_english_log_comes_through_untouched() -> None:
    data = "bash: line 1: vllm: command not found\n│ café │ “x”\n".encode() * 50
    assert read(data, 7) == data


@pytest.mark.parametrize("size", range(1, 12))
def test_where_a_block_ends_does_not_matter(size: int) -> None:
    data = (
        "一\nbash: 第 1 行：vllm：未找到命令\n中文 text\n/usr/bin/ld: 找不到 -lcudart: "
        "没有那个文件或目录\n段错误（核心已转储）\nrun.sh: 已杀死"
    ).encode()
    assert read(data, size) == read(data)
    made = explained(data, size)
    assert made == explained(data)
    assert made.lines == data.count(b"\n") + 1


def test_the_lines_of_later_blocks_have_their_numbers_too() -> None:
    line = "bash: vllm：未找到命令\n".encode()
    english = InEnglish()
    list(english.read([b"one\ntwo\n", line[:13], line[13:] + b"x\n", line]))
    assert sorted(english.printed) == [3, 5]


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "utf-16-le", "gb18030"])
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_bytes_of_another_encoding_do_no_harm(encoding: str, size: int) -> None:
    data = "bash: vllm: 命令\n目的\n".encode(encoding)
    assert read(data, size) == data
    failed = data + b"\nAcmeError: no slot\n"
    assert explained(failed, size).exit_code == 3


def test_a_line_without_an_end_is_not_kept_back_for_ever() -> None:
    data = "中".encode() * 100_000 + b"\nAcmeError: no slot\n"
    assert read(data, 4096) == data


def test_only_the_first_of_very_many_lines_are_kept() -> None:
    english = InEnglish()
    list(english.read(["bash: vllm：未找到命令\n".encode() * 5000]))
    assert len(english.printed) == localised._KEPT
    assert max(map(len, english.printed.values())) <= 400


class TestTheTable:
    def test_it_is_written_as_the_script_writes_it(self) -> None:
        path = rules_folder() / "tables" / "zh_CN.toml"
        assert path.read_text(encoding="utf-8") == catalogues._toml(TABLE)

    def test_each_of_its_texts_is_in_a_signature(self) -> None:
        searched = catalogues.literals()
        plain = {e for e in TABLE.values() if not catalogues._is_searched(e, searched)}
        assert plain <= {one.strip(catalogues._BARE) for one in catalogues._ENDS}

    @pytest.mark.skipif(not list(INSTALLED.glob("bash.mo")), reason="no Chinese catalogues here")
    def test_it_is_what_the_installed_catalogues_say(self) -> None:
        made = catalogues.table([INSTALLED])
        assert made
        assert {z: e for z, e in made.items() if TABLE.get(z) != e} == {}
