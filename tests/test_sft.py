"""Stage 1: rows for TRL, loss on the answer alone, an adapter that plain PEFT reads."""

import copy
import json
import shutil

import pytest
import torch
from killed import KillAt, Killed
from peft import PeftModel
from trl import SFTTrainer

from finer1_lite import cot, generation, models, prompts, sft
from finer1_lite.data.chain_text import Chain
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.runtime.checkpoints import NotFinite
from finer1_lite.species import Collection

TINY = Preset.lab().with_(
    lora_rank=4, sft__steps=5, sft__batch=4, sft__micro_batch=2, sft__learning_rate=1e-2
)


@pytest.fixture(scope="module")
def few(birds):
    """Eight training pictures of two species."""
    return Collection("bird", birds.species, birds.train[:8], birds.test[:2], birds.distance)


@pytest.fixture(scope="module")
def chains(few, world):
    return cot.make_chains(few, lambda p, rng: cot.oracle_chain(world, p.species, rng), seed=0)


@pytest.fixture(scope="module")
def trained(student, few, chains, tmp_path_factory):
    """(student, base weights before, folder, batches that the loss saw)."""
    fresh = Student(copy.deepcopy(student.model), student.processor)
    adapted = models.add_adapter(fresh, TINY, seed=0)
    before = {n: p.detach().clone() for n, p in adapted.model.named_parameters()}
    folder, batches = tmp_path_factory.mktemp("sft"), []
    real = SFTTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        batches.append({k: v.clone() for k, v in inputs.items() if torch.is_tensor(v)})
        return real(self, model, inputs, *args, **kwargs)

    SFTTrainer.compute_loss = spy
    try:
        sft.train_sft(adapted, sft.chain_rows(few, chains), TINY, 0, folder)
    finally:
        SFTTrainer.compute_loss = real
    return adapted, before, folder, batches


def test_rows_are_conversations_with_a_picture_a_question_and_a_chain(few, chains):
    rows = sft.chain_rows(few, chains)
    assert len(rows) == len(few.train)
    for photo, row in zip(few.train, rows, strict=True):
        assert row["prompt"] == [{"role": "user", "content": prompts.question("think", "bird")}]
        assert row["completion"] == [{"role": "assistant", "content": chains[photo.id]}]
        (picture,) = row["images"]
        assert picture.tobytes() == photo.image().tobytes()


def test_a_chain_also_answers_a_choice_among_its_candidates_and_a_request_to_describe(few, chains):
    """Options are then no news, what is offered no substitute for looking, describing kept."""
    rows = sft.chain_rows(few, chains, TINY.sft)
    assert len(rows) == 3 * len(few.train)
    for photo, at in zip(few.train, range(0, len(rows), 3), strict=True):
        asked = [rows[at + i]["prompt"][0]["content"] for i in range(3)]
        said = [rows[at + i]["completion"][0]["content"] for i in range(3)]
        chain = Chain(chains[photo.id])
        options = prompts.question("think", "bird", chain.listed)
        assert asked == [prompts.question("think", "bird"), options, "Describe the bird."]
        assert said == [chain.text, chain.text, chain.parts["analysis"]]


@pytest.mark.parametrize(
    "written", ["", "candidates: either a wren, or, perhaps, a robin\n", "candidates: wren, wren\n"]
)
def test_what_is_no_choice_is_not_offered(few, written):
    """No candidates, a sentence instead of names, one name twice."""
    bare = {p.id: f"<think>\n{written}</think>\n<answer>wren</answer>" for p in few.train}
    assert len(sft.chain_rows(few, bare, TINY.sft)) == len(few.train)


def test_headings_are_read_in_any_case_and_an_empty_analysis_is_no_description(few):
    chain = "<think>\nAnalysis: {}\nCandidates: wren, robin\n</think>\n<answer>wren</answer>"
    for said, asked in (("crown red", ["Describe the bird."]), ("", [])):
        rows = sft.chain_rows(few, {p.id: chain.format(said) for p in few.train}, TINY.sft)
        questions = [row["prompt"][0]["content"] for row in rows][: 2 + len(asked)]
        assert questions[1].endswith("Options: wren, robin.") and questions[2:] == asked
        assert len(rows) == (2 + len(asked)) * len(few.train)


def test_pictures_without_a_chain_are_named(few, chains):
    lost = [few.train[1].id, few.train[5].id]
    rest = {k: v for k, v in chains.items() if k not in lost}
    with pytest.raises(ValueError, match=f"no chain for 2 training pictures: {', '.join(lost)}$"):
        sft.chain_rows(few, rest)


def test_loss_is_on_the_chain_and_its_end_alone(trained, chains, student):
    _, _, _, batches = trained
    tok, seen = student.processor.tokenizer, set()
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            learned = labels != -100
            assert torch.equal(labels[learned], ids[learned])
            text = tok.decode(labels[learned]).rstrip("\n")
            assert text.endswith("<|im_end|>")
            assert text.removesuffix("<|im_end|>") in chains.values()
            assert tok.decode(ids).count("<|image_pad|>") == 9  # the picture was there
            seen.add(text)
    assert len(batches) == TINY.sft.steps * 2 and len(seen) > 4


def test_the_question_is_the_one_that_evaluation_asks(trained, student, few):
    """Token by token: a chat template rendered in another way would be another prompt."""
    _, _, _, batches = trained
    image = [few.train[0].image()]
    asked = generation.encode_prompts(
        student.model, student.processor, [prompts.question("think", "bird")], image
    ).input_ids[0]
    ids, labels = batches[0]["input_ids"][0], batches[0]["labels"][0]
    start = int((labels != -100).nonzero()[0])
    assert ids[start - len(asked) : start].tolist() == asked.tolist()


