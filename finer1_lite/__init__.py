"""Fine-grained visual recognition by reasoning: chains of thought, then TAPO."""

import logging

__version__ = "0.1.0"

# On import it warns of an optional 4-bit kernel that a hub would have; nothing is lost.
logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
