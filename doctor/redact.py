"""Takes secrets out of text: the one list of their shapes, for all that is printed or written.

A secret is known by its shape (a token's beginning, a header, a URL's user), by the name before it
(`password=`, `--api-key`), by its value where a variable of this process whose name says "secret"
has it, and otherwise by looking like no word. What takes its place is `***`; to redact a text again
changes nothing.

Every pattern takes time in proportion to the text: what repeats in it is bounded.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from doctor.frozen import dataclass
from doctor.model import printable

STARS = "***"


def redact(text: str) -> str:
    """The text with stars for every secret in it, in as many lines as before."""
    for value in _own_secrets():
        if value in text:
            text = text.replace(value, STARS + "\n" * value.count("\n"))
    lowered = text.lower()
    if hints := [hint for hint in _HINTS if hint in lowered]:
        for shape in _SHAPES:
            if not shape.hints.isdisjoint(hints):
                text = _compiled(shape.pattern).sub(shape.shown, text)
    return _RUN.sub(_without_random, text)


def beginning(text: str, most: int) -> str:
    """At most so many characters of the text with stars for every secret. Of a long text only the
    first part is looked at; what may be half of a secret, at the end of that, is left out."""
    part = text[: 8 * most]
    made = redact(part)
    if len(part) < len(text):
        made = made[: max(0, len(made) - most)]
    return made[:most]


def redacted(data: Any) -> Any:
    """JSON data with stars for every secret: in each text, in a value whose key names a secret, and
    in a list that is a command line."""
    texts = list(_texts(data))
    clean = redact(_BETWEEN.join(texts)).split(_BETWEEN)  # all at once: that is much faster
    if len(clean) != len(texts):
        clean = [redact(text) for text in texts]
    return _with_texts(data, iter(clean))


_BETWEEN = "\n\0\n"
"""Between texts: no secret goes on beyond it."""


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(data, (list, tuple)):
        for one in data:
            yield from _texts(one)


def _with_texts(data: Any, clean: Iterator[str]) -> Any:
    """The same data with these texts in it, in their order."""
    if isinstance(data, str):
        return next(clean)
    if isinstance(data, Mapping):
        made = {}
        for name, value in data.items():
            key, one = next(clean), _with_texts(value, clean)
            made[key] = STARS if one and isinstance(one, str) and is_secret_name(name) else one
        return made
    if isinstance(data, (list, tuple)):
        return _words([_with_texts(one, clean) for one in data])
    return data


def redacted_words(words: Iterable[str]) -> list[str]:
    """The words of a command line, each redacted by itself and by the option before it."""
    return _words([redact(word) for word in words])


def _words(words: list[Any]) -> list[Any]:
    """Hides what follows an option for secrets up to the next option: --api-key takes several."""
    hidden = False
    for place, word in enumerate(words):
        if not isinstance(word, str):
            continue
        if word.startswith("-"):
            option, equals, value = word.partition("=")
            secret = is_secret_name(option.lstrip("-"))
            hidden = secret and not equals
            if secret and value:
                words[place] = f"{option}={STARS}"
        elif hidden:
            words[place] = STARS
    return words


def holds_secret(words: Sequence[str]) -> bool:
    """Whether a command line must not be printed as it is: stars would be pasted for the secret."""
    return redacted_words(words) != list(words)


@functools.lru_cache(1024)
def is_secret_name(name: str) -> bool:
    """Whether what has this name (a variable, an option, a key) is a secret. A path is no name."""
    secret = "/" not in name and _SECRET_NAME.search(name)
    return bool(secret) and not _NO_SECRET_NAME.search(name)


# What the process itself was given.


_GIVEN: list[Mapping[str, str]] = []


def hide_values_of(env: Mapping[str, str]) -> None:
    """From now on hides the secrets among these variables too, which are another process's."""
    _GIVEN.append(env)
    _own_secrets.cache_clear()


@functools.cache
def _own_secrets() -> tuple[str, ...]:
    found = {one for env in (os.environ, *_GIVEN) for one in secrets_of(env)}
    return tuple(sorted(found, key=lambda form: (-len(form), form)))


def secrets_of(env: Mapping[str, str]) -> tuple[str, ...]:
    """The values that are secret wherever they appear, of variables whose name says so and of the
    URLs in all others; the longest first, each as it may be printed too."""
    found = set()
    for name, value in env.items():
        named = is_secret_name(name) or name.endswith(("_KEY", "_PASS"))
        found |= {value} if named and not _names_a_place(value) else set()
        found.update(user[1] for user in _IN_URL.finditer(value))
    plain = {v for v in found if len(v) >= _SECRET_LEAST}
    forms = {form for v in plain for form in (v, printable(v), quote(v, safe=""), repr(v)[1:-1])}
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


