"""Give the lab student its knowledge: `python -m finer1_lite pretrain --world-seed N`.

The claim of Fine-R1 is that a model already knows the classes and uses the knowledge
badly. So the base learns, in separate pieces, to describe birds (any combination of marks,
not only real species), to recite the field guide of *all* species, seen and unseen, to
argue in text from given marks to a name, and at last, from a few captioned pictures, a
little naming. It never sees a picture together with a chain of thought about it: a chain that
stands behind a picture argues from marks given in words, of another bird. No picture of the
training or test splits is ever drawn here.
"""

import json
import logging
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.processing_utils import ProcessorMixin

from finer1_lite import cot, models, paperbirds, prompts
from finer1_lite.data.chain_text import opening
from finer1_lite.generation import Student
from finer1_lite.paperbirds import World
from finer1_lite.presets import Preset
from finer1_lite.runtime.files import write_atomically
from finer1_lite.species import Collection
from finer1_lite.students import lab_student
from finer1_lite.students.probe import probe
from finer1_lite.trainer import Loop

log = logging.getLogger("finer1_lite")
MIXTURE = {"describe": 22, "guide": 3, "argue": 22}  # rows in every step
MISTAKEN = 0.4  # of the rows that argue have one or two wrong marks
BEHIND = 0.5  # of the chains that go on from an analysis stand behind a picture of any bird
OFFERED = 0.3  # of the questions that may have options do
CAPTIONED = 1 / 6  # of the steps, the last ones, have one more row: a picture with its name
CAPTIONS = ("A photo of a {}.", "This is a {}.", "A {} sitting in a tree.", "Here is the {}.")


class Row(NamedTuple):
    """A question and the reply that is learnt; begun: how the reply begins, not learnt."""

    question: str
    picture: Image.Image | None
    reply: str
    begun: str = ""


def describe_row(world: World, rng: random.Random) -> Row:
    """A picture and its marks, asked for in two ways; two in three are of no real species.

    Names that are offered say nothing of the picture: options of any genus stand behind some
    questions. No reply has the form of a thought: to look inside a thought is left to stage 1.
    """
    real = rng.random() < 1 / 3
    marks = world.marks[rng.choice(world.names)] if real else _any_marks(rng)
    picture = _picture(marks, rng)
    question = rng.choice((prompts.DESCRIBE, prompts.LIST)).format(coarse="bird")
    options = _options(world, rng, rng.choice(world.names))
    return Row(question + prompts.offered(options), picture, paperbirds.describe(marks))


def caption_row(world: World, rng: random.Random) -> Row:
    """A loosely captioned picture, as the web has them; or a question and the bare name."""
    name = rng.choice(world.names)
    picture = paperbirds.photo(world, name, "pretrain", rng.randrange(10**9)).image()
    if rng.random() < 0.5:
        return Row(prompts.CAPTION, picture, rng.choice(CAPTIONS).format(name))
    return Row(prompts.question("answer", "bird"), picture, prompts.answer(name))


def guide_row(world: World, rng: random.Random) -> Row:
    """The field guide, asked from either side; sometimes with four options."""
    name = rng.choice(world.names)
    known = paperbirds.knowledge(world, name)
    if rng.random() < 0.5:
        return Row(prompts.LOOKS.format(name=name), None, known)
    question = prompts.question("answer", "bird", _options(world, rng, name))
    return Row(f"A bird has {known}. {question}", None, prompts.answer(name))


def argue_row(world: World, rng: random.Random) -> Row:
    """From marks given in words to a whole chain.

    Some marks are mistaken, as eyes mistake them. The chain then goes on from what is given: it
    says of each candidate what tells it from that, and names the nearest. In half of the rows
    the marks stand in the question, in half in the analysis alone, so that the rest of a chain
    is read off its analysis wherever that came from. Some of the latter stand behind a picture
    that has nothing to do with them: what was only ever done in text alone fails behind a
    picture (the second remark falls on the wrong candidate).
    """
    name = rng.choice(world.names)
    seen = dict(world.marks[name])
    among = [n for n in world.names if world.genus[n] == world.genus[name]]
    if rng.random() < MISTAKEN:
        for mark in rng.sample(list(paperbirds.MARKS), rng.choice((1, 1, 1, 1, 2))):
            seen[mark] = rng.choice([v for v in paperbirds.MARKS[mark] if v != seen[mark]])
    options = _options(world, rng, name)
    name = _nearest(world, seen, options or among, rng)
    question = prompts.question("think", "bird", options)
    chain = cot.oracle_chain(world, name, rng, seen, options)
    if rng.random() < 0.5:
        return Row(f"A bird has {paperbirds.describe(seen)}. {question}", None, chain)
    begun = opening(chain)
    picture = _picture(_any_marks(rng), rng) if rng.random() < BEHIND else None
    return Row(question, picture, chain.removeprefix(begun), begun)


