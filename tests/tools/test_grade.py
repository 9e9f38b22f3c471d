"""`grade`: our solutions pass, stubs and tempting answers do not, and no cell harms the others."""

import json
import random
import re
import time
from pathlib import Path

import pytest
import torch
from paths import ROOT

from finer1_lite import advantages, logprobs, losses, rewards
from finer1_lite.__main__ import main
from finer1_lite.data.statistics import mcnemar, wilson
from finer1_lite.evals.analysis import cka
from finer1_lite.evals.tables import calibration_error, majority
from finer1_lite.tools import exercises, grade

TABLE = exercises.read_exercises()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def judged(number: str, source: str, seed: int = 0) -> tuple[str, str]:
    """What `grade` says of a cell, which runs here: of nothing that could do harm."""
    one, inputs = TABLE[number], grade.pack(exercises.draw_inputs(number, seed))
    rows = list(grade.answers(source, one.function, one.arguments, inputs))
    return grade.judge(one, inputs, rows)


def handed_in(folder: Path, name: str, **cells: str) -> Path:
    """A notebook with these cells: _05_1="source of 05.1"."""
    sources = [f"# exercise {key[1:].replace('_', '.')}\n{text}" for key, text in cells.items()]
    done = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    notebook = {"nbformat": 4, "cells": [{**done, "source": text} for text in sources]}
    (folder / name).write_text(json.dumps(notebook), "utf-8")
    return folder / name


def solutions(chapter: str) -> dict[str, str]:
    return {f"_{n.replace('.', '_')}": e.solution for n, e in TABLE.items() if n[:2] == chapter}


# --- the exercises ---------------------------------------------------------------------------


def test_there_are_two_or_three_of_each_notebook_numbered_without_a_gap():
    chapters = [f"0{chapter}" for chapter in range(10)]
    assert list(TABLE) == sorted(TABLE) and {number[:2] for number in TABLE} == {*chapters}
    for chapter in chapters:
        of = [number for number in TABLE if number[:2] == chapter]
        assert of in ([f"{chapter}.{i}" for i in range(1, n + 1)] for n in (2, 3))
    assert len(TABLE) >= 20 and TABLE.keys() == exercises.DRAWS.keys() >= exercises.EDGES.keys()


@pytest.mark.parametrize("number", TABLE)
def test_our_solution_passes_and_the_stub_is_untouched(number):
    one = TABLE[number]
    for seed in range(3):
        assert judged(number, one.solution, seed) == ("passed", "")
    assert judged(number, one.stub)[0] == "untouched" and grade.untouched(one.stub, one.function)
    assert not grade.untouched(one.solution, one.function)


@pytest.mark.parametrize("number", TABLE)
def test_each_mistake_of_the_table_fails_and_is_told(number):
    assert len(TABLE[number].mistakes) > 1
    for told, source in TABLE[number].mistakes.items():
        assert source != TABLE[number].solution, f"changes nothing: {told}"
        for seed in range(3):
            result, said = judged(number, source, seed)
            assert result == "failed" and f"hint: {told}" in said


