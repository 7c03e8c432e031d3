"""Which package imports which, read from the source with `ast`: nothing is imported but in the torch test."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "lasro": ROOT / "lasro",
    "lasro_client": ROOT / "client" / "lasro_client",
    "lasro_reward_api": ROOT / "services" / "reward_api" / "lasro_reward_api",
    "lasro_rewards": ROOT / "services" / "rewards" / "lasro_rewards",
    "lasro_surrogate_trainer": ROOT / "services" / "surrogate_trainer" / "lasro_surrogate_trainer",
}
MAX_CLIENT_FLOORS = 6
CLIENT_FLOORS = [
    {"services"}, {"evaluation"}, {"run"}, {"audit", "doctor", "report", "watch"}, {"analysis", "export"}, {"cli"}
]  # fmt: skip
"""Sub-packages of the client from the ground up: each imports only those below it."""
Graph = Mapping[str, set[str]]


def module_name(package: str, path: Path) -> str:
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join((package, *parts)).removesuffix(".__init__")


@cache
def sources() -> dict[str, ast.Module]:
    """The parsed modules of all packages, by dotted name."""
    return {
        module_name(package, path): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for package, folder in PACKAGES.items()
        for path in sorted(folder.rglob("*.py"))
    }


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_statements(tree: ast.AST, only_at_import: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements; with `only_at_import` those that run when the module is imported, none inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif only_at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif only_at_import and isinstance(node, ast.If) and is_type_checking(node):
            for other in node.orelse:
                yield from import_statements(other, only_at_import)
        else:
            yield from import_statements(node, only_at_import)


def imported_names(tree: ast.AST, only_at_import: bool = False) -> set[str]:
    """Dotted names that a module imports; `from a import b` gives `a.b` where that is a module of ours, else `a`."""
    found: set[str] = set()
    for node in import_statements(tree, only_at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.module is not None, f"line {node.lineno}: relative import; expected an absolute one"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in sources() else node.module for name in names}
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("lasro", set[str]()),
        ("lasro_client", {"lasro"}),
        ("lasro_reward_api", {"lasro"}),
        ("lasro_rewards", {"lasro"}),
        ("lasro_surrogate_trainer", {"lasro"}),
    ],
)
def test_packages_import_only_what_is_below_them(package: str, allowed: set[str]) -> None:
    """Bug: the core's trainer imported the surrogate service's journal, its score source the client's HTTP class."""
    odd = {
        f"{module} imports {name}"
        for module, tree in sources().items()
        if top(module) == package
        for name in imported_names(tree)
        if top(name) in PACKAGES.keys() - {package} - allowed
    }
    assert odd == set()


def test_no_module_imports_itself_in_a_circle() -> None:
    """Guards against modules that can only be imported in one order, and cannot be read on their own."""
    modules = sources()
    graph = {name: imported_names(tree, only_at_import=True) & modules.keys() for name, tree in modules.items()}
    assert sum(map(len, graph.values())) > len(graph), "imports of our own modules were not recognised"
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


@pytest.mark.parametrize(
    "module", ["lasro.config", "lasro.wire", "lasro.errors", "lasro.reward_sdk", "lasro.functional.reward_totals"]
)
def test_contract_modules_import_no_torch(module: str) -> None:
    """Guards against a reward server or a `--help` that waits seconds for torch, or needs it installed."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def client_sub_packages() -> Graph:
    """Sub-packages of the client and those that they import, inside functions too."""
    graph: dict[str, set[str]] = {}
    for module, tree in sources().items():
        if module.startswith("lasro_client."):
            own = module.split(".")[1]
            imported = {name.split(".")[1] for name in imported_names(tree) if name.startswith("lasro_client.")}
            graph.setdefault(own, set()).update(imported - {own})
    return graph


def count_floors(graph: Graph) -> int:
    """Nodes on the longest path; raises CycleError for a graph with a circle."""
    floors: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        floors[node] = 1 + max((floors[below] for below in graph.get(node, ())), default=0)
    return max(floors.values())


def test_floors_by_hand() -> None:
    """Guards against counting edges, or the shortest path: a > b > c and a > c stand on three floors."""
    assert count_floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3
    with pytest.raises(CycleError):
        count_floors({"a": {"b"}, "b": {"a"}})


def test_the_client_has_the_sub_packages_of_the_layout() -> None:
    """Guards against a sub-package that nobody agreed on, and against the next tests looking at nothing."""
    layout = {"cli", "run", "services", "evaluation", "report", "audit", "doctor", "watch", "export", "analysis"}
    assert client_sub_packages().keys() == layout
    assert client_sub_packages().keys() == set().union(*CLIENT_FLOORS)


def test_imports_of_the_client_run_down() -> None:
    """Guards against a run that knows who watches it, and against circles, in which nothing can be changed alone."""
    graph = client_sub_packages()
    for height, packages in enumerate(CLIENT_FLOORS):
        below = set().union(*CLIENT_FLOORS[:height])
        for package in packages:
            assert graph[package] <= below, f"{package} imports {sorted(graph[package] - below)}"


def test_the_client_stands_on_few_floors() -> None:
    """Guards against a client in which nothing can be read without all the rest."""
    assert count_floors(client_sub_packages()) <= MAX_CLIENT_FLOORS


def test_a_run_knows_no_terminal_report_or_prometheus() -> None:
    """Guards against a training loop that cannot run without a terminal: it calls observers, `cli` composes them."""
    shown = ("lasro_client.watch", "lasro_client.report", "rich", "prometheus_client", "jinja2")
    odd = {
        f"{module} imports {name}"
        for module, tree in sources().items()
        if module.startswith("lasro_client.run")
        for name in imported_names(tree)
        if any(name == each or name.startswith(f"{each}.") for each in shown)
    }
    assert odd == set()
