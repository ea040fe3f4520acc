"""What the model asks of the software."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping

from packaging.version import Version

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers import hub
from doctor.consumers.options import GivenOptions
from doctor.consumers.tables import served_by
from doctor.fixes import Command, Doctor, PipInstall
from doctor.fixes.recipes import another_vllm
from doctor.model import NO_MODEL
from doctor.numbers import version_of
from doctor.probes.checkpoint import CheckpointHeaders
from doctor.probes.configuration import ModelConfiguration, ReadFrom
from doctor.probes.environment import LaunchEnv
from doctor.probes.model import ModelPath
from doctor.probes.models import (
    LengthLimits,
    ServedModel,
    TransformersBackend,
    TransformersModels,
    VllmConfigurations,
    VllmModels,
)
from doctor.probes.served import Profile
from doctor.probes.wheels import Specifiers, Transformers, Vllm
from doctor.profile import ModelNeeds, ServeRequest


@rule("architecture-not-in-transformers", Severity.ERROR, Stage.MODEL)
def architecture_not_in_transformers(
    transformers: Transformers,
    known: TransformersModels,
    vllm: Vllm,
    own: VllmConfigurations,
    served: ServedModel | None,
    profile: Profile,
) -> Finding | None:
    """The installed transformers does not know the model type.

    vLLM stops with `model type glm4_moe_lite but Transformers does not recognize this architecture`
    (the type in backquotes). vLLM 0.22.0 accepts transformers 4.57 and not 5.0 to 5.5.0, and a
    resolver may choose 4.57.6, which has no glm4_moe_lite. Where the repository brings code that
    makes the configuration (`auto_map` in config.json), that code is asked for instead: see
    trust-remote-code-needed.

    Fix: Installs a transformers that both vLLM and the model accept, with vLLM in the same command:
    transformers, huggingface-hub, tokenizers and xgrammar have to move together. Needs
    `--allow core` if torch, vLLM, Triton or FlashInfer would change, and `--allow running` while a
    process uses the environment.

    Manual: `pip install "transformers>=5.5.1" "vllm==0.22.0"`, in one command.

    Sources: Requires-Dist in vLLM's metadata, transformers/models/auto/configuration_auto.py,
    vllm#33580, vllm-ascend#6541

    See also: architecture-not-in-vllm, trust-remote-code-needed, model-inspection-failed
    """
    model_type = profile.needs.model_type
    if model_type is None:
        raise NotApplicable(Text("the profile does not say the model's type"))
    if known.types.has(model_type) or own.types.has(model_type):
        return None
    if served is not None and "AutoConfig" in served.config.auto_map:
        raise NotApplicable(Text("the repository's own code makes the configuration"))
    _must_have_no_code(profile, served)
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
        (
            Text(
                "vLLM {version} asks for transformers {pin}", version=vllm.version, pin=_pin(vllm)
            ),
            *(served.needs_read if served else ()),
        ),
        (
            Fix(
                Text("install a transformers that vLLM accepts and that knows the model"),
                (PipInstall((vllm.requirement, f"transformers{wanted}")),),
            ),
        ),
    )


def _must_have_no_code(profile: Profile, served: ServedModel | None) -> None:
    """Raises Missing where the server trusts code that the repository may have: the doctor's table
    keeps no more of a config.json than the essential."""
    trusted = GivenOptions(profile.options).switch("trust_remote_code")
    if trusted and served is not None and not served.whole:
        raise Missing(
            Text(
                "whether {model}'s repository has code of its own is not known", model=profile.model
            )
        )


def _pin(vllm: Vllm) -> str:
    return str(vllm.pin("transformers") or "(any)")


@rule("architecture-not-in-vllm", Severity.ERROR, Stage.MODEL)
def architecture_not_in_vllm(
    vllm: Vllm,
    models: VllmModels,
    backend: TransformersBackend | None,
    served: ServedModel | None,
    profile: Profile,
) -> Finding | None:
    """The installed vLLM does not implement the model's architecture.

    vLLM stops with `Model architectures ['...'] are not supported for now`, or, for a class that it
    has dropped, `was supported in vLLM until`. The classes that config.json names are looked up in
    the registry of the installed vLLM: one of them is enough, and one that it has under another
    ending (a classifier or an embedding made of a ...ForCausalLM) is converted. Where it has none,
    it runs transformers' own class, if that takes vLLM's attention (`--model-impl auto`); with
    `--model-impl vllm` it does not, and with `--model-impl transformers` it runs no other.

    Fix: Installs another vLLM that the profile allows: a newer one, or an older one (named as a
    downgrade) where only that is allowed. Needs `--allow core`, and `--allow running` while a
    process uses the environment.

    Manual: Install the vLLM release that the model card names, or the plugin that implements the
    class.

    Sources: vllm/model_executor/models/registry.py (0.22.0 and 0.33.0)

    See also: architecture-not-in-transformers, trust-remote-code-needed, model-inspection-failed
    """
    classes = _classes(profile, served)
    if not classes:
        raise NotApplicable(Text("the profile does not say the model's class"))
    given = GivenOptions(profile.options)
    implementation = given.word("model_impl") or "auto"
    if implementation == "terratorch":
        raise NotApplicable(Text("--model-impl terratorch: another library makes the model"))
    if implementation != "transformers" and any(map(served_by(models.architectures), classes)):
        return None
    code = [name for name in (served.config.auto_map if served else ()) if "AutoModel" in name]
    if code and implementation != "vllm":
        raise _by_code(given.switch("trust_remote_code"), classes)
    if backend is not None and implementation != "vllm":
        if backend.takes:
            return None
        if backend.why is not None:
            raise Missing(backend.why)
    _must_have_no_code(profile, served)
    return Finding(
        Text(
            "vLLM {version} has no {architecture}, which {model} needs",
            version=vllm.version,
            architecture=" or ".join(classes),
            model=profile.model,
        ),
        served.needs_read if served else (),
        (another_vllm(vllm, profile.needs),),
    )


def _classes(profile: Profile, served: ServedModel | None) -> tuple[str, ...]:
    """Of the model: what was said of it wins over its configuration."""
    said, own = profile.needs.architecture, served.config.architectures if served else ()
    return own if said is None or said in own else (said,)


def _by_code(trusted: bool, classes: tuple[str, ...]) -> Missing:
    """Why it is not known whether the repository's own code makes a class that vLLM can run."""
    if not trusted:
        return Missing(Text("the repository's own code has it"), ("trust-remote-code-needed",))
    return Missing(
        Text(
            "the repository's own code makes {classes}; it is not run here, so whether vLLM can "
            "serve it is not known",
            classes=classes,
        )
    )


