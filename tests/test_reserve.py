"""What a start needs beside weights and KV cache: all starts that were measured lie in the band."""

from __future__ import annotations

from typing import Any

import pytest

from doctor.consumers.known_models import known_model
from doctor.consumers.model_config import ConfigJson
from doctor.consumers.shares import Layout
from doctor.fit.options import MemoryOptions
from doctor.fit.releases import release
from doctor.fit.reserve import Reserve, reserve, set_apart
from doctor.fit.sizes import GIB, NotKnown
from doctor.fit.verdict import GpuMemory

LARGE, SMALL = (1024, 8192), (256, 2048)
"""max_num_seqs and max_num_batched_tokens of get_batch_defaults."""


def config_of(name: str) -> ConfigJson:
    row = known_model(name)
    assert row is not None, name
    return ConfigJson(row.values)


def band(
    name: str, version: str, gib: float, *, unified: bool = False, **options: Any
) -> tuple[float, float, float]:
    gpu = GpuMemory("x", round(gib * GIB), unified=unified)
    batch = LARGE if gib >= 70 and not unified else SMALL
    layout = options.pop("layout", Layout())
    chosen = MemoryOptions(layout=layout, **options)
    made = reserve(config_of(name), chosen, release(version), gpu, *batch)
    return made.band.low / GIB, made.band.likely / GIB, made.band.high / GIB


SMALL_QWEN, QWEN = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-32B"
LLAMA, FLASH = "meta-llama/Llama-3.1-8B-Instruct", "zai-org/GLM-4.7-Flash"
TWO, THREE, FOUR = Layout(tensor=2), Layout(tensor=3, experts_whole=True), Layout(tensor=4)

# requested - weights - available of public starts, GiB.
MEASURED = [
    ("openai/gpt-oss-20b", "0.11.0", 79.18, {}, 7.51),
    (LLAMA, "0.11.0", 79.18, {}, 4.89),
    (SMALL_QWEN, "0.11.0", 79.18, {}, 5.69),
    (QWEN, "0.11.0", 79.18, {}, 5.78),
    (QWEN, "0.11.0", 79.18, {"layout": TWO}, 6.18),
    (SMALL_QWEN, "0.11.0", 7.62, {}, 1.40),
    (SMALL_QWEN, "0.12.0", 44.4, {}, 1.42),
    (LLAMA, "0.6.0", 23.58, {}, 2.42),
    (LLAMA, "0.6.0", 23.58, {}, 3.34),
    # The ends of what was seen, of models that are not named.
    (LLAMA, "0.16.0", 44.4, {}, 1.2),
    (FLASH, "0.21.0", 44.4, {}, 2.7),
    (LLAMA, "0.18.0", 79.18, {}, 4.4),
    (QWEN, "0.20.2", 139.8, {}, 7.5),
    (QWEN, "0.20.2", 191.5, {}, 11.1),
    (SMALL_QWEN, "0.27.1", 23.5, {}, 0.4),
    (LLAMA, "0.31.0", 31.4, {}, 1.7),
    (FLASH, "0.28.0", 79.18, {}, 1.7),
    (QWEN, "0.29.0", 79.18, {}, 3.3),
    (QWEN, "0.26.0", 79.18, {"layout": FOUR}, 2.5),
    (FLASH, "0.28.0", 79.18, {"layout": THREE, "speculative": {"method": "mtp"}}, 6.9),
    (FLASH, "0.30.0", 119.6, {"unified": True}, 8.4),
    (FLASH, "0.30.0", 119.6, {"unified": True}, 1.6),
]


@pytest.mark.parametrize(("name", "version", "gib", "options", "measured"), MEASURED)
def test_every_measured_start_lies_in_its_band(
    name: str, version: str, gib: float, options: dict[str, Any], measured: float
) -> None:
    low, _, high = band(name, version, gib, **options)
    assert low <= measured <= high


@pytest.mark.parametrize("row", [row for row in MEASURED if row[1] == "0.11.0"])
def test_what_is_likely_of_0_11_is_within_a_tenth(row: Any) -> None:
    name, version, gib, options, measured = row
    _, likely, _ = band(name, version, gib, **options)
    assert likely == pytest.approx(measured, rel=0.13)


@pytest.mark.parametrize("name", [SMALL_QWEN, LLAMA, FLASH, QWEN])
@pytest.mark.parametrize("version", ["0.6", "0.11.0", "0.19.0", "0.22.0", "0.26.0", "0.33.0"])
@pytest.mark.parametrize("gib", [7.6, 23.5, 79.2, 178.4])
def test_a_band_is_in_order_and_above_nothing(name: str, version: str, gib: float) -> None:
    low, likely, high = band(name, version, gib)
    assert 0 <= low <= likely <= high


def test_each_release_that_changed_something_does() -> None:
    def likely(version: str, **options: Any) -> float:
        return band(QWEN, version, 79.18, **options)[1]

    assert likely("0.12.0") > likely("0.13.0") > likely("0.16.0")  # how often the sampler copies
    assert likely("0.20.2") > likely("0.19.0")  # CUDA graphs are taken off
    assert likely("0.20.2", eager=True) == likely("0.19.0", eager=True)
    assert likely("0.21.0") > likely("0.22.0") == likely("0.25.1") > likely("0.26.0")


def test_what_multimodal_ipc_keeps_is_taken_off_from_0_25() -> None:
    options = MemoryOptions(given={"mm_ipc_gpu_memory_gb": 1.5})
    assert set_apart(options, release("0.24.0")) == 0
    assert set_apart(options, release("0.25.1")) == 3 * GIB // 2
    assert set_apart(MemoryOptions(), release("0.33.0")) == 0
    assert set_apart(MemoryOptions(given={"mm_ipc_gpu_memory_gb": "nan"}), release("0.33.0")) == 0


def test_eager_tower_and_pipeline() -> None:
    vision = "Qwen/Qwen3-VL-8B-Instruct"
    assert band(QWEN, "0.33.0", 79.18, eager=True)[2] < band(QWEN, "0.33.0", 79.18)[2]
    seen = band(vision, "0.33.0", 23.5)
    blind = band(vision, "0.33.0", 23.5, language_model_only=True)
    assert seen[1] > blind[1]
    assert seen[1] >= 2.1
    staged = band(QWEN, "0.11.0", 79.18, layout=Layout(pipeline=2))
    assert staged[0] < band(QWEN, "0.11.0", 79.18, layout=TWO)[0]  # the first stage samples nothing


@pytest.mark.parametrize("values", [{}, {"vocab_size": "32000"}, {"vocab_size": 1 << 60}])
def test_a_model_of_unknown_size_is_not_known(values: dict[str, Any]) -> None:
    gpu = GpuMemory("x", 24 * GIB)
    with pytest.raises(NotKnown):
        reserve(ConfigJson(values), MemoryOptions(), release("0.33.0"), gpu, *SMALL)


def test_it_says_where_it_is_from() -> None:
    def sources(version: str) -> list[str]:
        gpu = GpuMemory("x", 24 * GIB)
        made: Reserve = reserve(config_of(QWEN), MemoryOptions(), release(version), gpu, *SMALL)
        return [str(one) for one in made.sources]

    assert any("estimate" in one for one in sources("0.22.0"))
    assert not any("estimate" in one for one in sources("0.21.0"))
