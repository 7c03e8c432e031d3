"""The sub-packages of the client form floors: each imports only those below it."""

from __future__ import annotations

import ast
from pathlib import Path

import lasro_client

ROOT = Path(lasro_client.__file__).parent
FLOORS = [{"services"}, {"evaluation"}, {"run"}, {"audit", "report", "watch"}, {"cli"}]


def imports(path: Path) -> list[str]:
    """Names of the modules that a module imports, also inside its functions and for type checkers alone."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


def sub_packages(path: Path) -> set[str]:
    """The other sub-packages that a module imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("lasro_client.")} - {path.parent.name}


def test_imports_run_down() -> None:
    """Guards against a run that knows who watches it, and against circles, in which nothing can be changed alone."""
    for height, packages in enumerate(FLOORS):
        below = set().union(*FLOORS[:height])
        for path in (path for package in packages for path in (ROOT / package).glob("*.py")):
            assert sub_packages(path) <= below, f"{path.relative_to(ROOT)} imports {sorted(sub_packages(path))}"


def test_a_run_draws_and_serves_nothing_itself() -> None:
    """Guards against a second place that knows the terminal or Prometheus, beside the observers of the command line."""
    for path in (ROOT / "run").glob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"rich", "prometheus_client", "jinja2"}, path.name


def test_every_sub_package_is_on_a_floor() -> None:
    """Guards against a new sub-package that nobody checks."""
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set().union(*FLOORS)
