"""Which index is asked, as pip would be configured to, and what the real uv then does with it."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import os
import pwd
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from doctor.redact import redact
from doctor.repair import index as module
from doctor.repair.index import MIRRORS, MirrorError, PackageIndex, choose_indexes
from doctor.target import READ_MOST, Live

ALIYUN, TUNA, USTC = MIRRORS["aliyun"], MIRRORS["tuna"], MIRRORS["ustc"]
NO_FILES = {"PIP_CONFIG_FILE": "/dev/null", "HOME": "/nonexistent"}
SECRET = "s3cret"  # noqa: S105
PRIVATE = f"https://me:{SECRET}@corp.test/simple"


def chosen(*mirrors: str, **options: Any) -> tuple[PackageIndex, ...]:
    """What is asked. `keep_extra`, `profile`, `prefix` as for `choose`; all other names are
    variables of a shell which, without `shell`, has no configuration files."""
    keep_extra = options.pop("keep_extra", False)
    profile = options.pop("profile", None)
    prefix = options.pop("prefix", Path("/nonexistent"))
    shell = {**options.pop("shell", NO_FILES), **options}
    return choose_indexes(mirrors, keep_extra, profile, shell, prefix)


def refused(*mirrors: str, **options: Any) -> str:
    with pytest.raises(MirrorError) as raised:
        chosen(*mirrors, **options)
    assert SECRET not in str(raised.value)
    # Nor in what a traceback would show of where it came from.
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return str(raised.value)


def urls(indexes: tuple[PackageIndex, ...]) -> list[str | None]:
    return [one.url for one in indexes]


def notes(one: PackageIndex) -> tuple[str, ...]:
    return tuple(map(str, one.notes))


def names(indexes: tuple[PackageIndex, ...]) -> list[str]:
    return [one.name for one in indexes]


class TestMirror:
    @pytest.mark.parametrize(
        ("name", "order"),
        [
            ("aliyun", [ALIYUN, TUNA, USTC, None]),
            ("tuna", [TUNA, ALIYUN, USTC, None]),
            ("ustc", [USTC, ALIYUN, TUNA, None]),
        ],
    )
    def test_one_mirror_is_followed_by_the_others(self, name: str, order: list[str | None]) -> None:
        found = chosen(name)
        assert urls(found) == order
        assert names(found)[0] == name
        assert names(found)[-1] == "the default index (PyPI)"
        assert chosen(profile=name) == found

    def test_several_are_what_is_asked_and_nothing_else(self) -> None:
        found = chosen("ustc", "https://corp.test/simple", "default", "ustc")
        assert urls(found) == [USTC, "https://corp.test/simple", None]

    def test_ones_own_index_is_not_followed_by_a_public_one(self) -> None:
        """A name that only the own index should have could be anybody's there."""
        assert urls(chosen("https://corp.test/simple")) == ["https://corp.test/simple"]
        assert urls(chosen(profile="https://corp.test/simple")) == ["https://corp.test/simple"]

    def test_the_person_wins_over_the_configuration_and_that_over_the_profile(self) -> None:
        url = {"PIP_INDEX_URL": "https://corp.test/simple"}
        assert urls(chosen("tuna", "ustc", profile="aliyun", **url)) == [TUNA, USTC]
        assert urls(chosen(profile="aliyun", **url)) == ["https://corp.test/simple"]
        assert urls(chosen(profile="aliyun"))[0] == ALIYUN
        assert names(chosen()) == ["the default index (PyPI)"]
        assert urls(chosen()) == [None]

    def test_default_is_the_index_that_pip_has_configured(self) -> None:
        """Where the only way out is an index of one's own, PyPI itself would not answer."""
        variables = {"PIP_INDEX_URL": "https://corp.test/simple", "PIP_EXTRA_INDEX_URL": ALIYUN}
        (alone,) = chosen("default", **variables)
        assert (alone.url, alone.extra) == ("https://corp.test/simple", ())
        assert alone.name == "pip's configuration (PIP_INDEX_URL)"
        (with_extra,) = chosen("default", keep_extra=True, **variables)
        assert with_extra.extra == (ALIYUN,)
        assert urls(chosen("aliyun", **variables)) == [
            ALIYUN,
            TUNA,
            USTC,
            "https://corp.test/simple",
        ]

    def test_a_public_mirror_in_the_configuration_has_alternatives_too(self) -> None:
        found = chosen(PIP_INDEX_URL=f"{TUNA}/", profile="aliyun")
        assert urls(found) == [f"{TUNA}/", ALIYUN, USTC]
        assert found[0].name == "pip's configuration (PIP_INDEX_URL)"

    def test_a_url_is_shown_without_its_credentials(self) -> None:
        (found,) = chosen(PRIVATE)
        assert found.name == "https://***@corp.test/simple"
        assert found.url == PRIVATE
        assert SECRET not in repr(found)

    @pytest.mark.parametrize(
        ("value", "close"),
        [("alyun", "aliyun"), ("TUNA", "tuna"), ("pypi", None), ("", None)],
    )
    def test_an_unknown_name_is_told_with_the_known_ones(
        self, value: str, close: str | None
    ) -> None:
        hint = f"; did you mean {close}?" if close else ""
        which = f"unknown mirror {value!r}" if close else "unknown mirror"
        said = f"{which}: there are aliyun, tuna, ustc, default, or a URL{hint}"
        assert refused(value) == said
        if value:
            assert refused(profile=value) == said

    @pytest.mark.parametrize(
        "value", [f"me:{SECRET}@corp.test/simple", SECRET, f"https://corp.test /{SECRET}"]
    )
    def test_what_is_not_a_url_is_not_quoted(self, value: str) -> None:
        for said in (refused(value), refused(profile=value), refused(PIP_INDEX_URL=value)):
            assert SECRET not in said
        (*_, last) = chosen("aliyun", keep_extra=True, PIP_EXTRA_INDEX_URL=value.replace(" ", "\\"))
        assert SECRET not in " ".join(notes(last))
        assert "extra-index-url in PIP_EXTRA_INDEX_URL is left out" in notes(last)[0]

    def test_a_name_cannot_drive_the_terminal(self) -> None:
        assert "\x1b" not in refused("\x1b[31mx")
        assert "\x1b" not in refused("https://\x1b[31mx")


