"""Stage 2: TAPO, Triplet Augmented Policy Optimisation (Fine-R1, section 3.2).

`train_tapo` is the method: draw triplets, complete anchors and positives, reward, keep groups
with reward variance, advantages, log-probabilities on anchor and hard negative, loss. GRPO,
DAPO, CLS-RL, PAPO and NoisyRollout are settings of it: `presets.RECIPES`.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.tracking import GeneralTracker
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from finer1_lite import advantages, generation, logprobs, losses, models, prompts, rewards, triplets
from finer1_lite.data.chain_text import agreement
from finer1_lite.generation import PromptBatch, Rollouts, Student
from finer1_lite.presets import Preset, TAPOSettings
from finer1_lite.runtime import distributed, own_rewards, trackers
from finer1_lite.runtime.checkpoints import MINUTES
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.oom import Limits
from finer1_lite.species import Collection
from finer1_lite.trainer import LOWER, MICRO, Loop, save_trained
from finer1_lite.triplets import Triplet


@dataclass
class Group:
    """One triplet, its n + m completions (the anchor's first) and what they earned."""

    triplet: Triplet
    prompts: PromptBatch  # anchor, positive, negative: those that are used, encoded
    completion_ids: Tensor  # (n+m, T)
    completion_mask: Tensor  # (n+m, T)
    completions: list[str]
    truncated: Tensor  # (n+m,)
    right: Tensor  # (n+m,) names the anchor's class
    agrees: Tensor  # (n+m,) the chain leads to the answer: `chain_text.agreement`
    accuracy: Tensor  # (n+m,) what is paid as right: less without `agrees` where that is rewarded
    format: Tensor  # (n+m,)
    reward: Tensor  # (n+m,)
    own: dict[str, Tensor]  # (n+m,) each: what functions of one's own pay, nan where one says None


@dataclass
class Batch:
    """The kept groups' completions, ready to be learnt from: B = groups x (n+m)."""

    prompts: PromptBatch  # every picture of the groups
    group_size: int  # n+m
    token_count: int  # of the whole batch: every part of it divides by this,
    completion_count: int  # or by this
    completion_ids: Tensor  # (B, T)
    completion_mask: Tensor  # (B, T)
    advantages: Tensor  # (B,)
    correct: Tensor  # (B,)
    scored_on: Tensor  # (B,) the prompt that a completion is scored on
    sampled_on: Tensor  # (B,) the prompt that it was written to
    negative: Tensor  # (B,) the prompt that pushes it away
    negative_weights: Tensor  # (B,) weight in the terms of the negative, 0: not scored there
    old_logps: Tensor | None = None  # (B, T) where the ratio does not begin at 1

    def rows(self, rows: slice | Tensor) -> "Batch":
        """Some completions, with the same prompts."""
        columns = {k: v[rows] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **columns)

    def share(self, part: int, parts: int) -> "Batch | None":
        """One of several equal shares of the groups; None where it has nothing to learn from."""
        share = self.rows(slice(*self._bounds(part, parts)))
        tokens, rows = int(share.completion_mask.sum()), len(share.completion_mask)
        return replace(share, token_count=tokens, completion_count=rows) if tokens else None

    def micro_batches(self, size: int) -> list["Batch"]:
        """This process's completions, `size` at a time; no group is on two processes."""
        start, end = self._bounds(*distributed.world())
        return [self.rows(slice(at, min(at + size, end))) for at in range(start, end, size)]

    def _bounds(self, part: int, parts: int) -> tuple[int, int]:
        """First and last row of one of several equal shares of whole groups."""
        groups = len(self.completion_ids) // self.group_size
        return tuple(i * groups // parts * self.group_size for i in (part, part + 1))


def train_tapo(
    student: Student,
    collection: Collection,
    preset: Preset,
    seed: int,
    folder: Path,
    *,
    report_to: str | GeneralTracker = "none",
    on_step: Callable[[int, dict], object] | None = None,
) -> Student:
    """Train the student's adapter by TAPO and save it to `folder`.

    Resumes from the last checkpoint in `folder`/checkpoints; `folder`/log.jsonl holds every
    step's log. report_to: none, tensorboard, wandb or trackio; on_step(step, log) is called
    after each step, the first being 1. Of several processes each holds the whole model,
    completes and learns from groups of its own, and gradients are added up.
    """
    models.prepare_for_stage_two(student, preset)
    triplets.require_enough(collection)
    own_rewards.load(preset.tapo.rewards)
    s = preset.tapo
    save_every = max(5, s.steps // 4)
    loop = Loop(
        student.model,
        folder / "checkpoints",
        steps=s.steps,
        learning_rate=s.learning_rate,
        weight_decay=0.01,
        micro_batch=s.micro_batch,
        save_every=save_every + -save_every % s.updates,  # never within a batch of rollouts
        save_minutes=MINUTES if s.updates == 1 else math.inf,
        report_to=report_to,
        on_step=on_step,
    )
    for step in loop:
        seconds = 0.0
        if step % s.updates == 0:  # so many steps share a batch of rollouts
            kept, dropped = sample_groups(
                student, collection, preset, seed, step // s.updates, loop.limits
            )
            seconds = loop.seconds()
            batch = make_batch(kept, s)
            if batch:
                batch.old_logps = old_log_probs(student, batch, preset, loop.limits)
            for tracker in loop.accelerator.trackers:
                trackers.log_table(tracker, rollout_rows((kept + dropped)[0], s), step + 1)
        share = batch and batch.share(step % s.updates, s.updates)
        if not share:  # no group has reward variance: no gradient, no step
            loop.skip(step_log(s, kept, dropped, seconds))
            continue
        parts = loop.backward(share, lambda part: batch_loss(student, part, preset))
        loop.step(step_log(s, kept, dropped, seconds, parts))
    save_trained(student, folder, loop.history)
    return student


# --- rollouts and rewards ----------------------------------------------------------------


def sample_groups(
    student: Student,
    collection: Collection,
    preset: Preset,
    seed: int,
    step: int,
    limits: Limits | None = None,
) -> tuple[list[Group], list[Group]]:
    """Dynamic sampling (DAPO, arXiv 2503.14476): the (kept, dropped) groups of a step.

    Draws until `groups` of them have reward variance, `draws` rounds at most: in later rounds as
    many as are likely to hold what is missing. Every process holds all groups afterwards, so
    that all keep the same.
    """
    s = preset.tapo
    kept: list[Group] = []
    dropped: list[Group] = []
    for round_ in range(s.draws):
        count = groups_to_draw(s.groups, len(kept), len(kept) + len(dropped))
        how = {"positive": s.positive, "negative": s.negative, "offer": s.with_options}
        drawn = triplets.draw_triplets(collection, count, seed, step, round_, **how)
        dice = f"rollouts/{seed}/{step}/{round_}"
        groups = _rollout_by_all(student, drawn, collection, preset, dice, limits or Limits())
        varied = advantages.keep_group(torch.stack([g.accuracy for g in groups]))
        for group, varies in zip(groups, varied.tolist(), strict=True):
            keep = (varies or s.keep == "all") and len(kept) < s.groups
            (kept if keep else dropped).append(group)
        if len(kept) == s.groups:
            break
    return kept, dropped


def groups_to_draw(wanted: int, kept: int, drawn: int) -> int:
    """How many groups the next round draws, from the share kept of those drawn so far.

    The share counts one group more, a kept one, so that it is never 0; a round never draws more
    than `wanted`.
    """
    return min(wanted, math.ceil((wanted - kept) * (drawn + 1) / (kept + 1)))


def _rollout_by_all(
    student: Student,
    drawn: Sequence[Triplet],
    collection: Collection,
    preset: Preset,
    dice: str,
    limits: Limits,
) -> list[Group]:
    """`rollout` of all triplets, each process a share of them, as many at a time as fit.

    Each group has random numbers of its own: who completes it, and beside which others, does
    not change it.
    """
    share = distributed.shard(range(len(drawn)))
    groups: list[Group] = []

    def some(size: int) -> list[Group]:
        part = share[len(groups) :][:size]
        seeds = [random.Random(f"{dice}/{g}").getrandbits(63) for g in part]
        generators = [torch.Generator().manual_seed(number) for number in seeds]
        return rollout(student, [drawn[g] for g in part], collection, preset, generators)

    while len(groups) < len(share):
        groups += limits.fit("groups completed at a time", len(share) - len(groups), some, LOWER)
    bare = [replace(g, triplet=None) for g in groups]  # photos need not fit into a message
    shares = distributed.gather(bare, student.device)
    return [
        replace(shares[at % len(shares)][at // len(shares)], triplet=triplet)
        for at, triplet in enumerate(drawn)
    ]


def rollout(
    student: Student,
    drawn: Sequence[Triplet],
    collection: Collection,
    preset: Preset,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[Group]:
    """Complete each anchor n times and each positive m times; with their rewards.

    generator: one for all, or a list with one for each group. One pass through the vision
    tower and one loop over tokens: negatives are encoded along, and anchors and positives are
    completed side by side.
    """
    s = preset.tapo
    counts = [n for n in (s.anchor_rollouts, s.positive_rollouts) if n]
    size = sum(counts)
    parts = ["anchor", "positive"][: len(counts)] + ["negative"] * s.reads_negative
    images = [getattr(t, part).image() for t in drawn for part in parts]
    asked = [prompts.question(s.prompt, collection.coarse, t.options) for t in drawn]
    questions = [question for question in asked for _ in parts]
    batch = generation.encode_prompts(student.model, student.processor, questions, images)
    rows = [range(g * len(parts), (g + 1) * len(parts)) for g in range(len(drawn))]
    with progress_bar(preset.max_new_tokens, f"{size * len(drawn)} rollouts", inner=True) as bar:
        out = generation.generate(
            student.model,
            student.processor,
            batch.rows([row for group in rows for row in group[: len(counts)]]),
            num_generations=counts * len(drawn),
            temperature=s.temperature,
            top_p=s.top_p,
            generator=generator,
            max_new_tokens=preset.max_new_tokens,
            on_token=bar.update,
        )
    return [
        reward_group(t, batch.rows(rows[g]), out.rows(g * size, size), collection, preset)
        for g, t in enumerate(drawn)
    ]


def reward_group(
    triplet: Triplet, batch: PromptBatch, out: Rollouts, collection: Collection, preset: Preset
) -> Group:
    """The completions of one triplet and what they earn; the anchor's class is the label."""
    s = preset.tapo
    labels = [triplet.anchor.species] * len(out.completions)
    right = rewards.accuracy(out.completions, labels, collection.names, collection.aliases)
    named = (collection.names, labels[0], collection.aliases)
    said = ((text, rewards.parse_answer(text)) for text in out.completions)
    agrees = [float(agreement(text, answer, *named)["agrees"]) for text, answer in said]
    w = s.reward_agreement
    accuracy = [r * (1 - w + w * a) for r, a in zip(right, agrees, strict=True)]
    formed = rewards.format(out.completions)
    penalties = [
        rewards.overlong_penalty(length, preset.max_new_tokens, s.overlong_tokens)
        for length in out.lengths.tolist()
    ]
    paid = [
        s.accuracy_weight * name + s.format_weight * form + penalty
        for name, form, penalty in zip(accuracy, formed, penalties, strict=True)
    ]
    own = own_payments(triplet, out, collection, s) if s.rewards else {}
    reward = torch.tensor(paid)
    for payments, weight in own.values():
        reward = reward + weight * payments.nan_to_num()
    return Group(
        triplet,
        batch,
        **vars(out),
        right=torch.tensor(right),
        agrees=torch.tensor(agrees),
        accuracy=torch.tensor(accuracy),
        format=torch.tensor(formed),
        reward=reward,
        own={name: payments for name, (payments, _) in own.items()},
    )


def own_payments(
    triplet: Triplet, out: Rollouts, collection: Collection, settings: TAPOSettings
) -> dict[str, tuple[Tensor, float]]:
    """Of `tapo.rewards`, by name: what the function pays each completion (n+m,), its weight."""
    functions = own_rewards.load(settings.rewards)
    one = {
        "prompts": prompts.messages(
            prompts.question(settings.prompt, collection.coarse, triplet.options)
        ),
        "label": triplet.anchor.species,
        "classes": collection.names,
        "aliases": collection.aliases,
    }
    columns = {name: [value] * len(out.completions) for name, value in one.items()}
    ids = zip(out.completion_ids, out.completion_mask, strict=True)
    columns["completion_ids"] = [row[mask.bool()].tolist() for row, mask in ids]
    paid = own_rewards.pay(functions, out.completions, columns)
    return {name: (torch.tensor(paid[name]), functions[name][1]) for name in paid}


# --- advantages and loss -----------------------------------------------------------------


def make_batch(kept: Sequence[Group], settings: TAPOSettings) -> Batch | None:
    """The kept groups as tensors, with their advantages; None where no group is kept."""
    if not kept:
        return None
    s = settings
    counts = (s.anchor_rollouts, s.positive_rollouts)
    reward = torch.cat([g.reward for g in kept])  # (B,)
    if s.baseline == "picture":
        advantage = advantages.picture_advantages(reward, counts, s.advantage_scale)
    else:
        advantage = advantages.group_advantages(reward, sum(counts), scale=s.advantage_scale)
    mask = pad_sequence([row for g in kept for row in g.completion_mask], batch_first=True)
    if s.mask_cut:
        mask = mask * ~torch.cat([g.truncated for g in kept])[:, None]
    scored_on, sampled_on, negative = prompt_rows(kept, s)
    return Batch(
        generation.join([g.prompts for g in kept]),
        sum(counts),
        int(mask.sum()),
        len(mask),
        pad_sequence([row for g in kept for row in g.completion_ids], batch_first=True),
        mask,
        advantage.to(mask.device),
        torch.cat([g.accuracy for g in kept]).to(mask.device),
        scored_on.to(mask.device),
        sampled_on.to(mask.device),
        negative.to(mask.device),
        negative_weights(s).repeat(len(kept)).to(mask.device),
    )


def prompt_rows(kept: Sequence[Group], settings: TAPOSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the joined prompts scores each completion, led to it, pushes it away: (B,) each.

    The vision tower is frozen, so what it made of the pictures for the rollouts still holds.
    """
    pictures = len(kept[0].prompts.input_ids)  # of each group: anchor, positive, negative
    own = torch.tensor([0] * settings.anchor_rollouts + [1] * settings.positive_rollouts)
    first = torch.arange(len(kept)).repeat_interleave(len(own)) * pictures
    sampled_on = first + own.repeat(len(kept))
    scored_on = sampled_on if settings.scored_on == "own" else first
    return scored_on, sampled_on, first + pictures - 1


def negative_weights(settings: TAPOSettings) -> Tensor:
    """Which of a group's rollouts are scored on the negative, and what each stands for: (n+m,).

    They are evenly spaced, so anchor's and positive's take part alike. Rollouts of a
    picture are drawn alike: the weighted mean over some has the expectation of all.
    """
    size = settings.anchor_rollouts + settings.positive_rollouts
    count = settings.negative_rollouts or size
    weights = torch.zeros(size)
    weights[torch.arange(count) * size // count] = size / count
    return weights


def batch_loss(student: Student, batch: Batch, preset: Preset) -> losses.TapoLoss:
    """The TAPO loss of a batch, or of a part of one: see `Batch.token_count`."""
    s = preset.tapo
    logps = _score(student, batch, batch.scored_on, preset)
    negative_logps = None
    if s.reads_negative and batch.negative_weights.any():
        with torch.set_grad_enabled(s.negative_grad):
            negative_logps = score_on_negative(student, batch, preset)
    # One update a batch of rollouts: the old policy is this one, nothing to recompute.
    old_logps = logps.detach() if batch.old_logps is None else batch.old_logps
    return losses.tapo_loss(
        logps,
        old_logps,
        negative_logps,
        batch.advantages,
        batch.completion_mask,
        loss_type=s.loss_type,
        clip_low=s.clip_low,
        clip_high=s.clip_high,
        clip_dual=s.clip_dual,
        inter_class_weight=s.inter_class_weight,
        anchor_entropy_weight=s.anchor_entropy_weight,
        negative_entropy_weight=s.negative_entropy_weight,
        negative_grad=s.negative_grad,
        inter_class_rows=batch.correct if s.inter_class_on == "right" else None,
        negative_rows=batch.negative_weights,
        token_count=batch.token_count,
        completion_count=batch.completion_count,
        length_limit=preset.max_new_tokens,
    )


def score_on_negative(student: Student, batch: Batch, preset: Preset) -> Tensor:
    """Log-probabilities of the chosen completions in their places, zeros elsewhere: (B, T)."""
    chosen = batch.negative_weights.nonzero()[:, 0]
    some = batch.rows(chosen)
    with generation.merged(student.model):
        logps = _score(student, some, some.negative, preset)
    return logps.new_zeros(batch.completion_ids.shape).index_copy(0, chosen, logps)


def old_log_probs(student: Student, batch: Batch, preset: Preset, limits: Limits) -> Tensor | None:
    """What the policy thinks of the completions before it moves: (B, T).

    None where every ratio begins at 1 and no later step shares the batch. Where `positive_ratio`
    is clipped, a positive's under the picture that it was written to: the ratio to what is scored
    on the anchor is then its importance weight, which the loss clips.
    """
    on = "sampled_on" if preset.tapo.positive_ratio == "clipped" else "scored_on"
    if preset.tapo.updates == 1 and torch.equal(getattr(batch, on), batch.scored_on):
        return None

    @torch.no_grad()
    def score_all(size: int) -> list[Tensor]:
        parts = batch.micro_batches(size)
        return [_score(student, part, getattr(part, on), preset) for part in parts]

    parts = limits.fit(MICRO, preset.tapo.micro_batch, score_all, LOWER, together=True)
    shares = distributed.gather(parts, student.device)
    return torch.cat([logps for share in shares for logps in share])


def _score(student: Student, batch: Batch, on: Tensor, preset: Preset) -> Tensor:
    """Log-probabilities of a batch's completions on some of its prompts: (B, T).

    Layers recompute their activations in training mode only: it is on for this call, where
    gradient flows. With dropout 0 everywhere it changes nothing else.
    """
    student.model.train(preset.gradient_checkpointing and torch.is_grad_enabled())
    try:
        ids, mask = batch.completion_ids, batch.completion_mask
        temperature = preset.tapo.temperature or 1.0
        return logprobs.log_probs(student.model, batch.prompts, ids, mask, on, temperature)
    finally:
        student.model.eval()  # rollouts and passes without gradient keep their cache


# --- what to look at ---------------------------------------------------------------------


def step_log(
    settings: TAPOSettings,
    kept: Sequence[Group],
    dropped: Sequence[Group],
    generate_s: float = 0.0,
    parts: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """What `log.jsonl` says of a step; `parts` of the loss are missing where it was skipped."""
    groups = [*kept, *dropped]
    paid = torch.stack([g.accuracy for g in groups])
    right = torch.stack([g.right for g in groups])
    agrees = torch.stack([g.agrees for g in groups])
    lengths = torch.cat([g.completion_mask.sum(-1) for g in groups]).float()
    reward = torch.stack([g.reward for g in groups])
    log = {
        "reward": reward.mean(),
        "accuracy": right.mean(),
        "format": torch.stack([g.format for g in groups]).mean(),
        "groups_kept": len(kept),
        "groups_drawn": len(groups),
        "varied": (reward.amax(1) > reward.amin(1)).sum(),
        "truncated": torch.cat([g.truncated for g in groups]).float().mean(),
        "length": lengths.mean(),
        "skipped": not parts,
        "generate_s": generate_s,
    }
    if settings.prompt in prompts.WITH_CHAIN:
        log |= {"agrees": agrees.mean(), "right_and_agrees": (right * agrees).mean()}
    for name in groups[0].own:  # over the completions that it judged
        mean = torch.stack([g.own[name] for g in groups]).nanmean()
        log |= {} if mean.isnan() else {f"rewards/{name}": mean}
    if generate_s:
        log["tokens_per_second"] = lengths.sum() / generate_s
    if settings.positive_rollouts:  # kept groups without variance inside any picture
        sides = paid.split((settings.anchor_rollouts, settings.positive_rollouts), dim=1)
        longest = torch.arange(max(side.shape[1] for side in sides))
        even = [side[:, longest % side.shape[1]] for side in sides]  # repeated: no new variance
        log["flat_share"] = advantages.share_without_variance(torch.stack(even, 1))
    parts = dict(parts or {})
    loss = {"loss": parts.pop("total", 0.0)}
    return loss | {name: round(float(value), 5) for name, value in (log | parts).items()}


def rollout_rows(group: Group, settings: TAPOSettings) -> list[tuple[Image.Image, str, float]]:
    """(picture, completion, reward) of a group's rollouts."""
    t = group.triplet
    photos = [t.anchor] * settings.anchor_rollouts + [t.positive] * settings.positive_rollouts
    pictures = [photo.image() for photo in photos]
    return list(zip(pictures, group.completions, group.reward.tolist(), strict=True))
