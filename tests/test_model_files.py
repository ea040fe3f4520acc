"""What is said of a model's files: real ones, as they lie on a disk where something went wrong."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doctor.model import NotApplicable
from doctor.probes.arguments import ServerArguments
from doctor.probes.environment import LaunchEnv
from doctor.probes.files import ModelFiles, model_files
from doctor.profile import Profile, ServeRequest
from doctor.target import Live

NAME = "org/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def shard(size: int = 64) -> bytes:
    header = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


SHARDS = tuple(f"model-{n:05}-of-00002.safetensors" for n in (1, 2))
WHOLE = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    ).encode(),
    **dict.fromkeys(SHARDS, shard()),
}


def found(home: Path, model: str, **options: Any) -> ModelFiles:
    env = {"HOME": str(home), "HF_HOME": str(home)}
    request = ServeRequest(Profile(model=model))
    return model_files(Live(env), request, ServerArguments(options), LaunchEnv(env))


def folder(home: Path, files: dict[str, bytes] | None = None) -> Path:
    """A model that is served by its path."""
    made = home / "model"
    made.mkdir(parents=True)
    for name, data in (WHOLE if files is None else files).items():
        (made / name).write_bytes(data)
    return made


def cached(home: Path) -> Path:
    """The same in the hub's cache, as huggingface_hub lays it out; the folder of its links."""
    repository = home / "hub/models--org--model"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for one in (snapshot, blobs, repository / "refs"):
        one.mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    for number, (name, data) in enumerate(WHOLE.items()):
        (blobs / f"{number:064}").write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{number:064}")
    return snapshot


def faults(made: ModelFiles) -> list[tuple[str, str]]:
    return [(one.path.name, one.fault) for one in made.odd]


def test_a_whole_model_has_no_fault(tmp_path: Path) -> None:
    path = folder(tmp_path)
    made = found(tmp_path, str(path))
    assert (made.folder, made.repository, made.weights) == (path, None, SHARDS)
    assert not made.odd


def test_a_whole_cache_has_no_fault_whatever_parts_lie_beside_it(tmp_path: Path) -> None:
    snapshot = cached(tmp_path)
    blobs = snapshot.parents[1] / "blobs"
    (blobs / f"{'a' * 64}.incomplete").write_bytes(b"12")
    (blobs / f"{'b' * 64}.0123abcd.incomplete").write_bytes(b"123")
    made = found(tmp_path, NAME)
    assert (made.folder, made.repository) == (snapshot, snapshot.parents[1])
    assert (made.weights, made.odd) == (SHARDS, ())
    assert (made.parts, made.parts_size) == (2, 5)


def test_a_cache_without_anything_of_it(tmp_path: Path) -> None:
    made = found(tmp_path, NAME)
    assert made.folder is None
    assert made.repository == tmp_path / "hub/models--org--model"
    assert (made.weights, made.odd) == ((), ())


Change = Callable[[Path], object]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def overlap(path: Path) -> None:
    rows = {
        "a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
        "b": {"dtype": "U8", "shape": [8], "data_offsets": [4, 12]},
    }
    text = json.dumps(rows).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))


def pointer(path: Path) -> None:
    path.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 5000000000\n"
    )


def page(path: Path) -> None:
    path.write_text("<html><body>502 Bad Gateway</body></html>" * 100)


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../blobs/none")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (Path.unlink, "missing"),
        (link_to_nothing, "broken-link"),
        (cut, "cut"),
        (overlap, "damaged"),
        (page, "damaged"),
        (pointer, "pointer"),
        (fifo, "damaged"),
        (directory, "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
    ],
)
@pytest.mark.parametrize("make", [folder, cached])
def test_what_is_wrong_with_a_file_is_told(
    tmp_path: Path, make: Callable[[Path], Path], change: Change, fault: str
) -> None:
    place = make(tmp_path)
    change(place / SHARDS[1])
    made = found(tmp_path, str(place) if make is folder else NAME)
    assert faults(made) == [(SHARDS[1], fault)]
    assert made.weights == SHARDS


def test_without_an_index_the_names_say_how_many_there_are(tmp_path: Path) -> None:
    path = folder(tmp_path, {SHARDS[0]: shard()})
    assert faults(found(tmp_path, str(path))) == [(SHARDS[1], "missing")]


