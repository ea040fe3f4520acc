"""What the model asks of the software."""

from __future__ import annotations

import shlex

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers import tables
from doctor.fixes import Command, Doctor, PipInstall
from doctor.fixes.recipes import another_vllm
from doctor.model import NO_MODEL
from doctor.probes.model import ModelPath
from doctor.probes.models import TransformersModels, VllmConfigurations, VllmModels
from doctor.probes.parsers import ReasoningParsers, ToolParsers
from doctor.probes.served import Profile
from doctor.probes.wheels import Specifiers, Transformers, Vllm
from doctor.profile import ModelNeeds


@rule("architecture-not-in-transformers", Severity.ERROR, Stage.MODEL)
def architecture_not_in_transformers(
    transformers: Transformers,
    known: TransformersModels,
    vllm: Vllm,
    own: VllmConfigurations,
    profile: Profile,
) -> Finding | None:
    """The installed transformers does not know the model type.

    vLLM stops with `model type glm4_moe_lite but Transformers does not recognize this architecture`
    (the type in backquotes). vLLM 0.22.0 accepts transformers 4.57 and not 5.0 to 5.5.0, and a
    resolver may choose 4.57.6, which has no glm4_moe_lite.

    Fix: Installs a transformers that both vLLM and the model accept, with vLLM in the same command:
    transformers, huggingface-hub, tokenizers and xgrammar have to move together. Needs
    `--allow core` if torch, vLLM, Triton or FlashInfer would change, and `--allow running` while a
    process uses the environment.

    Manual: `pip install "transformers>=5.5.1" "vllm==0.22.0"`, in one command.

    Sources: Requires-Dist in vLLM's metadata, transformers/models/auto/configuration_auto.py,
    vllm#33580, vllm-ascend#6541

    See also: architecture-not-in-vllm, model-inspection-failed
    """
    model_type = profile.needs.model_type
    if model_type is None:
        raise NotApplicable(Text("the profile does not say the model's type"))
    if known.types.has(model_type) or own.types.has(model_type):
        return None
    wanted = profile.needs.transformers or ""
    if Specifiers(wanted).admits(transformers.version):
        # What is installed would do for a resolver.
        wanted = ",".join(w for w in (wanted, f">{transformers.version.public}") if w)
    return Finding(
        Text(
            "transformers {version} does not know {type}, the type of {model}",
            version=transformers.version,
            type=model_type,
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
def architecture_not_in_vllm(vllm: Vllm, models: VllmModels, profile: Profile) -> Finding | None:
    """The installed vLLM does not implement the model's architecture.

    vLLM stops with `Model architectures ['...'] are not supported for now`. The class that
    config.json names is looked up in the registry of the installed vLLM.

    Fix: Installs another vLLM that the profile allows: a newer one, or an older one (named as a
    downgrade) where only that is allowed. Needs `--allow core`, and `--allow running` while a
    process uses the environment.

    Manual: Install the vLLM release that the model card names, or the plugin that implements the
    class.

    Sources: vllm/model_executor/models/registry.py

    See also: architecture-not-in-transformers, model-inspection-failed
    """
    architecture = profile.needs.architecture
    if architecture is None:
        raise NotApplicable(Text("the profile does not say the model's class"))
    if models.architectures.has(architecture):
        return None
    return Finding(
        Text(
            "vLLM {version} has no {architecture}, which {model} needs",
            version=vllm.version,
            architecture=architecture,
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
    """Not enough is known about the model to judge the start.

    The [needs] of a profile repeat what the model's config.json says: its class (`architecture`)
    and `model_type`, which vLLM and transformers must know; `attention_heads`, where several GPUs
    share them; and `weights_gib`, which must fit into the GPUs. What is missing there is not
    checked, and such a server is not called healthy.

    Manual: Name them in a profile, or with
    `--set needs.architecture=... --set needs.model_type=...`.

    Workaround: `--accept model-not-known` continues without these checks.

    See also: architecture-not-in-vllm, architecture-not-in-transformers, gpu-memory-too-small
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
    """The model path is not a model folder, so vLLM treats it as a Hub repository.

    vLLM stops with `HFValidationError: Repo id must be in the form 'repo_name' or
    'namespace/repo_name'`, 42 s into the start in one measurement. A name that is not an existing
    folder is taken for a repository. A path that is right on the host is wrong in a container that
    does not mount it, in a service with another working directory, or on another Ray node; a folder
    without config.json does not count as a model. Conversely, a folder ORG/MODEL in the working
    directory silently wins over the repository of that name. For a private repository without a
    token the Hub also answers "not found". vLLM does not expand ~.

    Manual: Look at the path as the user that the server runs as, in the same container
    (`ls -ld PATH`), and name the folder by its absolute path.

    Sources: vllm#17210, gpustack#1268, gpustack#3628

    See also: hf-gated-repo, hf-offline-missing-files, hf-incomplete-cache
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
    """The installed vLLM has no reasoning parser of this name.

    --reasoning-parser names how the model marks its reasoning. Reasoning parsers and tool parsers
    are two lists, and each release has its own: there is a tool parser `glm47`, and from 0.24 on a
    reasoning parser of that name too, not before. GLM-4.5, 4.6 and 4.7 all use `glm45`. The parser
    of a plugin is not in vLLM's own list: `--accept reasoning-parser-unknown`.

    Manual: `--set reasoning_parser=NAME` with a name that the report lists.

    Sources: vllm/reasoning/__init__.py, vllm#33349

    See also: tool-parser-unknown
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
    """The installed vLLM has no tool parser of this name.

    --tool-call-parser names how the model writes its tool calls, and each release of vLLM has its
    own list. GLM-4.7 uses `glm47` (older releases: `glm45`, before that `glm4_moe`). vLLM checks
    the name only together with --enable-auto-tool-choice: without that flag a wrong name goes
    unnoticed until a request has tools. --enable-auto-tool-choice without a parser is an error as
    well. A parser newer than the installed vLLM needs a newer vLLM; the parser of a plugin is not
    in vLLM's own list: `--accept tool-parser-unknown`.

    Manual: `--set tool_call_parser=NAME` with a name that the report lists, or
    `--set enable_auto_tool_choice=false`.

    Sources: vllm/tool_parsers/__init__.py, vllm#9312, GLM-4.5#58

    See also: reasoning-parser-unknown, tool-choice-not-enabled, glm47-tool-parser-empty-args
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
    from difflib import get_close_matches

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
