"""Command line: `python -m finer1_lite COMMAND --help` explains every option."""

import argparse
import logging
import os
import sys
from typing import Any

from finer1_lite.chains import commands as chains
from finer1_lite.data import commands as data
from finer1_lite.evals import commands as evals
from finer1_lite.presets import FOR_CPU
from finer1_lite.runtime.options import add_commands, from_options
from finer1_lite.students import unsloth
from finer1_lite.tools import commands as tools

log = logging.getLogger("finer1_lite")
COMMANDS = {  # name -> what it is for (docstring), its options (fields), what it does (`start`)
    "lab": tools.LabCommand,
    "pretrain": tools.PretrainCommand,
    "ablate": evals.AblateCommand,
    "bench": tools.BenchCommand,
    "plan": tools.PlanCommand,
    "cot": chains.CotCommands,
    "audit": evals.AuditCommand,
    "evaluate": evals.EvaluateCommand,
    "report": evals.ReportCommand,
    "analyse": evals.AnalyseCommand,
    "fetch": data.FetchCommand,
    "predict": evals.PredictCommand,
    "merge": tools.MergeCommand,
    "demo": tools.DemoCommand,
    "grade": tools.GradeCommand,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="finer1_lite",
        description="Teach a vision-language model to tell look-alike classes apart: "
        "chains of thought (SFT), then TAPO.",
    )
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"), COMMANDS)
    return parser


def read_command(argv: list[str] | None) -> Any:
    """The command that is asked for, with its options filled in.

    A device goes to the environment, where child processes find it too.
    """
    args = build_parser().parse_args(argv)
    if getattr(args, "device", None) is not None:
        os.environ["FINER1_DEVICE"] = args.device
    return from_options(args.command, args)


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code: 0, 1 for wrong exercises, 2 for bad input, 130 for Ctrl-C."""
    command = read_command(argv)
    try:
        unsloth.import_first(getattr(command, "settings", ()))  # before anything heavy
        from finer1_lite.runtime import devices, files
        from finer1_lite.runtime.console import quiet

        if getattr(command, "computes", False):
            preset = getattr(command, "preset", None)
            devices.prepare(None if preset in FOR_CPU else preset)
        quiet()
        with files.nothing_left_of_a_failed_start():
            return command.start() or 0
    except (ValueError, OSError, MemoryError) as error:  # bad input, disk: say what and stop
        log.error("error: %s", error)
        return 2
    except RuntimeError as error:  # of a card's memory: any other is raised again
        from finer1_lite.runtime import oom

        lower = "`plan` says what fits and what to lower"
        log.error("error: out of memory (%s): %s", oom.shortage(error), lower)
        return 2
    except KeyboardInterrupt:
        but = ", without --fresh," if getattr(command, "fresh", False) else ""
        log.error("stopped; the same command%s goes on from here", but)
        return 130


if __name__ == "__main__":
    sys.exit(main())
