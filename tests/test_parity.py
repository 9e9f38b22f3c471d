"""The same batch through other code: TRL's GRPOTrainer, single rows, recomputed layers,
finite differences. All on a student with pictures and adapters that are not zero.
"""

import copy

import pytest
import torch
from datasets import Dataset
from tiny_tapo import (
    TINY,
    Stage,
    adapters,
    every_other,
    gathered,
    shorten,
    stir,
    update,
)
from trl import GRPOConfig, GRPOTrainer

from finer1_lite import generation, logprobs, models, prompts, rewards
from finer1_lite.generation import Student

ALL_ON = dict(
    anchor_rollouts=2,
    positive_rollouts=2,
    scored_on="own",
    negative_grad=True,
    inter_class_weight=0.5,
    anchor_entropy_weight=0.3,
    negative_entropy_weight=0.2,
)


def stage_with_groups(student, birds, folder, preset):
    """A stage that holds two groups of answers of different lengths."""
    student = models.add_adapter(student, preset, seed=0)
    stir(student.model)
    stage = Stage(student, birds, folder, preset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "accuracy_reward", every_other())
        stage.sample(0)
    shorten(stage.kept)
    return stage


@pytest.fixture(scope="module")
def dapo(student, birds, tmp_path_factory):
    fresh = Student(copy.deepcopy(student.model), student.processor)
    folder = tmp_path_factory.mktemp("dapo")
    return stage_with_groups(
        fresh, birds, folder, TINY.recipe("dapo").with_(tapo__with_options=False)
    )


# --- TRL -----------------------------------------------------------------------------


def trl_trainer(stage, folder, parts: int, **settings) -> GRPOTrainer:
    """TRL on the same model: `parts` micro-batches a step. `delta` is its dual clip."""
    loss = dict(loss_type="dapo", epsilon=0.2, epsilon_high=0.28, delta=3.0) | settings
    args = GRPOConfig(
        str(folder),
        **loss,
        beta=0.0,
        num_generations=4,
        per_device_train_batch_size=8 // parts,
        max_steps=1,
        gradient_accumulation_steps=parts,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
    )
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": stage.question}]}])
    theirs = GRPOTrainer(
        stage.model,
        lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=rows,
        processing_class=stage.student.processor,
    )
    theirs.current_gradient_accumulation_steps = parts  # what its training loop would set
    return theirs


def trl_rows(stage, rows: slice, old: torch.Tensor) -> dict:
    """Some answers of the stage's groups, as TRL lays them out: a picture each row."""
    processor, batch = stage.student.processor, stage.batch
    pictures = [g.triplet.anchor.image() for g in stage.kept for _ in g.completions][rows]
    chat = prompts.messages(stage.question)
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    seen = processor(
        text=[text] * len(pictures),
        images=pictures,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        return_mm_token_type_ids=True,
    )
    types = [seen["mm_token_type_ids"], torch.zeros_like(batch.completion_ids[rows])]
    return {
        "prompt_ids": seen["input_ids"],
        "prompt_mask": seen["attention_mask"],
        "completion_ids": batch.completion_ids[rows],
        "completion_mask": batch.completion_mask[rows],
        "pixel_values": seen["pixel_values"],
        "image_grid_thw": seen["image_grid_thw"],
        "mm_token_type_ids": torch.cat(types, 1),
        "num_images": [1] * len(pictures),
        "advantages": batch.advantages[rows],
        "old_per_token_logps": old[rows],
        "num_items_in_batch": batch.completion_mask.sum(),  # of the whole step, in each micro-batch
    }


# what differs from the defaults: here, and in TRL (whose CISPO names the bound itself)
TYPES = {
    "dapo": ({}, {}),
    "grpo": ({}, {"loss_type": "grpo"}),
    "dr_grpo": ({}, {"loss_type": "dr_grpo", "max_completion_length": TINY.max_new_tokens}),
    "gspo": (
        {"clip_low": 0.05, "clip_high": 0.06},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"}
        | {"epsilon": 0.05, "epsilon_high": 0.06},
    ),
    "cispo": ({"clip_low": 1.0}, {"loss_type": "cispo", "epsilon_high": 1.28}),
}


