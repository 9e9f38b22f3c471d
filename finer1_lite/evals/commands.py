"""The commands of the evaluation: audit, evaluate, report. Nothing heavy is imported here."""

from pathlib import Path

from finer1_lite.chains import commands as cot_cli
from finer1_lite.presets import PRESETS

ENDPOINT_TOKENS = 1024  # of an answer over HTTP, where no limit is given


def add_commands(commands) -> None:
    """Add this module's commands to the command line."""
    _add_audit(commands)
    _add_evaluate(commands)
    _add_report(commands)
    _add_analyse(commands)


def _add_audit(commands) -> None:
    audit = commands.add_parser(
        "audit",
        help="what is wrong with question files or picture folders",
        description="Finds position leaks, labels inside wrong options, contradictions, classes "
        "both seen and unseen, near-duplicates between train and test; says what a blind answerer "
        "scores.",
    )
    audit.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="<data set>_<seen|unseen>.jsonl, or a folder of class folders",
    )
    audit.set_defaults(main=run_audit)


def run_audit(args) -> None:
    from finer1_lite.evals import audit

    print("\n".join(audit.report_lines(args.paths)))


def _add_evaluate(commands) -> None:
    run = commands.add_parser(
        "evaluate",
        help="examine any model, adapter or hub model",
        description="Asks every model every question under every prompt, with and without the "
        "picture, and writes OUT/NAME/records.jsonl and report.html. Killed and started again, "
        "it resumes.",
    )
    option = run.add_argument
    option(
        "models",
        nargs="*",
        metavar="MODEL",
        help="folder of a model or an adapter, or a hub name; several adapters stand side by side",
    )
    option(
        "--endpoint",
        default=None,
        metavar="URL",
        help="an OpenAI-compatible endpoint, up to /v1, whose models are named by --model",
    )
    option("--model", nargs="+", default=[], metavar="NAME", help="endpoint: models there")
    cot_cli.add_endpoint(option)
    option("--base", default=None, help="model below the adapters (default: as the adapter says)")
    option("--name", default="evaluation", help="name of the run")
    option("--out", type=Path, default=Path("runs"), help="folder of all runs")
    option("--fresh", action="store_true", help="start over: delete the run of this name first")
    option("--preset", choices=PRESETS, default="lab", help="size: lab: a CPU, others: a GPU")
    option(
        "--prompts",
        nargs="+",
        default=None,
        help="think, answer, exact, coarse or no_think; "
        "each row of a table names its prompt (left out: the first three; for --questions the "
        "first two)",
    )
    option(
        "--tasks",
        nargs="+",
        choices=("open", "closed"),
        default=["open", "closed"],
        help="with options (closed) or without (open)",
    )
    option(
        "--order",
        choices=("rotate", "shuffle", "as_is"),
        default="rotate",
        help="options: in every rotation, shuffled once by a seed, or as the file has them",
    )
    option(
        "--protocol",
        choices=("ours", "released"),
        default="ours",
        help="released: options as "
        "the file has them (--order as_is); both scorings stand in every table",
    )
    option("--letters", action="store_true", help="put (A), (B) before options; letters count")
    option(
        "--samples",
        type=int,
        default=1,
        help="answers a question; more than 1 are drawn at temperature 1",
    )
    option("--no-blind", action="store_true", help="leave out the model without the picture")
    _add_data(option)
    option(
        "--questions",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="questions of "
        "your own about pictures: JSON lines with image, question, answer and, where wanted, "
        "options, aliases, split",
    )
    option("--baselines", nargs="*", default=[], help="lite0, vision_tower, clip, clip_probe")
    option(
        "--clip",
        default=None,
        metavar="NAME",
        help="CLIP or SigLIP of the baselines clip and "
        "clip_probe: hub name or folder (left out: google/siglip-base-patch16-224)",
    )
    option(
        "--similarity",
        choices=("none", "minilm", "siglip"),
        default="none",
        help="text encoder of the open world's semantic similarity",
    )
    run.set_defaults(main=run_evaluate)


def _add_data(option) -> None:
    option("--photos", type=Path, default=None, help="folder of photographs, DIR/<class>/*.jpg")
    option("--files", type=Path, nargs="*", default=[], help="released question files")
    option("--images", type=Path, default=None, help="folder of the pictures that --files name")
    option(
        "--allow-missing",
        action="store_true",
        help="leave out and count questions whose picture is missing",
    )
    option(
        "--world-seed",
        type=int,
        default=0,
        help="which world of paper birds, without --photos and --files",
    )
    option("--unseen-share", type=float, default=0.4, help="share of --photos' classes kept unseen")
    option("--coarse", default=None, help='what the pictures show, in a word ("bird")')
    option("--test-pictures", type=int, default=None, help="fresh paper birds a split")
    option("--max-new-tokens", type=int, default=None, help="length limit of an answer")
    option("--batch", type=int, default=None, help="questions answered at a time")


