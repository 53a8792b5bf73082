"""Which part may import which: data flows training -> compiler -> runtime, and imports go to the core only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "edge_mrcnn"
MAY_IMPORT = {
    "training": {"runtime", "evaluation", "compiler"},  # evaluation: docs/adr/0002
    "compiler": {"runtime", "gpu"},
    "evaluation": {"runtime", "compiler"},  # docs/adr/0012
    "runtime": {"gpu"},  # docs/adr/0007
    "gpu": set(),
    "commands": {"training", "compiler", "evaluation", "runtime"},
}
CORE_LAZILY = {"detections.py": {"runtime"}, "__init__.py": {"runtime"}, "doctor.py": {"gpu"}}
"""Public names, full-size masks and what the doctor examines, imported when they are asked for."""


def imported_parts(path: Path) -> set[str]:
    """Parts of the package that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name and name.startswith("edge_mrcnn.")}
    return found & set(MAY_IMPORT)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_parts(part: str) -> None:
    for path in (PACKAGE / part).rglob("*.py"):
        assert imported_parts(path) <= MAY_IMPORT[part] | {part}, path


def test_core() -> None:
    for path in PACKAGE.glob("*.py"):
        assert imported_parts(path) <= CORE_LAZILY.get(path.name, set()), path
