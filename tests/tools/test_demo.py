"""The page that names a photograph: what it says, what it refuses, and a click through it."""

import logging
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
from browser import needs_chromium, new_page, screenshot
from paths import ROOT
from photo_folders import four_classes
from PIL import Image

from finer1_lite.__main__ import main
from finer1_lite.chains.panel import COLOURS
from finer1_lite.predict import Prediction
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Photo
from finer1_lite.students import card as cards
from finer1_lite.students.card import Card, CardClass
from finer1_lite.tools import demo

ADAPTER = ROOT / "assets/adapters-world0/tapo"
HOSTILE = "<img src=x onerror=\"document.title='broken'\">'${document.title='broken'}{{this}}"
CHAIN = (
    "<think>\nanalysis: {mark}\ncandidates: {first}, heron\ncomparison: {first}: fits; heron: has "
    "a grey back\nprediction: {first}\n</think>\n<answer>{first}</answer>"
)


def card_of(*names: str, **told) -> Card:
    classes = [CardClass(name=name, seen=True) for name in names]
    told = {"coarse": "bird", "max_new_tokens": 96, "pixels": 7056} | told
    return Card(base="base", stage="TAPO", classes=classes, **told)


class FakeNamer:
    """Names every picture the same; the first name has 0.7, the others share what is left."""

    def __init__(self, *names: str, **changed):
        self.names, self.changed = names, changed
        self.card, self.folder = card_of(*names), ROOT

    def reliability(self) -> str:
        return "Take them as an order."

    def __call__(self, pictures):
        rest = 0.3 / (len(self.names) - 1)
        ranked = [(name, rest if i else 0.7) for i, name in enumerate(self.names)]
        said = CHAIN.format(first=self.names[0], mark=HOSTILE)
        told = {"completion": said, "answer": self.names[0], "agrees": True, "share": None}
        return [Prediction(*ranked[0], ranked, **told | self.changed) for _ in pictures]


def answers(*names: str, unknown: float = 0.5, **changed) -> demo.Answers:
    """A page on these classes; the first two have pictures, each of its own colour."""
    drawn = {
        name: [Photo(f"{name}{n}", name, lambda c=c, n=n: plain((c, 90 * n, 0))) for n in range(3)]
        for name, c in zip(names[:2], (40, 200), strict=True)
    }
    return demo.Answers(FakeNamer(*names, **changed), drawn, unknown)


def plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (64, 48), colour)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "mine.png"
    plain((1, 2, 3)).save(path)
    return path


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page))


# --- what the page says ------------------------------------------------------------------------


def test_names_confidence_chain_and_agreement(photo):
    page = answers("wren", "heron", "gull", "tern", "auk").of(photo)
    said = text_of(page)
    assert "<h2>wren</h2>" in page and "Take them as an order." in said
    assert "wren 70 % heron 8 % gull 8 % Take" in said
    assert len(re.findall('class="bar"', page)) == demo.TOP == 3
    for part, colour in COLOURS.items():
        assert f"4px solid {colour}" in page and f"<b>{part}</b>" in page
    assert "Chain and answer agree." in said and "No name reaches" not in said


@pytest.mark.parametrize(
    ("agrees", "words"), [(False, "do not agree: take the name with care"), (None, "no chain")]
)
def test_a_chain_that_does_not_lead_to_its_answer(photo, agrees, words):
    assert words in answers("wren", "heron", agrees=agrees).of(photo)
    assert ("by the comparison" in answers("wren", "heron", agrees=agrees).of(photo)) == (
        agrees is False
    )


def test_an_answer_that_is_not_the_likeliest_name_is_told(photo):
    said = text_of(answers("wren", "heron", answer="heron").of(photo))
    assert "written is heron; the likeliest of all names is wren" in said
    assert "likeliest of all" not in answers("wren", "heron").of(photo)


def test_a_completion_that_was_cut_before_its_answer_is_told(photo):
    said = text_of(answers("wren", "heron", answer=None, agrees=False).of(photo))
    assert "No answer was written" in said and "do not agree" not in said


def test_under_the_threshold_it_is_unknown(photo):
    page = answers("wren", "heron", unknown=0.8).of(photo)
    assert "<h2>unknown</h2>" in page and "No name reaches 80 %" in page
    assert "wren" in text_of(page)
    at_it = answers("wren", "heron", unknown=0.7).of(photo)  # the threshold itself is reached
    assert "<h2>wren</h2>" in at_it and "<h2>unknown</h2>" not in at_it


def test_look_alikes_are_the_next_names_with_two_pictures_each(photo):
    page = answers("wren", "heron", "gull", "tern", "auk")
    figures = re.findall("<figure>.*?</figure>", page.of(photo), re.DOTALL)
    assert [text_of(f).split(",")[0].split()[-1] for f in figures] == "wren heron gull tern".split()
    sources = [re.findall('src="([^"]+)"', figure) for figure in figures]
    for name, found in zip(("wren", "heron"), sources, strict=False):
        pictures = [p.image() for p in page.pictures[name][:2]]
        assert found == [demo.data_url(picture, demo.THUMB) for picture in pictures]
    assert sources[2:] == [[], []] and "no picture" in figures[2]


