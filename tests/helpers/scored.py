"""Records made by hand: lines of a records.jsonl, as `data.records.record` makes them."""

NAMES = ["red kite", "black kite", "barn owl", "tawny owl"]


def record(photo="1", correct=True, *, label="red kite", named=None, task="closed", **more):
    """A completion of model "m" that names `label`, or `named` where it is not correct."""
    said = label if correct else named
    row = {
        "model": "m",
        "seed": None,
        "prompt": "think",
        "task": task,
        "picture": True,
        "order": "rotate" if task == "closed" else None,
        "dataset": "birds",
        "split": "seen",
        "photo": photo,
        "label": label,
        "coarse": "bird",
        "group": label.split()[-1],
        "named_group": (said or "").split(" ")[-1],
        "options": NAMES if task == "closed" else None,
        "rotation": 0,
        "sample": 0,
        "completion": f"<answer>{said}</answer>",
        "answer": said,
        "named": said,
        "correct": correct,
        "included": correct,
        "listed": None,
        "agrees": None,
        "tokens": 10,
        "truncated": False,
        "error": None,
    }
    return row | more


def rotated(photo, rights, **more):
    """A question in every rotation of its options; rights: whether each is answered rightly."""
    return [
        record(photo, bool(ok), rotation=k, options=NAMES[k:] + NAMES[:k], **more)
        for k, ok in enumerate(rights)
    ]