WRONG = {  # number -> a tempting answer in other words than the table's; what is told of it
    "00.1": (
        "import re\ndef reward_of(completion, label):\n"
        "    form = re.match(r'<think>[^<]*</think>\\s*<answer>[^<]*</answer>\\s*$', completion)\n"
        "    return (0.9 if re.search(label, completion, re.I) else 0) + (0.1 if form else 0)",
        "a chain that only mentions it earns the reward",
    ),
    "00.2": (
        "import numpy as np\ndef advantages_of(rewards):\n"
        "    return (rewards - rewards.mean()) / (np.std(rewards.numpy()) + 1e-6)",
        "numpy's default is n",
    ),
    "01.1": (
        "def place_shares(candidates, labels):\n"
        "    at = [c.index(x) for c, x in zip(candidates, labels) if x in c]\n"
        "    return [at.count(i) / len(at) if at else 0.0 for i in range(4)]",
        "the others count too",
    ),
    "01.2": (
        "def nearest_class(marks, name):\n"
        "    alike = {o: len(marks[name].items() & marks[o].items()) for o in marks}\n"
        "    return max(alike, key=alike.get)",
        "leave it out",
    ),
    "02.1": (
        "import torch\ndef labels_of(ids, prompt, length):\n    at = torch.arange(len(ids))\n"
        "    return torch.where((at >= prompt) & (at < length - 1), ids, -100)",
        "the end of turn is masked",
    ),
    "02.2": (
        "def merged_weight(weight, a, b, alpha):\n    return weight + (b * alpha) @ a",
        "it is alpha / r",
    ),
    "02.3": (
        "def lora_parameters(shapes, rank):\n    return sum(i * rank for _, i in shapes)",
        "only A is counted",
    ),
    "03.1": (
        "def next_token_log_probs(logits, ids):\n    logps = logits.log_softmax(dim=-1)\n"
        "    import torch\n    return logps[torch.arange(1, len(ids)), ids[1:]]",
        "off by one",
    ),
    "03.2": (
        "def gradient_flows(ratio, advantage):\n"
        "    x = ratio.clone().requires_grad_()\n"
        "    import torch\n"
        "    torch.minimum(x * advantage, x.clamp(0.8, 1.28) * advantage).sum().backward()\n"
        "    return x.grad != 0",
        "the dual clip is missing",
    ),
    "03.3": (
        "def two_means(values, mask):\n    kept = values[mask.bool()]\n"
        "    return kept.mean(), kept.mean()",
        "twice the token mean",
    ),
    "04.1": (
        "def kl_estimate(logps, negative_logps):\n    ratio = (logps - negative_logps).exp()\n"
        "    return ratio - 1 - ratio.log()",
        "the wrong way round",
    ),
    "05.1": (
        "def bits_a_weight(block, group):\n    return (4 * block + 32) / block",
        "without double quantisation",
    ),
    "05.2": (
        "def to_levels(weights, levels, block):\n    scale = weights.abs().max()\n"
        "    near = (weights[:, None] - levels * scale).abs().argmin(1)\n"
        "    return levels[near] * scale",
        "each block has its own",
    ),
    "06.1": (
        "def wilson_interval(right, n):\n    p = right / n\n"
        "    half = 1.96 * (p * (1 - p) / n) ** 0.5\n    return [p - half, p + half]",
        "the textbook interval",
    ),
    "06.2": (
        "from math import comb\ndef mcnemar_p(a, b):\n"
        "    only = sum(map(lambda x, y: x > y, a, b))\n"
        "    n = sum(map(lambda x, y: x != y, a, b))\n    k = min(only, n - only)\n"
        "    return sum(comb(n, i) for i in range(k + 1)) * 0.5**n",
        "one-sided",
    ),
    "07.1": (
        "def linear_cka(x, y):\n    import numpy as np\n    x, y = x.numpy(), y.numpy()\n"
        "    cross = np.square(x.T @ y).sum()\n"
        "    return cross / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)",
        "not centred",
    ),
    "08.3": (
        "def vote(samples):\n    named = [s for s in samples if s]\n"
        "    best = max(named, key=named.count) if named else None\n"
        "    return best, named.count(best) / max(1, len(named))",
        "those that do not count as well",
    ),
}


@pytest.mark.parametrize("number", WRONG)
def test_a_tempting_answer_fails_with_the_name_of_its_mistake(number):
    source, told = WRONG[number]
    for seed in range(3):
        result, said = judged(number, source, seed)
        assert result == "failed" and told in said


@pytest.mark.parametrize("number", TABLE)
def test_printing_and_constants_do_not_pass(number, capsys):
    one = TABLE[number]
    head = f"def {one.function}({', '.join(one.arguments)}):\n"
    source = f"{one.solution}\nours = {one.function}\n{head}"
    result, said = judged(number, f"{source}    print(ours({', '.join(one.arguments)}))")
    assert result == "failed"
    assert "print shows a result, return gives it" in said
    capsys.readouterr()
    inputs = grade.pack(exercises.draw_inputs(number, 0))
    for row in list(grade.answers(one.solution, one.function, one.arguments, inputs))[:5]:
        value = json.dumps(row["value"])
        source = f"import json\n{head}    return json.loads({value!r})"
        assert judged(number, source)[0] == "failed", value


def test_inputs_are_others_each_time_and_come_again_with_their_seed():
    for number in TABLE:
        first, again, other = (grade.pack(exercises.draw_inputs(number, s)) for s in (1, 1, 2))
        assert first == again != other


