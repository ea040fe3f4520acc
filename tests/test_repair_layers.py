"""Who in repair/ may know whom, held by reading imports: downwards only, and so in no circle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.test_layering import MODULES, PACKAGE, imports

# From what knows files and tools to what knows a person's request.
LAYERS = (
    *("tree", "errors", "manifest", "swap", "state"),
    *("index", "installer", "uv", "pip", "resolver", "newest", "running"),
    *("action", "context", "transaction", "stage"),
    *("plan", "apply", "create", "session"),
)
UPPER = frozenset(LAYERS[LAYERS.index("plan") :])
"""What knows all kinds of steps; no kind knows it."""


def of_repair(module: str) -> Iterator[str]:
    """The modules of repair/ that a file imports, inside functions as well."""
    for name in imports(PACKAGE / module):
        rest = name.removeprefix("doctor.repair.")
        if rest != name:
            yield rest.partition(".")[0]


def test_every_module_of_repair_has_its_layer() -> None:
    found = {m.removeprefix("repair/")[:-3] for m in MODULES if m.startswith("repair/")}
    assert found - {"__init__"} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_module_of_repair_knows_only_those_below_it(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) :])
    assert not above & set(of_repair(f"repair/{layer}.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_repair_knows_neither_the_command_line_nor_a_report_of_it(layer: str) -> None:
    names = imports(PACKAGE / f"repair/{layer}.py")
    assert not [n for n in names if n.startswith(("doctor.cli", "doctor.report"))]


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("fixes/")])
def test_a_kind_of_step_knows_nothing_of_plans(module: str) -> None:
    assert not UPPER & set(of_repair(module))
    names = imports(PACKAGE / module)
    assert not [n for n in names if n.startswith(("doctor.cli", "doctor.report"))]