class TestLocation:
    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1:8080/simple",
            "http://127.5.6.7/simple",
            "http://[::1]:8080/simple",
            "http://localhost/simple",
            "http://LOCALHOST/simple",
            "https://corp.test:8443/simple",
            "HTTPS://corp.test/simple",
        ],
    )
    def test_https_and_plain_http_on_this_machine_are_used(self, url: str) -> None:
        assert urls(chosen(url)) == [url]

    @pytest.mark.parametrize(
        "url",
        [
            "http://corp.test/simple",
            "http://192.0.2.1/simple",
            "http://10.0.0.1/simple",
            "http://localhost.corp.test/simple",
            "http://x.localhost/simple",
            "http://localhost./simple",
            "http://127.0.0.1.corp.test/simple",
            "http://127.0.0.1@corp.test/simple",
            "http://[::ffff:192.0.2.1]/simple",
            "http://2130706433/simple",
            "HTTP://corp.test/simple",
            "http://0.0.0.0/simple",
        ],
    )
    def test_plain_http_beyond_this_machine_is_refused(self, url: str) -> None:
        said = refused(url)
        assert said.endswith("is plain http, which is used only on this machine")
        assert said.startswith(redact(url))

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://corp.test/simple",
            "git+https://corp.test/simple",
            "://corp.test",
            "https://",
            "https:///simple",
            "https://corp.test:port/simple",
            f"https://me:{SECRET[:2]}/{SECRET}@corp.test/simple",
            "https://[corp.test/simple",
            "https://corp.test/sim ple",
            "https://corp.test/simple\n",
            "http://corp.test\\@127.0.0.1/simple",
            "file://corp.test/simple",
            "file:///nonexistent/simple",
        ],
    )
    def test_what_is_no_such_url_is_refused(self, url: str) -> None:
        refused(url)

    def test_folders_become_urls(self, tmp_path: Path) -> None:
        """uv splits its lists at commas and spaces, pip its own at spaces."""
        folder = tmp_path / "my,wheels é"
        folder.mkdir()
        expected = f"{tmp_path.as_uri()}/my%2Cwheels%20%C3%A9"
        assert urls(chosen(f"file://{tmp_path}/my,wheels%20é")) == [expected]
        assert urls(chosen(folder.as_uri())) == [expected]
        assert urls(chosen(folder.as_uri().replace("://", "://localhost"))) == [expected]

    def test_an_index_in_a_folder_is_one_for_pip(self, tmp_path: Path) -> None:
        assert urls(chosen(PIP_INDEX_URL=str(tmp_path))) == [tmp_path.as_uri()]


class TestPipsConfiguration:
    def test_sources_of_the_shell(self, tmp_path: Path) -> None:
        (found,) = chosen(
            profile="aliyun",
            PIP_INDEX_URL=PRIVATE,
            PIP_EXTRA_INDEX_URL=f" https://a.test/simple\n{TUNA} ",
            PIP_FIND_LINKS=f"{tmp_path} https://links.test/a,b",
        )
        assert found.url == PRIVATE
        assert found.extra == ("https://a.test/simple", TUNA)
        assert found.find_links == (tmp_path.as_uri(), "https://links.test/a%2Cb")
        assert (
            found.name == "pip's configuration (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS)"
        )
        assert not found.notes

    def test_a_mirror_replaces_all_of_them(self, tmp_path: Path) -> None:
        variables = {
            "PIP_INDEX_URL": "https://corp.test/simple",
            "PIP_EXTRA_INDEX_URL": "https://a.test/simple",
            "PIP_FIND_LINKS": str(tmp_path),
            "PIP_NO_INDEX": "1",
        }
        for found in chosen("aliyun", **variables):
            assert (found.extra, found.find_links, found.no_index) == ((), (), False)
            assert notes(found) == (
                "the extra indexes and find-links of pip's configuration (PIP_EXTRA_INDEX_URL, "
                "PIP_FIND_LINKS) are not asked; --keep-extra-indexes asks them too",
            )
        for found in chosen("aliyun", keep_extra=True, **variables):
            assert found.extra == ("https://a.test/simple",)
            assert found.find_links == (tmp_path.as_uri(),)
            assert not found.no_index
            assert not found.notes

    def test_extra_indexes_alone_stand_beside_pypi(self) -> None:
        (found,) = chosen(profile="aliyun", PIP_EXTRA_INDEX_URL="https://a.test/simple")
        assert (found.url, found.extra) == (None, ("https://a.test/simple",))
        assert found.name == "pip's configuration (PIP_EXTRA_INDEX_URL)"

    @pytest.mark.parametrize("value", ["1", "TRUE", "yes", "on", "t", "y"])
    def test_no_index_means_the_links_alone(self, value: str, tmp_path: Path) -> None:
        (found,) = chosen(
            profile="aliyun",
            PIP_NO_INDEX=value,
            PIP_INDEX_URL="http://corp.test/simple",
            PIP_FIND_LINKS=str(tmp_path),
        )
        assert (found.url, found.no_index) == (None, True)
        assert found.find_links == (tmp_path.as_uri(),)

    @pytest.mark.parametrize("value", ["0", "False", "no", "off", ""])
    def test_no_index_that_is_off(self, value: str) -> None:
        assert urls(chosen(profile="aliyun", PIP_NO_INDEX=value))[0] == ALIYUN

    def test_no_index_that_is_neither(self) -> None:
        assert refused(PIP_NO_INDEX="2") == "no-index in PIP_NO_INDEX is not yes or no"

    def test_links_that_are_not_there_are_left_out_and_said(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        found = chosen(
            profile="aliyun",
            PIP_FIND_LINKS=f"/nonexistent/wheels {tmp_path}/fifo",
            PIP_EXTRA_INDEX_URL=f"http://me:{SECRET}@a.test/simple file:///nonexistent/simple",
        )
        assert urls(found)[0] == ALIYUN
        assert notes(found[0]) == (
            "extra-index-url in PIP_EXTRA_INDEX_URL is left out: http://***@a.test/simple is "
            "plain http, which is used only on this machine",
            "extra-index-url in PIP_EXTRA_INDEX_URL is left out: file:///nonexistent/simple does "
            "not exist",
            "find-links in PIP_FIND_LINKS is left out: /nonexistent/wheels does not exist",
            f"find-links in PIP_FIND_LINKS is left out: {tmp_path}/fifo does not exist",
        )

    def test_links_of_the_home_and_of_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "wheels").mkdir()
        monkeypatch.chdir(tmp_path)
        (found,) = chosen(PIP_FIND_LINKS="~/wheels wheels", HOME=str(tmp_path))
        assert found.find_links == ((tmp_path / "wheels").as_uri(),) * 2

    def test_an_index_that_is_not_used_is_an_error_until_a_mirror_is_named(self) -> None:
        variables = {"PIP_INDEX_URL": f"http://me:{SECRET}@corp.test/simple"}
        said = refused(profile="aliyun", **variables)
        assert said == (
            "http://***@corp.test/simple is plain http, which is used only on this machine, and "
            "pip's configuration (PIP_INDEX_URL) names it; --mirror names another one"
        )
        assert refused("default", **variables) == said
        found = chosen("aliyun", **variables)
        assert urls(found) == [ALIYUN, TUNA, USTC]
        assert notes(found[0]) == (f"not asked: {said}",)

    def test_a_trusted_host_is_not_trusted(self) -> None:
        note = "trusted-host in PIP_TRUSTED_HOST is not used: TLS is always verified"
        variables = {"PIP_INDEX_URL": PRIVATE, "PIP_TRUSTED_HOST": "corp.test"}
        assert notes(chosen(**variables)[0]) == (note,)
        assert notes(chosen("default", **variables)[0]) == (note,)
        assert chosen("tuna", **variables)[0].notes == ()
        variables = {"UV_DEFAULT_INDEX": PRIVATE, "UV_INSECURE_HOST": "corp.test"}
        assert notes(chosen(**variables)[0]) == (
            "UV_INSECURE_HOST is not used: TLS is always verified",
        )

    def test_values_are_taken_as_they_stand(self) -> None:
        """pip expands no variables."""
        assert urls(chosen(PIP_INDEX_URL="https://${USER}@corp.test/s", USER="me")) == [
            "https://${USER}@corp.test/s"
        ]


