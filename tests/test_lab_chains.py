"""Chains written elsewhere reach stage 1: checked as a whole, and never of test pictures."""

import json
import random
import re
import shutil
from dataclasses import replace

import pytest
from paths import ROOT
from photo_folders import DESCRIBED, four_classes

from finer1_lite import cot, lab, paperbirds, prompts, sft
from finer1_lite.__main__ import main, read_command
from finer1_lite.chains import formats, teachers
from finer1_lite.chains.client import Reply
from finer1_lite.data import given_chains
from finer1_lite.evals import report
from finer1_lite.runtime.files import DataError, open_folder
from finer1_lite.species import load_folder
from finer1_lite.students import lab_student


@pytest.fixture
def owls(tmp_path):
    """Four classes without descriptions; two of them are seen, with four training photos each."""
    return four_classes(tmp_path / "owls")


@pytest.fixture
def collection(owls):
    return load_folder(owls)


def chain_of(photo, collection, analysis="wide wings") -> str:
    rng = random.Random(photo.id)
    chosen = cot.candidates(collection.neighbours(photo.species), photo.species, rng)
    return prompts.chain(analysis, chosen, ["fits"] * len(chosen), photo.species)


@pytest.fixture
def chains(collection) -> dict[str, str]:
    return {p.id: chain_of(p, collection) for p in collection.train}


def write(path, chains, kind="ours"):
    """A file of chains; several of a photo are several records."""
    records = [
        formats.Record(f"{photo}#{i}", photo, "x", "q", chain, (photo,), sample=i)
        for photo, own in chains.items()
        for i, chain in enumerate(cot.several(own))
    ]
    formats.write_records(path, records, kind)
    return path


def command(owls, *more):
    asked = ["lab", "--photos", owls, "--out", owls.parent / "runs", *more]
    return read_command([str(one) for one in asked])


@pytest.mark.parametrize(
    ("kind", "name"), [("ours", "a.jsonl"), ("trl", "a.jsonl"), ("sharegpt", "a.json")]
)
def test_a_file_of_any_format_becomes_the_chains_of_the_run(owls, chains, tmp_path, kind, name):
    first = next(iter(chains))
    twice = chains | {first: (chains[first], chains[first].replace("wide", "broad"))}
    job = command(owls, "--chains", write(tmp_path / name, twice, kind)).job()
    found, _ = job.collection()  # without a descriptions.csv
    assert {photo: cot.several(own) for photo, own in twice.items()} == job.chains
    lab.write_chains(job, found, None)
    rows = [json.loads(line) for line in (job.folder / "chains.jsonl").open()]
    assert len(rows) == 9 and [r["chain"] for r in rows if r["photo"] == first] == list(
        twice[first]
    )
    rows = sft.chain_rows(found, job.chains)
    assert len(rows) == 9 and rows[1]["completion"][0]["content"] == twice[first][1]


def test_every_fault_of_the_chains_is_named_before_anything_is_written(owls, collection, chains):
    train, tested = collection.train, collection.test
    unseen = next(p for p in tested if p.species in collection.unseen_names)
    tested = next(p for p in tested if p.species in collection.seen_names)
    other = next(n for n in collection.names if n != train[1].species)
    faulty = dict(chains)
    faulty[train[0].id.replace(".png", "-1.png")] = faulty.pop(train[0].id)
    faulty[train[1].id] = chains[train[1].id].replace(
        f"<answer>{train[1].species}", f"<answer>{other}"
    )
    faulty[train[2].id] = chains[train[2].id].replace("</answer>", "s, I think</answer>")
    faulty[train[3].id] = chains[train[3].id].replace("</think>", "")
    faulty[tested.id], faulty[unseen.id] = (
        chain_of(tested, collection),
        chain_of(unseen, collection),
    )
    path = write(owls.parent / "a.jsonl", faulty)
    with pytest.raises(DataError, match="a leak") as caught:
        lab.run(command(owls, "--chains", path).job())
    said = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 6
    for words in (
        f"(perhaps '{train[0].id}') among the photographs",  # the only one left without a chain
        f"{train[1].id}: answers '{other}', the photograph shows '{train[1].species}'",
        f"{train[2].id}: answers '{train[2].species}s, I think', which names no class",
        f"{train[3].id}: is not one <think>",
        f"{tested.id}: is a test photograph",
        f"{unseen.id}: is of the unseen class '{unseen.species}'",
    ):
        assert words in said, (words, said)
    assert not (owls.parent / "runs").exists()
    lost = unseen.id.replace(".png", "0.png")  # such as one that another division tests on
    with pytest.raises(DataError, match=f"{lost}: is of the unseen class '{unseen.species}'"):
        given_chains.check_chains(collection, chains | {lost: chain_of(unseen, collection)})


