"""A panel for looking through chains in JupyterLab: keep, drop, edit, undo, by mouse or key.

Everything that a model wrote is escaped before it becomes HTML. Each decision is on the
disk (`review.Review`) before the next chain is shown.
"""

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import anywidget
import ipywidgets as w
import traitlets
from PIL import Image

from finer1_lite.chains import checks, review
from finer1_lite.chains.make import open_review
from finer1_lite.chains.review import Review
from finer1_lite.species import Collection

COLOURS = {
    "analysis": "#0072B2",
    "candidates": "#D55E00",
    "comparison": "#009E73",
    "prediction": "#CC79A7",
}
KEYS = {"k": "keep", "d": "drop", "e": "edit", "u": "undo", "n": "next", "p": "previous"}
SIDE = 220  # pixels of the picture, on its longer side
Pictures = Callable[[str], Image.Image]


class Keys(anywidget.AnyWidget):
    """Listens for single keys anywhere in the panel, but not while a text is typed.

    The panel takes the focus and keeps JupyterLab's own shortcuts away ("d d" deletes a cell).
    """

    _esm = """
    export function render({ model, el }) {
      let panel = null;
      const heard = (event) => {
        if (/^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName)) return;
        if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
        if (!model.get("known").includes(event.key)) return;
        event.preventDefault();
        event.stopPropagation();
        model.set("pressed", [event.key, model.get("pressed")[1] + 1]);
        model.save_changes();
        panel.focus();
      };
      const attach = () => {  // a child is drawn before it hangs in its panel
        panel = el.closest(".finer1-review");
        if (!panel) { timer = setTimeout(attach, 50); return; }
        panel.tabIndex = 0;
        panel.setAttribute("data-lm-suppress-shortcuts", "true");
        panel.addEventListener("keydown", heard);
      };
      let timer = setTimeout(attach, 0);
      return () => {
        clearTimeout(timer);
        panel?.removeEventListener("keydown", heard);
      };
    }
    """
    known = traitlets.List(traitlets.Unicode()).tag(sync=True)
    pressed = traitlets.List(["", 0]).tag(sync=True)  # key, count: the same key twice is news


