"""Cards made by hand, and a namer whose student is replaced by the colours of the picture."""

import hashlib

import numpy as np
from scipy.special import log_softmax

from finer1_lite import prompts
from finer1_lite.predict import Evidence, Namer
from finer1_lite.students.card import Card, CardClass

NAMES = ("red kite", "barn owl", "great tit")


def card(names=NAMES, **more) -> Card:
    facts = {"base": "nowhere", "stage": "SFT", "coarse": "bird", "max_new_tokens": 12}
    classes = tuple(CardClass(name=name, seen=True) for name in names)
    return Card(**facts | {"classes": classes, "pixels": 84 * 84, "world_seed": 0} | more)


class ColourNamer(Namer):
    """The likeliest name is the strongest colour; counts the pictures that it is asked about."""

    def __init__(self, folder, made=None, completion=None):
        super().__init__(None, made or card(), folder, batch=2)
        self.asked, self.dies_after, self.completion = 0, None, completion

    def look(self, pictures, samples=0):
        if self.dies_after is not None and self.asked >= self.dies_after:
            raise KeyboardInterrupt
        self.asked += len(pictures)
        colours = np.array([np.asarray(p, float).mean((0, 1)) for p in pictures])
        logps = log_softmax(colours / 10, 1)
        texts = [self.completion or self.said(row) for row in logps]
        shares = np.array([self._shares([text]) for text in texts])
        return Evidence(logps, shares, [[text] * (1 + samples) for text in texts])

    def said(self, logps):
        name = self.names[int(logps.argmax())]
        remarks = ["fits" if one == name else "is another" for one in self.names]
        return prompts.chain("plumage", self.names, remarks, name)


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
