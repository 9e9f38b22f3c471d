"""Stage 1: supervised fine-tuning on chains, with TRL's SFTTrainer and LoRA."""

import json
from pathlib import Path

import torch
from datasets import Dataset, Features, Image, List, Value
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from finer1_lite import models, prompts
from finer1_lite.models import Student
from finer1_lite.presets import Preset
from finer1_lite.species import Collection
from finer1_lite.steps import last_checkpoint


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


def train_sft(
    student: Student, rows: Dataset, preset: Preset, seed: int, folder: Path, callbacks=()
) -> Student:
    """Train the student's adapter on the rows and save it to `folder`.

    Loss on the answer's tokens only. Resumes from the last checkpoint in
    `folder`/checkpoints; `folder`/log.jsonl holds the learning curve.
    """
    settings, work = preset.sft, folder / "checkpoints"
    args = SFTConfig(
        str(work), max_steps=settings.steps, per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=max(1, settings.batch // settings.micro_batch),
        learning_rate=settings.learning_rate, lr_scheduler_type="cosine", warmup_steps=6,
        weight_decay=0.1, max_grad_norm=1.0, completion_only_loss=True, max_length=None,
        gradient_checkpointing=preset.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=student.model.dtype == torch.bfloat16, fp16=student.model.dtype == torch.float16,
        logging_steps=5, save_steps=max(10, settings.steps // 4), save_total_limit=1, seed=seed,
        data_seed=seed, report_to=[], disable_tqdm=True, use_cpu=student.device.type == "cpu",
        dataloader_pin_memory=student.device.type == "cuda",
    )  # fmt: skip
    trainer = SFTTrainer(
        student.model, args, train_dataset=rows, processing_class=student.processor,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    write_log(trainer.state.log_history, folder / "log.jsonl")
    models.save_adapter(student, folder)
    return student


def write_log(history: list[dict], path: Path) -> None:
    """The trainer's history, a JSON line a logged step."""
    lines = [json.dumps(row) + "\n" for row in history if "loss" in row]
    path.write_text("".join(lines), encoding="utf-8")