_SECRET_LEAST = 8
_IN_URL = re.compile(r"://[^/\s:@]*:([^/\s]*)@")


def _names_a_place(value: str) -> bool:
    """A file or socket that holds the secret, which is none itself; a number or a switch."""
    folders = value.startswith(("/", "~/", "./")) and _RUN.sub(_without_random, value) == value
    return folders or value.isdigit() or value.lower() in ("enabled", "disabled", "required")


# Names.

_KEY_KINDS = (
    "access|account|api|app|auth|client|deploy|encryption|license|master|private|secret|service|"
    "shared|signing|ssh|storage|subscription"
)
_NAMES = (
    r"pass(?:word|wd|phrase|code)|(?<=[_-])pass|(?<=[_;-])pwd|secrets?"
    rf"|(?:{_KEY_KINDS})[-_ ]?(?:access[-_]?)?key(?:[-_]?(?:id|data))?"
    r"|(?<![be]os_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)(?<!stop_)"
    r"token(?![-_]?(?:id|iz|count|len|num|limit|type))(?!s)|credentials?"
    r"|(?<![a-z])auth(?=[\"'\s:=]|$)|connection[-_]?string|session[-_]?(?:id|key)|jwt|webhook"
)
_SECRET_NAME = re.compile(rf"(?i)(?:{_NAMES}|(?:^|[_-])auth(?:$|[_-])|authorization|cookie)")
_NO_SECRET_NAME = re.compile(
    r"(?i)(?:^|[_-])(?:file|path|dir|sock|socket|url|name|timeout|agent)$"
    r"|(?:bos|eos|pad|unk|sep|cls|mask|special|stop|image|audio|video|max|num|next)_token$"
)

# Between a name and its value.
_TO = (
    r"(?:(?:\\?[\"'])?\]?\s{0,8}(?::=|=>|->|[:=]|%3[dD])\s{0,8}"
    r"|\\?[\"'],\s{0,4}(?=[bru]{0,2}\\?[\"'])|(?<=\w)>(?=[^<>\s]{1,512}</))"
)
# A value in quotes (of Python or JSON, perhaps escaped), a list of such, or a word. What stands for
# another value, and what says that there is none, is no secret.
_QUOTED = (
    r"[bru$]{0,2}(?P<q>\\?[\"'])(?!(?P=q))(?!\$\{?[A-Z_][A-Z0-9_]*\}?(?P=q))[^\n]{0,4096}?(?P=q)"
)
_LIST = r"[\[(](?=\s*[\"'])[^\])\n]{0,4096}[\])]"
_NOTHING = (
    r"(?!(?:none|null|nil|true|false|undefined|optional|str|bool|int|any|union|auto|"
    r"unset|empty|missing|required|enabled|disabled|redacted|hidden)(?:[\s,;.)\]}\"'|\[]|$))"
    r"(?!\$\{?[A-Z_][A-Z0-9_]*(?:[:}\s\"',;)]|$))(?!<[|/]?[a-z_ ]+\|?>)(?![\[({<,;]|\.\.\.)"
    r"(?!\d{1,6}\b)(?!(?-i:[A-Z_]*(?:KEY|TOKEN|PASSWORD|SECRET))(?![\w-]))"
)
_WORD = _NOTHING + r"(?:\*\*\*|[^\s\"'`]{3,4096}(?<![)\]}>,;.]))"

# Words after "the password is" that tell no password.
_PLAINLY = (
    r"(?!(?:a|accepted|also|always|an|at|being|by|configured|correct|defined|different|empty|"
    r"expired|for|from|given|hidden|ignored|in|incorrect|invalid|it|longer|missing|needed|never|no|"
    r"none|not|null|of|on|only|optional|provided|read|refused|rejected|required|saved|sent|set|"
    r"short|specified|stored|that|the|this|to|too|unknown|unset|used|valid|what|wrong|written)\b)"
)


# Shapes.


@dataclass(frozen=True)
class _Shape:
    """`hints`: one of them is in every text of the shape, in lower case: they are looked for first,
    because most texts have none. `shown`: what takes its place."""

    hints: frozenset[str]
    pattern: str
    shown: str | Callable[[re.Match[str]], str]


