"""Configurations of pip and uv: which index is asked."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from doctor.repair.index import MirrorError, choose_indexes
from tests.fuzz.conftest import Fuzz
from tests.fuzz.mutate import changed_bytes, is_quiet, words

pytestmark = pytest.mark.hardening

FILE = b"""[global]
index-url = https://me:word@corp.test/simple
extra-index-url =
    https://corp.test/more
    file:///srv/wheels
find-links = /srv/wheels ~/wheels
no-index = false
cert = /etc/ssl/ca.pem
proxy = http://me:word@proxy.test:3128
trusted-host = corp.test
timeout = 3

[install]
no-index = 0
"""
NAMES = (
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CERT"),
    *("PIP_PROXY", "PIP_TRUSTED_HOST", "PIP_CLIENT_CERT", "UV_INDEX_URL", "UV_DEFAULT_INDEX"),
    *("UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_NO_INDEX", "HTTPS_PROXY", "no_proxy"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "HOME"),
)
PLACES = (
    *("https://corp.test/simple", "http://corp.test", "http://127.0.0.1:1/", "file:///srv"),
    *("https://", "//x", "https://[", "https://[::1", "https://u:word@h:99999/x", "a=https://x"),
    *("https://h:port/", "https://\u2024.test/", "http://localhost\x00/", "https://x y/"),
)


def test_whatever_is_configured_is_used_or_refused_in_a_sentence(
    fuzz: Fuzz, tmp_path: Path
) -> None:
    path = tmp_path / "pip.conf"

    def one(r: random.Random) -> None:
        path.write_bytes(changed_bytes(r, FILE) if r.random() < 0.9 else FILE)
        shell = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": r.choice((str(path), "/dev/null"))}
        for _ in range(r.randint(0, 3)):
            value = r.choice(PLACES) if r.random() < 0.6 else words(r)
            shell[r.choice(NAMES)] = value if r.random() < 0.8 else f"{value} {r.choice(PLACES)}"
        mirrors = [r.choice(("tuna", "default", r.choice(PLACES), words(r, 1)))] * r.randint(0, 2)
        said = ""
        try:
            for index in choose_indexes(mirrors, r.random() < 0.5, None, shell, tmp_path):
                index.variables(shell)
        except MirrorError as error:
            said = str(error)
        assert is_quiet(said.replace("\n", "\0")), said

    fuzz.each(one)
