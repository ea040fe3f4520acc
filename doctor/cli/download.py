"""download: the model's files, fetched through a mirror and proven."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import click

from doctor.cli.options import CommonOptions, ServingCommand, serving_options
from doctor.cli.output import print_json, say, tell
from doctor.cli.talking import Talking
from doctor.download.fetch import STALL
from doctor.download.hub import HubOrigin
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
    revision: str | None,
    verify_only: bool,
    stall: float,
    form: str,
) -> None:
    """Fetch the files of a model with the environment's own client, and prove each by its hash.

    Without MODEL: that of the command behind --, into the cache that it would read, else the
    profile's. Cut off, the same command goes on. The hub is the shell's or the command's
    HF_ENDPOINT, else the profile's, and that one gets no token.

    Exit codes: 0 complete and every hash right, 1 bytes missing or wrong, or no room, 2 usage, 3
    the hub does not say, 75 another download of this model is at work, 130 interrupted.
    """
    request = _request(common, model)
    target, where = common.entered(request.command)
    facts = Facts(target, (where, request))
    env, interpreter = facts.get(LaunchEnv), facts.get(Interpreter)
    name, cache, its_own = _place(facts, target, request, env)
    if model not in (None, name):
        said = Text("{model}: the command serves {name}; leave one out", model=model, name=name)
        raise UsageError(said)
    origin = HubOrigin(target, env, interpreter.python, name, revision or its_own, cache)
    if why := target.distrust(existing(origin.folder), searched=True):
        raise UsageError(why)
    with Talking(form) as talk:
        if not verify_only and env.hub:
            talk.tell(
                Text("the hub is the profile's, {hub}: it gets no Hugging Face token", hub=env.hub)
            )
        made = verified(origin, talk) if verify_only else fetch_all(origin, talk, stall)
    if form == "json":
        from doctor.report.download_json import download_json

        print_json(download_json(made))
    else:
        _print(made, origin)
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


def _place(
    facts: Facts, target: Target, request: ServeRequest, env: LaunchEnv
) -> tuple[str, Path, str]:
    """(the repository, the cache in which the server looks for it, the revision). Raises UsageError
    where it is none, and DoctorError for a command whose options cannot be read."""
    arguments = facts.get(ServerArguments)
    if request.command and arguments.unread:
        why = Text(
            "the options of the command cannot be read: {why}; name the model alone, as {example}",
            why=arguments.unread,
            example="vllm-doctor download ORG/MODEL",
        )
        raise DoctorError(why, UNKNOWN)
    try:
        place = model_place(target, request, arguments, env)
    except NotApplicable as none:
        raise UsageError(none.reason) from None
    if place.repository is None:
        said = Text("{name}: a folder of this machine is served as it is", name=place.name)
        raise UsageError(said)
    return place.name, place.repository.parent, place.revision


_SHOWN = 10


def _print(made: Downloaded, origin: Origin) -> None:
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
    say(f"  {origin.place(made.listing, made.files[0].file).parent}")