def test_whatever_a_model_or_a_folder_is_called_is_escaped(photo):
    page = answers(HOSTILE, "heron").of(photo)
    assert "<img src=x" not in page and page.count("&lt;img src=x") >= 6
    assert all(
        tag.startswith(('<img alt="', "<img src=")) for tag in re.findall("<img[^>]*>", page)
    )
    free = answers("wren", "heron", completion=f"{HOSTILE} without any form").of(photo)
    assert "<img src=x" not in free and "without any form" in free


# --- what it refuses ---------------------------------------------------------------------------


def test_a_file_that_is_no_usable_photograph_is_refused(tmp_path):
    page = answers("wren", "heron")
    (tmp_path / "<i>.jpg").write_bytes(b"hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    plain((1, 2, 3)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    reasons = {"<i>.jpg": "is no picture", "empty.jpg": "is empty", "cut.png": "broken"}
    for name, reason in reasons.items():
        refused = page.of(tmp_path / name)
        assert reason in refused and str(tmp_path) not in refused and "<h2>" not in refused
        assert "<i>" not in refused


def test_a_file_that_is_too_large_is_not_even_opened(tmp_path, monkeypatch):
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(demo.MEGABYTES * 2**20 + 1)
    monkeypatch.setattr(demo.images, "decode", lambda path: pytest.fail("decoded"))
    assert "20 MB are read at most" in answers("wren", "heron").of(tmp_path / "large.jpg")


OWN = {"host": "127.0.0.1:7860", "content-length": "5000"}


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"origin": "http://127.0.0.1:7860"},
        {"host": "localhost:9000", "origin": "http://localhost:9000"},  # through a tunnel
    ],
)
def test_the_page_itself_is_served(tmp_path, told):
    assert demo.refusal("/gradio_api/upload", OWN | told, tmp_path) == ""
    assert demo.refusal("/gradio_api/queue/join", OWN | told, tmp_path) == ""


@pytest.mark.parametrize(
    "told",
    [
        {"host": "evil.example:7860"},  # a name that leads to this machine
        {"host": "evil.example:7860", "origin": "http://evil.example:7860"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:8000"},  # another program of this machine
        {"origin": "null"},
    ],
)
@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/config"])
def test_another_sites_page_is_served_nothing(tmp_path, told, path):
    assert "only the page itself" in demo.refusal(path, OWN | told, tmp_path)


def test_uploads_are_limited_in_size_and_number(tmp_path):
    def refused(**told) -> bool:
        return "try again" in demo.refusal("/gradio_api/upload", OWN | told, tmp_path)

    assert refused(**{"content-length": str(2 * demo.MEGABYTES * 2**20)})
    assert "try again" in demo.refusal("/upload", {"host": OWN["host"]}, tmp_path)  # no length
    for n in range(demo.WAITING + 1):
        assert not refused()
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "bird.jpg").write_bytes(b"x")
    assert refused()
    assert demo.refusal("/gradio_api/queue/join", OWN, tmp_path) == ""


@pytest.fixture
def without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")


def test_without_gradio_one_line_says_what_to_install(without_gradio, caplog):
    assert main(["demo", str(ADAPTER)]) == 2
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert "pip install -r requirements-demo.txt" in said
    assert "gradio==" in (ROOT / "requirements-demo.txt").read_text("utf-8")


def test_options_that_make_no_sense_are_all_named(caplog):
    assert main(["demo", "x", "--port", "70000", "--unknown", "2"]) == 2
    assert "--port 70000" in caplog.text and "--unknown 2" in caplog.text


def test_a_port_that_is_in_use_is_refused_before_anything_is_loaded(caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["demo", "x", "--port", str(port)]) == 2
    assert f"--port {port}: is in use" in caplog.text


# --- pictures of the classes -------------------------------------------------------------------


def test_paper_birds_are_drawn_those_of_the_training_first(world):
    namer = SimpleNamespace(card=cards.read_card(ADAPTER), folder=ADAPTER, names=world.names)
    found = demo.gallery(namer)
    assert set(found) == set(world.names) and min(map(len, found.values())) >= demo.EACH
    trained = set(namer.card.trained_on)
    for name in world.seen:
        assert {photo.id for photo in found[name][: demo.EACH]} <= trained


