"""Where the project lies, and the folder of shared material beside it (it may be absent)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
