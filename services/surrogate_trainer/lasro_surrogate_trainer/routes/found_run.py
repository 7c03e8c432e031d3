"""What routes are given of a request: the runs, or the one that the path names."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request

from lasro import wire
from lasro_surrogate_trainer.run_actor import RunActor
from lasro_surrogate_trainer.run_registry import RunRegistry

RunName = Annotated[str, Path(pattern=wire.NAME_PATTERN, description="name of a run")]


def _registry(request: Request) -> RunRegistry:
    return request.app.state.runs


def _find(request: Request, run: RunName) -> RunActor:
    return _registry(request).get(run)


Registry = Annotated[RunRegistry, Depends(_registry)]
Found = Annotated[RunActor, Depends(_find)]