@pytest.mark.parametrize(
    ("form", "names", "loaded"),
    [
        (None, ("model.safetensors", "pytorch_model.bin", "x.pt"), ("model.safetensors",)),
        (None, ("pytorch_model.bin", "training_args.bin", "x.pt"), ("pytorch_model.bin",)),
        (None, ("training_args.bin", "x.pt"), ()),
        (None, ("consolidated.safetensors", "model.safetensors"), ("consolidated.safetensors",)),
        ("hf", ("consolidated.safetensors", "x.bin"), ("consolidated.safetensors",)),
        (
            "mistral",
            ("consolidated-1.safetensors", "m.safetensors"),
            ("consolidated-1.safetensors",),
        ),
        ("safetensors", ("pytorch_model.bin",), ()),
        (None, ("._model.safetensors", "model.safetensors"), ("model.safetensors",)),
        (None, ("config.json", "README.md"), ()),
    ],
)
def test_the_files_are_those_that_vllm_would_choose(
    tmp_path: Path, form: str | None, names: tuple[str, ...], loaded: tuple[str, ...]
) -> None:
    path = folder(tmp_path, dict.fromkeys(names, shard()))
    made = found(tmp_path, str(path), load_format=form)
    assert (made.weights, made.odd) == (loaded, ())


def test_an_index_of_safetensors_says_nothing_of_a_copy_without_them(tmp_path: Path) -> None:
    index = {"model.safetensors.index.json": WHOLE["model.safetensors.index.json"]}
    made = found(tmp_path, str(folder(tmp_path, {**index, "pytorch_model.bin": b"x"})))
    assert (made.weights, made.odd) == (("pytorch_model.bin",), ())


def test_mistrals_own_index_is_asked_about_mistrals_own_files(tmp_path: Path) -> None:
    own = "consolidated-00001-of-00001.safetensors"
    index = json.dumps({"weight_map": {"a": own, "b": "consolidated-more.safetensors"}}).encode()
    files = {**WHOLE, own: shard(), "consolidated.safetensors.index.json": index}
    made = found(tmp_path, str(folder(tmp_path, files)))
    assert faults(made) == [("consolidated-more.safetensors", "missing")]


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("index", "fault"),
    [
        (WHOLE[INDEX][:-1], "damaged"),
        (b"", "damaged"),
        (b'{"weight_map": 1}', "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8000000\n", "pointer"),
    ],
)
def test_an_index_that_vllm_would_stop_at_is_told(tmp_path: Path, index: bytes, fault: str) -> None:
    made = found(tmp_path, str(folder(tmp_path, {**WHOLE, INDEX: index})))
    assert faults(made) == [(INDEX, fault)]
    assert made.weights == (*SHARDS, INDEX)


@pytest.mark.parametrize(
    "index",
    [
        b'{"weight_map": {"a": "../../../etc/passwd", "b": "/etc/x", "c": 5, "d": "\\u001b"}}',
        json.dumps({"weight_map": {str(n): "../x" for n in range(200_000)}}).encode(),
    ],
)
def test_an_index_never_leads_out_of_its_folder(tmp_path: Path, index: bytes) -> None:
    files = {INDEX: index, "model.safetensors": shard()}
    made = found(tmp_path, str(folder(tmp_path, files)))
    assert made.weights in (("model.safetensors",), ("5",))
    assert all(one.path.parent == made.folder for one in made.odd)


@pytest.mark.parametrize("form", ["dummy", "gguf", "tensorizer", "sharded_state"])
def test_a_format_that_is_not_read_is_not_judged(tmp_path: Path, form: str) -> None:
    with pytest.raises(NotApplicable):
        found(tmp_path, str(folder(tmp_path)), load_format=form)


@pytest.mark.parametrize("name", ["s3://bucket/model", "org/model:Q4_K_M", "model.gguf"])
def test_what_is_no_folder_and_no_repository_is_not_judged(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotApplicable):
        found(tmp_path, name)


def without_roots_rights() -> None:
    """Between fork and exec: modes count for root as well (capabilities(7), prctl(2))."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


def test_what_the_user_may_not_read_is_told(tmp_path: Path) -> None:
    path = folder(tmp_path)

    def told() -> str:
        code = (
            "import sys, pathlib\n"
            "from tests.test_model_files import faults, found\n"
            "made = found(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
            "print(faults(made), made.listed)\n"
        )
        words = [sys.executable, "-c", code, str(tmp_path), str(path)]
        top = Path(__file__).parents[1]
        ran = subprocess.run(
            words, capture_output=True, check=True, cwd=top, preexec_fn=without_roots_rights
        )
        return ran.stdout.decode().strip()

    (path / SHARDS[1]).chmod(0)
    assert told() == f"[('{SHARDS[1]}', 'unreadable')] True"
    path.chmod(0o300)
    assert told() == "[] False"
