"""rules: what the doctor knows."""

from __future__ import annotations

import click

from doctor.cli.again import RunningCommand
from doctor.cli.output import (
    fail,
    say,
)
from doctor.cli.shared import (
    ALLOW_HELP,
    did_you_mean,
    known_rules,
)
from doctor.exits import USAGE
from doctor.model import Rule
from doctor.trust import ALLOW


@click.group(invoke_without_command=True)
@click.option("--rules", "rules_dir", metavar="DIR", help="A folder of further rules.")
@click.option("--allow", multiple=True, type=click.Choice([ALLOW]), help=ALLOW_HELP)
@click.pass_context
def rules(ctx: click.Context, rules_dir: str | None, allow: tuple[str, ...]) -> None:
    """List what the doctor knows."""
    ctx.obj = known_rules(rules_dir, allow)
    if ctx.invoked_subcommand is None:
        width = max(len(r.id) for r in ctx.obj)
        for one in sorted(ctx.obj, key=lambda r: (r.area, r.id)):
            say(f"{one.id:<{width}}  {one.severity.value:<7}  {one.area:<11}  {one.title}")


@rules.command()
@click.argument("id")
@click.pass_obj
def show(known: tuple[Rule, ...], id: str) -> None:
    """Explain one ailment, also one that only a log can name."""
    from doctor import signatures

    found = {r.id: r for r in known}
    if id in found:
        one = found[id]
        say(f"{one.id}  ({one.severity.value}, {one.area})\n\n{one.explanation}")
        return
    in_logs = signatures.shipped_catalogue().ailments
    if id not in in_logs:
        hint = did_you_mean(id, {*found, *in_logs}, f"; `{RunningCommand()('rules')}` lists them")
        fail(f"there is no rule {id!r}{hint}", USAGE)
    ailment = in_logs[id]
    say(f"{id}  (found in a server's log)\n\n{ailment.title}.\n\n{ailment.explanation}")
