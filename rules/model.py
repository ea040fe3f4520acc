"""What the model asks of the software."""

from __future__ import annotations

from doctor import Finding, Fix, Missing, Needs, Severity, Stage, Text, rule
from doctor.fixes import PipInstall
from doctor.probes.wheels import Specifiers, Transformers, Vllm
from doctor.profile import Profile


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
        raise Missing(Text("the profile does not say the model's type"), applies=False)
    if transformers.model_type or vllm.model_type:
        return None
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
        raise Missing(Text("the profile does not say the model's class"), applies=False)
    if vllm.architecture is None:
        raise Missing(Text("vLLM's table of models in {root} cannot be read", root=vllm.root))
    if vllm.architecture:
        return None
    needs = profile.needs
    have = vllm.version.public
    # The profile's release, unless that is what is installed.
    other = f"=={needs.vllm}" if needs.vllm not in (None, have) else f">{have}"
    roots = [f"{vllm.name}{other}"]
    if needs.transformers:
        roots.append(f"transformers{needs.transformers}")
    return Finding(
        Text(
            "vLLM {version} has no {architecture}, which {model} needs",
            version=vllm.version,
            architecture=profile.needs.architecture,
            model=profile.model,
        ),
        (),
        (Fix(Text("install a vLLM that has it"), (PipInstall(tuple(roots)),), Needs.ASK),),
    )
