"""Stage 2: TAPO, Triplet Augmented Policy Optimisation (Fine-R1, section 3.2).

One step: draw triplets -> answer anchors and positives -> reward -> keep groups with
spread (all that in `groups`) -> advantages -> log-probabilities on anchor and hard negative
-> loss. Of `transformers.Trainer` it uses the optimiser, the schedule, checkpoints and
logging.
"""

import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainingArguments

from finer1_lite import advantages, generation, logprobs, losses, models
from finer1_lite.generation import Student
from finer1_lite.groups import LOWER, GroupTrainer
from finer1_lite.presets import Preset
from finer1_lite.runtime import distributed, oom
from finer1_lite.species import Collection
from finer1_lite.trainer import train

MICRO = "tapo.micro_batch"
LOGGED = (
    "total",
    "policy",
    "inter_class_kl",
    "anchor_entropy",
    "negative_entropy",
    "clip_share",
)


@dataclass
class Batch:
    """The kept groups' answers, ready to be learnt from: B = groups x (n+m)."""

    completion_ids: Tensor  # (B, T)
    completion_mask: Tensor  # (B, T)
    advantages: Tensor  # (B,)
    right: Tensor  # (B,)
    pictures: generation.PromptBatch  # every picture of the groups
    own: Tensor  # (B,) which picture scores the answer
    negative: Tensor  # (B,) which one pushes it away
    pushed: Tensor  # (B,) weight in the terms of the negative, 0: not scored there
    old_logps: Tensor | None = None  # (B, T) where several updates share the batch

    def rows(self, rows: slice | Tensor) -> "Batch":
        """Some answers, with the same pictures."""
        cut = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pictures"}
        return Batch(
            pictures=self.pictures,
            **{name: v if v is None else v[rows] for name, v in cut.items()},
        )


