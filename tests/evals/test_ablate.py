"""The ablation: settings alone tell its rows apart, and its table is made of answers."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from finer1_lite import cot, metrics, paperbirds
from finer1_lite.__main__ import read_command
from finer1_lite.evals import ablate, figures, job
from finer1_lite.presets import Preset
from finer1_lite.runtime.checkpoints import NotFinite
from finer1_lite.runtime.files import DataError

TINY = Preset.lab().with_(
    max_new_tokens=6,
    lora_rank=2,
    test_pictures=24,
    eval_batch=60,
    sft__steps=1,
    sft__batch=2,
    sft__micro_batch=2,
    tapo__steps=1,
    tapo__groups=1,
    tapo__draws=1,
)


@pytest.fixture
def study(tmp_path, student, monkeypatch):
    student.model.save_pretrained(tmp_path / "base")
    student.processor.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(ablate, "RATES", (1e-3,))
    monkeypatch.setattr(ablate, "SEARCH_PICTURES", 24)
    real, drawn = paperbirds.draw_id, {}

    def draw_once(marks, name):  # every task asks for the same pictures
        if name not in drawn:
            drawn[name] = real(marks, name)
        return drawn[name]

    monkeypatch.setattr(paperbirds, "draw_id", draw_once)
    preset = TINY.with_(student=str(tmp_path / "base"))
    return ablate.Study(tmp_path / "study", preset, ("dapo", "tapo"), seeds=(0,), worlds=(0,))


def answers(rights, world):
    """A task's file: 1 or 0 a picture, seen then unseen."""
    label = paperbirds.make_world(world).names[0]
    rows = [
        {"split": split, "correct": bool(right), "completion": "", "label": label}
        for split, row in zip(metrics.SPLITS, rights, strict=True)
        for right in row
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_every_row_has_the_budget_of_tapo():
    """The same rollouts, steps and questions a step: a difference is the method's."""
    ours = Preset.lab().tapo
    for name, row in ablate.ROWS.items():
        made = row.preset(Preset.lab(), 1e-3).tapo
        assert made.anchor_rollouts + made.positive_rollouts == 8, name
        assert (made.steps, made.groups, made.draws) == (ours.steps, ours.groups, ours.draws), name


def test_rows_differ_from_tapo_in_what_their_label_says():
    def changed(name):
        preset = Preset.lab().with_(tapo__learning_rate=1.0)
        ours, made = preset.tapo, ablate.ROWS[name].preset(preset, 1.0).tapo
        return {k for k, v in vars(made).items() if v != getattr(ours, k)}

    terms = {"inter_class_weight", "anchor_entropy_weight", "negative_entropy_weight"}
    n_m = {"anchor_rollouts", "positive_rollouts"}
    assert changed("tapo") == set()
    assert changed("dapo") == terms | n_m
    assert changed("no_intra") == n_m
    assert changed("no_inter") | changed("no_entropy") == terms
    assert changed("own_scored") == {"scored_on"}
    assert changed("negative_grad") == {"negative_grad"}
    assert changed("random_negative") == {"negative"}
    assert changed("tapo_agreement") == {"reward_agreement"}
    assert changed("dapo_agreement") == changed("dapo") | {"reward_agreement"}
    assert changed("tapo_half") == changed("tapo_quarter") == {"reward_agreement"}
    assert changed("clipped_ratio") == {"positive_ratio"}
    assert changed("picture_baseline") == {"baseline"}
    assert changed("negative_on_right") == {"inter_class_on"}
    assert changed("cls_rl") - changed("dapo") == {"prompt", "accuracy_weight", "format_weight"}


@pytest.mark.slow
def test_rows_named_later_have_their_rates_searched_too(study, monkeypatch):
    study.folder.mkdir()
    held = {"rates": {"dapo": 0.5}, "tried": {"dapo": {"0.5": 1.0}}}
    (study.folder / "search.json").write_text(json.dumps(held))
    ran = []
    monkeypatch.setattr(ablate, "do_all", lambda tasks, workers: ran.extend(tasks))
    right = metrics.pd.DataFrame({"split": ["seen", "unseen"], "correct": [True, True]})
    monkeypatch.setattr(ablate, "records_of", lambda tasks: right)
    assert ablate.search(study, 1) == {"dapo": 0.5, "tapo": 1e-3}
    assert {task.row for task in ran} == {"sft", "tapo"}  # what is known is not tried again
    assert ablate.search(study, 1) == {"dapo": 0.5, "tapo": 1e-3}


def test_a_rate_at_which_training_breaks_is_left_out_of_the_search_alone(study, monkeypatch):
    def broken(*_):
        raise NotFinite("nan or inf in the loss")

    monkeypatch.setattr(ablate, "train", broken)
    searched, wanted = (ablate.Task(study, 0, 100, "tapo", 1.0, split) for split in ("val", "test"))
    ablate.do(searched)
    assert not searched.done
    with pytest.raises(NotFinite):
        ablate.do(wanted)


@pytest.mark.slow
def test_a_study_runs_searches_and_is_not_run_twice(study, monkeypatch):
    monkeypatch.setattr(ablate, "_run", lambda left, workers: [ablate.do(t) for t in left])
    path = ablate.run_study(study)
    found = json.loads((study.folder / "ablation.json").read_text())
    assert set(found["rows"]) == {"sft", "sft_long", "dapo", "tapo"}
    assert set(found["rates"]) == {"dapo", "tapo"}
    assert "| TAPO |" in path.with_suffix(".md").read_text()
    assert (study.folder / "figures" / "ablation.png").stat().st_size > 1000
    searched = (study.folder / "world0/seed100/tapo-0.001/think-open.jsonl").read_text()
    reported = (study.folder / "world0/seed0/tapo-0.001/think-open.jsonl").read_text()
    assert "/val/" in searched and "/test/" not in searched
    assert "/test/" in reported and "/val/" not in reported
    assert job.is_adapter(str(study.folder / "world0/seed0/dapo-0.001"))  # to be examined
    monkeypatch.setattr(ablate, "train_tapo", None)  # to train anything now would fail
    monkeypatch.setattr(ablate, "train_sft", None)
    ablate.run_study(study)


def finish(study, world, seed, row, rate, right):
    task = ablate.Task(study, world, seed, row, rate)
    task.folder.mkdir(parents=True)
    task.records.write_text(answers([right] * 2, world))
    task.result.parent.mkdir(exist_ok=True)
    kept = ablate.answers_of(task, paperbirds.make_world(world))
    task.result.write_text(json.dumps({"train_minutes": 2} | kept))


def test_rows_are_compared_on_the_seeds_that_both_have(study):
    """A seed that is done in one world alone does not count, nor does the search's."""
    two = ablate.Study(study.folder, study.preset, (), seeds=(0,), worlds=(0, 1))
    for seed, right in ((0, [0, 0, 0, 1]), (1, [1, 1, 1, 1]), (ablate.SEARCH_SEED, [0] * 4)):
        for world in (0, 1):
            finish(two, world, seed, "sft", 0.0, right)
    finish(two, 0, 0, "dapo", 0.1, [0, 0, 1, 1])
    finish(two, 1, 0, "dapo", 0.1, [0, 0, 1, 1])
    finish(two, 0, 1, "dapo", 0.1, [0, 0, 0, 0])
    found = ablate.measure(two, {"dapo": 0.1})
    assert (found["sft"]["seeds"], found["dapo"]["seeds"]) == (2, 1)
    assert found["dapo"]["over_sft"]["seen"]["mean"] == 0.25
    assert "tapo" not in found


def test_the_table_is_the_mean_over_worlds_and_seeds(study):
    two = ablate.Study(study.folder, study.preset, ("tapo",), seeds=(0, 1), worlds=(0, 1))
    for w in two.worlds:
        for s in two.seeds:
            for name, rate, right in (("sft", 0.0, [1, 0, 0, 0]), ("tapo", 0.1, [1, 1, w, 0])):
                finish(two, w, s, name, rate, right)
    found = ablate.measure(two, {"tapo": 0.1})
    assert found["sft"]["accuracy"]["unseen"] == 0.25
    assert found["tapo"]["by_world"]["unseen"] == [0.5, 0.75]
    over = found["tapo"]["over_sft"]["unseen"]
    assert over["mean"] == pytest.approx(0.375) and over["low"] < over["mean"] < over["high"]
    assert "+37.5 [" in ablate.table(found).iloc[1]["unseen over SFT"]
    assert len(figures.ablation(found).axes) == 2


def test_what_chains_are_worth_has_an_interval_and_two_figures(study):
    """Right for its reason, over pictures and seeds; a row without chains is in no figure."""
    tapo = ablate.Task(study, 0, 0, "tapo", 0.1)
    chains = {
        "correct": "1110",
        "agrees": "1101",
        "listed": "1111",
        "true": "1000",
        "marks": "6666",
    }
    curve = {"accuracy": [0.25, 0.5], "right_and_agrees": [0.0, 0.25], "groups_kept": [1.0, 1.0]}
    for task, said in (
        (tapo, chains),
        (replace(tapo, row="sft", rate=0.0), chains),
        (replace(tapo, row="cls_rl"), {"correct": "1100"}),
    ):
        task.result.parent.mkdir(parents=True, exist_ok=True)
        facts = {"train_minutes": 2, "seen": said, "unseen": said}
        facts["steps"] = curve if task.row == "tapo" else {}
        task.result.write_text(json.dumps(facts))
    found = ablate.measure(study, {"tapo": 0.1, "cls_rl": 0.1})
    assert found["tapo"]["reason"]["seen"] == 0.5 and found["tapo"]["true"]["seen"] == 0.25
    ends = found["tapo"]["reason_interval"]["seen"]
    assert ends["low"] < ends["mean"] == 0.5 < ends["high"]
    words = ablate.table(found).set_index("row")["right for its reason"]
    assert words["TAPO"].count("50.0 [") == 2 and not words[ablate.ROWS["cls_rl"].label]
    assert found["tapo"]["steps"] == curve and not found["sft"]["steps"]
    (legend,) = figures.reasons(found).legends
    assert {text.get_text() for text in legend.texts} == {"SFT", "TAPO"}
    lines = [axis.lines for axis in figures.steps(found).axes]
    assert [len(one) for one in lines] == [1, 1, 1]
    assert lines[0][0].get_ydata().tolist() == [25, 50]


def test_pictures_of_which_all_marks_are_right_are_set_beside_those_of_dapo(study):
    """Where the analysis names every mark: the look-alike differs in one or two."""
    for row, marks in (("dapo", "6556"), ("tapo", "6666"), ("cls_rl", "")):
        task = ablate.Task(study, 0, 0, row, 0.1)
        task.result.parent.mkdir(parents=True, exist_ok=True)
        chains = {"agrees": "1111", "listed": "1111", "true": "1111", "marks": marks}
        said = {"correct": "1100"} | (chains if marks else {})
        task.result.write_text(json.dumps({"train_minutes": 2, "seen": said, "unseen": said}))
    found = ablate.measure(study, {"dapo": 0.1, "tapo": 0.1, "cls_rl": 0.1})
    assert [found[row]["all_marks"]["seen"] for row in ("dapo", "tapo")] == [0.5, 1.0]
    over = found["tapo"]["all_marks_over_dapo"]["unseen"]
    assert over["mean"] == 0.5 and over["low"] < 0.5 < over["high"]
    column = ablate.table(found).set_index("row")["all marks right, unseen over DAPO"]
    assert (
        column["TAPO"].startswith("+50.0 [")
        and not column[["DAPO", found["cls_rl"]["label"]]].any()
    )


def test_a_training_killed_in_its_evaluation_is_not_done_again(study, monkeypatch):
    """Its checkpoints stay until it is finished; its minutes are then those of the last start."""
    task = ablate.Task(study, 0, 0, "sft")
    real = ablate.evaluate

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablate, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        ablate.do(task)
    assert list((task.folder / "checkpoints").glob("checkpoint-*")) and not task.done
    monkeypatch.setattr(ablate, "evaluate", real)
    ablate.do(task)
    assert task.done and not (task.folder / "checkpoints").exists()
    assert json.loads(task.result.read_text("utf-8"))["resumed"] is True


@pytest.mark.slow
def test_a_study_goes_on_elsewhere_from_its_results(study, monkeypatch):
    """They travel with two small files; the adapter of stage 1 is made again, once, the same."""
    ran = []
    monkeypatch.setattr(
        ablate, "_run", lambda left, workers: [ran.append(t) or ablate.do(t) for t in left]
    )
    ablate.run_study(replace(study, rows=("tapo",)))
    first = ablate.Task(study, 0, 0, "sft")
    assert first.done and first.result.stat().st_size < 1000
    weights = (first.folder / "adapter_model.safetensors").read_bytes()
    for path in study.folder.iterdir():
        if path.name not in (ablate.RESULTS, "config.json", "search.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    ran.clear()
    ablate.run_study(replace(study, rows=("tapo", "random_negative", "no_entropy")))
    assert [task.row for task in ran] == ["sft", "random_negative", "no_entropy"]
    assert (first.folder / "adapter_model.safetensors").read_bytes() == weights


def test_what_is_kept_of_an_answer_is_what_was_asked(study, world):
    """Without a chain there is no agreement, which is not the same as none of it."""
    task = ablate.Task(study, 0, 0, "sft")
    name = world.names[0]
    chain = cot.oracle_chain(world, name, random.Random(0))
    row = {"split": "seen", "correct": True, "completion": chain, "label": name}
    rows = [row | {"agrees": True, "listed": True}, row | {"agrees": False, "listed": True}]
    task.folder.mkdir(parents=True)
    task.records.write_text("".join(json.dumps(r) + "\n" for r in rows))
    kept = ablate.answers_of(task, world)
    told = {"correct": "11", "agrees": "10", "listed": "11", "true": "11", "marks": "66"}
    assert kept == {"seen": told}
    task.result.parent.mkdir()
    task.result.write_text(json.dumps({"unseen": {"correct": "01"}} | kept))
    found = ablate.records_of([task])
    assert found["reason"].tolist()[:2] == [1, 0] and found["marks"].tolist()[:2] == [1, 1]
    assert (
        found["correct"].tolist() == [1, 1, 0, 1]
        and found["reason"].isna().tolist()[2:] == [True] * 2
    )


@pytest.mark.parametrize(
    "asked",
    ["--seeds 1 1", "--seeds -1 0", "--seeds 0 100", "--worlds 0 0", "--worlds -1", "--workers -1"],
)
def test_what_would_count_twice_or_meet_the_search_is_refused_at_once(asked):
    with pytest.raises(DataError, match=asked.split()[0]):
        read_command(["ablate", *asked.split()]).job()


def test_two_worlds_settle_more_than_one():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 4, 5, 60))

    def width(n):
        cell = metrics.bootstrap_over_worlds(list(a[:n]), list(b[:n]), draws=400)
        return cell["high"] - cell["low"]

    assert width(4) < 0.7 * width(1)
    with pytest.raises(ValueError, match="2 worlds in a, 1 in b"):
        metrics.bootstrap_over_worlds(list(a[:2]), list(b[:1]))


def test_validation_pictures_are_no_test_pictures(world):
    ids = [
        {p.id for p in paperbirds.collection(world, test=36, split=split).test}
        for split in ("val", "test")
    ]
    assert not ids[0] & ids[1]