# What a person calls the needs that decide a start.
_NEEDS = {
    "architecture": "architecture",
    "model_type": "type",
    "attention_heads": "attention heads",
    "weights_gib": "weights",
}


@rule("model-not-known", Severity.ERROR, Stage.MODEL)
def model_not_known(
    profile: Profile, request: ServeRequest | None, configuration: ModelConfiguration | None
) -> None:
    """Not enough is known about the model to judge the start.

    What decides it stands in the model's config.json: its class (`architecture`) and `model_type`,
    which vLLM and transformers must know; `attention_heads`, where several GPUs share them; and the
    size of its weights, which must fit into the GPUs. It is read in the model's folder, in the
    hub's cache, or in the table that comes with the doctor; with `--online` the hub is asked as
    well. What is known from none of these is not checked, and such a server is not called healthy.
    Nor is one that loads another model beside it, the draft of `--speculative-config`: that one is
    not read.

    Manual: `--online`, or download the model first (`vllm-doctor download MODEL`). A profile may
    also say it in `[needs]` (`--set needs.architecture=... --set needs.model_type=...`).

    Workaround: `--accept model-not-known` continues without these checks.

    See also: architecture-not-in-vllm, architecture-not-in-transformers, gpu-memory-too-small
    """
    if profile.model is None:
        raise NotApplicable(NO_MODEL)
    lacking = profile.unknown()
    if not lacking:
        draft = _draft(profile)
        if draft:
            raise Missing(
                Text(
                    "{draft}, the draft model of speculative decoding, is not read: its class "
                    "and its weights were not checked; judge it alone, or go on with "
                    "--accept model-not-known",
                    draft=draft,
                )
            )
        return
    why = _why_lacking(configuration)
    raise Missing(
        Text(
            "{known} is known of {model}: {lacking} were not checked{why}; {ways}",
            known="nothing" if profile.needs == ModelNeeds() else "not enough",
            model=profile.model,
            why=Text(" ({why})", why=why) if why else "",
            lacking=[_NEEDS[name] for name in lacking],
            ways=", or ".join(_ways(profile.model, lacking[0], request, configuration)),
        ),
        ("model-path-missing",),
    )


