"""Groups: triplets -> answers -> rewards -> the groups that have something to teach.

A group is one triplet with its n + m answers. What is learnt from the groups is `tapo`'s.
"""

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finer1_lite import advantages, generation, prompts, rewards, triplets
from finer1_lite.generation import Student
from finer1_lite.presets import Preset, TAPOSettings
from finer1_lite.runtime import distributed, oom
from finer1_lite.species import Collection
from finer1_lite.trainer import StepTrainer
from finer1_lite.triplets import Triplet

AT_ONCE = "groups answered at a time"
LOWER = "max_new_tokens, pixels or tapo.anchor_rollouts and tapo.positive_rollouts"


@dataclass
class Group:
    """One triplet, its n + m answers (anchor's first) and what they earned."""

    triplet: Triplet
    pictures: generation.PromptBatch  # anchor, positive, negative: those that are used, encoded
    completion_ids: Tensor  # (n+m, T)
    completion_mask: Tensor  # (n+m, T)
    completions: list[str]
    truncated: Tensor  # (n+m,)
    accuracy: Tensor  # (n+m,)
    format: Tensor  # (n+m,)
    overlong: Tensor  # (n+m,) 0 or a penalty

    def reward(self, settings: TAPOSettings) -> Tensor:
        """Weighted sum of accuracy and format, and the penalty for length. (n+m,)"""
        weighted = settings.accuracy_weight * self.accuracy + settings.format_weight * self.format
        return weighted + self.overlong


