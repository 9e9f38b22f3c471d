"""A training that ends in the middle, as by kill -9."""

from transformers import TrainerCallback


class Killed(Exception):
    pass


def kill_at(step: int):
    """`on_step` of a loop: ends it with a step, before its checkpoint is written."""

    def on_step(done: int, log: dict) -> None:
        if done == step:
            raise Killed

    return on_step


class KillAt(TrainerCallback):
    """Ends a Trainer's training with a step, before its checkpoint is written."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Killed
