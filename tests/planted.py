"""Secrets of every shape, made up from a seed: none is real, and no scanner finds one here."""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable
from dataclasses import dataclass

UPPER, LOWER, DIGITS = string.ascii_uppercase, string.ascii_lowercase, string.digits
ALNUM = UPPER + LOWER + DIGITS
HEX = DIGITS + "abcdef"


@dataclass(frozen=True)
class Planted:
    """`text`: a line, or several, as it is found; `secret`: what may come out nowhere."""

    shape: str
    text: str
    secret: str


class _Maker:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - the same ones each time

    def word(self, size: int, letters: str = ALNUM) -> str:
        return "".join(self._random.choices(letters, k=size))

    def base64(self, size: int) -> str:
        return base64.b64encode(self._random.randbytes(size)).decode()

    def url_safe(self, size: int) -> str:
        made = base64.urlsafe_b64encode(self._random.randbytes(size)).decode().rstrip("=")
        return made.replace("-", "x", 1) if made[0] == "-" else made


# Tokens that are known by how they begin: alone in a sentence.
_TOKENS: dict[str, Callable[[_Maker], str]] = {
    "hugging face": lambda m: "hf_" + m.word(34, UPPER + LOWER),
    "hugging face organisation": lambda m: "api_" + "org_" + m.word(34, UPPER + LOWER),
    "openai": lambda m: "sk-" + m.word(48),
    "openai project": lambda m: "sk-" + "proj-" + m.url_safe(60),
    "anthropic": lambda m: "sk-" + "ant-api03-" + m.url_safe(70),
    "groq": lambda m: "gsk" + "_" + m.word(52),
    "xai": lambda m: "xai" + "-" + m.word(80),
    "replicate": lambda m: "r8" + "_" + m.word(37),
    "github": lambda m: "gh" + "p_" + m.word(36),
    "github oauth": lambda m: "gh" + "o_" + m.word(36),
    "github app": lambda m: "gh" + "s_" + m.word(36),
    "github fine-grained": lambda m: "github" + "_pat_" + m.word(22) + "_" + m.word(59),
    "gitlab": lambda m: "gl" + "pat-" + m.url_safe(15),
    "nvidia": lambda m: "nv" + "api-" + m.url_safe(48),
    "ngc": lambda m: m.base64(63),
    "aws id": lambda m: "AK" + "IA" + m.word(16, UPPER + "234567"),
    "aws session id": lambda m: "AS" + "IA" + m.word(16, UPPER + "234567"),
    "aliyun": lambda m: "LT" + "AI" + m.word(20),
    "tencent": lambda m: "AK" + "ID" + m.word(32),
    "google": lambda m: "AI" + "za" + m.url_safe(26)[:35],
    "google oauth": lambda m: "ya" + "29." + m.url_safe(60),
    "slack bot": lambda m: "xo" + "xb-" + m.word(12, DIGITS) + "-" + m.word(24),
    "stripe": lambda m: "sk" + "_live_" + m.word(24),
    "twilio": lambda m: "S" + "K" + m.word(32, HEX),
    "sendgrid": lambda m: "S" + "G." + m.url_safe(16) + "." + m.url_safe(32),
    "npm": lambda m: "np" + "m_" + m.word(36),
    "pypi": lambda m: "py" + "pi-AgEIcHlwaS5vcmc" + m.url_safe(90),
    "docker": lambda m: "dc" + "kr_pat_" + m.url_safe(20),
    "databricks": lambda m: "da" + "pi" + m.word(32, HEX),
    "grafana": lambda m: "gl" + "sa_" + m.word(32) + "_" + m.word(8, HEX),
    "vault": lambda m: "hv" + "s." + m.url_safe(68),
    "tailscale": lambda m: "ts" + "key-auth-" + m.word(12) + "-" + m.word(30),
    "digitalocean": lambda m: "do" + "p_v1_" + m.word(64, HEX),
    "modelscope": lambda m: "m" + "s-" + "-".join(m.word(n, HEX) for n in (8, 4, 4, 4, 12)),
    "jwt": lambda m: ".".join(["ey" + "J" + m.url_safe(24), m.url_safe(40), m.url_safe(32)]),
    "a random word": lambda m: m.word(40),
    "a random word of base64": lambda m: m.base64(32),
    "a random word for URLs": lambda m: m.url_safe(48),
}  # fmt: skip