def _add_report(commands) -> None:
    rep = commands.add_parser(
        "report",
        help="remake every table and figure of a run from its records",
        description="Writes report.html and report.md into RUN. With RUN2: a page in RUN2 "
        "that puts the two side by side, with the pictures on which they differ.",
    )
    rep.add_argument(
        "run", type=Path, metavar="RUN", help="folder with a records.jsonl or an analysis.jsonl"
    )
    rep.add_argument("other", type=Path, nargs="?", metavar="RUN2", help="a second such folder")
    rep.add_argument(
        "--photos",
        type=Path,
        default=None,
        help="folder of the pictures, to show those on which two runs differ",
    )
    rep.set_defaults(main=run_report)


def make_job(args):
    """Arguments -> job.Job. ValueError lists every setting that makes no sense."""
    from finer1_lite import prompts
    from finer1_lite.benchmark import Condition
    from finer1_lite.evals.job import CLIP, Job
    from finer1_lite.presets import Preset

    known = prompts.ABOUT if args.questions else prompts.PROMPTS
    asked = args.prompts or ("think", "answer", *(() if args.questions else ("exact",)))
    problems = [f"--prompts {p}: choose of {', '.join(known)}" for p in asked if p not in known]
    if args.samples < 1:
        problems.append(f"--samples {args.samples}: give 1 or more")
    if bool(args.photos) + bool(args.files) + bool(args.questions) > 1:
        problems.append("--photos, --files and --questions: give one of them")
    if args.questions and args.baselines:
        problems.append("--baselines: they name classes; questions of one's own ask something else")
    if bool(args.endpoint) != bool(args.model):
        problems.append("--endpoint and --model: give both, or neither")
    if problems:
        raise ValueError("settings that make no sense:\n- " + "\n- ".join(problems))
    changes = {
        "test_pictures": args.test_pictures,
        "max_new_tokens": args.max_new_tokens,
        "eval_batch": args.batch,
    }
    if args.endpoint and args.max_new_tokens is None:
        changes["max_new_tokens"] = ENDPOINT_TOKENS
    preset = getattr(Preset, args.preset)()
    preset = preset.with_(**{k: v for k, v in changes.items() if v is not None})
    order = "as_is" if args.protocol == "released" else args.order
    conditions = [
        Condition(prompt, task, picture, order, args.letters, args.samples)
        for prompt in dict.fromkeys(asked)
        for task in dict.fromkeys(args.tasks)
        for picture in ((True,) if args.no_blind else (True, False))
    ]
    word = args.coarse or ("object" if args.photos else "bird")
    return Job(
        folder=args.out / args.name,
        models=tuple(args.models),
        preset=preset,
        conditions=tuple(conditions),
        base=args.base,
        world_seed=args.world_seed,
        photos=args.photos,
        files=tuple(args.files),
        questions=tuple(args.questions),
        images=args.images,
        allow_missing=args.allow_missing,
        unseen_share=args.unseen_share,
        coarse=word,
        baselines=tuple(args.baselines),
        similarity=args.similarity,
        endpoint=_endpoint(args),
        clip=args.clip or CLIP,
    )


def _endpoint(args):
    """Arguments -> Remote, or None."""
    from finer1_lite.evals.endpoint import Remote

    if not args.endpoint:
        return None
    return Remote(
        args.endpoint,
        tuple(args.model),
        args.key_env,
        args.workers,
        args.timeout,
        args.tries,
        args.max_requests,
        args.max_cost,
        args.price_in,
        args.price_out,
    )


def run_evaluate(args) -> None:
    from finer1_lite.evals.job import run_evaluation

    print(f"report: {run_evaluation(make_job(args), fresh=args.fresh)}")


def run_report(args) -> None:
    from finer1_lite.evals import report

    photos = report.photo_source(args.photos) if args.photos else None
    if args.other is None:
        print(f"report: {report.write_report(args.run, photos)}")
    else:
        print(f"report: {report.write_comparison(args.run, args.other, photos)}")


def _add_analyse(commands) -> None:
    run = commands.add_parser(
        "analyse",
        help="better use of knowledge, or more? probes, quiz, faithfulness",
        description="Measures a student before and after training (linear probes, CKA, a quiz in "
        "words, whether answers follow the chain and the picture, a covered mark) and writes "
        "OUT/NAME/analysis.jsonl and report.html. Killed and started again, it resumes.",
    )
    option = run.add_argument
    option("models", nargs=2, metavar="MODEL", help="before and after: folders or hub names")
    option("--base", default=None, help="model below the adapters (default: as the adapter says)")
    option("--name", default="analysis", help="name of the run")
    option("--out", type=Path, default=Path("runs"), help="folder of all runs")
    option("--fresh", action="store_true", help="start over: delete the run of this name first")
    option("--preset", choices=PRESETS, default="lab", help="size: lab: a CPU, others: a GPU")
    _add_data(option)
    run.set_defaults(
        main=run_analyse,
        prompts=[],
        tasks=[],
        samples=1,
        letters=False,
        no_blind=True,
        protocol="ours",
        order="rotate",
        baselines=[],
        similarity="none",
        endpoint=None,
        model=[],
        questions=[],
        clip=None,
    )


def run_analyse(args) -> None:
    from finer1_lite.evals.job import run_analysis

    print(f"report: {run_analysis(make_job(args), fresh=args.fresh)}")
