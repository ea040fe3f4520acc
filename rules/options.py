"""What the installed vLLM's own parser would end for, word by word of a server's command line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from doctor import Finding, Fix, Needs, Severity, Stage, Text, rule
from doctor.arguments import ArgumentProblem, Wrong
from doctor.fixes import Command, Doctor
from doctor.probes.arguments import ServerArguments
from doctor.probes.option_files import OptionFiles
from doctor.probes.wheels import Vllm
from doctor.profile import ServeRequest


@rule("server-option-invalid", Severity.ERROR, Stage.IMPORT)
def server_option_invalid(
    vllm: Vllm, arguments: ServerArguments, request: ServeRequest
) -> Iterator[Finding]:
    """The installed vLLM does not take the value of an option, or a word that is none.

    vLLM exits before it loads anything: `vllm serve: error: argument --dtype: invalid choice`,
    `invalid int value`, `expected one argument`, `ambiguous option`. What each option takes, and
    its choices, are read from the sources of the installed vLLM: they change with the releases.
    The keys of a JSON value for one of vLLM's configuration classes are compared with its fields;
    what they hold is not. A value that vLLM itself looks at later is not judged here.

    Manual: Write the value that the report names. `vllm serve --help=--dtype` shows what an option
    takes.

    Sources: vllm/engine/arg_utils.py, vllm/utils/argparse_utils.py and vllm/config (0.19.1 to
    0.33.0)

    See also: unknown-server-option, server-options-exclude-each-other
    """
    for problem in arguments.found(*_KINDS):
        yield Finding(
            _message(vllm, problem), tuple(_evidence(problem)), tuple(_fix(problem, request))
        )


_KINDS = (
    Wrong.AMBIGUOUS,
    Wrong.CHOICE,
    Wrong.TYPE,
    Wrong.RANGE,
    Wrong.LACKS_VALUE,
    Wrong.TAKES_NO_VALUE,
    Wrong.UNEXPECTED,
)


def _message(vllm: Vllm, problem: ArgumentProblem) -> Text:
    version, option = vllm.version, problem.option
    value = "an empty value" if problem.value == "" else problem.value
    if problem.kind is Wrong.AMBIGUOUS:
        return Text(
            "vLLM {version} has several options that begin with {option}",
            version=version,
            option=option,
        )
    if problem.kind is Wrong.RANGE:
        return Text("no server can have {value} for {option}", value=value, option=option)
    if problem.kind is Wrong.LACKS_VALUE:
        return Text("{option} lacks its value", option=option)
    if problem.kind is Wrong.UNEXPECTED:
        return Text(
            "vLLM {version} takes {option} for no option's value", version=version, option=option
        )
    if problem.kind is Wrong.TAKES_NO_VALUE:
        return Text(
            "vLLM {version} takes no value for {option}, and it has {value}",
            version=version,
            option=option,
            value=value,
        )
    return Text(
        "vLLM {version} does not take {value} for {option}",
        version=version,
        value=value,
        option=option,
    )


def _evidence(problem: ArgumentProblem) -> Iterator[Text]:
    if problem.why:
        yield problem.why
    meant = problem.meant[:_SHOWN]
    if meant and problem.kind is Wrong.AMBIGUOUS:
        yield Text("it could be {meant}", meant=meant)
    elif meant and problem.kind is Wrong.TYPE:
        yield Text("it has {meant}", meant=meant)
    elif meant:
        yield Text("it takes {meant}", meant=meant)
    if problem.kind is Wrong.UNEXPECTED:
        yield Text("vLLM takes one model, and values behind their options")


_SHOWN = 40


def _fix(problem: ArgumentProblem, request: ServeRequest) -> Iterator[Fix]:
    """The nearest choice, where there is one: of a command's or a profile's own option."""
    name = _key(problem.option)
    if problem.kind is Wrong.CHOICE and problem.meant and _is_said(name, request):
        near = problem.meant[0]
        step = Doctor("diagnose", ("--set", f"{name}={near}"))
        yield Fix(Text("take {near}, if that is what was meant", near=near), (step,), Needs.PERSON)


def _key(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _is_said(name: str, request: ServeRequest) -> bool:
    """Whether `--set` changes it: what stands behind -- goes along as it is."""
    return bool(request.command) or not request.extra


@rule("server-options-exclude-each-other", Severity.ERROR, Stage.IMPORT)
def server_options_exclude_each_other(
    vllm: Vllm, arguments: ServerArguments, request: ServeRequest
) -> Iterator[Finding]:
    """Options of the server exclude each other, or one lacks another that it needs.

    vLLM parses each of them and exits then: `Error: --enable-log-outputs requires
    --enable-log-requests`, `--api-server-count=2 cannot be used with --headless`, `Cannot use more
    than one data parallel load balancing mode`. Which of these the installed vLLM says is looked up
    in its sources.

    Manual: Remove one of the two, or add the one that is asked for.

    Sources: validate_parsed_serve_args, vllm/entrypoints/cli/serve.py (0.19.1 to 0.33.0)

    See also: server-option-invalid, tool-parser-unknown
    """
    for problem in arguments.found(Wrong.EXCLUSIVE, Wrong.NEEDS):
        option, others = problem.option, problem.meant
        if problem.kind is Wrong.NEEDS:
            message = Text("{option} needs {others}", option=option, others=others)
            title, value = Text("add {other}", other=others[0]), "true"
        else:
            message = Text("{option} does not go with {others}", option=option, others=others)
            title, value = Text("remove {other}", other=others[0]), ""
        other = _key(others[0])
        step = Doctor("diagnose", ("--set", f"{other}={value}"))
        fixes = (Fix(title, (step,), Needs.PERSON),) if _is_said(other, request) else ()
        yield Finding(message, (Text("vLLM {version} ends for that", version=vllm.version),), fixes)


@rule("server-config-file-unreadable", Severity.ERROR, Stage.IMPORT)
def server_config_file_unreadable(arguments: ServerArguments) -> Iterator[Finding]:
    """The file of --config cannot be read by vLLM.

    `vllm serve --config FILE.yaml` reads options from a file before it parses anything, and ends
    with a traceback where it is not there, is no YAML, or its name ends otherwise than in .yaml or
    .yml. A relative name is looked up from the folder that the server is started in.

    Manual: Name the file by its absolute path, and write one `option: value` on each line.

    Sources: load_config_file of vllm/utils/argparse_utils.py (0.19.1 to 0.33.0)

    See also: server-option-invalid
    """
    for problem in arguments.found(Wrong.CONFIG_FILE):
        evidence = (problem.why,) if problem.why else ()
        if problem.value is None:
            yield Finding(Text("--config is given wrongly"), evidence)
        else:
            yield Finding(Text("vLLM cannot read {file} of --config", file=problem.value), evidence)


@rule("option-file-missing", Severity.ERROR, Stage.MODEL)
def option_file_missing(files: OptionFiles) -> Iterator[Finding]:
    """An option names a file that is not there.

    vLLM opens most of them after the model is loaded, so that the start fails minutes later: `looks
    like a file path, but it failed to be opened`, `No adapter found for`, `Repo id must be in the
    form`, or a `FileNotFoundError` of the TLS key. Looked for are the template of --chat-template
    (unless it is one of vLLM's own, or the template itself), the TLS files, the adapters that
    --lora-modules names by an absolute path, and --tokenizer and --hf-config-path where they cannot
    be repositories. They are not read: whether the server's user may read them, and what they hold,
    is not judged.

    Manual: Look at the path as the user that the server runs as, in its working directory, and name
    it in full.

    Sources: load_chat_template in vllm/entrypoints/chat_utils.py (0.22.0) and
    vllm/renderers/chat_utils/chat_template.py (0.33.0), vllm/lora/utils.py, uvicorn/config.py

    See also: model-path-missing
    """
    for one in files.absent:
        evidence: tuple[Text, ...] = ()
        if not one.path.is_absolute():
            evidence = (Text("looked for from the folder that the doctor was started in"),)
        look = Command(f"ls -ld {shlex.quote(str(one.path))}")
        yield Finding(
            Text("{option} names {path}, which is not there", option=one.option, path=one.path),
            evidence,
            (
                Fix(
                    Text("look for it as the server's own user, and name it"), (look,), Needs.PERSON
                ),
            ),
        )