def test_references_are_the_packages_own_functions():
    """What is asked in a notebook is what the project computes."""
    ours = {
        "00.1": lambda text, label: (
            0.9 * rewards.accuracy_reward(text, label, classes=exercises.NAMES)
            + 0.1 * rewards.format_reward(text)
        ),
        "00.2": lambda r: advantages.group_advantages(r, len(r)),
        "03.1": lambda logits, ids: logprobs._chunk_scores(
            torch.nn.Identity(), logits[:-1], ids[1:], 1.0
        ),
        "03.2": lambda r, a: ~losses.clipped(r, r, a, (0.2, 0.28, 3.0))[1],
        "03.3": lambda v, m: [
            losses.token_mean(v, m),
            losses.token_mean(v, m, losses.own_tokens(m.bool(), 0, len(m), 0)),
        ],
        "04.3": advantages.share_without_variance,
        "06.1": wilson,
        "06.2": lambda a, b: mcnemar(a, b)[2],
        "06.3": calibration_error,
        "07.1": lambda x, y: cka(x.numpy(), y.numpy()),
        "08.3": majority,
    }
    for number, function in ours.items():
        one, inputs = TABLE[number], exercises.draw_inputs(number, 0)
        packed = grade.pack(inputs)
        rows = grade.answers(one.solution, one.function, one.arguments, packed)
        for given, row in zip(inputs, rows, strict=True):
            assert grade.same(grade.pack(function(*given)), row["value"]), (number, given)
    (k3,) = exercises.draw_inputs("04.1", 0, 1)  # the library's is capped at 10 a token
    torch.testing.assert_close(losses.k3(*k3), (k3[1] - k3[0]).expm1() - k3[1] + k3[0])


# --- the notebooks ---------------------------------------------------------------------------


