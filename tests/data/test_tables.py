"""Tables of any spreadsheet program: one reader, every problem of a file at once."""

import csv
import json
import logging
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photo_folders import four_classes

from finer1_lite.chains import formats
from finer1_lite.data import tables
from finer1_lite.data.runs import Pictures
from finer1_lite.evals import questions
from finer1_lite.runtime import files
from finer1_lite.runtime.files import DataError, scan
from finer1_lite.species import load_folder

NEEDED = [("class",), ("description", "product_description")]
ROWS = [("Snow drop", "white, small"), ("M\u00e4dchenauge", "yellow; large")]


def csv_of(delimiter: str, rows=ROWS, header=("Class", "Product Description")) -> str:
    lines = [header, *rows]
    return "".join(delimiter.join(f'"{cell}"' for cell in line) + "\r\n" for line in lines)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_every_encoding_and_delimiter_gives_the_same_rows(tmp_path, encoding, delimiter):
    path = tmp_path / "table.csv"
    path.write_bytes(csv_of(delimiter).encode(encoding))
    table = tables.read(path, NEEDED)
    assert table.columns == ["class", "product_description"] and not table.problems
    assert [tuple(row.values()) for _, row in table.rows] == ROWS
    assert [line for line, _ in table.rows] == [2, 3]


@pytest.mark.parametrize("name", ["\u9ce5", "\u043a"])  # the bytes of the second are UTF-8, too
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_may_begin_with_any_letter(tmp_path, encoding, name):
    path = tmp_path / "table.csv"
    path.write_bytes(f"\u043a\u043b\u0430\u0441\u0441,class\r\n{name},rose\r\n".encode(encoding))
    table = tables.read(path)
    assert table.rows == [(2, {"\u043a\u043b\u0430\u0441\u0441": name, "class": "rose"})]


def test_what_excel_adds_is_no_row(tmp_path):
    """Its line `sep=;`, columns without a name, and rows without a text."""
    path = tmp_path / "table.csv"
    path.write_text("sep=;\nclass;description;;\nrose;red;;\n;;;\nwren;\u201cbrown\u201d;;\n\n")
    table = tables.read(path, NEEDED)
    assert table.rows == [
        (3, {"class": "rose", "description": "red"}),
        (5, {"class": "wren", "description": "\u201cbrown\u201d"}),
    ]


def test_an_encoding_that_is_guessed_is_said(tmp_path, caplog):
    path = tmp_path / "table.csv"
    path.write_bytes(csv_of(";").encode("cp1252"))
    with caplog.at_level(logging.INFO, logger="finer1_lite"):
        tables.read(path).say_unused(["class"])
    assert "read as cp1252" in caplog.text and "not used: product_description" in caplog.text
    for data in (b"class,\x81\x8d\xff", b"PK\x03\x04 of Excel"):
        path.write_bytes(data)
        with pytest.raises(DataError, match="CSV UTF-8"):
            tables.read(path)


