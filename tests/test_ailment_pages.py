"""`rules` and the pages of docs/ailments: all that is known of an ailment, in one place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from doctor.engine import load_rules
from doctor.exits import USAGE
from doctor.report.ailment import page_lines, pages, take_apart
from doctor.shipped import rules_folder
from doctor.signatures import shipped_catalogue
from tests.conftest import run_inside
from tests.pages import markdown

PAGES = pages(load_rules(rules_folder()), shipped_catalogue())
SITE_RULES = '''
from doctor import Finding, Severity, Stage, rule
from doctor.probes.environment import LaunchEnv


@rule("quota-service-down", Severity.WARNING, Stage.SHELL)
def quota_service_down(env: LaunchEnv) -> Finding | None:
    """The quota service does not answer.

    Every server asks it for a lease
    before it loads the model.

    Fix: `systemctl restart quota` (`core` is not needed).

    Sources: acme/lease.py (1.0, 1.1), https://acme.example/quota

    See also: nvcc-missing, ninja-missing
    """
'''
SITE_SIGNATURES = """
[[signature]]
id = "quota-service-down"
literal = "quota.LeaseError"
printed_by = "acme:acme/lease.py"
versions = ">=1"

[[signature]]
id = "lease-lost"
literal = "lease was lost"
role = "request"
printed_by = "acme"

[[ailment]]
id = "lease-lost"
title = "The lease was lost"
explanation = "Somebody else has it now."
sources = ["acme/lease.py"]
see_also = ["quota-service-down"]
[[ailment.fix]]
title = "ask again for {minutes} minutes"
commands = ["quota lease {minutes}"]
needs = "person"
[[ailment.fix]]
title = "workaround: serve without a lease"
commands = ["export QUOTA=off"]
needs = "safe"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site.py").write_text(SITE_RULES, encoding="utf-8")
    (tmp_path / "signatures").mkdir()
    (tmp_path / "signatures/site.toml").write_text(SITE_SIGNATURES, encoding="utf-8")
    return tmp_path


def sections(page: str) -> dict[str, str]:
    """By heading, the lines below it without their indentation."""
    parts = re.split(r"(?m)^(?=[A-Z][a-z ]+$)", page)
    return {
        heading: re.sub(r"(?m)^ {2,}", "", rest).strip()
        for heading, _, rest in (part.partition("\n") for part in parts[1:])
    }


def test_a_sites_own_rule_has_its_page_with_all_that_is_said_of_it(site: Path) -> None:
    said = run_inside("rules", "--rules", site, "show", "quota-service-down")
    assert said.code == 0
    assert said.out.startswith(
        "quota-service-down  (warning, site, found by rule and log)\n\n"
        "The quota service does not answer.\n"
    )
    assert sections(said.out) == {
        "Why": "Every server asks it for a lease before it loads the model.",
        "In logs": "- `quota.LeaseError` (acme >=1: `acme/lease.py`)",
        "How it is found": "- On the machine, before the server starts: `vllm-doctor diagnose`, "
        "severity warning. It is judged\nfrom `LaunchEnv`.\n"
        "- It stops no server.\n"
        "- In a server's log: `vllm-doctor explain FILE` finds one of the messages above.",
        "Fix": "`systemctl restart quota` (`core` is not needed).",
        "Sources": "- acme/lease.py (1.0, 1.1)\n- https://acme.example/quota",
        "See also": "- `nvcc-missing`\n- `ninja-missing`",
    }


def test_an_ailment_that_only_a_log_names_has_its_page_too(site: Path) -> None:
    said = run_inside("rules", "--rules", site, "show", "lease-lost")
    assert sections(said.out) == {
        "Why": "Somebody else has it now.",
        "In logs": "- `lease was lost` (acme)",
        "How it is found": "- In a server's log: `vllm-doctor explain FILE` finds one of the "
        "messages above. The server stays\nup; requests fail.",
        "Manual": "- ask again for MINUTES minutes\nquota lease MINUTES",
        "Workaround": "- serve without a lease\nexport QUOTA=off",
        "Sources": "- acme/lease.py",
        "See also": "- `quota-service-down`",
    }


def test_a_sites_signatures_that_cannot_be_read_end_in_one_sentence(site: Path) -> None:
    (site / "signatures/site.toml").write_text("[[signature]]\nid = 1\n")
    said = run_inside("rules", "--rules", site)
    assert (said.code, said.out) == (USAGE, "")
    assert "site.toml" in said.err


@pytest.mark.parametrize("id", PAGES)
def test_the_page_of_the_docs_says_what_the_terminal_says(id: str) -> None:
    """Word for word: only the markup is another."""

    def words(text: str) -> list[str]:
        plain = re.sub(r"\[([^\]]+)\]\(\S+?\)", r"\1", text.replace("\\", ""))
        return re.findall(r"\w+", plain.replace("```sh", ""))

    shown = words("\n".join(page_lines(PAGES[id], 100)))
    made = words("\n".join(markdown(PAGES[id])))
    assert set(made) - {"all", "ailments"} == set(shown) - {"all", "ailments"}


@pytest.mark.parametrize("id", PAGES)
def test_an_ailment_sends_nobody_to_a_page_that_is_not_there(id: str) -> None:
    assert set(PAGES[id].see_also) <= set(PAGES) - {id}


def test_every_ailment_is_listed_with_how_it_is_found() -> None:
    listed = {row.split()[0]: row for row in run_inside("rules").out.splitlines()}
    assert set(listed) == set(PAGES)
    assert "  rule and log  FlashInfer finds no nvcc" in listed["nvcc-missing"]
    assert "  log           " in listed["sampler-warmup-oom"]
    assert "  rule          " in listed["unknown-vllm-variable"]


def test_programs_get_the_same_list() -> None:
    report = run_inside("rules", "--format", "json").report
    jsonschema.validate(report, run_inside("schema", "rules").report)
    (rows,) = report.values()
    assert [row["id"] for row in rows] == list(PAGES)
    (one,) = (row for row in rows if row["id"] == "sampler-warmup-oom")
    assert one == {
        "id": "sampler-warmup-oom",
        "title": PAGES["sampler-warmup-oom"].title,
        "area": "memory",
        "rule": False,
        "log": True,
        "severity": "error",
    }


def ids(*words: str) -> set[str]:
    said = run_inside("rules", *words, "--format", "json")
    return {row["id"] for row in json.loads(said.out)["ailments"]}


def test_the_list_can_be_narrowed_by_area_and_word() -> None:
    assert ids("--area", "toolkit") == {id for id, p in PAGES.items() if p.area == "toolkit"}
    assert "nvcc-missing" in ids("--search", "COULD NOT FIND NVCC")
    found = ids("--area", "network", "--search", "xet")
    assert "hf-xet-cas-error" in found
    assert found == ids("--search", "xet") & ids("--area", "network")
    assert ids("--search", "no such thing at all") == set()


def test_an_area_that_there_is_not_is_told() -> None:
    said = run_inside("rules", "--area", "toolkitt")
    assert (said.code, said.out) == (USAGE, "")
    assert "did you mean toolkit?" in said.err


def test_a_label_counts_only_where_a_paragraph_begins() -> None:
    made = take_apart("A title.\n\nThe line says Fix: none.\n\nFix: install\nit.\n\nNote: rest.")
    assert made.why == ("A title.", "The line says Fix: none.", "Note: rest.")
    assert made.labelled == {"Fix": "install it."}
