"""Marks that tokenizers and chat templates take for their own: no word of a user may be one.

`<|image_pad|>` in a question would be one more picture, `<|im_end|>` in a description the end of
the turn. `<image>` is how other programs' files say where the one picture of a question goes.
"""

import re

from finer1_lite.runtime.files import require_none

IMAGE = "<image>"
_IMAGE = r"<image(?:[ _]?\d+)?>"
_MARK = re.compile(
    rf"<[|\uff5c][^\s<>]{{1,60}}>|<[^\s<>]{{1,60}}[|\uff5c]>|{_IMAGE}"
    r"|<(?:video|audio|bos|eos|pad|unk|/?s|/?img|IMG_CONTEXT|global-img|image_soft_token)>"
    r"|<(?:loc\d{4}|seg\d{3})>"
    r"|<(?:fake_token_around_image|(?:start|end)_of_(?:turn|image)|end_of_utterance)>|\[/?INST\]"
)
_AROUND = re.compile(rf"^\s*{_IMAGE}\s*|\s*{_IMAGE}\s*$")


def problem(*texts: str) -> str:
    """Why these texts cannot be words of a prompt, with the mend; "" if they can."""
    found = dict.fromkeys(mark for text in texts for mark in _MARK.findall(text))
    listed = ", ".join(found)
    return f"holds {listed}, which models take for a mark of their own; reword" if found else ""


def refuse(*texts: str) -> None:
    """Raise a DataError that lists every text that holds a mark."""
    problems = [f"{text[:60]!r} {found}" for text in texts if (found := problem(text))]
    require_none(problems, "words that no model can be told:")


def without_picture(question: str) -> str:
    """A question without the `<image>` before or behind it; one elsewhere stays, a `problem`."""
    return _AROUND.sub("", question, count=1)
