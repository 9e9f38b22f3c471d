"""Seven short runs of stage 2, one sound and six with a fault: the logs that notebook 09 reads.

    python assets/results/reading_runs/make.py            all seven
    python assets/results/reading_runs/make.py healthy    some, by name

Each starts from the SFT adapter of the lab student, world 0, with the same seed and so with the
same birds. NAME.jsonl is the log.jsonl that `train_tapo` wrote, unchanged; completions.jsonl holds
four completions of the first group of each run's first and last step. A fault is a setting of
`RUNS`; only the wrong mask is a patch, `padding_in_the_loss`.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT))

from finer1_lite import cot, models, paperbirds, rewards, tapo  # noqa: E402
from finer1_lite.generation import Student  # noqa: E402
from finer1_lite.presets import Preset  # noqa: E402
from finer1_lite.runtime import console  # noqa: E402
from finer1_lite.sft import chain_rows, train_sft  # noqa: E402
from finer1_lite.species import Collection  # noqa: E402
from finer1_lite.students.lab_student import asset_folder  # noqa: E402

SEED = 0
STORED = 4  # completions of a group
FEW = ("viris wren", "somar wren", "nelen wren", "dasil wren")  # few, so a short run shows a trend
SMALL = dict(  # of every run
    tapo__steps=12,
    tapo__groups=4,
    tapo__draws=1,
    tapo__temperature=1.2,
    tapo__with_options=False,
)
RUNS: dict[str, dict] = {  # name -> what differs
    "healthy": {},
    "entropy_collapse": dict(
        tapo__anchor_entropy_weight=10.0,
        tapo__top_p=0.7,
        tapo__keep="all",
        tapo__learning_rate=4 * 1e-3,
    ),
    "format_hacking": dict(
        tapo__rewards="make:thorough=2", tapo__accuracy_weight=0.1, tapo__keep="all"
    ),
    "high_rate": dict(tapo__learning_rate=30 * 1e-3),
    "section_collapse": dict(tapo__rewards="make:brief=2", tapo__keep="all"),
    "wrong_mask": {},
    "zero_variance": dict(max_new_tokens=100),  # a chain takes about 127
}


def thorough(completions: Sequence, **columns: object) -> list[float]:
    """A careless reward for form: well formed, and the more differences are listed the better."""
    texts = [chat[0]["content"] for chat in completions]
    lists = [re.findall(r"\bhas ([^;\n]*)", text) for text in texts]
    listed = [min(12, sum(one.count(",") + 1 for one in found)) / 12 for found in lists]
    return [form * share for form, share in zip(rewards.format(completions), listed, strict=True)]


def brief(completions: Sequence, completion_ids: Sequence, **columns: object) -> list[float]:
    """A careless price on length: what a well-formed completion spares of the 160 tokens."""
    formed = rewards.format(completions)
    return [form * (1 - len(ids) / 160) for form, ids in zip(formed, completion_ids, strict=True)]


@contextmanager
def replaced(name: str, made: Callable[[Callable], Callable]) -> Iterator[None]:
    """`tapo.NAME` is made(what it was) meanwhile."""
    was = getattr(tapo, name)
    setattr(tapo, name, made(was))
    try:
        yield
    finally:
        setattr(tapo, name, was)


def padding_in_the_loss(make_batch: Callable) -> Callable:
    """The fault of "wrong_mask": every position counts in the loss, padding behind the end too."""

    def faulty(*arguments: object) -> tapo.Batch | None:
        batch = make_batch(*arguments)
        if batch:
            batch.completion_mask = torch.ones_like(batch.completion_mask)
            batch.token_count = batch.completion_mask.numel()
        return batch

    return faulty


def without_comparison(student: Student, birds: Collection, preset: Preset, folder: Path) -> None:
    """Half of the fault of "section_collapse": more SFT, on chains of which half lack a part."""
    chains = cot.make_chains(birds, cot.oracle(paperbirds.make_world(seed=0)), seed=0)
    for photo in list(chains)[::2]:
        lines = chains[photo].splitlines(keepends=True)
        chains[photo] = "".join(line for line in lines if not line.startswith("comparison:"))
    train_sft(
        student, chain_rows(birds, chains), preset.with_(sft__steps=24, sft__batch=8), SEED, folder
    )


def listening(heard: list[list[dict]]) -> Callable[[Callable], Callable]:
    """Of each step, keep what its first group wrote; the log stays as it is."""

    def made(step_log: Callable) -> Callable:
        def listener(settings: object, kept: Sequence, dropped: Sequence, *rest: object) -> dict:
            group = (list(kept) + list(dropped))[0]
            rows = zip(group.completions, group.right, group.reward, strict=True)
            said = [
                {"bird": group.triplet.anchor.species, "right": float(right)}
                | {"reward": round(float(reward), 3), "completion": text}
                for text, right, reward in rows
            ]
            heard.append(said[:STORED])
            return step_log(settings, kept, dropped, *rest)

        return listener

    return made


def train(name: str, birds: Collection) -> list[dict]:
    """Run NAME; write its log; returns its stored completions."""
    preset = Preset.lab().with_(**SMALL | RUNS[name])
    student = models.load_student(asset_folder(0), preset)
    adapter = ROOT / "assets" / "adapters-world0" / "sft"
    student = models.load_adapter(student, adapter, trainable=True)
    heard: list[list[dict]] = []
    kinds = [replace(one, seen=one.name in FEW) for one in birds.species]
    few = tuple(photo for photo in birds.train if photo.species in FEW)
    small = replace(birds, species=tuple(kinds), train=few)
    fault = padding_in_the_loss if name == "wrong_mask" else lambda it: it
    started = time.time()
    with (
        tempfile.TemporaryDirectory() as work,
        replaced("make_batch", fault),
        replaced("step_log", listening(heard)),
    ):
        folder = Path(work) / "seed0" / name
        if name == "section_collapse":
            without_comparison(student, birds, preset, Path(work) / "more_sft")
        tapo.train_tapo(student, small, preset, SEED, folder)
        (HERE / f"{name}.jsonl").write_bytes((folder / "log.jsonl").read_bytes())
    print(f"{name}: {len(heard)} steps, {(time.time() - started) / 60:.1f} minutes", flush=True)
    ends = {1: heard[0], len(heard): heard[-1]}
    return [{"run": name, "step": step} | row for step, said in ends.items() for row in said]


def store(name: str, rows: list[dict]) -> None:
    """Put NAME's completions into completions.jsonl, in the place of older ones."""
    path = HERE / "completions.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    others = [row for row in map(json.loads, lines) if row["run"] != name]
    found = sorted(others + rows, key=lambda row: list(RUNS).index(row["run"]))
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def main() -> None:
    """Make the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RUNS))
    names = parser.parse_args().names or list(RUNS)
    if unknown := [name for name in names if name not in RUNS]:
        parser.error(f"no such run: {', '.join(unknown)}; one of {', '.join(RUNS)}")
    console.hide_bars()
    birds = paperbirds.collection(paperbirds.make_world(seed=0), shots=2)
    for name in names:
        store(name, train(name, birds))


if __name__ == "__main__":
    main()
