"""download: the model's files, fetched through a mirror and proven."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import click

from doctor.cli.options import CommonOptions, model_options
from doctor.cli.output import print_json, say, tell
from doctor.cli.talking import Talking
from doctor.consumers import hub, modelscope
from doctor.download.fetch import STALL
from doctor.download.hub import HubOrigin
from doctor.download.modelscope import ModelScopeOrigin
from doctor.download.origin import Origin
from doctor.download.room import existing
from doctor.download.session import Downloaded, fetch_all, verified
from doctor.engine import Facts
from doctor.errors import UsageError
from doctor.model import Text
from doctor.numbers import shown_size
from doctor.probes.environment import LaunchEnv
from doctor.probes.interpreter import Interpreter
from doctor.profile import ServeRequest
from doctor.target import Target


@click.command()
@click.argument("model", required=False)
@model_options
@click.option(
    "--from",
    "source",
    type=click.Choice(["hub", "modelscope"]),
    default="hub",
    show_default=True,
    help="Hugging Face's hub or a mirror of it, or ModelScope.",
)
@click.option(
    "--revision", metavar="REV", help="A branch, a tag or a commit; else the repository's own."
)
@click.option(
    "--verify-only", is_flag=True, help="Fetch nothing, ask nobody: prove what lies here."
)
@click.option(
    "--stall",
    type=click.FloatRange(min=1),
    default=STALL,
    show_default=True,
    metavar="SECONDS",
    help="End a client that brings no byte for so long, and try another way.",
)
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def download(
    common: CommonOptions,
    model: str | None,
    source: str,
    revision: str | None,
    verify_only: bool,
    stall: float,
    form: str,
) -> None:
    """Fetch the files of a model with the environment's own client, and prove each by its hash.

    Without MODEL: the profile's. Cut off, the same command goes on. The hub is the shell's
    HF_ENDPOINT, else the profile's, and that one gets no token; with --from modelscope
    MODELSCOPE_ENDPOINT likewise.

    Exit codes: 0 complete and every hash right, 1 bytes missing or wrong, or no room, 2 usage, 3
    the hub does not say, 75 another download of this model is at work, 130 interrupted.
    """
    base = common.profile()
    name = model or base.model
    if name is None:
        raise UsageError(Text("which model? name it, or a profile that has one"))
    request = ServeRequest(dataclasses.replace(base, model=name))
    target, where = common.located()
    facts = Facts(target, (where, request))
    env, interpreter = facts.get(LaunchEnv), facts.get(Interpreter)
    if not hub.is_repository(name) or target.stat(request.folder / name) is not None:
        raise UsageError(Text("{name}: not the name of a repository such as org/model", name=name))
    origin: Origin
    if source == "modelscope":
        origin = _modelscope(target, env, interpreter.python, request, revision)
        named_by = origin.endpoint if origin.of_profile else None
    else:
        cache = hub.cache(env.vars)
        origin = HubOrigin(target, env, interpreter.python, name, revision or hub.REVISION, cache)
        named_by = env.hub
    if why := target.distrust(existing(origin.folder), searched=True):
        raise UsageError(why)
    with Talking(form) as talk:
        if not verify_only and named_by:
            talk.tell(Text("the hub is the profile's, {hub}: it gets no token", hub=named_by))
        made = verified(origin, talk) if verify_only else fetch_all(origin, talk, stall)
    if form == "json":
        from doctor.report.download_json import download_json

        print_json(download_json(made))
    else:
        _print(made, origin, source == "modelscope")
    if made.failed:
        tell(made.failed)
    raise SystemExit(made.exit_code)


def _modelscope(
    target: Target, env: LaunchEnv, python: Path, request: ServeRequest, revision: str | None
) -> ModelScopeOrigin:
    profile = request.profile
    named = next((name for name in modelscope.ENDPOINTS if (env.get(name) or "").strip()), None)
    theirs = named is not None and named not in target.env and named not in profile.env_asked
    name, cache = profile.model or "", modelscope.modelscope_cache(env.vars, request.folder)
    if "/" not in name:
        raise UsageError(Text("{name}: not the name of a repository such as org/model", name=name))
    at = revision or modelscope.MASTER
    return ModelScopeOrigin(target, env, python, name, at, cache, theirs)


_SHOWN = 10


def _print(made: Downloaded, origin: Origin, by_folder: bool) -> None:
    wrong = [one for one in made.files if one.state != "ok"]
    for one in wrong[:_SHOWN]:
        say(f"  {one.state:8} {shown_size(one.file.size):>10}  {one.file.path}")
    if len(wrong) > _SHOWN:
        say(str(Text("  ... and {count} more", count=len(wrong) - _SHOWN)))
    if made.complete:
        say(
            str(
                Text(
                    "complete: {name} at {commit}, {count} files, {size}, every hash right",
                    name=made.listing.repository,
                    commit=made.listing.commit or made.listing.revision,
                    count=len(made.files),
                    size=shown_size(made.listing.total),
                )
            )
        )
    file = made.files[0].file
    folder = origin.place(made.listing, file).parents[file.path.count("/")]
    say(f"  {folder}")
    if by_folder and made.complete:
        say(
            str(
                Text(
                    "serve it by its folder, without any variable: vllm serve {it}",
                    it=shlex.quote(str(folder)),
                )
            )
        )
