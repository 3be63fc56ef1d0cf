"""Pictures as SVG within the page: bars, put together from what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from contextwindow.web.markup import Child, Safe, render, tag

WIDTH: Final = 960
HEIGHT: Final = 260
_LEFT: Final = 64
_BOTTOM: Final = 28
_TOP: Final = 14
_STEPS: Final = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        parts: class and height of each piece, from below.
        told: what the bar says when it is pointed at.
        label: what stands under it, or ``""``.
        href: where it leads.
    """

    parts: Sequence[tuple[str, float]]
    told: str
    label: str = ""
    href: str | None = None

    @property
    def height(self) -> float:
        """Of all its parts."""
        return sum(size for _, size in self.parts)


@dataclass(frozen=True, slots=True)
class Line:
    """Something marked in front of a bar.

    Attributes:
        at: the number of the bar.
    """

    at: int
    told: str


def bars(
    title: str,
    shown: Sequence[Bar],
    *,
    limit: float | None = None,
    lines: Sequence[Line] = (),
    unit: str = "",
) -> Safe:
    """A picture of bars.

    Args:
        title: what it shows, for who does not see it; the figures stand in a table beside it.
        limit: where a line across is drawn.
        unit: in front of the figures of the scale, such as ``"$"``.
    """
    tallest = max((one.height for one in shown), default=0)
    # A limit far above everything would leave no bar to be seen.
    near = limit is not None and limit <= 8 * tallest
    top = _rounded(max(tallest, limit if near and limit else 0) or 1)
    inner = HEIGHT - _TOP - _BOTTOM
    room = (WIDTH - _LEFT - 8) / max(len(shown), 1)
    wide = min(room * 0.8, 48)

    def y(value: float) -> float:
        return round(_TOP + inner * (1 - value / top), 2)

    out: list[Child] = [tag("title", title)]
    for step in range(5):
        value = top * step / 4
        out.append(_across(y(value), "grid"))
        out.append(_text(_LEFT - 8, y(value) + 4, unit + _figure(value), "end"))
    for number, bar in enumerate(shown):
        x = _LEFT + room * number + (room - wide) / 2
        out.append(_bar(bar, x, wide, y))
        if bar.label:
            out.append(_text(x + wide / 2, HEIGHT - 8, bar.label, "middle"))
    for line in lines:
        x = round(_LEFT + room * line.at, 2)
        mark = tag(
            "path", tag("title", line.told), d=f"M{x} {_TOP}V{HEIGHT - _BOTTOM}", class_="cut"
        )
        out.append(mark)
    if limit is not None and near:
        out.append(_across(y(limit), "limit"))
        out.append(_text(WIDTH - 8, y(limit) - 5, f"the model takes {limit:,.0f}", "end"))
    return tag(
        "div",
        tag("svg", *out, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title),
        class_="chart",
    )


def legend(*entries: tuple[str, str]) -> Safe:
    """What the colours mean: classes and names."""
    shown = (tag("li", tag("span", class_=f"swatch {kind}"), name) for kind, name in entries)
    return tag("ul", *shown, class_="legend")


def _bar(bar: Bar, x: float, wide: float, y: object) -> Safe:
    assert callable(y)  # noqa: S101 - a function of the picture
    pieces: list[Child] = [tag("title", bar.told)]
    below = 0.0
    for kind, size in bar.parts:
        if size <= 0:
            continue
        top, bottom = y(below + size), y(below)
        pieces.append(
            tag(
                "rect",
                x=f"{x:.2f}",
                y=f"{top:.2f}",
                width=f"{wide:.2f}",
                height=f"{max(bottom - top, 0.5):.2f}",
                class_=kind,
            )
        )
        below += size
    made = tag("g", *pieces)
    return tag("a", made, href=bar.href, aria_label=bar.told) if bar.href else made


def _across(y: float, kind: str) -> Safe:
    return tag("path", d=f"M{_LEFT} {y}H{WIDTH - 8}", class_=kind)


def _text(x: float, y: float, text: str, anchor: str) -> Safe:
    return render(tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor))


def _rounded(value: float) -> float:
    """The next number above *value* of which quarters are easy to read."""
    size = 1e-9
    while True:
        for step in _STEPS:
            if step * size * 4 >= value:
                return step * size * 4
        size *= 10


def _figure(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.6g}"