def test_two_marks_and_quotes_after_a_space_are_no_text(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('\ufeff\ufeffclass, description\r\nrose, "red, small"\r\n')
    assert tables.read(path, NEEDED).rows == [(2, {"class": "rose", "description": "red, small"})]


def test_all_problems_of_a_file_come_together(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("class,class,text\na,b\na,b,c\na,b,c,d\n")
    with pytest.raises(DataError) as caught:
        tables.read(path, NEEDED)
    told = "\n".join(caught.value.problems)
    for words in ("lacks the column description or", "called class", "line 2", "line 4"):
        assert words in told


def test_what_a_spreadsheet_would_compute_is_a_text_and_comes_back(tmp_path):
    path = tmp_path / "table.csv"
    cells = ["=1+1", "+1", "-1", "@a", "\ta", "\uff1d1", "'=1", "''-", "'s", "a=1", ""]
    tables.write(path, ("class", "="), ([cell, "x"] for cell in cells))
    for row in csv.reader(path.read_text("utf-8-sig").splitlines()[1:]):
        assert row[0][:1] not in set("=+-@\t\uff1d") - {""}
    assert [row["class"] for _, row in tables.read(path, exact=True).rows] == cells
    tables.write(path, ("n",), [[-0.5]])
    assert tables.read(path).rows == [(2, {"n": "-0.5"})]  # a number is none


def test_json_lines_are_rows_too(tmp_path):
    path = tmp_path / "metadata.jsonl"
    rows = [{"file_name": "a.jpg", "label": None}, {"file_name": "b.jpg", "Count": 3}]
    path.write_text("\ufeff" + "\n".join(map(json.dumps, rows)) + "\n{half\n[1]\n")
    table = tables.read(path, [("file_name",)])
    assert [row for _, row in table.rows] == [
        {"file_name": "a.jpg", "label": "", "count": ""},
        {"file_name": "b.jpg", "label": "", "count": "3"},
    ]
    assert [problem.split(":")[0][-6:] for problem in table.problems] == ["line 3", "line 4"]
    path.write_text(json.dumps(rows, indent=1))
    with pytest.raises(DataError, match="one JSON array") as caught:
        tables.read(path)
    assert len(caught.value.problems) == 1


def test_lines_of_other_files_may_begin_with_a_mark_too(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('\ufeff{"a": 1}\n')
    assert list(scan(path)) == [(1, {"a": 1}, "")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_is_read_in_any_encoding_and_with_any_line_end(tmp_path, encoding, end):
    path = tmp_path / "x.jsonl"
    path.write_bytes(end.join(['{"a": "\u00e4"}', "", '{"a": 2}', ""]).encode(encoding))
    assert files.read(path) == [(1, {"a": "\u00e4"}), (3, {"a": 2})]
    assert [row["a"] for _, row in tables.read(path).rows] == ["\u00e4", "2"]
    path.write_bytes(json.dumps([1]).encode(encoding))
    assert files.load(path) == [1]


@pytest.mark.parametrize("text", ['[\n{"a": 1}\n]', '[{"a": 1}, {"a": 2}]', '{\n"a": 1\n}\n'])
def test_json_that_is_no_lines_is_one_fault_with_its_mend(tmp_path, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    for read in (files.read, tables.read):
        with pytest.raises(DataError, match="x.jsonl: begins as .*write one object a line"):
            read(path)


def test_quotes_of_a_word_processor_are_told_by_their_place(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("{\u201ca\u201d: 1}\n{'a': 1}\n")
    with pytest.raises(DataError) as caught:
        files.read(path)
    assert len(caught.value.problems) == 2
    assert all("double quotes, column 2" in problem for problem in caught.value.problems)


VALID = [
    b'{"image": "0.jpg", "question": "?", "answer": "a", "options": ["a", "b"]}\n{"a": [1]}\n',
    b'class,description\r\n"rose, red",\xc3\xa4\r\n',
    "\ufeffsep=;\nclass;text\nrose;1\n".encode(),
    json.dumps({"messages": [{"role": "user", "content": "<image>?"}], "images": "a"}).encode(),
]
bytes_of_files = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda whole, at, cut, new: whole[: at % len(whole)] + new + whole[at % len(whole) + cut :],
        st.sampled_from(VALID),
        st.integers(0, 999),
        st.integers(0, 9),
        st.binary(max_size=6)
        | st.sampled_from([b'"', b"\0", b"[" * 999, b"1e999", b"\xff\xfe", b"a" * 140_000]),
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(data=bytes_of_files)
def test_any_bytes_end_in_rows_or_in_one_clear_error(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    for name in ("x.jsonl", "x.csv", "x.json", "bird_seen.jsonl"):
        path = folder / name
        path.write_bytes(data)
        reads = [tables.read, files.read, files.load, formats.read_any, formats.read_triplets]
        for read in (
            *reads,
            lambda p: questions.gather([p]),
            lambda p: questions.gather([p], own=True),
        ):
            with suppress(DataError):
                read(path)


@pytest.mark.parametrize(
    "name, others",
    [
        ("colt's foot", ["colt\u2019s foot", "Colt\u02bcs_Foot", "colt\u00b4s-foot"]),
        ("F-16A/B", ["F-16A-B", "f 16a\u2215b", "F\u201116A\u2044B"]),
        ("\u201cRed\u201d \u00d7 blue", ['"red" x blue', "Red x blue", "\u00abRed\u00bb x Blue"]),
        ("Carex sp.", ["Carex sp", "carex SP."]),
        ("M\u00e4use", ["Ma\u0308use"]),
    ],
)
def test_spellings_of_one_name(name, others):
    assert {tables.name_key(other) for other in others} == {tables.name_key(name)}


def test_names_that_differ_stay_apart():
    names = ["snake's-head", "snakeshead", "C+", "C", "rose 1", "rose 2", "\u7fbd", "\u9ce5"]
    assert len({tables.name_key(name) for name in names}) == len(names)


def test_a_description_from_excel_in_one_round(tmp_path):
    root = four_classes(tmp_path)
    (root / "red-kite").rename(root / "kite\u2019s red-dish")
    names = ["black-kite", "kite's red\u2010dish", "barn owl", "Tawny\u2215Owl"]
    text = "Class;Description\r\n" + "".join(
        f"{n};\u201ca bird\u201d, K\u00e4uzchen\r\n" for n in names
    )
    (root / "descriptions.csv").write_bytes(text.encode("cp1252", "replace").replace(b"?", b"/"))
    birds = load_folder(root)
    assert {one.description for one in birds.species} == {"\u201ca bird\u201d, K\u00e4uzchen"}


def test_a_description_or_a_coarse_word_with_a_mark_of_tokenizers_is_a_fault(tmp_path):
    root = four_classes(tmp_path)
    names = ["black-kite", "red-kite", "barn owl", "tawny owl"]
    lines = [f"{n},a <|image_pad|> bird" if n == "red-kite" else f"{n},a bird" for n in names]
    (root / "descriptions.csv").write_text("class,description\n" + "\n".join(lines))
    with pytest.raises(DataError, match=r"descriptions.csv, line 3: holds <\|image_pad\|>"):
        load_folder(root)
    with pytest.raises(DataError, match=r"'<\|im_start\|>bird' holds <\|im_start\|>"):
        Pictures(coarse="<|im_start|>bird")
