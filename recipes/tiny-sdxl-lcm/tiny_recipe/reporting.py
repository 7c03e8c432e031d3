"""What a stage says while it runs, when it stops, and the pictures it leaves."""

from __future__ import annotations

import io
import platform
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from lasro.files import write_atomically
from lasro_client.run.stop_signal import StopRequest
from lasro_client.watch.terminal import clock
from tiny_recipe.config import StageSettings
from tiny_recipe.work_dir import StageProgress

INTERVAL_S = 15.0


class Stop(StopRequest):
    """Whether to stop: a signal, or a time limit."""

    def __init__(self, after_minutes: float | None = None) -> None:
        super().__init__()
        self._deadline = None if after_minutes is None else time.monotonic() + after_minutes * 60

    def wanted(self) -> bool:
        return self.asked or (self._deadline is not None and time.monotonic() >= self._deadline)


class ProgressLines:
    """A line now and then: steps, steps a second, images a second, figures, time left."""

    def __init__(self, console: Console, title: str, settings: StageSettings, progress: StageProgress) -> None:
        self.console, self.title, self.settings = console, title, settings
        self._printed, self._last = time.monotonic(), progress

    def update(self, progress: StageProgress, done_share: float) -> None:
        now = time.monotonic()
        if done_share < 1 and now - self._printed < INTERVAL_S:
            return
        spent_s = progress.trained_s - self._last.trained_s
        rate = (progress.steps - self._last.steps) / spent_s if spent_s > 0 else 0.0
        figures = "  ".join(f"{name} {value:.4f}" for name, value in progress.figures.items())
        left = clock(self._left_s(progress, rate))
        self.console.print(
            f"{self.title} {done_share:.0%}  step {progress.steps}  {rate:.1f} steps/s  "
            f"{rate * self.settings.batch_size:.0f} items/s  {figures}  about {left} left",
            highlight=False,
            soft_wrap=True,
        )
        self._printed, self._last = now, progress

    def _left_s(self, progress: StageProgress, rate: float) -> float:
        """Until the time is up, or until the steps are done at the present rate, whichever comes first."""
        by_time = max(0.0, self.settings.minutes * 60 - progress.trained_s)
        if self.settings.steps is None or rate == 0:
            return by_time
        return min(by_time, (self.settings.steps - progress.steps) / rate)


def device_name(device: torch.device) -> str:
    """Of the hardware, as a table would name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}"


def pixels(images_B3HW: Tensor) -> NDArray[np.uint8]:
    """Images in [-1, 1] to uint8 [B, H, W, 3]."""
    unit = (images_B3HW.float().clamp(-1, 1) + 1) * 127.5
    return unit.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def row_above_row(above_BHW3: NDArray[np.uint8], below_BHW3: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Both sets as one, for a grid of that many columns: a row of the one, the same row of the other, and so on."""
    starts = range(0, len(above_BHW3) - len(above_BHW3) % columns, columns)
    pairs = [each[start : start + columns] for start in starts for each in (above_BHW3, below_BHW3)]
    return np.concatenate(pairs or [above_BHW3, below_BHW3])


def save_grid(path: Path, images_BHW3: NDArray[np.uint8], columns: int) -> None:
    """One WebP of all images, in rows of `columns`; the last row is filled up with white."""
    count, height, width, _ = images_BHW3.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, image in enumerate(images_BHW3):
        y, x = index // columns * height, index % columns * width
        sheet[y : y + height, x : x + width] = image
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", quality=90)
    write_atomically(path, buffer.getvalue())
