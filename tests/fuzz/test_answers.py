"""What interpreters, drivers and compilers answer, and what they do instead."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from doctor import profile as profiles
from doctor.diagnose import Question, diagnose
from doctor.engine import Crashed, Facts, load_rules
from doctor.exits import FINDINGS, HEALTHY, UNKNOWN, USAGE
from doctor.model import Missing
from doctor.probes.interpreter import MARK, FoundBy, Where
from doctor.profile import ServeRequest
from doctor.report.json import to_json
from doctor.shipped import rules_folder
from doctor.target import Live, Ran
from tests.conftest import HANGS, SYSTEM, Environment, gone, run_doctor, script, wait_for
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutate import changed_json, changed_text, has_no_crash, is_sound, words

pytestmark = pytest.mark.hardening

DRIVER = (
    '{"libcuda": {"path": "/usr/lib/libcuda.so.1", "version": 13000, "count": 1}, "nvml": '
    '{"driver": "580.65.06", "devices": [{"index": 0, "name": "NVIDIA H100", "uuid": "GPU-1", '
    '"capability": "9.0", "total": 85899345920, "free": 85000000000}]}}'
)
NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n"


class Answering(Live):
    """This machine, whose programs answer something else."""

    def __init__(self, r: random.Random, env: Mapping[str, str]) -> None:
        super().__init__({**SYSTEM, **env})
        self._random = random.Random(r.random())
        self.answers: dict[str, str] = {}

    def run(self, *argv: str, timeout: float = 10.0, env: Mapping[str, str] | None = None) -> Ran:
        text = next((t for part, t in self.answers.items() if part in " ".join(argv)), None)
        r = self._random
        if text is None:
            return super().run(*argv, timeout=timeout, env=env)
        if r.random() < 0.1:
            return Ran(r.choice((None, -11, 0, 1, 255)), words(r), words(r), words(r))
        if text.startswith("{"):
            text = changed_json(r, text).decode("utf-8", "backslashreplace")
        elif r.random() < 0.7:
            text = changed_text(r, text)
        if "_inspect.py" in " ".join(argv) and env:
            mark = env.get("VLLM_DOCTOR_MARK", MARK)
            text = f"{mark}\n{text}\n{mark}\n"
        return Ran(r.choice((0, 0, 0, 1)), text, "")


def test_what_a_program_answers(fuzz: Fuzz, shared_server: Environment, tmp_path: Path) -> None:
    rules = load_rules(rules_folder())
    where = Where(shared_server.python, FoundBy.OPTION)
    real = Live(SYSTEM).run(
        *(str(where.python), "-I", "-S", "-B", "vllm-doctor:probes/_inspect.py", str(where.python)),
        env={**SYSTEM, "VLLM_DOCTOR_MARK": "mark"},
    )
    script(tmp_path / "bin/nvcc", "exit 1")
    everything = {
        "_inspect.py": real.out.split("\n")[1],
        "_driver.py": DRIVER,
        "nvcc": NVCC,
        "cc": "gcc (Debian 12.2.0-14) 12.2.0\n",
    }

    def one(r: random.Random) -> None:
        target = Answering(r, {"CUDA_HOME": str(tmp_path)})
        asked = r.sample(sorted(everything), r.randint(1, 2))
        target.answers = {part: everything[part] for part in asked}
        profile = profiles.load_profile(
            profiles.DEFAULT_PROFILE, r.choice(([], ["gpus=later", "archs=9.0"]))
        )
        try:
            report = diagnose(Facts(target, (where, ServeRequest(profile))), rules, Question("x"))
        except Missing:
            return
        except Crashed as crash:
            pytest.fail(f"{asked}: {crash}")
        has_no_crash(to_json(report))

    fuzz.each(one)


PRINTS = (
    *("", "echo garbage", "head -c 20000000 /dev/zero", "printf '\\033]0;owned\\007'"),
    *('echo "$VLLM_DOCTOR_MARK"; echo "{}"; echo "$VLLM_DOCTOR_MARK"', "yes | head -c 9000000"),
    *("printf '\\377\\376\\0'", "echo 13.0 >&2", "cat", "head -c 3000000 /dev/zero >&2"),
)
ENDS = ("exit 0", "exit 3", "kill -SEGV $$", "kill -KILL $$", "kill -KILL -$$", HANGS)
LEAVES = ("", "sleep 86400 & echo $! >> PIDS", "trap '' TERM HUP INT")


def test_a_hostile_program_is_survived_and_nothing_of_it_goes_on(
    fuzz: Fuzz, shared_server: Environment, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"

    def one(r: random.Random) -> None:
        pids.unlink(missing_ok=True)
        name = r.choice(("python", "nvcc", "gcc", "nvidia-smi"))
        leaves = r.choice(LEAVES).replace("PIDS", str(pids))
        body = "\n".join((f"echo $$ >> {pids}", leaves, r.choice(PRINTS), r.choice(ENDS)))
        bad = script(tmp_path / "bin" / name, body)
        python = bad if name == "python" else shared_server.prefix
        env = {"PATH": f"{bad.parent}:/usr/bin:/bin", "CUDA_HOME": str(tmp_path), "CC": str(bad)}
        said = run_doctor("diagnose", "--python", python, env=env, hanging=bad)
        is_sound(said, FINDINGS, HEALTHY, UNKNOWN, USAGE)
        bad.unlink()
        with contextlib.suppress(FileNotFoundError):
            for pid in pids.read_text().split():
                wait_for(lambda pid=pid: gone(int(pid)))  # type: ignore[misc]

    fuzz.each(one)
