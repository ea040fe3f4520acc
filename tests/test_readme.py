"""The READMEs and the pages of docs/ say what the doctor prints, in both languages the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from doctor.cli import cli
from tests import regenerate
from tests.conftest import run_inside
from tests.documents import COUNT, DOCS, PAGES, PAIRS, ROOT, commands

COMMAND = r"(?m)(?:`|^|\$ |/)vllm-doctor ([a-z]+)"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ROWS = re.compile(r"(?m)^\|.*\|$")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_everything_that_is_made_is_as_the_code_makes_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Golden reports, transcripts, counts, pages: `python -m tests.regenerate` makes them."""
    code = regenerate.main(["--check"])
    assert (code, capsys.readouterr().out) == (0, "")


@pytest.mark.parametrize(("readme", "most"), [("README.md", 160), ("README.zh-CN.md", 160)])
def test_a_readme_is_short_and_shows_a_command_and_the_five(readme: str, most: int) -> None:
    text = read(ROOT / readme)
    assert len(text.splitlines()) <= most
    shown = [line.split()[1] for line in commands(text)]
    assert shown == ["diagnose", "explain", "diagnose", "fix", "fix", "launch"]
    first = text.partition("\n## ")[0]
    assert "vllm-doctor diagnose -- vllm serve " in first
    counted = {"rules", "signatures", "ailments", "models"}
    assert {found.group(1) for found in COUNT.finditer(text)} == counted


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_that_is_named_exists_with_its_options(page: Path) -> None:
    text = read(page)
    assert set(re.findall(COMMAND, text)) <= set(cli.commands)
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            for words in calls(line):
                command, *rest = words
                made = cli.commands[command].make_context(command, rest)
                assert made.info_name == command


def calls(line: str) -> list[list[str]]:
    """The words behind `vllm-doctor`, of each call in a line of a shell."""
    split = shlex.shlex(line, posix=True, punctuation_chars=True)
    split.whitespace_split = True
    found: list[list[str]] = []
    ours = False
    for word in split:
        if word == "vllm-doctor" or word.endswith("/vllm-doctor"):
            found.append([])
            ours = True
        elif set(word) <= set("();<>|&"):
            ours = False
        elif ours:
            found[-1].append(word)
    return found


def test_a_call_in_a_line_of_a_shell_is_seen() -> None:
    assert calls('a=1 vllm-doctor diagnose -q "a b" || x; b/vllm-doctor env | tee') == [
        ["diagnose", "-q", "a b"],
        ["env"],
    ]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"], ids=name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in LINK.findall(read(page)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", read(page))
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: name(pair[0]))
def test_both_languages_show_the_same_commands_and_figures(pair: tuple[Path, Path]) -> None:
    one, other = map(read, pair)
    assert code(one) == code(other)
    assert figures(one) == figures(other)
    assert COUNT.findall(one) == COUNT.findall(other)


def test_every_page_that_people_write_is_there_in_both_languages() -> None:
    english_only = {"versions.md", "jit-users.md"}
    written = {page.name for page in DOCS.glob("*.md")} - english_only
    assert written == {page.name for page in (DOCS / "zh").glob("*.md")}


def code(text: str) -> list[str]:
    """The code blocks without their comments, which are translated, and empty lines."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    bare = [re.sub(r"(?m)(^|\s+)#.*$", "", block) for block in blocks]
    return [re.sub(r"\n+", "\n", block).strip() for block in bare]


def figures(text: str) -> list[list[str]]:
    """The numbers in each row of a table."""
    return [sorted(re.findall(r"\d[\d.]*", row)) for row in ROWS.findall(text)]


@pytest.mark.parametrize("page", [DOCS / "logs.md", DOCS / "zh/logs.md"], ids=name)
def test_the_signature_that_is_shown_works(page: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", read(page), re.S)
    (tmp_path / "signatures").mkdir()
    (tmp_path / "signatures/site.toml").write_text(example, encoding="utf-8")
    log = tmp_path / "server.log"
    log.write_text("ERROR 11-29 19:00:00 quota.LeaseError: too many servers\n", encoding="utf-8")
    said = run_inside("explain", "--no-live", "--rules", tmp_path, log)
    assert said.code == 1
    assert "the quota service gives no lease: too many servers" in said.out
    assert "systemctl start quota" in said.out