def _any_marks(rng: random.Random) -> dict[str, str]:
    """Marks that need not be a species'."""
    return {mark: rng.choice(values) for mark, values in paperbirds.MARKS.items()}


def _picture(marks: dict[str, str], rng: random.Random) -> Image.Image:
    return paperbirds.draw(marks, random.Random(f"paperbirds/pretrain/{rng.random()}"))


def _nearest(world: World, seen: dict[str, str], among: list[str], rng: random.Random) -> str:
    """The species that differs least from what is seen; ties fall by chance."""
    far = {n: len(paperbirds.differing(seen, world.marks[n])) for n in among}
    return rng.choice([n for n in among if far[n] == min(far.values())])


def _options(world: World, rng: random.Random, name: str) -> list[str] | None:
    """Four options of one genus, the name among them, in any order; or none."""
    if rng.random() >= OFFERED:
        return None
    genus = [n for n in world.names if world.genus[n] == world.genus[name] and n != name]
    options = rng.sample(genus, 3) + [name]
    rng.shuffle(options)
    return options


ROWS = {"describe": describe_row, "guide": guide_row, "argue": argue_row}


def encode(processor: ProcessorMixin, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Rows of one kind -> a right-padded batch (B, T) with loss on the reply alone."""
    texts, replies, pictures = [], [], []
    for question, picture, reply, begun in rows:
        chat = prompts.messages(question, with_image=picture is not None)
        head = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        texts.append(head + begun + reply + "<|im_end|>")
        replies.append(len(processor.tokenizer(reply + "<|im_end|>").input_ids))
        pictures += [picture] if picture is not None else []
    batch = processor(
        text=texts, images=pictures or None, padding=True, padding_side="right", return_tensors="pt"
    )
    ends = batch["attention_mask"].sum(-1, keepdim=True)  # (B, 1)
    places = torch.arange(batch["input_ids"].shape[1])  # (T,)
    starts = ends - torch.tensor(replies)[:, None]
    inside = (places >= starts) & (places < ends)
    batch["labels"] = batch["input_ids"].masked_fill(~inside, -100)
    return dict(batch)


def text_loss(model: nn.Module, processor: ProcessorMixin, kinds: list[list[Row]]) -> Tensor:
    """Mean over the reply tokens of all rows: one forward pass a kind.

    So short rows are not padded to chains.
    """
    parts = [encode(processor, rows) for rows in kinds]
    tokens = sum((part["labels"] != -100).sum() for part in parts)
    loss = 0.0
    for part in parts:
        part = {key: value.to(model.device) for key, value in part.items()}
        loss = loss + model(**part).loss * (part["labels"] != -100).sum() / tokens
    return loss


def train_text(
    model: nn.Module,
    processor: ProcessorMixin,
    make_rows: Callable[[int], list[list[Row]]],
    work: Path,
    *,
    steps: int,
    lr: float,
    on_step: Callable[[int, dict], object] | None = None,
) -> float:
    """Train all weights and return the minutes it took; resumes from the checkpoint in `work`.

    make_rows: step -> lists of rows, a list of each kind. The minutes are those of all steps,
    whichever start took them.
    """
    loop = Loop(
        model.train(),
        work,
        steps=steps,
        learning_rate=lr,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        schedule="cosine",
        warmup_steps=min(60, steps // 5),
        save_every=min(250, max(1, steps // 2)),
        on_step=on_step,
    )
    for step in loop:
        loss = text_loss(model, processor, make_rows(step))
        loop.accelerator.backward(loss)
        loop.step({"loss": loss.item()})
    return round(sum(row["step_s"] for row in loop.history) / 60, 1)


def pretrain(
    world_seed: int, out: Path, *, steps: int = 3000, lr: float = 1.2e-3, seed: int = 0
) -> dict:
    """Pretrain for a world and write model, processor and `record.json` to `out`.

    Returns the record: seeds, steps, mixture, minutes and the probe's scores, which are
    taken from the float16 weights that ship. A killed one is gone on with by the same settings.
    """
    if steps < 1:
        raise ValueError(f"--steps {steps}: 1 or more")
    world = paperbirds.make_world(world_seed)
    processor = lab_student.make_processor()
    torch.manual_seed(seed)
    model = lab_student.make_model(processor.tokenizer).to(models.choose_device())

    def rows(step: int) -> list[list[Row]]:
        rng = random.Random(f"pretrain/{world_seed}/{seed}/{step}")
        made = [[ROWS[kind](world, rng) for _ in range(n)] for kind, n in MIXTURE.items()]
        return made + [[caption_row(world, rng)]] * (step >= steps * (1 - CAPTIONED))

    work = out.parent / f"{out.name}-seed{seed}-steps{steps}-lr{lr:g}.work"
    minutes = train_text(model, processor, rows, work, steps=steps, lr=lr)
    model = model.to(torch.float16)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    record = {
        "world_seed": world_seed,
        "seed": seed,
        "steps": steps,
        "learning_rate": lr,
        "rows_a_step": MIXTURE,
        "captioned_steps": CAPTIONED,
        "minutes": minutes,
        "threads": torch.get_num_threads(),
        "probe": probe(Student(model.float().eval(), processor), world),
    }
    write_atomically(out / "record.json", (json.dumps(record, indent=1) + "\n").encode())
    shutil.rmtree(work, ignore_errors=True)
    return record


def warm_up(
    student: Student,
    collection: Collection,
    steps: int,
    work: Path,
    seed: int,
    chains: Sequence[str] = (),
) -> Student:
    """Let a lab student meet the words of a new collection: text alone, all weights.

    Words of names and descriptions become tokens (their embeddings are trained here, and
    frozen later: LoRA would leave them random). No picture is shown.
    chains: what stage 1 will be trained on, for their words.
    """
    described = {n: cot.phrase(collection, n, cot.SEEN_WORDS) for n in collection.names}
    told = [name for name, description in described.items() if description] or collection.names
    texts = [*collection.names, *chains, cot.LOOK_FOR, cot.UNKNOWN, "would be without"]
    texts += [one.casefold() for name in told for one in cot.looks(collection, name)]
    words = {w for text in texts for w in re.findall(r"\w+", text)} | {collection.coarse}
    tokenizer = lab_student.learn_words(student.processor.tokenizer, words)
    student.processor.tokenizer = tokenizer
    torch.manual_seed(seed)
    student.model.resize_token_embeddings(-(-len(tokenizer) // 64) * 64, mean_resizing=False)
    answer, think = (prompts.question(kind, collection.coarse) for kind in ("answer", "think"))

    def rows(step: int) -> list[list[Row]]:
        rng = random.Random(f"warm-up/{seed}/{step}")
        short, long = [], []
        for _ in range(12):
            name = rng.choice(told)
            given = f"A {collection.coarse} has {described[name]}."
            short.append(Row(f"{given} {answer}", None, prompts.answer(name)))
            long.append(Row(f"{given} {think}", None, cot.table_chain(collection, name, rng)))
            short.append(Row(prompts.LOOKS.format(name=name), None, described[name]))
        return [short, long]

    train_text(student.model, student.processor, rows, work, steps=steps, lr=1e-3)
    return Student(student.model.eval(), student.processor)


def prepare_base(
    preset: Preset,
    folder: Path,
    world_seed: int = 0,
    photos: Collection | None = None,
    chains: Sequence[str] = (),
) -> Path | str:
    """The student before stage 1: shipped, pretrained for a new world, or warmed up.

    folder: of the run; a new world's student lies beside it. photos: of whose words a lab
    student is to learn something first (`preset.warm_up_steps`); chains: see `warm_up`.
    """
    source = preset.student
    if source == "assets":
        places = [lab_student.asset_folder(world_seed)]
        places.append(folder.parent / f"lab-student-world{world_seed}")
        there = [place for place in places if (place / "record.json").exists()]
        source = (there or places[-1:])[0]
        if not there:
            about = "no student for world %d yet: pretraining one (about 50 minutes)"
            log.info(about, world_seed)
            pretrain(world_seed, source)
    if photos is None or not preset.warm_up_steps:
        return source
    out = folder / "warm-up"
    if not (out / "done").exists():
        student = models.load_student(source, preset.with_(quantize="none"))
        work = out / "checkpoints"
        dtype = student.model.dtype
        student.model.float()  # all weights learn, and 16 bits are too coarse for that
        student = warm_up(student, photos, preset.warm_up_steps, work, seed=0, chains=chains)
        student.model.to(dtype).save_pretrained(out)
        student.processor.save_pretrained(out)
        shutil.rmtree(work, ignore_errors=True)
        (out / "done").touch()
    return out
