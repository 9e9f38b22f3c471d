"""What the cards say is asked; what was asked for wins; contradictions and strangers are said."""

import json
from pathlib import Path

import pytest
from photo_folders import DESCRIBED, four_classes
from PIL import Image

from finer1_lite.__main__ import main, read_command
from finer1_lite.data.folders import Reading
from finer1_lite.evals import facts
from finer1_lite.runtime.files import DataError
from finer1_lite.species import load_folder
from finer1_lite.students import run_cards
from finer1_lite.students.card import Card, CardClass, hashes, read_card, write_card


def student(folder, **changes):
    """The folder of an adapter with a card and no weights."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "lab-student-world0"}')
    said = dict(base="./x", stage="SFT", coarse="kite", classes=(CardClass(name="a", seen=True),))
    said |= dict(max_new_tokens=160, pixels=784, shots=2, unseen_share=0.25)
    said |= dict(settings={"quantize": "none", "eval_batch": 5})
    write_card(folder, Card(**said | changes))
    return str(folder)


def job_of(*arguments):
    return read_command(["evaluate", *map(str, arguments)]).job()


@pytest.fixture
def photos(tmp_path):
    return four_classes(tmp_path / "photos")


def test_no_option_is_repeated(tmp_path, photos):
    """Of a run's folder, of its adapter, of a merged model: the job of the training."""
    source = student(tmp_path / "run/seed0/tapo", photos="../../../photos")
    for named in (tmp_path / "run", source):
        job = job_of(named)
        assert job.models == (source,) and job.photos.resolve() == photos
        assert (job.coarse, job.unseen_share) == ("kite", 0.25)
        preset = job.preset
        assert (preset.shots, preset.max_new_tokens, preset.eval_batch) == (2, 160, 5)
    read_command(["analyse", source, source]).make_job()


def test_what_is_asked_for_wins_and_is_said(tmp_path, photos, caplog):
    source = student(tmp_path / "a", photos="../photos", settings={"quantize": "nf4"})
    assert job_of(source).preset.quantize == "nf4"
    job = job_of(source, "--coarse", "bird", "--max-new-tokens", 9, "--preset", "lab")
    assert (job.coarse, job.preset.max_new_tokens, job.preset.quantize) == ("bird", 9, "none")
    assert "--coarse bird as asked; kite on the card of" in caplog.text
    assert "--max-new-tokens 9 as asked; 160" in caplog.text and "--preset none" in caplog.text


def test_another_folder_is_not_read_as_the_one_of_the_training(
    tmp_path, photos, monkeypatch, caplog
):
    source = student(tmp_path / "a", photos="../photos", folder_options={"recursive": True})
    other = four_classes(tmp_path / "other")
    assert job_of(source).reading == Reading(recursive=True)
    job = job_of(source, "--photos", other)
    assert (job.photos, job.reading, job.unseen_share) == (other, Reading(), 0.4)
    assert job_of(source, "--world-seed", 1).photos is None
    monkeypatch.chdir(tmp_path)
    caplog.clear()
    assert job_of(source, "--photos", "photos").reading.recursive and not caplog.records
    assert job_of(source, "--files", "a_seen.jsonl").photos is None


def test_contradictions_are_all_named(tmp_path, photos):
    first = student(tmp_path / "a", photos="../photos", shots=2)
    second = student(tmp_path / "b", world_seed=3, coarse="bird", max_new_tokens=8)
    with pytest.raises(DataError) as caught:
        job_of(first, second)
    said = str(caught.value)
    for flag in ("--coarse", "--max-new-tokens", "--photos"):
        assert f"give {flag}" in said
    assert "kite on the card of" in said and "--shots" not in said and "--batch" not in said


def test_photographs_that_went_are_named(tmp_path):
    source = student(tmp_path / "a", photos="../gone")
    with pytest.raises(DataError, match="gone: these photographs are not here; give --photos"):
        job_of(source)


