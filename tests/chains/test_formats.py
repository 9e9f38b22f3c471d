"""Chains and triplets through every format and back: nothing is lost."""

import io
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from paths import ROOT, SHARED
from PIL import Image

from finer1_lite import cot
from finer1_lite.__main__ import main
from finer1_lite.chains import checks, formats
from finer1_lite.chains.formats import CARRY, Record, TripletRow
from finer1_lite.runtime.files import DataError, write_lines

LIGHT = """import sys, finer1_lite.chains.{name}
print({{"torch", "matplotlib"}} & sys.modules.keys() or "light")"""
RELEASED = SHARED / "official" / "Fine-R1-Stage1-data.json"
needs_release = pytest.mark.skipif(not RELEASED.is_file(), reason="../shared/official is not here")


@pytest.mark.parametrize("name", ["formats", "client"])
def test_no_torch_and_no_matplotlib_are_loaded(name):
    told = [sys.executable, "-c", LIGHT.format(name=name)]
    assert subprocess.run(told, capture_output=True, text=True, cwd=ROOT).stdout == "light\n"


@pytest.fixture
def records(world) -> list[Record]:
    odd = 'quotes " and \\ and\nlines, \u2028, \u00fc, \U0001f426'
    rows = []
    for i, name in enumerate(world.names[:4]):
        chain = cot.oracle_chain(world, name, random.Random(i))
        rows.append(
            Record(
                f"{name}#{i}",
                f"birds/{i}.png",
                name,
                "Name it.",
                chain,
                (f"birds/{i}.png",),
                candidates=tuple(world.names[:4]),
                concepts=("crown red",),
                dropped=("x",),
                teacher="oracle",
                sample=i,
                extra={"note": f"{odd}, <image>", "n": [1, None, 2.5]},
            )
        )
    bare = "<think></think><answer>owl</answer>"
    rows[1] = Record(
        "b",
        "p",
        "owl",
        odd,
        bare + odd,
        ("p",),
        system="Be brief.",
        aliases=("uhu",),
    )
    return rows


@pytest.mark.parametrize("kind", ["ours", "trl", "sharegpt"])
def test_every_format_gives_back_what_it_was_given(records, tmp_path, kind):
    path = tmp_path / ("x.json" if kind == "sharegpt" else "x.jsonl")
    formats.write_records(path, records, kind)
    assert formats.read_any(path) == (records, kind)


def test_the_command_line_goes_round_all_formats(records, tmp_path):
    start = tmp_path / "a.jsonl"
    formats.write_records(start, records)
    for step, (kind, name) in enumerate(
        [("sharegpt", "b.json"), ("trl", "c.jsonl"), ("ours", "d.jsonl")]
    ):
        source = ["a.jsonl", "b.json", "c.jsonl"][step]
        assert (
            main(["cot", "convert", str(tmp_path / source), str(tmp_path / name), "--to", kind])
            == 0
        )
    assert (tmp_path / "d.jsonl").read_bytes() == start.read_bytes()


@needs_release
def test_the_released_chains_come_back_as_they_were(tmp_path):
    rows = json.loads(RELEASED.read_text())
    records = formats.read_any(RELEASED)[0]
    assert len(records) == 404
    formats.write_records(tmp_path / "ours.jsonl", records)
    ours = formats.read_records(tmp_path / "ours.jsonl")
    formats.write_records(tmp_path / "trl.jsonl", ours, "trl")
    records, kind = formats.read_any(tmp_path / "trl.jsonl")
    assert kind == "trl"
    formats.write_records(tmp_path / "back.json", records, "sharegpt", carry=False)
    assert json.loads((tmp_path / "back.json").read_text()) == rows


@needs_release
def test_the_audit_finds_the_known_faults_of_the_release():
    """Counts within 10 % of those published in the project's notes on the method."""
    found = checks.audit_chains(formats.read_any(RELEASED)[0])
    counts, n = found["findings"], found["chains"]
    known = {"leak": 94, "unnamed": 97, "uncompared": 23}
    for code, count in known.items():
        assert abs(counts[code] - count) <= 0.1 * count, (code, counts[code])
    assert counts["tags"] == counts["duplicate"] == 0
    assert abs(n - counts["parts"] - 276) <= 28 and abs(n - counts["listed"] - 287) <= 29
    assert abs(found["median words"] - 525) <= 53
    placed = {k: v for k, v in found["place of the label"].items() if k >= 0}
    assert 0.92 <= placed[0] / sum(placed.values()) <= 0.96
    assert "candidate 1 of 4" in found["habit"]
    cars = [r for r in formats.read_any(RELEASED)[0] if "cars" in r.photo]
    other = checks.audit_chains(cars)["findings"]["conclusion"]
    assert len(cars) == 117 and abs(other - 22) <= 2
    assert counts["hidden"] >= 104 and counts["measure"] >= 32
    roses = [f for f in found["found"]["403"] if f.code == "coarser"]
    assert "Hybrid Tea Rose" in str(roses[0])