class TestConnection:
    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        path = tmp_path / "ca.pem"
        path.touch()
        return path

    @pytest.mark.parametrize("mirrors", [(), ("tuna",), ("https://corp.test/simple",)])
    def test_certificate_and_proxy_hold_for_every_mirror(
        self, mirrors: tuple[str, ...], bundle: Path
    ) -> None:
        found = chosen(
            *mirrors,
            profile="aliyun",
            PIP_CERT=str(bundle),
            PIP_CLIENT_CERT="~/ca.pem",
            PIP_PROXY="me:pw@proxy.test:3128",
            PIP_TIMEOUT="60",
            HOME=str(bundle.parent),
        )
        assert found
        for one in found:
            assert one.cert == one.client_cert == str(bundle)
            assert one.proxy == "http://me:pw@proxy.test:3128"
            assert one.variables({})["SSL_CERT_FILE"] == str(bundle)
            assert one.variables({})["SSL_CLIENT_CERT"] == str(bundle)
            assert one.variables({})["HTTPS_PROXY"] == "http://me:pw@proxy.test:3128"
        assert urls(found)[0] == (
            ALIYUN if not mirrors else TUNA if mirrors == ("tuna",) else mirrors[0]
        )

    def test_a_folder_of_certificates(self, tmp_path: Path) -> None:
        (found,) = chosen("default", PIP_CERT=str(tmp_path))
        variables = found.variables({})
        assert variables["SSL_CERT_DIR"] == str(tmp_path)
        assert "SSL_CERT_FILE" not in variables

    def test_a_certificate_that_is_not_there_is_said(self) -> None:
        """uv would trust nobody then; without it, it trusts whom it trusts anyway."""
        (found,) = chosen("default", PIP_CERT="/nonexistent/ca.pem")
        assert found.cert is None
        assert notes(found) == ("cert in PIP_CERT is left out: /nonexistent/ca.pem does not exist",)

    def test_the_bundle_of_pips_http_library(self, bundle: Path) -> None:
        (found,) = chosen("default", REQUESTS_CA_BUNDLE=str(bundle), CURL_CA_BUNDLE="/dev/null")
        assert found.cert == str(bundle)
        (found,) = chosen("default", CURL_CA_BUNDLE=str(bundle))
        assert found.cert == str(bundle)
        (found,) = chosen("default", CURL_CA_BUNDLE=str(bundle), PIP_CERT="/dev/null")
        assert found.cert == "/dev/null"
        (found,) = chosen("default", CURL_CA_BUNDLE=str(bundle), SSL_CERT_FILE="/dev/null")
        assert found.cert is None
        assert found.variables({"SSL_CERT_FILE": "/dev/null"})["SSL_CERT_FILE"] == "/dev/null"

    def test_a_proxy_that_uv_would_silently_do_without(self) -> None:
        said = refused("tuna", PIP_PROXY=f"ftp://me:{SECRET}@proxy.test")
        assert said == "proxy in PIP_PROXY is of a kind that uv does not know"

    @pytest.mark.parametrize(
        ("shell", "proxy"),
        [
            ({"HTTPS_PROXY": "http://p.test:1"}, "http://p.test:1"),
            ({"https_proxy": "http://p.test:1"}, "http://p.test:1"),
            ({"ALL_PROXY": "socks5h://p.test:1"}, "socks5h://p.test:1"),
            ({"all_proxy": "http://p.test:1", "HTTPS_PROXY": ""}, "http://p.test:1"),
            ({"http_proxy": "http://p.test:1"}, None),
            ({"HTTPS_PROXY": "http://p.test:1", "NO_PROXY": "corp.test"}, None),
            ({"HTTPS_PROXY": "http://p.test:1", "NO_PROXY": ".test, x"}, None),
            ({"HTTPS_PROXY": "http://p.test:1", "no_proxy": "*"}, None),
            ({"HTTPS_PROXY": "http://p.test:1", "no_proxy": "*.Test"}, None),
            (
                {"HTTPS_PROXY": "http://p.test:1", "NO_PROXY": "orp.test,10.0.0.0/8"},
                "http://p.test:1",
            ),
        ],
    )
    def test_https_keeps_its_proxy_and_plain_http_has_none(
        self, shell: dict[str, str], proxy: str | None
    ) -> None:
        variables = PackageIndex("x", "https://corp.test/simple").variables(shell)
        assert variables.get("HTTPS_PROXY") == variables.get("https_proxy") == proxy
        assert variables["HTTP_PROXY"] == variables["http_proxy"] == "http://127.0.0.1:9"
        assert variables["NO_PROXY"] == variables["no_proxy"] == "127.0.0.0/8"
        assert not {"ALL_PROXY", "all_proxy"} & set(variables)

    def test_the_proxy_is_used_unless_all_hosts_do_without(self) -> None:
        shell = {"HTTPS_PROXY": "http://p.test:1", "NO_PROXY": "corp.test,10.0.0.0/8"}
        for extra, proxy in (
            (("https://10.1.2.3/simple", "http://127.0.0.1/simple"), None),
            (("https://elsewhere.test/simple",), "http://p.test:1"),
        ):
            found = PackageIndex("x", "https://corp.test/simple", extra=extra)
            assert found.variables(shell).get("HTTPS_PROXY") == proxy
        assert PackageIndex("PyPI").variables(shell)["HTTPS_PROXY"] == "http://p.test:1"
        shell["NO_PROXY"] = "pypi.org"
        assert "HTTPS_PROXY" not in PackageIndex("PyPI").variables(shell)

    def test_pips_own_proxy_is_used_whatever_the_shell_says(self) -> None:
        found = PackageIndex("x", "https://corp.test/simple", proxy="http://pip.test:1")
        shell = {"HTTPS_PROXY": "http://p.test:1", "NO_PROXY": "*"}
        assert found.variables(shell)["HTTPS_PROXY"] == "http://pip.test:1"

    def test_of_loopback_only_what_is_asked_is_let_around_the_closed_proxy(self) -> None:
        for url, direct in (
            ("http://localhost:1/simple", "127.0.0.0/8,localhost"),
            ("http://[::1]:1/simple", "127.0.0.0/8,::1"),
            ("http://127.0.0.1:1/simple", "127.0.0.0/8"),
        ):
            assert PackageIndex("x", url).variables({})["NO_PROXY"] == direct


