"""A training that ends in the middle, as by kill -9."""

from transformers import TrainerCallback


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    """Ends a training with a step: before its checkpoint is written, or after (`saved`)."""

    def __init__(self, step: int, saved: bool = False):
        self.step, self.saved = step, saved

    def on_step_end(self, args, state, control, **_):
        if not self.saved and state.global_step == self.step:
            raise Killed

    def on_save(self, args, state, control, **_):
        if self.saved and state.global_step == self.step:
            raise Killed
