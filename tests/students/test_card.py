"""The card of a student: written and read, paths that move along, what people read of it."""

import json

import pytest
import yaml

from finer1_lite import models
from finer1_lite.runtime.files import DataError
from finer1_lite.students import card as cards
from finer1_lite.students.card import Card, CardClass, Measured, adapter_of

CLASSES = (
    CardClass(name="barn owl", seen=True, aliases=("Tyto alba",)),
    CardClass(name="<b>kite</b>", seen=False),
)


def a_card(**changes) -> Card:
    facts = dict(base="../base", stage="TAPO", seed=1, coarse="bird", classes=CLASSES)
    facts |= dict(max_new_tokens=7, pixels=784, question="Which <think>bird</think>?")
    facts |= dict(trained_on={"owl/1.png": "ab"}, settings={"clip": float("inf"), "name": "lab"})
    return Card(**facts | changes)


def adapter(folder, named=None):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    return folder


def a_model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    return folder


# --- the two files -------------------------------------------------------------------------


def test_a_card_is_read_as_it_was_written(tmp_path):
    assert cards.read_card(tmp_path) is None
    measured = Measured(task="open", split="seen", accuracy=0.5, low=0.25, high=0.75, n=8)
    cards.write_card(tmp_path, a_card(measured=(measured,)))
    found = cards.read_card(tmp_path)
    assert found.measured == (measured,) and found.names == ["barn owl", "<b>kite</b>"]
    assert found.settings == {"clip": "Infinity", "name": "lab"}  # JSON has no infinity


def test_a_card_that_cannot_be_read_names_every_fault(tmp_path):
    (tmp_path / "card.json").write_text('{"base": 3, "extra": 1}')
    with pytest.raises(DataError) as caught:
        cards.read_card(tmp_path)
    said = str(caught.value)
    assert "card.json: base:" in said and "extra" in said and "coarse" in said


@pytest.mark.parametrize("base, listed", [("../base", None), ("Qwen/Qwen2.5-VL-3B", "same")])
def test_people_read_what_the_card_holds(tmp_path, base, listed):
    """A hub refuses the README of an upload that gives a path as its base."""
    adapter(tmp_path / "tapo")
    measured = Measured(task="open", split="seen", accuracy=0.5, low=0.25, high=0.75, n=8)
    cards.write_card(tmp_path / "tapo", a_card(base=base, measured=(measured,)))
    text = (tmp_path / "tapo" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["library_name"] == "peft" and "finer1_lite" in head["tags"]
    assert head.get("base_model") == (base if listed else None)
    assert "barn owl" in body and "<b>kite</b>" not in body and "&lt;b&gt;kite" in body
    assert "| open | seen | 50.0 | 25.0 to 75.0 | 8 |" in body
    assert "Which <think>bird</think>?" in body and "PeftModel" in body
    cards.write_card(tmp_path, a_card(base=base))
    merged = (tmp_path / "README.md").read_text()
    assert "library_name: transformers" in merged and "Not measured yet" in merged
    compile(merged.split("```python\n")[1].split("```")[0], "README.md", "exec")


def test_a_card_moved_to_another_folder_finds_the_same_things(tmp_path):
    a_model(tmp_path / "runs" / "base")
    (tmp_path / "photos").mkdir()
    there, here = tmp_path / "runs" / "tapo", tmp_path / "merged"
    there.mkdir()
    card = a_card(base="../base", photos="../../photos")
    found = cards.moved(card, there, here)
    assert (found.base, found.photos) == ("../runs/base", "../photos")
    assert cards.moved(a_card(base="a/b"), there, here).base == "a/b"


# --- what is meant -------------------------------------------------------------------------


def test_a_run_stands_for_the_last_stage_of_its_first_seed(tmp_path, caplog):
    run = tmp_path / "flowers"
    for place in ("seed10/tapo", "seed10/sft", "seed2/sft"):
        adapter(run / place)
    (run / "config.json").write_text('{"preset": {}}')
    assert adapter_of(run) == run / "seed2" / "sft"
    assert adapter_of(run) and caplog.text.count("sft is its last adapter; stage 2") == 1
    adapter(run / "seed2" / "tapo")
    caplog.clear()
    assert adapter_of(run) == adapter_of(run / "seed2") == run / "seed2" / "tapo"
    assert adapter_of(run / "seed2" / "sft") == run / "seed2" / "sft" and not caplog.text
    model = a_model(tmp_path / "model")
    assert adapter_of(model) == model


def test_what_holds_no_weights_is_said(tmp_path):
    (tmp_path / "run" / "seed0").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text('{"preset": {}}')
    with pytest.raises(DataError, match="run: no stage is trained yet"):
        adapter_of(tmp_path / "run")
    (tmp_path / "run" / "seed0").rmdir()
    with pytest.raises(DataError, match="run: holds no run, no adapter"):
        adapter_of(tmp_path / "run")
    with pytest.raises(DataError, match="nowhere: is no folder"):
        adapter_of(tmp_path / "nowhere")


# --- the base ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["warm-up", "./warm-up", ".", "..", "../a", "/a/b", "a/b/c", ""])
def test_only_owner_and_name_are_asked_of_a_hub(name):
    assert not cards.is_hub_name(name)
    assert cards.is_hub_name("Qwen/Qwen2.5-VL-3B-Instruct")


def test_a_base_is_found_by_the_card_and_the_run_can_move(tmp_path):
    base = a_model(tmp_path / "run" / "somewhere")
    folder = adapter(tmp_path / "run" / "seed0" / "tapo", "./gone")
    cards.write_card(folder, a_card(base=cards.relative(base, folder)))
    assert models.base_of(folder) == str(base)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "seed0" / "tapo"
    assert models.base_of(moved) == str(tmp_path / "moved" / "somewhere")
    assert models.base_of(moved, "a/b") == "a/b"


@pytest.mark.parametrize("named", ["warm-up", "./warm-up"])
def test_a_bare_name_is_looked_for_nearby_and_never_asked_of_a_hub(tmp_path, named):
    """As adapters without a card have it, of a base in the run or beside it."""
    folder = adapter(tmp_path / "runs" / "flowers" / "seed0" / "tapo", named)
    with pytest.raises(DataError, match="warm-up is not here; give --base"):
        models.base_of(folder)
    beside = a_model(tmp_path / "runs" / "warm-up")
    assert models.base_of(folder) == str(beside)
    inside = a_model(tmp_path / "runs" / "flowers" / "warm-up")
    assert models.base_of(folder) == str(inside)


def test_other_names_of_a_base(tmp_path):
    assert models.base_of(adapter(tmp_path / "a", "Qwen/Q")) == "Qwen/Q"
    assert models.base_of(adapter(tmp_path / "b", "random:Q")) == "random:Q"
    path = str(a_model(tmp_path / "model"))
    assert models.base_of(adapter(tmp_path / "c", path)) == path
    with pytest.raises(DataError, match="names no base model; give --base"):
        models.base_of(adapter(tmp_path / "d"))
    with pytest.raises(DataError, match="holds no adapter"):
        models.base_of(tmp_path, "a/b")
