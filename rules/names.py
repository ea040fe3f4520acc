"""Variables and options that the installed vLLM does not declare."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from doctor import Finding, Fix, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.arguments import Wrong
from doctor.consumers import names
from doctor.consumers.names import Gone
from doctor.fixes import Command, Doctor
from doctor.model import NO_MODEL
from doctor.probes.arguments import ServerArguments
from doctor.probes.environment import LaunchEnv
from doctor.probes.served import Profile
from doctor.probes.vllm_names import VllmOptions, VllmVariables
from doctor.probes.wheels import Packages, Vllm
from doctor.profile import ServeRequest


@rule("unknown-vllm-variable", Severity.WARNING, Stage.SHELL)
def unknown_vllm_variable(
    env: LaunchEnv,
    vllm: Vllm,
    variables: VllmVariables,
    options: VllmOptions | None,
    packages: Packages,
) -> Iterator[Finding]:
    """A VLLM_* variable has no effect: the installed vLLM does not know it.

    vLLM warns `Unknown vLLM environment variable detected: VLLM_...`. Each release declares its own
    variables in vllm/envs.py; one that was right for an older release is ignored by a newer one
    with a single log line, and so is what it was meant to switch: VLLM_ATTENTION_BACKEND ended with
    0.14, VLLM_USE_FLASHINFER_MOE_FP16 with 0.23, and options replaced them. With
    --fail-on-environ-validation the server exits instead. A name that vLLM never had may belong to
    a local script and is reported as info. Variables of plugins (VLLM_ASCEND_...), Kubernetes
    services (VLLM_SERVICE_HOST), docker links and vLLM's build are not reported.

    Manual: `unset` it where the server is started, and use the option or variable that the report
    names.

    Sources: vllm/envs.py (0.10.0 to 0.33.0)

    See also: unknown-server-option, variable-unreadable
    """
    known = {*variables.names, *names.READ_ELSEWHERE}
    others = [name for name in packages.installed if name != vllm.name]
    for name, value in sorted({**dict.fromkeys(env.hidden, ""), **env.vars}.items()):
        if not name.startswith("VLLM_") or name in known:
            continue
        if names.is_of_others(name, value, others):
            continue
        row = names.gone(name)
        near = None if row else names.nearest(name, variables.names)
        title = Text("unset it")
        declared = options.names if options else ()
        if use := [u for u in (row.use if row else ()) if names.takes(u, known, declared)]:
            title = Text("use {use} instead", use=use)
        elif near:
            title = Text("write {near}, if that is what was meant", near=near)
        yield Finding(
            Text("vLLM {version} does not know {name}", version=vllm.version, name=name),
            tuple(_history(row)),
            (Fix(title, (Command(f"unset {shlex.quote(name)}"),), Needs.PERSON),),
            None if row or near else Severity.INFO,
        )


def _history(row: Gone | None) -> Iterator[Text]:
    if row:
        yield Text("vLLM {last} was the last that had it", last=row.last)


@rule("unknown-server-option", Severity.ERROR, Stage.IMPORT)
def unknown_server_option(
    vllm: Vllm,
    options: VllmOptions,
    arguments: ServerArguments,
    request: ServeRequest,
    profile: Profile,
) -> Iterator[Finding]:
    """The installed vLLM does not accept an option that the server is started with.

    vLLM exits before it loads anything: `vllm: error: unrecognized arguments: --...`. Options come
    and go with the releases. The options of a command line, and those that a start passes from the
    profile, are looked up in the sources of the installed vLLM, as its own parser does: a clear
    beginning of a name will do, underscores are dashes. A plugin for another platform may add
    options of its own: `--accept unknown-server-option`.

    Manual: Remove the setting from the profile (`--set NAME=`) if the server works without it, or
    use the option that the report names.

    Sources: vllm/engine/arg_utils.py and cli_args.py (0.10.0 to 0.33.0)

    See also: unknown-vllm-variable, serve-given-twice, server-option-invalid
    """
    if arguments.parsed or arguments.unread:
        given = {one.option: one.value for one in arguments.found(Wrong.UNKNOWN)}
    elif profile.model is None:
        raise NotApplicable(NO_MODEL)
    else:
        passed = {option: str(value) for _, option, value in names.passed(profile)}
        given = {option: v for option, v in passed.items() if option not in options.names}
    settings = {option: (setting, value) for setting, option, value in names.passed(profile)}
    for option, text in given.items():
        near = names.nearest(option, options.names)
        has = (Text("it has {near}", near=near),) if near else ()
        setting, value = settings.get(option, (None, None))
        if setting:
            fixes = tuple(_left_out(setting, value))
        else:
            fixes = tuple(_renamed(request, option, near, text))
        evidence = (*_history(names.gone(option)), *has)
        yield Finding(_no_option(vllm, option, setting), evidence, fixes)


def _no_option(vllm: Vllm, option: str, setting: str | None) -> Text:
    if setting is None:
        return Text("vLLM {version} has no option {option}", version=vllm.version, option=option)
    return Text(
        "vLLM {version} has no option {option}, which says {setting}",
        version=vllm.version,
        option=option,
        setting=setting,
    )


def _left_out(setting: str, value: object) -> Iterator[Fix]:
    """Where a server does not need it."""
    if value is True or getattr(Profile(), setting) is None:
        without = f"{setting}={'false' if value is True else ''}"
        steps = (Doctor("diagnose", ("--set", without)),)
        yield Fix(Text("remove it, if the server does not need it"), steps, Needs.PERSON)


def _renamed(
    request: ServeRequest, option: str, near: str | None, value: str | None
) -> Iterator[Fix]:
    """Where it is one of a command's, or of a profile's: the nearest name with its value."""
    if not option.startswith("--"):  # its parser takes no value behind one of several letters
        if apart := re.fullmatch(r"(-[a-z]+)(\d+)", option):
            said = f"{apart[1]} {apart[2]}"
            yield Fix(Text("write {said}, if that is what was meant", said=said), (), Needs.PERSON)
        return
    key = option.lstrip("-").replace("-", "_")
    if not request.command and key not in request.profile.options:
        return
    words = ["--set", f"{key}="]
    if near:
        said = f"{near.lstrip('-').replace('-', '_')}={'true' if value is None else value}"
        title = Text("write {near}, if that is what was meant", near=near)
        yield Fix(title, (Doctor("diagnose", (*words, "--set", said)),), Needs.PERSON)
    else:
        title = Text("remove it, if the server does not need it")
        yield Fix(title, (Doctor("diagnose", tuple(words)),), Needs.PERSON)
