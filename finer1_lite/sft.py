"""Stage 1: supervised fine-tuning on chains, with TRL's SFTTrainer and LoRA."""

from pathlib import Path

import torch
from datasets import Dataset, Features, Image, List, Value
from torch import Tensor
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from finer1_lite import models, prompts
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.runtime import distributed, oom
from finer1_lite.species import Collection
from finer1_lite.students import unsloth
from finer1_lite.trainer import one_card, train

MICRO = "sft.micro_batch"


def chain_rows(collection: Collection, chains: dict[str, str], kind: str = "think") -> Dataset:
    """Training pictures and their chains in TRL's conversational prompt-completion form.

    chains: photo id -> chain. Raises ValueError naming photos without a chain.
    """
    missing = [p.id for p in collection.train if p.id not in chains]
    if missing:
        raise ValueError(f"no chain for {len(missing)} training pictures: {', '.join(missing[:5])}")
    asked = prompts.question(kind, collection.coarse)
    rows = [
        {
            "images": [photo.image()],
            "prompt": [{"role": "user", "content": asked}],
            "completion": [{"role": "assistant", "content": chains[photo.id]}],
        }
        for photo in collection.train
    ]
    turn = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"images": List(Image()), "prompt": turn, "completion": turn})
    return Dataset.from_list(rows, features=features)


class ChainTrainer(SFTTrainer):
    """TRL's SFTTrainer, that goes on with fewer rows at a time where memory runs out."""

    def __init__(self, model, args, **kwargs):
        super().__init__(model, one_card(args), **kwargs)
        self.add_callback(oom.Smaller())
        # Qwen-VL says it takes no token count, and the mean would be one of micro-batches'
        # means; TRL's loss takes it: a mean over the tokens of the whole step, of all processes.
        self.model_accepts_loss_kwargs = True
        self.so_far: list[dict] = []  # micro-batches since the last optimiser step

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """TRL's own. Where memory ran out, the gradient of all micro-batches since the last
        step is made anew, in parts: each part's loss is divided by the tokens of the step.
        """
        smaller, rows = oom.Smaller.of(self), len(inputs["labels"])
        self.so_far.append(inputs)
        todo = self.so_far[-1:]
        while True:
            size = smaller.at_once(MICRO, rows)
            losses, problem = oom.attempt(
                lambda: [self._in_parts(model, b, size, num_items_in_batch) for b in todo]
            )
            if not problem:
                break
            if distributed.world()[1] > 1:  # the others wait inside a pass that never comes
                raise MemoryError(f"out of memory ({problem}): lower {MICRO} ({rows}) or pixels")
            smaller.halve(MICRO, size, problem, "pixels")
            model.zero_grad()
            todo = self.so_far
        if self.accelerator.sync_gradients:
            self.so_far = []
        return losses[-1]

    def _in_parts(self, model, inputs: dict, size: int, count) -> Tensor:
        step = super().training_step
        return sum(step(model, part, num_items_in_batch=count) for part in parts(inputs, size))


def parts(inputs: dict, size: int) -> list[dict]:
    """A collated batch in batches of at most `size` rows, each with its one picture."""
    rows = len(inputs["labels"])
    if rows <= size:
        return [inputs]
    split = split_pixel_values_by_grid(inputs | {"num_images": [1] * rows})
    del split["num_images"]
    cut = [{k: v[at : at + size] for k, v in split.items()} for at in range(0, rows, size)]
    return [unsplit_pixel_values_by_grid(part) for part in cut]


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
    student: Student, rows: Dataset, preset: Preset, seed: int, folder: Path, callbacks=()
) -> Student:
    """Train the student's adapter on the rows and save it to `folder`.

    Loss on the answer's tokens only. Resumes from the last checkpoint in
    `folder`/checkpoints; `folder`/log.jsonl holds the learning curve.
    """
    settings, work = preset.sft, folder / "checkpoints"
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
        logging_steps=5,
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
    trainer = ChainTrainer(
        student.model,
        args,
        train_dataset=rows,
        processing_class=student.processor,
        callbacks=list(callbacks),
        data_collator=unsloth.collator(student, preset),
    )
    models.widen_adapter(student.model)
    return train(trainer, student, folder)
