"""Prints what a hub lists of a model, as the huggingface_hub of this interpreter asks it: JSON with
`commit`, `files` ([path, size, sha256 or null, git id or null] each) and `resumes` (whether this
huggingface_hub goes on with the parts of an earlier process); or `refused`, `status` and `why`.

    python _hub_listing.py REPOSITORY REVISION

The address and the token are those of the environment, as for `hf download`.
"""

import json
import sys
from pathlib import Path
from typing import Any

MOST = (1 << 20) - 1
"""Bytes that the doctor reads of what a child prints."""


def kind_of(error: BaseException) -> str:
    """By the name of its class: they moved between releases."""
    names = {
        "GatedRepoError": "gated",
        "RepositoryNotFoundError": "not-found",
        "RevisionNotFoundError": "no-revision",
        "OfflineModeIsEnabled": "offline",
    }
    for one in type(error).__mro__:
        if one.__name__ in names:
            return names[one.__name__]
    return "unreachable" if status_of(error) is None else "answer"


def status_of(error: BaseException) -> Any:
    return getattr(getattr(error, "response", None), "status_code", None)


def innermost(error: BaseException) -> BaseException:
    """What the network said, below all that the client says of it."""
    for _ in range(20):
        below = error.__cause__ or error.__context__
        if below is None:
            break
        error = below
    return error


def listed(repository: str, revision: str) -> dict[str, Any]:
    from huggingface_hub import HfApi, file_download, get_hf_file_metadata, hf_hub_url

    about = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30)
    rows: list[Any] = []
    for one in about.siblings or ():
        lfs = one.lfs
        rows.append([one.rfilename, one.size, lfs.sha256 if lfs else None, one.blob_id])
    if rows:
        # What a mirror leaves out, and what is kept from whoever has not accepted the terms, shows
        # only where a file is asked for.
        names = [row[0] for row in rows]
        name = "config.json" if "config.json" in names else names[0]
        found = get_hf_file_metadata(hf_hub_url(repository, name, revision=about.sha))
        if found.commit_hash is None:
            return {"refused": "no-commit"}
    source = Path(file_download.__file__).read_text(encoding="utf-8")
    resumes = "resume_size = f.tell()" in source
    return {"commit": about.sha, "files": rows, "resumes": resumes}


def main() -> None:
    try:
        made = listed(*sys.argv[1:3])
    except ImportError as error:
        made = {"refused": "no-client", "why": str(error)[:200]}
    except Exception as error:  # whatever it was, it is told in one sentence
        kind = kind_of(error)
        told = innermost(error) if kind == "unreachable" else error
        lines = str(told).strip().splitlines() or [type(told).__name__]
        made = {"refused": kind, "status": status_of(error), "why": lines[-1][:300]}
    text = json.dumps(made, separators=(",", ":"))
    if len(text) > MOST:
        why = f"its list takes {len(text)} bytes, more than are read"
        text = json.dumps({"refused": "answer", "why": why})
    print(text)


main()
