"""Says who an interpreter is. Runs inside it as `[python, -I, -S, -B, this file, python]`.

Standard library only, Python 3.6 to 3.14; nothing installed in the target is imported and no
`.pth` line runs. Prints one JSON object between two lines that hold the mark of VLLM_DOCTOR_MARK.
"""

import json
import os
import site
import sys
import sysconfig


def venv_of(executable: str) -> "tuple[str | None, dict[str, str]]":
    """(folder, settings of pyvenv.cfg) of a virtual environment, or (None, {})."""
    beside = os.path.dirname(os.path.abspath(executable))
    for folder in (os.path.dirname(beside), beside):  # PEP 405 allows both
        try:
            path = os.path.join(folder, "pyvenv.cfg")
            with open(path, encoding="utf-8", errors="replace") as file:
                rows = [line.partition("=") for line in file if "=" in line]
        except OSError:
            continue
        return folder, {key.strip().lower(): value.strip() for key, _, value in rows}
    return None, {}


def main(mark: str, executable: str) -> None:
    venv, settings = venv_of(executable)
    base = sys.base_prefix
    prefix = venv or sys.prefix
    inherits = settings.get("include-system-site-packages", "").lower() == "true"
    # -S keeps sys.prefix at the base before 3.14, so a venv's own paths are asked for by name.
    variables = {"base": prefix, "platbase": prefix} if venv else {}
    # Before 3.10 there is one scheme; such a Python still gets a judgement instead of a traceback.
    default = getattr(sysconfig, "get_default_scheme", lambda: "posix_prefix")()
    scheme = default
    if venv:
        scheme = "venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix"
    paths = sysconfig.get_paths(scheme, vars=variables)
    prefixes = [prefix] if venv else [sys.prefix, sys.exec_prefix]
    if venv and inherits:
        prefixes.append(base)
    folders = [paths["purelib"], paths["platlib"], *site.getsitepackages(prefixes)]
    # Triton asks for the headers of posix_prefix where Debian's default is posix_local.
    headers = default.replace("posix_local", "posix_prefix")
    user_site = site.getusersitepackages()
    answer = {
        "python": executable,
        "prefix": prefix,
        "base_prefix": base,
        "version": "%d.%d.%d" % sys.version_info[:3],
        "implementation": sys.implementation.name,
        "machine": os.uname().machine,
        "site_packages": list(dict.fromkeys(folders)),
        "installs_to": list(dict.fromkeys([paths["purelib"], paths["platlib"]])),
        "user_site": user_site if (not venv or inherits) else None,
        "include": sysconfig.get_paths(headers)["include"],
        "virtual": venv is not None,
    }
    print(mark)
    print(json.dumps(answer))
    print(mark)


if __name__ == "__main__":
    main(os.environ["VLLM_DOCTOR_MARK"], sys.argv[1])
