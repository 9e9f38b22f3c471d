"""The stored training logs of notebook 09 show what their names say; the healthy one none of it.

Read from the files alone: nothing is trained, and no model is loaded.
"""

import ast
import json
from statistics import mean

import pytest
from paths import ROOT

FOLDER = ROOT / "assets" / "results" / "reading_runs"
STEPS, GROUPS = 12, 4
MAX_BYTES = 40_000


def read(name):
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def column(log, name):
    """Its values in the steps that have it: skipped ones lack what belongs to the loss."""
    return [row[name] for row in log if name in row]


def ends(log, name, width=4):
    """Means over the first and over the last steps that have the column."""
    values = column(log, name)
    return mean(values[:width]), mean(values[-width:])


def nothing_to_learn_from(log, healthy):
    """No group of any step has reward variance, and no weight moves: nearly all were cut."""
    idle = all({*column(log, name)} == {0} for name in ("groups_kept", "varied", "grad_norm"))
    return idle and mean(column(log, "truncated")) > 0.9


def ruined_by_its_rate(log, healthy):
    """Right form and right names at first, neither at the end."""
    return all(ends(log, name)[1] < 0.1 < log[0][name] for name in ("format", "accuracy"))


def loses_a_part(log, healthy):
    """Completions shrink to two thirds, and stay in the right form."""
    last = ends(log, "length")[1]
    return last < 0.67 * healthy[0]["length"] and ends(log, "format")[1] > 0.8


def paid_for_form(log, healthy):
    """The reward rises by half, form stays right, nothing is spared, and right names get fewer."""
    (reward, paid), (right, named) = ends(log, "reward"), ends(log, "accuracy")
    (short, long), form = ends(log, "length"), ends(log, "format")[1]
    return paid > 1.5 * reward and named < 0.5 * right and form > 0.8 and long > short


def sure_of_itself(log, healthy):
    """The entropy falls to a fifth, no group varies any more, and all are in the right form."""
    last = column(log, "anchor_entropy")[-4:]
    sure = bool(last) and mean(last) < healthy[0]["anchor_entropy"] / 5
    return sure and ends(log, "varied")[1] == 0 and ends(log, "format")[1] > 0.9


def scores_other_tokens(log, healthy):
    """The first step wrote what the healthy run wrote, and scored it otherwise."""
    written = all(log[0][key] == healthy[0][key] for key in ("reward", "length", "accuracy"))
    return written and log[0].get("anchor_entropy", 0) > 10 * healthy[0]["anchor_entropy"]


SYMPTOMS = {
    "zero_variance": nothing_to_learn_from,
    "high_rate": ruined_by_its_rate,
    "section_collapse": loses_a_part,
    "format_hacking": paid_for_form,
    "entropy_collapse": sure_of_itself,
    "wrong_mask": scores_other_tokens,
}


@pytest.mark.parametrize("name", SYMPTOMS)
def test_a_log_shows_its_symptom(name):
    assert SYMPTOMS[name](read(name), read("healthy"))


@pytest.mark.parametrize("name", SYMPTOMS)
def test_the_healthy_log_shows_no_symptom(name):
    assert not SYMPTOMS[name](read("healthy"), read("healthy"))


@pytest.mark.parametrize("name", SYMPTOMS)
def test_no_log_shows_the_symptom_of_another(name):
    others = [symptom for other, symptom in SYMPTOMS.items() if other != name]
    assert not [symptom.__name__ for symptom in others if symptom(read(name), read("healthy"))]


def test_the_healthy_run_learns():
    log = read("healthy")
    (before, after), (_, tidy) = ends(log, "accuracy"), ends(log, "format")
    assert after > before and tidy > 0.9
    assert mean(column(log, "groups_kept")) > GROUPS / 2
    assert max(column(log, "truncated")) < 0.1


def test_every_run_of_the_script_is_stored_whole():
    """As many rows as steps, without a gap; the README tells of each."""
    tree = ast.parse((FOLDER / "make.py").read_text(encoding="utf-8"))
    runs = next(
        n.value for n in tree.body if isinstance(n, ast.AnnAssign) and n.target.id == "RUNS"
    )
    names = [key.value for key in runs.keys]
    assert {*names} == {"healthy", *SYMPTOMS}
    assert {p.stem for p in FOLDER.glob("*.jsonl")} == {*names, "completions"}
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in names:
        assert column(read(name), "step") == list(range(1, STEPS + 1))
        assert name in told


def test_files_are_small():
    assert all(path.stat().st_size < MAX_BYTES for path in FOLDER.iterdir() if path.is_file())


def test_completions_are_of_the_first_and_the_last_step():
    steps = {(row["run"], row["step"]) for row in read("completions")}
    assert steps == {(name, step) for name in ("healthy", *SYMPTOMS) for step in (1, STEPS)}
