"""An estimate in words, as tables, pages and messages show it. Imports nothing."""

from __future__ import annotations

from collections.abc import Mapping


def estimate_text(
    estimate: Mapping[str, float | None] | None, mean_format: str = ".3g", error_format: str = ".2g"
) -> str | None:
    """`0.517 ± 0.026` of an estimate as JSON has it, the mean alone without an error; None where nothing was measured.

    Formats are those of `format()`, such as `+.3f`.
    """
    if estimate is None or (mean := estimate["mean"]) is None:
        return None
    error = estimate["sem"]
    return f"{mean:{mean_format}}" + ("" if error is None else f" ± {error:{error_format}}")
