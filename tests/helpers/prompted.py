"""Questions about pictures of several sizes, and what plain transformers makes of them."""

import torch

from finer1_lite import generation, prompts

SIZES = ((84, 84), (112, 56), (40, 200), (28, 28))


def asked(birds, count: int, sizes=SIZES):
    """Questions of different lengths about pictures of different sizes."""
    pictures = [p.image().resize(sizes[i % len(sizes)]) for i, p in enumerate(birds.test[:count])]
    options = [None, birds.names[:2], birds.names[:4], birds.names[:8]]
    kinds = ["think", "answer"]
    questions = [prompts.question(kinds[i % 2], "bird", options[i % 4]) for i in range(count)]
    return questions, pictures


def sample(student, batch, **settings):
    settings = dict(num_generations=2, max_new_tokens=8, temperature=1.0) | settings
    return generation.generate(
        student.model,
        student.processor,
        batch,
        generator=torch.Generator().manual_seed(settings.pop("seed", 0)),
        **settings,
    )


def plain_inputs(student, questions, pictures):
    """What transformers' own forward and generate ask for."""
    texts = [
        student.processor.apply_chat_template(
            prompts.messages(q), add_generation_prompt=True, tokenize=False
        )
        for q in questions
    ]
    return student.processor(
        text=texts,
        images=[[picture] for picture in pictures],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
