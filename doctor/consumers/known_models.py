"""What the doctor itself knows of models, for a judgement before they are downloaded."""

from __future__ import annotations

from typing import Any

from doctor.consumers.hub import is_repository
from doctor.frozen import dataclass
from doctor.shipped import rules_folder
from doctor.toml import load_section

TABLE = "tables/models.toml"
NULLS = "null"
"""The key of a table that names those which are null: TOML has no word for it."""


@dataclass(frozen=True)
class KnownModel:
    """What its config.json says, the essentials, and where that was read."""

    values: dict[str, Any]
    source: str


def known_model(repository: str) -> KnownModel | None:
    """The row of this very repository; one that was made from it is another model. None where
    there is none. Raises OSError and ValueError for a damaged table."""
    if not is_repository(repository):
        return None
    row = load_section(rules_folder() / TABLE, repository)
    if row is None:
        return None
    source = row.pop("source")
    return KnownModel(with_nulls(row), str(source))


def with_nulls(table: dict[str, Any]) -> dict[str, Any]:
    """A row as its config.json has it."""
    made = {k: with_nulls(v) if isinstance(v, dict) else v for k, v in table.items()}
    nulls = made.pop(NULLS, ())
    return {**made, **dict.fromkeys(nulls)}
