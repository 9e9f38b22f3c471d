"""Boxes and arrows as SVG, for the course's diagrams (diagrams.json and the pipeline)."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

LINE = 17  # pixels from one line of text to the next
PAD = 9  # above and below the text of a box
INK, LIT, PALE, RED = "#333333", "#0072B2", "#ffffff", "#D55E00"
STYLE = f"""path{{fill:none;stroke:{INK};stroke-width:1.3;marker-end:url(#a)}}
marker path{{fill:{INK};stroke:none;marker-end:none}} .back{{stroke:{RED};stroke-dasharray:5 3}}
text{{font:13px sans-serif;fill:{INK};text-anchor:middle}} .note{{font-size:12px}}
rect{{stroke:#555555;rx:6}}"""
HEAD = (
    '<defs><marker id="a" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0L6 3L0 6z"/></marker></defs>'
)


def svg(
    words: str,
    boxes: Mapping[str, Mapping[str, Any]],
    arrows: Sequence[str] = (),
    notes: Sequence[Sequence[Any]] = (),
) -> str:
    """The drawing as a file's text; its title is `words`.

    boxes: name -> {"at": [left edge, middle from above], "wide": pixels, "text": lines, "lit"}.
    arrows: "a b", with ": label" behind it, and "~" before it for a dashed one (a gradient).
    An arrow leaves a box at the side on which the other one lies. notes: [x, y, text], centred
    at x.
    """
    places = {name: _place(box) for name, box in boxes.items()}
    parts = [_box(places[name], box) for name, box in boxes.items()]
    parts += [_arrow(arrow, places) for arrow in arrows]
    parts += [_text(x, y, text, "note") for x, y, text in notes]
    right = max([x + w for x, _, w, _ in places.values()]) + 6
    low = max([y + h for _, y, _, h in places.values()] + [y for _, y, _ in notes]) + 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:g} {low:g}" width="{right:g}" '
        f'role="img"><title>{escape(words)}</title><style>{STYLE}</style>{HEAD}'
        f'<rect width="{right:g}" height="{low:g}" fill="#ffffff" style="stroke:none"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _place(box: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """(x, y, width, height) of a box."""
    (x, middle), high = box["at"], 2 * PAD + LINE * (box["text"].count("\n") + 1)
    return x, middle - high / 2, box["wide"], high


def _box(place: tuple[float, float, float, float], box: Mapping[str, Any]) -> str:
    x, y, wide, high = place
    fill, ink = (LIT, PALE) if box.get("lit") else (PALE, INK)
    shape = f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" fill="{fill}"/>'
    lines = box["text"].split("\n")
    rows = (y + PAD + LINE * (at + 0.78) for at in range(len(lines)))
    said = (_text(x + wide / 2, row, t, ink=ink) for row, t in zip(rows, lines, strict=True))
    return shape + "".join(said)


def _text(x: float, y: float, text: str, kind: str = "", ink: str = INK) -> str:
    own = f' class="{kind}"' if kind else ""
    own += f' style="fill:{ink}"' if ink != INK else ""
    return f'<text x="{x:g}" y="{y:g}"{own}>{escape(text)}</text>'


def _arrow(arrow: str, places: Mapping[str, tuple[float, float, float, float]]) -> str:
    """A line of at most three straight pieces, with its label above the middle."""
    names, _, label = arrow.partition(": ")
    kind = ' class="back"' if names.startswith("~") else ""
    (ax, ay, aw, ah), (bx, by, bw, bh) = (places[name] for name in names.lstrip("~").split())
    across = bx >= ax + aw or ax >= bx + bw
    if across:
        x1, x2 = (ax + aw, bx) if bx > ax else (ax, bx + bw)
        y1, y2 = ay + ah / 2, by + bh / 2
        middle = (x1 + x2) / 2
        line = f"M{x1:g} {y1:g}H{middle:g}V{y2:g}H{x2:g}"
        at = middle, min(y1, y2) - 5
    else:
        y1, y2 = (ay + ah, by) if by > ay else (ay, by + bh)
        x1 = x2 = (max(ax, bx) + min(ax + aw, bx + bw)) / 2
        line, at = f"M{x1:g} {y1:g}V{y2:g}", (x1 + 4 * len(label), (y1 + y2) / 2 + 4)
    return f'<path d="{line}"{kind}/>' + (_text(*at, label, "note") if label else "")
