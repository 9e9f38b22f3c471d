"""Data sets of a hub as folders: drawn from shards, made again after a kill, nothing mixed up.

No hub is reached: the sources are parquet files, `save_to_disk` and folders of pictures.
"""

import hashlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import httpx
import huggingface_hub
import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from finer1_lite.__main__ import main
from finer1_lite.data import hub, hubsets
from finer1_lite.data.hub import Draw, Wanted, fetch, open_streams, rank
from finer1_lite.runtime.files import DataError
from finer1_lite.species import load_folder

BIRDS = (
    "001.Black_footed_Albatross",
    "017.Cardinal",
    "004.Groove_billed_Ani",
    "047.American_Goldfinch",
)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def table(rows, names=BIRDS, **features) -> datasets.Dataset:
    """rows of (picture bytes, class number)."""
    features = datasets.Features(
        features or {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    )
    cells = [{"bytes": data, "path": None} for data, _ in rows]
    return datasets.Dataset.from_dict(
        dict(zip(features, (cells, [label for _, label in rows]), strict=True)), features=features
    )


def shards(folder: Path, split: str, rows, n: int = 3, **kwargs) -> Path:
    """`n` parquet files of one split, each of several row groups."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for i in range(n):
        part = rows[i * len(rows) // n : (i + 1) * len(rows) // n]
        path = folder / "data" / f"{split}-{i:05d}-of-{n:05d}.parquet"
        table(part, **kwargs).to_parquet(path, batch_size=4)
    return folder


def birds(folder: Path, train: int = 40, test: int = 20, **kwargs) -> Path:
    """Four classes in turn; pictures 0.. for training, 1000.. for the test."""
    shards(folder, "train", [(png(i), i % 4) for i in range(train)], **kwargs)
    return shards(folder, "test", [(png(1000 + i), i % 4) for i in range(test)], **kwargs)


def wanted(source: Path | str, **settings) -> Wanted:
    return Wanted(str(source), **settings)


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def problems_of(job: Wanted, out: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        fetch(job, out, **options)
    assert not out.exists()
    return str(caught.value)


# The draw ----------------------------------------------------------------------------------


def test_the_draw_is_the_smallest_ranks_in_any_order(tmp_path):
    pile = [png(i) for i in range(12)]
    digests = [hashlib.sha256(data).hexdigest()[:32] for data in pile]
    for seed, order in itertools.product((0, 1), range(3)):
        folder = tmp_path / f"{seed}{order}"
        drawn = Draw(folder, {"test": 5}, seed)
        offered = pile + pile[:6]  # copies change nothing
        random.Random(order).shuffle(offered)
        for data in offered:
            drawn.offer("test", "a", data)
        kept = {path.stem.removeprefix("test-") for path in folder.glob("a/*")}
        assert kept == set(sorted(digests, key=lambda d: rank(seed, d))[:5])
    assert tree(tmp_path / "00") == tree(tmp_path / "01") != tree(tmp_path / "10")


def test_every_picture_is_as_likely():
    """Each of 10 pictures is among the first 3 in 30 % of 2000 seeds (5 sigma: 5.1 points)."""
    counts = np.zeros(10)
    for seed in range(2000):
        counts[sorted(range(10), key=lambda i: rank(seed, str(i)))[:3]] += 1
    assert np.abs(counts / 2000 - 0.3).max() < 0.051


# Sources -----------------------------------------------------------------------------------


def test_parquet_shards_become_a_folder_that_loads(tmp_path):
    """Names as released, seen and unseen as released, splits as the hub has them."""
    out = tmp_path / "cub"
    source = birds(tmp_path / "hub")
    record = fetch(wanted("cub", origin=str(source), train=5), out, allow_missing=True)
    # 4 of 200 classes are there; the unseen ones need no training pictures
    assert record["classes"] == {"seen": 2, "unseen": 2}
    assert record["pictures"] == {"train": 10, "test": 20}
    assert len(record["left_out"]) == 196
    birds_loaded = load_folder(out, shots=4, coarse="bird")
    assert birds_loaded.seen_names == ["American Goldfinch", "Black Footed Albatross"]
    assert birds_loaded.unseen_names == ["Cardinal", "Groove Billed Ani"]
    assert len(birds_loaded.train) == 8 and len(birds_loaded.test) == 20
    given = {hashlib.sha256(png(1000 + i)).hexdigest()[:32] for i in range(20)}
    assert {Path(p.id).stem.removeprefix("test-") for p in birds_loaded.test} == given
    assert birds_loaded.test[0].image().size == (12, 9)


def test_bytes_stay_as_they_came_from_every_kind_of_source(tmp_path):
    rows = [(png(i), i % 2) for i in range(8)]
    names = ("a b", "c/d")
    shards(tmp_path / "parquet", "train", rows, names=names)
    table(rows, names).save_to_disk(tmp_path / "disk")
    for at, (data, label) in enumerate(rows):
        path = tmp_path / "pictures" / ("a b", "c-d")[label] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    trees = []
    for kind in ("parquet", "disk", "pictures"):
        fetch(wanted(tmp_path / kind), tmp_path / f"out-{kind}")
        found = tree(tmp_path / f"out-{kind}")
        trees.append({name: digest for name, digest in found.items() if name.endswith(".png")})
    assert trees[0] == trees[1] == trees[2]
    assert set(trees[0].values()) == {hashlib.sha256(data).hexdigest() for data, _ in rows}
    # a folder cannot be called c/d, but the class can
    assert load_folder(tmp_path / "out-parquet", shots=2).names == ["a b", "c/d"]


def test_the_draw_knows_no_order_of_shards(tmp_path):
    rows = [(png(i), i % 4) for i in range(48)]
    shards(tmp_path / "x", "train", rows, n=2)
    shards(tmp_path / "y", "train", rows[::-1], n=5)
    for name in "xy":
        fetch(wanted(tmp_path / name, train=3, test=2), tmp_path / f"out-{name}")
    x, y = (tree(tmp_path / f"out-{name}") for name in "xy")
    x.pop("fetch.json"), y.pop("fetch.json")
    assert x == y and sum(name.endswith(".png") for name in x) == 20


def test_a_number_of_classes_keeps_the_proportion_of_seen_ones(tmp_path):
    names = [name for name in hubsets.released_classes("bird")]
    job = wanted("cub", classes=20)
    chosen, _ = hub.choose_classes(job, tuple(names))
    assert sum(one.seen for one in chosen.values()) == 12 and len(chosen) == 20
    other, _ = hub.choose_classes(wanted("cub", classes=20, seed=1), tuple(names))
    assert chosen.keys() != other.keys()
    small = fetch(wanted(birds(tmp_path / "hub"), classes=2, train=4), tmp_path / "two")
    assert small["classes"] == {"seen or unseen by the seed": 2}
    assert len(load_folder(tmp_path / "two", shots=4).names) == 2


# Kills -------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a kill is to the code: nothing of it runs on."""


@pytest.mark.parametrize("row", [1, 3, 11, 17, 30])
def test_killed_at_any_row_it_ends_with_the_same_bytes(tmp_path, monkeypatch, row):
    """In the test split, in the training split, before and after a broken picture."""
    source = birds(tmp_path / "hub", 24, 12)
    odd = [(b"no picture", 1), (png(2), 1), (png(1001), 3), *((png(i), 0) for i in (40, 41))]
    shards(source, "train", odd + [(png(i), i % 4) for i in range(24)])
    job = wanted(source, train=3, test=2)
    fetch(job, tmp_path / "whole")
    rows = itertools.count(1)
    offer = Draw.offer

    def killed(*args):
        if next(rows) == row:
            raise Killed
        return offer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Draw, "offer", killed)
        with pytest.raises(Killed):
            fetch(job, tmp_path / "cut")
    assert not (tmp_path / "cut").exists() and (tmp_path / "cut.partial").exists()
    (tmp_path / "cut.partial" / "Cardinal").mkdir(exist_ok=True)
    (tmp_path / "cut.partial" / "Cardinal" / "test-0.png").write_bytes(b"half a pic")
    fetch(job, tmp_path / "cut")
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")
    record = json.loads((tmp_path / "cut" / "fetch.json").read_bytes())
    assert len(record["broken"]) == 1 and "is no picture" in record["broken"][0]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", ["classes.csv", "index.csv", "fetch.json"])
