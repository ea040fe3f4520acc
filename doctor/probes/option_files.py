"""The files that the server's options name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from doctor.codec import parse_json
from doctor.consumers.options import GivenOptions
from doctor.engine import probe
from doctor.frozen import dataclass
from doctor.model import Fact, NotApplicable, Text
from doctor.probes.served import Profile
from doctor.probes.wheels import Vllm
from doctor.profile import ServeRequest
from doctor.target import Target

_TEMPLATES = "transformers_utils/chat_templates"  # of vLLM (its registry.py there)
_LITERAL = "{}\n"  # what makes a template of a text that is no file (JINJA_CHARS)


@dataclass(frozen=True)
class AbsentFile:
    """`option`: as it is typed; `path`: what it names, where the server would look for it."""

    option: str
    path: Path


@dataclass(frozen=True)
class OptionFiles(Fact):
    """`absent`: those of the named files and folders that are not there."""

    since: ClassVar[str] = "0.8.0"
    dispensable: ClassVar[bool] = True  # vLLM looks itself
    absent: tuple[AbsentFile, ...] = ()


@probe
def option_files(
    target: Target, profile: Profile, request: ServeRequest, vllm: Vllm | None
) -> OptionFiles:
    """Only that they are there is asked, and nothing is read: a key is nobody's business."""
    if request.command and request.command.container:
        raise NotApplicable(Text("the folders of a container are not looked at"))
    given = GivenOptions(profile.options)
    named = (*_template(given, vllm), *_folders(given), *_adapters(given), *_certificates(given))
    return OptionFiles(
        tuple(
            AbsentFile(option, request.folder / ways[0])
            for option, ways in named
            if all(target.stat(request.folder / way) is None for way in ways)
        )
    )


_Named = tuple[str, tuple[Path, ...]]
"""An option, and the paths of which one has to be there."""


def _template(given: GivenOptions, vllm: Vllm | None) -> Iterator[_Named]:
    """A file, else one of vLLM's own, else the template itself (load_chat_template in
    entrypoints/chat_utils.py of 0.22.0, renderers/chat_utils/chat_template.py of 0.33.0)."""
    said = given.word("chat_template")
    if said and vllm and not any(sign in said for sign in _LITERAL):
        yield "--chat-template", (Path(said), vllm.root / _TEMPLATES / said)


def _folders(given: GivenOptions) -> Iterator[_Named]:
    """What can be no repository of the hub: see doctor.probes.model."""
    names = ("hf_config_path",) if given.switch("skip_tokenizer_init") else _NAMES
    for name in names:
        said = given.word(name)
        if said and "://" not in said and (said.startswith(("/", ".", "~")) or said.count("/") > 1):
            yield f"--{name.replace('_', '-')}", (Path(said),)


_NAMES = ("hf_config_path", "tokenizer")


def _adapters(given: GivenOptions) -> Iterator[_Named]:
    """By an absolute path: any other may be a repository (get_adapter_absolute_path in
    vllm/lora/utils.py of 0.22.0 and 0.33.0)."""
    for module in given.texts("lora_modules"):
        path = _path_of(module)
        if isinstance(path, str) and path.startswith("/"):
            yield "--lora-modules", (Path(path),)


def _path_of(module: str) -> Any:
    """NAME=PATH, or a JSON object (LoRAParserAction in vllm)."""
    if "=" in module and "," not in module:
        return module.partition("=")[2]
    try:
        made = parse_json(module)
    except ValueError:
        return None
    return made.get("path") if isinstance(made, dict) else None


def _certificates(given: GivenOptions) -> Iterator[_Named]:
    """uvicorn opens them where a key or a certificate is named (its config.py, is_ssl)."""
    names = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs")
    said = [(name, given.word(name)) for name in names]
    if any(path for _, path in said[:2]):
        yield from ((f"--{name.replace('_', '-')}", (Path(path),)) for name, path in said if path)
