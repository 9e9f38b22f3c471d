"""Photos to reviewed chains: checked, resumable, and a function of the seed."""

import csv
import json
import re
from dataclasses import replace

import pytest
from paths import SHARED
from photo_folders import four_classes

from finer1_lite.__main__ import main
from finer1_lite.chains import checks, formats, teacher_prompts
from finer1_lite.chains.client import Cached, Ledger, Reply, TeacherStopped
from finer1_lite.chains.make import ChainJob, Settings
from finer1_lite.chains.teachers import Local, Oracle
from finer1_lite.paperbirds import photo
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection, load_folder

PHOTOS = SHARED / "photos"


@pytest.fixture(scope="module")
def few(birds) -> Collection:
    """Four neighbouring species, two pictures each."""
    first = birds.seen_names[0]
    names = [first, *birds.neighbours(first, birds.seen_names)[:3]]
    train = [p for n in names for p in [q for q in birds.train if q.species == n][:2]]
    return Collection("bird", birds.species, tuple(train), (), birds.distance)


class Clumsy(Oracle):
    """Every other sample has a problem, and it counts what it is asked."""

    stop_after = 10**9

    def ask(self, photo, prompt, samples):
        self.asked = getattr(self, "asked", 0) + len(samples)
        if self.asked > self.stop_after:
            raise TeacherStopped("the power went off")
        replies = super().ask(photo, prompt, samples)
        if prompt.kind != "write":
            return replies
        return [
            Reply(r.text.replace("<think>", "") if i % 2 == 0 else r.text)
            for i, r in zip(samples, replies, strict=True)
        ]


def job_of(folder, collection, teacher, **settings) -> ChainJob:
    ledger = Ledger()
    cached = Cached(teacher, folder / "cache", ledger)
    return ChainJob(folder, collection, cached, Settings(**settings), ledger)


def test_chains_of_other_pictures_or_classes_are_not_gone_on_with(world, tmp_path):
    for name in world.names[:2]:
        for i in range(4):
            path = tmp_path / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(world, name, "train", i).image().save(path)

    def start(**other):
        found = load_folder(tmp_path / "photos", shots=2, unseen_share=0.0, coarse="bird")
        first, *rest = found.train
        found = replace(found, train=(replace(first, **other), *rest))
        job_of(tmp_path / "out", found, Oracle(world)).build()

    start()
    start()  # it goes on
    with pytest.raises(DataError, match="data: "):
        start(species=world.names[1])
    shown = load_folder(tmp_path / "photos", shots=2, unseen_share=0.0, coarse="bird").train[0]
    photo(world, world.names[0], "train", 9).image().save(shown.source)
    with pytest.raises(DataError, match="photographs: "):
        start()


def test_rounds_go_on_until_a_chain_passes_and_rejects_say_why(few, world, tmp_path):
    report = job_of(tmp_path, few, Clumsy(world), rounds=6).build()
    records = formats.read_records(tmp_path / "chains.jsonl")
    assert [r.photo for r in records] == [p.id for p in few.train]
    assert all(not checks.check(r.parsed()) for r in records)
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").open()]
    assert len(rejected) == report["rejected"] >= 8 and report["reasons"]["tags"] >= 8
    assert all(row["findings"][0]["reason"] for row in rejected)
    kept = json.loads((tmp_path / "concepts.json").read_text())
    assert set(kept) == {p.species for p in few.train}
    for r in records:  # candidates are the nearest, seen or not, in shuffled order
        near = few.neighbours(r.species)[:3]
        assert set(r.candidates) == {r.species, *near} and len(r.candidates) == 4
        assert set(r.concepts) <= set(kept[r.species]["kept"])


