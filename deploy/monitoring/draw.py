"""The main curves of a run as one SVG, from what Prometheus has stored.

python deploy/monitoring/draw.py http://127.0.0.1:9090 --minutes 20 > docs/monitoring.svg
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.parse
import urllib.request
from html import escape
from typing import NamedTuple

Point = tuple[float, float]
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 440, 190, 44, 30, 24
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#dc2626", "#475569")
POINTS = 120


class Panel(NamedTuple):
    """A title, what is asked of Prometheus, and the label that tells its curves apart."""

    title: str
    query: str
    label: str


PANELS = (
    Panel("True reward of the run, one round", "lasro_run_total", "stage"),
    Panel("Surrogate: held-out pairs ranked right", "lasro_surrogate_held_out_pair_accuracy", "run"),
    Panel("Surrogate: reward gap", "lasro_surrogate_reward_gap", "run"),
    Panel(
        "Reward calls, 95th percentile, s",
        "histogram_quantile(0.95, sum by (reward, le) (rate(lasro_reward_call_seconds_bucket[2m])))",
        "reward",
    ),
    Panel("Images to be scored, per second", "sum by (reward) (rate(lasro_reward_requests_total[2m]))", "reward"),
    Panel("Groups waiting and being scored", "max(lasro_queue_waiting_groups + lasro_queue_claimed_groups)", ""),
)


def curves(prometheus: str, panel: Panel, start_s: float, end_s: float) -> dict[str, list[Point]]:
    """By name: times in minutes since `start_s`, and values; not a number is left out."""
    step_s = max(1.0, (end_s - start_s) / POINTS)
    asked = {"query": panel.query, "start": start_s, "end": end_s, "step": step_s}
    with urllib.request.urlopen(
        f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(asked)}", timeout=30
    ) as reply:
        results = json.load(reply)["data"]["result"]
    return {
        one["metric"].get(panel.label, ""): [
            ((float(at) - start_s) / 60, float(value)) for at, value in one["values"] if value not in ("NaN", "+Inf")
        ]
        for one in results
    }


def drawn(panel: Panel, found: dict[str, list[Point]], minutes: float, x: int, y: int) -> str:
    """One panel at (x, y): a frame, the highest and lowest value, curves and their names."""
    values = [value for points in found.values() for _, value in points] or [0.0]
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    inner_w, inner_h = WIDTH - LEFT - 10, HEIGHT - TOP - BOTTOM
    parts = [f'<g transform="translate({x},{y})"><text x="{LEFT}" y="18" class="t">{escape(panel.title)}</text>']
    parts.append(f'<rect x="{LEFT}" y="{TOP}" width="{inner_w}" height="{inner_h}" class="f"/>')
    for value, at in ((high, TOP + 4), (low, TOP + inner_h)):
        parts.append(f'<text x="{LEFT - 4}" y="{at}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{LEFT + inner_w}" y="{HEIGHT - 8}" text-anchor="end">{minutes:g} min</text>')
    for index, (name, points) in enumerate(sorted(found.items())):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(
            f"{LEFT + inner_w * at / minutes:.0f},{TOP + inner_h * (high - value) / (high - low):.0f}"
            for at, value in points
        )
        parts.append(f'<polyline points="{path}" stroke="{colour}" fill="none" stroke-width="1.5"/>')
        if name:
            parts.append(
                f'<text x="{LEFT + 6 + 130 * index}" y="{HEIGHT - 8}" style="fill:{colour}">{escape(name)}</text>'
            )
    return "".join([*parts, "</g>"])


def main() -> None:
    parser = argparse.ArgumentParser(description="The main curves as SVG.")
    parser.add_argument("prometheus", help="URL")
    parser.add_argument("--minutes", type=float, default=20.0, help="until now")
    arguments = parser.parse_args()
    end_s = time.time()
    start_s = end_s - 60 * arguments.minutes
    style = "text{font:11px sans-serif;fill:#475569}.t{font-size:13px;fill:#111827}.f{fill:#f8fafc;stroke:#cbd5e1}"
    width, height = 2 * WIDTH, HEIGHT * ((len(PANELS) + 1) // 2)
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">')
    print(f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>')
    for index, panel in enumerate(PANELS):
        found = curves(arguments.prometheus.rstrip("/"), panel, start_s, end_s)
        print(drawn(panel, found, arguments.minutes, WIDTH * (index % 2), HEIGHT * (index // 2)))
    print("</svg>")


if __name__ == "__main__":
    main()
