"""Names of environments that a shell would take for commands, by way of `env`."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from doctor.exits import HEALTHY, UNKNOWN
from doctor.probes.environment import SAVED
from tests.conftest import BASE_PYTHON, SYSTEM, bare_environment, run_inside
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutate import is_sound

pytestmark = pytest.mark.hardening

PIECES = (
    *("a", " ", "  ", "'", '"', "\\", "$(touch ran)", "`touch ran`", ";touch ran;", "&touch ran&"),
    *("|touch ran|", "\n", "\ntouch ran\n", "\t", "*", "?", "[a]", "~", "#", "!", "!!", "-n", "%h"),
    *(
        "${IFS}",
        "$HOME",
        "$((1))",
        "<",
        ">ran",
        "(",
        ")",
        "{a,b}",
        "=",
        ":",
        "%%",
        "é",
        "中",
        "\x1b",
    ),
    *("'\"'", "\\'", "$'\\n'", "%n", "\r", "\x7f", "end\n", "\udce9"),
)
SHELLS = {
    name: [found]
    for name in ("sh", "dash", "bash", "zsh", "ksh", "fish")
    if (found := shutil.which(name))
}
if busybox := shutil.which("busybox"):
    SHELLS["busybox"] = [busybox, "sh"]
FORMS = ("sh", "fish", "systemd", "dotenv", "json")


def test_no_name_of_an_environment_runs_anything(fuzz: Fuzz, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    def one(r: random.Random) -> None:
        name = "".join(r.choice(PIECES) for _ in range(r.randint(1, 6)))[:200].replace("/", "")
        prefix = tmp_path / "named" / f"x{name}"
        bare_environment(prefix)
        home = str(prefix / "cuda")
        variables = {
            "CUDA_HOME": {"value": home},
            "PATH": {"value": f"{home}/bin", "prepend": True},
        }
        path = prefix / SAVED
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"schema_version": 1, "variables": variables}))
        for form in FORMS:
            said = run_inside("env", "--shell", form, "--python", prefix)
            assert said.code in (HEALTHY, UNKNOWN)
            if said.code:
                is_sound(said, UNKNOWN)
            elif form in ("sh", "fish"):
                evaluated(r, form, said.out, home, empty)
        shutil.rmtree(tmp_path / "named")

    fuzz.each(one)


def evaluated(r: random.Random, form: str, text: str, home: str, folder: Path) -> None:
    """The lines in a real shell: the value arrives as it was, and nothing runs."""
    fit = [name for name in SHELLS if (name == "fish") == (form == "fish")]
    if not fit:
        return
    show = f"{BASE_PYTHON} -c 'import os; print(ascii(os.environ[\"CUDA_HOME\"]))'"
    command = SHELLS[r.choice(fit)]
    ran = subprocess.run(
        [*command, "-c", f"{text}\n{show}"],
        env=SYSTEM,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.stdout.strip() == ascii(home), (command, ran)
    assert not os.listdir(folder)  # noqa: PTH208