# Tokens that begin like no other word, and what has to follow.
_BEGINNINGS = {
    "hf_ api_org_": r"[A-Za-z0-9]{16,}",  # Hugging Face
    # Services of language models: OpenAI, Anthropic and many like them, Groq, xAI, Replicate ...
    "sk- csk- pk-lf- fw_ gsk_ xai- r8_ pplx- tvly- jina_ ntn_ lsv2_pt_ lsv2_sk_": r"[\w-]{16,}",
    "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_": r"[\w-]{16,}",
    "glpat- gldt- glrt- glcbt- glptt- glsoat- glft- glagent- glimt-": r"[\w-]{16,}",  # GitLab
    "nvapi-": r"[\w-]{16,}",
    "AKIA ASIA ABIA ACCA": r"[A-Z0-9]{12,}",  # AWS
    "LTAI AKID AKLT ALTAK": r"-?[A-Za-z0-9]{12,}",  # Aliyun, Tencent, Volcengine, Baidu
    "AIza ya29. GOCSPX-": r"[\w-]{16,}",  # Google
    "xoxa- xoxb- xoxe- xoxo- xoxp- xoxr- xoxs- xapp-": r"[\w-]{10,}",  # Slack
    "sk_live_ sk_test_ rk_live_ rk_test_ whsec_": r"\w{16,}",  # Stripe
    "SG.": r"[\w-]{16,}(?:\.[\w-]+)?",  # SendGrid
    "SK AC": r"[0-9a-f]{32}(?![0-9a-f])",  # Twilio
    "npm_ pypi-Ag dckr_pat_ dckr_oat_ wandb_v1_": r"[\w-]{16,}",
    "dapi": r"[0-9a-f]{32}(?:-[0-9])?",  # Databricks
    "glsa_ glc_ hvs. hvb. hvr. tskey- dop_v1_": r"[\w+/=.-]{16,}",  # Grafana, Vault, Tailscale ...
    "shpat_ shpss_ shpca_ shppa_ lin_api_ PMAK- sntrys_ sntryu_ figd_ pul- sbp_": r"[\w=.-]{16,}",
    "dp.pt. dp.st. ATATT3 ATBB NRAK- nfp_ pscale_tkn_ rnd_": r"[\w=.-]{16,}",
    "ms-": r"[0-9a-f]{8}-[0-9a-f-]{20,}",  # ModelScope
    "AGE-SECRET-KEY-1": r"[A-Z0-9]{16,}",
    "eyJ": r"[\w-]{8,}(?:\.[\w-]*){1,4}",  # JWT
}


def _shape(
    hints: str,
    pattern: str,
    shown: str | Callable[[re.Match[str]], str] = rf"\g<1>{STARS}",
) -> _Shape:
    return _Shape(frozenset(hints.split()), pattern, shown)


def _beginning(words: str, rest: str) -> _Shape:
    either = "|".join(map(re.escape, words.split()))
    return _shape(words.lower(), rf"(?<![A-Za-z0-9])({either}){rest}")


def _same_quotes(found: re.Match[str]) -> str:
    """Stars in the quotes or brackets that stand around the secret: what reads it can go on."""
    value = found[0][len(found[1]) :]
    if value[0] in "[(":
        return f"{found[1]}{value[0]}{STARS}{value[-1]}"
    mark = found["q"] or ""
    return f"{found[1]}{mark}{STARS}{mark}"


_AFTER_SCHEME = r"(?:(?:basic|bearer|digest|token|apikey|negotiate|aws4-hmac-sha256)[ \t]+)?"

