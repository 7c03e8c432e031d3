"""How much memory and disk there is here."""

from __future__ import annotations

from pathlib import Path

import torch

GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
GROUP_USES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def free_memory(device: torch.device) -> int | None:
    """Bytes that a new process could take: of a GPU, or of the machine or container; None where nothing says so."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [each for each in (_of_machine(), _of_container()) if each is not None]
    return min(found) if found else None


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), None)


def _of_container() -> int | None:
    for limit, use in zip(GROUP_LIMITS, GROUP_USES, strict=True):
        try:
            return int(Path(limit).read_text(encoding="ascii")) - int(Path(use).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None
