"""The files that the server's options name: looked for as vLLM looks, and never read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from doctor.command import read_command
from doctor.model import NotApplicable
from doctor.probes.option_files import option_files
from doctor.probes.wheels import Vllm
from doctor.profile import Profile, ServeRequest
from doctor.target import Live


def absent(tmp_path: Path, **options: Any) -> list[tuple[str, str]]:
    """What is not there, from a folder that has the file `here` and the folder `folder`."""
    own = tmp_path / "vllm/transformers_utils/chat_templates"
    for folder in (own, tmp_path / "folder"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in (own / "template_basic.jinja", tmp_path / "here"):
        file.touch()
    profile = Profile(model="org/model", options=options)
    command = dataclasses.replace(read_command(["vllm", "serve", "org/model"]), folder=tmp_path)
    request = ServeRequest(profile, command=command)
    vllm = Vllm(version=Version("0.22.0"), root=tmp_path / "vllm")
    found = option_files(Live(), profile, request, vllm).absent
    return [(one.option, str(one.path.relative_to(tmp_path))) for one in found]


@pytest.mark.parametrize(
    "template",
    [
        "here",
        "template_basic.jinja",
        "{{ messages }}",
        "one line\nanother",
    ],
)
def test_a_template_may_be_a_file_one_of_vllms_own_or_the_template_itself(
    tmp_path: Path, template: str
) -> None:
    assert not absent(tmp_path, chat_template=template)


def test_each_named_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert absent(
        tmp_path,
        chat_template="gone.jinja",
        tokenizer="./gone",
        hf_config_path=gone,
        lora_modules=[f"a={gone}/a", f'{{"name": "b", "path": "{gone}/b"}}', "c=org/adapter"],
        ssl_keyfile=gone,
        ssl_certfile="here",
        ssl_ca_certs="gone",
    ) == [
        ("--chat-template", "gone.jinja"),
        ("--hf-config-path", "gone"),
        ("--tokenizer", "gone"),
        ("--lora-modules", "gone/a"),
        ("--lora-modules", "gone/b"),
        ("--ssl-keyfile", "gone"),
        ("--ssl-ca-certs", "gone"),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"tokenizer": "org/other", "hf_config_path": "org/other"},
        {"tokenizer": "./gone", "skip_tokenizer_init": True},
        {"tokenizer": "s3://bucket/a/b"},
        {"lora_modules": ["a=org/adapter", "not json", '["a"]']},
        {"ssl_ca_certs": "gone"},  # nobody opens it without a key
        {"tokenizer": "./folder", "ssl_keyfile": "here"},
    ],
)
def test_what_is_there_or_may_be_elsewhere_is_quiet(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    assert not absent(tmp_path, **options)


def test_a_container_has_folders_of_its_own() -> None:
    profile = Profile(model="org/model", options={"tokenizer": "/gone"})
    command = read_command(["docker", "run", "vllm/vllm-openai:v0.22.0", "org/model"])
    request = ServeRequest(profile, command=command)
    with pytest.raises(NotApplicable):
        option_files(Live(), profile, request, None)
