"""Which versions a run was computed with, for its summary. Imports none of the packages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import lasro

PACKAGES = ("torch", "diffusers", "transformers", "peft")


def installed_versions() -> dict[str, str]:
    """Of LaSRO, Python, and the packages that compute; one that is not installed is left out."""
    found = {"lasro": lasro.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
