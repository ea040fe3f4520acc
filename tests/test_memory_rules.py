"""What diagnose says of memory: on which machines which rule speaks, and where all are quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from doctor.consumers.known_models import known_model
from doctor.engine import load_rules
from doctor.fit.sizes import GIB
from doctor.fit.verdict import Answer, Cause
from doctor.model import Finding, Missing, NotApplicable, Severity, Text
from doctor.probes.arguments import ServerArguments
from doctor.probes.configuration import ModelConfiguration, ReadFrom
from doctor.probes.driver import Device, Gpus
from doctor.probes.environment import LaunchEnv
from doctor.probes.fit import ServedFit, served_fit
from doctor.probes.memory import MainMemory
from doctor.probes.wheels import Vllm
from doctor.profile import Profile, load_profile
from doctor.shipped import rules_folder

RULES = {one.id: one.function for one in load_rules(rules_folder()) if one.area == "memory"}
VLLM = Vllm(Version("0.22.0"), Path("/v/vllm"))
GLM = "zai-org/GLM-4.7-Flash"
BARE = LaunchEnv({})


def machine(count: int, gib: float, capability: str = "9.0", free: float | None = None) -> Gpus:
    left = None if free is None else int(free * GIB)
    rows = (
        Device(i, "NVIDIA GPU", f"GPU-{i}", capability, int(gib * GIB), left) for i in range(count)
    )
    return Gpus(tuple(rows), count)


def configuration(model: str = GLM) -> ModelConfiguration:
    row = known_model(model)
    assert row is not None
    return ModelConfiguration(dict(row.values), ReadFrom.TABLE, Text("the table"))


def judged(
    gpus: Gpus,
    profile: Profile | None = None,
    arguments: ServerArguments | None = None,
    **env: str,
) -> ServedFit:
    profile = profile or load_profile("glm-4.7-flash")
    model = configuration(profile.model or GLM)
    return served_fit(profile, gpus, VLLM, model, arguments, None, None, None, LaunchEnv(env))


def found(fit: ServedFit) -> dict[str, Finding]:
    made = {}
    for id, function in RULES.items():
        answer = function(fit)
        if answer is not None:
            assert isinstance(answer, Finding)
            made[id] = answer
    return made


@pytest.mark.parametrize(
    ("gpus", "rule"),
    [
        (machine(2, 80), None),
        (machine(2, 45), None),
        (machine(2, 24), "gpu-memory-too-small"),
        (machine(2, 31, "12.0"), "no-kv-cache-memory"),
        (machine(2, 31.84, "12.0"), "kv-cache-too-small"),
    ],
    ids=["80", "45", "24", "31", "32"],
)
def test_one_cause_is_one_finding(gpus: Gpus, rule: str | None) -> None:
    made = found(judged(gpus))
    assert list(made) == ([rule] if rule else [])
    assert all(one.severity is None for one in made.values())


def test_the_models_own_length_is_the_commonest_first_failure() -> None:
    profile = Profile(GLM, tensor_parallel_size=2, gpu_memory_utilization=0.9)
    (finding,) = found(judged(machine(2, 40, "8.9"), profile)).values()
    assert finding.severity is None
    assert "one request of 202752 tokens needs 10.22 GiB" in str(finding.message)
    lines = [str(step) for fix in finding.fixes for step in fix.steps]
    assert lines[0].startswith("vllm-doctor diagnose --set max_model_len=")


def test_inside_the_band_it_is_a_warning() -> None:
    profile = Profile(GLM, tensor_parallel_size=2, gpu_memory_utilization=0.9)
    (finding,) = found(judged(machine(2, 45, "8.9"), profile)).values()
    assert finding.severity is Severity.WARNING


def test_a_profile_passes_its_own_utilization_and_a_command_has_vllms() -> None:
    profile = Profile(GLM, tensor_parallel_size=2, max_model_len=32768)
    assert not found(judged(machine(2, 80), profile))
    said: dict[str, Any] = {"model": GLM, "tensor_parallel_size": 2, "max_model_len": 32768}
    commanded = ServerArguments(said, defaults={"gpu_memory_utilization": 0.3}, parsed=True)
    assert set(found(judged(machine(2, 80), profile, commanded))) == {"gpu-memory-too-small"}


def test_memory_that_others_hold_is_another_rules_matter() -> None:
    """Also that of the running server of this same environment."""
    assert not found(judged(machine(2, 80, free=4)))


def test_what_others_hold_is_no_matter_of_a_cache_of_a_said_size_either() -> None:
    profile = Profile(
        GLM,
        tensor_parallel_size=2,
        max_model_len=8192,
        options={"kv_cache_memory_bytes": 4 * GIB},
    )
    assert not found(judged(machine(2, 80, free=4), profile))
    assert found(judged(machine(2, 31, free=4), profile))


def test_advice_never_needs_more_gpus_than_there_are() -> None:
    profile = Profile(GLM, max_model_len=32768)
    (alone,) = found(judged(machine(1, 24), profile)).values()
    assert [step for fix in alone.fixes for step in fix.steps] == []
    (four,) = found(judged(machine(4, 24), profile)).values()
    lines = [str(step) for fix in four.fixes for step in fix.steps]
    assert lines[0] == "vllm-doctor diagnose --set tensor_parallel_size=4"


def test_too_few_gpus_and_undivided_models_are_other_rules_matter() -> None:
    for gpus, tensor in ((machine(1, 80), 2), (machine(8, 80), 5)):
        fit = judged(gpus, Profile(GLM, tensor_parallel_size=tensor))
        assert fit.cause in (Cause.GPUS, Cause.SHARES)
        for function in RULES.values():
            with pytest.raises(Missing) as missing:
                function(fit)
            assert not isinstance(missing.value, NotApplicable)


def test_the_rules_of_ranks_advise_what_fits() -> None:
    """Of five ranks that do not divide the experts the nearest size is four; of three GPUs of 48 GB
    two hold it; on two of 24 GB nothing does."""
    rules = {one.id: one.function for one in load_rules(rules_folder()) if one.area == "gpu"}
    asked = ((8, 5, 80, "4"), (3, 5, 45, "2"), (2, 5, 24, None))
    for count, tensor, gib, size in asked:
        gpus = machine(count, gib)
        profile = Profile(GLM, tensor_parallel_size=tensor, max_model_len=8192)
        fewer = machine(min(count, 4), gib)
        finding = rules["tp-exceeds-visible-gpus"](
            fewer, profile, None, None, judged(gpus, profile)
        )
        assert isinstance(finding, Finding)
        (fix,) = finding.fixes
        lines = [str(step) for step in fix.steps]
        wanted = f"vllm-doctor diagnose --set tensor_parallel_size={size}"
        assert lines == ([wanted] if size else [])


def test_a_model_whose_configuration_is_not_known_is_not_judged() -> None:
    profile = Profile("org/own")
    nothing = ModelConfiguration({}, None, None)
    with pytest.raises(NotApplicable, match=r"config\.json of org/own"):
        served_fit(profile, machine(1, 80), VLLM, nothing, None, None, None, None, BARE)


def test_what_cannot_be_told_is_not_checked_with_the_reason() -> None:
    odd = ModelConfiguration({"model_type": "odd"}, ReadFrom.FOLDER, Text("here"))
    fit = served_fit(Profile("org/own"), machine(1, 80), VLLM, odd, None, None, None, None, BARE)
    assert fit.answer is Answer.UNKNOWN
    with pytest.raises(NotApplicable):
        RULES["kv-cache-too-small"](fit)


def test_a_gpu_without_memory_of_its_own_has_the_machines() -> None:
    gpus = Gpus((Device(0, "NVIDIA GB10", "GPU-a", "12.1", None, None),), 1)
    profile = Profile(GLM, max_model_len=32768, gpu_memory_utilization=0.8)
    with pytest.raises(NotApplicable, match="unified memory"):
        served_fit(profile, gpus, VLLM, configuration(), None, None, None, None, BARE)
    memory = MainMemory(int(119.6 * GIB), int(110 * GIB))
    fit = served_fit(profile, gpus, VLLM, configuration(), None, None, None, memory, BARE)
    assert fit.answer is Answer.FITS
    small = MainMemory(int(62 * GIB), int(60 * GIB))
    fit = served_fit(profile, gpus, VLLM, configuration(), None, None, None, small, BARE)
    assert fit.cause is Cause.WEIGHTS


def test_a_snapshot_from_before_these_checks_has_its_gpus_counted_all_the_same() -> None:
    """Other rules go without this reckoning where what it rests on was not recorded."""
    assert ServedFit.dispensable
    assert MainMemory.dispensable


def unlike(*names_and_gib: tuple[str, float]) -> Gpus:
    rows = enumerate(names_and_gib)
    made = tuple(Device(i, name, f"GPU-{i}", "8.9", int(gib * GIB)) for i, (name, gib) in rows)
    return Gpus(made, len(made))


def test_where_cuda_may_count_unlike_gpus_in_another_order_only_what_holds_of_all_is_told() -> None:
    one = Profile(GLM, max_model_len=32768)
    for gpus in (unlike(("L4", 22.5), ("A", 95)), unlike(("A", 95), ("L4", 22.5))):
        with pytest.raises(NotApplicable, match="CUDA_DEVICE_ORDER"):
            judged(gpus, one)
    small, large = unlike(("L4", 22.5), ("A", 95)), unlike(("A", 95), ("L4", 22.5))
    assert judged(small, one, CUDA_DEVICE_ORDER="PCI_BUS_ID").answer is Answer.DOES_NOT_FIT
    assert judged(large, one, CUDA_DEVICE_ORDER="PCI_BUS_ID").answer is Answer.FITS
    assert judged(unlike(("L4", 22.5), ("T4", 15)), one).answer is Answer.DOES_NOT_FIT
    assert judged(unlike(("A", 95), ("B", 96)), one).answer is Answer.FITS
    both = Profile(GLM, max_model_len=32768, tensor_parallel_size=2)
    assert judged(large, both).answer is Answer.DOES_NOT_FIT


def test_the_memory_of_a_mig_instance_is_not_the_whole_gpus() -> None:
    gpus = Gpus((Device(0, "NVIDIA GPU", "GPU-0", "9.0", 80 * GIB, mig=True),), 1)
    with pytest.raises(NotApplicable, match="MIG is on"):
        judged(gpus)