def test_a_chain_with_a_mark_of_tokenizers_is_a_fault_of_its_photograph(collection, chains):
    first, second = list(chains)[:2]
    spoilt = {p: chains[p].replace("</think>", "<|im_end|></think>") for p in (first, second)}
    with pytest.raises(DataError) as caught:
        given_chains.check_chains(collection, chains | spoilt)
    assert [p.partition(" which")[0] for p in caught.value.problems] == [
        f"{photo}: holds <|im_end|>," for photo in (first, second)
    ]


def test_photographs_without_a_chain_are_counted_and_named(collection, chains, caplog):
    left = dict(list(chains.items())[2:])
    given_chains.check_chains(collection, left)
    first, second = list(chains)[:2]
    said = "2 of 8 training photographs have no chain: they are in stage 2 only: "
    assert f"{said}{first}, {second}" in caplog.text
    with pytest.raises(DataError, match="none of the 8 training photographs has a chain"):
        given_chains.check_chains(collection, {})


def test_without_descriptions_look_alikes_go_by_what_the_chains_say(collection, caplog):
    caplog.set_level("INFO")
    names = collection.seen_names
    chains = {p.id: chain_of(p, collection, "to look for: forked tail") for p in collection.train}
    found = given_chains.described_by(collection, chains)
    assert [found.of(name).description for name in names] == ["forked tail"] * len(names)
    assert "4 classes without a description: look-alikes go by the chains of 2" in caplog.text
    assert found.distance(*names) < collection.distance(*names)
    assert found.test == collection.test and found.unseen_names == collection.unseen_names
    described = replace(collection, species=found.species)
    assert (
        given_chains.described_by(described, {}).species == found.species
    )  # a table is never replaced


def test_other_chains_or_descriptions_are_another_run(owls, chains, tmp_path):
    def config(path):
        job = command(owls, "--chains", path).job()
        return job.config(job.collection()[0])

    one = config(write(tmp_path / "a.jsonl", chains))
    assert one == config(write(tmp_path / "b.jsonl", chains, "trl"))  # the content counts
    first = next(iter(chains))
    two = config(write(tmp_path / "a.jsonl", chains | {first: chains[first] + " "}))
    assert {key for key in one if one[key] != two[key]} == {"chains"}
    (owls / "descriptions.csv").write_text(DESCRIBED)
    three = config(tmp_path / "b.jsonl")
    assert {key for key in one if one[key] != three[key]} == {"descriptions"}
    (owls / "classes.csv").write_text("class,aliases\nbarn-owl,the white one\n")
    four = config(tmp_path / "b.jsonl")
    assert {key for key in three if three[key] != four[key]} == {"aliases"}
    picture = min(owls.glob("*/*.png"))
    picture.write_bytes(picture.read_bytes() + b" ")
    assert {key for key in four if four[key] != config(tmp_path / "b.jsonl")[key]} == {
        "photographs"
    }
    birds = read_command(["lab", "--out", str(tmp_path)]).job()
    assert not {"chains", "descriptions"} & birds.config(birds.collection()[0]).keys()


