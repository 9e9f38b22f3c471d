"""TAPO on a student of random weights, small enough for a test."""

import itertools

import torch

from finer1_lite import logprobs, models, prompts, tapo
from finer1_lite.presets import Preset
from finer1_lite.trainer import Loop

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


def every_other():
    """In place of `rewards.accuracy_reward`: right, wrong, right, ..., and so in every group."""
    turns = itertools.count()
    return lambda *_, **__: float(next(turns) % 2 == 0)


def all_wrong(*_, **__):
    return 0.0


def adapted(student, preset=TINY, seed=0):
    """The student with a fresh adapter; itself where it has one."""
    if hasattr(student.model, "peft_config"):
        return student
    return models.add_adapter(student, preset, seed)


class Stage:
    """A step of `tapo.train_tapo` held still: the same functions, one call each."""

    def __init__(self, student, birds, folder, preset=TINY, seed=0, **settings):
        self.student, self.birds, self.seed = adapted(student, preset, seed), birds, seed
        self.model, self.preset = self.student.model, preset
        models.prepare_for_stage_two(self.student, preset)
        settings = (
            dict(steps=3, learning_rate=1e-2, weight_decay=0.0, schedule="constant", save_every=99)
            | settings
        )
        self.loop = Loop(self.model, folder / "checkpoints", **settings)
        self.kept, self.dropped = [], []
        self.batch, self.parts = None, {}

    @property
    def settings(self):
        return self.preset.tapo

    @property
    def question(self) -> str:
        return prompts.question(self.settings.prompt, self.birds.coarse)

    def change(self, **settings) -> None:
        """Other settings of TAPO; the groups stay."""
        self.preset = self.preset.with_(**{f"tapo__{k}": v for k, v in settings.items()})

    def rollout(self, triplets, generator):
        return tapo.rollout(self.student, triplets, self.birds, self.preset, generator)

    def sample(self, step=0) -> None:
        self.kept, self.dropped = tapo.sample_groups(
            self.student, self.birds, self.preset, self.seed, step, self.loop.limits
        )

    def prepare(self):
        """The batch of the groups that are held."""
        self.batch = tapo.make_batch(self.kept, self.settings)
        if self.batch:
            self.batch.old_logps = tapo.old_log_probs(
                self.student, self.batch, self.preset, self.loop.limits
            )
        return self.batch

    def logps(self):
        """Of the batch's completions, each on its own picture."""
        b = self.batch
        ids, mask = b.completion_ids, b.completion_mask
        return logprobs.log_probs(self.model, b.prompts, ids, mask, b.scored_on)

    def loss(self, part):
        return tapo.batch_loss(self.student, part, self.preset)

    def learn(self, part=0) -> dict[str, float]:
        """The gradient of a share of the batch, and its loss; {} where it teaches nothing."""
        self.model.zero_grad()
        self.loop.micro_batch = self.settings.micro_batch
        share = self.batch and self.batch.share(part, self.settings.updates)
        self.parts = self.loop.backward(share, self.loss) if share else {}
        return self.parts

    def train(self) -> None:
        """All steps at a constant rate; `kept`, `batch` and `parts` are the last one's."""
        for step in self.loop:
            if step % self.settings.updates == 0:
                self.sample(step // self.settings.updates)
                self.prepare()
            parts = self.learn(step % self.settings.updates)
            self.loop.step(self.log()) if parts else self.loop.skip(self.log())

    def log(self) -> dict[str, float]:
        return tapo.step_log(self.settings, self.kept, self.dropped, 1.0, self.parts)


def adapters(model) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def stir(model) -> None:
    """Adapters with numbers of their own: a B of zeros hides the gradient of A."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in adapters(model):
            p.copy_(torch.randn(p.shape, generator=noise) * 0.1)


def shorten(groups) -> None:
    """Completions of different lengths, as trained students give them."""
    for g in groups:
        for row in range(len(g.completion_mask)):
            g.completion_mask[row, 2 * row + 1 :] = 0


def gradients(stage: Stage, step=0) -> torch.Tensor:
    """The gradient of a whole step, all adapters in one vector."""
    stage.sample(step)
    return update(stage)[1]


def gathered(model) -> torch.Tensor:
    """What the backward passes since `zero_grad` left in the adapters, in one vector."""
    return torch.cat([p.grad.flatten() for p in adapters(model)])


def update(stage: Stage) -> tuple[dict[str, float], torch.Tensor]:
    """Learn from the groups that are held: the loss's parts and the gradient."""
    stage.prepare()
    return stage.learn(), gathered(stage.model)


def weights(model, adapted: bool = True) -> dict[str, torch.Tensor]:
    """A copy of the adapters, or of everything else."""
    chosen = [(n, p) for n, p in model.named_parameters() if ("lora_" in n) == adapted]
    return {name: weight.detach().clone() for name, weight in chosen}
