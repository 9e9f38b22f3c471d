"""`python -m finer1_lite cot ...`: make, check, review and convert chains of thought."""

import json
from pathlib import Path

TEACHERS = ("oracle", "table", "local", "endpoint", "student")
FORMATS = ("ours", "trl", "sharegpt", "triplets", "parquet")


def add_parser(commands) -> None:
    cot = commands.add_parser(
        "cot",
        help="chains of thought for your own pictures: make, check, review, convert",
        description="Photos in, reviewed four-part chains out, with any teacher.",
    )
    steps = cot.add_subparsers(
        dest="step", required=True, metavar="STEP", help="what to do; STEP --help lists its options"
    )
    _add_make(steps)
    _add_check(steps)
    _add_review(steps)
    _add_convert(steps)
    _add_triplets(steps)


def _add_make(steps) -> None:
    make = steps.add_parser(
        "make",
        help="photos -> descriptions -> concepts -> chains -> checks",
        description="Writes OUT/chains.jsonl, rejected.jsonl, report.json, review.csv and "
        "reviewed.jsonl. Killed, refused or out of budget, the same command goes on and pays for "
        "nothing twice. Fill the column `decision` of review.csv and start it again: "
        "reviewed.jsonl then holds what you decided.",
    )
    option = make.add_argument
    _add_data(option)
    option("--out", type=Path, required=True, help="folder of this set of chains")
    option(
        "--teacher",
        choices=TEACHERS,
        default=None,
        help="who writes; left out: oracle for paper birds, table for photographs",
    )
    option(
        "--model",
        default=None,
        help="local: folder or hub name, e.g. "
        "Qwen/Qwen2.5-VL-7B-Instruct; endpoint: the model's name there",
    )
    option(
        "--quantize", choices=("none", "nf4"), default="none", help="local: nf4 is 4-bit weights"
    )
    option("--url", default="http://localhost:8000/v1", help="endpoint: up to /v1")
    add_endpoint(option)
    option("--temperature", type=float, default=0.7, help="local, endpoint, student: of sampling")
    option("--max-tokens", type=int, default=1024, help="local, endpoint, student: of one answer")
    option("--descriptions-a-picture", type=int, default=6, help="times that it is described")
    option(
        "--extract",
        choices=("teacher", "yake"),
        default=None,
        help="who names concepts; left out: the teacher, for a table yake",
    )
    option("--estimator", choices=("count", "infonce"), default="count", help="of the bottleneck")
    option("--beta", type=float, default=0.7, help="count: price of a bit about the single picture")
    option("--per-picture", type=int, default=1, help="chains wanted of a picture")
    option("--rounds", type=int, default=4, help="tries for each of them")
    option(
        "--guess",
        action="store_true",
        help="do not tell the teacher the label; keep a chain "
        "only if it is right (the way of --teacher student)",
    )
    option("--seed", type=int, default=0, help="order of candidates")
    make.set_defaults(main=run_make)


def add_endpoint(option) -> None:
    """What every command asks of an endpoint beside its address."""
    option(
        "--key-env",
        default="OPENAI_API_KEY",
        help="endpoint: the environment variable of the key, which is never written anywhere",
    )
    option("--workers", type=int, default=4, help="endpoint: requests at a time")
    option("--timeout", type=float, default=120.0, help="endpoint: seconds for one answer")
    option("--tries", type=int, default=5, help="endpoint: of one request, with growing pauses")
    option("--max-requests", type=int, default=None, help="budget: answers paid for in this start")
    option("--max-cost", type=float, default=None, help="budget: in the unit of the prices")
    option("--price-in", type=float, default=0.0, help="of a million tokens read")
    option("--price-out", type=float, default=0.0, help="of a million tokens written")


def _add_data(option) -> None:
    option("--photos", type=Path, default=None, help="folder DIR/<class>/*.jpg; left out: birds")
    option(
        "--descriptions",
        type=Path,
        default=None,
        help="table (class, description); DIR/descriptions.csv where not given",
    )
    option("--coarse", default=None, help='what the pictures show, in a word ("bird")')
    option("--shots", type=int, default=4, help="training pictures of a seen class")
    option("--world-seed", type=int, default=0, help="which world of paper birds")


def _add_check(steps) -> None:
    check = steps.add_parser(
        "check",
        help="what is wrong with a file of chains",
        description="Reads our JSON lines, TRL's rows or the released sharegpt JSON.",
    )
    check.add_argument("file", type=Path, help="file of chains")
    check.add_argument("--json", type=Path, default=None, help="write every finding here")
    check.set_defaults(main=run_check)


def _add_review(steps) -> None:
    review = steps.add_parser(
        "review",
        help="apply decisions made in review.csv or in the panel",
        description="The panel runs in JupyterLab: `from finer1_lite.chains import panel; "
        "panel.open_panel(FOLDER, collection)`. Without widgets fill the column decision (keep, "
        "drop, edit) of FOLDER/review.csv, for edit also new_chain, and run this.",
    )
    review.add_argument("folder", type=Path, help="folder that `cot make` wrote")
    review.add_argument(
        "--decided-only", action="store_true", help="leave out chains that nobody has decided about"
    )
    review.add_argument("--undo", action="store_true", help="take the last decision back first")
    review.set_defaults(main=run_review)