class TAPOTrainer(GroupTrainer):
    """TAPO on any Qwen-VL with adapters.

    GRPO, DAPO, CLS-RL, PAPO and NoisyRollout are settings of it: `presets.RECIPES`.
    """

    def __init__(self, student: Student, *args, **kwargs):
        self.batch: Batch | None = None
        self.metrics: dict[str, float] = {}
        super().__init__(student, *args, **kwargs)
        if self.preset.gradient_checkpointing:
            student.model.gradient_checkpointing_enable({"use_reentrant": False})

    def prepare(self) -> Batch:
        """The kept groups as tensors."""
        s, pad = self.settings, self.student.processor.tokenizer.pad_token_id
        scores = torch.cat([g.reward(s) for g in self.kept])  # (B,)
        counts = (s.anchor_rollouts, s.positive_rollouts)
        if s.baseline == "picture":
            advantage = advantages.picture_advantages(scores, counts)
        else:
            advantage = advantages.group_advantages(scores, sum(counts))
        mask = _pad([row for g in self.kept for row in g.completion_mask], 0)
        if s.mask_cut:
            mask = mask * ~torch.cat([g.truncated for g in self.kept])[:, None]
        tokens = _pad([row for g in self.kept for row in g.completion_ids], pad)
        right = torch.cat([g.accuracy for g in self.kept])
        batch = Batch(
            tokens,
            mask,
            advantage.to(tokens.device),
            right.to(tokens.device),
            *self._pictures(),
            self._pushed().repeat(len(self.kept)).to(tokens.device),
        )
        if s.updates > 1:  # later shares meet a policy that has moved: remember the first
            parts = self._within_memory(lambda: self._old_logps(batch), len(tokens))
            shares = distributed.gather(parts, tokens.device)
            batch.old_logps = torch.cat([logps for share in shares for logps in share])
        return batch

    @torch.no_grad()
    def _old_logps(self, batch: Batch) -> list[Tensor]:
        """What the policy thinks of this process's answers before it moves: (rows, T) each."""
        return [self._score(b, b.own).logps for b in self._micro_batches(batch)]

    def _pictures(self) -> tuple[generation.PromptBatch, Tensor, Tensor]:
        """The kept groups' pictures; which one scores which answer, and which pushes it away.

        The vision tower is frozen, so what it made of them for the rollouts still holds.
        """
        s, own, negative, at = self.settings, [], [], 0
        separate = s.scored_on == "own" and s.positive_rollouts > 0
        for group in self.kept:
            own += [at] * s.anchor_rollouts + [at + separate] * s.positive_rollouts
            at += len(group.pictures.input_ids)
            negative += [at - 1] * (s.anchor_rollouts + s.positive_rollouts)
        pictures = generation.join([g.pictures for g in self.kept])
        at_pictures = (torch.tensor(rows, device=self.student.device) for rows in (own, negative))
        return pictures, *at_pictures

    def _pushed(self) -> Tensor:
        """Which of a group's rollouts are scored on the negative, and what each stands for.

        They are evenly spaced, so anchor's and positive's take part alike. Rollouts of a
        picture are drawn alike: the weighted mean over some has the expectation of all.
        """
        s = self.settings
        size = s.anchor_rollouts + s.positive_rollouts
        count = s.negative_rollouts or size
        weights = torch.zeros(size)
        weights[torch.arange(count) * size // count] = size / count
        return weights

    # --- one optimiser step -----------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Rollouts and the gradient of the TAPO loss; returns the loss, a scalar.

        A step in which no group has spread is skipped and counted: no gradient at all.
        With `updates` = k, k steps share one batch of rollouts, a kth of its groups each.
        """
        start, step, shares = time.time(), inputs["step"], self.settings.updates
        model.eval()  # no dropout: rollouts and scores come from the same network
        fresh = step % shares == 0
        if fresh:
            self.collect(step // shares)
        rolled = time.time()
        if fresh:
            self.batch = self.prepare() if self.kept else None
        parts = self._update(step) if self.batch else {}
        total = parts.get("total", 0.0)
        self.metrics = self._metrics() | {k: v for k, v in parts.items() if k != "total"}
        done = time.time()
        answers = self.kept + self.dropped
        self.metrics |= {
            "skipped": float(not parts),
            "generate_s": rolled - start,
            "update_s": done - rolled,
            "step_s": done - start,
        }
        if fresh:
            tokens = sum(int(g.completion_mask.sum()) for g in answers)
            self.metrics["tokens_per_second"] = tokens / (rolled - start)
        self._no_gradient(not parts, scaled=self.accelerator.scaler is not None)
        return torch.tensor(total, device=self.student.device)

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.register_step_pre_hook(lambda *_: self._no_gradient(self.metrics["skipped"]))
        return optimizer

    def _no_gradient(self, skipped: float, scaled: bool = False) -> None:
        """After a skipped step the optimiser finds no gradient; a loss scaler finds zeros
        before it, since it refuses a step without any."""
        for p in self.model.parameters() if skipped else ():
            p.grad = torch.zeros_like(p) if scaled and p.requires_grad else None

    def _update(self, step: int) -> dict[str, float]:
        """Backward passes over micro-batches; each divides by the whole share's tokens."""
        s, groups = self.settings, len(self.kept)
        size, (at, shares) = s.anchor_rollouts + s.positive_rollouts, (step % s.updates, s.updates)
        share = slice(at * groups // shares * size, (at + 1) * groups // shares * size)
        batch, gamma = self.batch.rows(share), s.inter_class_weight
        if (
            not batch.completion_mask.any()
        ):  # a gradient of zeros would let momentum move the weights
            return {}
        if s.inter_class_anneal:
            gamma *= 1 - step / max(1, self.args.max_steps)
        sums = self._within_memory(lambda: self._backward(batch, gamma), len(batch.completion_ids))
        distributed.add_gradients(self.model.parameters())
        return dict(zip(LOGGED, distributed.total([sums[key] for key in LOGGED])))

    def _backward(self, batch: Batch, gamma: float) -> dict[str, float]:
        """This process's part of the gradient, of the loss and of its parts: each divides by
        the tokens of all, so that the sum over processes is that of the whole batch."""
        count, sums = batch.completion_mask.sum(), dict.fromkeys(LOGGED, 0.0)
        for part in self._micro_batches(batch):
            loss = self._loss(part, count, gamma)
            self.accelerator.backward(loss.total)
            for key in LOGGED:
                sums[key] += float(getattr(loss, key).detach())
        return sums

    def _micro_batches(self, batch: Batch):
        """The answers of this process's groups; no group is on two processes."""
        size = self.settings.anchor_rollouts + self.settings.positive_rollouts
        rank, processes = distributed.world()
        start, end = (
            i * (len(batch.completion_ids) // size) // processes * size for i in (rank, rank + 1)
        )
        for at in range(start, end, self._at_once()):
            yield batch.rows(slice(at, min(at + self._at_once(), end)))

    def _at_once(self) -> int:
        return self.smaller.at_once(MICRO, self.settings.micro_batch)

    def _within_memory(self, call, rows: int):
        """call(); where memory runs out in any process, all call again with smaller batches."""
        while True:
            tried = min(self._at_once(), -(-rows // distributed.world()[1]))
            done, problem = oom.attempt(call)
            if not any(distributed.total([bool(problem)])):
                return done
            self.model.zero_grad()  # what the failed passes left
            self.smaller.halve(MICRO, tried, problem or "in another process", LOWER)

    def _score(self, batch: Batch, on: Tensor) -> logprobs.Scores:
        """Layers recompute their activations in training mode only: it is on for this call,
        where gradient flows. With dropout 0 everywhere it changes nothing else."""
        s = self.settings
        self.model.train(self.preset.gradient_checkpointing and torch.is_grad_enabled())
        try:
            return logprobs.score(
                self.model,
                batch.pictures,
                batch.completion_ids,
                batch.completion_mask,
                on,
                s.temperature or 1.0,
                entropy=s.entropy == "full",
            )
        finally:
            self.model.eval()  # rollouts and passes without gradient keep their cache

    def _score_on_negative(self, batch: Batch) -> logprobs.Scores:
        """Scores of the chosen answers in their places; zeros in the others. (B, T) each"""
        chosen = batch.pushed.nonzero()[:, 0]
        some = self._score(part := batch.rows(chosen), part.negative)

        def spread(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            return values.new_zeros(batch.completion_ids.shape).index_copy(0, chosen, values)

        return logprobs.Scores(spread(some.logps), spread(some.entropies))

    def _loss(self, batch: Batch, count: Tensor, gamma: float) -> losses.TapoLoss:
        s, negative = self.settings, logprobs.Scores(None, None)
        scores = self._score(batch, batch.own)
        if s.reads_negative and batch.pushed.any():
            with torch.set_grad_enabled(s.negative_grad):
                negative = self._score_on_negative(batch)
        # One update a batch of rollouts: the old policy is this one, nothing to recompute.
        old = scores.logps.detach() if batch.old_logps is None else batch.old_logps
        return losses.tapo_loss(
            scores.logps,
            old,
            negative.logps,
            batch.advantages,
            batch.completion_mask,
            clip_low=s.clip_low,
            clip_high=s.clip_high,
            clip_dual=s.clip_dual,
            inter_class_weight=gamma,
            anchor_entropy_weight=s.anchor_entropy_weight,
            negative_entropy_weight=s.negative_entropy_weight,
            negative_grad=s.negative_grad,
            inter_class_rows=batch.right if s.inter_class_on == "right" else None,
            negative_rows=batch.pushed,
            entropies=scores.entropies,
            negative_entropies=negative.entropies,
            token_count=count,
        )

    def log(self, logs: dict, start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | {k: round(v, 5) for k, v in self.metrics.items()}
        super().log(logs, start_time)


def _pad(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def train_tapo(
    student: Student, collection: Collection, preset: Preset, seed: int, folder: Path, callbacks=()
) -> Student:
    """Train the student's adapter by TAPO and save it to `folder`.

    Resumes from the last checkpoint in `folder`/checkpoints; `folder`/log.jsonl holds
    every step's metrics. Of several processes each holds the whole model and answers and
    learns from groups of its own; gradients are added up here, whatever engine the launcher
    has set up for stage 1.
    """
    models.before_stage_two(student, preset)
    settings, work = preset.tapo, folder / "checkpoints"
    save_every = max(5, settings.steps // 4)
    save_every += -save_every % settings.updates  # never in the middle of a batch of rollouts
    with distributed.no_engine():
        args = TrainingArguments(
            str(work),
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=3,
            weight_decay=0.01,
            max_grad_norm=1.0,
            logging_steps=1,
            logging_first_step=True,
            save_steps=save_every,
            save_total_limit=1,
            seed=seed,
            report_to=[],
            restore_callback_states_from_checkpoint=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            per_device_train_batch_size=1,
            use_cpu=student.device.type == "cpu",
            dataloader_pin_memory=False,
            bf16=student.model.dtype == torch.bfloat16,
            fp16=student.model.dtype == torch.float16,
        )
        trainer = TAPOTrainer(student, collection, preset, seed, args, callbacks=list(callbacks))
        return train(trainer, student, folder)
