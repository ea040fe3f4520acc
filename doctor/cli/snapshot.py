"""snapshot: records this machine, redacted."""

from __future__ import annotations

import json
import platform

import click

from doctor import about
from doctor.cli.options import CommonOptions, ServingCommand, serving_options
from doctor.cli.output import (
    say,
    verbatim,
    write_file,
)
from doctor.engine import Facts
from doctor.tape import Recorder


@click.command(cls=ServingCommand)
@serving_options
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="Where to write it; - for stdout."
)
@click.option("--host", is_flag=True, help="Keep this machine's name in it.")
def snapshot(
    common: CommonOptions,
    output: str,
    host: bool,
) -> None:
    """Record this machine, redacted, so that `diagnose --from` judges it anywhere.

    Behind -- stands the server's own command, as for diagnose.
    """
    from doctor.snapshot import ask_everything, shareable

    served = common.request()
    common.rules()  # which may bring facts of their own
    target, where = common.entered(served.command)
    recorder = Recorder(target)
    asked = ask_everything(Facts(recorder, (where, served)))
    tool = f"{about.NAME} {about.VERSION}"
    name = platform.node() if host else None
    recording = recorder.recording(tool, str(where.python), where.how, name, asked)
    kept = shareable(recording, target.env.get("HOME"))
    text = json.dumps(kept, indent=1, sort_keys=True) + "\n"
    if output == "-":
        verbatim(text)
        return
    write_file("--output", output, text)
    say(f"wrote {output} ({len(text) >> 10} KiB); review it before you share it", err=True)