def cells_of(path: Path) -> list[tuple[str, str]]:
    notebook = json.loads(path.read_text("utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_the_tasks_stubs_and_solutions_of_the_table(path, capsys):
    """The stub stands as it is, runs without a word, and the folded solution passes."""
    cells = cells_of(path)
    for at, (kind, text) in enumerate(cells):
        for number in grade.MARK.findall(text) if kind == "code" else ():
            one = TABLE[number]
            assert number[:2] == path.name[:2]
            assert cells[at - 1] == ("markdown", f"**{number}** {one.task}")
            assert text == one.stub.strip() and grade.untouched(text, one.function)
            exec(text, {})
            (solution,) = CODE.findall(cells[at + 1][1])
            assert solution == one.solution and one.why in cells[at + 1][1]
    assert not any(capsys.readouterr())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_untouched_notebook_fails_without_running_anything(path, monkeypatch, capsys):
    monkeypatch.setattr(grade, "run_alone", None)
    found = {n for kind, text in cells_of(path) if kind == "code" for n in grade.MARK.findall(text)}
    if not found:
        pytest.skip("has no checked exercises yet")
    assert not grade.grade([path])
    said = capsys.readouterr().out
    assert said.count("untouched") == len(found) and f"0 of {len(found)} passed" in said


# --- whatever a cell does --------------------------------------------------------------------

HEAD = "def bits_a_weight(block, group):\n    "
RIGHT = "return 4 + 8 / block + 32 / (block * group)"
HOSTILE = {
    "a loop": (HEAD + "while True: pass", "takes longer than"),
    "a loop at last": (HEAD + f"while block == 128: pass\n    {RIGHT}", "takes longer than"),
    "a loop in the cell": ("while True: pass", "takes longer than"),
    "an exception": (HEAD + "return 1 / 0", "stops with ZeroDivisionError: division by zero"),
    "in the cell": ("1 / 0\n" + HEAD + RIGHT, "the cell stops with ZeroDivisionError"),
    "exit": (HEAD + "exit()", "stops with SystemExit"),
    "sys.exit": ("import sys\n" + HEAD + "sys.exit(0)", "stops with SystemExit: 0"),
    "a hard exit": ("import os\n" + HEAD + "os._exit(0)", "ends its process (exit code 0)"),
    "a crash": ("import ctypes\n" + HEAD + "ctypes.string_at(0)", "ends its process"),
    "a recursion": (HEAD + "return bits_a_weight(block, group)", "stops with RecursionError"),
    "fewer arguments": ("def bits_a_weight(block): return 4", "stops with TypeError"),
    "other arguments": (
        "def bits_a_weight(group, block): return 4",
        "the arguments are to be block, group",
    ),
    "more arguments": (
        "def bits_a_weight(block, group, bits): return 4",
        "missing a required argument: 'bits'",
    ),
    "another name": ("def bits(block, group): return 4", "defines no function bits_a_weight"),
    "a syntax error": ("def bits_a_weight(block, group) return 4", "stops with SyntaxError"),
    "a name of another cell": (HEAD + "return 4 + np.log2(block)", "a cell runs alone"),
    "a wrong kind": (HEAD + "return lambda: 4", "{'of type': 'function'}"),
    "a large answer": (HEAD + "import numpy\n    return numpy.zeros(10**5)", "is too large"),
    "a long answer": (HEAD + "return [4] * 10**5", "gives [4, 4, 4"),
    "nothing": (HEAD + f"print({RIGHT[7:]})", "print shows a result"),
    "a constant": (HEAD + "return 3", "it gives the same whatever it is given"),
    "what it prints": (HEAD + "print('{\"value\": 4.127}')\n    return 0", "gives 0"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_whatever_a_cell_does_it_fails_alone_and_is_said(kind):
    source, said = HOSTILE[kind]
    limit = 2 if "longer" in said else 60
    row = grade.check("05.1", f"# exercise 05.1\n{source}", 0, limit)
    assert (row["exercise"], row["result"]) == ("05.1", "failed")
    assert said in row["message"]
    assert len(row["message"]) < 2000


def test_a_huge_print_is_survived():
    source = HEAD + f"print('x' * 10**7)\n    {RIGHT}"
    assert grade.check("05.1", source, 0, 60)["result"] == "passed"


def test_too_much_memory_is_an_error_of_the_cell():
    pytest.importorskip("resource")
    source = HEAD + f"held = bytearray(8 << 30)\n    {RIGHT}"
    assert "stops with MemoryError" in grade.check("05.1", source, 0, 60)["message"]


@pytest.mark.parametrize(
    ("number", "source"),
    [
        (
            "08.1",
            "def split_by_class(labels, order, shots):\n    order.sort()\n    return order, []",
        ),
        ("02.1", "def labels_of(ids, prompt, length):\n    ids[:prompt] = -100\n    return ids"),
    ],
)
def test_a_function_that_changes_its_arguments_is_told_so(number, source):
    assert "changes its arguments" in judged(number, source)[1]


def test_a_child_of_a_cell_does_not_outlive_it(tmp_path):
    """A process that a cell started is ended with it."""
    mark = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(mark)!r}).touch(); time.sleep(.1)"
    source = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
    source += f"import pathlib\nwhile not pathlib.Path({str(mark)!r}).exists(): time.sleep(.1)\n"
    assert grade.check("05.1", source + HEAD + RIGHT, 0, 60)["result"] == "passed"
    time.sleep(0.5)
    mark.unlink()
    time.sleep(1)
    assert not mark.exists()


def test_a_cell_is_given_no_secret_and_no_terminal(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    source = "import os, sys\nassert not [n for n in os.environ if 'API_KEY' in n]\n"
    source += "assert not sys.stdin.read()\n" + HEAD + RIGHT
    assert grade.check("05.1", source, 0, 60)["message"] == ""


def test_magic_lines_are_left_out():
    assert judged("05.1", "%matplotlib inline\n!pip list\n" + HEAD + RIGHT)[0] == "passed"
    modulo = "return (4 + 8 / block + 32 / (block * group)\n    % 99)"
    assert judged("05.1", HEAD + modulo)[0] == "passed"


def test_answers_may_be_arrays_lists_or_tensors_of_the_right_shape():
    vote = "import numpy as np\ndef place_shares(candidates, labels):\n"
    vote += "    rows = [[n == x for n in c] for c, x in zip(candidates, labels)]\n"
    assert judged("01.1", vote + "    return np.mean(rows, axis=0)")[0] == "passed"
    assert judged("01.1", vote + "    return np.mean(rows, axis=0)[None]")[0] == "failed"


# --- the command -----------------------------------------------------------------------------


def test_a_class_is_graded_in_one_go(tmp_path, capsys):
    """Whoever solved all, whoever left one cell out, whoever handed in no notebook."""
    right = solutions("05")
    del right["_05_2"]  # needs torch: seconds
    handed_in(tmp_path, "anne.ipynb", **right)
    handed_in(tmp_path, "05_ben.ipynb")
    (tmp_path / "carl.ipynb").write_text("{", "utf-8")
    (tmp_path / "dora.ipynb").write_text("[]", "utf-8")
    handed_in(tmp_path, "emil.ipynb")
    out = tmp_path / "rows.json"
    assert main(["grade", str(tmp_path), "--json", str(out), "--seed", "3"]) == 2
    rows = json.loads(out.read_text("utf-8"))
    found = {(Path(r["notebook"]).name, r["exercise"]): r["result"] for r in rows}
    assert found == {
        ("05_ben.ipynb", "05.1"): "missing",
        ("05_ben.ipynb", "05.2"): "missing",
        ("05_ben.ipynb", "05.3"): "missing",
        ("anne.ipynb", "05.1"): "passed",
        ("anne.ipynb", "05.2"): "missing",
        ("anne.ipynb", "05.3"): "passed",
    }
    assert {tuple(row) for row in rows} == {
        ("notebook", "exercise", "function", "result", "message", "seed")
    }
    said = capsys.readouterr().out
    assert "2 of 6 passed" in said and "no code cell has a line '# exercise 05.2'" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[1]", "it has no cells"),
        ('{"cells": [3]}', "it has no cells"),
        ('{"cells": []}', "neither cells nor name tell"),
        (None, "No such file"),
    ],
)
def test_what_is_no_notebook_gives_one_clear_error(tmp_path, caplog, text, said):
    path = tmp_path / "mine.ipynb"
    if text is not None:
        path.write_text(text, "utf-8")
    assert main(["grade", str(path)]) == 2
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert said in record.getMessage() and "mine.ipynb" in record.getMessage()


def test_exit_codes_and_a_touched_second_cell(tmp_path, capsys):
    stub = {"_05_1": TABLE["05.1"].stub}
    path = handed_in(tmp_path, "x.ipynb", **solutions("05") | stub)
    assert main(["grade", str(path)]) == 1
    cells = json.loads(path.read_text("utf-8"))
    again = {**cells["cells"][0], "source": ["# exercise 05.1\n", HEAD, RIGHT]}
    for order in ([again, *cells["cells"]], [*cells["cells"], again]):
        path.write_text(json.dumps({"cells": order}), "utf-8")
        assert main(["grade", str(path), "--limit", "200"]) == 0
    assert "3 of 3 passed" in capsys.readouterr().out


def test_a_folder_without_notebooks_is_no_pass(tmp_path, caplog):
    """Jupyter's own copies are nobody's hand-in."""
    (tmp_path / ".ipynb_checkpoints").mkdir()
    handed_in(tmp_path / ".ipynb_checkpoints", "05_x.ipynb", **solutions("05"))
    assert main(["grade", str(tmp_path)]) == 2
    assert "there is no notebook in these folders" in caplog.text


def test_a_limit_of_nothing_is_refused(tmp_path, caplog):
    assert main(["grade", str(tmp_path), "--limit", "0"]) == 2
    assert "--limit 0.0: give seconds above 0" in caplog.text


def test_the_seed_is_printed_and_repeats_the_inputs(tmp_path, capsys):
    path = handed_in(tmp_path, "x.ipynb", _05_1=HEAD + "return block * group")

    def call() -> str:
        return capsys.readouterr().out

    grade.grade([path], limit=60)
    first = call()
    (seed,) = re.findall(r"--seed (\d+)", first)
    grade.grade([path], seed=int(seed), limit=60)
    assert call() == first
    shown = {
        judged("05.3", "def cache_bytes(layers, heads, kv_heads, size, tokens, rows): return 1", s)
        for s in random.sample(range(1000), 3)
    }
    assert len(shown) == 3


@pytest.mark.slow
def test_every_solution_passes_in_a_process_of_its_own(tmp_path):
    paths = [
        handed_in(tmp_path, f"{c}_x.ipynb", **solutions(c)) for c in sorted({n[:2] for n in TABLE})
    ]
    assert grade.grade(paths, limit=300)
