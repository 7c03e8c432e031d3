"""Where it is computed, in which precision, and what to do where memory runs out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from lasro.errors import DeviceMemoryError, ModelError
from lasro.validation import one_line

OUT_OF_MEMORY = (
    "you tried to allocate",  # the CPU's allocator
    "out of memory",  # of the CUDA driver, and of MPS
    "ALLOC_FAILED",  # of cuBLAS, cuDNN and cuSOLVER
)
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(wanted: str) -> torch.device:
    """The device of that name, for "auto" the best there is; raises ModelError for a GPU that torch does not see."""
    if wanted == "cuda" and not torch.cuda.is_available():
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise ModelError(f"device: got cuda, but torch {torch.__version__} ({build}) sees no GPU; check its driver")
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def move_pipeline(pipeline: Any, device: torch.device, left: Collection[str] = ()) -> None:
    """All parts of a pipeline of diffusers but those in `left`, whose place is kept."""
    kept = {name: getattr(pipeline, name) for name in left}
    pipeline.register_modules(**dict.fromkeys(kept))
    pipeline.to(device)
    pipeline.register_modules(**kept)


@lru_cache
def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is the hardware's own. Emulated, it is ten times slower than float32, not faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Mixed precision of that name; "none" leaves arithmetic as it is, "auto" is bfloat16 where that is native."""
    enabled = computes_in_bfloat16(device) if dtype == "auto" else dtype != "none"
    return torch.autocast(device.type, dtype=AUTOCAST.get(dtype, torch.bfloat16), enabled=enabled)


@contextmanager
def device_memory(task: str, advice: str) -> Iterator[None]:
    """Memory that is too small for what is done inside: raises DeviceMemoryError, with what to lower.

    Of a GPU or of the machine. Contexts may be nested: the inner one knows best what to lower.
    """
    try:
        yield
    except DeviceMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise DeviceMemoryError(f"{task}: {_reason(error)}; {advice}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether it says so: torch has a class of its own for CUDA's allocator alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _reason(error: BaseException) -> str:
    """The sentence that speaks of memory; others tell of torch's own settings and source files."""
    sentences = [sentence for sentence in str(error).split(". ") if re.search("memory|allocate|ALLOC", sentence)]
    return one_line(sentences[0]) if sentences else "out of memory"
