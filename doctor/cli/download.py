"""download: the model's files, fetched through a mirror and proven."""

from __future__ import annotations

import dataclasses
import functools
import shlex

import click

from doctor.cli.options import CommonOptions, ServingCommand, serving_options
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
from doctor.errors import DoctorError, UsageError
from doctor.exits import UNKNOWN
from doctor.model import NotApplicable, Text
from doctor.numbers import shown_size
from doctor.probes.arguments import ServerArguments
from doctor.probes.configuration import model_place
from doctor.probes.environment import LaunchEnv
from doctor.probes.interpreter import Interpreter
from doctor.profile import ServeRequest
from doctor.target import Target


class _DownloadCommand(ServingCommand):
    """Takes a MODEL in front of -- as well."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        rest = super().parse_args(ctx, args[:at])
        ctx.params["words"] = tuple(args[at + 1 :])
        return rest


@click.command(cls=_DownloadCommand)
@click.argument("model", required=False)
@functools.partial(serving_options, rules=False, online=False)
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

    Without MODEL: that of the command behind --, into the cache that it would read, else the
    profile's. Cut off, the same command goes on. The hub is the shell's or the command's
    HF_ENDPOINT, else the profile's, and that one gets no token; with --from modelscope
    MODELSCOPE_ENDPOINT likewise.

    Exit codes: 0 complete and every hash right, 1 bytes missing or wrong, or no room, 2 usage, 3
    the hub does not say, 75 another download of this model is at work, 130 interrupted.
    """
    request = _request(common, model)
    target, where = common.entered(request.command)
    facts = Facts(target, (where, request))
    found = _modelscope if source == "modelscope" else _hub
    origin, named_by = found(facts, target, request, revision)
    if model not in (None, origin.repository):
        name = origin.repository
        said = Text("{model}: the command serves {name}; leave one out", model=model, name=name)
        raise UsageError(said)
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


def _request(common: CommonOptions, model: str | None) -> ServeRequest:
    """What is served. What a profile says of its own model does not count for another."""
    request = common.request()
    its_own = request.profile.model
    if request.command or model in (None, its_own):
        return request
    return dataclasses.replace(
        request, profile=dataclasses.replace(request.profile, model=model, options={})
    )


def _hub(
    facts: Facts, target: Target, request: ServeRequest, revision: str | None
) -> tuple[HubOrigin, str | None]:
    """The hub, fetched from into the cache in which the server looks for its model, and its address
    where the profile names it and not the person. Raises UsageError where what is served is no
    repository, and DoctorError for a command whose options cannot be read."""
    env, arguments = facts.get(LaunchEnv), facts.get(ServerArguments)
    _must_be_read(request, arguments)
    try:
        place = model_place(target, request, arguments, env)
    except NotApplicable as none:
        raise UsageError(none.reason) from None
    if place.repository is None:
        said = Text("{name}: a folder of this machine is served as it is", name=place.name)
        raise UsageError(said)
    python, cache = facts.get(Interpreter).python, place.repository.parent
    at = revision or place.revision
    return HubOrigin(target, env, python, place.name, at, cache), env.hub


def _modelscope(
    facts: Facts, target: Target, request: ServeRequest, revision: str | None
) -> tuple[ModelScopeOrigin, str | None]:
    """The same of ModelScope."""
    env, arguments = facts.get(LaunchEnv), facts.get(ServerArguments)
    _must_be_read(request, arguments)
    said = arguments.values.get("model")
    name = said if isinstance(said, str) and request.command else request.profile.model or ""
    if "/" not in name or not hub.is_repository(name):
        raise UsageError(Text("{name}: not the name of a repository such as org/model", name=name))
    named = next((name for name in modelscope.ENDPOINTS if (env.get(name) or "").strip()), None)
    theirs = named is not None and named not in target.env
    theirs = theirs and named not in request.profile.env_asked
    cache = modelscope.modelscope_cache(env.vars, request.folder)
    at, python = revision or modelscope.MASTER, facts.get(Interpreter).python
    made = ModelScopeOrigin(target, env, python, name, at, cache, theirs)
    return made, made.endpoint if theirs else None


def _must_be_read(request: ServeRequest, arguments: ServerArguments) -> None:
    if request.command and arguments.unread:
        why = Text(
            "the options of the command cannot be read: {why}; name the model alone, as {example}",
            why=arguments.unread,
            example="vllm-doctor download ORG/MODEL",
        )
        raise DoctorError(why, UNKNOWN)


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