# What drafts without a model, as its `method` or in the place of its `model`.
_WITHOUT_DRAFT = ("ngram", "[ngram]", "ngram_gpu", "suffix")


def _draft(profile: Profile) -> str | None:
    """The other model that speculative decoding loads (config/speculative.py)."""
    given = GivenOptions(profile.options)
    said = given.table("speculative_config") or {}
    draft = given.word("spec_model") or said.get("model")
    method = given.word("spec_method") or said.get("method")
    if not isinstance(draft, str) or draft in ("", profile.model):
        return None
    return None if draft in _WITHOUT_DRAFT or method in _WITHOUT_DRAFT else draft


def _why_lacking(configuration: ModelConfiguration | None) -> Text | None:
    """Where nothing was found, or what was found does not say all."""
    if configuration is None:
        return None
    if not configuration.values:
        return configuration.why
    return Text("{place} does not tell", place=configuration.place)


def _ways(
    model: str,
    lacking: str,
    request: ServeRequest | None,
    configuration: ModelConfiguration | None,
) -> Iterator[str]:
    """What tells more of the model, or goes on without. The [needs] are a profile's: a command has
    none."""
    here = configuration is not None and configuration.source is ReadFrom.FOLDER
    hub = not here and not model.startswith(("/", ".", "~")) and "://" not in model
    if hub and not (request and request.online):
        yield "look it up with --online"
    if request and request.command:
        if hub:
            yield "download it"
    else:
        yield f"name them in a profile's [needs] (--set needs.{lacking}=...)"
    yield "go on with --accept model-not-known"


