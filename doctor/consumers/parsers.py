"""Which parsers of answers belong to a family of models, by rules/tables/parsers.toml."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable

from doctor.frozen import dataclass
from doctor.shipped import rules_folder
from doctor.toml import load_rows

PARSERS_TABLE = "parsers.toml"


@dataclass(frozen=True)
class ParserFamily:
    """The names that releases of vLLM have for its parsers, the best first; () where it has none,
    or vLLM chooses it by itself. `source`: who says so."""

    reasoning: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    source: str = ""


def family_of(model: str, types: Iterable[str | None]) -> ParserFamily | None:
    """The first row for a model of one of these types (`model_type` of its config.json, or of the
    part about the language model) and of this name; None where there is none, or the table cannot
    be read: it is advice."""
    name, known = model.rstrip("/").rpartition("/")[2], {one for one in types if one}
    with contextlib.suppress(OSError, ValueError):
        for row in load_rows(rules_folder() / "tables" / PARSERS_TABLE, "family", known):
            fits = re.search(row.get("name", ""), name, re.IGNORECASE)
            if fits and known.intersection(row["types"]):
                reasoning, tools = row.get("reasoning", ()), row.get("tools", ())
                return ParserFamily(tuple(reasoning), tuple(tools), row["source"])
    return None