def test_photographs_come_from_the_cards_folder_or_the_one_that_is_named(tmp_path, caplog):
    root = four_classes(tmp_path / "birds")
    folder = tmp_path / "run"
    folder.mkdir()
    names = ["black-kite", "red-kite", "barn-owl", "tawny-owl"]
    card = card_of(*names, photos="../birds", shots=2)
    namer = SimpleNamespace(card=card, folder=folder, names=names)
    found = demo.gallery(namer)
    assert all(photo.id.startswith("black-kite/") for photo in found["black-kite"])
    assert {len(photos) for photos in found.values()} == {6}
    root.rename(tmp_path / "moved")
    assert demo.gallery(namer) == {} and "--photos DIR" in caplog.text
    again = demo.gallery(namer, tmp_path / "moved")
    assert [p.id for p in again["red-kite"]] == [p.id for p in found["red-kite"]]
    with pytest.raises(DataError):
        demo.gallery(namer, tmp_path / "nowhere")
    namer.names = [*names, "eagle"]
    demo.gallery(namer, tmp_path / "moved")
    assert "no picture of 1 of 5 classes: ['eagle']" in caplog.text


# --- a click through it ------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url).read()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url}: nobody answers")


def drop(page, url: str, path) -> None:
    """Give the page a photograph, and wait for what it says."""
    page.goto(url)
    page.locator("#drop input[type=file]").wait_for(state="attached")
    page.set_input_files("#drop input[type=file]", str(path))
    page.locator("#answer .f1").wait_for()


@pytest.fixture
def adapter(tmp_path):
    """The shipped adapter elsewhere, as if it had been calibrated."""
    folder = tmp_path / "tapo"
    shutil.copytree(ADAPTER, folder)
    cell = {"confidence": 0.85, "accuracy": 0.86, "ece": 0.07}
    fit = {"temperature": 1.0, "agreement": 0.0, "n": 200, "source": "fresh paper birds"}
    card = cards.moved(cards.read_card(ADAPTER), ADAPTER, folder)
    fit["measured"] = {"combined": cell}
    cards.write_card(folder, card.model_copy(update={"calibration": {"0": fit}}))
    return folder


@pytest.mark.slow
@needs_chromium
def test_a_photograph_is_dropped_and_named_and_nothing_is_kept(adapter, birds, tmp_path):
    pytest.importorskip("gradio", reason="pip install -r requirements-demo.txt")
    picture, temporary = tmp_path / "bird.png", tmp_path / "temporary"
    birds.test[5].image().save(picture)
    temporary.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "finer1_lite", "demo", str(adapter), "--port", str(port)]
    server = subprocess.Popen(
        ["env", f"TMPDIR={temporary}", *command], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    asked, url = [], f"http://127.0.0.1:{port}/"
    try:
        wait_for(url)
        with new_page(viewport={"width": 1100, "height": 900}) as page:
            page.on("request", lambda request: asked.append(request.url))
            drop(page, url, picture)
            page.wait_for_timeout(1000)
            screenshot(page, "demo", tmp_path)
            said = page.locator("#answer").inner_text()
            title = page.locator("#answer h2").inner_text()
            stored = page.evaluate("async () => (await indexedDB.databases()).length")
            elsewhere = socket.gethostbyname(socket.gethostname())
            with socket.socket() as other:
                reached = other.connect_ex((elsewhere, port)) == 0
        held = [path for path in temporary.rglob("*") if path.is_file() and path.stat().st_size]
    finally:
        server.terminate()
        server.wait(60)
    named = re.findall(r"([a-z]+ [a-z]+)\s+(\d+) %", said)
    assert named[0][0] == title == birds.test[5].species
    assert "prediction" in said and "Chain and answer" in said and "200 held-out" in said
    assert {u.split("/")[2] for u in asked if not u.startswith(("data:", "blob:"))} == {
        f"127.0.0.1:{port}"
    }
    assert not reached or elsewhere.startswith("127.")
    assert held == [] and stored == 0
    assert not list(temporary.glob("finer1-demo-*"))


@pytest.mark.slow
@needs_chromium
def test_hostile_names_stay_text_and_bad_files_are_refused(tmp_path, photo, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    pytest.importorskip("gradio", reason="pip install -r requirements-demo.txt")
    folder = tmp_path / "uploads"
    folder.mkdir()
    page_ = demo.build(demo.require_gradio(folder), answers(HOSTILE, "heron"), folder)
    port = free_port()
    demo.launch(page_, folder, port, prevent_thread_lock=True)
    url = f"http://127.0.0.1:{port}/"
    (tmp_path / "text.jpg").write_bytes(b"hello")
    (tmp_path / "large.jpg").write_bytes(bytes(demo.MEGABYTES * 2**20 + 1))
    try:
        with new_page() as page:
            drop(page, url, photo)
            assert page.locator("#answer h2").inner_text() == HOSTILE
            assert page.title() == "Which bird is it?"
            drop(page, url, tmp_path / "text.jpg")
            assert "is no picture" in page.locator("#answer").inner_text()
            page.goto(url)
            page.set_input_files("#drop input[type=file]", str(tmp_path / "large.jpg"))
            page.get_by_text("exceed").first.wait_for()
            assert page.locator("#answer .f1").count() == 0
        elsewhere = urllib.request.Request(f"{url}config", headers={"Host": f"evil.example:{port}"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(elsewhere)
        assert [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size] == []
    finally:
        page_.close()