def test_trl_rows_are_a_dataset_of_pictures_with_conversations(records, tmp_path, monkeypatch):
    from datasets import Features, List, Value, load_dataset
    from datasets import Image as Picture

    (tmp_path / "birds").mkdir()
    for i in (0, 2, 3):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / f"birds/{i}.png")
    formats.write_records(tmp_path / "t.jsonl", [records[i] for i in (0, 2, 3)], "trl")
    monkeypatch.chdir(tmp_path)
    turn = [{"role": Value("string"), "content": Value("string")}]
    features = Features(
        {"images": List(Picture()), "prompt": turn, "completion": turn, CARRY: Value("string")}
    )
    rows = load_dataset(
        "json",
        data_files="t.jsonl",
        split="train",
        features=features,
        cache_dir=str(tmp_path / "cache"),
    )
    assert rows[1]["images"][0].getpixel((0, 0)) == (2, 0, 0)
    assert rows[1]["completion"][0]["content"] == records[2].chain
    assert [m["role"] for m in rows[1]["prompt"]] == ["user"]


def test_trl_rows_of_others_are_read_too():
    said = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    reply = {"role": "assistant", "content": "<think>t</think><answer>owl</answer>"}
    prompt = [{"role": "user", "content": said}]
    row = {"images": ["a.jpg"], "prompt": prompt, "completion": [reply]}
    record = formats.from_others(row)
    assert (record.species, record.question, record.photo) == ("owl", "What is it?", "a.jpg")


ASKED, SAID = "<image>\nWhat is it?", "<think>t</think><answer>owl</answer>"
TURNS = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
LLAVA = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is "}]}]
PARTS[0]["content"].append({"type": "text", "text": "it?"})


