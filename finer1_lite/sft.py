"""Stage 1: supervised fine-tuning on chains, with TRL's SFTTrainer and LoRA."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset, Features, Image, List, Value
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from finer1_lite import checks, cot, models, prompts
from finer1_lite.data import images, marks
from finer1_lite.data.chain_text import agreement, section
from finer1_lite.generation import Student
from finer1_lite.presets import Preset, SFTSettings
from finer1_lite.rewards import parse_answer
from finer1_lite.runtime import distributed, oom
from finer1_lite.runtime.checkpoints import due, last_checkpoint, require_finite, seal, stand
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.distributed import one_card
from finer1_lite.species import Collection
from finer1_lite.students import unsloth
from finer1_lite.trainer import learning, overflow_may_pass, save_trained

ENGINES = (DistributedType.FSDP, DistributedType.DEEPSPEED)
MICRO = "sft.micro_batch"


def chain_rows(
    collection: Collection,
    chains: cot.Chains,
    settings: SFTSettings | None = None,
    pixels: int = images.MOST,
) -> Dataset:
    """Training pictures and their chains in TRL's conversational prompt-completion form.

    chains: photo id -> chain, or several; settings: what else is asked of each beside the name,
    a choice among the chain's own candidates or a description; None: nothing. pixels: how many of
    a picture the student looks at; it is kept in `images.ROOM` times as many at most. Raises
    ValueError naming photos without a chain.
    """
    missing = [p.id for p in collection.train if p.id not in chains]
    if missing:
        raise ValueError(f"no chain for {len(missing)} training pictures: {', '.join(missing[:5])}")
    rows = [
        {
            "images": [shown],
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": reply}],
        }
        for photo in collection.train
        for shown in [{"bytes": images.png(images.reduced(photo.image(), images.ROOM * pixels))}]
        for chain in cot.several(chains[photo.id])
        for question, reply in _asked(chain, collection, settings)
    ]
    turn = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"images": List(Image()), "prompt": turn, "completion": turn})
    return Dataset.from_list(rows, features=features)


def _asked(
    chain: str, collection: Collection, settings: SFTSettings | None
) -> Iterator[tuple[str, str]]:
    """(question, reply) of a chain."""
    marks.refuse(collection.coarse, chain)
    yield prompts.question("think", collection.coarse), chain
    found = agreement(chain, parse_answer(chain), collection.names, aliases=collection.aliases)
    if settings and settings.with_options and found["distinct"] and found["listed"]:
        yield prompts.question("think", collection.coarse, found["candidates"]), chain
    if settings and settings.with_descriptions and section(chain, "analysis"):
        yield prompts.DESCRIBE.format(coarse=collection.coarse), section(chain, "analysis")


class SavedLimits(TrainerCallback, ExportableState, oom.Limits):
    """How much at a time fits, in the checkpoints of a Trainer."""

    def state(self) -> dict:
        """What a checkpoint keeps: how this object is made again."""
        return {"args": {"limits": self.state_dict()}, "attributes": {}}


class Guard(TrainerCallback):
    """Stops a training at the first number that is not finite; seals its checkpoints.

    And says where it is and how it goes: bar, its line on the screen.
    """

    def __init__(self, accelerator: Accelerator, bar: Any) -> None:
        self.accelerator, self.bar = accelerator, bar
        self.saved = time.time()

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """For whatever is found in this step."""
        rate = more["optimizer"].param_groups[0]["lr"]
        stand(Path(args.output_dir), state.global_step + 1, rate, str(more["model"].dtype))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """The gradient; in float16 the optimiser leaves out one that overflowed."""
        named = {} if overflow_may_pass(self.accelerator) else learning(more["model"])
        found = ((f"the gradient of {name}", p.grad) for name, p in named.items())
        require_finite((name, gradient) for name, gradient in found if gradient is not None)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """The weights, before they are saved, if it is time; the last loss, for the screen."""
        require_finite(learning(more["model"]).items())
        control.should_save |= distributed.broadcast(due(self.saved))
        losses = [f"{row['loss']:.2f}" for row in state.log_history if "loss" in row]
        self.bar.set_postfix(loss=losses[-1] if losses else "", refresh=False)
        self.bar.update(state.global_step - self.bar.n)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every process has written its part."""
        distributed.wait()
        if distributed.is_main():
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self.saved = time.time()


