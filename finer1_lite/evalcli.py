"""The commands of the evaluation: audit, evaluate, report. Nothing heavy is imported here."""

import argparse
from pathlib import Path


def add_commands(commands) -> None:
    """Add this module's commands to the command line."""
    _add_audit(commands)


def _command(commands, name: str, text: str, description: str):
    return commands.add_parser(
        name, help=text, description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip


def _add_audit(commands) -> None:
    audit = _command(
        commands, "audit", "what is wrong with question files or picture folders",
        "Finds position leaks, labels inside wrong options, contradictions, classes both seen "
        "and unseen, near-duplicates between train and test; says what a blind answerer scores.",
    )  # fmt: skip
    audit.add_argument(
        "paths", nargs="+", type=Path, metavar="FILE",
        help="<data set>_<seen|unseen>.jsonl, or a folder of class folders",
    )  # fmt: skip
    audit.set_defaults(main=run_audit)


def run_audit(args) -> None:
    from finer1_lite.audit import audit

    print("\n".join(audit(args.paths)))
