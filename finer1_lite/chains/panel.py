"""A panel for looking through chains in JupyterLab: keep, drop, edit, undo, by mouse or key.

Everything that a model wrote is escaped before it becomes HTML. Each decision is on the
disk (`review.Review`) before the next chain is shown.
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path

import anywidget
import ipywidgets as w
import traitlets
from PIL import Image

from finer1_lite.chains import review
from finer1_lite.chains.checks import ChainProblem
from finer1_lite.chains.review import Review
from finer1_lite.data.chain_text import PARTS, Chain
from finer1_lite.data.images import small
from finer1_lite.species import Collection

COLOURS = dict(zip(PARTS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True))
KEYS = {"k": "keep", "d": "drop", "e": "edit", "u": "undo", "n": "next", "p": "previous"}
SIDE = 220  # pixels of the picture, on its longer side
HELP = """<small>click into the panel, then use the keys; while you edit, <b>keep</b> saves the
new text</small>"""


class Keys(anywidget.AnyWidget):
    """Listens for single keys anywhere in the panel, but not while a text is typed.

    The panel takes the focus and keeps JupyterLab's own shortcuts away ("d d" deletes a cell).
    """

    _esm = Path(__file__).with_name("panel.js")
    known = traitlets.List(traitlets.Unicode()).tag(sync=True)
    pressed = traitlets.List(["", 0]).tag(sync=True)  # key, count: the same key twice is news


class Panel(w.VBox):
    """One chain at a time; picture: photo -> image; nearby: species -> (name, photo) of others."""

    def __init__(
        self,
        state: Review,
        picture: Callable[[str], Image.Image],
        nearby: Callable[[str], Sequence[tuple[str, str]]],
    ) -> None:
        self.state, self.picture, self.nearby = state, picture, nearby
        self.editing = False
        self.filter = w.Dropdown(options=review.FILTERS, value="all", description="show")
        self.progress = w.IntProgress(min=0, max=max(len(state.records), 1))
        self.count, self.chain, self.problems = w.HTML(), w.HTML(), w.HTML()
        self.photo, self.neighbours = w.VBox(), w.HBox()
        self.editor = w.Textarea(layout=w.Layout(width="95%", height="220px", display="none"))
        self.buttons = {name: w.Button(description=f"{name} ({key})") for key, name in KEYS.items()}
        self.shortcuts = Keys(known=list(KEYS))
        head = w.HBox([self.filter, self.progress, self.count])
        pictures, buttons = w.HBox([self.photo, self.neighbours]), w.HBox([*self.buttons.values()])
        middle = [self.chain, self.problems, self.editor]
        super().__init__([head, pictures, *middle, buttons, w.HTML(HELP), self.shortcuts])
        self.add_class("finer1-review")
        for name, button in self.buttons.items():
            button.add_class(f"finer1-{name}")
            button.on_click(lambda _, name=name: self.act(name))
        self.shortcuts.observe(lambda change: self.act(KEYS[change["new"][0]]), "pressed")
        self.filter.observe(lambda _: self._refilter(), "value")
        self.show(next(iter(state.ids("undecided") or state.ids()), None))

    # --- what is done --------------------------------------------------------------------

    def act(self, name: str) -> None:
        """Do one of `KEYS`' actions on the chain that is shown."""
        if name == "undo":
            self.show(self.state.undo() or self.current)
        elif name in ("next", "previous"):
            self._step(1 if name == "next" else -1)
        elif self.current is None:
            return
        elif name == "edit":
            self.editing = True
            self.editor.value = self.state.current(self.current).chain
            self.editor.layout.display = ""
        elif name == "keep" and self.editing:
            if self.editor.value.strip():
                self.state.decide(self.current, "edit", self.editor.value)
            self.show(self.current)
        else:
            self.state.decide(self.current, name)
            self._step(1)

    def _step(self, by: int) -> None:
        """Show the next chain under the filter; the place is kept where there is none."""
        every, shown = list(self.state.records), set(self.state.ids(self.filter.value))
        here = every.index(self.current) if self.current in every else -1
        ahead = every[here + 1 :] if by > 0 else every[: max(here, 0)][::-1]
        self.show(next((id_ for id_ in ahead if id_ in shown), self.current))

    def _refilter(self) -> None:
        shown = self.state.ids(self.filter.value)
        self.show(self.current if self.current in shown else next(iter(shown), None))

    # --- what is shown -------------------------------------------------------------------

    def show(self, id_: str | None) -> None:
        """Show a chain with its picture and its look-alikes; None: nothing is under the filter."""
        self.current, self.editing = id_, False
        self.editor.layout.display = "none"
        counts = review.summary(self.state)
        self.progress.value = len(self.state.records) - counts["undecided"]
        if id_ is None:
            self.count.value = "<b>no chain under this filter</b>"
            self.photo.children = self.neighbours.children = ()
            self.chain.value = self.problems.value = ""
            return
        record, decision = self.state.current(id_), self.state.decisions.get(id_)
        numbers = ", ".join(f"{n} {name}" for name, n in counts.items())
        self.count.value = f"<span class='finer1-count'>{html.escape(numbers)}</span>"
        stands = decision.action if decision else "undecided"
        title = f"<b>{html.escape(record.species)}</b> {html.escape(id_)}: <i>{stands}</i>"
        self.photo.children = self._captioned(record.photo, SIDE, title)
        self.neighbours.children = tuple(
            w.VBox(self._captioned(photo, SIDE // 2, html.escape(name)))
            for name, photo in self.nearby(record.species)
        )
        self.chain.value = chain_html(record.chain)
        self.problems.value = problems_html(self.state.problems(id_))

    def _captioned(self, photo: str, side: int, caption: str) -> tuple[w.Image, w.HTML]:
        shown = {"align_self": "flex-start"}  # a wider caption must not stretch the picture
        return w.Image(value=small(self.picture(photo), side), layout=shown), w.HTML(caption)


def chain_html(text: str) -> str:
    """Write the four parts in their colours, then the answer; all of it escaped."""
    chain = Chain(text)
    if set(chain.parts) != set(PARTS):
        return f"<pre style='white-space:pre-wrap'>{html.escape(text)}</pre>"
    rows = [
        f"<div style='border-left:4px solid {COLOURS[part]};padding-left:8px;margin:4px'>"
        f"<b>{part}</b> {html.escape(said)}</div>"
        for part, said in chain.parts.items()
    ]
    answer = html.escape((chain.answer or "no answer").strip())
    return "".join(rows) + f"<div style='margin:4px'><b>answer</b> {answer}</div>"


def problems_html(problems: Sequence[ChainProblem]) -> str:
    """Write what is wrong with a chain as a list; all of it escaped."""
    if not problems:
        return "<span style='color:#009E73'>the checks find nothing</span>"
    rows = "".join(f"<li>{html.escape(str(problem))}</li>" for problem in problems)
    return f"<ul style='color:#D55E00'>{rows}</ul>"


def open_panel(folder: Path | str, collection: Collection, neighbours: int = 3) -> Panel:
    """Open the panel on a folder that `cot make` wrote; collection: what it was made from."""
    photos = {p.id: p for p in (*collection.train, *collection.test)}
    by_class: dict[str, str] = {}
    for photo in photos.values():
        by_class.setdefault(photo.species, photo.id)

    def nearby(species: str) -> list[tuple[str, str]]:
        near = collection.neighbours(species, by_class)[:neighbours]
        return [(name, by_class[name]) for name in near]

    return Panel(review.open_review(Path(folder)), lambda photo: photos[photo].image(), nearby)