_SHAPES = (
    # Keys in PEM: whole, in one line with \n, or cut off.
    _shape(
        "-----begin",
        r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)(?:\*\*\*)?"
        r"(?:(?:(?!-----)[^\0]){0,32768}-----END[A-Z0-9 ]{0,60}-----"
        r"|(?:(?:\s|\\[nr]|\\x0[ad]){0,8}[A-Za-z0-9+/=]{16,128}){0,1024})",
        lambda found: found[1] + STARS + "\n" * found[0].count("\n"),
    ),
    _shape("digest", r"(?i)(\bdigest\s+)\w+=[^\n]{0,4096}"),
    _shape("aws4-hmac", r"(AWS4-HMAC-SHA256\s+)(?!\*\*\*)[^\n\"']{0,4096}"),
    # Headers: all that follows in the quotes or in the line.
    _shape(
        "authorization cookie",
        r"(?i)((?:authorization|set-cookie|cookie)\\?[\"']?\s{0,4}[:=,]\s{0,4}[bru]{0,2}(?P<q>\\?[\"'])"
        rf"{_AFTER_SCHEME})[^\n]{{0,8192}}?(?=(?P=q))",
    ),
    _shape(
        "authorization cookie",
        rf"(?im)((?:authorization|(?:set-)?cookie)[:=][ \t]{{0,4}}{_AFTER_SCHEME})"
        r"(?![\s\"']|(?:[\w-]+[ \t]+)?\*\*\*)[^\n\"']{0,8192}",
    ),
    _shape(
        "basic",
        r"(?i)(\bbasic\s+)(?-i:(?=\S*[a-z])(?=\S*[A-Z])(?=\S*[0-9=]))[A-Za-z0-9+/_-]{8,}={0,2}",
    ),
    _shape(
        "bearer",
        r"(?i)(\bbearer\s+)(?!(?:authentication|authorization|scheme|credentials?|tokens?)\b)"
        r"[\w.~+/-]{8,}=*",
    ),
    _shape("negotiate ntlm", r"(?i)(\b(?:negotiate|ntlm)\s+)[A-Za-z0-9+/]{16,}={0,2}"),
    # URLs. The user up to the last @ before the path, since a password may hold one. It may also
    # hold a slash, which makes no URL of it, but uv prints it: what follows the host's colon is
    # then no port.
    _shape(
        "://",
        r"(://)(?:[^/\s:]{0,256}:[^/\s]{0,512}@[^/\s@]{0,512}/[^/\s@]{0,512}@|[^/\s]{0,4096}@"
        r"|[^\s/@:\[]{0,256}:(?!\d{1,5}(?:[/?#\s,;'\"`)>\]]|$))\S{0,512}@)",
        rf"\1{STARS}@",
    ),
    # As a path has it, which has one slash for two.
    _shape(":/", r"(?i)(\b(?:https?|ftp|ssh|git\+\w{2,5}):/)(?!/)[^/\s]{1,512}@", rf"\1{STARS}@"),
    _shape(
        "@",
        r"((?<![\w/.:-])[\w.+-]{1,64}:)(?!//)[^\s:@/\"']{4,128}(?=@(?!sha\d)[\w(\[])",
    ),
    _shape(
        "=",
        r"(?i)([?&#;](?:amp;)?[\w.%-]{0,64}"
        r"(?:token|key|secret|passw|sig|auth|credential|policy|code|ticket)[\w.%-]{0,64}=)"
        r"[^&\s'\"`)>]+",
    ),
    _shape("hooks.slack /webhook", r"(?i)((?:hooks\.slack\.com/\w+|/webhooks?)/)[\w/.-]+"),
    # The part of a mirror's path that only its customers know.
    _shape(
        "/simple",
        r"(://[^\s/]{1,256}(?:/[\w.~-]{1,128}){0,6}?/)(?=[\w~-]{0,128}\d)"
        r"(?=[\d_~-]{0,128}[A-Za-z])[\w~-]{12,256}(?=/(?:[\w.~-]{1,128}/){0,4}simple\b)",
    ),
    # netrc, and programs that take a password as a word of its own.
    _shape("login", r"(?i)(\blogin\s+)\S+(?=\s+(?:account\s+\S+\s+)?password\b)"),
    _shape(
        "password",
        r"(?im)((?:\blogin\s+\S+\s+(?:account\s+\S+\s+)?|^[ \t#>|]*(?=\w+[ \t]+\S+[ \t]*$))"
        rf"password[ \t]+){_PLAINLY}{_NOTHING}\S+",
    ),
    _shape(
        "curl wget",
        r"(?i)((?:curl|wget)\b[^\n]{0,512}?\s(?:-u|--user|--proxy-user)[ =]?)\S+",
    ),
    _shape(
        "sshpass docker redis-cli mysql mariadb",
        r"(?i)((?:sshpass|docker\s+login|redis-cli|mysql(?:dump|admin)?|mariadb(?:-dump)?)\b[^\n]{0,160}?\s-[pa]\s*)(?!-)\S+",
    ),
    # An option and its words, a name and its value.
    _shape(
        "--",
        rf"(?i)((?<![\w-])--?(?=\w)[\w-]{{0,64}}?(?:{_NAMES})[\w-]{{0,32}}(?:=|\s+))"
        rf"(?!-){_PLAINLY}(?!(?:and|as|is|or|with|when|option|flag|argument)\b)"
        rf"(?:{_QUOTED}|{_WORD})(?:[ \t]+(?!-)(?=\S*\d)[^\s\"']{{4,}})*",
        _same_quotes,
    ),
    _shape(
        "set",
        rf"(?i)(\b(?:setenv|setx|set\s+-\w+)\s+\w{{0,64}}(?:{_NAMES})\w{{0,32}}\s+)\S+",
    ),
    _shape(
        "pass pwd secret key token credential cookie auth jwt webhook connection session",
        rf"(?i)((?=[acdejlmpstw])(?:{_NAMES})(?-i:_(?!PATH|FILE|DIR|SOCK|URL|NAME)[A-Z0-9_]{{1,30}})?"
        rf"(?:[-_]?\d{{1,2}})?{_TO})(?:{_QUOTED}|{_LIST}|{_WORD})",
        _same_quotes,
    ),
    _shape(
        "pass token",
        r"(?i)(\b(?:password|passwd|passphrase|token)\s+"
        r"(?:(?:is|was)(?:\s+now|\s+set\s+to)?[:\s]\s*|(?=[\"'])))"
        rf"{_PLAINLY}(?:{_QUOTED}|{_WORD})",
        _same_quotes,
    ),
    # A container's variable in YAML: the name in one line, the value in the next.
    _shape(
        "value",
        rf"(?i)(name[\"']?:\s*[\"']?\w{{0,64}}(?:{_NAMES})\w{{0,32}}[\"']?[,\s#>|]+"
        rf"[\"']?value[\"']?:\s*)(?:{_QUOTED}|{_WORD})",
        _same_quotes,
    ),
    *(_beginning(words, rest) for words, rest in _BEGINNINGS.items()),
)
_HINTS = frozenset().union(*(shape.hints for shape in _SHAPES))


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