def test_a_teacher_writes_the_chains_into_the_run_and_a_persons_decisions_count(
    owls, monkeypatch, caplog
):
    (owls / "descriptions.csv").write_text(DESCRIBED.replace("a bird", "a bird with round eyes"))
    started = []
    monkeypatch.setattr(lab, "run", lambda job, **_: started.append(job) or job.folder)
    monkeypatch.setattr(report, "write_report", lambda *_: "report.html")
    command(owls, "--teacher", "table", "--coarse", "owl").start()
    folder = owls.parent / "runs" / "owls" / "chains"
    assert len(started[0].chains) == 8 and folder == started[0].folder / "chains"
    table = (
        (folder / "review.csv")
        .read_text(encoding="utf-8-sig")
        .replace('</answer>",,', '</answer>",drop,', 1)
    )
    (folder / "review.csv").write_text(table, encoding="utf-8-sig")
    command(owls, "--teacher", "table", "--coarse", "owl").start()
    assert len(started[1].chains) == 7
    with pytest.raises(DataError, match="coarse: owl there, bird now(.|\n)*") as caught:
        command(owls, "--teacher", "table", "--coarse", "bird").start()
    assert "delete it" in str(caught.value) and "--fresh" not in str(caught.value)
    shutil.rmtree(folder)
    (folder.parent / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds no run"):
        command(owls, "--teacher", "table").start()
    assert [p.name for p in folder.parent.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("more", "source", "quantize"),
    [
        (["--student", "owner/model"], "owner/model", "none"),
        (["--preset", "colab"], "Qwen/Qwen2.5-VL-3B-Instruct", "nf4"),
        (["--teacher-model", "owner/other", "--quantize", "nf4"], "owner/other", "nf4"),
        ([], str(lab_student.asset_folder(0)), "none"),
    ],
)
def test_the_student_that_teaches_is_the_runs_own(owls, monkeypatch, more, source, quantize):
    class Loaded(Exception):
        pass

    def load(*args, **_):
        raise Loaded(*map(str, args))

    monkeypatch.setattr(teachers, "load_local", load)
    with pytest.raises(Loaded) as caught:
        command(owls, "--teacher", "student", *more).start()
    assert caught.value.args == (source, quantize)


def test_a_fresh_start_keeps_the_chains_that_were_paid_for(tmp_path):
    folder = tmp_path / "owls"
    (folder / "chains").mkdir(parents=True)
    (folder / "chains" / "chains.jsonl").write_text("paid\n")
    open_folder(folder, {"preset": {}}, fresh=False, keep="chains")
    (folder / "seed0" / "sft").mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    open_folder(folder, {"preset": {"new": 1}}, fresh=True, keep="chains")
    assert {path.name for path in folder.iterdir()} == {"chains", "config.json"}
    assert (folder / "chains" / "chains.jsonl").read_text() == "paid\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--teacher", "local"], "--teacher local needs --model"),
        (["--teacher", "table", "--chains", "a.jsonl"], "--chains are written"),
        (["--chains", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
    ],
)
def test_what_does_not_fit_together_is_refused_and_leaves_nothing(owls, more, said):
    with pytest.raises(ValueError, match=said):
        command(owls, *more).start()
    assert not (owls.parent / "runs").exists()


# --- the whole road --------------------------------------------------------------------------


def written(self, photo, prompt, samples) -> list[Reply]:
    """What a good teacher answers; the model itself is too small to follow such a prompt."""
    text = prompt.text
    right = re.search(r"Right is: (.+?)\.", text)
    if not right:
        looks = paperbirds.knowledge(paperbirds.make_world(0), photo.species)
        return [Reply(looks)] * len(samples)
    marks = re.search(r"can be seen: (.+)", text).group(1).replace(";", ",")
    names = re.search(r"candidates: (.+)", text).group(1).split(", ")
    remarks = ["fits" if name == right.group(1) else "has another crown" for name in names]
    return [Reply(prompts.chain(marks, names, remarks, right.group(1)))] * len(samples)


@pytest.mark.slow
def test_the_road_from_a_data_set_over_a_teacher_and_a_person_to_a_report(
    world, tmp_path, monkeypatch
):
    """fetch -> cot make --teacher local -> a person drops one -> lab --chains; no descriptions."""
    for name in world.names[:5]:
        for split, count in (("train", 6), ("test", 2)):
            for number in range(count):
                path = tmp_path / "copy" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                paperbirds.photo(world, name, f"road-{split}", number).image().save(path)
    birds, made = tmp_path / "birds", tmp_path / "set"
    assert main(["fetch", "my/birds", "--from", str(tmp_path / "copy"), "--out", str(birds)]) == 0
    monkeypatch.setattr(teachers.Local, "ask", written)
    asked = ["--photos", str(birds), "--coarse", "bird"]
    local = ["--teacher", "local", "--model", str(ROOT / "assets" / "lab-student-world0")]
    assert main(["cot", "make", *asked, "--out", str(made), *local, "--extract", "yake"]) == 0
    table = (
        (made / "review.csv")
        .read_text(encoding="utf-8-sig")
        .replace('</answer>",,', '</answer>",drop,', 1)
    )
    (made / "review.csv").write_text(table, encoding="utf-8-sig")
    assert main(["cot", "review", str(made)]) == 0
    small = ["--seeds", "0", "--sft-steps", "2", "--tapo-steps", "1", "--workers", "1", "--set"]
    small += ["warm_up_steps=2", "max_new_tokens=12", "tapo.groups=2", "tapo.draws=1"]
    out = ["--out", str(tmp_path / "runs"), "--chains", str(made / "reviewed.jsonl")]
    assert main(["lab", *asked, *out, *small]) == 0
    run = tmp_path / "runs" / "birds"
    assert "TAPO" in (run / "report.html").read_text()
    reviewed = formats.read_records(made / "reviewed.jsonl")
    rows = [json.loads(line) for line in (run / "chains.jsonl").open()]
    assert {(r["photo"], r["chain"]) for r in rows} == {(r.photo, r.chain) for r in reviewed}
    assert len(rows) == 4 * 3 - 1
    assert main(["lab", *asked, *out[:2], "--chains", str(made / "chains.jsonl"), *small]) == 2