def test_folders_without_a_card_are_named_once(tmp_path, caplog):
    source = student(tmp_path / "a")
    (tmp_path / "a" / "card.json").unlink()
    job = job_of(source, "owner/name")
    assert (job.coarse, job.world_seed, job.preset.max_new_tokens) == ("bird", 0, 160)
    (record,) = caplog.records
    assert "a: no card says" in record.getMessage() and "owner/name" not in record.getMessage()


def test_what_was_trained_on_is_left_out_by_its_bytes(tmp_path, photos, caplog):
    """Under another name in another folder, too."""
    taken = sorted(photos.glob("*/1.png"))[:2]
    trained = hashes((path.name + path.parent.name, path) for path in taken) | {"drawn": ""}
    source = student(tmp_path / "a", photos="../photos", trained_on=trained)
    job = job_of(source, "--unseen-share", 0.75)
    kept = {photo.source for photo in job.collection().test}
    assert kept and not kept & set(taken)
    assert f"of {len(kept) + 2} photographs were trained on by {source}: left out" in caplog.text
    lines = [{"image_path": f"{p.parent.name}/{p.name}", "question": "?"} for p in taken]
    lines = [line | {"options": ["a", "b"], "ground_truth": "a"} for line in lines]
    (tmp_path / "bird_seen.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = ["--files", tmp_path / "bird_seen.jsonl", "--images", photos]
    with pytest.raises(DataError, match="all 2 photographs were trained on"):
        job_of(source, *asked).benchmark(None)


def test_a_moment_later_is_left_out_too_where_a_folder_has_grown(tmp_path, photos, caplog):
    """Its division is another now: what was trained on is a test picture, as is its neighbour."""
    trained = {}
    for path in sorted(photos.glob("*/*.png")):
        if path.stem in "01":
            trained |= hashes([(str(path), path)])
            lighter = Image.open(path).point(lambda level: min(level + 3, 255))
            lighter.save(path.with_name(f"9{path.name}"))
    classes = tuple(CardClass(name=name, seen=True) for name in load_folder(photos).names)
    told = dict(photos="../photos", trained_on=trained, classes=classes)
    source = student(tmp_path / "a", **told)
    job = job_of(source, "--unseen-share", 0.25)
    kept = {photo.source.stem for photo in job.collection().test}
    assert kept <= {"2", "3", "4", "5"} and "look nearly the same as those" in caplog.text
    asked, _ = run_cards.held_out(read_card(source), Path(source))
    assert asked and {photo.source.stem for photo in asked} <= {"2", "3", "4", "5"}


def test_seen_is_what_the_cards_say_however_another_folder_would_be_divided(tmp_path, caplog):
    caplog.set_level("INFO")
    other = four_classes(tmp_path / "other")
    names = job_of("--photos", other, "--preset", "lab").collection().names
    told = [CardClass(name=n, seen=True) for n in (names[0].upper(), names[3])]
    told.append(CardClass(name="x", seen=False, aliases=(names[1],)))
    source = student(tmp_path / "a", photos="../photos", classes=tuple(told))
    job = job_of(source, "--photos", other)
    asked = job.benchmark(job.collection()).items
    assert {i.label: i.split for i in asked} == dict(
        zip(names, ("seen", "unseen", "unseen", "seen"), strict=True)
    )
    assert (
        f"1 of 4 classes are not on the card of every model, and count as unseen: {names[2]}"
        in caplog.text
    )
    assert "2 of 4 classes were taught" in caplog.text


def test_look_alikes_are_those_of_the_training_where_the_folder_describes_nothing(tmp_path, photos):
    """A run on given chains alone: its classes are described by their analyses, on the card."""
    bare = job_of(student(tmp_path / "a", photos="../photos")).collection()
    first, *others = bare.names
    near = bare.neighbours(first)[-1]  # the last becomes the nearest
    text = "red bill, forked tail, pale crown, dark back, barred belly, long wings, yellow legs"
    alike = tuple(CardClass(name=n, seen=True, description=text) for n in (first, near))
    told = job_of(student(tmp_path / "b", photos="../photos", classes=alike)).collection()
    assert told.neighbours(first)[0] == near != bare.neighbours(first)[0]
    assert [one.description for one in told.species if one.name not in (first, near)] == ["", ""]


def test_a_configuration_knows_the_words_of_its_questions(tmp_path, photos):
    """Otherwise completions to other questions would be used again."""
    source = student(tmp_path / "a", photos="../photos")
    jobs = [
        job_of(source, "--out", tmp_path, *more)
        for more in ([], ["--coarse", "owl"], ["--letters"])
    ]
    configs = [job.config(job.benchmark(job.collection())) for job in jobs]
    assert len({config["questions"] for config in configs}) == 3
    assert [config["coarse"] for config in configs] == ["kite", "owl", "kite"]
    assert str(tmp_path) not in json.dumps([c | {"models": []} for c in configs])


# --- pages ---------------------------------------------------------------------------------


def test_the_photographs_of_a_run_are_found(tmp_path, photos):
    student(tmp_path / "run/seed0/tapo", photos="../../../photos")
    assert facts.photos_of(tmp_path / "run") == photos
    (tmp_path / "evaluation").mkdir()
    assert facts.photos_of(tmp_path / "evaluation") is None
    (tmp_path / "evaluation" / "config.json").write_text('{"photos": "../photos", "preset": {}}')
    assert facts.photos_of(tmp_path / "evaluation") == photos
    photos.rename(tmp_path / "gone")
    assert facts.photos_of(tmp_path / "run") is None


@pytest.mark.slow
def test_evaluate_gives_the_completions_of_lab(tmp_path, monkeypatch, caplog):
    """Every one, in both worlds, of both stages and of the merged model, without an option."""
    root = four_classes(tmp_path / "owls")
    (root / "descriptions.csv").write_text(DESCRIBED)
    out = ["--out", str(tmp_path / "runs")]
    asked = ["lab", "--photos", str(root), "--coarse", "bird", "--seeds", "0", "--workers", "1"]
    small = ["--sft-steps", "4", "--tapo-steps", "1", "--set", "warm_up_steps=10", "shots=3"]
    small += ["max_new_tokens=24", "tapo.groups=2", "tapo.draws=1"]
    assert main([*asked, *small, *out]) == 0
    run = tmp_path / "runs" / "owls"
    merged = tmp_path / "merged"
    assert main(["merge", str(run), str(merged)]) == 0
    models = [str(run / "seed0" / "sft"), str(run), str(merged)]
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *models, "--prompts", "think", "--no-blind", *out]) == 0
    told, again = (
        [json.loads(line) for line in (folder / "records.jsonl").open()]
        for folder in (run, tmp_path / "runs" / "evaluation")
    )

    def said(rows, model):
        rows = [r for r in rows if r["model"] == model and r["rotation"] == 0]
        return {(r["task"], r["photo"], *(r["options"] or ())): r["completion"] for r in rows}

    for theirs, ours in (("SFT", "sft"), ("TAPO", "tapo"), ("TAPO", "merged")):
        assert said(told, theirs) == said(again, ours) and len(said(told, theirs)) > 20
    assert "left out" not in caplog.text and "no card" not in caplog.text
    card = Card.model_validate_json((run / "seed0" / "tapo" / "card.json").read_bytes())
    assert len(card.measured) == 4 and len(card.trained_on) == 6 and card.shots == 3
    assert str(tmp_path) not in card.model_dump_json() and "classes" in card.model_dump()
    assert main(["report", str(run)]) == 0
    assert main(["report", str(run), str(tmp_path / "runs" / "evaluation")]) == 0
    page = (tmp_path / "runs" / "evaluation" / "compared-with-owls.md").read_text()
    assert "evaluation: tapo (think) minus owls: TAPO (think) | unseen | +0.0 [+0.0, +0.0]" in page
    assert "What is compared" not in page  # one data set under two names, asked alike
    paths = sorted(run.glob("seed0/*/card.json"))
    texts = [path.read_text() for path in paths]
    for path in paths:  # as an older version left it
        path.unlink()
    assert main([*asked, *small, *out]) == 0
    assert [path.read_text() for path in paths] == texts and len(texts) == 2
