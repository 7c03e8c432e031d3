"""Whether a model trains on a card: what `lasro doctor` computes, and what one step of each kind then takes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch

from benchmarks.gpu.figures import GB, Figure, Recorder
from benchmarks.gpu.sizes import Sizes, run_settings
from benchmarks.random_weights import write_model
from lasro.errors import ModelError
from lasro_client.doctor.needs import compute_needs
from lasro_client.doctor.trial import Seen, try_steps

PROCESSES = ("client", "trainer")
POLL_S = 0.05


def memory(sizes: Sizes, folder: Path, recorder: Recorder, number: int) -> None:
    """Of the recipes' settings, for client and trainer together on one card; of `sizes.trained[number]`."""
    trained = sizes.trained[number]
    name = f"{trained.architecture} trains on {trained.card_gb} GB"
    path = write_model(trained.architecture, folder / trained.architecture, sizes.dtype)
    model = {"path": str(path), "guidance": trained.guidance}
    config = run_settings(sizes, folder, model, **trained.recipe)
    with Card() as card:
        steps = [each for process in PROCESSES for each in try_steps(config, process)]
    most = [max(each.peak for each in steps if each.process == process) for process in PROCESSES]
    note = "; ".join(_described(each) for each in steps)
    recorder.add(Figure(f"{name}: tensors", "GB", [sum(most) / GB], at_most=trained.card_gb, note=note))
    if card.most is not None:
        note = "with allocator and context, the larger of both processes"
        recorder.add(Figure(f"{name}: card in use", "GB", [card.most / GB], note=note))
    try:  # last: on shapes a large network takes a minute
        needs = compute_needs(config).needs
    except ModelError as error:
        recorder.note(f"{name}: {error}")
        return
    most = [max(need.total for need in needs if need.process == process) for process in PROCESSES]
    recorder.add(Figure(f"{name}: computed", "GB", [sum(most) / GB], at_most=trained.card_gb))


def _described(seen: Seen) -> str:
    return f"{seen.step} {seen.peak / GB:.1f} GB in {seen.seconds:.2f} s"


class Card:
    """Context manager that watches how much of the GPU all processes hold; `most` is None where there is none."""

    def __init__(self) -> None:
        self.most: int | None = None
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Card:
        if torch.cuda.is_available():
            torch.cuda.init()
            self._before, self.most = self._held(), 0
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._watcher.ident is not None:
            self._watcher.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self.most = max(self.most or 0, self._held() - self._before)
            time.sleep(POLL_S)

    def _held(self) -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free
