"""A plan as a POSIX shell script that does the same, for whoever wants to read it first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from doctor import about
from doctor.diagnose import Report
from doctor.fixes import CudaHome, SetAside
from doctor.model import printable
from doctor.probes.environment import SAVED
from doctor.redact import redact
from doctor.repair.index import PackageIndex, source_of
from doctor.repair.plan import Action, Plan
from doctor.repair.stage import as_file, merged


def script(plan: Plan, report: Report, shell: Mapping[str, str]) -> str:
    """The whole script. Raises OSError or ValueError where the saved variables cannot be read."""
    lines = _lines(plan, report, shell)
    return "".join(f"{_as_comment(line) if line.startswith('#') else line}\n" for line in lines)


def _as_comment(line: str) -> str:
    """One line, whatever a path in it holds: what followed would be executed."""
    return printable(redact(line))


def _lines(plan: Plan, report: Report, shell: Mapping[str, str]) -> Iterator[str]:
    yield "#!/bin/sh"
    about_it = f"{about.NAME} {about.VERSION}: the repair of {report.where.python}"
    yield f"# {printable(about_it)}, to serve {printable(report.model or 'no model')}."
    yield "# It stops at the first command that fails. It keeps no journal: `vllm-doctor undo`"
    yield "# takes back what `vllm-doctor fix --apply` did, not what this script did."
    yield "set -eu"
    for action in plan.actions:
        yield ""
        yield f"# For {', '.join(action.ids)}."
        for ask in action.asks:
            yield f"# Mind: {ask.why}."
        if action.kind == "install":
            yield from _install(plan, report, shell)
        elif action.kind == "environment":
            yield from _environment(action, report, shell)
        else:
            for step in action.steps:
                if isinstance(step, (CudaHome, SetAside)):
                    yield from step.commands(report.installer)
    if not plan.actions:
        yield ""
        yield "# There is nothing that a script could repair."
    for left in plan.by_hand:
        yield ""
        yield f"# By hand, for {left.id}:"
        for fix in left.fixes:
            for step in fix.steps:
                yield from (f"#   {line}" for line in step.commands(report.installer))
    yield ""
    yield "# What could not be judged before is judged now."
    yield f"# {report.installer.again('diagnose', '--deep')}"


def _install(plan: Plan, report: Report, shell: Mapping[str, str]) -> Iterator[str]:
    """Exactly what was resolved, by hash: what the index has tomorrow makes no difference."""
    if plan.request.uninstalled:
        yield report.installer.line("uninstall", plan.request.uninstalled)
    for info in plan.request.broken:
        yield shlex.join(["mv", str(info), f"{info}.set-aside"])
    resolution = plan.resolution
    if resolution is None or not resolution.requirements:
        return
    yield "requirements=$(mktemp)"
    yield "trap 'rm -f \"$requirements\"' EXIT"
    yield "cat > \"$requirements\" <<'EOF'"
    yield from resolution.requirements.splitlines()
    yield "EOF"
    options, secrets = ["--no-deps", "--require-hashes"], []
    if resolution.index.no_index:
        options += ["--no-index"]
    for number, (option, url) in enumerate(_sources(resolution.index), 1):
        if redact(url) == url:
            options += [option, url]
            continue
        # What the script executes has to be the URL itself; what it says is where that is.
        source = source_of(url, shell, report.interpreter.prefix)
        name = source if source and shell.get(source, "").strip() == url else None
        if name is None and source and report.installer.own_pip and not source.startswith("UV_"):
            yield f"# Of {option}, pip's own configuration has a secret: {printable(source)}."
            continue
        name = name or f"INDEX_{number}"
        yield f"# {printable(redact(url))}"
        yield f': "${{{name}:?has to be set to the URL above, with its secret}}"'
        secrets.append(f'{option} "${name}"')
    line = report.installer.line("install", tuple(options))
    yield " ".join([line, *secrets, '-r "$requirements"'])


def _sources(index: PackageIndex) -> Iterator[tuple[str, str]]:
    """What pip and uv call the places of an index, and their URLs."""
    if index.url and not index.no_index:
        yield "--index-url", index.url
    for url in () if index.no_index else index.extra:
        yield "--extra-index-url", url
    for url in index.find_links:
        yield "--find-links", url


def _environment(action: Action, report: Report, shell: Mapping[str, str]) -> Iterator[str]:
    """The file that `vllm-doctor env` and `launch` read."""
    path = report.interpreter.prefix / SAVED
    yield shlex.join(["mkdir", "-p", str(path.parent)])
    yield shlex.join(["rm", "-f", str(path)])  # a link would be written through
    yield f"cat > {shlex.quote(str(path))} <<'EOF'"
    yield as_file(merged(path, action.steps, shell)).rstrip("\n")
    yield "EOF"
    for step in action.steps:
        yield from (f"#   by hand: {line}" for line in step.commands(report.installer))
