"""What `import lasro` gives, and what it does not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import lasro

MAX_IMPORT_S = 0.05
IMPORT = """
import sys, time
started = time.process_time()
import lasro
print(time.process_time() - started)
sys.exit(bool({"torch", "pydantic", "numpy", "PIL", "importlib.metadata"} & set(sys.modules)))
"""


def test_the_import_is_light() -> None:
    """Guards against importing torch to ask for the version. CPU time, the least of five: other work does not count."""
    seconds = [float(subprocess.check_output([sys.executable, "-c", IMPORT])) for _ in range(5)]
    assert min(seconds) < MAX_IMPORT_S


def test_the_lists_of_names_agree() -> None:
    """Guards against a name that a type checker knows and Python does not, or the other way round."""
    (guarded,) = (
        node
        for node in ast.parse(Path(lasro.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname or alias.name: (node.module, alias.name) for node in imports for alias in node.names}
    loaded = {}
    for name, place in lasro._DEFINED_IN.items():
        module, _, own_name = place.partition(":")
        loaded[name] = (module, own_name or name)
    assert seen == loaded
    assert {*loaded, "__version__"} == set(lasro.__all__)
    assert set(lasro.__all__) <= set(dir(lasro))


@pytest.mark.parametrize("name", lasro.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Bug: a documented loop that imported names which a rename had taken away."""
    assert getattr(lasro, name) is not None
    assert name in vars(lasro), "looked up a second time"


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    """Guards against `hasattr` and `from lasro import wire`, which rely on AttributeError, meeting another error."""
    with pytest.raises(AttributeError, match=r"no attribute 'Trainer'; expected one of GeneratorTrainer, "):
        _ = lasro.Trainer  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(lasro, "Trainer")


def test_the_version_is_that_of_the_package() -> None:
    """Guards against a version written down in two places."""
    assert lasro.__version__ == version("lasro")


def test_no_public_name_is_a_module_too() -> None:
    """Bug: `from lasro.x import x` binds the module to `lasro.x`, which then is no longer what `lasro.x` promises."""
    folder = Path(lasro.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert modules & set(lasro.__all__) == set()
