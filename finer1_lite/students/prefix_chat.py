"""PaliGemma in the turns of a chat: a prompt, the end of its line, and what is said to it.

It was trained on a prefix, which it reads both ways, and a suffix (arXiv 2407.07726), and has no
chat template; its own processor takes no text without a picture.
"""

from typing import Any

import transformers
from transformers import BatchFeature

TEMPLATE = (  # its processor puts bos behind the last picture, and the line's end
    "{% for message in messages %}{% set said = message['content'] %}{% if said is string %}"
    "{% set said = [{'type': 'text', 'text': said}] %}{% endif %}"
    "{% if loop.first and 'image' not in said | map(attribute='type') | list %}"
    "{{ bos_token }}{% endif %}{% for part in said %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


class PaliGemmaProcessor(transformers.PaliGemmaProcessor):
    """The stock one, under its name in what is saved, that also takes text by itself.

    Such text is a prompt, where it begins with bos, or else what is said after one.
    """

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """As the stock one, in tensors: `token_type_ids` are 0 in a prompt and 1 behind it."""
        kwargs.setdefault("return_tensors", "pt")
        kwargs.pop("return_mm_token_type_ids", None)
        if images is not None:
            found = super().__call__(images=images, text=text, **kwargs)
            found.pop("labels")  # of no suffix
            return found
        texts = [text] if isinstance(text, str) else text
        said = [not line.startswith(self.tokenizer.bos_token) for line in texts]
        lines = [line if after else f"{line}\n" for line, after in zip(texts, said, strict=True)]
        found = self.tokenizer(lines, return_token_type_ids=True, **kwargs)
        found["token_type_ids"][said] = 1
        return BatchFeature(dict(found))
