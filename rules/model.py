"""What the model asks of the software."""

from __future__ import annotations

import shlex
from difflib import get_close_matches

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers import tables
from doctor.consumers.source import Unreadable
from doctor.fixes import Command, Doctor, PipInstall
from doctor.fixes.recipes import another_vllm
from doctor.model import NO_MODEL
from doctor.probes.model import ModelPath
from doctor.probes.parsers import ReasoningParsers, ToolParsers
from doctor.probes.wheels import Specifiers, Transformers, Vllm
from doctor.profile import ModelNeeds, Profile


@rule("architecture-not-in-transformers", Severity.ERROR, Stage.MODEL)
def architecture_not_in_transformers(
    transformers: Transformers, vllm: Vllm, profile: Profile
) -> Finding | None:
    """The installed transformers does not know the model's type.

    "model type `glm4_moe_lite` but Transformers does not recognize this architecture". vLLM 0.22.0
    accepts transformers 4.57 and not 5.0 to 5.5.0, and a resolver may choose 4.57.6, which has no
    glm4_moe_lite. transformers, huggingface-hub, tokenizers and xgrammar have to move together, so
    vLLM is named in the same command.
    """
    if transformers.model_type is None:
        raise NotApplicable(Text("the profile does not say the model's type"))
    if transformers.model_type or vllm.model_type:
        return None
    if vllm.model_type is None:
        raise Unreadable(vllm.root / tables.CONFIGURATIONS.file, tables.CONFIGURATIONS.what)
    wanted = profile.needs.transformers or ""
    if Specifiers(wanted).admits(transformers.version):
        # What is installed would do for a resolver.
        wanted = ",".join(w for w in (wanted, f">{transformers.version.public}") if w)
    return Finding(
        Text(
            "transformers {version} does not know {type}, the type of {model}",
            version=transformers.version,
            type=profile.needs.model_type,
            model=profile.model,
        ),
        (Text("vLLM {version} asks for transformers {pin}", version=vllm.version, pin=_pin(vllm)),),
        (
            Fix(
                Text("install a transformers that vLLM accepts and that knows the model"),
                (PipInstall((vllm.requirement, f"transformers{wanted}")),),
            ),
        ),
    )


def _pin(vllm: Vllm) -> str:
    return str(vllm.pin("transformers") or "(any)")


@rule("architecture-not-in-vllm", Severity.ERROR, Stage.MODEL)
def architecture_not_in_vllm(vllm: Vllm, profile: Profile) -> Finding | None:
    """The installed vLLM has no class for the model.

    `Model architectures ['...'] are not supported for now`.
    """
    if profile.needs.architecture is None:
        raise NotApplicable(Text("the profile does not say the model's class"))
    if vllm.architecture is None:
        raise Unreadable(vllm.root / tables.MODELS.file, tables.MODELS.what)
    if vllm.architecture:
        return None
    return Finding(
        Text(
            "vLLM {version} has no {architecture}, which {model} needs",
            version=vllm.version,
            architecture=profile.needs.architecture,
            model=profile.model,
        ),
        (),
        (another_vllm(vllm, profile.needs),),
    )


# What a person calls the needs that decide a start.
_NEEDS = {
    "architecture": "architecture",
    "model_type": "type",
    "attention_heads": "attention heads",
    "weights_gib": "weights",
}


@rule("model-not-known", Severity.ERROR, Stage.MODEL)
def model_not_known(profile: Profile) -> None:
    """Of this model nothing is known that decides how the server starts.

    A profile's [needs] say what the model's config.json says: its class (`architecture`) and
    `model_type`, which vLLM and transformers have to have; `attention_heads`, where several GPUs
    are to share them; and `weights_gib`, which have to fit into the GPUs. What is not said there
    is not checked, and a server of which that is true is not called healthy. `--accept
    model-not-known` goes on without it.
    """
    if profile.model is None:
        raise NotApplicable(NO_MODEL)
    lacking = profile.unknown()
    if not lacking:
        return
    raise Missing(
        Text(
            "{known} is known of {model}: {lacking} were not checked; name them in a profile's "
            "[needs] (--set needs.{first}=...), or go on with --accept model-not-known",
            known="nothing" if profile.needs == ModelNeeds() else "not enough",
            model=profile.model,
            lacking=[_NEEDS[name] for name in lacking],
            first=lacking[0],
        ),
        ("model-path-missing",),
    )