# Words that are none.

_RUN = re.compile(r"[A-Za-z0-9_+~/-]{20,}={0,2}")
_HASH = re.compile(r"(?i)(?:sha(?:1|224|256|384|512)|md5|blake2b)[=:-]\Z")
# What is no secret and looks like one: a hash, a name in C++ as linkers know it, a request's id.
_KNOWN = re.compile(
    r"(?i:(?:sha(?:1|224|256|384|512)|md5|blake2b)-)"
    r"|(?:[^\s]*[^A-Za-z0-9])?_Z[A-Z0-9]"
    r"|(?:chatcmpl|cmpl|embd|score|rerank|pool(?:ing)?|modelperm|req|resp|msg|call|fc|rs|trace)[-_]"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{20,}")
_LETTERS = re.compile(r"[A-Za-z0-9]{20,}")
_SHORT = re.compile(r"[A-Za-z0-9]{6,}")
_WORDS = re.compile(r"[A-Z]?[a-z]+")
_VOWELS = frozenset("aeiouy")
_CHANGES = re.compile(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z])(?=[a-z0-9])|(?<=[0-9])(?=[A-Za-z])")


def _without_random(run: re.Match[str]) -> str:
    """A run of characters of base64, cut off where something in it looks random."""
    text = run[0]
    before = run.string[max(0, run.start() - 8) : run.start()]
    if _HASH.search(before) or _KNOWN.match(text):
        return text
    # A path has slashes too. What has a + or is padded is none, and AWS's keys have 40 characters.
    whole = "+" in text or text.endswith("=") or len(text) == 40
    short = [m for m in _SHORT.finditer(text) if _is_random(m[0], text[: m.start()])]
    if sum(len(m[0]) for m in short) < 20:
        short = []
    long = (_BASE64 if whole else _LETTERS).finditer(text)
    for piece in short or (m for m in long if _is_random(m[0], text[: m.start()])):
        path = text[: text.rfind("/", 0, piece.start()) + 1]
        return (path if _changing(path) < 0.25 else "") + STARS
    return text


def _is_random(piece: str, before: str = "") -> bool:
    """Whether letters and digits change more often than in names that people give, and hardly any
    of it can be spoken. Hexadecimal digits are those of hashes, commits and UUIDs."""
    kinds = sum(bool(re.search(kind, piece)) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    words = (word for word in _WORDS.findall(piece) if not _VOWELS.isdisjoint(word))
    spoken = sum(len(word) for word in words if len(word) > 2) / len(piece)
    if kinds == 3:
        return spoken <= 0.5 and _changing(piece) >= (0.35 if piece.isalnum() else 0.3)
    # Of one case: Triton and torch call the folders of their caches so.
    if kinds < 2 or piece.isalpha() or re.fullmatch("[0-9a-f]+|[0-9A-F]+", piece):
        return False
    in_path = before.endswith("/")
    return len(piece) >= 32 and not in_path and spoken <= 0.4 and _changing(piece) >= 0.2


def _changing(text: str) -> float:
    """How often the kind of character changes, from 0 to 1."""
    return len(_CHANGES.findall(text)) / max(1, len(text))
