"""How the weights are quantised, in which type they are computed, and the GPU that must do it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers.options import GivenOptions
from doctor.consumers.quantization import (
    contradicts,
    only_of_a_checkpoint,
    taken_method,
)
from doctor.fixes import Doctor
from doctor.fixes.recipes import another_vllm
from doctor.probes.capability import JudgedGpu
from doctor.probes.models import (
    QuantizationMethods,
    RefuseFloat16,
    ServedModel,
    ServedQuantization,
)
from doctor.probes.served import Profile
from doctor.probes.wheels import Packages, Vllm


def _without_option(title: Text) -> Fix:
    line = Doctor("diagnose", ("--set", "quantization="))
    return Fix(title, (line,), Needs.PERSON)


@rule("quantization-unknown", Severity.ERROR, Stage.MODEL)
def quantization_unknown(
    vllm: Vllm,
    methods: QuantizationMethods,
    served: ServedModel,
    packages: Packages,
    profile: Profile,
) -> Iterator[Finding]:
    """The installed vLLM does not know the quantisation.

    vLLM refuses a wrong --quantization when it reads its arguments, and a checkpoint with a
    quant_method that it does not know with `Unknown quantization method`. Methods come and go with
    the releases: bitsandbytes and gguf are plugins of their own from 0.24 to 0.33 on, awq_marlin
    and gptq_marlin are now auto_awq and auto_gptq. The method of a plugin is not in vLLM's own
    list.

    Fix: For a checkpoint: installs another vLLM that the profile allows. Needs `--allow core`, and
    `--allow running` while a process uses the environment.

    Manual: Leave --quantization out (`--set quantization=`): vLLM takes the checkpoint's own.

    Sources: vllm/model_executor/layers/quantization/__init__.py, vllm/config/model.py

    See also: quantization-mismatch, quantization-deprecated, gpu-below-min-arch
    """
    asked = GivenOptions(profile.options).word("quantization")
    known = methods.names
    own = taken_method(None, served.config, known.names)
    wrong = [one for one in dict.fromkeys((asked, own)) if one and not known.has(one)]
    if wrong and (plugin := _plugin(vllm, packages)):
        raise Missing(
            Text("whether {plugin} brings {method} is not known", plugin=plugin, method=wrong[0])
        )
    for method in wrong:
        yield _unknown(vllm, methods, served, profile, method)


def _plugin(vllm: Vllm, packages: Packages) -> str | None:
    """A distribution beside vLLM that may add methods to its own."""
    names = (n for n in packages.installed if n.startswith("vllm-") and n != vllm.name)
    return next(names, None)


def _unknown(
    vllm: Vllm, methods: QuantizationMethods, served: ServedModel, profile: Profile, method: str
) -> Finding:
    from difflib import get_close_matches

    asked = GivenOptions(profile.options).word("quantization")
    if method == asked:
        near = get_close_matches(method, methods.names.names, 1)
        take = [Doctor("diagnose", ("--set", f"quantization={one}")) for one in near]
        return Finding(
            Text(
                "vLLM {version} has no quantisation {method}", version=vllm.version, method=method
            ),
            (Text("it has {names}", names=sorted(methods.names.names)),),
            (
                *(Fix(Text("take {one}", one=near[0]), (t,), Needs.PERSON) for t in take),
                _without_option(Text("leave it out: vLLM takes the checkpoint's own")),
            ),
        )
    return Finding(
        Text(
            "{model} is quantised by {method}, which vLLM {version} does not know",
            model=profile.model,
            method=method,
            version=vllm.version,
        ),
        (Text("it has {names}", names=sorted(methods.names.names)), *served.read),
        (another_vllm(vllm, profile.needs),),
    )


@rule("gguf-unsupported", Severity.ERROR, Stage.MODEL)
def gguf_unsupported(
    vllm: Vllm, methods: QuantizationMethods, packages: Packages, profile: Profile
) -> Finding | None:
    """The model is a GGUF file, which the installed vLLM does not read.

    vLLM stops with `Invalid repository ID or local directory specified`, or `Load format gguf is
    not supported` (gguf in backquotes). vLLM 0.22.0 reads GGUF itself; later releases have left it
    to a plugin. Which it is, is read from the methods of the installed vLLM. Whether transformers
    maps the file's architecture (`GGUF model with architecture ... is not supported yet`) is not
    judged.

    Manual: Serve the model's safetensors checkpoint, or the GGUF file with llama.cpp.

    Sources: vllm/model_executor/layers/quantization/__init__.py, vllm/transformers_utils/config.py
    (0.22.0 and 0.33.0)

    See also: quantization-unknown, model-path-missing
    """
    asked = GivenOptions(profile.options).word("load_format") == "gguf"
    if not asked and not _GGUF.search(profile.model or ""):
        raise NotApplicable(Text("the model is not a GGUF file"))
    if methods.names.has("gguf"):
        return None
    if plugin := _plugin(vllm, packages):
        raise Missing(
            Text("whether {plugin} brings {method} is not known", plugin=plugin, method="gguf")
        )
    return Finding(
        Text(
            "{model} is to be loaded as GGUF, which vLLM {version} does not read",
            model=profile.model,
            version=vllm.version,
        ),
        fixes=(Fix(Text("serve a safetensors checkpoint"), (), Needs.PERSON),),
    )


# A file, or REPOSITORY:TYPE with a type of ggml (vllm/transformers_utils/gguf_utils.py).
_GGUF = re.compile(r"\.gguf\Z|\A[^/:]+/[^/:]+:(?a:[\w-]+-)?(?a:I?Q\d\w*|TQ\d\w*|B?F16|F32)\Z")


@rule("quantization-mismatch", Severity.ERROR, Stage.MODEL)
def quantization_mismatch(
    served: ServedModel, methods: QuantizationMethods, profile: Profile
) -> Finding | None:
    """--quantization is not how the checkpoint is quantised.

    vLLM stops with `Quantization method specified in the model config (fp8) does not match the
    quantization method specified in the quantization argument (awq)`. A checkpoint that is already
    quantised says so in its config.json, and vLLM takes that by itself: --quantization is for
    weights that are to be quantised at the start. Names of kernels for the same format are taken
    (gptq_marlin for gptq, awq_marlin for awq).

    Manual: Leave it out: `--set quantization=`.

    Sources: vllm/config/model.py (0.22.0 and 0.33.0)

    See also: quantization-unknown
    """
    asked, made = GivenOptions(profile.options).word("quantization"), served.config.quantization
    if not asked:
        raise NotApplicable(Text("no quantisation is asked for"))
    if made is None and methods.names.has(asked) and only_of_a_checkpoint(asked):
        raise Missing(
            Text(
                "whether {model} is quantised by {asked} is not known: its config.json does not "
                "say so",
                model=profile.model,
                asked=asked,
            )
        )
    if made is None or not methods.names.has(asked) or not contradicts(asked, served.config):
        return None
    return Finding(
        Text(
            "--quantization {asked} contradicts {model}, which is quantised by {method}",
            asked=asked,
            model=profile.model,
            method=made.method,
        ),
        served.read,
        (_without_option(Text("leave it out: vLLM takes the checkpoint's own")),),
    )


@rule("quantization-deprecated", Severity.ERROR, Stage.MODEL)
def quantization_deprecated(
    vllm: Vllm, used: ServedQuantization, served: ServedModel, profile: Profile
) -> Finding | None:
    """The quantisation is deprecated, and vLLM refuses it.

    vLLM stops with `The quantization method fbgemm_fp8 is deprecated and will be removed in future
    versions of vLLM`. It takes such a checkpoint with --allow-deprecated-quantization, until a
    later release drops the method.

    Manual: `--set allow_deprecated_quantization=true`, or a checkpoint in another format.

    Sources: vllm/model_executor/layers/quantization/__init__.py (DEPRECATED_QUANTIZATION_METHODS)

    See also: quantization-unknown
    """
    allowed = GivenOptions(profile.options).switch("allow_deprecated_quantization")
    if not used.deprecated or allowed:
        return None
    line = Doctor("diagnose", ("--set", "allow_deprecated_quantization=true"))
    return Finding(
        Text(
            "vLLM {version} refuses the deprecated quantisation {method}",
            version=vllm.version,
            method=used.method,
        ),
        served.read,
        (Fix(Text("allow it, or take a checkpoint in another format"), (line,), Needs.PERSON),),
    )


@rule("gpu-below-min-arch", Severity.ERROR, Stage.MODEL)
def gpu_below_min_arch(
    used: ServedQuantization, gpu: JudgedGpu, served: ServedModel, profile: Profile
) -> Finding | None:
    """The GPU is older than a requested feature requires.

    Each component has its own minimum compute capability: vLLM's wheels and Triton 7.0 (Volta) or
    7.5, FlashInfer 7.5 (Turing), a quantised checkpoint that of its kernels. What the message names
    was requested and does not exist for this GPU. `FlashInfer requires GPUs with sm75 or higher` on
    a new GPU means the opposite: its nvcc is too old.

    Before the start the quantisation is judged: each method of the installed vLLM says the least
    capability that it takes, and vLLM asks the first GPU.

    Manual: A checkpoint in a format that the GPU has kernels for: GPTQ or AWQ in 4 bits run on
    Turing, float16 on every GPU that vLLM supports.

    Sources: vllm/config/vllm.py, get_min_capability in vllm/model_executor/layers/quantization,
    vllm#1157, vllm#946, vllm#55380

    See also: bf16-unsupported-gpu, sm12x-nvcc-below-12-9, no-kernel-image
    """
    if used.least is None:
        raise NotApplicable(Text("vLLM does not say which GPU {method} needs", method=used.method))
    if gpu.capability >= used.least:
        return None
    asked = GivenOptions(profile.options).word("quantization")
    title = Text("leave --quantization out, if the weights fit without it")
    option = asked == used.method and served.config.quantization is None
    return Finding(
        Text(
            "the quantisation {method} requires compute capability {least}; the server has {gpu}",
            method=used.method,
            least=f"{used.least // 10}.{used.least % 10}",
            gpu=gpu.name,
        ),
        served.read,
        (
            _without_option(title)
            if option
            else Fix(Text("serve a checkpoint in another format"), (), Needs.PERSON),
        ),
    )


@rule("bf16-unsupported-gpu", Severity.ERROR, Stage.GPUS)
def bf16_unsupported_gpu(gpu: JudgedGpu, profile: Profile) -> Finding | None:
    """The GPU does not support bfloat16.

    vLLM stops with `Bfloat16 is only supported on GPUs with compute capability of at least 8.0`.
    bfloat16 needs compute capability 8.0 (Ampere) or newer, and it was requested explicitly:
    --dtype bfloat16, or an older vLLM that uses the checkpoint's type unchanged. With --dtype auto
    a newer vLLM falls back to float16 by itself, which is only a warning.

    A few models (Gemma 2 and 3, GLM-4) do not support float16; they need float32 or a newer card.

    Manual: `--set dtype=half`, or leave it out: `--set dtype=`.

    Sources: vllm/platforms/cuda.py (check_if_supports_dtype), vllm#1157, vllm#946, vllm#1284

    See also: fp16-unsupported-model, gpu-below-min-arch
    """
    if GivenOptions(profile.options).word("dtype") != "bfloat16":
        raise NotApplicable(Text("bfloat16 is not asked for"))
    if gpu.capability >= _BFLOAT16:
        return None
    line = Doctor("diagnose", ("--set", "dtype=auto"))
    return Finding(
        Text(
            "--dtype bfloat16 requires compute capability 8.0; the server has {gpu}", gpu=gpu.name
        ),
        (),
        (Fix(Text("let vLLM choose the type"), (line,), Needs.PERSON),),
    )


_BFLOAT16 = 80


@rule("fp16-unsupported-model", Severity.ERROR, Stage.MODEL)
def fp16_unsupported_model(
    refuse: RefuseFloat16, served: ServedModel, profile: Profile
) -> Finding | None:
    """The model does not support float16.

    vLLM stops with `The model type 'gemma3' does not support float16. Reason: Numerical
    instability`. float16 was requested, and the values of this model exceed its range. It runs in
    bfloat16, on a GPU of compute capability 8.0 or newer, or in float32 with twice the memory.

    With --dtype auto vLLM chooses by itself.

    Manual: `--set dtype=auto`.

    Sources: vllm/config/model.py (_FLOAT16_NOT_SUPPORTED_MODELS)

    See also: bf16-unsupported-gpu
    """
    model_type = served.config.model_type or profile.needs.model_type
    if model_type not in refuse.types:
        return None
    line = Doctor("diagnose", ("--set", "dtype=auto"))
    return Finding(
        Text("models of type {type} do not support float16", type=model_type),
        served.read,
        (Fix(Text("let vLLM choose the type"), (line,), Needs.PERSON),),
    )