class GroupTrainer(StepTrainer):
    """A trainer that answers pictures: `kept` and `dropped` hold the last step's groups."""

    def __init__(
        self, student: Student, collection: Collection, preset: Preset, seed: int, args, **kwargs
    ):
        self.student, self.collection, self.preset = student, collection, preset
        self.settings, self.draw_seed = preset.tapo, seed
        self.asked = prompts.question(self.settings.prompt, collection.coarse)
        self.kept: list[Group] = []
        self.dropped: list[Group] = []
        super().__init__(student.model, args, **kwargs)
        self.add_callback(oom.Smaller())
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
        batch = generation.encode_prompts(self.model, self.student.processor, [self.asked], [image])
        return batch.image_features[0].float().mean(0)

    # --- rollouts and rewards ---------------------------------------------------------

    def answer(self, drawn: list[Triplet], generator) -> list[Group]:
        """n answers to each anchor and m to each positive, with their rewards.

        generator: one for all, or a list with one for each group. The one pass through the
        vision tower and one loop over tokens: negatives are encoded along, and anchors and
        positives are answered side by side.
        """
        s, processor = self.settings, self.student.processor
        counts = [n for n in (s.anchor_rollouts, s.positive_rollouts) if n]
        parts = ["anchor", "positive"][: len(counts)] + ["negative"] * s.reads_negative
        images = [getattr(t, part).image() for t in drawn for part in parts]
        batch = generation.encode_prompts(self.model, processor, [self.asked] * len(images), images)
        of = [range(g * len(parts), (g + 1) * len(parts)) for g in range(len(drawn))]
        answered = [row for rows in of for row in rows[: len(counts)]]
        out = generation.generate(
            self.model,
            processor,
            batch.rows(answered),
            num_generations=counts * len(drawn),
            temperature=s.temperature,
            top_p=s.top_p,
            generator=generator,
            max_new_tokens=self.preset.max_new_tokens,
        )
        size = sum(counts)
        return [
            self._group(t, batch.rows(of[g]), out, slice(g * size, (g + 1) * size))
            for g, t in enumerate(drawn)
        ]

    def _group(self, triplet: Triplet, pictures, out: generation.Rollouts, rows: slice) -> Group:
        texts, mask = out.completions[rows], out.completion_mask[rows]
        labels, known = [triplet.anchor.species] * len(texts), self.collection
        limit, buffer = self.preset.max_new_tokens, self.settings.overlong_tokens
        over = [rewards.overlong_penalty(n, limit, buffer) for n in mask.sum(-1).tolist()]
        return Group(
            triplet,
            pictures,
            out.completion_ids[rows],
            mask,
            texts,
            out.truncated[rows],
            accuracy=torch.tensor(rewards.accuracy(texts, labels, known.names, known.aliases)),
            format=torch.tensor(rewards.format(texts)),
            overlong=torch.tensor(over),
        )

    def collect(self, step: int) -> None:
        """Dynamic sampling: draw until `groups` have spread, `draws` rounds at most.

        Every process holds all groups afterwards, so that all keep the same.
        """
        s, self.kept, self.dropped = self.settings, [], []
        how = {"positive": s.positive, "negative": self.mined}
        for round_ in range(s.draws):
            drawn = triplets.draw_triplets(
                self.collection, s.groups, self.draw_seed, step, round_, **how
            )
            groups = self._answered(drawn, f"rollouts/{self.draw_seed}/{step}/{round_}")
            spread = advantages.keep_group(torch.stack([g.accuracy for g in groups]))
            for group, keep in zip(groups, spread.tolist()):
                keep = (keep or s.keep == "all") and len(self.kept) < s.groups
                (self.kept if keep else self.dropped).append(group)
            if len(self.kept) == s.groups:
                break
        self._note_confusions()

    def _answered(self, drawn: list[Triplet], seed: str) -> list[Group]:
        """The groups of a round: this process answers its share of them, whole.

        Each group has random numbers of its own: who answers it, and how many are answered
        at a time, does not change it.
        """
        share, groups = distributed.mine(range(len(drawn))), []
        while len(groups) < len(share):
            size = self.smaller.at_once(AT_ONCE, len(share))
            part = share[len(groups) : len(groups) + size]
            dice = [torch.Generator().manual_seed(_number(f"{seed}/{g}")) for g in part]
            found, problem = oom.attempt(lambda: self.answer([drawn[g] for g in part], dice))
            if problem:
                self.smaller.halve(AT_ONCE, len(part), problem, LOWER)
            else:
                groups += found
        bare = [replace(g, triplet=None) for g in groups]  # photos need not fit into a message
        shares = distributed.gather(bare, self.student.device)
        return [
            replace(shares[at % len(shares)][at // len(shares)], triplet=triplet)
            for at, triplet in enumerate(drawn)
        ]

    @property
    def smaller(self) -> oom.Smaller:
        return oom.Smaller.of(self)

    def _note_confusions(self) -> None:
        """Which other class each answer named, for `negative="confused"`."""
        confusions = self._confusions()
        if confusions is None:
            return
        for group in self.kept + self.dropped:
            for text in group.completions:
                named = rewards.match_class(
                    rewards.parse_answer(text), self.collection.names, self.collection.aliases
                )
                confusions.note(group.triplet.anchor.species, named)

    # --- what to look at --------------------------------------------------------------

    def _metrics(self) -> dict[str, float]:
        groups = self.kept + self.dropped
        right = torch.stack([g.accuracy for g in groups])
        whole = torch.stack([g.format for g in groups])
        reward = torch.stack([g.reward(self.settings) for g in groups])
        lengths = torch.cat([g.completion_mask.sum(-1) for g in groups]).float()
        metrics = {
            "reward": reward.mean(),
            "accuracy": right.mean(),
            "format": whole.mean(),
            "groups_kept": len(self.kept),
            "groups_drawn": len(groups),
            "cut": torch.cat([g.truncated for g in groups]).float().mean(),
            "length": lengths.mean(),
        }
        s = self.settings
        if s.positive_rollouts:  # kept groups without spread inside any picture
            sides = right.split((s.anchor_rollouts, s.positive_rollouts), dim=1)
            longest = torch.arange(max(s.anchor_rollouts, s.positive_rollouts))
            even = [side[:, longest % side.shape[1]] for side in sides]  # repeated: no new spread
            metrics["flat_share"] = advantages.spread_within(torch.stack(even, 1))
        return {key: float(value) for key, value in metrics.items()}


def _number(text: str) -> int:
    """A seed for torch."""
    return random.Random(text).getrandbits(63)