@pytest.mark.parametrize("loss_type", TYPES)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("moved", [0.0, 0.5], ids=["on_policy", "off_policy"])
def test_without_the_extras_loss_and_gradient_are_those_of_trl(
    dapo, tmp_path, parts, moved, loss_type
):
    """On policy and behind a policy that has moved, where each clip stops some tokens."""
    own, other = TYPES[loss_type]
    plain = dict(loss_type="dapo", clip_low=0.2, clip_high=0.28)
    dapo.change(micro_batch=8 // parts, **plain | own | {"loss_type": loss_type})
    _, on_policy = update(dapo)
    with torch.no_grad():
        logps = dapo.logps()
    seed = 3 if loss_type == "gspo" else 1  # one that moves whole completions past the clip
    noise = torch.randn(logps.shape, generator=torch.Generator().manual_seed(seed))
    old = logps + moved * 2 * noise
    dapo.batch.old_logps = old
    dapo.model.zero_grad()
    loss, ours = dapo.learn(), gathered(dapo.model)
    dapo.change(**plain)
    theirs = trl_trainer(dapo, tmp_path, parts, **other)
    dapo.model.zero_grad()
    dapo.model.train()  # TRL's normalisation is another one in evaluation
    total, size = 0.0, 8 // parts
    for at in range(0, 8, size):
        part = theirs._compute_loss(dapo.model, trl_rows(dapo, slice(at, at + size), old))
        part.backward()
        total += part.item()
    assert (loss["clip_share"] > 0.1) == (moved > 0)
    assert loss["total"] == pytest.approx(total, abs=1e-5)
    torch.testing.assert_close(ours, gathered(dapo.model), rtol=0, atol=1e-5)
    assert ours.abs().max() > 1e-2
    assert (moved > 0) != torch.allclose(ours, on_policy, rtol=0, atol=1e-5)


# --- padding, sharing, recomputing ---------------------------------------------------


def scored(stage, batch, tokens, mask, which) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (B, T), and the gradient of a weighted sum of them."""
    stage.model.zero_grad()
    logps = logprobs.log_probs(stage.model, batch, tokens, mask, which)
    (logps * torch.arange(1, 1 + tokens.shape[1]) * mask).sum().backward()
    return logps.detach(), gathered(stage.model)


@pytest.fixture(scope="module")
def answers(dapo, student, birds):
    """Four questions of different lengths on pictures of different sizes, two answers each."""
    options = [None, birds.names[:2], birds.names[:4], birds.names[:8]]
    questions = [prompts.question("think", "bird", some) for some in options]
    sizes = ((84, 84), (112, 56), (40, 200), (28, 28))
    pictures = [
        p.image().resize(size) for p, size in zip(birds.test[: len(sizes)], sizes, strict=True)
    ]
    batch = generation.encode_prompts(dapo.model, student.processor, questions, pictures)
    tokens = torch.randint(20, 300, (8, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([7, 1, 5, 7, 2, 3, 6, 4])[:, None]).long()
    return questions, pictures, batch, tokens, mask


WHICH = [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_padded_batch_scores_and_learns_as_its_rows_one_by_one(dapo, student, answers):
    """Prompts of other lengths, pictures of other sizes and shorter answers change nothing."""
    questions, pictures, batch, tokens, mask = answers
    dapo.model.eval()
    together, gradient = scored(dapo, batch, tokens, mask, WHICH)
    total = torch.zeros_like(gradient)
    for row, p in enumerate(WHICH):
        one = generation.encode_prompts(
            dapo.model, student.processor, questions[p : p + 1], pictures[p : p + 1]
        )
        length = int(mask[row].sum())
        cut = (x[row : row + 1, :length] for x in (tokens, mask))
        alone, share = scored(dapo, one, *cut, [0])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-5)
        total += share
    torch.testing.assert_close(gradient, total, rtol=1e-4, atol=1e-4)
    assert gradient.abs().max() > 1
    assert not together[mask == 0].any()


@pytest.mark.parametrize("way", [logprobs.recomputed_hidden, logprobs.packed_hidden])
@pytest.mark.parametrize("which", [WHICH, [3, 0, 2, 0, 3, 0, 0, 3]], ids=["in_order", "mixed"])
def test_a_shared_prompt_scores_and_learns_as_a_row_of_its_own(
    dapo, answers, monkeypatch, which, way
):
    """Sharing a prompt's cache among its answers, or its row, is a saving and nothing else."""
    *_, batch, tokens, mask = answers
    dapo.model.eval()
    shared, gradient = scored(dapo, batch, tokens, mask, which)
    with torch.no_grad():
        without = logprobs.log_probs(dapo.model, batch, tokens, mask, which)
    assert torch.equal(without, shared)
    monkeypatch.setattr(logprobs, "shared_hidden", way)
    again, whole = scored(dapo, batch, tokens, mask, which)
    torch.testing.assert_close(shared, again, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-4)


def test_answers_behind_one_prompt_do_not_see_each_other(dapo, answers):
    """Whatever the one says, and where it stands, the other is scored as if it were alone."""
    *_, batch, tokens, mask = answers
    core, rows = generation.core_of(dapo.model), torch.zeros(8, dtype=torch.long)
    with torch.no_grad():
        first = logprobs.packed_hidden(core, batch, tokens, mask, rows)
        turned = logprobs.packed_hidden(core, batch, tokens.flip(0), mask.flip(0), rows).flip(0)
        other = tokens.clone()
        other[:3], other[4:] = 9, 11
        among = logprobs.packed_hidden(core, batch, other, mask, rows)
    real = mask.bool()
    torch.testing.assert_close(turned[real], first[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(among[3][real[3]], first[3][real[3]], rtol=0, atol=1e-5)
    assert (among[4][real[4]][1:] - first[4][real[4]][1:]).abs().max() > 1e-2


def test_a_token_sees_its_prompt_and_its_own_past():
    """A padded prompt of two tokens, answers of two and one, one place of padding."""
    present = torch.tensor([[0, 1, 1, 1, 1, 1, 0]])
    owner = torch.tensor([[0, 0, 0, 1, 1, 2, 0]])
    seen = logprobs.which_see(present, owner)
    assert seen.shape == (1, 1, 7, 7)
    assert ["".join("x" if s else "." for s in row) for row in seen[0, 0].tolist()] == [
        "x......",  # padding: itself alone
        ".x.....",
        ".xx....",
        ".xxx...",
        ".xxxx..",
        ".xx..x.",  # not the first answer
        ".xx...x",
    ]


def test_answers_of_one_token_are_scored_by_the_prompt_alone(dapo, answers):
    *_, batch, tokens, mask = answers
    with torch.no_grad():
        whole = logprobs.log_probs(dapo.model, batch, tokens, mask, WHICH)
        first = logprobs.log_probs(dapo.model, batch, tokens[:, :1], mask[:, :1], WHICH)
    torch.testing.assert_close(first, whole[:, :1], rtol=0, atol=1e-5)


def test_gradient_checkpointing_recomputes_the_layers_and_changes_nothing(dapo, answers):
    *_, batch, tokens, mask = answers
    dapo.model.eval()
    shared, gradient = scored(dapo, batch, tokens, mask, WHICH)
    core, runs = generation.core_of(dapo.model), []
    hook = core.model.language_model.layers[0].mlp.register_forward_pre_hook(
        lambda *_: runs.append(1)
    )
    core.gradient_checkpointing_enable()
    dapo.model.train()
    try:
        again, whole = scored(dapo, batch, tokens, mask, WHICH)
    finally:
        hook.remove()
        core.gradient_checkpointing_disable()
        dapo.model.eval()
    assert len(runs) == 2  # once forward and once more on the way back
    torch.testing.assert_close(shared, again, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-4)


# --- finite differences --------------------------------------------------------------


def test_the_gradient_of_a_whole_step_is_its_finite_difference(fresh, birds, tmp_path):
    """Everything on, in float64, from the adapters through the network to the total.

    Qwen2.5-VL computes its norms and its softmax in float32 all the same: hence 1e-3.
    """
    fresh.model.double()
    stage = stage_with_groups(fresh, birds, tmp_path, TINY)
    stage.model.double()
    stage.change(**ALL_ON)
    update(stage)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        logps = stage.logps()
    assert logps.dtype == torch.float64
    # Fixed, or the ratio would be 1 wherever the adapters go.
    stage.batch.old_logps = logps + 0.02 * torch.randn(logps.shape, generator=noise)
    stage.model.zero_grad()
    stage.learn()
    gradient = gathered(stage.model)
    start = torch.nn.utils.parameters_to_vector(adapters(stage.model)).detach()

    def total(place: torch.Tensor) -> float:
        torch.nn.utils.vector_to_parameters(place, adapters(stage.model))
        return stage.learn()["total"]

    anywhere = torch.randn(gradient.shape, generator=noise).double()
    for direction, length in ((gradient, 1e-3), (anywhere, 1e-2)):  # steepest, and any other
        step = length * direction / direction.norm()
        slope = (total(start + step) - total(start - step)) / 2
        assert slope == pytest.approx(float(gradient @ step), rel=1e-3)
