"""One list of blocks, written as Markdown and as a self-contained HTML page.

Whatever a model or a user wrote (completions, names, settings) stands in `Code` and
`Sample` only: escaped in HTML, and in Markdown inside a fence longer than any run of
backticks in it. Headings, texts, tables and picture paths are the caller's own words.
"""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finer1_lite.prompts import SECTIONS

MAX_SHOWN = 4000  # characters of one completion on the page
_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_HEADINGS = [re.compile(re.escape(heading), re.IGNORECASE) for heading in SECTIONS]


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    path: str  # relative to the page
    alt: str


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Sample:
    """A picture with facts about its answer, and the answer as the model wrote it."""

    picture: Picture
    right: bool
    facts: Sequence[tuple[str, str]]
    completion: str


Block = Heading | Text | Table | Picture | Code | Sample


def visible(text: str, limit: int = MAX_SHOWN) -> str:
    """`text` with control characters and marks of writing direction as escapes, cut at `limit`.

    Line ends and tabs stay. What was cut off is counted.
    """
    kept = text[:limit].replace("\r\n", "\n")
    shown = "".join(
        f"\\u{ord(c):04x}"
        if c in _BIDI or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t")
        else c
        for c in kept
    )
    return shown if len(text) <= limit else f"{shown} … ({len(text) - limit} more characters)"


def chain_parts(completion: str) -> list[tuple[int | None, str]]:
    """The completion in pieces: (index of the section in `prompts.SECTIONS`, or None; text).

    A section runs from its heading to the next one found, or to ``</think>``. Headings are
    looked for in order; the pieces joined are the completion again.
    """
    end = completion.find("</think>")
    end = len(completion) if end < 0 else end
    starts, at = [], 0
    for index, heading in enumerate(_HEADINGS):
        found = heading.search(completion, at, end)
        if found:
            starts.append((index, found.start()))
            at = found.end()
    bounds = [(None, 0), *starts, (None, end), (None, len(completion))]
    if not starts:
        bounds = [(None, 0), (None, len(completion))]
    pieces = [(i, completion[a:b]) for (i, a), (_, b) in zip(bounds, bounds[1:])]
    return [piece for piece in pieces if piece[1]]


def fence(text: str) -> str:
    """A Markdown code block that `text` cannot end."""
    shown = visible(text)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    mark = "`" * max(3, longest + 1)
    return f"{mark}text\n{shown}\n{mark}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
        for line in lines
    )


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page in Markdown; pictures as relative links."""
    return "\n\n".join([f"# {title}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Text(text):
            return text
        case Code(text):
            return fence(text)
        case Picture(path, alt):
            return f"![{alt}]({path})"
        case Table(head, rows):
            lines = [head, ["---"] * len(head), *rows]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Sample(picture, _, facts, completion):
            lines = [f"{key}: {visible(value, 300)}" for key, value in facts]
            text = "\n".join([*lines, "", visible(completion)])
            return f"{_markdown(picture)}\n\n{fence(text)}"


def html_page(title: str, blocks: Sequence[Block], images: Mapping[str, bytes]) -> str:
    """The page in HTML, without any other file. images: path of a `Picture` -> its PNG."""
    body = "\n".join(_html(block, images) for block in blocks)
    return _PAGE.format(title=_escape(title), style=_STYLE, body=body)


def _escape(text: str) -> str:
    return html.escape(visible(text), quote=True)


def _html(block: Block, images: Mapping[str, bytes]) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_escape(text)}</h2>"
        case Text(text):
            return f"<p>{_escape(text)}</p>"
        case Code(text):
            return f"<pre>{_escape(text)}</pre>"
        case Picture(path, alt):
            data = base64.b64encode(images[path]).decode()
            return f'<img class="figure" alt="{_escape(alt)}" src="data:image/png;base64,{data}">'
        case Table(head, rows):
            cells = "".join(f"<th>{_escape(cell)}</th>" for cell in head)
            lines = ["".join(f"<td>{_escape(cell)}</td>" for cell in row) for row in rows]
            lines = "".join(f"<tr>{line}</tr>" for line in lines)
            return f'<div class="wide"><table><tr>{cells}</tr>{lines}</table></div>'
        case Sample():
            return _html_sample(block, images)


def _html_sample(sample: Sample, images: Mapping[str, bytes]) -> str:
    facts = "".join(
        f"<dt>{_escape(key)}</dt><dd>{html.escape(visible(value, 300))}</dd>"
        for key, value in sample.facts
    )
    chain = "".join(
        html.escape(text) if index is None else f'<span class="p{index}">{html.escape(text)}</span>'
        for index, text in chain_parts(visible(sample.completion))
    )
    kind = "right" if sample.right else "wrong"
    picture = _html(sample.picture, images).replace('class="figure"', 'class="photo"', 1)
    return (
        f'<article class="{kind}">{picture}<div><dl>{facts}</dl>'
        f'<pre class="chain">{chain}</pre></div></article>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --line: #d0d7de;
  --pale: #f6f8fa; --good: #0072b2; --bad: #d55e00; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e3e6ea; --line: #3a4048; --pale: #1f2329;
    --good: #56b4e9; --bad: #e69f00; } }
body { max-width: 900px; margin: 2rem auto; padding: 0 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .7rem; text-align: left; }
pre { background: var(--pale); padding: .8rem; border-radius: 6px; font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 28rem; overflow-y: auto; }
.figure { max-width: 100%; background: #fff; border-radius: 6px; }
article { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; padding-left: .8rem;
  border-left: 4px solid var(--bad); }
article.right { border-color: var(--good); }
article > div { flex: 1 1 24rem; min-width: 0; }
.photo { width: 180px; height: 180px; object-fit: contain; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: 0;
  font-size: .9rem; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
.chain { margin-bottom: 0; }
.p0, .p1, .p2, .p3 { border-radius: 3px; }
.p0 { background: rgba(86, 180, 233, .28); } .p1 { background: rgba(230, 159, 0, .28); }
.p2 { background: rgba(204, 121, 167, .28); } .p3 { background: rgba(0, 158, 115, .28); }
"""
