"""rules: what the doctor knows."""

from __future__ import annotations

import click

from doctor.cli.again import RunningCommand
from doctor.cli.output import fail, print_json, say, text_width
from doctor.cli.shared import ALLOW_HELP, did_you_mean, known_rules, known_signatures
from doctor.exits import USAGE
from doctor.report import ailment
from doctor.trust import ALLOW


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
    found = known_rules(rules_dir, allow)
    ctx.obj = ailment.pages(found, known_signatures(rules_dir))
    if ctx.invoked_subcommand is not None:
        return
    areas = {page.area for page in ctx.obj.values()}
    if area is not None and area not in areas:
        hint = did_you_mean(area, areas, f"; there are {', '.join(sorted(areas))}")
        fail(f"--area {area}: there is no such area{hint}", USAGE)
    asked = [
        page
        for page in ctx.obj.values()
        if area in (None, page.area) and (search is None or page.mentions(search))
    ]
    if form == "json":
        print_json(ailment.listing_json(asked))
    else:
        for line in ailment.listing(asked):
            say(line)


@rules.command()
@click.argument("id")
@click.pass_obj
def show(known: dict[str, ailment.Page], id: str) -> None:
    """Explain one ailment: why it happens, how it shows in logs, how it is fixed."""
    if id not in known:
        hint = did_you_mean(id, known, f"; `{RunningCommand()('rules')}` lists them")
        fail(f"there is no ailment {id!r}{hint}", USAGE)
    say("\n".join(ailment.page_lines(known[id], text_width())))