DROPPED = """
UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_DEFAULT_INDEX UV_FIND_LINKS UV_NO_INDEX
UV_INDEX_STRATEGY UV_INDEX_CORP_PASSWORD UV_INSECURE_HOST UV_ALLOW_INSECURE_HOST UV_CONFIG_FILE
UV_CONSTRAINT UV_OVERRIDE UV_EXCLUDE UV_BUILD_CONSTRAINT UV_EXCLUDE_NEWER UV_PRERELEASE
UV_RESOLUTION UV_TORCH_BACKEND UV_PYTHON UV_SYSTEM_PYTHON UV_TARGET UV_PREFIX UV_NO_VERIFY_HASHES
UV_REQUIRE_HASHES UV_WORKING_DIR UV_PROJECT UV_NO_BUILD UV_NO_BINARY UV_COMPILE_BYTECODE
UV_INSECURE_NO_ZIP_VALIDATION UV_NO_SUCH_THING_YET REQUEST_METHOD RUST_LOG
"""
KEPT = "UV_CACHE_DIR UV_LINK_MODE UV_HTTP_TIMEOUT UV_OFFLINE UV_SYSTEM_CERTS PATH"


class TestVariables:
    def test_what_the_shell_tells_uv_of_sources_and_choices_does_not_count(self) -> None:
        found = PackageIndex("x").variables(dict.fromkeys((*DROPPED.split(), *KEPT.split()), "1"))
        assert set(found) == {
            *KEPT.split(),
            *("UV_NO_CONFIG", "HTTP_PROXY", "NO_PROXY", "http_proxy", "no_proxy"),
        }

    def test_an_index_with_everything(self) -> None:
        links = ("file:///w", "https://l.test/a%2Cb")
        found = PackageIndex("x", PRIVATE, ("https://a.test/s", TUNA), links).variables({"A": "b"})
        assert found["A"] == "b"
        assert found["UV_DEFAULT_INDEX"] == PRIVATE
        assert found["UV_INDEX"] == f"https://a.test/s {TUNA}"
        assert found["UV_INDEX_STRATEGY"] == "unsafe-best-match"
        assert found["UV_FIND_LINKS"] == "file:///w,https://l.test/a%2Cb"

    def test_the_shell_is_not_changed(self) -> None:
        shell = {"UV_INDEX": "https://a.test", "HTTP_PROXY": "x"}
        PackageIndex("x").variables(shell)
        assert shell == {"UV_INDEX": "https://a.test", "HTTP_PROXY": "x"}


class TestUvsOwnVariables:
    def test_they_win_over_pips(self, tmp_path: Path) -> None:
        (found,) = chosen(
            profile="aliyun",
            PIP_INDEX_URL="https://pip.test/simple",
            PIP_EXTRA_INDEX_URL="https://pip-extra.test/simple",
            PIP_NO_INDEX="1",
            UV_INDEX_URL="https://old.test/simple",
            UV_DEFAULT_INDEX="https://uv.test/simple",
            UV_EXTRA_INDEX_URL="https://a.test/simple",
            UV_INDEX="https://b.test/simple https://c.test/simple",
            UV_FIND_LINKS=f"{tmp_path},https://l.test",
        )
        assert found.url == "https://uv.test/simple"
        assert found.extra == tuple(f"https://{x}.test/simple" for x in "abc")
        assert found.find_links == (tmp_path.as_uri(), "https://l.test")
        assert not found.no_index
        assert found.name == "uv's configuration (UV_DEFAULT_INDEX, UV_INDEX, UV_FIND_LINKS)"

    def test_pips_index_stands_where_uv_has_none(self) -> None:
        (found,) = chosen(
            PIP_INDEX_URL="https://pip.test/simple", UV_INDEX="https://uv.test/simple"
        )
        assert (found.url, found.extra) == ("https://pip.test/simple", ("https://uv.test/simple",))
        (found,) = chosen("default", UV_INDEX_URL="https://uv.test/simple")
        assert found.url == "https://uv.test/simple"

    def test_an_index_with_a_name_has_its_credentials_in_other_variables(self) -> None:
        login = {"UV_INDEX_MY_CORP_USERNAME": "me", "UV_INDEX_MY_CORP_PASSWORD": "p@ss/w"}
        (found,) = chosen(UV_DEFAULT_INDEX="my-corp=https://corp.test/simple", **login)
        assert found.url == "https://me:p%40ss%2Fw@corp.test/simple"
        assert "p%40ss" not in repr(found)
        (found,) = chosen(UV_INDEX="my-corp=https://you@corp.test/simple b=file:///", **login)
        assert found.extra == ("https://you@corp.test/simple", "file:///")
        (found,) = chosen(UV_DEFAULT_INDEX="other=https://corp.test/simple", **login)
        assert found.url == "https://corp.test/simple"


