"""Whether the server compiles kernels when it starts, for which GPUs, and how to do without."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

from packaging.version import Version

from doctor.consumers import flashinfer as fi
from doctor.consumers import vllm as consumer
from doctor.consumers.source import Source, Unreadable
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, Missing, NotApplicable, Text
from doctor.numbers import number_of
from doctor.probes.driver import Gpus
from doctor.probes.environment import LaunchEnv, which
from doctor.probes.served import Profile
from doctor.probes.wheels import ROCM, FlashInfer, Torch, Vllm
from doctor.tape import NotRecorded
from doctor.target import Target

SAMPLER, EXPERTS = "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_USE_FLASHINFER_MOE_FP16"
_ARCH = re.compile(r"([0-9]{1,3})([0-9][a-z]?)")
# From this nvcc on, 12.0 is compiled for its whole family; what older ones get is told by them.
_TODAY, _OLDER = Version("12.9"), Version("12.8")
Capability = tuple[int, int]


@dataclass(frozen=True)
class Workaround:
    """How vLLM is told to use its own kernels: `variables`, and by `moe_backend` where no variable
    does it for a mixture of experts; `attention`: FlashInfer's is still compiled on these GPUs."""

    variables: dict[str, str] = field(default_factory=dict)
    moe_backend: str | None = None
    attention: bool = False


@dataclass(frozen=True)
class Jit(Fact):
    """FlashInfer will compile. `archs`: nvcc names of what for ("80", "90a"), as nvcc 12.9 and
    newer are told; () where no GPU can be asked; `older_archs`: the same for nvcc 12.8. `asked_by`:
    who named them. `unreadable`: entries of FLASHINFER_CUDA_ARCH_LIST on which FlashInfer breaks.
    `libraries`: what it links with. `doubt`: why it is not sure that anything is compiled;
    `arch_doubt`: that this FlashInfer calls them so. `falls_back`: where FlashInfer cannot compile
    for a GPU, vLLM goes on without it."""

    archs: tuple[str, ...] = ()
    asked_by: str = "the visible GPUs"
    unreadable: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ("cudart", "cuda")
    older_archs: tuple[str, ...] | None = None
    doubt: Text | None = None
    arch_doubt: Text | None = None
    falls_back: bool = False
    workaround: Workaround = field(default_factory=Workaround)

    def archs_of(self, nvcc: Version | None) -> tuple[str, ...]:
        """The names that this release of nvcc is given."""
        old = nvcc is not None and nvcc < _TODAY and self.older_archs is not None
        return self.older_archs or () if old else self.archs

    @property
    def cache(self) -> str | None:
        """The folder of the cache that holds the kernels for these GPUs (flashinfer/jit/env.py:143:
        sorted by major as a number, then by minor as text); None where the GPUs are not known."""
        rows = [match.groups() for match in map(_ARCH.fullmatch, self.archs) if match]
        ordered = sorted(set(rows), key=lambda r: (int(r[0]), r[1]))
        return "_".join("".join(row) for row in ordered) or None


def _if_told(ask: Callable[[], Any]) -> Any:
    """The answer of the installed files; None where they do not say, or where a snapshot holds
    none of it."""
    try:
        return ask()
    except (Unreadable, NotRecorded):
        return None


