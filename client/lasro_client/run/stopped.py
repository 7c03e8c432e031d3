"""stopped.json of a run folder: why a run ended before it was finished, for its report. Imports no torch.

The file is there from then on until the run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lasro.errors import LasroError, StorageError
from lasro.files import storage_errors, write_json
from lasro_client.run.observer import Observer

STOPPED_FILE = "stopped.json"
LONGEST_REASON = 2000
SIGNALS = {KeyboardInterrupt: "Ctrl-C", SystemExit: "SIGTERM"}


@contextmanager
def stop_recorded(folder: Path, is_main: bool, observer: Observer) -> Iterator[None]:
    """Keep the words of an error or signal that ends the run while inside, and have the observers show them."""
    path = folder / STOPPED_FILE
    if is_main:
        with storage_errors(path):
            path.unlink(missing_ok=True)
    try:
        yield
    except (LasroError, *SIGNALS) as stop:
        if is_main:
            with suppress(StorageError):  # a full disk may be why it ends, and then says so itself
                write_json(path, {"reason": _reason(stop)})
                observer.folder_updated()
        raise


def _reason(stop: BaseException) -> str:
    text = SIGNALS.get(type(stop)) or " ".join(str(stop).split())
    return text[:LONGEST_REASON]