class TestFiles:
    """pip.conf where it lies. The machine's own /etc/pip.conf, if any, is not there for them."""

    @pytest.fixture
    def shell(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        class Elsewhere(Live):
            def read(self, path: Path, limit: int = READ_MOST) -> bytes | None:
                if path == Path("/etc/pip.conf"):
                    path = tmp_path / "etc/pip.conf"
                return super().read(path, limit)

        monkeypatch.setattr(module, "_HERE", Elsewhere({}))
        return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_DIRS": str(tmp_path / "xdg")}

    def write(self, path: Path, text: str | bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def test_the_later_one_wins(self, tmp_path: Path, shell: dict[str, str]) -> None:
        own = tmp_path / "own.conf"
        order = [
            tmp_path / "xdg/pip/pip.conf",
            tmp_path / "etc/pip.conf",
            tmp_path / "home/.pip/pip.conf",
            tmp_path / "home/.config/pip/pip.conf",
            tmp_path / "prefix/pip.conf",
        ]
        prefix = tmp_path / "prefix"
        assert urls(chosen(shell=shell, prefix=prefix)) == [None]
        for number, path in enumerate(order):
            self.write(path, f"[global]\nindex-url = https://{number}.test/simple\n")
            (found,) = chosen(shell=shell, prefix=prefix)
            assert found.url == f"https://{number}.test/simple"
            seen = "/etc/pip.conf" if path == order[1] else path
            assert found.name == f"pip's configuration ({seen})"
        self.write(own, "[global]\nindex-url = https://own.test/simple\n")
        (found,) = chosen(shell=shell, prefix=prefix, PIP_CONFIG_FILE=str(own))
        assert found.url == "https://own.test/simple"
        (found,) = chosen(shell=shell, prefix=prefix, PIP_INDEX_URL="https://env.test/simple")
        assert found.url == "https://env.test/simple"
        assert urls(chosen(shell=shell, prefix=prefix, PIP_CONFIG_FILE="/dev/null")) == [None]

    def test_a_file_of_ones_own_stands_for_those_of_the_home(
        self, tmp_path: Path, shell: dict[str, str]
    ) -> None:
        self.write(tmp_path / "home/.config/pip/pip.conf", f"[global]\nindex-url={PRIVATE}\n")
        own = self.write(tmp_path / "own.conf", "[global]\ntimeout = 3\n")
        assert urls(chosen(shell=shell, PIP_CONFIG_FILE=str(own))) == [None]
        for absent in (str(tmp_path / "none.conf"), ""):
            assert urls(chosen(shell=shell, PIP_CONFIG_FILE=absent)) == [PRIVATE]

    def test_the_homes_folder_may_be_elsewhere(self, tmp_path: Path, shell: dict[str, str]) -> None:
        self.write(tmp_path / "home/.config/pip/pip.conf", "[global]\nindex-url=https://x.test\n")
        self.write(tmp_path / "conf/pip/pip.conf", f"[global]\nindex-url={PRIVATE}\n")
        (found,) = chosen(shell=shell, XDG_CONFIG_HOME=str(tmp_path / "conf"))
        assert found.url == PRIVATE

    def test_sections_and_spellings(self, tmp_path: Path, shell: dict[str, str]) -> None:
        """[install] wins over [global], even over that of a later file."""
        self.write(
            tmp_path / "etc/pip.conf",
            "[install]\nindex_url = https://install.test/simple\n"
            "[download]\nindex-url = https://download.test/simple\n",
        )
        self.write(
            tmp_path / "home/.pip/pip.conf",
            "[global]\nINDEX-URL = https://global.test/simple\n--Extra-Index_URL =\n"
            "    https://a.test/simple\n    # not this one\n    https://b.test/simple\n"
            "Trusted_Host = a.test\n\tb.test\n",
        )
        (found,) = chosen(shell=shell)
        assert found.url == "https://install.test/simple"
        assert found.extra == ("https://a.test/simple", "https://b.test/simple")
        conf = tmp_path / "home/.pip/pip.conf"
        assert found.name == f"pip's configuration (/etc/pip.conf, {conf})"
        assert notes(found) == (f"trusted-host in {conf} is not used: TLS is always verified",)

    def test_an_empty_value_takes_an_earlier_one_back(
        self, tmp_path: Path, shell: dict[str, str]
    ) -> None:
        self.write(tmp_path / "etc/pip.conf", f"[global]\nindex-url = {PRIVATE}\n")
        assert urls(chosen(shell=shell, PIP_INDEX_URL="")) == [PRIVATE]
        self.write(tmp_path / "home/.pip/pip.conf", "[global]\nindex-url =\n")
        assert urls(chosen(shell=shell)) == [None]

    @pytest.mark.parametrize(
        ("text", "line", "why"),
        [
            ("[global]\nindex-url\n", 2, "is not `key = value`"),
            (f"index-url = {PRIVATE}\n", 1, "comes before any [section]"),
            (f"[global]\n\n[global]\nindex-url = {PRIVATE}\n", 3, "a section for the second time"),
            (f"[global]\nproxy=\nproxy = {PRIVATE}\n", 3, "a key for the second time"),
            (f"[global]\nindex-url = {PRIVATE}\n# \xe9\n".encode("latin-1"), 3, "is not UTF-8"),
        ],
    )
    def test_a_broken_one_is_named_with_its_line_and_not_quoted(
        self, text: str | bytes, line: int, why: str, tmp_path: Path, shell: dict[str, str]
    ) -> None:
        path = self.write(tmp_path / "home/.pip/pip.conf", text)
        said = refused("tuna", shell=shell)
        assert said.endswith(f": {why}")
        assert said.startswith(f"pip's configuration {path}, line {line}")

    def test_only_files_are_read_and_not_endless_ones(
        self, tmp_path: Path, shell: dict[str, str]
    ) -> None:
        fifo = tmp_path / "home/.pip/pip.conf"
        fifo.parent.mkdir(parents=True)
        os.mkfifo(fifo)
        (tmp_path / "home/.config/pip/pip.conf").mkdir(parents=True)
        assert urls(chosen(shell=shell)) == [None]
        large = self.write(tmp_path / "large.conf", b"#" * (READ_MOST + 1))
        said = refused(shell=shell, PIP_CONFIG_FILE=str(large))
        assert said == f"pip's configuration {large} is larger than 1 MiB"

    def test_without_home_the_users_own_folder_is_meant(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nobody(number: int) -> pwd.struct_passwd:
            raise KeyError(number)

        assert module._home({"HOME": "/h"}) == "/h"
        monkeypatch.setattr(pwd, "getpwuid", lambda number: pwd.getpwall()[0])
        assert module._home({}) == pwd.getpwall()[0].pw_dir
        monkeypatch.setattr(pwd, "getpwuid", nobody)
        assert module._home({}) == "/"


PIP_SAYS = """
import json, os, sys
from pip._internal.commands import create_command
for changes in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(changes)
    options, _ = create_command("install").parse_args([])
    print(json.dumps({name: getattr(options, name) for name in (
        "index_url", "extra_index_urls", "find_links", "no_index", "cert", "client_cert", "proxy",
        "trusted_hosts")}))
"""


def test_pip_itself_reads_the_same(tmp_path: Path) -> None:
    """The real pip over the same files, those of the machine it runs on included."""
    pytest.importorskip("pip")
    home, xdg, more = tmp_path / "home", tmp_path / "xdg", tmp_path / "more.conf"
    for path, text in (
        (
            xdg / "pip/pip.conf",
            "[global]\nindex-url=https://xdg.test\nextra-index-url = https://1.test https://2.test"
            "\nno-index = on\n[install]\nfind-links=/x\n  /y\n",
        ),
        (
            home / ".pip/pip.conf",
            "[DEFAULT]\nproxy=http://p.test:1\n[global]\nindex_url = https://legacy.test\n"
            "cert = ~/ca.pem\n[install]\nno-index =\n",
        ),
        (
            home / ".config/pip/pip.conf",
            "[global]\nfind-links = /z\nno_index = false\n[install]\nTRUSTED-HOST = a.test b.test\n"
            "[list]\nindex-url = https://list.test\n",
        ),
        (more, "[install]\nindex-url = https://more.test\nclient_cert = /k.pem\nproxy=\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    base = {"HOME": str(home), "XDG_CONFIG_DIRS": f"{tmp_path}/none:{xdg}", "PATH": "/bin"}
    shells: list[dict[str, str]] = [
        base,
        {**base, "XDG_CONFIG_HOME": str(tmp_path)},
        {**base, "PIP_CONFIG_FILE": str(more)},
        {**base, "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "https://env.test"},
        {**base, "PIP_CONFIG_FILE": str(tmp_path / "none.conf"), "PIP_INDEX_URL": ""},
        {**base, "PIP_INDEX-url": "https://odd.test", "PIP_EXTRA_INDEX_URL": "a\n b"},
        {**base, "PIP_FIND_LINKS": "/q /r", "PIP_NO_INDEX": "Yes", "pip_index_url": "https://no"},
        {"HOME": str(tmp_path / "empty"), "PATH": "/bin"},
    ]
    said = subprocess.run(
        [sys.executable, "-I", "-c", PIP_SAYS],
        input=json.dumps(shells),
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/bin"},
    )
    for shell, line in zip(shells, said.stdout.splitlines(), strict=True):
        pip = json.loads(line)
        found = module._pip_settings(shell, Path(sys.prefix))

        def one(option: str, default: object, found: dict[str, module._Setting] = found) -> object:
            return found[option].values[0] if option in found else default

        ours = {
            "index_url": one("index-url", "https://pypi.org/simple"),
            "no_index": module._truth(found["no-index"]) if "no-index" in found else False,
            "proxy": one("proxy", ""),
            "client_cert": one("client-cert", None),
        }
        cert = one("cert", None)
        ours["cert"] = cert and module._from_home(str(cert), shell)
        for theirs, option in (
            ("extra_index_urls", "extra-index-url"),
            ("find_links", "find-links"),
            ("trusted_hosts", "trusted-host"),
        ):
            ours[theirs] = list(found[option].values) if option in found else []
        same = {**pip, "no_index": bool(pip["no_index"]), "proxy": pip["proxy"] or ""}
        assert ours == same, shell


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://u:p@h.test/x", "https://***@h.test/x"),
        ("https://token@h.test/x", "https://***@h.test/x"),
        ("https://u:p@ss@h.test:8/x", "https://***@h.test:8/x"),
        ("http://u:p@[::1]:80/x", "http://***@[::1]:80/x"),
        ("see <https://u:p@a.test>, `https://b:q@c.test`.", "see <https://***@a.test>, `https://***@c.test`."),
        ("https://u:p/w@h.test/x", "https://***@h.test/x"),
        ("https://u:12/w#x@h.test", "https://u:12/w#x@h.test"),
        ("https://h.test:443/@scope", "https://h.test:443/@scope"),
        ("http://[::1]:8080/x@y", "http://[::1]:8080/x@y"),
        ("socks5h://u:p@h:1", "socks5h://***@h:1"),
        ("a@b.test https://h.test/x c@d.test", "a@b.test https://h.test/x c@d.test"),
        ("one https://u:p@a.test\ntwo https://u:p@b.test", "one https://***@a.test\ntwo https://***@b.test"),
        ("https://h.test/x?a=1&X-Amz-Signature=abc&b=2", "https://h.test/x?a=1&X-Amz-Signature=***&b=2"),
        ("(https://h.test/x?access_token=abc)", "(https://h.test/x?access_token=***)"),
        ("https://h.test:8/x: failed", "https://h.test:8/x: failed"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_credentials_of_urls_are_hidden(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


# The real uv, against servers on this machine.


def wheel(name: str, version: str) -> bytes:
    data = io.BytesIO()
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(data, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
        archive.writestr(f"{info}/RECORD", record)
    return data.getvalue()


def file_name(name: str, version: str) -> str:
    return f"{name}-{version}-py3-none-any.whl"


@dataclass
class Site:
    """A server with simple indexes: below /INDEX/ lie the names, below /files/ the wheels.

    `links`: by index and name, where the files are. `moved`: paths that lead elsewhere.
    """

    server: http.server.ThreadingHTTPServer
    links: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    wheels: dict[str, bytes] = field(default_factory=dict)
    login: str | None = None
    asked: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def url(self, index: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}/{index}"

    def has(self, index: str, name: str, version: str, at: str | None = None) -> None:
        """`at`: the link of the file, if it is not one of here."""
        made = file_name(name, version)
        self.wheels[made] = wheel(name, version)
        self.links.setdefault((index, name), []).append(at or f"/files/{made}")


class Answer(http.server.BaseHTTPRequestHandler):
    site: Site

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.site.asked.append(self.path)
        parts = self.path.strip("/").split("/")
        given = (self.headers.get("Authorization") or "").removeprefix("Basic ")
        if self.site.login and base64.b64decode(given).decode() != self.site.login:
            self.say(401, headers={"WWW-Authenticate": "Basic realm=x"})
        elif self.path in self.site.moved:
            self.say(302, headers={"Location": self.site.moved[self.path]})
        elif parts[0] == "files" and parts[1] in self.site.wheels:
            self.say(200, self.site.wheels[parts[1]])
        elif len(parts) == 2 and (parts[0], parts[1]) in self.site.links:
            rows = self.site.links[parts[0], parts[1]]
            page = "".join(f'<a href="{row}">{row.rpartition("/")[2]}</a>' for row in rows)
            self.say(200, page.encode(), {"Content-Type": "text/html"})
        else:
            self.say(404)

    do_HEAD = do_GET

    def say(self, code: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Version6(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


@contextlib.contextmanager
def serving(host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Iterator[Site]:
    handler = type("Here", (Answer,), {})
    kind = Version6 if ":" in host else http.server.ThreadingHTTPServer
    with kind((host, 0), handler) as server:
        handler.site = site = Site(server)  # type: ignore[attr-defined]
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield site
        server.shutdown()
        thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as one:
        yield one


UV = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.defpath)))
Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with nothing in it."""
    assert UV
    folder = tmp_path_factory.mktemp("target") / "venv"
    made = [UV, "venv", "-q", "--no-config", "--python", sys.executable, str(folder)]
    subprocess.run(made, check=True, env={"HOME": str(folder.parent), "PATH": "/bin"})
    return folder / "bin/python"


@pytest.fixture
def ask(target: Path, tmp_path: Path) -> Ask:
    """uv resolves `name` from `index`, as the doctor has it do; nothing of a cache."""

    def asked(
        index: PackageIndex, name: str, *options: str, under: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        patience = {"UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": "5"}
        base = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **patience}
        env = index.variables({**base, **(under or {})})
        words = ["pip", "install", "--no-cache", "--no-build", "--color", "never", *options]
        command = [str(UV), *words, "--python", str(target), name]
        assert not [word for word in command if SECRET in word]
        return subprocess.run(
            command, env=env, cwd="/", capture_output=True, text=True, check=False, timeout=60
        )

    return lambda *args, **kwargs: asked(*args, "--dry-run", **kwargs)


def got(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran.stderr
    return next(line.removeprefix(" + ") for line in ran.stderr.splitlines() if " + " in line)


class TestUv:
    def test_an_index(self, ask: Ask, site: Site) -> None:
        site.has("simple", "tiny", "1.0")
        site.has("simple", "tiny", "2.0")
        (found,) = chosen(site.url("simple"))
        assert got(ask(found, "tiny")) == "tiny==2.0"
        # Of the shell's own, nothing is asked.
        shell = {"UV_DEFAULT_INDEX": site.url("other"), "UV_INDEX": site.url("other")}
        shell |= {"UV_CONSTRAINT": "/nonexistent", "UV_CONFIG_FILE": "/nonexistent"}
        assert got(ask(found, "tiny", under=shell)) == "tiny==2.0"
        assert not [path for path in site.asked if path.startswith("/other")]

    def test_the_best_of_all_extra_indexes(self, ask: Ask, site: Site) -> None:
        for index, version in (("a", "1.0"), ("b", "3.0"), ("c", "2.0")):
            site.has(index, "tiny", version)
        extra = f"{site.url('b')} {site.url('c')}"
        (found,) = chosen(PIP_INDEX_URL=site.url("a"), PIP_EXTRA_INDEX_URL=extra)
        assert got(ask(found, "tiny")) == "tiny==3.0"
        (found,) = chosen(PIP_INDEX_URL=site.url("b"), PIP_EXTRA_INDEX_URL=site.url("a"))
        assert got(ask(found, "tiny")) == "tiny==3.0"
        (found,) = chosen(site.url("a"), PIP_EXTRA_INDEX_URL=extra)
        assert got(ask(found, "tiny")) == "tiny==1.0"
        (found,) = chosen(site.url("a"), keep_extra=True, PIP_EXTRA_INDEX_URL=extra)
        assert got(ask(found, "tiny")) == "tiny==3.0"

    def test_find_links(self, ask: Ask, site: Site, tmp_path: Path) -> None:
        folder = tmp_path / "my,wheels"
        folder.mkdir()
        for version in ("1.0", "3.0"):
            (folder / file_name("tiny", version)).write_bytes(wheel("tiny", version))
        site.has("simple", "tiny", "2.0")
        (found,) = chosen(PIP_INDEX_URL=site.url("simple"), PIP_FIND_LINKS=str(folder))
        assert got(ask(found, "tiny")) == "tiny==3.0"
        assert got(ask(found, "tiny<3")) == "tiny==2.0"
        assert got(ask(found, "tiny<2")) == "tiny==1.0"
        page = site.url("simple/tiny")
        (found,) = chosen(PIP_INDEX_URL=site.url("none"), PIP_FIND_LINKS=page)
        assert got(ask(found, "tiny")) == "tiny==2.0"

    def test_no_index(self, ask: Ask, site: Site, tmp_path: Path) -> None:
        (tmp_path / file_name("tiny", "1.0")).write_bytes(wheel("tiny", "1.0"))
        site.has("simple", "tiny", "2.0")
        url = site.url("simple")
        (found,) = chosen(
            PIP_INDEX_URL=url,
            PIP_EXTRA_INDEX_URL=url,
            PIP_FIND_LINKS=str(tmp_path),
            PIP_NO_INDEX="1",
        )
        assert got(ask(found, "tiny")) == "tiny==1.0"
        ran = ask(found, "other")
        assert ran.returncode == 1
        assert "other was not found in the package registry" in ran.stderr
        assert not site.asked

    def test_an_index_of_files(self, ask: Ask, tmp_path: Path) -> None:
        folder = tmp_path / "an index" / "tiny"
        folder.mkdir(parents=True)
        made = file_name("tiny", "1.0")
        (folder / made).write_bytes(wheel("tiny", "1.0"))
        (folder / "index.html").write_text(f'<a href="{made}">{made}</a>', encoding="utf-8")
        (found,) = chosen(folder.parent.as_uri())
        assert got(ask(found, "tiny")) == "tiny==1.0"

    def test_credentials_reach_the_index_and_no_line(self, ask: Ask, site: Site) -> None:
        site.login = f"me:{SECRET}"
        site.has("simple", "tiny", "1.0")
        url = site.url("simple").replace("://", f"://me:{SECRET}@")
        (found,) = chosen(url)
        ran = ask(found, "tiny", "-v", under={"RUST_LOG": "trace"})
        assert got(ran) == "tiny==1.0"
        assert SECRET not in ran.stdout + ran.stderr
        ran = ask(found, "other")
        assert ran.returncode == 1
        assert SECRET not in ran.stdout + ran.stderr
        site.login = "me:another"
        ran = ask(found, "tiny", "-v")
        assert "401 Unauthorized" in ran.stderr
        assert SECRET not in ran.stdout + ran.stderr
        login = {"UV_INDEX_CORP_USERNAME": "me", "UV_INDEX_CORP_PASSWORD": "another"}
        (found,) = chosen(UV_DEFAULT_INDEX=f"corp={site.url('simple')}", **login)
        assert got(ask(found, "tiny")) == "tiny==1.0"

    def test_uv_prints_the_password_of_what_is_no_url(self, ask: Ask) -> None:
        """Such an index is not chosen; but if uv is to say it, it is not passed on."""
        url = f"https://me:x/{SECRET}@corp.test/simple"
        ran = ask(PackageIndex("x", url), "tiny")
        assert ran.returncode == 2
        assert SECRET in ran.stderr
        assert SECRET not in redact(ran.stderr)

    @pytest.mark.parametrize("host", ["localhost", "127.5.6.7", "::1"])
    def test_every_loopback_address_is_asked(self, host: str, ask: Ask) -> None:
        try:
            running = serving(host)
            with running as site:
                site.has("simple", "tiny", "1.0")
                (found,) = chosen(site.url("simple", f"[{host}]" if ":" in host else host))
                assert got(ask(found, "tiny")) == "tiny==1.0"
        except OSError as error:
            pytest.skip(f"this machine has no {host}: {error}")


def own_address() -> str | None:
    """An address of this machine that is not loopback: nothing is sent to learn it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, contextlib.suppress(OSError):
        one.connect(("192.0.2.1", 9))
        address = str(one.getsockname()[0])
        return None if address.startswith("127.") else address
    return None


@contextlib.contextmanager
def beyond() -> Iterator[Site]:
    """A server of this machine that is not on its loopback."""
    address = own_address()
    if not address:
        pytest.skip("this machine has nothing but loopback")
    with serving("0.0.0.0") as site:  # noqa: S104
        yield site


class TestPlainHttp:
    """It never leaves this machine, whatever an index says."""

    @pytest.fixture
    def outside(self) -> Iterator[Site]:
        with beyond() as one:
            yield one

    def lead_out(self, site: Site, outside: Site) -> None:
        """`moved`'s file is redirected to, `linked`'s linked from elsewhere."""
        host = own_address() or ""
        made = file_name("moved", "1.0")
        site.has("simple", "moved", "1.0", f"/away/{made}")
        site.moved[f"/away/{made}"] = outside.url(f"files/{made}", host)
        outside.has("simple", "moved", "1.0")
        made = file_name("linked", "1.0")
        outside.has("simple", "linked", "1.0")
        site.has("simple", "linked", "1.0", outside.url(f"files/{made}", host))
        site.moved["/simple/page/"] = outside.url("simple/linked/", host)

    @pytest.mark.parametrize("name", ["moved", "linked", "page"])
    def test_neither_a_link_nor_a_redirect_leads_out(
        self, name: str, ask: Ask, site: Site, outside: Site
    ) -> None:
        self.lead_out(site, outside)
        (found,) = chosen(site.url("simple"))
        ran = ask(found, name)
        assert ran.returncode != 0
        assert "Connection refused" in ran.stderr
        assert not outside.asked

    @pytest.mark.parametrize(
        "under",
        [
            {"REQUEST_METHOD": "GET"},
            {"NO_PROXY": "*", "no_proxy": "*", "UV_INSECURE_HOST": "*"},
            {"HTTP_PROXY": "", "http_proxy": "THERE", "ALL_PROXY": "THERE"},
        ],
    )
    def test_nor_does_the_shell(
        self, under: dict[str, str], ask: Ask, site: Site, outside: Site
    ) -> None:
        self.lead_out(site, outside)
        (found,) = chosen(site.url("simple"))
        there = {name: value.replace("THERE", outside.url("")) for name, value in under.items()}
        ran = ask(found, "moved", under=there)
        assert ran.returncode != 0
        assert "Connection refused" in ran.stderr
        assert not outside.asked

    def test_without_the_closed_proxy_it_would(
        self, ask: Ask, site: Site, outside: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So that the test above tests something."""
        self.lead_out(site, outside)
        (found,) = chosen(site.url("simple"))
        monkeypatch.setattr(PackageIndex, "_proxies", lambda self, shell: {})
        assert got(ask(found, "moved")) == "moved==1.0"
        assert outside.asked

    def test_pip_is_not_led_out_either(self, site: Site, outside: Site, tmp_path: Path) -> None:
        pytest.importorskip("pip")
        self.lead_out(site, outside)
        (found,) = chosen(site.url("simple"))
        env = found.variables({"HOME": str(tmp_path), "PATH": "/bin", "no_proxy": "*"})
        env |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": str(found.url)}
        command = [sys.executable, "-I", "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["-q", "--no-cache-dir", "--retries", "0", "-d", str(tmp_path), "moved"]
        ran = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ran.returncode != 0
        assert f"/away/{file_name('moved', '1.0')}" in site.asked
        assert not outside.asked


OPENSSL = shutil.which("openssl")


@dataclass(frozen=True)
class Certificates:
    """`ca`: who signed. `pair`: key and certificate of index.test, also good for a client."""

    ca: Path
    pair: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if not OPENSSL:
        pytest.skip("there is no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "extra").write_text("subjectAltName=DNS:index.test,IP:127.0.0.1", encoding="utf-8")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for words in (
        ("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca"),
        ("req", *key, "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=index.test"),
        (
            *("x509", "-req", "-in", "own.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-out"),
            *("own.pem", "-days", "2", "-CAcreateserial", "-extfile", "extra"),
        ),
    ):
        subprocess.run([OPENSSL, *words], cwd=folder, check=True, capture_output=True)
    pair = folder / "pair.pem"
    pair.write_bytes((folder / "own.key").read_bytes() + (folder / "own.pem").read_bytes())
    return Certificates(folder / "ca.pem", pair)


def server_context(certificates: Certificates, client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.pair)
    if client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates.ca)
    return context


class Tunnel(http.server.BaseHTTPRequestHandler):
    """An http proxy for https: all hosts are the one at `port`."""

    port: int
    asked: list[tuple[str, str]]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.asked.append((self.path, self.headers.get("Proxy-Authorization", "")))
        with socket.create_connection(("127.0.0.1", self.port)) as there:
            self.send_response(200)
            self.end_headers()
            here: socket.socket = self.connection
            while True:
                for one in select.select([here, there], [], [])[0]:
                    data = one.recv(65536)
                    if not data:
                        return
                    (there if one is here else here).sendall(data)


@contextlib.contextmanager
def tunnel_to(port: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(its address, what it was asked for)."""
    asked: list[tuple[str, str]] = []
    handler = type("To", (Tunnel,), {"port": port, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


class TestTls:
    def test_it_is_verified_with_the_configured_certificates(
        self, ask: Ask, certificates: Certificates
    ) -> None:
        with serving(context=server_context(certificates)) as site:
            site.has("simple", "tiny", "1.0")
            url = site.url("simple", scheme="https")
            (found,) = chosen(url, PIP_CERT=str(certificates.ca))
            assert got(ask(found, "tiny")) == "tiny==1.0"
            host = {"PIP_TRUSTED_HOST": "127.0.0.1", "UV_INSECURE_HOST": "127.0.0.1"}
            (found,) = chosen(PIP_INDEX_URL=url, **host)
            ran = ask(found, "tiny", under=host)
            assert ran.returncode != 0
            assert "UnknownIssuer" in ran.stderr

    def test_a_client_certificate(self, ask: Ask, certificates: Certificates) -> None:
        with serving(context=server_context(certificates, client=True)) as site:
            site.has("simple", "tiny", "1.0")
            url, ca = site.url("simple", scheme="https"), str(certificates.ca)
            (found,) = chosen(url, PIP_CERT=ca, PIP_CLIENT_CERT=str(certificates.pair))
            assert got(ask(found, "tiny")) == "tiny==1.0"
            (found,) = chosen(url, PIP_CERT=ca)
            assert ask(found, "tiny").returncode != 0

    def test_https_goes_through_the_proxy_and_leads_to_no_plain_http(
        self, ask: Ask, certificates: Certificates
    ) -> None:
        with (
            serving(context=server_context(certificates)) as site,
            tunnel_to(site.port) as (address, asked),
            beyond() as outside,
        ):
            site.has("simple", "tiny", "1.0")
            site.has("simple", "moved", "1.0", "/away/moved-1.0-py3-none-any.whl")
            outside.has("simple", "moved", "1.0")
            made = file_name("moved", "1.0")
            site.moved[f"/away/{made}"] = outside.url(f"files/{made}", own_address() or "")
            shell = {"all_proxy": f"http://me:{SECRET}@{address}", "NO_PROXY": "elsewhere.test"}
            (found,) = chosen("https://index.test/simple", PIP_CERT=str(certificates.ca), **shell)
            assert got(ask(found, "tiny", under=shell)) == "tiny==1.0"
            login = base64.b64encode(f"me:{SECRET}".encode()).decode()
            assert set(asked) == {("index.test:443", f"Basic {login}")}
            ran = ask(found, "moved", "-v", under=shell)
            assert ran.returncode != 0
            assert not outside.asked
            assert SECRET not in ran.stdout + ran.stderr