@rule("trust-remote-code-needed", Severity.ERROR, Stage.MODEL)
def trust_remote_code_needed(
    known: TransformersModels,
    own: VllmConfigurations,
    models: VllmModels,
    served: ServedModel,
    profile: Profile,
) -> Finding | None:
    """The model needs code from its own repository, which is not trusted.

    transformers stops with `contains custom code which must be executed to correctly load the
    model`. `auto_map` in config.json names classes in Python files of the repository. They are
    needed where neither vLLM nor transformers has the type of the configuration, or the class of
    the model, themselves; a newer release of them often has. With the option given, that code runs
    with all rights of the server. The doctor neither runs nor reads it: what it does is not judged.

    Manual: Read the files that auto_map names, in the revision that will be served, then start the
    server with `--trust-remote-code` (`--set trust_remote_code=true`) and hold that revision with
    `--revision COMMIT`.

    Workaround: A release of vLLM and transformers that has the model itself.

    Sources: transformers/dynamic_module_utils.py (resolve_trust_remote_code),
    vllm/transformers_utils/config.py

    See also: architecture-not-in-transformers, architecture-not-in-vllm
    """
    config = served.config
    if not config.auto_map:
        return None
    needed = []
    model_type = config.model_type
    typed = model_type is None or own.types.has(model_type) or known.types.has(model_type)
    if "AutoConfig" in config.auto_map and not typed:
        needed.append(Text("the type {type}", type=model_type))
    classes = config.architectures
    made = any("AutoModel" in name for name in config.auto_map)
    if made and classes and not any(map(served_by(models.architectures), classes)):
        needed.append(Text("the class {classes}", classes=" or ".join(classes)))
    if not needed:
        return None
    given = GivenOptions(profile.options).switch("trust_remote_code")
    trust = Doctor("diagnose", ("--set", "trust_remote_code=true"))
    if given:
        return Finding(
            Text(
                "{model}'s own code makes {needed}; it was neither run nor judged",
                model=profile.model,
                needed=needed,
            ),
            served.read,
            (),
            Severity.INFO,
        )
    return Finding(
        Text(
            "neither vLLM nor transformers has {needed}; {model}'s own code has, and it is not "
            "trusted (--trust-remote-code)",
            needed=needed,
            model=profile.model,
        ),
        (*_files(config.auto_map), *served.read),
        (Fix(Text("read its code, then trust it"), (trust,), Needs.PERSON),),
    )


def _files(auto_map: Mapping[str, object]) -> Iterator[Text]:
    named = sorted({one.rpartition(".")[0] for one in auto_map.values() if isinstance(one, str)})
    if named:
        yield Text("auto_map names {files}", files=[f"{name}.py" for name in named if name])


# What ends a server though vLLM's own metadata allow it: the first vLLM that mends it, types of
# models (all where none is named), the first transformers, and why.
_BREAKS = (
    (
        "0.12",
        (),
        "5",
        Text("vLLM up to 0.11 uses all_special_tokens_extended, which transformers 5 lacks"),
    ),
    (
        "0.28",
        ("gemma4", "gemma4_text", "gemma4_unified"),
        "5.15",
        Text("vLLM before 0.28 asks Gemma 4 for one head_dim, which transformers 5.15 refuses"),
    ),
)


@rule("transformers-too-new-for-vllm", Severity.ERROR, Stage.MODEL)
def transformers_too_new_for_vllm(
    vllm: Vllm, transformers: Transformers, profile: Profile
) -> Finding | None:
    """The installed transformers is newer than this vLLM can be used with.

    Known to end a server: vLLM up to 0.11 with transformers 5 (`has no attribute
    all_special_tokens_extended`), and Gemma 4 before vLLM 0.28 with transformers 5.15
    (`AmbiguousGlobalPerLayerAttributeError: 'head_dim' is a per-layer attribute`). A release that
    vLLM's own metadata rule out is a warning: nobody has tried the two together. It comes with an
    upgrade of transformers alone, which pip reports as a conflict and does all the same.

    Fix: Installs a transformers that vLLM accepts, with vLLM in the same command. Needs
    `--allow core` if torch, vLLM, Triton or FlashInfer would change, and `--allow running` while a
    process uses the environment.

    Manual: `pip install "transformers<5" "vllm==0.11.0"`, in one command, with the releases that
    the report names.

    Sources: Requires-Dist in vLLM's metadata

    See also: architecture-not-in-transformers
    """
    have = transformers.version
    for end, types, first, why in _BREAKS:
        both = vllm.version < Version(end) and have >= Version(first)
        if both and (not types or profile.needs.model_type in types):
            return _too_new(vllm, have, f"<{first}", why, Severity.ERROR)
    allowed = vllm.pin("transformers")
    if allowed is None or not any(_ruled_out(have, part) for part in str(allowed).split(",")):
        return None
    why = Text("vLLM {version} asks for transformers {pin}", version=vllm.version, pin=allowed)
    return _too_new(vllm, have, "", why, Severity.WARNING)


