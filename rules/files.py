"""The model's files, as they lie here before a server loads them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers import hub
from doctor.fixes import Command, DownloadModel
from doctor.numbers import shown_size
from doctor.probes.configuration import ModelConfiguration
from doctor.probes.environment import LaunchEnv
from doctor.probes.files import ModelFiles, OddFile
from doctor.probes.model import ModelPath
from doctor.probes.network import HubReach
from doctor.probes.room import DownloadRoom
from doctor.probes.served import Profile

_SHOWN = 5
_NOT_LOOKED_AT = Text("the model's files were not looked at")


def _known(files: ModelFiles | None) -> ModelFiles:
    if files is None:
        raise NotApplicable(_NOT_LOOKED_AT)
    return files


def _listed(odd: Iterable[OddFile]) -> Iterator[Text]:
    rows = list(odd)
    for one in rows[:_SHOWN]:
        yield Text("{path} {why}", path=one.path, why=one.why)
    if len(rows) > _SHOWN:
        yield Text("and {count} more", count=len(rows) - _SHOWN)


def _on_their_way(files: ModelFiles) -> Iterator[Text]:
    if files.parts:
        yield Text(
            "{count} files of {size} are on their way, or were left by a download that did not end",
            count=files.parts,
            size=shown_size(files.parts_size),
        )


def _download(files: ModelFiles) -> Iterator[Fix]:
    if files.repository is not None:
        step = DownloadModel(files.name, files.revision, files.repository.parent)
        yield Fix(Text("download it now, and prove every file"), (step,))


def _how_bad(profile: Profile) -> Severity:
    """vLLM fetches by itself; an image is built without the model."""
    return Severity.INFO if profile.gpus == "later" else Severity.WARNING


@rule("model-not-downloaded", Severity.WARNING, Stage.MODEL)
def model_not_downloaded(
    files: ModelFiles | None,
    configuration: ModelConfiguration | None,
    env: LaunchEnv,
    profile: Profile,
) -> Finding | None:
    """The model's weights are not on this machine yet.

    vLLM downloads them by itself at its start, and waits for them: 59 GB take ten minutes at 100
    MB/s, which is also all that vLLM gives its engine (`VLLM_ENGINE_READY_TIMEOUT_S`, 600 s). What
    goes wrong on the way, such as a mirror that hangs or a file with a wrong byte, then shows as a
    server that does not start. Where the profile says that the GPUs come later, as when an image is
    built, it is no more than a note.

    Fix: Fetches them through the same hub with the client of the environment, and holds every file
    against the hub's hash. More than 1 GiB needs `--allow download`; the plan says the bytes, the
    disk and the host.

    Manual: `vllm-doctor download MODEL` does the same; interrupted, it goes on.

    Sources: vllm/model_executor/model_loader/weight_utils.py (0.22.0 and 0.33.0)

    See also: hf-incomplete-cache, hf-offline-missing-files, disk-full-download
    """
    here = _known(files)
    if here.repository is None or here.weights or not here.listed:
        return None
    if hub.is_offline(env.vars):
        raise NotApplicable(Text("nothing is downloaded offline"))
    size = configuration.weights if configuration else None
    return Finding(
        Text("the weights of {model} are not on this machine", model=here.name),
        (
            Text("{folder} has none of {revision}", folder=here.repository, revision=here.revision),
            Text(
                "{hub} will be asked for {size}",
                hub=hub.endpoint(env.vars),
                size=Text("about {size}", size=shown_size(size)) if size else "them",
            ),
            *_on_their_way(here),
        ),
        tuple(_download(here)),
        _how_bad(profile),
    )


@rule("hf-incomplete-cache", Severity.WARNING, Stage.MODEL)
def hf_incomplete_cache(
    files: ModelFiles | None, env: LaunchEnv, profile: Profile
) -> Finding | None:
    """Files of the model are missing: the download or copy is incomplete.

    A shard that `model.safetensors.index.json` names is missing, or a link in snapshots/ leads to a
    blob that does not exist, as in a copy of the snapshots folder without the blobs. vLLM fetches
    what is missing if it can reach the hub. If it cannot, it loads the shards that it finds and
    notices the gap at the end (`were not initialized from checkpoint`), or fails at the link. A
    left-over .incomplete file beside a complete snapshot is harmless; during a download it belongs
    to that process. `were not initialized` with every shard there is not a missing file: this
    vLLM's class expects weights that the checkpoint does not have.

    Fix: Fetches what is missing, keeps what is right, and proves both. More than 1 GiB needs
    `--allow download`; the plan says the bytes, the disk and the host.

    Manual: `vllm-doctor download MODEL` does the same;
    `--verify-only` says, without the network, what that is. `find FOLDER -xtype l` lists the links
    to nothing.

    Sources: huggingface_hub/file_download.py (0.36.2 and 2.4.0), vllm#26912

    See also: truncated-safetensors, hf-offline-missing-files, model-path-missing
    """
    here = _known(files)
    lacking = here.of("missing", "broken-link")
    if here.repository is None or not lacking:
        return None
    if hub.is_offline(env.vars):
        raise NotApplicable(Text("nothing is downloaded offline"))
    return Finding(
        Text(
            "{count} of {all} files of weights of {model} are not here",
            count=len(lacking),
            all=len(here.weights),
            model=here.name,
        ),
        (*_listed(lacking), *_on_their_way(here)),
        tuple(_download(here)),
        _how_bad(profile),
    )


@rule("model-files-missing", Severity.ERROR, Stage.MODEL)
def model_files_missing(files: ModelFiles | None, path: ModelPath | None) -> Finding | None:
    """The model's folder lacks files of its weights.

    Nothing is fetched into a folder that is served by its path. vLLM stops with `Cannot find any
    model weights with`, at a link to nothing with `No such file or directory`, or, after it has
    loaded all that is there, with `Following weights were not initialized from checkpoint`.

    Manual: Copy the folder again, with what its links lead to (`rsync -aL`), or download the model
    into the hub's cache (`vllm-doctor download ORG/MODEL`) and serve it by its name.

    Sources: vllm/model_executor/model_loader/default_loader.py (0.22.0 and 0.33.0)

    See also: hf-incomplete-cache, truncated-safetensors, model-path-missing
    """
    here = _known(files)
    if here.repository is not None or here.folder is None or not here.listed:
        return None
    if path is not None and path.path is not None and not path.config:
        raise NotApplicable(Text("there is no config.json in it"))
    lacking = here.of("missing", "broken-link")
    if here.weights and not lacking:
        return None
    look = Command(f"find {shlex.quote(str(here.folder))} -xtype l -o -name '*.safetensors'")
    fix = Fix(Text("see which files are there"), (look,), Needs.PERSON)
    if not here.weights:
        return Finding(Text("{folder} has no weights", folder=here.folder), (), (fix,))
    return Finding(
        Text(
            "{count} of {all} files of weights are not in {folder}",
            count=len(lacking),
            all=len(here.weights),
            folder=here.folder,
        ),
        tuple(_listed(lacking)),
        (fix,),
    )


@rule("truncated-safetensors", Severity.ERROR, Stage.MODEL)
def truncated_safetensors(files: ModelFiles | None) -> Finding | None:
    """A weights file is truncated, or is not a safetensors file.

    A .safetensors file begins with the length of its header, and the header says where each tensor
    ends. `incomplete metadata, file not fully covered` (MetadataIncompleteBuffer): the file is
    shorter or longer than that, as after an interrupted copy or a full disk. `header too large` or
    `invalid header`: the first bytes are something else, most often a Git LFS pointer of 130 bytes
    or an error page. `header too small`: the file is empty. The message does not name the file.
    vLLM does not fetch a file again that exists, whatever is in it. The header proves nothing of
    the bytes behind it: a wrong one is found by its hash alone (`vllm-doctor download
    --verify-only`).

    Fix: In the hub's cache the file is taken away and fetched again, and every file is proven. More
    than 1 GiB needs `--allow download`; the plan says the bytes, the disk and the host.

    Manual: `vllm-doctor download MODEL` does the same. In a git clone, `git lfs pull` puts the
    files in the place of their pointers.

    Sources: airllm#137, LlamaFactory#5201, vllm#57975, safetensors/src/tensor.rs

    See also: hf-incomplete-cache, disk-full-download
    """
    here = _known(files)
    bad = here.of("cut", "damaged", "pointer")
    if not bad:
        return None
    if here.repository is not None:
        fixes = tuple(_download(here))
    elif any(one.fault == "pointer" for one in bad):
        pull = Command(f"git -C {shlex.quote(str(here.folder))} lfs pull")
        fixes = (Fix(Text("fetch the files that the pointers stand for"), (pull,), Needs.PERSON),)
    else:
        again = Command("rsync -aL --checksum SOURCE/ FOLDER/")
        fixes = (Fix(Text("copy the files again, by their contents"), (again,), Needs.PERSON),)
    return Finding(
        Text(
            "{count} of {all} files of weights cannot be loaded",
            count=len(bad),
            all=len(here.weights),
        ),
        tuple(_listed(bad)),
        fixes,
    )


@rule("model-path-unreadable", Severity.ERROR, Stage.MODEL)
def model_path_unreadable(files: ModelFiles | None) -> Finding | None:
    """The model's files are there, and this user may not read them.

    vLLM stops with `Permission denied`, or takes the model for one that is not there. Files that
    root has downloaded, a copy that has kept the owner of another machine, and an umask of 077 are
    the usual causes. The doctor judges as the user that it runs as: run it as the server's.

    Manual: `namei -l PATH` shows the owner and mode of every folder on the way.
    `chmod -R a+rX FOLDER` lets everybody read.

    See also: model-path-missing
    """
    here = _known(files)
    closed = [] if here.listed else [here.folder]
    closed += [one.path for one in here.of("unreadable")]
    if not closed:
        return None
    look = Command(f"namei -l {shlex.quote(str(closed[0]))}")
    return Finding(
        Text("{path} cannot be read by this user", path=closed[0]),
        (Text("{count} files or folders of the model cannot be read", count=len(closed)),),
        (Fix(Text("see who may read it, and let the server's user"), (look,), Needs.PERSON),),
    )


@rule("hf-offline-missing-files", Severity.ERROR, Stage.MODEL)
def hf_offline_missing_files(files: ModelFiles | None, env: LaunchEnv) -> Finding | None:
    """Offline, and not all of the model's files are on this machine.

    With `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` set nothing is downloaded, and what is not in
    the cache is not there: `Cannot reach ...: offline mode is enabled`, `outgoing traffic has been
    disabled`, or, of a cache that lacks shards, `were not initialized from checkpoint`. 1, ON, YES
    and TRUE count, in any case; 0 does not.

    Manual: Unset the variable where the server is started, or download the model first: `env -u
    HF_HUB_OFFLINE vllm-doctor download MODEL`. On a machine without a network, copy the model's
    folder of the cache from another one, links included (`rsync -a`).

    Sources: huggingface_hub/constants.py (0.36.2 and 2.4.0), vllm#39039, vllm#8458, vllm#9255

    See also: hf-incomplete-cache, model-not-downloaded, model-path-missing
    """
    if not hub.is_offline(env.vars):
        return None
    if files is None:
        raise Missing(_NOT_LOOKED_AT)
    here = files
    lacking = here.of("missing", "broken-link")
    if here.repository is None or (here.weights and not lacking):
        return None
    names = [n for n in hub.OFFLINE if env.get(n)]
    unset = Command(f"unset {' '.join(names)}")
    return Finding(
        Text(
            "{names} is set, and {model} is not complete in the cache",
            names=" and ".join(names),
            model=here.name,
        ),
        (
            *_listed(lacking),
            *(
                ()
                if here.weights
                else (
                    Text(
                        "{folder} has no weights of {revision}",
                        folder=here.repository,
                        revision=here.revision,
                    ),
                )
            ),
        ),
        (Fix(Text("let it be downloaded"), (unset,), Needs.PERSON),),
    )


@rule("disk-full-download", Severity.ERROR, Stage.MODEL)
def disk_full_download(
    files: ModelFiles | None,
    room: DownloadRoom | None,
    reach: HubReach | None,
    env: LaunchEnv,
    profile: Profile,
) -> Finding | None:
    """The disk that the model is downloaded to is full.

    The weights go into the Hugging Face cache below HF_HOME (~/.cache/huggingface by default), and
    a second copy of the file being fetched may lie in its xet folder. The disk has no room for
    them, or the user's quota or the inodes are exhausted: `No space left on device`, `Disk quota
    exceeded`. Complete files are kept. The warning about free space alone proves nothing: it looks
    at one file and does not count what is already there. `No space left on device` from NCCL or
    /dev/shm is shared memory, not a disk. The doctor looks with `--online`, when the hub says how
    large the weights are; a quota shows only where the file system reports it as free space.

    Manual: Put the cache on another disk (`export HF_HOME=/path/on/a/larger/disk`), or remove
    models that are no longer needed (`hf cache ls`). `vllm-doctor download` looks at the quota too.

    Sources: huggingface_hub#2742, vllm#3568

    See also: hf-incomplete-cache, nccl-shm-too-small, cache-dir-unwritable
    """
    here = _known(files)
    if room is None or hub.is_offline(env.vars):
        raise NotApplicable(Text("nothing is to be downloaded"))
    severity = Severity.INFO if profile.gpus == "later" else None
    move = Fix(
        Text("put the cache on a disk with room"),
        (Command("export HF_HOME=/path/on/a/larger/disk"),),
        Needs.PERSON,
    )
    if not room.writable:
        said = Text(
            "{place} cannot be written, and {model} is to be downloaded there",
            place=room.place,
            model=here.name,
        )
        return Finding(said, (), (move,), severity)
    if room.inodes is not None and room.inodes < _FEW_INODES:
        said = Text("{place} has {count} inodes free", place=room.place, count=room.inodes)
        return Finding(said, (), (move,), severity)
    if reach is None or reach.size is None:
        raise Missing(Text("the hub does not say how large the weights are"))
    needs = max(0, reach.size - here.size - here.parts_size)
    if needs > room.free:
        said = Text(
            "{needs} of {model} are missing, and {place} has {free} free",
            needs=shown_size(needs),
            model=here.name,
            place=room.place,
            free=shown_size(room.free),
        )
        return Finding(said, (), (move,), severity)
    return None


_FEW_INODES = 64
"""A model has some tens of files, and the cache makes a link and a lock for each."""
