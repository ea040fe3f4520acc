"""A place in which a server would start, and what the real FlashInfer and the doctor say there."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.real_stack import isolate, lab

DOCTOR = Path(sys.executable).with_name("vllm-doctor")
BUILD_SAMPLING = """
from flashinfer.jit.sampling import gen_sampling_module

spec = gen_sampling_module()
spec.build_and_load()
print("built and loaded", spec.jit_library_path)
"""


@dataclass(frozen=True)
class Report:
    """The JSON of `vllm-doctor diagnose`, and how the command ended."""

    code: int
    err: str
    data: dict[str, Any]

    @property
    def deep(self) -> dict[str, Any]:
        deep: dict[str, Any] = self.data["deep"]
        return deep

    def ids(self, verdict: str, severity: str | None = None) -> set[str]:
        """The ids of all outcomes with this verdict, or of those that are also this severe."""
        return {
            outcome["id"]
            for outcome in self.data["outcomes"]
            if outcome["verdict"] == verdict and severity in (None, outcome["severity"])
        }

    @property
    def errors(self) -> set[str]:
        return self.ids("found", "error")

    @property
    def not_checked(self) -> dict[str, str]:
        """Why, by id."""
        return {entry["id"]: entry["why"] for entry in self.data["not_checked"]}

    def findings(self, ailment: str) -> list[dict[str, Any]]:
        return [
            finding
            for outcome in self.data["outcomes"]
            if outcome["id"] == ailment
            for finding in outcome["findings"]
        ]

    def said(self, ailment: str) -> str:
        """All that is said of an ailment: messages and evidence, one a line."""
        lines: list[str] = []
        for finding in self.findings(ailment):
            lines += [finding["message"], *finding["evidence"]]
        return "\n".join(lines)


@dataclass(frozen=True)
class Place:
    """The environment that would serve, the server's variables, and its machine's toolkit.

    `toolkit`: what lies in /usr/local/cuda; None where nothing does.
    """

    target: lab.Environment
    home: Path
    env: Mapping[str, str] = field(default_factory=dict)
    toolkit: Path | None = None
    first_on_path: tuple[Path, ...] = ()

    def having(self, **variables: str) -> Place:
        """This place with further variables."""
        return replace(self, env={**self.env, **variables})

    def build_sampling(self) -> isolate.Ran:
        """FlashInfer's own build of its sampling module, as vLLM has it done at its start.

        For an H100, because there is no real GPU that FlashInfer could ask.
        """
        return self.having(FLASHINFER_CUDA_ARCH_LIST="9.0a").python(BUILD_SAMPLING)

    def python(self, code: str) -> isolate.Ran:
        """Runs code in the target's interpreter, as a server's own process would."""
        return self.run(self.target.python, "-c", code)

    def diagnose(self, *options: str) -> Report:
        """`vllm-doctor diagnose --format json`, run from the tests' own environment."""
        about = ("--format", "json", "--python", str(self.target.python))
        ran = self.run(DOCTOR, "diagnose", *about, *options)
        assert "Traceback" not in ran.err, ran.err
        try:
            data = json.loads(ran.out)
        except ValueError:
            raise AssertionError(f"exit {ran.code}, no JSON:\n{ran.text}") from None
        assert data["exit_code"] == ran.code
        return Report(ran.code, ran.err, data)

    def run(self, *command: str | Path) -> isolate.Ran:
        path = [*map(str, self.first_on_path), str(self.target.prefix / "bin"), isolate.SYSTEM_PATH]
        env = {"PATH": ":".join(path), "HOME": str(self.home), **self.env}
        return isolate.run(list(command), env, toolkit=self.toolkit, cwd=self.home)
