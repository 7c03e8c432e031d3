"""Networks compiled by `torch.compile`, block by block where diffusers says which of their blocks repeat.

All blocks of a kind share their code, so one that is compiled serves the others: a network of seventy takes no longer
than one of seven. Of each kind there is one variant for each width, with an adapter and without, with a gradient and
without; one more once the batch changes, in which its size is free, and one for a batch of one. None is thrown away for
another: base and adapted network are modules of their own, so to go from one to the other compiles nothing.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from lasro.cache_folder import cache_folder
from lasro.errors import ModelError
from lasro.validation import one_line

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
MOST_VARIANTS = 64
"""Of a block's code; torch's own limit of 8, over which it computes uncompiled, is for one network of one use."""


def prepare_compiler(device: torch.device) -> None:
    """Have what is compiled kept in the cache folder, unless the environment says where; compile a line on `device`.

    Raises ModelError where there is no compiler.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # seconds, and half of all torch

    folder = cache_folder()
    if folder is not None and os.environ.get(CACHE_VARIABLE) in (None, default_cache_dir()):  # torch writes it in there
        os.environ[CACHE_VARIABLE] = str(folder.path / "compiled")
    try:
        torch.compile(_line)(torch.zeros(2, device=device))
    except RuntimeError as error:  # what all errors of dynamo and inductor are
        reason = one_line(str(error.__cause__ or error).splitlines()[0])
        raise ModelError(
            f"model.compile: {reason}; install a C++ compiler (g++), on a GPU triton too, or set it to false"
        ) from error


def compile_network(network: nn.Module) -> None:
    """Compile it in place, when first called; parameters keep their names, and copies of it are not compiled."""
    kinds = {kind for part in network.modules() for kind in getattr(part, "_repeated_blocks", None) or ()}
    blocks = [part for part in network.modules() if type(part).__name__ in kinds]
    for part in blocks or [network]:
        part.compile(recompile_limit=MOST_VARIANTS)


def _line(x: Tensor) -> Tensor:
    return x.sin() + 1
