"""The tokens of a student that have one role each: to end a turn, and to pad."""

import logging
from pathlib import Path
from typing import Any

from finer1_lite import prompts
from finer1_lite.students.lab_student import TAGS

log = logging.getLogger("finer1_lite")
PADS = ("<|endoftext|>", "<|vision_pad|>", "<|pad|>", "<pad>", "[PAD]")  # a spare one, if known


def settle_tokens(processor: Any, source: str | Path) -> None:
    """One token that ends a turn, as the chat template has it, and another one that pads.

    A tokenizer that says otherwise is set right, with a warning: a padding token is never
    sampled, so that no answer would end. ValueError where it has no token to spare.
    """
    tok = processor.tokenizer
    ends = _end_of_turn(processor) or tok.eos_token
    if ends is None:
        raise ValueError(f"{source}: eos_token is missing: name the token that ends a turn")
    if ends != tok.eos_token:
        log.warning("%s: a turn ends with %s, not eos_token %s", source, ends, tok.eos_token)
        tok.eos_token = ends
    taken = {None, ends, "<|im_start|>", "<|image_pad|>", "<|video_pad|>", *TAGS}
    if tok.pad_token not in taken:
        return
    spare = [pad for pad in PADS if pad in tok.get_vocab() and pad not in taken]
    if not spare:
        what = f"{source}: pad_token {tok.pad_token} cannot pad, it has another role or is missing"
        raise ValueError(f"{what}; set pad_token in tokenizer_config.json to a token of its own")
    log.warning("%s: pad_token %s has another role; %s pads", source, tok.pad_token, spare[0])
    tok.pad_token = spare[0]


def _end_of_turn(processor: Any) -> str | None:
    """The special token that the chat template puts behind an answer; None where there is none."""
    if processor.chat_template is None:
        return None
    said = {"role": "assistant", "content": [{"type": "text", "text": "finis"}]}
    chat = [*prompts.messages("?", with_image=False), said]
    _, shown, told = processor.apply_chat_template(chat, tokenize=False).rpartition("finis")
    ids = processor.tokenizer(told, add_special_tokens=False)["input_ids"][: bool(shown)]
    known = processor.tokenizer.added_tokens_decoder
    return known[ids[0]].content if ids and ids[0] in known and known[ids[0]].special else None
