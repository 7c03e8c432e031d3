"""A service as a thread of a process that does other work too, in place of a process of its own.

service = ServiceThread("surrogate_trainer", create_app(settings), settings, Path("surrogate_trainer.log"), LOGGERS)
service.start()
...  # requests to service.url
service.stop()
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from lasro.errors import UnreachableError
from lasro.service.child_process import last_log_line
from lasro.service.environment import ServiceEnvironment
from lasro.service.logs import logs_in_file
from lasro.service.serve import bind, server_config


class ServiceThread:
    """Serves an app on an event loop of its own. The process' signals, standard streams and collector stay as they are.

    What goes to `loggers` meanwhile is written to `log_path`, as a process of its own would write it.
    """

    def __init__(
        self, name: str, app: FastAPI, settings: ServiceEnvironment, log_path: Path, loggers: Sequence[str]
    ) -> None:
        """Binds the address of the settings; raises ConfigError where that cannot be."""
        self.name, self.log_path = name, log_path
        self._listener = bind(settings)
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        self._logs = logs_in_file(log_path, ("uvicorn", *loggers), settings.log_level, settings.log_format)
        self._server = uvicorn.Server(server_config(app, settings))
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def _serve(self) -> None:
        with self._logs, self._listener, suppress(SystemExit):  # where the app does not start, as its log says
            self._server.run(sockets=[self._listener])

    def start(self) -> None:
        """Begin to serve; callers wait in the socket's queue until the app has started."""
        self._thread.start()

    def check(self) -> None:
        """Raise UnreachableError where it has ended, with the last line of its log."""
        if not self._thread.is_alive():
            raise UnreachableError(f"{self.name}: ended: {last_log_line(self.log_path)}; see {self.log_path}")

    def stop(self) -> None:
        """Have the app end what it does, and wait for that: a thread cannot be killed as a process can."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