@dataclass(frozen=True)
class Use:
    """What of this server is FlashInfer's on its GPUs, by the installed vLLM's own files, which are
    read when they are asked, each once. Every question raises Unreadable where they do not say;
    there is none, and Missing is raised, where no CUDA server starts."""

    target: Target
    env: LaunchEnv
    profile: Profile
    vllm: Vllm
    torch: Torch
    flashinfer: FlashInfer
    gpus: Gpus | None

    def __post_init__(self) -> None:
        if self.profile.device == "cpu":
            raise NotApplicable(Text("this server runs on the CPU and compiles no CUDA kernel"))
        if self.torch.hip:
            raise NotApplicable(ROCM)
        if self.torch.cuda is None:
            raise Missing(Text("torch is built without CUDA"), ("torch-cpu-build",))

    @functools.cached_property
    def capabilities(self) -> tuple[Capability, ...]:
        """Of its GPUs, each once; none where there is none to ask. Raises Missing for one that
        does not say it."""
        return tuple(map(_must_read, dict.fromkeys(said_capabilities(self.profile, self.gpus))))

    @functools.cached_property
    def source(self) -> Source:
        return Source(self.target, self.vllm.root)

    @functools.cached_property
    def kernels(self) -> consumer.Kernels:
        return consumer.kernels(self.source, self.vllm.version)

    @functools.cached_property
    def attends(self) -> dict[Capability, bool | None]:
        """Whether attention is FlashInfer's, GPU by GPU; None where the model decides."""
        return {c: self.kernels.attention(c) for c in self.capabilities}

    @functools.cached_property
    def kinds(self) -> dict[Capability, str | None]:
        """Which of FlashInfer's experts an unquantised mixture gets, GPU by GPU."""
        return {c: self.kernels.experts(c) for c in self.capabilities}

    def doubt(self) -> Text | None:
        """None where it is sure that something is compiled, else why it only may be. Raises
        Missing where it is sure that nothing is."""
        doubts: list[Text] = []
        for ask in (self.sampler, self.experts, self.attention):
            try:
                if ask():
                    return None
            except Unreadable as unreadable:
                doubts.append(unreadable.reason)
        if doubts:
            return doubts[0]
        if not self.capabilities:
            raise Missing(
                Text("without its sampler, what FlashInfer compiles depends on the GPUs: which?"),
                ("driver-lib-invisible", "tp-exceeds-visible-gpus"),
            )
        raise NotApplicable(Text("FlashInfer's sampler is off, nothing is compiled"))

    def sampler(self) -> bool:
        on = sampler_is_on(self.env, self.vllm)
        if on is None:
            raise Unreadable(self.vllm.root / "envs.py", "which sampler is used")
        return on and (not self.capabilities or any(map(self.kernels.sampler, self.capabilities)))

    def experts(self) -> bool:
        """The model's mixture of experts is computed by FlashInfer."""
        if "moe" not in (self.profile.needs.architecture or "").lower():
            return False
        asked = self.profile.moe_backend or "auto"
        if asked != "auto":
            return asked.startswith("flashinfer")
        if (self.env.get(EXPERTS) or "").strip() == "0" and self.declares(EXPERTS):
            return False
        return any(self.kinds.values()) and self.usable()

    def attention(self) -> bool:
        answers = self.attends.values()
        if None in answers and True not in answers:
            raise Unreadable(self.vllm.root, "which attention this model gets on these GPUs")
        return True in answers

    def generated(self) -> tuple[str, ...]:
        """What of it is machine code that FlashInfer fetches (`flashinfer.GENERATED`)."""
        blackwell = [c for c in self.capabilities if c[0] == fi.GENERATED_MAJOR]
        made = ["attention"] if any(self.attends[c] for c in blackwell) else []
        if blackwell and self.experts():
            asked = self.profile.moe_backend or "auto"
            kinds = {self.kinds[c] for c in blackwell} if asked == "auto" else {asked.upper()}
            made += ["experts"] if consumer.GENERATED_EXPERTS in kinds else []
        return tuple(made)

    def falls_back(self) -> bool:
        """vLLM takes its own sampler where FlashInfer refuses a GPU, and nothing else is its."""
        others = _if_told(self.experts) or _if_told(self.attention)
        return not others and bool(_if_told(lambda: consumer.sampler_falls_back(self.source)))

    def usable(self) -> bool:
        """vLLM takes FlashInfer for there (`has_flashinfer`): with its cubins, or where it finds
        what compiles."""
        if self.flashinfer.cubin or (self.env.get("VLLM_HAS_FLASHINFER_CUBIN") or "0") != "0":
            return True
        wanted = consumer.needs_for_flashinfer(self.source)
        home = fi.cuda_home_searched(self.target, self.env).path if "toolkit" in wanted else None
        return (
            ("PATH" not in wanted or which(self.target, self.env, "nvcc") is not None)
            and ("ninja" not in wanted or which(self.target, self.env, "ninja") is not None)
            and (home is None or self.target.executable(Path(home) / "bin/nvcc"))
            and ("toolkit" not in wanted or home is not None)
        )

    def declares(self, name: str) -> bool:
        """Whether vLLM knows the variable: an older doctor knew only vLLM 0.22, which has both."""
        told = _if_told(lambda: consumer.declares(self.source, name))
        return told is not False

    def workaround(self) -> Workaround:
        experts = not self.capabilities or _if_told(self.experts) is not False
        names = [SAMPLER, *([EXPERTS] if experts else [])]
        variables = {name: "0" for name in names if self.declares(name)}
        by_option = experts and bool(self.capabilities) and EXPERTS not in variables
        return Workaround(
            variables,
            "triton" if by_option else None,
            _if_told(self.attention) is True,
        )


