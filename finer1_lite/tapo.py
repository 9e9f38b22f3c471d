"""Stage 2: TAPO, Triplet Augmented Policy Optimisation (Fine-R1, section 3.2).

One step: draw triplets -> answer anchors and positives -> reward -> keep groups with
spread -> advantages -> log-probabilities on anchor and hard negative -> loss. Of
`transformers.Trainer` it uses the optimiser, the schedule, checkpoints and logging.
"""

import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainingArguments

from finer1_lite import advantages, losses, models, prompts, rewards, rollouts, triplets
from finer1_lite.models import Student
from finer1_lite.presets import Preset, TAPOSettings
from finer1_lite.sft import write_log
from finer1_lite.species import Collection
from finer1_lite.steps import StepTrainer, last_checkpoint
from finer1_lite.triplets import Triplet

LOGGED = (
    "total", "policy", "inter_class_kl", "anchor_entropy", "negative_entropy", "clip_share",
)  # fmt: skip


@dataclass
class Group:
    """One triplet, its n + m answers (anchor's first) and what they earned."""

    triplet: Triplet
    pictures: rollouts.PromptBatch  # anchor, positive, negative: those that are used, encoded
    tokens: Tensor  # (n+m, T)
    mask: Tensor  # (n+m, T)
    texts: list[str]
    cut: Tensor  # (n+m,)
    accuracy: Tensor  # (n+m,)
    format: Tensor  # (n+m,)
    overlong: Tensor  # (n+m,) 0 or a penalty

    def reward(self, settings: TAPOSettings) -> Tensor:
        """Weighted sum of accuracy and format, and the penalty for length. (n+m,)"""
        weighted = settings.accuracy_weight * self.accuracy + settings.format_weight * self.format
        return weighted + self.overlong


@dataclass
class Batch:
    """The kept groups' answers, ready to be learnt from: B = groups x (n+m)."""

    tokens: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    advantages: Tensor  # (B,)
    right: Tensor  # (B,)
    pictures: rollouts.PromptBatch  # every picture of the groups
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


