"""Asks ModelScope by the client of this interpreter, modelscope_hub.

    python _modelscope.py list REPOSITORY REVISION
    python _modelscope.py fetch REPOSITORY REVISION FOLDER WORKERS FILE...

`list` prints JSON: `files` ([path, size, sha256 or null, null] each); or `refused`, `status` and
`why`. `fetch` brings files to the folder; a FILE is what was listed of it, as JSON, and nothing
else is asked for. The address and the token are those of the environment.
"""

import collections
import inspect
import json
import posixpath
import sys
from typing import Any

_MOST = 3000  # entries of a folder: the hub lists no more, and does not say so


def listed(repository: str, revision: str) -> dict[str, Any]:
    from modelscope_hub import HubApi

    if "file_list" not in inspect.signature(HubApi.download_repo).parameters:
        return {"refused": "no-client"}
    found = HubApi().list_repo_files(repository, "model", revision=revision)
    folders = collections.Counter(posixpath.dirname(one.path) for one in found)
    if max(folders.values(), default=0) >= _MOST:
        return {"why": f"a folder with {_MOST} files or more is not listed whole"}
    files = [one for one in found if one.type != "tree"]
    return {"files": [[one.path, one.size, one.sha256 or None, None] for one in files]}


def fetch(repository: str, revision: str, folder: str, workers: str, *files: str) -> None:
    from modelscope_hub import HubApi

    rows = [dict(zip(("Path", "Size", "Sha256"), json.loads(one), strict=True)) for one in files]
    HubApi().download_repo(
        repository,
        "model",
        revision=revision,
        local_dir=folder,
        max_workers=int(workers),
        file_list=rows,
    )


def refusal(error: Exception) -> dict[str, Any]:
    names = {"NotExistError": "not-found", "AuthenticationError": "denied"}
    names["PermissionDeniedError"] = "denied"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    status = getattr(error, "status_code", None)
    return {"refused": names.get(type(error).__name__), "status": status, "why": lines[-1][:300]}


def main() -> None:
    verb, *words = sys.argv[1:]
    if verb == "fetch":
        try:
            fetch(*words)
        except Exception as error:
            sys.exit(str(getattr(error, "failed_files", None) or error)[:2000])
        return
    try:
        made = listed(*words)
    except ImportError as error:
        made = {"refused": "no-client", "why": str(error)[:200]}
    except Exception as error:  # whatever it was, it is told in one sentence
        made = refusal(error)
    print(json.dumps(made, separators=(",", ":")))


main()
