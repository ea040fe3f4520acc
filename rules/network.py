"""Whether the model can be fetched from here, where the network may be asked (--online)."""

from __future__ import annotations

from doctor import Finding, Fix, Missing, Needs, NotApplicable, Severity, Stage, Text, rule
from doctor.consumers import hub
from doctor.fixes import Command, SetVariable
from doctor.probes.environment import LaunchEnv
from doctor.probes.network import HubReach
from doctor.probes.wheels import Packages

_XET = "HF_HUB_DISABLE_XET"


def _asked(reach: HubReach | None) -> HubReach:
    if reach is None:
        raise NotApplicable(Text("the network was not asked"))
    return reach


def _answered(reach: HubReach | None) -> HubReach:
    """As a hub answers the server, or who answers in its place."""
    said = _asked(reach)
    if not said.as_server and said.status in (401, 403, 429):
        raise Missing(
            Text(
                "{endpoint} answers HTTP {status} to the doctor, which sends no token there; the "
                "server would send one",
                endpoint=said.endpoint,
                status=said.status,
            )
        )
    return said


def _given(reach: HubReach | None) -> HubReach:
    """Of a file of weights, which may lie elsewhere than the small files do."""
    said = _asked(reach)
    if said.status is None or said.status >= 400:
        raise NotApplicable(Text("{endpoint} gives no file", endpoint=said.endpoint))
    if said.size is None:
        raise Missing(Text("{endpoint} does not list the model's files", endpoint=said.endpoint))
    return said


def _by_xet(said: HubReach, packages: Packages | None, env: LaunchEnv) -> bool:
    there = packages is None or "hf-xet" in packages.installed
    return said.cas is not None and there and not hub.without_xet(env.vars)


def _elsewhere(said: HubReach, title: Text) -> Fix:
    proxy = "export https_proxy=http://PROXY:PORT"
    mirror = ("export HF_ENDPOINT=https://hf-mirror.com",) if said.endpoint == hub.ENDPOINT else ()
    return Fix(title, tuple(map(Command, (*mirror, proxy))), Needs.PERSON)


@rule("hf-endpoint-unreachable", Severity.ERROR, Stage.MODEL)
def hf_endpoint_unreachable(reach: HubReach | None) -> Finding | None:
    """The Hugging Face Hub, or its mirror, cannot be reached.

    The name in the message is the host that the server really contacts: HF_ENDPOINT if it is set,
    else https://huggingface.co. If a mirror was intended and huggingface.co is named, the variable
    did not reach the server: not exported, or missing in the systemd unit, the container or the Ray
    workers. A trailing blank or a full-width colon has the same effect. If the model is already in
    the cache, the Hub is not needed at all. A proxy has to be set with https_proxy. The doctor asks
    only with `--online`, and waits three seconds for an answer; an address without http:// or
    https:// in front is told of itself.

    Manual: Set HF_ENDPOINT to a mirror that is reached from here, or https_proxy, in the
    environment in which the server is started.

    Sources: huggingface_hub#2152, hf-mirror-site#37

    See also: hf-mirror-redirects-to-xet, hf-offline-missing-files, variable-odd-characters
    """
    said = _asked(reach)
    if said.status is not None and said.status >= 500:
        why = Text("{endpoint} answers HTTP {status}", endpoint=said.endpoint, status=said.status)
        raise Missing(why)
    if said.status is not None or said.why is None:
        return None
    return Finding(
        Text("{endpoint} cannot be reached: {why}", endpoint=said.endpoint, why=said.why),
        fixes=(_elsewhere(said, Text("use a mirror or a proxy that is reached from here")),),
    )


@rule("hf-gated-repo", Severity.ERROR, Stage.MODEL)
def hf_gated_repo(reach: HubReach | None, env: LaunchEnv) -> Finding | None:
    """The model's repository requires an account with access.

    The owner grants access to a gated model per account, on its page; the server then has to send
    that account's token. 401 means that no valid token was sent, 403 that the token is valid and
    may not read this model. The token of `hf auth login` is stored in the home of the user who ran
    it: a service or a container has another home. With an invalid token even open models are
    refused. A cached gated model still contacts the Hub unless HF_HUB_OFFLINE=1 is set. The doctor
    asks only with `--online`, with the token that the server would send.

    Manual: Accept the terms on the model's page, and give the server a token of that account
    (`HF_TOKEN`). A mirror that a profile names gets no token: set HF_ENDPOINT yourself.

    Sources: huggingface_hub/utils/_http.py (0.36.2 and 2.4.0), skypilot#2634, vllm#9255

    See also: hf-endpoint-unreachable, hf-offline-missing-files
    """
    said = _answered(reach)
    if said.status not in (401, 403):
        return None
    token = Text("a token was sent") if said.with_token else Text("no token was sent")
    if env.hub:
        token = Text("no token was sent: the profile names the hub, and not you")
    why = Text("private, or not there")
    if said.code == "GatedRepo":
        why = Text("it is gated")
    elif said.code == "InvalidToken":
        why = Text("the token is not valid")
    elif said.with_token:
        why = Text("private, not there, or the token is not valid")
    return Finding(
        Text(
            "{endpoint} does not give the model away (HTTP {status}): {why}",
            endpoint=said.endpoint,
            status=said.status,
            why=why,
        ),
        (token,),
        (
            Fix(
                Text("see whose token it is, and whether that account may read the model"),
                (Command("hf auth whoami"),),
                Needs.PERSON,
            ),
        ),
    )