class Panel(w.VBox):
    """One chain at a time. `picture(photo)` and `nearby(species)` supply what is shown."""

    def __init__(
        self, state: Review, picture: Pictures, nearby: Callable[[str], Sequence[tuple[str, str]]]
    ):
        self.state, self.picture, self.nearby = state, picture, nearby
        self.editing = False
        self._make_parts()
        super().__init__(
            [
                w.HBox([self.filter, self.progress, self.count]),
                w.HBox([self.photo, self.neighbours]),
                self.chain,
                self.findings,
                self.editor,
                w.HBox(list(self.buttons.values())),
                self.help,
                self.shortcuts,
            ]
        )
        self.add_class("finer1-review")
        first = next(iter(self.state.ids("undecided") or self.state.ids()), None)
        self.show(first)

    def _make_parts(self) -> None:
        self.filter = w.Dropdown(options=review.FILTERS, value="all", description="show")
        self.progress = w.IntProgress(min=0, max=max(len(self.state.records), 1))
        self.count, self.findings, self.help = w.HTML(), w.HTML(), w.HTML()
        self.photo, self.neighbours, self.chain = w.VBox(), w.HBox(), w.HTML()
        self.editor = w.Textarea(layout=w.Layout(width="95%", height="220px", display="none"))
        self.buttons = {name: w.Button(description=f"{name} ({key})") for key, name in KEYS.items()}
        self.shortcuts = Keys(known=list(KEYS))
        for name, button in self.buttons.items():
            button.add_class(f"finer1-{name}")
            button.on_click(lambda _, name=name: self.act(name))
        self.shortcuts.observe(lambda change: self.act(KEYS[change["new"][0]]), "pressed")
        self.filter.observe(lambda _: self._refilter(), "value")
        self.help.value = (
            "<small>click into the panel, then use the keys; while you edit, "
            "<b>keep</b> saves the new text</small>"
        )

    # --- what is done --------------------------------------------------------------------

    def act(self, name: str) -> None:
        """One of `KEYS`' actions on the chain that is shown."""
        if name == "undo":
            undone = self.state.undo()
            self.show(undone or self.current)
        elif name in ("next", "previous"):
            self._step(1 if name == "next" else -1)
        elif self.current is None:
            return
        elif name == "edit":
            self._edit()
        elif name == "keep" and self.editing:
            self._save_edit()
        else:
            self.state.decide(self.current, name)
            self._step(1)

    def _edit(self) -> None:
        self.editing = True
        self.editor.value = self.state.current(self.current).chain
        self.editor.layout.display = ""

    def _save_edit(self) -> None:
        if self.editor.value.strip():
            self.state.decide(self.current, "edit", self.editor.value)
        self.show(self.current)

    def _step(self, by: int) -> None:
        """The next chain under the filter; the place is kept where this one no longer fits."""
        every, shown = list(self.state.records), set(self.state.ids(self.filter.value))
        here = every.index(self.current) if self.current in every else -1
        ahead = every[here + 1 :] if by > 0 else every[: max(here, 0)][::-1]
        following = next((i for i in ahead if i in shown), None)
        self.show(following if following is not None else self.current)

    def _refilter(self) -> None:
        shown = self.state.ids(self.filter.value)
        self.show(self.current if self.current in shown else next(iter(shown), None))

    # --- what is shown -------------------------------------------------------------------

    def show(self, id_: str | None) -> None:
        self.current, self.editing = id_, False
        self.editor.layout.display = "none"
        counts = review.summary(self.state)
        self.progress.value = len(self.state.records) - counts["undecided"]
        if id_ is None:
            self.count.value = "<b>no chain under this filter</b>"
            self.photo.children = self.neighbours.children = ()
            self.chain.value = self.findings.value = ""
            return
        record, decision = self.state.current(id_), self.state.decisions.get(id_)
        told = ", ".join(f"{n} {name}" for name, n in counts.items())
        self.count.value = f"<span class='finer1-count'>{html.escape(told)}</span>"
        stands = decision.action if decision else "undecided"
        title = f"<b>{html.escape(record.species)}</b> {html.escape(id_)}: <i>{stands}</i>"
        self.photo.children = (self._image(record.photo, SIDE), w.HTML(title))
        self.neighbours.children = tuple(
            w.VBox([self._image(photo, SIDE // 2), w.HTML(html.escape(name))])
            for name, photo in self.nearby(record.species)
        )
        self.chain.value = chain_html(record.chain)
        self.findings.value = findings_html(self.state.findings(id_))

    def _image(self, photo: str, side: int) -> w.Image:
        picture = self.picture(photo).copy()
        picture.thumbnail((side, side))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return w.Image(value=stream.getvalue(), width=picture.width)


def chain_html(text: str) -> str:
    """The four parts in their colours, then the answer; all of it escaped."""
    parsed = checks.Chain(text, "")
    if set(parsed.parts) != set(checks.PARTS):
        return f"<pre style='white-space:pre-wrap'>{html.escape(text)}</pre>"
    rows = [
        f"<div style='border-left:4px solid {COLOURS[part]};padding-left:8px;margin:4px'>"
        f"<b>{part}</b> {html.escape(said)}</div>"
        for part, said in parsed.parts.items()
    ]
    answer = html.escape((parsed.answer or "no answer").strip())
    return "".join(rows) + f"<div style='margin:4px'><b>answer</b> {answer}</div>"


def findings_html(findings: Sequence[checks.Finding]) -> str:
    if not findings:
        return "<span style='color:#009E73'>the checks find nothing</span>"
    rows = "".join(f"<li>{html.escape(str(f))}</li>" for f in findings)
    return f"<ul style='color:#D55E00'>{rows}</ul>"


def open_panel(folder: Path | str, collection: Collection, neighbours: int = 3) -> Panel:
    """The panel on a folder that `cot make` wrote, with the collection it was made from."""
    photos = {p.id: p for p in (*collection.train, *collection.test)}
    by_class: dict[str, str] = {}
    for photo in photos.values():
        by_class.setdefault(photo.species, photo.id)

    def nearby(species: str) -> list[tuple[str, str]]:
        near = collection.neighbours(species, by_class)[:neighbours]
        return [(name, by_class[name]) for name in near]

    return Panel(open_review(Path(folder)), lambda photo: photos[photo].image(), nearby)
