"""A page on this machine: drop a photograph, see its name, how sure that is, why, look-alikes.

`Answers` writes the HTML, all escaped; `serve` shows it to this machine alone. An upload is deleted
once it is named, the folder at the end; gradio makes no link, no statistics, no record.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from finer1_lite import predict
from finer1_lite.chains.client import data_url
from finer1_lite.chains.panel import chain_html
from finer1_lite.data import images
from finer1_lite.data.images import PictureError
from finer1_lite.evals import predictions
from finer1_lite.predict import Namer
from finer1_lite.runtime.checkpoints import NotFinite
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Photo
from finer1_lite.students import run_cards

log = logging.getLogger("finer1_lite")
HOST = "127.0.0.1"  # no other machine reaches it
MEGABYTES = 20  # of one photograph, at most
WAITING = 8  # photographs that wait for the one that is being named
TOP = 3  # names shown, and look-alikes
EACH, THUMB = 2, 240  # pictures of a look-alike, and their longer side in pixels
SIDE = 420  # of the photograph, pixels
HERE = Path(__file__).parent
PAGE = jinja2.Template((HERE / "demo.html.jinja").read_text("utf-8"), autoescape=True)


@dataclass(frozen=True)
class Answers:
    """What the page says; pictures: class -> photographs of it; unknown: a confidence."""

    namer: Namer
    pictures: Mapping[str, Sequence[Photo]]
    unknown: float = 0.5

    def of(self, path: Path) -> str:
        """The HTML about one photograph, or why it cannot be used."""
        try:
            picture = read(path)
            said = self.namer([picture])[0]
        except (PictureError, NotFinite) as error:
            return PAGE.render(refused=error)
        return PAGE.render(
            said=said,
            known=said.confidence >= self.unknown,
            unknown=self.unknown,
            top=TOP,
            photograph=data_url(picture, SIDE),
            chain=Markup(chain_html(said.completion)),  # escaped there
            reliability=self.namer.reliability(),
            alike=[(name, share, self.shown(name)) for name, share in said.ranked[: TOP + 1]],
            percent=lambda share: f"{100 * share:.0f} %",
        )

    def shown(self, name: str) -> list[str]:
        """Small pictures of a class; fewer where files are gone since the page began."""
        found = []
        for photo in self.pictures.get(name, ())[:EACH]:
            try:
                found.append(data_url(photo.image(), THUMB))
            except PictureError as error:
                log.warning("%s", error)
        return found


def read(path: Path) -> Image.Image:
    """An uploaded photograph; PictureError, without the folder's name, for what cannot be used."""
    try:
        if path.stat().st_size > MEGABYTES * 2**20:
            raise PictureError(f"is too large; {MEGABYTES} MB are read at most")
        return images.decode(path)
    except (PictureError, OSError) as error:
        raise PictureError(f"{path.name} {str(error).removeprefix(f'{path}: ')}") from error


def gallery(namer: Namer, photos: Path | None = None) -> dict[str, list[Photo]]:
    """Class -> its photographs, those of the training first.

    photos: their folder, where it is not where the card says; DataError where it cannot be used.
    """
    try:
        found = run_cards.collection_of(namer.card, namer.folder, photos)
    except DataError as error:
        if photos:
            raise
        log.warning("no pictures of look-alikes, --photos DIR names their folder: %s", error)
        return {}
    every = [*found.train, *found.test]
    by_class = {name: [one for one in every if one.species == name] for name in namer.names}
    if without := [name for name, its in by_class.items() if not its]:
        log.warning("no picture of %d of %d classes: %s", len(without), len(by_class), without)
    return by_class


def require_gradio(folder: Path | str) -> Any:
    """Import gradio, told to keep to this machine and to `folder`; DataError where it is absent."""
    os.environ.update(GRADIO_TEMP_DIR=str(folder), GRADIO_ANALYTICS_ENABLED="False")
    try:
        import gradio
    except ImportError as error:
        raise DataError([f"{error}: pip install -r requirements-demo.txt"], "no page:") from None
    return gradio


def refusal(path: str, headers: Mapping[str, str], folder: Path) -> str:
    """Why a request is not served, "" where it is: of another site's page, or too many uploads."""
    host = headers.get("host", "")
    own = host.rpartition(":")[0] in (HOST, "localhost")  # no name that leads here by DNS
    if not own or headers.get("origin", f"http://{host}") != f"http://{host}":
        return "only the page itself may ask"
    large = int(headers.get("content-length", 2**40)) > (MEGABYTES + 1) * 2**20
    if path.endswith("/upload") and (large or len(list(folder.glob("*/*"))) > WAITING):
        return "too large, or too many photographs wait: try again with one"
    return ""


def build(gr: Any, answers: Answers, folder: Path) -> Any:
    """The page, gradio.Blocks; folder: where gradio puts uploads, each deleted once it is named."""

    def name(upload: str) -> tuple[None, str]:
        path = Path(upload).resolve()
        try:
            return None, answers.of(path)
        finally:
            if folder.resolve() in path.parent.parents:
                shutil.rmtree(path.parent, ignore_errors=True)

    title = f"Which {answers.namer.card.coarse} is it?"
    lead = f"{len(answers.namer.names)} kinds are known. Nothing leaves this machine or is kept."
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, 600)) as page:
        gr.HTML(f"<div class='f1'><h2>{escape(title)}</h2><p>{lead}</p></div>")
        drop = gr.File(label=f"a photograph, {MEGABYTES} MB at most", height=150, elem_id="drop")
        shown = gr.HTML(elem_id="answer")
        drop.upload(name, drop, [drop, shown], api_visibility="private", concurrency_limit=1)
    return page.queue(max_size=WAITING, api_open=False)


def launch(page: Any, folder: Path, port: int, **settings: Any) -> None:
    """Open the page to this machine alone, until it is stopped; folder: that of `build`."""
    from gradio.routes import HTTPException

    def user(request: Any) -> str:
        if why := refusal(request.url.path, request.headers, folder):
            raise HTTPException(403, why)
        return ""

    log.info("open http://%s:%d (Ctrl-C ends it)", HOST, port)
    off = ("share", "run_history", "enable_monitoring", "ssr_mode", "mcp_server", "pwa")
    settings |= dict.fromkeys(off, False) | {"quiet": True, "footer_links": []}
    settings |= {"server_name": HOST, "server_port": port, "max_file_size": MEGABYTES * 2**20}
    page.launch(css_paths=HERE / "demo.css", auth_dependency=user, **settings)


def serve(source: Path, port: int, photos: Path | None = None, unknown: float = 0.5) -> None:
    """Show the page until Ctrl-C; DataError without gradio or card, or for unusable photos."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes then, too
    with tempfile.TemporaryDirectory(prefix="finer1-demo-", ignore_cleanup_errors=True) as folder:
        gr = require_gradio(folder)
        namer = predict.load(source)
        predictions.calibrate(namer)
        answers = Answers(namer, gallery(namer, photos), unknown)
        launch(build(gr, answers, Path(folder)), Path(folder), port)