@rule("hf-rate-limited", Severity.WARNING, Stage.MODEL)
def hf_rate_limited(reach: HubReach | None) -> Finding | None:
    """The hub refuses: it was asked too often from this address.

    The hub counts requests by token, and without one by address, which all machines behind one NAT
    share (HTTP 429). Its client waits and asks again, for some minutes, and then gives up. The
    doctor asks only with `--online`.

    Manual: Set HF_TOKEN; download once (`vllm-doctor download`), copy the cache to the other
    machines, and serve with HF_HUB_OFFLINE=1.

    Sources: huggingface_hub/utils/_http.py (0.36.2 and 2.4.0)

    See also: hf-endpoint-unreachable
    """
    said = _answered(reach)
    if said.status != 429:
        return None
    return Finding(
        Text("{endpoint} was asked too often from here (HTTP 429)", endpoint=said.endpoint)
    )


@rule("hf-mirror-redirects-to-xet", Severity.ERROR, Stage.MODEL)
def hf_mirror_redirects_to_xet(
    reach: HubReach | None, packages: Packages | None, env: LaunchEnv
) -> Finding | None:
    """The mirror responds, but redirects the weights to an unreachable host.

    Small files come from the mirror in HF_ENDPOINT; large ones are redirected to
    cas-bridge.xethub.hf.co, which does not belong to it and is blocked or slow where a mirror is
    needed. HF_HUB_DISABLE_XET=1 changes the client's protocol only: the redirect stays. So the
    download has to go through a proxy, to another source, or be made elsewhere. The doctor asks
    only with `--online`: to where the model's largest file is redirected, and whether anything
    answers there within three seconds.

    Manual: Set https_proxy, or download the model on a machine that reaches the host and copy the
    cache (`rsync -a`), or use ModelScope.

    Sources: hf-mirror-site#50, xet-core#470, unsloth#1353

    See also: hf-endpoint-unreachable, hf-xet-cas-error
    """
    said = _given(reach)
    if said.location is None or said.location_why is None:
        return None
    if said.cas_why is None and _by_xet(said, packages, env):
        return None  # the client goes there instead
    return Finding(
        Text(
            "{endpoint} sends for the weights to {host}, which cannot be reached: {why}",
            endpoint=said.endpoint,
            host=said.location,
            why=said.location_why,
        ),
        fixes=(_elsewhere(said, Text("use a proxy, or a mirror that has the files itself")),),
    )


@rule("hf-xet-cas-error", Severity.ERROR, Stage.MODEL)
def hf_xet_cas_error(
    reach: HubReach | None, packages: Packages | None, env: LaunchEnv
) -> Finding | None:
    """The Xet client could not fetch the model's weights.

    hf_xet fetches large files in chunks from cas-server.xethub.hf.co, over many connections at
    once, whatever HF_ENDPOINT says. A proxy, a slow or unstable link, or a firewall that only
    allows huggingface.co breaks it while small files still arrive: nothing is printed at 0 % for
    four minutes, then `CAS Client Error`. Plain HTTP often works; complete files are kept. If that
    host is blocked altogether, plain HTTP ends at cas-bridge.xethub.hf.co, which may be blocked as
    well. The doctor asks only with `--online`: whether the CAS that the hub names answers within
    three seconds.

    Fix: Sets HF_HUB_DISABLE_XET=1 for the server, where the plain way is reached.

    Manual: `vllm-doctor download MODEL` goes on by plain HTTP by itself after a minute without a
    byte.

    Sources: xet-core#303, xet-core#444, huggingface_hub#4620

    See also: hf-mirror-redirects-to-xet, hf-endpoint-unreachable
    """
    said = _given(reach)
    if said.cas_why is None or not _by_xet(said, packages, env):
        return None
    plain = Fix(Text("fetch by plain HTTP"), (SetVariable(_XET, "1"),))
    return Finding(
        Text(
            "xet would fetch the weights from {host}, which cannot be reached: {why}",
            host=said.cas,
            why=said.cas_why,
        ),
        fixes=(plain,) if said.location_why is None else (),
    )
