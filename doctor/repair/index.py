"""Where distributions come from: a mirror, or what the person's own pip is configured to ask.

uv reads nothing of pip's configuration; what counts of it is translated into variables for uv.
Only variables: a command line, where everybody could read a password, is given none of it.
"""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import ipaddress
import os
import pwd
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from doctor.errors import DoctorError
from doctor.exits import USAGE
from doctor.model import Text, printable
from doctor.redact import redact
from doctor.target import READ_MOST, Live

MIRRORS = {
    "aliyun": "https://mirrors.aliyun.com/pypi/simple",
    "tuna": "https://pypi.tuna.tsinghua.edu.cn/simple",
    "ustc": "https://mirrors.ustc.edu.cn/pypi/simple",
}
PYPI = "https://pypi.org"
DEFAULT_INDEX = "default"
_PYPI = "the default index (PyPI)"

# What a person may tell uv besides where to ask and what to choose. Everything else of UV_* is
# left out, also what later versions of uv invent: a constraint, a resolution or an insecure host
# of the shell would change what was planned.
_KEPT = frozenset(
    (
        "UV_CACHE_DIR",
        "UV_CONCURRENT_BUILDS",
        "UV_CONCURRENT_DOWNLOADS",
        "UV_CONCURRENT_INSTALLS",
        "UV_CREDENTIALS_DIR",
        "UV_HTTP_RETRIES",
        "UV_HTTP_TIMEOUT",
        "UV_KEYRING_PROVIDER",
        "UV_LINK_MODE",
        "UV_LOCK_TIMEOUT",
        "UV_NATIVE_TLS",
        "UV_NO_CACHE",
        "UV_OFFLINE",
        "UV_SYSTEM_CERTS",
    )
)
_PROXIES = frozenset(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"))
# With REQUEST_METHOD, uv takes itself for a CGI script and uses no proxy for plain http, so not
# the closed one either. RUST_LOG makes it print what it sends.
_DROPPED = frozenset(("REQUEST_METHOD", "RUST_LOG"))

_HERE = Live({})  # opens regular files only, and raises for none

# A port where nobody but root could listen.
_CLOSED = "http://127.0.0.1:9"
# uv has no variable for --no-index. An index of files that is not there has no distribution; below
# /proc nobody can put one.
_NOWHERE = "file:///proc/no-index"


class MirrorError(DoctorError):
    """A mirror or a configuration that cannot be used: one sentence with what is wrong, never
    with a credential."""

    def __init__(self, text: Text) -> None:
        super().__init__(text, USAGE)


@dataclass(frozen=True)
class PackageIndex:
    """Where distributions come from, as uv is told it.

    `name` is for people. `url` None: PyPI. `find_links`, `extra`: URLs. `notes`: sentences on what
    is not done as it was configured. What may hold a credential is not shown by `repr`.
    """

    name: str
    url: str | None = field(default=None, repr=False)
    extra: tuple[str, ...] = field(default=(), repr=False)
    find_links: tuple[str, ...] = field(default=(), repr=False)
    no_index: bool = False
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = field(default=None, repr=False)
    notes: tuple[Text, ...] = ()

    def variables(self, shell: Mapping[str, str]) -> dict[str, str]:
        """The environment for a uv process: the shell's, that asks here and nowhere else, never
        over plain http beyond this machine."""
        env = {name: value for name, value in shell.items() if _is_kept(name)}
        env["UV_NO_CONFIG"] = "1"
        if self.no_index:
            env["UV_DEFAULT_INDEX"] = _NOWHERE
        elif self.url:
            env["UV_DEFAULT_INDEX"] = self.url
        if self.extra and not self.no_index:
            env["UV_INDEX"] = " ".join(self.extra)
            # As pip does: the best version of all. uv's own way is the first index that has the
            # name, and there a vLLM of the extra index hides all others.
            env["UV_INDEX_STRATEGY"] = "unsafe-best-match"
        if self.find_links:
            env["UV_FIND_LINKS"] = ",".join(self.find_links)
        if self.cert:
            env["SSL_CERT_DIR" if _kind(Path(self.cert)) == "dir" else "SSL_CERT_FILE"] = self.cert
        if self.client_cert:
            env["SSL_CLIENT_CERT"] = self.client_cert
        return env | self._proxies(shell)

    def _proxies(self, shell: Mapping[str, str]) -> dict[str, str]:
        """Plain http has a proxy that is not there, so that no redirect and no link of an index
        leads to it. What is named in NO_PROXY would get around it: there stands only loopback."""
        hosts = {host for url in self._urls() if (host := urlsplit(url).hostname)}
        # uv takes a name of NO_PROXY for all names below it as well, pip an address for all that
        # end alike: no more than is needed.
        direct = ["127.0.0.0/8", *(host for host in ("localhost", "::1") if host in hosts)]
        values = {"HTTP_PROXY": _CLOSED, "NO_PROXY": ",".join(direct)}
        proxy = self.proxy  # pip's own is used whatever NO_PROXY says
        if not proxy and not _is_direct([h for h in hosts if not _is_loopback(h)], shell):
            names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
            proxy = next((shell[name] for name in names if shell.get(name)), None)
        if proxy:
            values["HTTPS_PROXY"] = proxy
        # uv reads the upper case first, pip the lower one.
        return values | {name.lower(): value for name, value in values.items()}

    def _urls(self) -> Iterator[str]:
        if not self.no_index:
            yield from (self.url or PYPI, *self.extra)
        yield from self.find_links


NOWHERE = PackageIndex("nowhere", no_index=True)
"""For a tool that has nothing to fetch."""


def choose_indexes(
    mirrors: Sequence[str],
    keep_extra: bool,
    profile_mirror: str | None,
    shell: Mapping[str, str],
    prefix: Path,
) -> tuple[PackageIndex, ...]:
    """The indexes to try, in order.

    `mirrors`: what the person named, alternatives in their order; none: the person's own
    configuration, else the profile's mirror. `keep_extra`: the extra indexes and find-links of the
    configuration are asked beside a mirror. `prefix`: of the target, which may have a pip.conf.
    Certificate and proxy of the configuration always hold. Only a mirror of PyPI has other ones of
    PyPI for alternatives: who names one's own index does not want its names looked up elsewhere.

    Raises MirrorError for a mirror that is none, plain http beyond this machine, or a
    configuration that cannot be read.
    """
    own = _own(shell, prefix)
    asked = tuple(mirrors) or (profile_mirror or DEFAULT_INDEX,)
    if not mirrors and own.names_sources:
        rows, keep_extra = [own.index()], True
    else:
        rows = [own.default() if name == DEFAULT_INDEX else _mirror(name) for name in asked]
    notes = [*own.notes, *own.sources_beside(bool(mirrors), keep_extra)]
    if DEFAULT_INDEX in asked or keep_extra:
        notes += own.trusted
    if len(rows) == 1 and (rows[0].url or "").rstrip("/") in MIRRORS.values():
        rows += [PackageIndex(name, url) for name, url in MIRRORS.items()]
        try:
            rows.append(own.default())
        except MirrorError as error:
            notes.append(Text("not asked: {why}", why=error.text))
    once: dict[str, PackageIndex] = {}
    for row in rows:
        once.setdefault((row.url or "").rstrip("/"), row)
    return tuple(
        dataclasses.replace(
            row,
            extra=own.extra if keep_extra else (),
            find_links=own.find_links if keep_extra else (),
            cert=own.cert,
            client_cert=own.client_cert,
            proxy=own.proxy,
            notes=tuple(notes),
        )
        for row in once.values()
    )


def _shown(value: str) -> str:
    return printable(redact(value))


def _mirror(name: str) -> PackageIndex:
    if name in MIRRORS:
        return PackageIndex(name, MIRRORS[name])
    if "://" in name:
        return PackageIndex(_shown(name), _location(name, "--mirror"))
    names = [*MIRRORS, DEFAULT_INDEX]
    close = get_close_matches(name.lower(), names, 1)
    # What is like none of them may be a password in the wrong place.
    if not close:
        raise MirrorError(Text("unknown mirror: there are {names}, or a URL", names=names))
    raise MirrorError(
        Text(
            "unknown mirror '{name}': there are {names}, or a URL; did you mean {close}?",
            name=name,
            names=names,
            close=close[0],
        )
    )


def source_of(url: str, shell: Mapping[str, str], prefix: Path) -> str | None:
    """The variable or the file of the person's configuration that an Index has a URL from; None
    where it was named otherwise, as a mirror."""
    settings = _settings(shell, prefix)
    for option in ("index-url", "extra-index-url", "find-links"):
        for value in settings[option].values if option in settings else ():
            with contextlib.suppress(MirrorError):
                if _location(_from_home(value, shell), option) == url:
                    return settings[option].source
    return None


# Locations.


def _location(value: str, where: str) -> str:
    """`value`, a URL or a path, as a URL for uv; `where` it stands. Raises MirrorError saying why
    it is not used: of what is neither a URL nor an absolute path, without quoting it."""
    shown = _shown(value) if re.match(r"/|[A-Za-z][\w+.-]*://", value) else f"the value of {where}"
    # Python and uv disagree on where a host ends that is followed by one of these.
    not_a_url = Text("the value of {where} is not a URL", where=where)
    if any(c.isspace() or not c.isprintable() or c == "\\" for c in value):
        raise MirrorError(not_a_url)
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise MirrorError(not_a_url) from None
    if parts.scheme in ("http", "https") and host:
        if parts.scheme == "http" and not _is_loopback(host):
            raise MirrorError(
                Text("{url} is plain http, which is used only on this machine", url=shown)
            )
        return value.replace(",", "%2C")  # uv's lists of find-links have commas
    if parts.scheme == "file" and host in (None, "localhost"):
        path = Path(unquote(parts.path))
    elif not parts.scheme and not parts.netloc:
        path = Path(value)
    else:
        raise MirrorError(Text("{url} is not an https or file URL", url=shown))
    if _kind(path) not in ("dir", "file"):
        raise MirrorError(Text("{path} does not exist", path=shown))
    return path.absolute().as_uri()


def _kind(path: Path) -> str | None:
    stat = _HERE.stat(path)
    return stat.kind if stat else None


def _is_loopback(host: str) -> bool:
    """Whether `host` cannot be elsewhere: localhost itself, 127.0.0.0/8 or ::1."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address in ipaddress.ip_network("127.0.0.0/8") or address == ipaddress.IPv6Address("::1")


def _is_direct(hosts: Collection[str], shell: Mapping[str, str]) -> bool:
    """Whether the shell's NO_PROXY has all the hosts. It is either all or none: a host named in
    NO_PROXY would be asked over plain http as well."""
    rows = (shell.get("NO_PROXY") or shell.get("no_proxy") or "").lower().split(",")
    entries = [row.strip() for row in rows if row.strip()]
    return bool(hosts) and all(any(_matches(host, entry) for entry in entries) for host in hosts)


def _matches(host: str, entry: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        domain = entry.lstrip("*").lstrip(".")
        return entry == "*" or host == domain or host.endswith(f".{domain}")


def _is_kept(name: str) -> bool:
    if name.startswith("UV_"):
        return name in _KEPT
    return name not in _DROPPED and name.upper() not in _PROXIES


# The person's own configuration.


@dataclass(frozen=True)
class _Setting:
    """The value of an option, a list as its items, and the file or variable that has it."""

    values: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class _Own:
    """What the person's own configuration comes to. `index_url` is not judged until it is
    wanted: with a mirror, it may be one that cannot be used. `left_out`: sentences."""

    settings: Mapping[str, _Setting]
    extra: tuple[str, ...]
    find_links: tuple[str, ...]
    no_index: bool
    cert: str | None
    client_cert: str | None
    proxy: str | None
    notes: tuple[Text, ...]
    left_out: tuple[Text, ...]

    @property
    def names_sources(self) -> bool:
        return bool("index-url" in self.settings or self.extra or self.find_links or self.no_index)

    def who(self, *options: str) -> str:
        """Where it is configured, for people."""
        wanted = options or ("index-url", "extra-index-url", "find-links", "no-index")
        sources = dict.fromkeys(self.settings[o].source for o in wanted if o in self.settings)
        tool = "uv" if all(source.startswith("UV_") for source in sources) else "pip"
        return f"{tool}'s configuration ({', '.join(map(printable, sources))})"

    def index(self) -> PackageIndex:
        """What it names, beside its extra indexes and find-links. Raises MirrorError for an index
        that is not used."""
        url = None if self.no_index else self.default().url
        return PackageIndex(self.who(), url, no_index=self.no_index)

    def default(self) -> PackageIndex:
        """The one index that is asked without a mirror. Raises MirrorError where it is not used."""
        setting = self.settings.get("index-url")
        if setting is None:
            return PackageIndex(_PYPI)
        try:
            return PackageIndex(self.who("index-url"), _location(setting.values[0], "index-url"))
        except MirrorError as error:
            raise MirrorError(
                Text(
                    "{why}, and {who} names it; --mirror names another one",
                    why=error.text,
                    who=self.who("index-url"),
                )
            ) from None

    def sources_beside(self, mirror: bool, keep: bool) -> tuple[Text, ...]:
        """What of its extra indexes and find-links is not asked beside another index."""
        if keep or not mirror:
            return self.left_out
        if not (self.extra or self.find_links):
            return ()
        return (
            Text(
                "the extra indexes and find-links of {who} are not asked; --keep-extra-indexes "
                "asks them too",
                who=self.who("extra-index-url", "find-links"),
            ),
        )

    @property
    def trusted(self) -> tuple[Text, ...]:
        """That no host is taken without its certificate, where one is configured to be."""
        setting = self.settings.get("trusted-host")
        if setting is None:
            return ()
        where = printable(setting.source)
        option = where if where.startswith("UV_") else f"trusted-host in {where}"
        return (Text("{option} is not used: TLS is always verified", option=option),)


def _own(shell: Mapping[str, str], prefix: Path) -> _Own:
    settings = _settings(shell, prefix)
    left_out: list[Text] = []
    lists = {}
    for option in ("extra-index-url", "find-links"):
        setting = settings.get(option, _Setting((), ""))
        lists[option] = tuple(_usable(option, setting, shell, left_out))
    notes: list[Text] = []
    return _Own(
        settings,
        lists["extra-index-url"],
        lists["find-links"],
        "no-index" in settings and _truth(settings["no-index"]),
        _file("cert", settings, shell, notes),
        _file("client-cert", settings, shell, notes),
        _proxy(settings),
        tuple(notes),
        tuple(left_out),
    )


def _usable(
    option: str, setting: _Setting, shell: Mapping[str, str], left_out: list[Text]
) -> Iterator[str]:
    """As pip: what cannot be used of a list is said, not the end of it."""
    for value in setting.values:
        try:
            yield _location(_from_home(value, shell), option)
        except MirrorError as error:
            left_out.append(_left_out(option, setting.source, error.text))


def _left_out(option: str, source: str, why: Text) -> Text:
    return Text("{option} in {source} is left out: {why}", option=option, source=source, why=why)


def _file(
    option: str, settings: Mapping[str, _Setting], shell: Mapping[str, str], notes: list[Text]
) -> str | None:
    if option not in settings:
        return None
    value, source = settings[option].values[0], settings[option].source
    path = Path(_from_home(value, shell)).absolute()
    if _kind(path):
        return str(path)
    shown = _shown(value) if value.startswith(("/", "~/")) else "its file"
    notes.append(_left_out(option, source, Text("{path} does not exist", path=shown)))
    return None


def _proxy(settings: Mapping[str, _Setting]) -> str | None:
    if "proxy" not in settings:
        return None
    value, source = settings["proxy"].values[0], settings["proxy"].source
    scheme, separator, _ = value.partition("://")
    if not separator:
        return f"http://{value}"
    if scheme.lower() not in ("http", "https", "socks4", "socks4a", "socks5", "socks5h"):
        # uv would go without one, and say nothing.
        raise MirrorError(
            Text("proxy in {source} is of a kind that uv does not know", source=source)
        )
    return value


def _truth(setting: _Setting) -> bool:
    value = setting.values[0].lower()
    if value in ("y", "yes", "t", "true", "on", "1"):
        return True
    if value in ("n", "no", "f", "false", "off", "0"):
        return False
    raise MirrorError(Text("no-index in {source} is not yes or no", source=setting.source))


def _from_home(value: str, shell: Mapping[str, str]) -> str:
    return _home(shell) + value[1:] if value == "~" or value.startswith("~/") else value


def _home(shell: Mapping[str, str]) -> str:
    if home := shell.get("HOME"):
        return home
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container may run under a number that has no name
        return "/"


_LISTS = ("extra-index-url", "find-links", "trusted-host")
_OPTIONS = (*_LISTS, "index-url", "no-index", "cert", "client-cert", "proxy")


def _settings(shell: Mapping[str, str], prefix: Path) -> dict[str, _Setting]:
    """The options that count here. uv's own variables win over pip's configuration: they are
    the person's sources where they name any, with pip's index for the one they leave open."""
    settings = _pip_settings(shell, prefix)
    found: dict[str, _Setting] = {}
    for option, name, separators in _UV_VARIABLES:
        values = tuple(filter(None, re.split(separators, shell.get(name, "").strip())))
        if values:
            before = found[option].values if option in found and option in _LISTS else ()
            values = tuple(_without_name(value, shell) for value in values)
            found[option] = _Setting((*before, *values), name)
    if found.keys() & {"index-url", "extra-index-url", "find-links"}:
        for option in ("extra-index-url", "find-links", "no-index"):
            settings.pop(option, None)
    if "cert" not in settings and not shell.get("SSL_CERT_FILE"):
        # What pip's HTTP library reads and uv does not.
        for name in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
            if shell.get(name):
                settings["cert"] = _Setting((shell[name],), name)
    return settings | found


# Lists add up; of the others the later one wins.
_UV_VARIABLES = (
    ("index-url", "UV_INDEX_URL", r"\n"),
    ("index-url", "UV_DEFAULT_INDEX", r"\n"),
    ("extra-index-url", "UV_EXTRA_INDEX_URL", r"\s+"),
    ("extra-index-url", "UV_INDEX", r"\s+"),
    ("find-links", "UV_FIND_LINKS", r","),
    ("trusted-host", "UV_INSECURE_HOST", r"\s+"),
)


_UV_NAME = re.compile(r"([\w.-]+)=(?=\w+://)")


def _without_name(value: str, shell: Mapping[str, str]) -> str:
    """uv's `corp=https://host/simple` with the user and password that variables have for `corp`,
    as a URL that pip understands too."""
    name = _UV_NAME.match(value)
    if not name:
        return value
    url = value[name.end() :]
    stem = f"UV_INDEX_{re.sub(r'[^A-Z0-9]', '_', name[1].upper())}"
    user, password = (shell.get(f"{stem}_{part}") for part in ("USERNAME", "PASSWORD"))
    if "@" in url or not (user or password):
        return url
    login = ":".join(quote(part, safe="") for part in (user or "", password) if part is not None)
    return url.replace("://", f"://{login}@", 1)


def _pip_settings(shell: Mapping[str, str], prefix: Path) -> dict[str, _Setting]:
    """pip's rules: a later file wins within a section, then [install] over [global], then the
    variables; what is empty in the end is as if it were not there."""
    rows: dict[tuple[str, str], _Setting] = {}
    for path in _pip_files(shell, prefix):
        for section, key, value in _read(path):
            rows[section, _option(key)] = _Setting((value,), str(path))
    for name, value in shell.items():
        if name.startswith("PIP_"):
            rows[":env:", _option(name[4:])] = _Setting((value,), name)
    settings: dict[str, _Setting] = {}
    for section in ("global", "install", ":env:"):
        for option in _OPTIONS:
            row = rows.get((section, option))
            if row and (value := row.values[0].strip()):
                values = tuple(value.split()) if option in _LISTS else (value,)
                settings[option] = _Setting(values, row.source)
    return settings


def _option(key: str) -> str:
    """A key of a file or a variable as the option it stands for."""
    return key.lower().replace("_", "-").removeprefix("--")


def _pip_files(shell: Mapping[str, str], prefix: Path) -> tuple[Path, ...]:
    """The files that pip reads, the one that wins last."""
    given = shell.get("PIP_CONFIG_FILE", "")
    if given == os.devnull:
        return ()
    shared = (shell.get("XDG_CONFIG_DIRS", "").strip() or "/etc/xdg").split(os.pathsep)
    files = [Path(_from_home(d, shell), "pip", "pip.conf") for d in shared if d]
    files.append(Path("/etc/pip.conf"))
    if not given or _kind(Path(given)) is None:
        home = _home(shell)
        own = _from_home(shell.get("XDG_CONFIG_HOME", "").strip() or "~/.config", shell)
        files += [Path(home, ".pip", "pip.conf"), Path(own, "pip", "pip.conf")]
    files.append(prefix / "pip.conf")
    if given:
        files.append(Path(given))
    return tuple(files)


def _read(path: Path) -> Iterator[tuple[str, str, str]]:
    """(section, key, value) of a pip.conf; nothing where there is no readable file. Raises
    MirrorError naming file and line, never quoting it: it may hold a password."""
    data = _HERE.read(path, READ_MOST + 1)
    if data is None:
        return
    if len(data) > READ_MOST:
        most = READ_MOST >> 20
        raise MirrorError(
            Text("pip's configuration {path} is larger than {most} MiB", path=path, most=most)
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _wrong(path, line, Text("is not UTF-8")) from None
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.DuplicateSectionError as error:
        raise _wrong(path, error.lineno, Text("a section for the second time")) from None
    except configparser.DuplicateOptionError as error:
        raise _wrong(path, error.lineno, Text("a key for the second time")) from None
    except configparser.MissingSectionHeaderError as error:
        raise _wrong(path, error.lineno, Text("comes before any [section]")) from None
    except configparser.ParsingError as error:
        raise _wrong(path, error.errors[0][0], Text("is not `key = value`")) from None
    for section in parser.sections():
        for key, value in parser.items(section):
            yield section, key, value


def _wrong(path: Path, line: int | None, why: Text) -> MirrorError:
    return MirrorError(
        Text("pip's configuration {path}, line {line}: {why}", path=path, line=line, why=why)
    )