@pytest.mark.parametrize("spread", ["array", "lines"])
@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"id": "a", "image": "p/a.jpg", "conversations": LLAVA}, "sharegpt"),
        ({"messages": TURNS, "images": "p/a.jpg"}, "sharegpt"),
        ({"messages": TURNS, "images": ["p/a.jpg"], "system": "Be brief."}, "sharegpt"),
        ({"images": ["p/a.jpg"], "messages": [*PARTS, *TURNS[1:]]}, "sharegpt"),
        ({"image": "p/a.jpg", "prompt": PARTS, "completion": TURNS[1:]}, "trl"),
        ({"images": ["p/a.jpg"], "prompt": "What is it?", "completion": SAID}, "trl"),
    ],
)
def test_chains_of_other_programs_are_read_in_arrays_and_in_lines(row, kind, spread, tmp_path):
    path = tmp_path / "x.json"
    text = json.dumps([row], indent=1) if spread == "array" else json.dumps(row)
    path.write_text("\ufeff" + text.replace("\n", "\r\n"), newline="")
    (record,), found = formats.read_any(path)
    assert (record.photo, record.question, record.species) == ("p/a.jpg", "What is it?", "owl")
    assert (record.chain, record.system, found) == (SAID, row.get("system", ""), kind)
    assert record.extra.get("id") == row.get("id")  # what has no place here is kept


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "a.jpg", "prompt": "What?", "solution": "owl"}, "TRL.*lacks.*'completion'"),
        ({"image": "a.jpg", "problem": "What?", "solution": "owl"}, "no chain of ours"),
        ({"image": "a.jpg", "conversations": "x"}, "LLaVA.*'conversations'.*the roles are"),
        ({"image": "a.jpg", "conversations": [1, None]}, "LLaVA.*'conversations'.*no text"),
        ({"conversations": LLAVA}, "LLaVA.*'images'.*path"),
        ({"image": ["a", "b"], "conversations": LLAVA}, "'conversations'.*one picture"),
        ({"images": [{"bytes": ""}], "messages": TURNS}, "LLaMA-Factory.*'images'.*path"),
        ({"images": "a", "messages": TURNS, CARRY: "[]"}, "'finer1_lite'.*no JSON object"),
        ({"images": "a", "messages": [*TURNS, *TURNS]}, "'messages'.*the roles are"),
        ({"image": "a", "prompt": [], "completion": {}}, "TRL"),
        ({"image": "a", "query": "What?", "response": SAID}, "no chain of ours.*prompt, messages"),
        ([1], "no chain of ours"),
    ],
)
def test_what_is_no_chain_of_others_is_told_by_its_form_and_field(row, said, tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    path.write_text(
        json.dumps({"n": 1, **row} if isinstance(row, dict) else row).replace("[1]", "1")
    )
    assert main(["cot", "check", str(path)]) == 2
    assert re.search(rf"x.jsonl, line 1: .*{said}", caplog.text), caplog.text


@pytest.mark.parametrize("mark", ["<|im_end|>", "<image>"])
@pytest.mark.parametrize("field", ["question", "chain", "species"])
def test_a_mark_of_tokenizers_is_a_fault_of_its_line(records, field, mark, tmp_path):
    spoilt = replace(records[0], **{field: f"{mark} {getattr(records[0], field)}"})
    formats.write_records(tmp_path / "x.jsonl", [records[1], spoilt])
    with pytest.raises(DataError, match=f"line 2: holds {re.escape(mark)}"):
        formats.read_any(tmp_path / "x.jsonl")


def test_all_faults_of_a_file_come_in_one_message(tmp_path):
    rows = [
        {"version": 1, "id": "a", "photo": "p", "species": "s", "question": "q", "chain": "c"},
        {"version": 2, "id": 3, "photo": "p", "species": "s", "question": "q", "chain": "c"},
        {"version": 1, "id": "b", "photo": "p", "species": "s", "images": "x.png", "colour": 1},
        [1],
    ]
    path = tmp_path / "x.jsonl"
    write_lines(path, rows)
    with pytest.raises(DataError) as caught:
        formats.read_records(path)
    said = str(caught.value)
    for part in (
        "line 2: has version 2",
        "id is no text",
        "line 3: lacks 'question'",
        "lacks 'chain'",
        "images is no list",
        "unknown field 'colour'",
        "line 4: is no JSON object",
    ):
        assert part in said, part
    path.write_text('{"version": 1}\n{"torn')
    with pytest.raises(DataError, match="line 2: is no JSON"):
        formats.read_records(path)


@pytest.mark.parametrize("spoil", ["roles", "no picture", "no answer", "no JSON", "no list"])
def test_a_released_file_that_is_none_is_refused(records, tmp_path, spoil):
    row = formats.to_sharegpt(records[0], carry=False)
    if spoil == "roles":
        row["messages"].append({"role": "user", "content": "and?"})
    if spoil == "no picture":
        row["messages"][0]["content"] = "What is it?"
    if spoil == "no answer":
        row["messages"][1]["content"] = "an owl"
    text = {"no JSON": "{", "no list": "{}"}.get(spoil, json.dumps([row]))
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="x.json"):
        formats.read_any(tmp_path / "x.json")


# --- triplets ----------------------------------------------------------------------------


@pytest.fixture
def triplets(tmp_path) -> list[TripletRow]:
    names = [f"{c}/{i}.png" for c in "ab" for i in range(2)]
    for i, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + i, 9), (i, 0, 0)).save(tmp_path / "in" / name)
    a0, a1, b0, b1 = names
    return [
        TripletRow(a0, a1, b0, "Name it.", "a", {"negative_label": "b"}),
        TripletRow(b1, b0, a1, "Name it.", "b"),
    ]


