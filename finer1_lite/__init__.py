"""Fine-grained visual recognition by reasoning: chains of thought, then TAPO."""

__version__ = "0.1.0"
