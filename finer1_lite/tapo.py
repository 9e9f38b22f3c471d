"""Stage 2: TAPO, Triplet Augmented Policy Optimisation (Fine-R1, section 3.2).

One step: draw triplets -> answer anchors and positives -> reward -> keep groups with
spread -> advantages -> log-probabilities on anchor and hard negative -> loss. Of
`transformers.Trainer` it uses the optimiser, the schedule, checkpoints and logging.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainingArguments

from finer1_lite import advantages, losses, models, prompts, rewards, rollouts
from finer1_lite.models import Student
from finer1_lite.presets import Preset, TAPOSettings
from finer1_lite.sft import write_log
from finer1_lite.species import Collection
from finer1_lite.steps import StepTrainer, last_checkpoint
from finer1_lite.triplets import Triplet, draw_triplets


@dataclass
class Group:
    """One triplet, its 2n answers (anchor's first) and what they earned."""

    triplet: Triplet
    tokens: Tensor  # (2n, T)
    mask: Tensor  # (2n, T)
    texts: list[str]
    cut: Tensor  # (2n,)
    accuracy: Tensor  # (2n,)
    format: Tensor  # (2n,)

    def reward(self, settings: TAPOSettings) -> Tensor:
        """Weighted sum of accuracy and format. (2n,)"""
        return settings.accuracy_weight * self.accuracy + settings.format_weight * self.format


class TAPOTrainer(StepTrainer):
    """TAPO on any Qwen-VL with adapters. `kept` and `dropped` show the last step's groups."""

    def __init__(
        self, student: Student, collection: Collection, preset: Preset, seed: int, args, **kwargs
    ):
        self.student, self.collection, self.preset, self.draw_seed = (
            student,
            collection,
            preset,
            seed,
        )
        self.settings = preset.tapo
        self.asked = prompts.question("think", collection.coarse)
        self.kept: list[Group] = []
        self.dropped: list[Group] = []
        self.metrics: dict[str, float] = {}
        super().__init__(student.model, args, **kwargs)

    # --- rollouts and rewards ---------------------------------------------------------

    def answer(self, triplets: list[Triplet], generator: torch.Generator) -> list[Group]:
        """n answers to each anchor and n to each positive, with their rewards."""
        s, photos = self.settings, [t.anchor for t in triplets]
        parts = [self._roll([p.image() for p in photos], s.anchor_rollouts, generator)]
        if s.positive_rollouts:
            pictures = [t.positive.image() for t in triplets]
            parts.append(self._roll(pictures, s.positive_rollouts, generator))
        counts = (s.anchor_rollouts, s.positive_rollouts)
        groups = []
        for g, triplet in enumerate(triplets):
            rows = [(part, g * n + i) for part, n in zip(parts, counts) for i in range(n)]
            groups.append(self._group(triplet, rows))
        return groups

    def _roll(self, pictures, copies: int, generator) -> rollouts.Rollouts:
        s, processor = self.settings, self.student.processor
        batch = rollouts.encode_prompts(
            self.model, processor, [self.asked] * len(pictures), pictures
        )
        return rollouts.generate(
            self.model, processor, batch, copies=copies, temperature=s.temperature, top_p=s.top_p,
            max_new_tokens=self.preset.max_new_tokens, generator=generator,
        )  # fmt: skip

    def _group(self, triplet: Triplet, rows) -> Group:
        texts = [part.texts[i] for part, i in rows]
        names = self.collection.names
        label = [triplet.anchor.species] * len(texts)
        return Group(
            triplet,
            _pad(
                [part.tokens[i] for part, i in rows], self.student.processor.tokenizer.pad_token_id
            ),
            _pad([part.mask[i] for part, i in rows], 0),
            texts,
            torch.stack([part.cut[i] for part, i in rows]),
            torch.tensor(rewards.accuracy(texts, label, names)),
            torch.tensor(rewards.format(texts)),
        )

    def collect(self, step: int) -> None:
        """Dynamic sampling: draw until `groups` have spread, `draws` rounds at most."""
        s, self.kept, self.dropped = self.settings, [], []
        generator = torch.Generator(self.student.device)
        generator.manual_seed(self.draw_seed * 1_000_003 + step)
        for round_ in range(s.draws):
            triplets = draw_triplets(self.collection, s.groups, self.draw_seed, step, round_)
            groups = self.answer(triplets, generator)
            spread = advantages.keep_group(torch.stack([g.accuracy for g in groups]))
            for group, keep in zip(groups, spread.tolist()):
                (self.kept if keep and len(self.kept) < s.groups else self.dropped).append(group)
            if len(self.kept) == s.groups:
                break

    # --- one optimiser step -----------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Rollouts and the gradient of the TAPO loss; returns the loss, a scalar.

        A step in which no group has spread is skipped and counted: no gradient at all.
        """
        start = time.time()
        model.eval()  # no dropout: rollouts and scores come from the same network
        self.collect(inputs["step"])
        rolled = time.time()
        parts = self._update() if self.kept else {}
        total = parts.get("total", 0.0)
        self.metrics = self._metrics() | {k: v for k, v in parts.items() if k != "total"}
        done = time.time()
        answers = self.kept + self.dropped
        self.metrics |= {
            "skipped": float(not self.kept), "generate_s": rolled - start, "update_s": done - rolled,
            "step_s": done - start,
            "tokens_per_second": sum(int(g.mask.sum()) for g in answers) / (rolled - start),
        }  # fmt: skip
        return torch.tensor(total, device=self.student.device)

    def _update(self) -> dict[str, float]:
        """Backward passes over micro-batches; each divides by the whole batch's tokens."""
        s, pad = self.settings, self.student.processor.tokenizer.pad_token_id
        scores = torch.stack([g.reward(s) for g in self.kept])  # (G, 2n)
        advantage = advantages.group_advantages(scores.flatten(), scores.shape[1])
        tokens = _pad([row for g in self.kept for row in g.tokens], pad)  # (B, T)
        mask = _pad([row for g in self.kept for row in g.mask], 0)
        pictures, own, negative = self._pictures()
        sums: dict[str, float] = {}
        for at in range(0, len(tokens), s.micro_batch):
            rows = slice(at, at + s.micro_batch)
            part = self._micro_batch(
                pictures, own[rows], negative[rows], tokens[rows], mask[rows],
                advantage[rows].to(tokens.device), mask.sum(),
            )  # fmt: skip
            self.accelerator.backward(part.total)
            for key in (
                "total",
                "policy",
                "inter_class_kl",
                "anchor_entropy",
                "negative_entropy",
                "clip_share",
            ):
                sums[key] = sums.get(key, 0.0) + float(getattr(part, key).detach())
        return sums

    def _pictures(self):
        """Encode each kept group's pictures once; say which one scores which answer."""
        s = self.settings
        images, own, negative = [], [], []
        for group in self.kept:
            t, first = group.triplet, len(images)
            separate = s.scored_on == "own" and s.positive_rollouts > 0
            images += [t.anchor.image(), t.negative.image()]
            images += [t.positive.image()] if separate else []
            own += [first] * s.anchor_rollouts
            own += [first + 2 if separate else first] * s.positive_rollouts
            negative += [first + 1] * (s.anchor_rollouts + s.positive_rollouts)
        batch = rollouts.encode_prompts(
            self.model, self.student.processor, [self.asked] * len(images), images
        )
        return batch, own, negative

    def _micro_batch(
        self, pictures, own, negative, tokens, mask, advantage, count
    ) -> losses.TapoLoss:
        s = self.settings
        tempered = s.temperature or 1.0
        logps = rollouts.log_probs(self.model, pictures, tokens, mask, own, tempered)
        negative_logps = None
        if s.inter_class_weight or s.negative_entropy_weight:
            with torch.set_grad_enabled(s.negative_grad):
                negative_logps = rollouts.log_probs(
                    self.model, pictures, tokens, mask, negative, tempered
                )
        return losses.tapo_loss(
            logps, logps.detach(),  # one update a batch of rollouts: the old policy is this one
            negative_logps, advantage, mask, clip_low=s.clip_low, clip_high=s.clip_high,
            clip_dual=s.clip_dual, inter_class_weight=s.inter_class_weight,
            anchor_entropy_weight=s.anchor_entropy_weight,
            negative_entropy_weight=s.negative_entropy_weight, negative_grad=s.negative_grad,
            token_count=count,
        )  # fmt: skip

    # --- what to look at --------------------------------------------------------------

    def _metrics(self) -> dict[str, float]:
        groups = self.kept + self.dropped
        right = torch.stack([g.accuracy for g in groups])
        whole = torch.stack([g.format for g in groups])
        reward = torch.stack([g.reward(self.settings) for g in groups])
        lengths = torch.cat([g.mask.sum(-1) for g in groups]).float()
        metrics = {
            "reward": reward.mean(), "accuracy": right.mean(), "format": whole.mean(),
            "groups_kept": len(self.kept), "groups_drawn": len(groups),
            "cut": torch.cat([g.cut for g in groups]).float().mean(), "length": lengths.mean(),
        }  # fmt: skip
        s = self.settings
        if s.anchor_rollouts == s.positive_rollouts:  # spread inside at least one picture?
            by_picture = right.view(len(groups), 2, s.anchor_rollouts)
            metrics["flat_share"] = advantages.spread_within(by_picture)
        return {key: float(value) for key, value in metrics.items()}

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
    every step's metrics.
    """
    settings, work = preset.tapo, folder / "checkpoints"
    args = TrainingArguments(
        str(work), max_steps=settings.steps, learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup", warmup_steps=3, weight_decay=0.01,
        max_grad_norm=1.0, logging_steps=1, logging_first_step=True,
        save_steps=max(5, settings.steps // 4), save_total_limit=1, seed=seed, report_to=[],
        disable_tqdm=True, remove_unused_columns=False, per_device_train_batch_size=1,
        use_cpu=student.device.type == "cpu", dataloader_pin_memory=False,
        bf16=student.model.dtype == torch.bfloat16, fp16=student.model.dtype == torch.float16,
    )  # fmt: skip
    trainer = TAPOTrainer(student, collection, preset, seed, args, callbacks=list(callbacks))
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    write_log(trainer.state.log_history, folder / "log.jsonl")
    models.save_adapter(student, folder)
    return student