class ChainTrainer(SFTTrainer):
    """TRL's SFTTrainer, that goes on with fewer rows at a time where memory runs out."""

    def __init__(self, model: nn.Module, args: SFTConfig, bar: Any, **kwargs: Any) -> None:
        super().__init__(model, one_card(args), **kwargs)
        self.add_callback(SavedLimits())
        self.add_callback(Guard(self.accelerator, bar))
        # Qwen-VL says it takes no token count, and the mean would be one of micro-batches'
        # means; TRL's loss takes it: a mean over the tokens of the whole step, of all processes.
        self.model_accepts_loss_kwargs = True
        self.so_far: list[dict] = []  # micro-batches since the last optimiser step

    def training_step(
        self, model: nn.Module, inputs: dict, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """TRL's own; where memory ran out, all micro-batches since the last step in parts.

        Each part's loss is divided by the tokens of the step, so the gradient is the same.
        """
        limits = next(c for c in self.callback_handler.callbacks if isinstance(c, SavedLimits))
        rows = len(inputs["labels"])
        self.so_far.append(inputs)
        todo = self.so_far[-1:]
        while True:
            size = limits.at_once(MICRO, rows)
            try:
                losses = [self._in_parts(model, b, size, num_items_in_batch) for b in todo]
                break
            except RuntimeError as error:
                problem = oom.shortage(error)
            if distributed.world()[1] > 1:  # the others wait inside a pass that never comes
                raise MemoryError(f"out of memory ({problem}): lower {MICRO} ({rows}) or pixels")
            limits.halve(MICRO, size, problem, "pixels")
            model.zero_grad()
            todo = self.so_far
        if not overflow_may_pass(self.accelerator):
            require_finite([("the loss", losses[-1])])
        if self.accelerator.sync_gradients:
            self.so_far = []
        return losses[-1]

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.accelerator.scaler:  # else of a card that needed one, and this one does not
            super()._load_scaler(checkpoint)

    def _in_parts(self, model: nn.Module, inputs: dict, size: int, count: Tensor | None) -> Tensor:
        """The loss of a micro-batch, at most `size` rows a pass."""
        step = super().training_step
        return sum(step(model, part, num_items_in_batch=count) for part in parts(inputs, size))


def parts(inputs: dict, size: int) -> list[dict]:
    """A collated batch in batches of at most `size` rows, each with its one picture."""
    rows = len(inputs["labels"])
    if rows <= size:
        return [inputs]
    one = {"num_images": [1] * rows, "num_tiles": [1] * rows}  # in whichever words a family asks
    split = split_pixel_values_by_grid(inputs | one)
    split = {name: values for name, values in split.items() if name not in one}
    rows_of = [{k: v[at : at + size] for k, v in split.items()} for at in range(0, rows, size)]
    return [unsplit_pixel_values_by_grid(part) for part in rows_of]


def micro_batches(batch: int, micro_batch: int, processes: int) -> tuple[int, int]:
    """(rows a pass and process, passes a step): their product with `processes` is `batch`.

    ValueError where the processes cannot share the batch evenly.
    """
    share, rest = divmod(batch, processes)
    if rest:
        raise ValueError(f"sft.batch = {batch}: a multiple of the {processes} processes, please")
    most = max(n for n in range(1, min(micro_batch, share) + 1) if share % n == 0)
    return most, share // most


def train_sft(
    student: Student,
    rows: Dataset,
    preset: Preset,
    seed: int,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> Student:
    """Train the student's adapter on the rows and save it to `folder`.

    Loss on the completion's tokens only. Resumes from the last checkpoint in
    `folder`/checkpoints; `folder`/log.jsonl holds the learning curve. Of several processes
    the first one writes, and all go on when it is done.
    """
    settings = preset.sft
    before = checks.snapshot(student.model)
    work = folder / "checkpoints"
    at_once, passes = micro_batches(settings.batch, settings.micro_batch, distributed.world()[1])
    args = SFTConfig(
        str(work),
        max_steps=settings.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=passes,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=6,
        weight_decay=0.1,
        max_grad_norm=1.0,
        completion_only_loss=True,
        max_length=None,
        gradient_checkpointing=preset.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        bf16=student.model.dtype == torch.bfloat16,
        fp16=student.model.dtype == torch.float16,
        logging_steps=min(5, settings.steps),
        logging_nan_inf_filter=False,  # it would put a mean in the place of nan
        save_steps=max(10, settings.steps // 4),
        save_total_limit=1,
        seed=seed,
        data_seed=seed,
        report_to=[],
        disable_tqdm=True,
        use_cpu=student.device.type == "cpu",
        dataloader_pin_memory=student.device.type == "cuda",
        restore_callback_states_from_checkpoint=True,
        **unsloth.sft_options(preset),
    )
    with progress_bar(settings.steps, f"{folder.parent.name} {folder.name}") as bar:
        trainer = ChainTrainer(
            student.model,
            args,
            bar,
            train_dataset=rows,
            processing_class=student.processor,
            callbacks=list(callbacks),
            data_collator=unsloth.collator(student, preset),
        )
        trainer.remove_callback(PrinterCallback)
        models.widen_adapter(student.model)
        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(work))
        finally:
            stand()
    whole = None
    if trainer.accelerator.distributed_type in ENGINES:
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all give their parts
    rows = [row for row in trainer.state.log_history if "loss" in row]
    if rows and whole is None:
        rows[-1]["moved"] = checks.share_moved(before, checks.snapshot(student.model))
    save_trained(student, folder, rows, whole)
    return student