def test_training_moves_the_adapter_and_nothing_else(trained):
    adapted, before, _, _ = trained
    for name, weight in adapted.model.named_parameters():
        assert torch.equal(weight, before[name]) != ("lora_" in name), name


def test_the_adapter_touches_language_layers_only(trained):
    adapted, _, _, _ = trained
    names = [n for n, p in adapted.model.named_parameters() if p.requires_grad]
    assert all("language_model" in n and "lora_" in n for n in names)
    assert len(names) == 4 * 7 * 2  # layers x projections x (A, B)
    rank = TINY.lora_rank
    sizes = {"q": 192 + 192, "k": 192 + 64, "v": 192 + 64, "o": 192 + 192, "mlp": 3 * (192 + 512)}
    assert models.trainable_parameters(adapted.model) == 4 * rank * sum(sizes.values())


def test_saved_adapter_gives_the_same_logits_in_plain_peft(trained, student, few):
    adapted, _, folder, batches = trained
    plain = PeftModel.from_pretrained(copy.deepcopy(student.model), folder).eval()
    loaded = models.load_adapter(Student(copy.deepcopy(student.model), student.processor), folder)
    adapted.model.eval()
    keys = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
    batch = {key: batches[0][key] for key in keys}
    with torch.no_grad():
        expected = adapted.model(**batch).logits
        assert torch.equal(plain(**batch).logits, expected)
        assert torch.equal(loaded.model(**batch).logits, expected)
        assert not torch.equal(student.model(**batch).logits, expected)


def test_the_folder_holds_log_and_processor_and_no_pickle(trained, student):
    _, _, folder, _ = trained
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert rows and all({"step", "loss", "learning_rate"} <= row.keys() for row in rows)
    again = models.load_processor(folder, pixels=84 * 84)
    assert again.tokenizer.get_vocab() == student.processor.tokenizer.get_vocab()
    assert not [f for f in folder.glob("*") if f.suffix in (".bin", ".pt", ".pkl")]


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    student, few, chains, tmp_path
):
    """Optimiser, schedule and the place in the data come back; a torn checkpoint does not."""
    preset, rows = TINY.with_(sft__steps=12), sft.chain_rows(few, chains)

    def train(name, *callbacks):
        mine = Student(copy.deepcopy(student.model), student.processor)
        mine = models.add_adapter(mine, preset, seed=0)
        sft.train_sft(mine, rows, preset, 0, tmp_path / name, callbacks)
        return {n: p for n, p in mine.model.named_parameters() if p.requires_grad}

    expected = train("whole")
    with pytest.raises(Killed):
        train("killed", KillAt(11))  # one step after the checkpoint of step 10
    work = tmp_path / "killed" / "checkpoints"
    shutil.copytree(work / "checkpoint-10", work / "checkpoint-11")
    (work / "checkpoint-11" / "trainer_state.json").write_text("{")
    scaler = torch.amp.GradScaler("cpu").state_dict()  # of a card without bfloat16
    torch.save(scaler, work / "checkpoint-10" / "scaler.pt")
    for name, weight in train("killed").items():
        assert torch.equal(weight, expected[name]), name
    logs = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("whole", "killed")
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 2


def test_a_checkpoint_comes_by_time_too(fresh, few, chains, tmp_path, monkeypatch):
    """Ten minutes are up after every step: what is killed at the third goes on from there."""
    monkeypatch.setattr(sft, "due", lambda saved: True)
    rows = sft.chain_rows(few, chains)
    with pytest.raises(Killed):
        sft.train_sft(fresh, rows, TINY.with_(sft__steps=40), 0, tmp_path, [KillAt(3)])
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names & {"checkpoint-2", "checkpoint-3"}  # by steps alone: none before the tenth


def test_a_rate_that_breaks_the_weights_stops_it_and_nothing_is_written(
    fresh, few, chains, tmp_path
):
    preset = TINY.with_(sft__learning_rate=1e30)
    rows = sft.chain_rows(few, chains)
    with pytest.raises(NotFinite, match=r"sft, step \d \(learning rate .*float32\): nan or inf in"):
        sft.train_sft(models.add_adapter(fresh, preset, 0), rows, preset, 0, tmp_path / "sft")
    assert not (tmp_path / "sft" / "adapter_model.safetensors").exists()


def test_an_adapter_that_did_not_move_is_said(fresh, few, chains, tmp_path, caplog):
    preset = TINY.with_(sft__learning_rate=0.0, sft__steps=1)
    adapted = models.add_adapter(fresh, preset, 0)
    with caplog.at_level("INFO", "finer1_lite"):
        sft.train_sft(adapted, sft.chain_rows(few, chains), preset, 0, tmp_path / "sft")
    assert "sft: the adapter did not move" in caplog.text
    assert json.loads((tmp_path / "sft" / "log.jsonl").read_text())["moved"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt"])
def test_a_torn_checkpoint_is_skipped_and_the_training_goes_on(
    student, few, chains, tmp_path, name, caplog
):
    preset, rows = TINY.with_(sft__steps=11), sft.chain_rows(few, chains)
    with pytest.raises(Killed):
        mine = Student(copy.deepcopy(student.model), student.processor)
        mine = models.add_adapter(mine, preset, 0)
        sft.train_sft(mine, rows, preset, 0, tmp_path / "sft", [KillAt(11)])
    torn = tmp_path / "sft" / "checkpoints" / "checkpoint-10" / name
    torn.write_bytes(torn.read_bytes()[:500])
    mine = Student(copy.deepcopy(student.model), student.processor)
    sft.train_sft(models.add_adapter(mine, preset, 0), rows, preset, 0, tmp_path / "sft")
    assert f"checkpoint-10 was torn ({name}" in caplog.text