class TAPOTrainer(StepTrainer):
    """TAPO on any Qwen-VL with adapters. `kept` and `dropped` show the last step's groups.

    GRPO, DAPO, CLS-RL, PAPO and NoisyRollout are settings of it: `presets.RECIPES`.
    """

    def __init__(
        self, student: Student, collection: Collection, preset: Preset, seed: int, args, **kwargs
    ):
        self.student, self.collection, self.preset = student, collection, preset
        self.settings, self.draw_seed = preset.tapo, seed
        self.asked = prompts.question(self.settings.prompt, collection.coarse)
        self.kept: list[Group] = []
        self.dropped: list[Group] = []
        self.batch: Batch | None = None
        self.metrics: dict[str, float] = {}
        super().__init__(student.model, args, **kwargs)
        self.mined = self._miner()

    def _miner(self):
        """What `draw_triplets` takes as the hard negative."""
        kind = self.settings.negative
        if kind == "embedding":
            return triplets.ByEmbedding(self.collection, self._embed_picture)
        if kind == "confused":
            self.add_callback(triplets.ByConfusion())
            return self.confusions
        known = {"nearest": triplets.nearest, "random": triplets.at_random, "masked": "masked"}
        return known[kind]

    def confusions(self, *asked):
        """Ask the callback of the moment: a resumed trainer swaps it for the saved one."""
        return self._confusions()(*asked)

    def _confusions(self) -> triplets.ByConfusion | None:
        found = [c for c in self.callback_handler.callbacks if isinstance(c, triplets.ByConfusion)]
        return found[0] if found else None

    def _embed_picture(self, image) -> Tensor:
        batch = rollouts.encode_prompts(
            self.model, self.student.processor, [self.asked], [image]
        )
        return batch.features[0].float().mean(0)

    # --- rollouts and rewards ---------------------------------------------------------

    def answer(self, drawn: list[Triplet], generator: torch.Generator) -> list[Group]:
        """n answers to each anchor and m to each positive, with their rewards.

        The step's one pass through the vision tower and one loop over tokens: negatives are
        encoded along, and anchors and positives are answered side by side.
        """
        s, processor = self.settings, self.student.processor
        counts = [n for n in (s.anchor_rollouts, s.positive_rollouts) if n]
        parts = ["anchor", "positive"][: len(counts)] + ["negative"] * self._reads_negative()
        images = [getattr(t, part).image() for t in drawn for part in parts]
        batch = rollouts.encode_prompts(self.model, processor, [self.asked] * len(images), images)
        of = [range(g * len(parts), (g + 1) * len(parts)) for g in range(len(drawn))]
        answered = [row for rows in of for row in rows[: len(counts)]]
        out = rollouts.generate(
            self.model, processor, batch.rows(answered), copies=counts * len(drawn),
            temperature=s.temperature, top_p=s.top_p, generator=generator,
            max_new_tokens=self.preset.max_new_tokens,
        )  # fmt: skip
        size = sum(counts)
        return [
            self._group(t, batch.rows(of[g]), out, slice(g * size, (g + 1) * size))
            for g, t in enumerate(drawn)
        ]

    def _group(self, triplet: Triplet, pictures, out: rollouts.Rollouts, rows: slice) -> Group:
        texts, mask = out.texts[rows], out.mask[rows]
        label, names = triplet.anchor.species, self.collection.names
        limit, buffer = self.preset.max_new_tokens, self.settings.overlong_tokens
        over = [rewards.overlong_penalty(n, limit, buffer) for n in mask.sum(-1).tolist()]
        return Group(
            triplet, pictures, out.tokens[rows], mask, texts, out.cut[rows],
            accuracy=torch.tensor(rewards.accuracy(texts, [label] * len(texts), names)),
            format=torch.tensor(rewards.format(texts)), overlong=torch.tensor(over),
        )  # fmt: skip

    def collect(self, step: int) -> None:
        """Dynamic sampling: draw until `groups` have spread, `draws` rounds at most."""
        s, self.kept, self.dropped = self.settings, [], []
        generator = torch.Generator(self.student.device)
        generator.manual_seed(self.draw_seed * 1_000_003 + step)
        how = {"positive": s.positive, "negative": self.mined}
        for round_ in range(s.draws):
            drawn = triplets.draw_triplets(
                self.collection, s.groups, self.draw_seed, step, round_, **how
            )
            groups = self.answer(drawn, generator)
            spread = advantages.keep_group(torch.stack([g.accuracy for g in groups]))
            for group, keep in zip(groups, spread.tolist()):
                keep = (keep or s.keep == "all") and len(self.kept) < s.groups
                (self.kept if keep else self.dropped).append(group)
            if len(self.kept) == s.groups:
                break
        confusions = self._confusions()
        if confusions is not None:
            for group in self.kept + self.dropped:
                for text in group.texts:
                    named = rewards.match_class(rewards.parse_answer(text), self.collection.names)
                    confusions.note(group.triplet.anchor.species, named)

    def prepare(self) -> Batch:
        """The kept groups as tensors."""
        s, pad = self.settings, self.student.processor.tokenizer.pad_token_id
        scores = torch.cat([g.reward(s) for g in self.kept])  # (B,)
        counts = (s.anchor_rollouts, s.positive_rollouts)
        if s.baseline == "picture":
            advantage = advantages.picture_advantages(scores, counts)
        else:
            advantage = advantages.group_advantages(scores, sum(counts))
        mask = _pad([row for g in self.kept for row in g.mask], 0)
        if s.mask_cut:
            mask = mask * ~torch.cat([g.cut for g in self.kept])[:, None]
        tokens = _pad([row for g in self.kept for row in g.tokens], pad)
        right = torch.cat([g.accuracy for g in self.kept])
        batch = Batch(
            tokens, mask, advantage.to(tokens.device), right.to(tokens.device), *self._pictures(),
            self._pushed().repeat(len(self.kept)).to(tokens.device),
        )
        if s.updates > 1:  # later shares meet a policy that has moved: remember the first
            with torch.no_grad():
                parts = [self._score(b, b.own).logps for b in self._micro_batches(batch)]
            batch.old_logps = torch.cat(parts)
        return batch

    def _pictures(self) -> tuple[rollouts.PromptBatch, Tensor, Tensor]:
        """The kept groups' pictures; which one scores which answer, and which pushes it away.

        The vision tower is frozen, so what it made of them for the rollouts still holds.
        """
        s, own, negative, at = self.settings, [], [], 0
        separate = s.scored_on == "own" and s.positive_rollouts > 0
        for group in self.kept:
            own += [at] * s.anchor_rollouts + [at + separate] * s.positive_rollouts
            at += len(group.pictures.ids)
            negative += [at - 1] * (s.anchor_rollouts + s.positive_rollouts)
        pictures = rollouts.join([g.pictures for g in self.kept])
        return pictures, torch.tensor(own), torch.tensor(negative)

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

    def _reads_negative(self) -> bool:
        return bool(self.settings.inter_class_weight or self.settings.negative_entropy_weight)

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
            "skipped": float(not parts), "generate_s": rolled - start, "update_s": done - rolled,
            "step_s": done - start,
        }  # fmt: skip
        if fresh:
            tokens = sum(int(g.mask.sum()) for g in answers)
            self.metrics["tokens_per_second"] = tokens / (rolled - start)
        return torch.tensor(total, device=self.student.device)

    def _update(self, step: int) -> dict[str, float]:
        """Backward passes over micro-batches; each divides by the whole share's tokens."""
        s, groups = self.settings, len(self.kept)
        size, (at, shares) = s.anchor_rollouts + s.positive_rollouts, (step % s.updates, s.updates)
        share = slice(at * groups // shares * size, (at + 1) * groups // shares * size)
        batch, gamma = self.batch.rows(share), s.inter_class_weight
        if not batch.mask.any():  # a gradient of zeros would let momentum move the weights
            return {}
        if s.inter_class_anneal:
            gamma *= 1 - step / max(1, self.args.max_steps)
        sums: dict[str, float] = {}
        for part in self._micro_batches(batch):
            loss = self._loss(part, batch.mask.sum(), gamma)
            self.accelerator.backward(loss.total)
            for key in LOGGED:
                sums[key] = sums.get(key, 0.0) + float(getattr(loss, key).detach())
        return sums

    def _micro_batches(self, batch: Batch):
        for at in range(0, len(batch.tokens), self.settings.micro_batch):
            yield batch.rows(slice(at, at + self.settings.micro_batch))

    def _score(self, batch: Batch, on: Tensor) -> rollouts.Scores:
        s = self.settings
        return rollouts.score(
            self.model, batch.pictures, batch.tokens, batch.mask, on, s.temperature or 1.0,
            entropy=s.entropy == "full",
        )  # fmt: skip

    def _score_on_negative(self, batch: Batch) -> rollouts.Scores:
        """Scores of the chosen answers in their places; zeros in the others. (B, T) each"""
        chosen = batch.pushed.nonzero()[:, 0]
        some = self._score(part := batch.rows(chosen), part.negative)

        def spread(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            return values.new_zeros(batch.tokens.shape).index_copy(0, chosen, values)

        return rollouts.Scores(spread(some.logps), spread(some.entropies))

    def _loss(self, batch: Batch, count: Tensor, gamma: float) -> losses.TapoLoss:
        s, negative = self.settings, rollouts.Scores(None, None)
        scores = self._score(batch, batch.own)
        if self._reads_negative() and batch.pushed.any():
            with torch.set_grad_enabled(s.negative_grad):
                negative = self._score_on_negative(batch)
        # One update a batch of rollouts: the old policy is this one, nothing to recompute.
        old = scores.logps.detach() if batch.old_logps is None else batch.old_logps
        return losses.tapo_loss(
            scores.logps, old, negative.logps, batch.advantages, batch.mask,
            clip_low=s.clip_low, clip_high=s.clip_high, clip_dual=s.clip_dual,
            inter_class_weight=gamma, anchor_entropy_weight=s.anchor_entropy_weight,
            negative_entropy_weight=s.negative_entropy_weight, negative_grad=s.negative_grad,
            inter_class_rows=batch.right if s.inter_class_on == "right" else None,
            negative_rows=batch.pushed,
            entropies=scores.entropies, negative_entropies=negative.entropies, token_count=count,
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
        if s.positive_rollouts:  # kept groups without spread inside any picture
            sides = right.split((s.anchor_rollouts, s.positive_rollouts), dim=1)
            longest = torch.arange(max(s.anchor_rollouts, s.positive_rollouts))
            even = [side[:, longest % side.shape[1]] for side in sides]  # repeated: no new spread
            metrics["flat_share"] = advantages.spread_within(torch.stack(even, 1))
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
    models.before_stage_two(student, preset)
    settings, work = preset.tapo, folder / "checkpoints"
    save_every = max(5, settings.steps // 4)
    save_every += -save_every % settings.updates  # never in the middle of a batch of rollouts
    args = TrainingArguments(
        str(work), max_steps=settings.steps, learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup", warmup_steps=3, weight_decay=0.01,
        max_grad_norm=1.0, logging_steps=1, logging_first_step=True,
        save_steps=save_every, save_total_limit=1, seed=seed, report_to=[],
        restore_callback_states_from_checkpoint=True,
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
