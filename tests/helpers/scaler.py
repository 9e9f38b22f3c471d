"""The loss scaler of cards without bfloat16, on the CPU."""

import torch

from finer1_lite import trainer


def scaled(monkeypatch, scale: float) -> None:
    """float16's loss scaler, on the CPU and for numbers that do not need it."""

    class Scaled(trainer.Accelerator):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.scaler, self.native_amp = torch.amp.GradScaler("cpu", init_scale=scale), True
            self.state._mixed_precision = "fp16"

    monkeypatch.setattr(trainer, "Accelerator", Scaled)
