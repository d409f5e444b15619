"""The loss curve as an SVG, readable on light and dark pages; drawn here, for it is two lines and a few dots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

Point = tuple[float, float]
WIDTH, HEIGHT = 760, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 44, 44
MOST_POINTS = 800  # more than the picture has pixels for

# The paper is drawn, for many viewers know no background of an SVG and put it on their own.
STYLE = """
  svg { font: 12px system-ui, sans-serif; } .paper { fill: #ffffff; }
  text { fill: #444444; } .title { font-size: 14px; font-weight: 600; fill: #111111; }
  .grid { stroke: #dddddd; } .axis { stroke: #888888; }
  .raw { stroke: #6a92d4; } .smooth { stroke: #1f5fbf; } .held { stroke: #c2410c; } .dot { fill: #c2410c; }
  .best { fill: none; stroke: #c2410c; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; } text { fill: #b8c0cc; } .title { fill: #eef2f7; }
    .grid { stroke: #262c36; } .axis { stroke: #6b7480; }
    .raw { stroke: #4d76b8; } .smooth { stroke: #8fbdff; } .held { stroke: #ff9657; } .dot { fill: #ff9657; }
    .best { stroke: #ff9657; }
  }
"""


def curve(title: str, loss: Sequence[Point], smooth: Sequence[Point], held_out: Sequence[Point]) -> str:
    """The picture.

    Args:
        title: over it.
        loss: (step, nats per trained token) of each logged step.
        smooth: the same, smoothed.
        held_out: (step, nats per assistant token) of each measurement, that of step 0 first where there is one. The
            lowest of trained steps is ringed.

    Returns:
        SVG text; points that are no number are left out.
    """
    series = [[point for point in points if math.isfinite(point[1])] for points in (loss, smooth, held_out)]
    loss, smooth, held_out = series
    everything = [*loss, *held_out]
    if not everything:
        everything = [(0.0, 0.0), (1.0, 1.0)]
    across = _Scale(0.0, max(1.0, max(x for x, _ in everything)), LEFT, WIDTH - RIGHT)
    heights = [y for _, y in everything]
    up = _Scale(min(0.0, min(heights)), max(heights) * 1.05 or 1.0, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
    ]
    for value in up.ticks():
        y = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in across.ticks():
        parts.append(f'<text x="{across(value):.1f}" y="{HEIGHT - 24}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
    parts.append(f'<text x="{LEFT}" y="38">nats per token</text>')
    shown = [("raw", "loss", _thinned(loss)), ("smooth", "smoothed", _thinned(smooth)), ("held", "held out", held_out)]
    x = float(WIDTH - RIGHT)
    for name, label, _ in reversed([entry for entry in shown if entry[2]]):
        x -= 7.0 * len(label)
        parts.append(f'<text x="{x:.0f}" y="20">{label}</text>')
        parts.append(f'<line class="{name}" x1="{x - 22:.0f}" x2="{x - 6:.0f}" y1="16" y2="16" stroke-width="2"/>')
        x -= 38
    for name, _, points in shown:
        if points:
            path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
            width = 1 if name == "raw" else 2
            parts.append(f'<polyline class="{name}" fill="none" stroke-width="{width}" points="{path}"/>')
    for step, nats in held_out:
        parts.append(f'<circle class="dot" cx="{across(step):.1f}" cy="{up(nats):.1f}" r="3"/>')
    trained = [point for point in held_out if point[0] > 0]
    if trained:
        step, nats = min(trained, key=lambda point: point[1])
        parts.append(
            f'<circle class="best" cx="{across(step):.1f}" cy="{up(nats):.1f}" r="7" stroke-width="1.5">'
            f"<title>best: {nats:.4f} at step {step:g}</title></circle>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Scale:
    """From values to places in the picture."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 6) -> list[float]:
        """Round values (1, 2 or 5 times a power of ten apart) in the scale's range."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        distance = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / distance - 1e-9)
        last = math.floor(self.high / distance + 1e-9)
        return [round(i * distance, 12) for i in range(first, last + 1)]


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most `MOST_POINTS` of them, evenly, the last among them."""
    stride = -(-len(points) // MOST_POINTS) or 1
    return [*points[::stride], *([points[-1]] if points and (len(points) - 1) % stride else [])]