@rule("model-path-missing", Severity.ERROR, Stage.MODEL)
def model_path_missing(model: ModelPath) -> Finding | None:
    """The model is found neither as a folder nor on the Hub.

    `HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name'`. A name
    that is no existing folder is taken for a repository. A path that is right on the host is wrong
    in a container that does not mount it, in a service that has another working folder, or on
    another Ray node; a folder without config.json does not count as a model. The other way round,
    a folder ORG/MODEL in the working directory silently wins over the repository of that name. For
    a private repository without a token the Hub says "not found" as well. A ~ stays a ~: vLLM puts
    no home in its place.
    """
    if model.path is None or model.config:
        return None
    message = Text("there is no folder {path}", path=model.path)
    if model.there:
        message = Text("{path} is not a folder with a config.json", path=model.path)
    evidence = [Text("vLLM would then take the name for one of a repository on the Hub")]
    if str(model.path).startswith("~"):
        evidence.append(Text("vLLM does not put the home folder in the place of ~"))
    elif not model.path.is_absolute():
        evidence.append(Text("looked for from the folder that the doctor was started in"))
    look = Command(f"ls -ld {shlex.quote(str(model.path))}")
    fix = Fix(Text("look for it as the server's own user, and name it"), (look,), Needs.PERSON)
    return Finding(message, tuple(evidence), (fix,))


@rule("reasoning-parser-unknown", Severity.ERROR, Stage.MODEL)
def reasoning_parser_unknown(
    vllm: Vllm, parsers: ReasoningParsers | None, profile: Profile
) -> Finding | None:
    """This vLLM has no reasoning parser of that name.

    --reasoning-parser names how the model marks its thinking. Its names are another list than that
    of the tool parsers, and each release has its own: there is a tool parser `glm47`, and from 0.24
    on a reasoning parser of that name too, not before. GLM-4.5, 4.6 and 4.7 all take `glm45`. The
    name of a parser that a plugin brings is not in vLLM's own list: --accept
    reasoning-parser-unknown.
    """
    name = profile.reasoning_parser
    if name is None:
        raise NotApplicable(Text("the profile names no reasoning parser"))
    if parsers is None:
        raise _not_told(vllm, tables.REASONING)
    if name in parsers.names:
        return None
    return _no_parser(vllm, "reasoning", "reasoning_parser", name, parsers.names)


@rule("tool-parser-unknown", Severity.ERROR, Stage.MODEL)
def tool_parser_unknown(
    vllm: Vllm, parsers: ToolParsers | None, profile: Profile
) -> Finding | None:
    """This vLLM has no tool parser of that name.

    --tool-call-parser names how the model writes its tool calls, and each version of vLLM knows a
    list of its own. GLM-4.7 is `glm47` (older: `glm45`, before that `glm4_moe`). The name is
    checked only together with --enable-auto-tool-choice: without that flag a wrong name goes
    unnoticed until tools are asked for. A parser newer than the installed vLLM needs a newer vLLM;
    the name of one that a plugin brings is not in vLLM's own list: --accept tool-parser-unknown.
    """
    name, asked = profile.tool_call_parser, profile.enable_auto_tool_choice
    if name is None:
        if not asked:
            raise NotApplicable(Text("the profile names no tool parser"))
        off = Doctor("diagnose", ("--set", "enable_auto_tool_choice=false"))
        return Finding(
            Text("enable_auto_tool_choice is on, and no tool parser is named"),
            (Text("--enable-auto-tool-choice requires --tool-call-parser"),),
            (Fix(Text("name the model's parser, or leave it off"), (off,), Needs.PERSON),),
        )
    if parsers is None:
        raise _not_told(vllm, tables.TOOLS)
    if name in parsers.names:
        return None
    severity = None if asked else Severity.WARNING
    return _no_parser(vllm, "tool", "tool_call_parser", name, parsers.names, severity)


def _not_told(vllm: Vllm, file: str) -> Missing:
    """Not worth more than a word: a wrong name is told as soon as the server starts."""
    return NotApplicable(Text("{path} does not say which parsers there are", path=vllm.root / file))


def _no_parser(
    vllm: Vllm,
    kind: str,
    key: str,
    name: str,
    names: tuple[str, ...],
    severity: Severity | None = None,
) -> Finding:
    near = get_close_matches(name, names, 1)
    take = tuple(
        Fix(
            Text("take {near}, if that is what the model writes", near=one),
            (Doctor("diagnose", ("--set", f"{key}={one}")),),
            Needs.PERSON,
        )
        for one in near
    )
    return Finding(
        Text(
            "vLLM {version} has no {kind} parser {name}",
            version=vllm.version,
            kind=kind,
            name=name,
        ),
        (Text("it has {names}", names=names),),
        take,
        severity,
    )