# Passwords of no shape: known by what stands around them.
_AROUND = {
    "basic header": "Authorization: Basic {b64}",
    "basic header in a dict": "headers={{'Authorization': 'Basic {b64}'}}",
    "bearer header": "authorization: Bearer {plain}",
    "bearer in a sentence": "401 for Bearer {plain}",
    "token header": "'Authorization': 'Token {plain}',",
    "digest header": 'Authorization: Digest username="me", realm="x", response="{plain}"',
    "cookie header": "Cookie: theme=dark; session={plain}; lang=en",
    "cookie set": "Set-Cookie: sid={plain}; Path=/; HttpOnly",
    "api key header": "> X-Api-Key: {plain}",
    "curl header": "curl -H 'X-Auth-Token: {plain}' https://host.test/v1",
    "curl user": "curl -u me:{plain} https://host.test/v1",
    "aws signature": "AWS4-HMAC-SHA256 Credential={plain}/20260101/us/s3, Signature=ab",
    "url user and password": "https://me:{plain}@host.test/simple",
    "url token": "https://{plain}@host.test/simple",
    "url password with @ and /": "https://me:a@{plain}/b@host.test/simple",
    "url query token": "https://host.test/x?token={plain}&b=2",
    "url query signature": "https://host.test/x?X-Amz-Signature={plain}&X-Amz-Date=1",
    "url query sas": "https://host.test/x?sv=2024&se=2026&sig={plain}&sp=r",
    "url query key": "GET /v1/models?api_key={plain} HTTP/1.1",
    "mirror path": "https://host.test/{mixed}/simple",
    "mirror path below": "https://host.test/{mixed}/team/python/simple/torch/",
    "git url": "git+https://x-access-token:{plain}@host.test/x/y",
    "postgres": "postgresql://bob:{plain}@db.test:5432/x",
    "redis": "redis://:{plain}@cache.test:6379/0",
    "mysql without a scheme": "bob:{plain}@tcp(db.test:3306)/x",
    "odbc": "Server=db.test;Uid=me;Pwd={plain};",
    "azure": "DefaultEndpointsProtocol=https;AccountName=x;AccountKey={b64};Suffix=y",
    "password is": "the password is {plain}",
    "password was set to": "password was set to {plain}",
    "password in quotes": "wrong password '{plain}' for me",
    "token with a colon": "token: {plain}",
    "password with a colon": "password: {plain}",
    "token option": "vllm serve m --token {plain} --port 8000",
    "api keys of an option": "vllm serve m --api-key {plain} --port 8000",
    "option with =": "vllm serve m --hf-token={plain}",
    "variable": "HF_TOKEN={plain}",
    "variable exported": "export DB_PASSWORD='{plain}'",
    "variable of csh": "setenv HF_TOKEN {plain}",
    "variable with a number": "API_KEY_2={plain}",
    "variable of postgres": "PGPASSWORD={plain} psql",
    "aws secret": "aws_secret_access_key = {plain}",
    "json": '{{"user": "me", "password": "{plain}"}}',
    "json in json": '{{\\"password\\": \\"{plain}\\"}}',
    "dict": "{{'user': 'me', 'client_secret': '{plain}'}}",
    "dict of bytes": "{{'api_key': b'{plain}'}}",
    "args of vllm": "non-default args: {{'api_key': ['{plain}'], 'port': 8000}}",
    "namespace": "Namespace(port=8000, api_key='{plain}', model='m')",
    "toml": 'password = "{plain}"',
    "yaml": "  db_password: {plain}",
    "kubernetes variable": "- name: HF_TOKEN\n  value: {plain}",
    "kubeconfig": "    client-key-data: {b64}",
    "docker config": '{{"auths": {{"host.test": {{"auth": "{b64}"}}}}}}',
    "npmrc": "//host.test/:_authToken={plain}",
    "netrc": "machine host.test login me password {plain}",
    "netrc in lines": "machine host.test\nlogin me\npassword {plain}",
    "pem": "-----BEGIN RSA PRIVATE KEY-----\n{b64}\n-----END RSA PRIVATE KEY-----",
    "pem in one line": "key='-----BEGIN PRIVATE KEY-----\\n{b64}\\n-----END PRIVATE KEY-----\\n'",
    "ssh": "-----BEGIN OPENSSH PRIVATE KEY-----\n{b64}\n-----END OPENSSH PRIVATE KEY-----",
    "webhook": "https://hooks.slack.com/services/{plain}/x",
    "sshpass": "sshpass -p {plain} ssh me@host.test",
}  # fmt: skip


def planted(seed: int = 9) -> list[Planted]:
    """At least 100 of at least 40 shapes, the same each time."""
    made = []
    maker = _Maker(seed)
    for shape, token in _TOKENS.items():
        secret = token(maker)
        made.append(Planted(shape, f"refused with {secret} by the host", secret))
    for shape, text in _AROUND.items():
        for size in (9, 24):
            kinds = {
                # Lower case and digits: nothing that would be known by itself.
                "plain": maker.word(1, LOWER) + maker.word(size - 2, LOWER + DIGITS) + "7",
                "mixed": maker.word(14 + size) + "7a",
                "b64": base64.b64encode(
                    f"me:{maker.word(size, LOWER + DIGITS)}7".encode()
                ).decode(),
            }
            secret = next(kinds[kind] for kind in kinds if f"{{{kind}}}" in text)
            made.append(Planted(shape, text.format(**kinds), secret))
    return made
