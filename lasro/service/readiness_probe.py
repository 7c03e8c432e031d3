"""`python -m lasro.service.readiness_probe`: exit status 0 where the service of this container is ready, else 1.

What a container engine asks every few seconds, so it imports nothing but the standard library.
"""

from __future__ import annotations

import http.client
import json
import os
import sys

TIMEOUT_S = 12.0
DEFAULT_PORT = 8000


def problem(port: int, timeout_s: float = TIMEOUT_S) -> str | None:
    """What the service at that port of this machine says is wrong with it, on one line; None where it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        return f"port {port} does not answer ({error or type(error).__name__})"
    finally:
        connection.close()
    return None if response.status == 200 else f"HTTP {response.status}: {_detail(body)}"


def _detail(body: bytes) -> str:
    """Of problem+json what it says, of anything else its beginning."""
    text = body.decode("utf-8", "replace")
    try:
        text = str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        text = text[:200]
    return " ".join(text.split())


def main() -> int:
    found = problem(int(os.environ.get("LASRO_PORT", DEFAULT_PORT)))
    if found is not None:
        print(found)
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main())
