"""What is known of the model decides whether a server may be called healthy, and what was accepted
by its name decides nothing: the whole way through the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from doctor import profile as profiles
from doctor.diagnose import Question, diagnose
from doctor.engine import Facts, load_rules
from doctor.model import Severity
from doctor.probes.interpreter import FoundBy, Where
from doctor.profile import ServeRequest
from doctor.repair.plan import Scope, select_fixes
from doctor.report.json import report_schema
from doctor.shipped import rules_folder
from doctor.target import Live
from tests import stand_ins
from tests.conftest import SYSTEM, Environment, must_fit, run_doctor, run_inside, script

CPU = ("--set", "device=cpu")
OTHER = ("--set", "model=somebody/some-model")
ACCEPT = ("--accept", "model-not-known")
QUIET = ("--accept", "model-not-downloaded")


@pytest.fixture
def healthy(shared_cpu_server: Environment) -> tuple[str, ...]:
    """The options that name a healthy environment."""
    return ("--python", str(shared_cpu_server.prefix), *CPU)


def test_a_model_of_which_nothing_is_known_is_one_outcome(healthy: tuple[str, ...]) -> None:
    said = run_inside("diagnose", *healthy, *OTHER, "--format", "json")
    assert said.code == 3
    assert said.found() == {"model-not-downloaded"}
    (one,) = (o for o in said.report["outcomes"] if o["verdict"] == "unknown")
    assert one["id"] == "model-not-known"
    assert one["why"].startswith("nothing is known of somebody/some-model: architecture, type")
    assert {"architecture-not-in-vllm", "tp-not-dividing-heads"} <= {
        n["id"] for n in said.report["not_checked"]
    }


def test_on_gpus_that_are_here_weights_and_heads_are_missed_too(
    shared_server: Environment, tmp_path: Path
) -> None:
    env = stand_ins.environment(stand_ins.build(tmp_path), gpus=2)
    options = ("--python", shared_server.prefix, *OTHER, "--set", "tensor_parallel_size=2")
    said = run_doctor("diagnose", *options, "--format", "json", env=env)
    why = said.outcome("model-not-known")["why"]
    assert "architecture, type, attention heads, weights were not checked" in why


def test_what_is_known_in_part_is_missed_in_part(healthy: tuple[str, ...]) -> None:
    sets = (*OTHER, "--set", "needs.architecture=Glm4MoeLiteForCausalLM")
    said = run_inside("diagnose", *healthy, *sets)
    assert said.code == 3
    assert "not enough is known of somebody/some-model: type were not checked" in said.out


class TestAccepted:
    def test_it_is_shown_and_decides_nothing(self, healthy: tuple[str, ...]) -> None:
        said = run_inside("diagnose", *healthy, *OTHER, *ACCEPT)
        assert said.code == 0
        assert "~ model  accepted: nothing is known of somebody" in said.out
        assert "Healthy (1 warning, 1 fixable; accepted: model-not-known)" in said.out

    def test_json_says_it(self, healthy: tuple[str, ...]) -> None:
        said = run_inside("diagnose", *healthy, *OTHER, *ACCEPT, "--format", "json")
        must_fit(said.report, report_schema)
        assert said.report["verdict"] == "healthy"
        assert [o["id"] for o in said.report["outcomes"] if o["accepted"]] == ["model-not-known"]
        assert said.outcome("model-not-known")["verdict"] == "unknown"

    def test_a_finding_is_accepted_as_well_and_is_no_primary_cause(
        self, healthy: tuple[str, ...]
    ) -> None:
        sets = ("--set", "reasoning_parser=mine", "--set", "tool_call_parser=mine")
        said = run_inside("diagnose", *healthy, *sets, "--accept", "reasoning-parser-unknown")
        assert said.code == 1
        assert "tool-parser-unknown  PRIMARY CAUSE" in said.out
        assert (
            "Not healthy: 1 error, 1 warning, 1 info, 1 fixable; accepted: "
            "reasoning-parser-unknown." in said.out
        )
        both = "reasoning-parser-unknown,tool-parser-unknown"
        assert run_inside("diagnose", *healthy, *sets, "--accept", both).code == 0

    def test_what_is_not_there_is_not_accepted(self, healthy: tuple[str, ...]) -> None:
        said = run_inside("diagnose", *healthy, *ACCEPT, *QUIET)
        assert said.code == 0
        assert said.out.splitlines()[-1] == "Healthy (accepted: model-not-downloaded)"

    @pytest.mark.parametrize("command", ["diagnose", "fix", "launch"])
    def test_a_name_that_no_rule_has_is_a_slip(
        self, command: str, healthy: tuple[str, ...]
    ) -> None:
        said = run_inside(command, *healthy, "--accept", "model-not-knwon")
        assert said.code == 2
        assert said.err.strip() == (
            "vllm-doctor: --accept model-not-knwon: unknown rule; did you mean model-not-known?"
        )

    def test_it_is_not_repaired(self, server: Environment) -> None:
        shutil.rmtree(server.site / "vllm-0.22.0.dist-info")

        def chosen(*accept: str) -> list[str]:
            profile = profiles.load_profile(profiles.DEFAULT_PROFILE, ("gpus=later", "archs=9.0"))
            facts = Facts(
                Live(SYSTEM), (Where(server.python, FoundBy.OPTION), ServeRequest(profile))
            )
            report = diagnose(facts, load_rules(rules_folder()), Question("it", accept=accept))
            return [one.id for one in select_fixes(report, Scope(Severity.ERROR)).chosen]

        assert "vllm-missing" in chosen()
        assert "vllm-missing" not in chosen("vllm-missing")

    def test_a_plan_says_what_it_leaves(self, healthy: tuple[str, ...]) -> None:
        said = run_inside("fix", *healthy, *OTHER, *ACCEPT)
        assert said.code == 0
        assert "Accepted, and left as it is: model-not-known" in said.out

    def test_launch_starts_over_it_and_says_so(self, cpu_server: Environment) -> None:
        script(cpu_server.prefix / "bin/vllm", "exit 7")
        options = ("launch", "--python", cpu_server.prefix, *CPU, *OTHER)
        refused = run_doctor(*options)
        assert refused.code == 78
        assert "inconclusive: model-not-known" in refused.err
        said = run_doctor(*options, *ACCEPT, *QUIET)
        assert said.code == 7
        both = "model-not-downloaded, model-not-known"
        assert f"vllm-doctor: healthy, accepted ({both}); starting " in said.err


class TestWithoutAModel:
    def test_the_environment_alone_is_judged(self, healthy: tuple[str, ...]) -> None:
        said = run_inside("diagnose", *healthy, "--set", "model=")
        assert said.code == 0
        assert "→ environment only" in said.out
        verbose = run_inside("diagnose", *healthy, "--set", "model=", "-v").out
        assert verbose.splitlines()[0] == "environment only: no model was named"
        assert said.out.splitlines()[-1] == "Healthy (environment only)"

    def test_so_it_is_where_a_profile_names_none(
        self, healthy: tuple[str, ...], tmp_path: Path
    ) -> None:
        file = tmp_path / "place.toml"
        file.write_text("device = 'cpu'\n", encoding="utf-8")
        said = run_inside("diagnose", *healthy, "--profile", file, "--format", "json")
        assert said.code == 0
        assert said.report["target"]["model"] is None
        assert "model-not-known" in [n["id"] for n in said.report["not_checked"]]

    def test_nothing_is_launched(self, healthy: tuple[str, ...]) -> None:
        said = run_inside("launch", *healthy, "--set", "model=")
        assert said.code == 2
        assert "a server needs a model" in said.err


class TestAnotherModel:
    def test_the_report_names_it(self, healthy: tuple[str, ...]) -> None:
        said = run_inside("diagnose", *healthy, *OTHER)
        assert "→ some-model" in said.out
        verbose = run_inside("diagnose", *healthy, *OTHER, "-v").out
        assert "for somebody/some-model (profile glm-4.7-flash)" in verbose
        plan = run_inside("fix", *healthy, *OTHER)
        assert "to serve somebody/some-model (profile glm-4.7-flash)" in plan.out

    def test_what_the_profile_says_of_its_own_is_left_out_and_told(
        self, healthy: tuple[str, ...]
    ) -> None:
        said = run_inside("launch", *healthy, *OTHER, *ACCEPT, "--dry-run")
        assert "glm4" not in said.out
        assert "reasoning_parser, tool_call_parser" in said.err
        assert "belong to zai-org/GLM-4.7-Flash, not to somebody/some-model" in said.err


class TestPath:
    def test_one_that_leads_nowhere_is_found(self, healthy: tuple[str, ...]) -> None:
        said = run_inside("diagnose", *healthy, "--set", "model=/data/nowhere", "--format", "json")
        assert said.code == 1
        assert said.report["primary"] == "model-path-missing"
        assert said.found() == {"model-path-missing"}
        assert "model-not-known" in [n["id"] for n in said.report["not_checked"]]

    @pytest.mark.parametrize("name", ["./model", "a/b/c", "~/model", "/x/../y"])
    def test_what_can_only_be_a_path_is_one(
        self, healthy: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        said = run_inside("diagnose", *healthy, "--set", f"model={name}", "--format", "json")
        assert said.found() == {"model-path-missing"}

    @pytest.mark.parametrize("name", ["gpt2", "org/model", "s3://bucket/a/model"])
    def test_a_repository_and_an_address_are_none(
        self, healthy: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        said = run_inside("diagnose", *healthy, "--set", f"model={name}", "--format", "json")
        assert said.found() == (set() if "://" in name else {"model-not-downloaded"})

    def test_a_folder_of_that_name_wins_over_the_repository(
        self, healthy: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "org/model").mkdir(parents=True)
        options = ("diagnose", *healthy, "--set", "model=org/model", "--format", "json")
        assert run_inside(*options).found() == {"model-path-missing"}
        (tmp_path / "org/model/config.json").write_text("{}", encoding="utf-8")
        found = {"model-files-missing", "local-folder-shadows-repository"}
        assert run_inside(*options).found() == found


class TestEnvironmentWithoutSitePackages:
    def test_it_is_one_finding(self, cpu_server: Environment) -> None:
        shutil.rmtree(cpu_server.prefix / "lib")
        said = run_doctor("diagnose", "--python", cpu_server.prefix, *CPU, "--format", "json")
        assert said.code == 1
        assert said.report["primary"] == "site-packages-missing"
        assert [o["id"] for o in said.report["outcomes"] if o["verdict"] != "ok"] == [
            "site-packages-missing",
            "model-not-downloaded",
        ]

    def test_an_empty_one_is_an_environment_without_vllm(self, bare: Environment) -> None:
        said = run_doctor("diagnose", "--python", bare.prefix, *CPU, "--format", "json")
        assert said.report["primary"] == "vllm-missing"
        assert "site-packages-missing" not in said.found()


def test_a_snapshot_that_is_older_than_a_check_is_not_asked_for_it(tmp_path: Path) -> None:
    tape = Path(__file__).parent.parent / "fixtures/snapshots-0.1.0/folder-of-links.json"
    said = run_inside("diagnose", "--from", tape, "--format", "json")
    assert said.code == 0
    why = {n["id"]: n["why"] for n in said.report["not_checked"]}
    assert why["tool-parser-unknown"] == (
        "recorded by vllm-doctor 0.1.0, before this check existed"
    )
    newer = tmp_path / "newer.json"
    data = json.loads(tape.read_text(encoding="utf-8"))
    newer.write_text(json.dumps({**data, "tool": "vllm-doctor 0.2.0"}), encoding="utf-8")
    said = run_inside("diagnose", "--from", newer, "--format", "json")
    assert said.code == 3
    assert "does not contain" in said.outcome("tool-parser-unknown")["why"]
