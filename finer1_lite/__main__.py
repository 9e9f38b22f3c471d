"""Command line: `python -m finer1_lite COMMAND --help` explains every option."""

import argparse
import json
import logging
import sys
from pathlib import Path

from finer1_lite.chains import commands as cot_cli
from finer1_lite.data import commands as fetchcli
from finer1_lite.evals import commands as evalcli
from finer1_lite.presets import PRESETS
from finer1_lite.students import unsloth
from finer1_lite.tools import publish


class Command(argparse.ArgumentParser):
    """A parser whose help tells the defaults; so do those of the commands below it."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, **settings)


def build_parser() -> argparse.ArgumentParser:
    parser = Command(
        prog="finer1_lite",
        description="Teach a vision-language model to tell look-alike classes apart: "
        "chains of thought (SFT), then TAPO.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_lab(commands)
    _add_pretrain(commands)
    _add_ablate(commands)
    _add_bench(commands)
    _add_plan(commands)
    cot_cli.add_parser(commands)
    evalcli.add_commands(commands)
    fetchcli.add_command(commands)
    publish.add_commands(commands)
    return parser


def _add_lab(commands) -> None:
    lab = commands.add_parser(
        "lab",
        help="the whole job: chains, SFT, TAPO, evaluation, report",
        description="Runs both stages and the evaluation and writes OUT/NAME/report.html. "
        "Killed and started again, it resumes.",
    )
    option = lab.add_argument
    option("--name", default=None, help="name of the run (default: lab, or the photo folder's)")
    option("--out", type=Path, default=Path("runs"), help="folder of all runs")
    option("--fresh", action="store_true", help="start over: delete the run of this name first")
    option("--preset", choices=PRESETS, default="lab", help="size: lab: a CPU, others: a GPU")
    option(
        "--student", default=None, help="folder or hub name of the model, instead of the preset's"
    )
    option(
        "--photos",
        type=Path,
        default=None,
        help="folder of photographs, DIR/<class>/*.jpg, instead of paper birds",
    )
    option(
        "--descriptions",
        type=Path,
        default=None,
        help="descriptions for --photos (default: DIR/descriptions.csv)",
    )
    option("--coarse", default=None, help='what the pictures show, in a word ("bird")')
    option(
        "--world-seed",
        type=int,
        default=0,
        help="which world of paper birds; a world without a shipped student pretrains one first",
    )
    option("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    option("--workers", type=int, default=0, help="seeds trained at a time; 0 chooses")
    option("--quantize", choices=("none", "nf4"), default=None, help="nf4: 4-bit weights (QLoRA)")
    option("--sft-steps", type=int, default=None, help="optimiser steps of stage 1")
    option("--tapo-steps", type=int, default=None, help="optimiser steps of stage 2")
    option("--test-pictures", type=int, default=None, help="fresh paper birds a split")
    option(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting, e.g. tapo.groups=4 tapo.negative_grad=true",
    )
    lab.set_defaults(main=run_lab)


def _add_pretrain(commands) -> None:
    pre = commands.add_parser(
        "pretrain",
        help="make the lab student of a world",
        description="Pretrains the tiny Qwen2.5-VL on describing birds and on the field guide "
        "of all species, probes it, and writes weights and record.json.",
    )
    pre.add_argument("--world-seed", type=int, default=0, help="which world of paper birds")
    pre.add_argument("--steps", type=int, default=None, help="optimiser steps")
    pre.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    pre.add_argument("--out", type=Path, default=Path("runs"), help="folder for the student")
    pre.set_defaults(main=run_pretrain)


def _add_ablate(commands) -> None:
    study = commands.add_parser(
        "ablate",
        help="what each part of TAPO contributes: rows x seeds x worlds, a table, a figure",
        description="Trains SFT, CLS-RL, DAPO, TAPO and TAPO without each of its parts from the "
        "same start and budget, and writes OUT/NAME/ablation.md. Killed and started again, it "
        "resumes; rows asked for later are added.",
    )
    option = study.add_argument
    option("--name", default="ablation", help="name of the study")
    option("--out", type=Path, default=Path("runs"), help="folder of all runs")
    option("--rows", nargs="+", default=None, help="rows of the table (default: all)")
    option("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="training seeds")
    option("--worlds", nargs="+", type=int, default=[0, 1], help="worlds of paper birds")
    option("--workers", type=int, default=0, help="trainings side by side; 0: one a core")
    option(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="other settings of the lab preset, such as tapo.steps=20",
    )
    study.set_defaults(main=run_ablate)


def run_ablate(args) -> None:
    from finer1_lite.evals import ablate
    from finer1_lite.presets import Preset

    unknown = [row for row in args.rows or () if row not in ablate.ROWS]
    if unknown:
        raise ValueError(f"--rows {' '.join(unknown)}: choose among {', '.join(ablate.ROWS)}")
    exact = {"tapo__negative_rollouts": 0}  # the objective itself; its cheaper estimate is a row
    preset = Preset.lab().with_(**exact | _settings(args.set))
    study = ablate.Study(
        args.out / args.name,
        preset,
        tuple(args.rows or ablate.ROWS),
        tuple(args.seeds),
        tuple(args.worlds),
    )
    print(f"table: {ablate.run(study, workers=args.workers)}")


def _add_bench(commands) -> None:
    bench = commands.add_parser(
        "bench",
        help="what a step costs, beside TRL's GRPOTrainer",
        description="Times a training step of TRL's GRPOTrainer, our DAPO and our TAPO on the "
        "same weights, prompts and number of answers: seconds by phase, tokens a second, peak "
        "memory, pictures encoded; then how each grows.",
    )
    option = bench.add_argument
    option("--preset", choices=PRESETS, default="lab", help="size: lab: a CPU, others: a GPU")
    option(
        "--full",
        action="store_true",
        help="Qwen2.5-VL-3B with random weights in 4 bits on "
        "one GPU: memory against the plan, rollouts against the bandwidth",
    )
    option("--groups", type=int, default=None, help="anchors a step (default: 2; 1 with --full)")
    option("--steps", type=int, default=3, help="counted steps a row, after a warm-up step")
    option(
        "--grow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also vary rollouts, answer length and picture size",
    )
    option("--json", type=Path, default=None, metavar="FILE", help="write the rows to this file")
    bench.set_defaults(main=run_bench)


def _add_plan(commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="what a run takes of a card's memory, before anything is loaded",
        description="Counts the student on the meta device and prints what each part takes in "
        "each phase, the largest settings that fit, and what to lower first.",
    )
    option = plan.add_argument
    option("--model", default=None, help="hub name, folder, or random:NAME (default: the preset's)")
    option("--gpu", type=float, default=15.0, metavar="GIB", help="memory of the card")
    option("--preset", choices=PRESETS, default="t4", help="settings to start from")
    option(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="other settings, such as tapo.groups=2 max_new_tokens=256",
    )
    option("--text-tokens", type=int, default=96, help="tokens of a prompt beside its picture")
    option("--json", type=Path, default=None, metavar="FILE", help="also write the plan to FILE")
    plan.set_defaults(main=run_plan)


def make_job(args):
    """Arguments -> Run. Raises ValueError on a setting that does not exist."""
    from finer1_lite.lab import Run
    from finer1_lite.presets import Preset

    small = args.preset == "lab" and args.photos is not None
    preset = Preset.lab_photos() if small else getattr(Preset, args.preset)()
    changes = {
        "student": args.student,
        "quantize": args.quantize,
        "sft__steps": args.sft_steps,
        "tapo__steps": args.tapo_steps,
        "test_pictures": args.test_pictures,
    }
    preset = preset.with_(**{k: v for k, v in changes.items() if v is not None})
    preset = preset.with_(**_settings(args.set))
    if len(set(args.seeds)) < len(args.seeds) or args.workers < 0:
        raise ValueError(f"--seeds {args.seeds} must differ, --workers {args.workers} be 0 or more")
    name = args.name or ("lab" if args.photos is None else args.photos.resolve().name)
    return Run(
        folder=args.out / name,
        preset=preset,
        seeds=tuple(args.seeds),
        world_seed=args.world_seed,
        photos=args.photos,
        descriptions=args.descriptions,
        coarse=args.coarse or ("bird" if args.photos is None else "product"),
    )


def _settings(items: list[str]) -> dict[str, object]:
    """What `Preset.with_` wants, from KEY=VALUE."""
    return dict(map(_setting, items))


def _setting(item: str) -> tuple[str, object]:
    key, equals, value = item.partition("=")
    if not equals:
        raise ValueError(f"--set {item}: write KEY=VALUE")
    try:
        value = json.loads(value)
    except ValueError:
        pass  # a word: left as text
    return key.replace(".", "__"), value


def run_lab(args) -> None:
    from finer1_lite import lab
    from finer1_lite.runtime import distributed

    path = lab.run(make_job(args), workers=args.workers, fresh=args.fresh)
    if distributed.is_main():
        print(f"report: {path}")


def run_pretrain(args) -> None:
    from finer1_lite.students.lab_student import asset_folder
    from finer1_lite.students.pretrain import pretrain

    steps = {} if args.steps is None else {"steps": args.steps}
    out = asset_folder(args.world_seed, args.out)
    print(json.dumps(pretrain(args.world_seed, out, seed=args.seed, **steps), indent=1))


def run_bench(args) -> None:
    from finer1_lite import models
    from finer1_lite.presets import Preset
    from finer1_lite.tools import bench

    groups = args.groups if args.groups is not None else 1 if args.full else 2
    counts = {"--steps": args.steps, "--groups": groups}
    problems = [f"{name} {value}: 1 or more" for name, value in counts.items() if value < 1]
    if problems:
        raise ValueError(", ".join(problems))
    if args.full:
        if models.choose_device().type != "cuda":
            raise ValueError(
                "--full needs a CUDA GPU and there is none here; "
                "`bench` without it measures the lab on a CPU"
            )
        bench.measure_full(bench.full_preset(groups), steps=args.steps, json_path=args.json)
        return
    preset = getattr(Preset, args.preset)().with_(tapo__groups=groups)
    bench.measure(preset, steps=args.steps, grow=args.grow, json_path=args.json)


def run_plan(args) -> None:
    from finer1_lite.presets import Preset
    from finer1_lite.tools import plan

    if not (0 < args.gpu < 10_000 and args.text_tokens > 0):
        raise ValueError(f"--gpu {args.gpu}, --text-tokens {args.text_tokens}: above 0")
    changes = _settings(args.set)
    if args.model is not None:
        changes["student"] = args.model
    preset = getattr(Preset, args.preset)().with_(**changes)
    found = plan.memory_plan(preset, gpu_gib=args.gpu, text_tokens=args.text_tokens)
    if args.json is not None:
        plan.write(found, args.json)
    print(found)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        unsloth.import_first(getattr(args, "set", []))  # before anything heavy
        from finer1_lite.runtime.console import quiet

        quiet()
        args.main(args)
    except (ValueError, OSError, MemoryError) as error:  # bad input, disk: say what and stop
        logging.getLogger("finer1_lite").error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        logging.getLogger("finer1_lite").error("stopped; the same command goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