def test_a_killed_job_ends_as_one_that_was_not(few, world, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    job_of(whole, few, Clumsy(world), rounds=6).build()
    paid = starts = 0
    while starts < 19:
        starts += 1
        teacher = Clumsy(world)
        teacher.stop_after = 17
        job = job_of(torn, few, teacher, rounds=6)
        try:
            job.build()
            break
        except DataError as error:
            assert "power went off" in str(error)
            for name in ("chains.jsonl", "rejected.jsonl"):
                if (torn / name).exists():
                    with (torn / name).open("a") as stream:
                        stream.write('{"version": 1, "id": "torn')
        finally:
            paid += min(teacher.asked, 17)
    assert 2 < starts < 19
    for name in ("chains.jsonl", "rejected.jsonl", "concepts.json", "reviewed.jsonl"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes(), name
    assert paid == len(list((torn / "cache").rglob("*.json")))


def test_the_budget_of_rounds_ends_and_names_the_pictures(few, world, tmp_path):
    with pytest.raises(DataError, match="0 of 1 chains passed in 1 rounds") as caught:
        job_of(tmp_path, few, Clumsy(world), rounds=1).build()
    assert len(caught.value.problems) == len(few.train)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["chains"] == 0 and report["rejected"] == len(few.train)


def test_more_rounds_and_more_chains_go_on_in_the_same_folder(few, world, tmp_path):
    """What was paid for stays, and nothing of it is asked again."""
    with pytest.raises(DataError, match="--rounds N` with more goes on from here"):
        job_of(tmp_path, few, Clumsy(world), rounds=1).build()
    teacher = Clumsy(world)
    assert job_of(tmp_path, few, teacher, rounds=2).build()["chains"] == len(few.train)
    assert teacher.asked == len(few.train)  # the second sample of each
    two = job_of(tmp_path, few, Clumsy(world), rounds=4, per_picture=2).build()
    assert two["chains"] == 2 * len(few.train)


def test_a_folder_tells_what_it_was_begun_with(few, world, tmp_path):
    job_of(tmp_path, few, Oracle(world), rounds=3).build()
    job_of(tmp_path, few, Oracle(world), rounds=5).build()
    preset = json.loads((tmp_path / "config.json").read_text())["preset"]
    assert (preset["rounds"], preset["per_picture"]) == (3, 1)


def test_a_chain_of_an_earlier_start_is_no_duplicate_of_itself(few, world, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        job_of(folder, few, Clumsy(world), per_picture=2).build()
    lines = (killed / "chains.jsonl").read_text().splitlines(keepends=True)
    (killed / "chains.jsonl").write_text("".join(lines[::2]))  # a chain of each picture is left
    job_of(killed, few, Clumsy(world), per_picture=2).build()
    for name in ("chains.jsonl", "rejected.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_other_settings_need_another_folder_and_senseless_ones_are_all_named(few, world, tmp_path):
    job_of(tmp_path, few, Oracle(world)).build()
    with pytest.raises(DataError, match="preset.beta: 0.7 there, 0.3 now"):
        job_of(tmp_path, few, Oracle(world), beta=0.3).build()
    with pytest.raises(DataError) as caught:
        Settings(rounds=0, beta=2.0, per_picture=0, extract="hand").check()
    assert len(caught.value.problems) == 4


def test_the_student_teaches_itself_and_wrong_guesses_are_turned_away(few, student, tmp_path):
    """A student that knows nothing passes no check: the machinery runs, nothing gets through."""
    teacher = Local(student.model, student.processor, "tiny", max_new_tokens=8)
    small = replace(few, train=few.train[:2])
    with pytest.raises(DataError, match="0 of 1"):
        job_of(tmp_path, small, teacher, guess=True, descriptions=1, rounds=1).build()
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").open()]
    assert {"tags", "answer"} <= {f["code"] for row in rejected for f in row["findings"]}
    prompt = teacher_prompts.guess_prompt("bird", ("a", "b"))
    assert "Right is" not in prompt.text


def test_photographs_with_a_table_by_the_command_and_back_from_the_table_of_decisions(tmp_path):
    root = four_classes(tmp_path / "owls")
    looks = {
        "black-kite": "dark brown feathers and a tail that is not forked",
        "red-kite": "rusty feathers, no wing bars and a forked tail",
        "barn-owl": "a pale heart shaped face, lacks ear tufts; long legs",
        "tawny-owl": "a round brown face without ear tufts, dark eyes",
    }
    (root / "descriptions.csv").write_text(
        "class,description\n" + "".join(f'{k},"{v}"\n' for k, v in looks.items())
    )
    out = tmp_path / "set"
    asked = ["cot", "make", "--photos", str(root), "--out", str(out), "--coarse", "bird"]
    assert main(asked) == 0
    records = formats.read_records(out / "chains.jsonl")
    assert len(records) == 8  # two seen classes of four shots
    assert len({r.parsed().parts["analysis"] for r in records}) > 2  # not one text a class
    for record in records:
        for denied in re.findall(r"[^,;:]*(?:ear tufts|wing bars|forked)[^,;]*", record.chain):
            assert re.search(r"\b(?:no|without|lacks|not) ", denied) or "forked tail" in denied
    assert formats.read_records(out / "reviewed.jsonl") == records
    with (out / "review.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows[0]["decision"] = "drop"
    with (out / "review.csv").open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert main(asked) == 0
    assert formats.read_records(out / "reviewed.jsonl") == records[1:]
    assert main(["cot", "review", str(out), "--undo"]) == 0
    assert formats.read_records(out / "reviewed.jsonl") == records
    assert (
        main(["cot", "check", str(out / "chains.jsonl"), "--json", str(tmp_path / "f.json")]) == 0
    )
    assert json.loads((tmp_path / "f.json").read_text())["clean"] == 8
    assert main(["cot", "triplets", "--photos", str(root), "--out", str(tmp_path / "t.jsonl")]) == 0
    assert (
        main(
            [
                "cot",
                "convert",
                str(tmp_path / "t.jsonl"),
                str(tmp_path / "t.parquet"),
                "--to",
                "parquet",
                "--pictures",
                str(root),
            ]
        )
        == 0
    )
    assert (tmp_path / "t.parquet").stat().st_size > 1000


@pytest.mark.parametrize(
    "asked, said",
    [
        (["--teacher", "local"], "needs --model"),
        (["--teacher", "oracle", "--photos", "x"], "paper birds only"),
        (["--teacher", "endpoint", "--model", "m", "--url", "host"], "--url"),
    ],
)
def test_bad_arguments_give_one_message_and_write_nothing(asked, said, tmp_path, caplog):
    assert main(["cot", "make", "--out", str(tmp_path / "set"), *asked]) == 2
    assert said in caplog.text and not (tmp_path / "set").exists()


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="../shared/photos is not here")
def test_supermarket_photographs_become_chains_that_pass(tmp_path):
    assert main(["cot", "make", "--photos", str(PHOTOS), "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["chains"] == report["pictures"] == 44 and report["habit"] is None
