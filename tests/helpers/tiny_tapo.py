"""TAPO on a student of random weights, small enough for a test."""

import torch
from transformers import TrainingArguments

from finer1_lite import models
from finer1_lite.presets import Preset
from finer1_lite.tapo import TAPOTrainer

TINY = Preset.lab().with_(
    max_new_tokens=8,
    lora_rank=4,
    tapo__groups=2,
    tapo__anchor_rollouts=2,
    tapo__positive_rollouts=2,
    tapo__micro_batch=8,
    tapo__negative_rollouts=0,
)
OFF = dict(
    tapo__inter_class_weight=0.0,
    tapo__anchor_entropy_weight=0.0,
    tapo__negative_entropy_weight=0.0,
)


def every_other(completions, *_):
    """Right, wrong, right, ...: spread in every group."""
    return [float(i % 2 == 0) for i in range(len(completions))]


def make_trainer(student, birds, folder, preset=TINY, seed=0, **settings):
    if not hasattr(student.model, "peft_config"):
        student = models.add_adapter(student, preset, seed)
    settings = dict(max_steps=3, learning_rate=1e-2, lr_scheduler_type="constant") | settings
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_steps=1,
        **settings,
    )
    return TAPOTrainer(student, birds, preset, seed, args)


def change(trainer, **settings) -> None:
    """Other settings of TAPO for a trainer that is there; its groups stay."""
    trainer.preset = trainer.preset.with_(**{f"tapo__{k}": v for k, v in settings.items()})
    trainer.settings = trainer.preset.tapo


def adapters(model) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def stir(model) -> None:
    """Adapters with numbers of their own: a B of zeros hides the gradient of A."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in adapters(model):
            p.copy_(torch.randn(p.shape, generator=noise) * 0.1)


def shorten(groups) -> None:
    """Answers of different lengths, as trained students give them."""
    for g in groups:
        for row in range(len(g.completion_mask)):
            g.completion_mask[row, 2 * row + 1 :] = 0


def gradients(trainer, step=0) -> torch.Tensor:
    """The gradient of one training step, all adapters in one vector."""
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, {"step": step})
    return gathered(trainer.model)


def gathered(model) -> torch.Tensor:
    """What the backward passes since `zero_grad` left in the adapters, in one vector."""
    return torch.cat([p.grad.flatten() for p in adapters(model)])


def update(trainer, step=0) -> tuple[dict[str, float], torch.Tensor]:
    """Learn from the groups that the trainer holds: the loss's parts and the gradient."""
    trainer.model.zero_grad()
    trainer.model.eval()
    trainer.batch = trainer.prepare()
    return trainer._update(step), gathered(trainer.model)


def weights(model, adapted: bool = True) -> dict[str, torch.Tensor]:
    """A copy of the adapters, or of everything else."""
    chosen = [(n, p) for n, p in model.named_parameters() if ("lora_" in n) == adapted]
    return {name: weight.detach().clone() for name, weight in chosen}
