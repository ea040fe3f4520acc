"""ModelScope in place of Hugging Face's hub."""

from __future__ import annotations

from packaging.version import Version

from doctor import Finding, Fix, Missing, Needs, Severity, Stage, Text, rule
from doctor.consumers.modelscope import SWITCH
from doctor.fixes import Command, PipInstall
from doctor.probes.environment import LaunchEnv
from doctor.probes.vllm_names import ModelScopeSwitch
from doctor.probes.wheels import Packages, Vllm

_MEANT = ("1", "true", "yes", "on", "y", "t")
_NEEDS = "modelscope>=1.18.1"
_TOO_OLD = Version("1.18.0")


def _known(switch: ModelScopeSwitch | None) -> ModelScopeSwitch:
    if switch is None:
        raise Missing(Text("how this vLLM reads {name} is not known", name=SWITCH))
    return switch


@rule("modelscope-switch-ignored", Severity.WARNING, Stage.SHELL)
def modelscope_switch_ignored(
    env: LaunchEnv, switch: ModelScopeSwitch | None, vllm: Vllm
) -> Finding | None:
    """VLLM_USE_MODELSCOPE has a value that the installed vLLM takes for off.

    vLLM 0.22 knows `true` alone, in any case and without spaces; `1` is ignored without a word, and
    the model is looked for at Hugging Face, as where the variable is not set. vLLM 0.33 takes `1`
    as well. No release takes `yes` or `on`.

    Manual: `export VLLM_USE_MODELSCOPE=true` where the server is started, or serve the folder into
    which `vllm-doctor download MODEL --from modelscope` fetched the model: that needs no variable.

    Sources: vllm/envs.py (0.22.0 and 0.33.0)

    See also: modelscope-not-installed, model-not-downloaded
    """
    said = env.get(SWITCH) or ""
    if said.strip().lower() not in _MEANT or _known(switch).is_on(said):
        return None
    return Finding(
        Text(
            "{name}={value} is ignored by vLLM {version}",
            name=SWITCH,
            value=said,
            version=vllm.version,
        ),
        (
            Text("it takes {values}", values=_known(switch).values),
            Text("a model that is not a folder is looked for at Hugging Face"),
        ),
        (
            Fix(
                Text("say it in this vLLM's way"),
                (Command(f"export {SWITCH}=true"),),
                Needs.PERSON,
            ),
        ),
    )


@rule("modelscope-not-installed", Severity.ERROR, Stage.IMPORT)
def modelscope_not_installed(
    env: LaunchEnv, switch: ModelScopeSwitch | None, packages: Packages
) -> Finding | None:
    """VLLM_USE_MODELSCOPE is on, and there is no modelscope that vLLM can use.

    vLLM does not require the package, and imports it as soon as the switch is on, whatever is
    served: `ImportError: Please install modelscope>=1.18.1`.

    Fix: Installs modelscope.

    Manual: `pip install 'modelscope>=1.18.1'`, or `unset VLLM_USE_MODELSCOPE` and serve a folder.

    Sources: vllm/transformers_utils/__init__.py (0.22.0 and 0.33.0)

    See also: modelscope-switch-ignored
    """
    said = env.get(SWITCH)
    if not said or not _known(switch).is_on(said):
        return None
    version = packages.version("modelscope")
    if version is not None and version > _TOO_OLD:
        return None
    return Finding(
        Text("{name} is on, and modelscope is not installed", name=SWITCH)
        if version is None
        else Text(
            "{name} is on, and modelscope {version} is too old", name=SWITCH, version=version
        ),
        (Text("vLLM imports it at its start"),),
        (Fix(Text("install it"), (PipInstall((_NEEDS,)),)),),
    )