def _ruled_out(have: Version, part: str) -> bool:
    """Whether one specifier turns a version down for being newer than it, or as one of its own
    kind; one that is too old is another matter. (packaging.specifiers takes 15 ms to import.)"""
    match = re.fullmatch(r"\s*(<=|<|!=|==)\s*([^*]+?)(\.\*)?\s*", part)
    bound = version_of(match[2]) if match else None
    if match is None or bound is None:
        return False
    same = have.release[: len(bound.release)] == bound.release if match[3] else have == bound
    newer = have > bound and not same
    return {"<": newer or same, "<=": newer, "==": newer, "!=": same}[match[1]]


def _too_new(vllm: Vllm, have: Version, bound: str, why: Text, severity: Severity) -> Finding:
    steps = (PipInstall((vllm.requirement, f"transformers{bound}")),)
    return Finding(
        Text("transformers {have} is too new for vLLM {version}", have=have, version=vllm.version),
        (why,),
        (Fix(Text("install a transformers that vLLM accepts"), steps, Needs.ASK),),
        severity,
    )


@rule("max-model-len-too-big", Severity.ERROR, Stage.MODEL)
def max_model_len_too_big(
    served: ServedModel, limits: LengthLimits, env: LaunchEnv, profile: Profile
) -> Finding | None:
    """The requested context is longer than the model supports.

    config.json says how many positions the model supports, and --max-model-len may not exceed it;
    nor what its tokenizer_config.json says, where that is less. A scaling of its rope can lengthen
    it. VLLM_ALLOW_LONG_MAX_MODEL_LEN=1, which vLLM's message offers, only silences the check:
    beyond its limit the model produces nonsense or the kernel reads outside its tables. A longer
    context needs a model that supports it, or rope scaling as its card describes.

    Manual: `--set max_model_len=N` with the length that the report names.

    Sources: vllm/config/model.py (0.22.0 and 0.33.0)

    See also: kv-cache-too-small
    """
    asked, config = profile.max_model_len, served.config
    if asked is None:
        raise NotApplicable(Text("no max_model_len is said: vLLM takes the model's own"))
    if (env.get(_LONGER) or "").strip().lower() in ("1", "true"):
        raise NotApplicable(Text("{name} is set: vLLM only warns", name=_LONGER))
    if config.pooling:
        raise Missing(_POOLS)
    derived = config.length(limits.unscaled)
    if derived is None:
        if served.values:
            said = Text("the config.json of {model} does not say its length", model=profile.model)
            raise Missing(said)
        raise NotApplicable(Text("how long the model is, is not known"))
    most, key = derived.tokens, derived.key
    window = config.sliding_window
    if window and window < most and GivenOptions(profile.options).switch("disable_sliding_window"):
        most, key = window, "sliding_window"
    if limits.tokenizer is not None and not config.ropes and limits.tokenizer < most:
        most, key = limits.tokenizer, "model_max_length of tokenizer_config.json"
    if asked <= max(most, config.model_max_length or 0):
        return None
    line = Doctor("diagnose", ("--set", f"max_model_len={most}"))
    return Finding(
        Text(
            "max_model_len={asked} is more than the {most} tokens of {model} ({key})",
            asked=asked,
            most=most,
            model=profile.model,
            key=key,
        ),
        served.read,
        (Fix(Text("serve the length that the model supports"), (line,), Needs.PERSON),),
    )


_LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
_POOLS = Text("a pooling model's length may stand in sentence_bert_config.json, which is not read")


