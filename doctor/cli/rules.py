"""rules: what the doctor knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from doctor.cli.again import RunningCommand
from doctor.cli.options import ALLOW_HELP, CommonOptions, did_you_mean
from doctor.cli.output import print_json, say, tell, text_width
from doctor.errors import UsageError
from doctor.model import Text
from doctor.trust import ALLOW

if TYPE_CHECKING:
    from doctor.report.ailment import Page


@click.group(invoke_without_command=True)
@click.option("--area", metavar="AREA", help="Only those of this area, such as toolkit.")
@click.option("--search", metavar="WORD", help="Only those whose page mentions this.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.option("--rules", "rules_dir", metavar="DIR", help="A folder of further rules.")
@click.option("--allow", multiple=True, type=click.Choice([ALLOW]), help=ALLOW_HELP)
@click.pass_context
def rules(
    ctx: click.Context,
    area: str | None,
    search: str | None,
    form: str,
    rules_dir: str | None,
    allow: tuple[str, ...],
) -> None:
    """List the ailments that the doctor knows, found by a rule, in a log, or by both."""
    from doctor.report import ailment  # other commands only want the options of this one

    common = CommonOptions(rules_dir=rules_dir, allow=allow)
    ctx.obj = ailment.pages(common.rules(), common.signatures())
    if ctx.invoked_subcommand is not None:
        return
    areas = {page.area for page in ctx.obj.values()}
    if area is not None and area not in areas:
        hint = did_you_mean(area, areas, Text("; areas: {areas}", areas=sorted(areas)))
        raise UsageError(Text("--area {area}: unknown area{hint}", area=area, hint=hint))
    asked = [
        page
        for page in ctx.obj.values()
        if area in (None, page.area) and (search is None or page.mentions(search))
    ]
    if not asked:
        tell(Text("no ailment's page mentions {word}", word=repr(search)))
    if form == "json":
        print_json(ailment.listing_json(asked))
    else:
        for line in ailment.listing(asked):
            say(line)


@rules.command()
@click.argument("id")
@click.pass_obj
def show(known: dict[str, Page], id: str) -> None:
    """Explain one ailment: why it happens, how it shows in logs, how it is fixed."""
    from doctor.report.ailment import page_lines

    if id not in known:
        listed = Text("; `{command}` lists them", command=RunningCommand()("rules"))
        hint = did_you_mean(id, known, listed)
        raise UsageError(Text("unknown ailment {id}{hint}", id=id, hint=hint))
    say("\n".join(page_lines(known[id], text_width())))