def test_killed_while_a_table_is_written(tmp_path, monkeypatch, name):
    """A half-written table is never taken for done, also by other settings."""
    source = birds(tmp_path / "hub", 24, 12)
    fetch(wanted(source, train=3), tmp_path / "whole")

    def killed(*_):
        (tmp_path / "cut.partial" / name).write_text("half of a li")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(hub.os, "rename", killed)
        with pytest.raises(Killed):
            fetch(wanted(source, train=2), tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    fetch(wanted(source, train=3), tmp_path / "cut")
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_a_folder_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("precious")
    job = wanted(birds(tmp_path / "hub"))
    assert "out.partial is in the way" in problems_of(job, tmp_path / "out")
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "precious"


@pytest.mark.slow
def test_kill_9_in_the_middle(tmp_path):
    """A real kill: the folder is not there, and the same command makes it."""
    source = birds(tmp_path / "hub", 400, 200)
    slow = (
        "import sys, time; from finer1_lite.data.hub import Draw\n"
        "from finer1_lite.__main__ import main; offer = Draw.offer\n"
        "def slowly(*a):\n time.sleep(0.01)\n return offer(*a)\n"
        "Draw.offer = slowly; sys.exit(main(sys.argv[1:]))"
    )
    command = ["fetch", str(source), "--train", "4", "--test", "3", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command, str(tmp_path / "out")],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob("out.partial/*/train-*")):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    job = wanted(source, train=4, test=3)
    record = fetch(job, tmp_path / "out")
    assert record["rows_read"] == {"test": 200, "train": 400}
    fetch(job, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_connection_that_breaks_is_one_sentence_and_the_command_may_be_given_again(
    tmp_path, monkeypatch
):
    job = wanted(birds(tmp_path / "hub"), train=3, test=2)
    calls, read = itertools.count(1), hub.picture_bytes

    def fragile(cell):
        if next(calls) == 25:
            raise httpx.ReadError("reset by peer")
        return read(cell)

    monkeypatch.setattr(hub, "picture_bytes", fragile)
    with pytest.raises(OSError, match="train: reset by peer; give the same command again"):
        fetch(job, tmp_path / "out")
    fetch(job, tmp_path / "out")
    fetch(job, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_complete_folder_needs_no_source(tmp_path):
    source = birds(tmp_path / "hub")
    record = fetch(wanted(source), tmp_path / "out")
    source.rename(tmp_path / "gone")
    assert fetch(wanted(source), tmp_path / "out") == record
    with pytest.raises(DataError, match="give another --out"):
        fetch(wanted(source, seed=1), tmp_path / "out")


# What is wrong, all of it ------------------------------------------------------------------


def test_copies_between_splits_and_labels(tmp_path):
    """A training picture that is in the test too stays there; one with two labels goes."""
    source = tmp_path / "hub"
    copies = [(png(1000), 0), (png(1003), 1)]
    shards(source, "train", [(png(i), i % 4) for i in range(24)] + copies)
    shards(source, "test", [(png(1000 + i), i % 4) for i in range(12)] + [(png(1005), 2)])
    record = fetch(wanted(source, train=0), tmp_path / "out")
    assert record["copies_of_test_pictures"] == [
        "train, row 25: the same picture is in the test, as Black footed Albatross",
        "train, row 26: the same picture is in the test, as American Goldfinch",
    ]
    assert len(record["two_labels"]) == 1 and len(record["two_labels"][0]) == 2
    assert record["pictures"] == {"train": 24, "test": 11}
    load_folder(tmp_path / "out")  # which itself refuses any copy between train and test


def test_labels_that_match_no_released_class_are_all_told(tmp_path):
    names = ("001.Black_footed_Albatross", "Cardinal", "999.Dodo", "Phoenix")
    job = wanted("cub", origin=str(birds(tmp_path / "hub", names=names)))
    told = problems_of(job, tmp_path / "o")
    assert "'999.Dodo' is no released class" in told and "'Phoenix'" in told
    assert "the released class Blue Jay has no label" in told and "--allow-missing" in told
    assert told.count("has no label") == 198
    record = fetch(
        wanted("cub", origin=str(tmp_path / "hub"), test=3), tmp_path / "o", allow_missing=True
    )
    assert record["classes"] == {"seen": 1, "unseen": 1} and len(record["left_out"]) == 200


def test_two_labels_of_one_released_class(tmp_path):
    names = ("001.Black_footed_Albatross", "Black Footed Albatross", "Cardinal", "Bobolink")
    job = wanted("cub", origin=str(birds(tmp_path / "hub", names=names)))
    assert "Black Footed Albatross (001.Black_footed_Albatross and Black" in problems_of(
        job, tmp_path / "o"
    )
    record = fetch(job, tmp_path / "o", allow_missing=True)
    assert record["classes"] == {"unseen": 1, "seen": 1}


def test_classes_without_pictures(tmp_path):
    source = tmp_path / "hub"
    shards(source, "train", [(png(i), i % 3) for i in range(12)])
    shards(source, "test", [(png(1000 + i), i % 2) for i in range(12)])
    told = problems_of(wanted(source), tmp_path / "out")
    assert "American Goldfinch: 0 pictures (train), 1 needed, 0 pictures (test)" in told
    assert "Groove billed Ani: 0 pictures (test)" in told and "Cardinal" not in told
    record = fetch(wanted(source), tmp_path / "out", allow_missing=True)
    assert record["classes"] == {"seen or unseen by the seed": 2} and len(record["left_out"]) == 2
    assert sorted(load_folder(tmp_path / "out").names) == ["Black footed Albatross", "Cardinal"]


def test_an_empty_split_and_hidden_labels(tmp_path):
    source = tmp_path / "hub"
    shards(source, "train", [(png(i), i % 4) for i in range(12)])
    shards(source, "test", [], n=1)
    assert "the split test is empty" in problems_of(wanted(source), tmp_path / "out")
    hidden = shards(tmp_path / "hidden", "train", [(png(i), -1) for i in range(6)])
    told = problems_of(wanted(hidden), tmp_path / "out2")
    assert told.count("0 pictures (all), 2 needed") == 4


@pytest.mark.parametrize(
    "features, words",
    [
        (
            {"image": datasets.Image(), "label": datasets.Value("int64")},
            ["no columns of class labels", "label (Value)", "--label-column"],
        ),
        (
            {"image": datasets.Image(), "label": datasets.Image()},
            ["2 columns of pictures", "no columns of class labels", "--image-column"],
        ),
    ],
)
def test_columns_that_do_not_fit(tmp_path, features, words):
    rows = [(png(i), {"bytes": png(i), "path": None}) for i in range(4)]
    if not isinstance(features["label"], datasets.Image):
        rows = [(data, 1) for data, _ in rows]
    (tmp_path / "hub").mkdir()
    table(rows, **features).to_parquet(tmp_path / "hub" / "train.parquet")
    told = problems_of(wanted(tmp_path / "hub"), tmp_path / "out")
    assert all(word in told for word in words), told


def test_labels_in_words_are_labels(tmp_path):
    """What most hub sets have; also Hugging Face's metadata.csv beside pictures."""
    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    features["breed"] = datasets.Value("string")
    names = ("pug", "great dane", "beagle")
    for split, number in (("train", 12), ("test", 6)):  # no beagle is in the test
        cells = [{"bytes": png(i + 50 * number), "path": None} for i in range(number)]
        breeds = [names[i % (3 if split == "train" else 2)] for i in range(number)]
        rows = {"image": cells, "text": ["a dog"] * number, "breed": breeds}
        made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        (tmp_path / "hub").mkdir(exist_ok=True)
        made.to_parquet(tmp_path / "hub" / f"{split}.parquet")
    job = wanted(tmp_path / "hub")
    record = fetch(job, tmp_path / "out", allow_missing=True)
    assert record["pictures"] == {"train": 8, "test": 6}
    assert load_folder(tmp_path / "out").names == ["great dane", "pug"]
    assert "columns of pictures called 'x'" in problems_of(
        wanted(tmp_path / "hub", image_column="x"), tmp_path / "none"
    )
    for i in range(8):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{i}.png").write_bytes(png(i))
    lines = [f"{i}.png,{names[i % 2]}" for i in range(8)]
    (tmp_path / "files" / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    assert fetch(wanted(tmp_path / "files"), tmp_path / "own")["pictures"] == {"all": 8}
    assert load_folder(tmp_path / "own", shots=2).names == ["great dane", "pug"]


def test_labels_that_are_numbers_are_taken_where_they_are_asked_for(tmp_path):
    kinds = {"image": datasets.Image(), "label": datasets.Value("int64")}
    (tmp_path / "hub").mkdir()
    rows = [(png(i), i % 2) for i in range(8)]
    table(rows, **kinds).to_parquet(tmp_path / "hub" / "train.parquet")
    fetch(wanted(tmp_path / "hub", label_column="label"), tmp_path / "out")
    assert load_folder(tmp_path / "out", shots=2).names == ["0", "1"]


def test_a_folder_that_datasets_reads_in_part_or_not_at_all(tmp_path, caplog):
    for i in range(8):
        (tmp_path / "x" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / "ab"[i % 2] / f"{i}{'.png' * (i > 0)}").write_bytes(png(i))
    fetch(wanted(tmp_path / "x"), tmp_path / "out")
    assert "1 pictures have endings that `datasets` does not read (first: 0)" in caplog.text
    (tmp_path / "y" / "train").mkdir(parents=True)
    (tmp_path / "y" / "train" / "0.png").write_bytes(png(0))
    (tmp_path / "y" / "labels.csv").write_text("id,breed\n0,pug\n")
    told = problems_of(wanted(tmp_path / "y", label_column="breed"), tmp_path / "none")
    assert f"--photos {tmp_path / 'y'} --table FILE" in told


def test_a_column_that_is_asked_for_beats_the_usual_spelling(tmp_path):
    """Of aircraft "variant" is taken, unless another column of labels is named."""
    kinds = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features(image=datasets.Image(), variant=kinds, family=kinds)
    cells = [{"bytes": png(i), "path": None} for i in range(4)]
    numbers = [0, 1, 0, 1]
    rows = {"image": cells, "variant": numbers, "family": numbers}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "x")
    for given, taken in (("", "variant"), ("family", "family")):
        job = wanted("aircraft", origin=str(tmp_path / "x"), label_column=given)
        assert [stream.columns for stream in open_streams(job)] == [["image", taken]]


def test_splits_to_choose_from(tmp_path):
    rows = [(png(i), i % 4) for i in range(12)]
    held = datasets.DatasetDict({name: table(rows) for name in ("one", "two")})
    held.save_to_disk(tmp_path / "x")
    assert "there are one, two; say with --train-splits" in problems_of(
        wanted(tmp_path / "x"), tmp_path / "out"
    )
    streams = open_streams(wanted(tmp_path / "x", train_splits=("one",), test_splits=("two",)))
    assert [(s.role, s.split, s.total) for s in streams] == [
        ("test", "two", 12),
        ("train", "one", 12),
    ]
    validated = datasets.DatasetDict({name: table(rows) for name in ("validation", "train")})
    validated.save_to_disk(tmp_path / "y")  # as iNaturalist's test has no labels
    roles = [(s.role, s.split) for s in open_streams(wanted(tmp_path / "y"))]
    assert roles == [("test", "validation"), ("train", "train")]


def test_programs_and_pickles_are_not_run(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "hub.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    told = problems_of(wanted(folder), tmp_path / "out")
    assert str(folder) in told and not (tmp_path / "ran").exists()
    (folder / "hub.py").unlink()
    (folder / "rows.csv").write_text("a,b\n1,2\n")
    assert "its format is csv" in problems_of(wanted(folder), tmp_path / "out")


def test_no_hub_is_one_sentence_with_the_mend(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["fetch", "pets", "--out", str(tmp_path / "pets")]) == 2
    told = caplog.text
    assert "timm/oxford-iiit-pet" in told
    assert "unset HF_HUB_OFFLINE, or give a local copy with --from FOLDER" in told
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, capsys):
    source = birds(tmp_path / "hub")
    out = tmp_path / "out"
    arguments = ["fetch", "cub", "--from", str(source), "--out", str(out), "--allow-missing"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert f"--photos {out} --coarse bird" in told and "left out: 196" in told
    assert "descriptions.csv" in told
    assert main(["fetch", "cub", "--out", str(tmp_path / "none"), "--classes", "-1"]) == 2
