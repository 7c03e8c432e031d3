"""Gradient checkpointing of a network: blocks keep their inputs alone and are computed again on the way back."""

from __future__ import annotations

from typing import Any

from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(network: Any) -> None:
    """Have diffusers checkpoint the network's blocks, and those of each view that is made of it later."""
    network.enable_gradient_checkpointing(_checkpoint)


def _checkpoint(block: Any, *inputs: Any) -> Any:
    """torch's, which would set back the random state on the way back, for dropout, of which a frozen network has none:
    all threads share that state, and another one may draw a surrogate's first weights from it just then."""
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