def test_triplets_travel_in_the_released_columns_and_come_back(triplets, tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    formats.write_parquet(path, triplets, tmp_path / "in")
    table = pq.read_table(path)
    assert {"images", "image_noisy", "image_aug", "problem", "answer"} <= set(table.column_names)
    row = table.to_pylist()[0]

    def width(cell):
        return Image.open(io.BytesIO(cell[0]["bytes"])).width

    assert [width(row[c]) for c in ("images", "image_noisy", "image_aug")] == [8, 9, 10]
    assert row["problem"] == "<image>Name it."
    assert formats.read_parquet(path, tmp_path / "out") == triplets
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    formats.write_triplets(tmp_path / "t.jsonl", triplets)
    assert formats.read_triplets(tmp_path / "t.jsonl") == triplets


def test_triplets_that_are_none_are_told_by_row_and_field(triplets, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"anchor": "a"}, {"anchor": "a", "positive": "b", "negative": "c", "label": 1}, [1]]
    write_lines(tmp_path / "t.jsonl", [{"x": 1}, *rows])
    with pytest.raises(DataError) as caught:
        formats.read_triplets(tmp_path / "t.jsonl")
    told = str(caught.value)
    for part in (
        "line 2: lacks 'positive'",
        "line 3: lacks 'question'; label is no text",
        "line 4",
    ):
        assert part in told
    cells = {name: ["a.png"] for name in ("images", "image_noisy", "image_aug")}
    table = cells | {"problem": ["<image>q"], "answer": ["a"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 0: column 'images': no bytes of a picture"):
        formats.read_parquet(tmp_path / "t.parquet", tmp_path)


def test_a_parquet_cannot_write_outside_its_folder(triplets, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    cell, other = png(1), png(2)
    table = {
        "images": [[{"bytes": cell, "path": "../../evil.png"}]],
        "image_noisy": [[{"bytes": other, "path": None}]],
        "image_aug": [[{"bytes": cell, "path": "../../evil.png"}]],
        "problem": ["<image>q"],
        "answer": ["a"],
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    (row,) = formats.read_parquet(tmp_path / "t.parquet", tmp_path / "deep" / "out")
    assert not (tmp_path / "evil.png").exists() and "evil" not in row.anchor
    assert (tmp_path / "deep" / "out" / row.positive).read_bytes() == other


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def test_a_parquet_replaces_no_file_and_makes_no_two_pictures_one(tmp_path, caplog):
    """Many writers store the last part of a path alone: "1.jpg" of every class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    caplog.set_level("INFO")
    out = tmp_path / "out"
    (out / "photos").mkdir(parents=True)
    (out / "photos" / "a.png").write_bytes(b"the only copy")
    (out / "code.py").write_text("mine")

    def column(path: str, *shades: int) -> list:
        return [[{"bytes": png(shade), "path": path}] for shade in shades]

    table = {
        "images": column("1.png", 1, 2),
        "image_noisy": column("photos/a.png", 3, 4),
        "image_aug": column("code.py", 5, 6),
        "problem": ["<image>q"] * 2,
        "answer": ["a"] * 2,
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    rows = formats.read_parquet(tmp_path / "t.parquet", out)
    names = [n for row in rows for n in (row.anchor, row.positive, row.negative)]
    assert [(out / name).read_bytes() for name in names] == [png(n) for n in (1, 3, 5, 2, 4, 6)]
    assert (out / "photos" / "a.png").read_bytes() == b"the only copy"
    assert (out / "code.py").read_text() == "mine"
    assert "5 pictures have a name of their own bytes" in caplog.text
    files = sorted(out.rglob("*"))
    assert formats.read_parquet(tmp_path / "t.parquet", out) == rows  # again: the same
    assert sorted(out.rglob("*")) == files
    pq.write_table(
        pa.table(table | {"images": [[{"bytes": b"no", "path": "x.png"}]] * 2}),
        tmp_path / "t.parquet",
    )
    with pytest.raises(DataError, match="row 0: column 'images': (.|\n)*row 1"):
        formats.read_parquet(tmp_path / "t.parquet", out)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_path_that_leads_out_is_not_even_read(tmp_path):
    """What waits there may never end, as /dev/zero."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "out").mkdir()
    cell = [[{"bytes": png(1), "path": "../pipe.png"}]]
    pictures = dict.fromkeys(("images", "image_noisy", "image_aug"), cell)
    table = pictures | {"problem": ["<image>q"], "answer": ["a"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    (row,) = formats.read_parquet(tmp_path / "t.parquet", tmp_path / "out")
    assert (tmp_path / "out" / row.anchor).read_bytes() == png(1)


def test_a_picture_whose_name_is_spelt_otherwise_on_the_disk_is_packed(tmp_path):
    Image.new("RGB", (8, 9)).save(tmp_path / "u\u0308.png")
    row = TripletRow(*["\u00fc.png"] * 3, "Name it.", "a")
    formats.write_parquet(tmp_path / "t.parquet", [row], tmp_path)
    assert formats.read_parquet(tmp_path / "t.parquet", tmp_path / "out") == [row]


def test_missing_pictures_and_columns_are_all_named(triplets, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(DataError, match="--pictures(.|\n)*a/0.png(.|\n)*b/1.png"):
        formats.write_parquet(tmp_path / "t.parquet", triplets, tmp_path)
    assert not (tmp_path / "t.parquet").exists()
    pq.write_table(pa.table({"images": [[]]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="image_aug(.|\n)*image_noisy"):
        formats.read_parquet(tmp_path / "t.parquet", tmp_path)