@probe
def jit(
    target: Target,
    env: LaunchEnv,
    profile: Profile,
    vllm: Vllm,
    torch: Torch,
    flashinfer: FlashInfer,
    gpus: Gpus | None,
) -> Jit:
    """Not applicable where nothing is compiled: another device, ready kernels installed, or
    FlashInfer's sampler off and neither experts nor attention its own on these GPUs."""
    use = Use(target, env, profile, vllm, torch, flashinfer, gpus)
    cache = flashinfer.jit_cache
    if cache and Version(cache.public) == flashinfer.version:
        raise NotApplicable(
            Text("flashinfer-jit-cache {version} brings the kernels ready-made", version=cache)
        )
    doubt = use.doubt()
    build = Source(target, flashinfer.root)
    return Jit(
        **_archs(env, use.capabilities, build, profile),
        libraries=_libraries(build, bool(_if_told(use.experts))),
        doubt=doubt,
        falls_back=use.falls_back(),
        workaround=use.workaround(),
    )


def _libraries(build: Source, experts: bool) -> tuple[str, ...]:
    """What is linked; `experts`: some of it is a mixture of experts."""
    base = ("cudart", "cuda", "nvrtc") if experts else ("cudart", "cuda")
    return _if_told(lambda: fi.libraries(build, experts)) or base


def linked_libraries(build: Source) -> tuple[str, ...]:
    """All that this FlashInfer links any kernel with."""
    return tuple(dict.fromkeys((*_libraries(build, False), *_libraries(build, True))))


def _archs(
    env: LaunchEnv, capabilities: tuple[Capability, ...], build: Source, profile: Profile
) -> dict[str, Any]:
    """The fields of Jit that say what for."""
    doubt: Text | None = None

    def name(capability: Capability, nvcc: Version) -> str | None:
        nonlocal doubt
        try:
            return fi.arch(build, capability, nvcc)
        except Unreadable as unreadable:
            doubt = unreadable.reason
        except NotRecorded:
            pass
        return fi.known_arch(capability, nvcc)

    listed = env.get("FLASHINFER_CUDA_ARCH_LIST")
    if listed is not None:
        # FlashInfer splits at every single space and takes each entry apart at its one dot.
        rows = {entry: _listed(entry, lambda c: name(c, _TODAY)) for entry in listed.split(" ")}
        return {
            "archs": tuple(arch for arch in rows.values() if arch),
            "asked_by": "FLASHINFER_CUDA_ARCH_LIST",
            "unreadable": tuple(entry for entry, arch in rows.items() if arch is None),
            "arch_doubt": doubt,
        }
    today, older = (
        # A GPU that FlashInfer refuses with an older nvcc keeps its name, which that does not know.
        tuple(sorted({arch for c in capabilities if (arch := name(c, nvcc) or name(c, _TODAY))}))
        for nvcc in (_TODAY, _OLDER)
    )
    return {
        "archs": today,
        "older_archs": None if older == today else older,
        "asked_by": "the profile" if profile.gpus == "later" else "the visible GPUs",
        "arch_doubt": doubt,
    }


def sampler_is_on(env: LaunchEnv, vllm: Vllm) -> bool | None:
    """Whether FlashInfer's sampler is switched on, by the variable or by default; None where the
    installed vLLM does not say what its default is."""
    value = env.get(SAMPLER)
    return vllm.sampler if value is None else value.strip() != "0"


def said_capabilities(profile: Profile, gpus: Gpus | None) -> tuple[str, ...]:
    """The compute capability of each GPU to come or visible here, as it is said."""
    if profile.gpus == "later":
        return profile.archs
    return tuple(d.capability for d in gpus.visible) if gpus else ()


def read_capability(said: str) -> Capability | None:
    """(major, minor) of "9.0"; None of anything else."""
    major, minor = map(number_of, said.partition(".")[::2])
    return None if major is None or minor is None else (major, minor)


def _must_read(said: str) -> Capability:
    if known := read_capability(said):
        return known
    raise Missing(Text("a GPU says that its compute capability is {row}", row=repr(said)))


def _listed(entry: str, name: Callable[[Capability], str | None]) -> str | None:
    match = re.fullmatch(r"([0-9]{1,2})\.([0-9])([a-z]?)", entry)
    if match is None:
        return None
    if match[3]:
        return "".join(match.groups())
    return name((int(match[1]), int(match[2])))