def _add_convert(steps) -> None:
    convert = steps.add_parser(
        "convert",
        help="between our JSON lines, TRL's rows and the released formats",
        description="The format of FILE is told by its content.",
    )
    convert.add_argument("file", type=Path, help="chains, or triplets (.jsonl, .parquet)")
    convert.add_argument("out", type=Path, help="file to write")
    convert.add_argument("--to", choices=FORMATS, required=True, help="its format")
    convert.add_argument("--bare", action="store_true", help="sharegpt: released fields only")
    convert.add_argument(
        "--pictures",
        type=Path,
        default=Path("."),
        help="parquet: folder that picture paths start from",
    )
    convert.set_defaults(main=run_convert)


def _add_triplets(steps) -> None:
    triplets = steps.add_parser(
        "triplets",
        help="anchor, positive, hard negative of every training picture",
        description="Writes our JSON lines; convert --to parquet follows.",
    )
    _add_data(triplets.add_argument)
    triplets.add_argument("--seed", type=int, default=0, help="of the draw")
    triplets.add_argument("--out", type=Path, required=True, help="file to write (.jsonl)")
    triplets.set_defaults(main=run_triplets)


# --- what they do ------------------------------------------------------------------------


def collection_of(args):
    """(collection, world): paper birds, or a folder of photographs without a world."""
    from finer1_lite import paperbirds
    from finer1_lite.species import load_folder

    if args.photos is None:
        world = paperbirds.make_world(args.world_seed)
        return paperbirds.collection(world, shots=args.shots, test=60), world
    coarse = args.coarse or "product"
    return load_folder(
        args.photos, shots=args.shots, descriptions=args.descriptions, coarse=coarse
    ), None


def make_work(args):
    """Arguments -> ChainJob. ValueError listing what does not fit together."""
    from finer1_lite.chains.make import ChainJob, Settings
    from finer1_lite.chains.client import Cached, Ledger

    kind = args.teacher or ("oracle" if args.photos is None else "table")
    problems = []
    if kind == "oracle" and args.photos is not None:
        problems.append("--teacher oracle knows paper birds only: choose another for --photos")
    if kind in ("local", "endpoint") and not args.model:
        problems.append(f"--teacher {kind} needs --model")
    if problems:
        raise ValueError("; ".join(problems))
    collection, world = collection_of(args)
    ledger = Ledger(args.price_in, args.price_out, args.max_requests, args.max_cost)
    teachers = _teacher(kind, args, collection, world, ledger)
    if kind not in ("oracle", "table"):  # these cost nothing
        teachers = Cached(teachers, args.out / "cache", ledger)
    settings = Settings(
        args.descriptions_a_picture,
        args.extract or ("yake" if kind == "table" else "teacher"),
        args.estimator,
        args.beta,
        per_picture=args.per_picture,
        rounds=args.rounds,
        guess=args.guess or kind == "student",
        seed=args.seed,
    )
    return ChainJob(args.out, collection, teachers, settings, ledger)


def _teacher(kind: str, args, collection, world, ledger):
    from finer1_lite.chains import teachers

    if kind == "oracle":
        return teachers.Oracle(world)
    if kind == "table":
        return _table(collection)
    if kind == "endpoint":
        from finer1_lite.chains.client import Endpoint

        return Endpoint(
            args.url,
            args.model,
            ledger,
            key_env=args.key_env,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            workers=args.workers,
            timeout=args.timeout,
            tries=args.tries,
        )
    source = args.model
    if kind == "student" and source is None:
        from finer1_lite.students.lab_student import asset_folder

        source = asset_folder(args.world_seed)
    return teachers.load_local(
        source, args.quantize, max_new_tokens=args.max_tokens, temperature=args.temperature
    )


def _table(collection):
    from finer1_lite.chains.teachers import Table
    from finer1_lite.cot import require_descriptions

    require_descriptions(collection, "--teacher table")
    return Table(collection)


def run_make(args) -> None:
    print(json.dumps(make_work(args).build(), indent=1, ensure_ascii=False))


def run_check(args) -> None:
    from finer1_lite.chains import checks, formats
    from finer1_lite.chains.make import write_json

    records, kind = formats.read_any(args.file)
    result = checks.audit_chains(records)
    print(f"{args.file} ({kind})\n{checks.audit_text(result)}")
    if args.json:
        found = {k: [str(f) for f in v] for k, v in result.pop("found").items() if v}
        write_json(args.json, result | {"found": found})


def run_review(args) -> None:
    from finer1_lite.chains import review

    if args.undo:
        undone = review.open_review(args.folder)
        print(f"taken back: {undone.undo()}")
        undone.write_csv(args.folder / "review.csv")
    state = review.apply_review(args.folder, undecided=not args.decided_only)
    kept = len(state.results(not args.decided_only))
    print(
        json.dumps(review.summary(state)), f"-> {kept} chains in {args.folder / 'reviewed.jsonl'}"
    )


def run_convert(args) -> None:
    from finer1_lite.chains import formats

    if args.to in ("triplets", "parquet"):
        if args.file.suffix == ".parquet":
            rows = formats.read_parquet(args.file, args.pictures)
        else:
            rows = formats.read_triplets(args.file)
        if args.to == "parquet":
            formats.write_parquet(args.out, rows, args.pictures)
        else:
            formats.write_triplets(args.out, rows)
        print(f"{len(rows)} triplets -> {args.out}")
        return
    records, kind = formats.read_any(args.file)
    formats.write_records(args.out, records, args.to, carry=not args.bare)
    print(f"{len(records)} chains: {kind} -> {args.to}, {args.out}")


def run_triplets(args) -> None:
    from finer1_lite.chains import formats
    from finer1_lite.chains import make as cot_make

    rows = list(cot_make.triplet_rows(collection_of(args)[0], args.seed))
    formats.write_triplets(args.out, rows)
    print(f"{len(rows)} triplets -> {args.out}")
