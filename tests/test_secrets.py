"""No command lets a secret out, wherever it stands: in the environment, a log, pip's and uv's
configuration, a command line, a URL, the files of a distribution. What is no secret stays."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from doctor.cli import output
from doctor.logs.several import Whole
from doctor.model import Installer
from doctor.redact import redact
from doctor.report.explained import Explained, explained_json, explained_lines
from doctor.report.lines import Style
from doctor.signatures import shipped_catalogue
from tests.conftest import DOCTOR, Environment, Said, run_doctor, script
from tests.corpus import explained
from tests.planted import Planted, planted
from tests.stand_ins.fixtures import FOR_H100, Bench
from tests.stand_ins.index import Index
from tests.test_running import running_as

pytestmark = pytest.mark.hardening

PLANTED = planted()
USER, PASSWORD = "robot", "tr0ub4dor-and-3"
# As the configuration of a machine has them; by name, where the text itself does not say it.
BY_NAME = {
    "VLLM_API_KEY": "plain-but-mine-alone",
    "HF_TOKEN": "also-mine-alone-here",
    "AWS_SECRET_ACCESS_KEY": "cloud-of-mine-alone",
    "UV_INDEX_CORP_PASSWORD": "corp-of-mine-alone",
}
STAYS = (
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",  # a wheel's hash
    "flashinfer_python-0.6.11.post2-py3-none-any.whl",
    "GPU-8e9f1234-0bcd-1234-abcd-1234567890ab",
    "cmpl-0123456789abcdef0123456789abcdef",
    "7dd20894a642a0aa287e9827cb1a1f7f91386b67",  # a commit
    "_ZN3c104cuda29c10_cuda_check_implementationEiPKcS2_jb",
    "zai-org/GLM-4.7-Flash",
)


def leaked(*texts: str, also: Iterable[str] = ()) -> list[str]:
    """The shapes of the secrets that are in one of the texts."""
    whole = "\n".join(texts)
    found = [one.shape for one in PLANTED if one.secret in whole]
    return [*found, *(one for one in (PASSWORD, *BY_NAME.values(), *also) if one in whole)]


def variables() -> dict[str, str]:
    """Secrets under names that tell them, and all others under names that tell nothing."""
    families = ("VLLM_X{}", "HF_HUB_X{}", "NCCL_X{}", "TORCH_X{}", "FLASHINFER_X{}", "OTHER_{}")
    plain = [one for one in PLANTED if "\n" not in one.text]
    named = {families[i % len(families)].format(i): one.text for i, one in enumerate(plain)}
    return {**named, **BY_NAME}


def plant(environment: Environment, home: Path, index: Index) -> None:
    """Secrets in the files of distributions, in netrc, in pip's and uv's configuration."""
    everything = "\n".join(one.text for one in PLANTED)
    for info in environment.site.glob("*.dist-info"):
        with (info / "METADATA").open("a", encoding="utf-8") as file:
            file.write(f"\n{everything}\n")
        where = {"url": f"https://{USER}:{PASSWORD}@corp.test/x.whl", "archive_info": {}}
        (info / "direct_url.json").write_text(json.dumps(where), encoding="utf-8")
    (home / ".netrc").write_text(f"machine {index.host} login {USER} password {PASSWORD}\n")
    comments = "".join(f"# {line}\n" for line in (*everything.splitlines(), *STAYS))
    (environment.site / "planted.pth").write_text(comments, encoding="utf-8")
    token = next(one for one in PLANTED if one.shape == "mirror path").secret
    extra = index.url_with(USER, PASSWORD).replace("/simple", f"/{token}/simple")
    for place, text in {
        "pip/pip.conf": f"[global]\nextra-index-url =\n    {extra}\n    https:/{PASSWORD}\n"
        f"find-links = {PASSWORD}\ncert = {PASSWORD}\n",
        "uv/uv.toml": f'[[index]]\nname = "corp"\nurl = "https://me:{PASSWORD}@corp.test/x"\n',
    }.items():
        path = home / ".config" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@dataclass(frozen=True)
class Machine:
    """An environment that wants repair, with secrets all around it."""

    bench: Bench
    index: Index
    environment: Environment
    home: Path

    def run(self, command: str, *words: str | Path, **more: str) -> Said:
        url = self.index.url_with(USER, PASSWORD)
        shell = self.bench.shell(url, self.environment, **variables(), **more, HOME=str(self.home))
        about = (
            ()
            if command in ("rules", "schema", "explain")
            else ("--python", self.environment.prefix)
        )
        return run_doctor(command, *about, *words, env=shell)


@pytest.fixture
def machine(bench: Bench, index: Index, broken: Environment, tmp_path: Path) -> Machine:
    index.faults.credentials = (USER, PASSWORD)
    home = tmp_path / "home"
    home.mkdir()
    plant(broken, home, index)
    script(broken.prefix / "bin/vllm", "exit 0", str(broken.python))
    return Machine(bench, index, broken, home)


JUDGING: Mapping[str, tuple[str, ...]] = {
    "diagnose": FOR_H100,
    "diagnose -v": (*FOR_H100, "-v"),
    "diagnose -q": (*FOR_H100, "-q"),
    "diagnose --format json": (*FOR_H100, "--format", "json"),
    "diagnose --format junit": (*FOR_H100, "--format", "junit"),
    "diagnose --format github": (*FOR_H100, "--format", "github"),
    "fix": FOR_H100,
    "fix --format json": (*FOR_H100, "--format", "json"),
    "fix --format junit": (*FOR_H100, "--format", "junit"),
    "fix --format github": (*FOR_H100, "--format", "github"),
    "fix --script -": (*FOR_H100, "--script", "-"),
    "fix --mirror": (*FOR_H100, "--mirror", f"https://{USER}:{PASSWORD}@127.0.0.1:9/simple"),
    "launch --dry-run": (
        *(
            "--dry-run",
            "--set",
            f"env.MY_TOKEN={PASSWORD}",
            "--set",
            f"env.URL=x://u:{PASSWORD}@h/",
        ),
        *("--", "--api-key", PASSWORD, f"--hf-token={PASSWORD}"),
    ),
    "env -v": ("-v",),
    "undo --list": ("--list",),
    "snapshot -o -": (*FOR_H100, "-o", "-"),
}


@pytest.mark.parametrize("command", JUDGING)
def test_no_command_prints_a_secret(machine: Machine, command: str) -> None:
    # A variable whose value is kept, because it is judged.
    judged = {"NVCC_APPEND_FLAGS": f"-O3 {PLANTED[0].text}"}
    said = machine.run(command.partition(" ")[0], *JUDGING[command], **judged)
    assert said.code in (0, 1, 3, 78), said.err
    assert leaked(said.out, said.err) == []
    if command.endswith("json"):
        assert json.loads(said.out)["tool"]
    if command.startswith("snapshot"):
        assert [text for text in STAYS if text not in said.out] == []
        recorded = json.loads(said.out)
        assert {"HF_TOKEN", "VLLM_API_KEY", "NCCL_X2"} <= set(recorded["env_names"])
        assert recorded["env"]["NVCC_APPEND_FLAGS"] == f"-O3 {redact(PLANTED[0].text)}"


def test_no_repair_writes_or_prints_a_secret(machine: Machine, tmp_path: Path) -> None:
    written = (tmp_path / "tape.json", tmp_path / "fix.sh")
    said = [
        machine.run("snapshot", *FOR_H100, "-o", written[0]),
        machine.run("fix", *FOR_H100, "--script", written[1]),
        machine.run("fix", *FOR_H100, "--apply"),
        machine.run("undo", "--list"),
        machine.run("env", "--shell", "json"),
        machine.run("undo"),
    ]
    assert [one.code for one in said[2:]] == [0, 0, 0, 0], said[2].err
    assert leaked(*(text for one in said for text in (one.out, one.err))) == []
    ours = machine.environment.prefix / "share/vllm-doctor"
    kept = [p for p in ours.rglob("*.json") if "dist-info" not in str(p)]
    assert leaked(*(p.read_text("utf-8", "replace") for p in (*written, *kept))) == []


def test_the_script_refers_to_the_secret_and_runs(machine: Machine, tmp_path: Path) -> None:
    """What is executed asks the index with its password, and holds none."""
    made = tmp_path / "fix.sh"
    assert machine.run("fix", *FOR_H100, "--script", made).code == 1
    text = made.read_text()
    assert '--index-url "$PIP_INDEX_URL"' in text
    assert leaked(text) == []
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"  # uv, for an environment without pip
    env = {"HOME": str(machine.home), "UV_CACHE_DIR": str(tmp_path / "uv"), "PATH": path}
    url = machine.index.url_with(USER, PASSWORD)
    for name in ("PIP_INDEX_URL", "INDEX_2"):
        ran = subprocess.run(["sh", made], env=env, capture_output=True, text=True, check=False)
        assert ran.returncode != 0
        assert f"{name}: has to be set" in ran.stderr
        env[name] = url
    subprocess.run(["sh", made], env=env, capture_output=True, check=True)
    assert machine.index.fetched


def test_a_process_that_holds_the_environment_is_named_without_its_secrets(
    machine: Machine,
) -> None:
    program = machine.environment.prefix / "bin/serve"
    script(program, "print('up', flush=True); input()", str(machine.environment.python))
    for one in PLANTED[:: len(PLANTED) // 10]:
        with running_as(program, *one.text.split()):
            said = machine.run("undo")
        assert said.code == 1
        assert "serve" in said.err
        assert "runs out of this environment" in said.err
        # The name is cut, a secret may not be.
        assert one.secret[-12:] not in said.err
        assert one.secret[:12] not in said.err


@pytest.mark.parametrize("one", PLANTED, ids=lambda one: one.shape)
def test_explain_quotes_no_secret_of_a_log(
    one: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    log = f"INFO 11-28 16:30:12 [api_server.py:1] vLLM API server version 0.22.0\n{one.text}\n"
    log += f"RuntimeError: it failed: {one.text}\n"
    made = Explained(
        [Whole(["server.log"])], explained(log.encode()), {},
        shipped_catalogue().ailments, {}, False,
        Installer(Path("/venv/bin/python"), own_pip=True),
    )  # fmt: skip
    output.print_json(explained_json(made))
    for width in (100, 40):
        output.print_lines(explained_lines(made, Style(width=width)))
    said = capsys.readouterr()
    assert made.told.verdict == "unrecognised"
    assert "it failed" in said.out
    assert one.secret not in said.out
    assert one.secret not in "".join(line.strip() for line in said.out.splitlines())


TYPED = f"https://{USER}:{PASSWORD}@corp.test/x"
TOKEN = next(one.secret for one in PLANTED if one.shape == "github")


@pytest.mark.parametrize(
    "words",
    [
        ("diagnose", f"--mirorr={TYPED}"),
        ("diagnose", TYPED),
        ("diagnose", "--python", TYPED),
        ("diagnose", "--profile", TYPED),
        ("diagnose", "--from", TYPED),
        ("diagnose", "--set", TOKEN),
        ("diagnose", "--set", PASSWORD),
        ("diagnose", "--set", f"port={TOKEN}"),
        ("diagnose", "--rules", TYPED),
        ("diagnose", "--fail-on", TOKEN),
        ("fix", "--mirror", PASSWORD),
        ("fix", "--mirror", f"{USER}:{PASSWORD}@corp.test/simple"),
        ("fix", "--mirror", f"https://corp.test /{PASSWORD}"),
        ("fix", "--mirror", f"https:/{USER}:{PASSWORD}@corp.test"),
        ("fix", "--only", TOKEN),
        ("fix", "--script", f"/nonexistent/{TOKEN}"),
        ("explain", TYPED),
        ("explain", f"/nonexistent/{TOKEN}"),
        ("rules", "show", TOKEN),
        ("undo", TOKEN),
        ("snapshot", "-o", f"/nonexistent/{TOKEN}"),
        ("launch", "--", TOKEN),
        (TOKEN,),
    ],
    ids=lambda words: " ".join(words[:2])[:24],
)
def test_a_secret_that_was_typed_is_not_repeated(
    shared_cpu_server: Environment, words: tuple[str, ...]
) -> None:
    said = run_doctor(*words, env={"VIRTUAL_ENV": str(shared_cpu_server.prefix)})
    assert said.code in (2, 3, 4)
    assert said.err
    assert leaked(said.out, said.err, also=(TOKEN,)) == []


# Files that a person asks for.


@pytest.fixture(params=["snapshot", "fix"])
def writing(request: pytest.FixtureRequest, shared_cpu_server: Environment) -> list[str]:
    words = ["snapshot", "-o"] if request.param == "snapshot" else ["fix", "--script"]
    about = ["--python", str(shared_cpu_server.prefix), "--set", "device=cpu"]
    return [words[0], *about, words[1]]


def test_what_is_written_goes_through_nothing_that_was_planted(
    writing: list[str], tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    mine.chmod(0o600)
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    for name, what in {"link": "link", "dangling": "link", "fifo": "fifo"}.items():
        said = run_doctor(*writing, tmp_path / name)
        assert said.code == 2
        assert f"it is a {what}; name a file" in said.err
        assert said.err.count("\n") == 1
    assert (mine.read_text(), stat.S_IMODE(mine.stat().st_mode)) == ("mine", 0o600)
    assert not (tmp_path / "nothing").exists()


def test_a_file_that_is_there_is_replaced_whole(writing: list[str], tmp_path: Path) -> None:
    place, other = tmp_path / "out", tmp_path / "other"
    place.write_text("before")
    os.link(place, other)
    assert run_doctor(*writing, place).code in (0, 1)
    assert place.read_text().startswith(("{", "#!/bin/sh"))
    assert other.read_text() == "before"
    wanted = 0o755 if writing[0] == "fix" else 0o644
    assert stat.S_IMODE(place.stat().st_mode) == wanted & ~_umask()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out"]


def test_devices_are_written_to(writing: list[str]) -> None:
    command = [str(DOCTOR), *writing]
    with subprocess.Popen([*command, "/dev/stdout"], stdout=subprocess.PIPE) as child:
        out, _ = child.communicate(timeout=60)
    assert out.startswith((b"{", b"#!/bin/sh"))
    assert run_doctor(*writing, "/dev/null").code in (0, 1)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_what_stays_is_no_secret_to_the_redactor() -> None:
    assert [
        text
        for text in STAYS
        if redact(f"{text}, and --hash=sha256:{text}") != f"{text}, and --hash=sha256:{text}"
    ] == []