@rule("weights-not-in-checkpoint", Severity.ERROR, Stage.MODEL)
def weights_not_in_checkpoint(
    headers: CheckpointHeaders | None, served: ServedModel, profile: Profile
) -> Finding | None:
    """Speculative decoding asks for MTP layers that the checkpoint does not have.

    vLLM stops with `MTP speculative decoding layer 61 weights missing from checkpoint`, or with
    `Following weights were not initialized from checkpoint` and names of the layers after the last
    one (`enorm`, `hnorm`, `eh_proj`, `shared_head`). config.json says that
    the model has layers for multi-token prediction (`num_nextn_predict_layers`), and a conversion
    or a fine-tune has left them out. Judged are models of the types deepseek_v3, glm4_moe and
    glm4_moe_lite, from the headers of the files that are here; those of GLM only where the weights
    are not quantised, as not every release checks it else.

    Manual: Leave --speculative-config out (`--set speculative_config=`), or serve a checkpoint that
    has these layers.

    Sources: vllm/model_executor/model_loader/default_loader.py (track_weights_loading),
    glm4_moe_lite_mtp.py, glm4_moe_mtp.py and deepseek_mtp.py in vllm/model_executor/models (0.22.0
    and 0.33.0)

    See also: model-files-missing
    """
    if not _drafts_itself(profile):
        raise NotApplicable(Text("the model's own MTP layers are not asked for"))
    given, values = GivenOptions(profile.options), served.values
    quantised = served.config.quantization is not None or given.says("quantization")
    kind = served.config.model_type
    judged = kind == "deepseek_v3" or (kind in _MTP_TYPES and not quantised)
    if headers is None or not judged or given.word("load_format") == "dummy":
        return None
    first, count = (values.get(n) for n in ("num_hidden_layers", "num_nextn_predict_layers"))
    names = (_LAYER.match(row.name) for row in headers.rows)
    layers = [int(found[2] or found[1]) for found in names if found]
    if not isinstance(first, int) or not isinstance(count, int) or count < 1:
        return None
    if max(layers, default=None) != first - 1:
        return None
    return Finding(
        Text(
            "{model} says that it has {count} MTP layers, and its files end with layer {last}",
            model=profile.model,
            count=count,
            last=first - 1,
        ),
        served.read,
        (
            Fix(
                Text("serve without speculative decoding"),
                (Doctor("diagnose", ("--set", "speculative_config=")),),
                Needs.PERSON,
            ),
        ),
    )


# Their layer has the number after the last one, and a class that skips what is not of it.
_MTP_TYPES = ("deepseek_v3", "glm4_moe", "glm4_moe_lite")
_LAYER = re.compile(r"(?:model\.)?layers\.(?a:(\d{1,6})(?:-(\d{1,6}))?)\.")


def _drafts_itself(profile: Profile) -> bool:
    given = GivenOptions(profile.options)
    said = given.table("speculative_config") or {}
    method = given.word("spec_method") or said.get("method")
    other = given.word("spec_model") or said.get("model")
    own = isinstance(method, str) and (method == "mtp" or method.endswith("_mtp"))
    return own and other in (None, "", profile.model)


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


@rule("local-folder-shadows-repository", Severity.INFO, Stage.MODEL)
def local_folder_shadows_repository(model: ModelPath, profile: Profile) -> Finding | None:
    """A folder here is served in the place of the repository of that name.

    vLLM and transformers take what exists under the model's name before they ask the hub: where the
    server is started in a folder that holds ORG/MODEL, that folder is loaded, whatever it is: an
    older copy, a clone without its large files, somebody else's experiment. It depends on the
    working directory, so that a service elsewhere loads the repository.

    Manual: Name a folder that is meant by its absolute path; else start the server elsewhere, or
    rename the folder.

    Sources: vllm/transformers_utils/config.py (0.22.0 and 0.33.0), trl#3604

    See also: model-path-missing, truncated-safetensors
    """
    name = profile.model or ""
    if model.path is None or not model.config or "/" not in name or not hub.is_repository(name):
        return None
    full = Command(f"realpath {shlex.quote(name)}")
    return Finding(
        Text("the folder {path} is loaded, and not {name} of the hub", path=model.path, name=name),
        fixes=(Fix(Text("name the folder in full, if it is meant"), (full,), Needs.PERSON),),
    )
