"""schema: the JSON Schemas of what the other commands print."""

from __future__ import annotations

import click

from doctor.cli.output import (
    print_json,
)


@click.command()
@click.argument(
    "what",
    type=click.Choice(
        ["report", "fix", "create", "snapshot", "explain", "fit", "download", "rules"]
    ),
    default="report",
)
def schema(what: str) -> None:
    """Print the JSON Schema of the report, of what fix, fix --create without --apply, explain,
    fit, download or rules give, or of the snapshot."""
    from doctor.report.ailment import listing_schema
    from doctor.report.download_json import download_schema
    from doctor.report.explained import explained_schema
    from doctor.report.fit_json import fit_schema
    from doctor.report.json import report_schema
    from doctor.report.repair_json import creation_schema, repair_schema
    from doctor.report.schema import snapshot_schema

    made = {
        "report": report_schema,
        "fix": repair_schema,
        "create": creation_schema,
        "snapshot": snapshot_schema,
        "explain": explained_schema,
        "fit": fit_schema,
        "download": download_schema,
        "rules": listing_schema,
    }
    print_json(made[what](), indent=1)
