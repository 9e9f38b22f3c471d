"""`python -m finer1_lite fetch`: a hub's data set, or a local one, as a folder of photographs."""

from pathlib import Path

from finer1_lite.data.hubsets import HUBSETS


def add_command(commands) -> None:
    keys = "; ".join(f"{name}: {one.repository} ({one.licence})" for name, one in HUBSETS.items())
    parser = commands.add_parser(
        "fetch",
        help="a data set of a hub -> a folder for --photos",
        description="Draws some pictures of each class in one pass over the shards and writes "
        "OUT/<class>/*.jpg, classes.csv (names; which classes are seen, where that was released) "
        "and index.csv (split). Killed, the same command reads again and ends with the same bytes. "
        f"Released classes come with these keys: {keys}.",
    )
    option = parser.add_argument
    option(
        "source",
        help=f"{', '.join(HUBSETS)}, or any hub name or local folder of `datasets` "
        "with a column of pictures and one of class labels",
    )
    option("--out", type=Path, required=True, help="folder to make")
    option(
        "--from",
        dest="origin",
        default="",
        metavar="PLACE",
        help="read a key's pictures from this hub name or folder instead",
    )
    option("--train", type=int, default=16, help="training pictures a class to keep; 0: all")
    option("--test", type=int, default=0, help="test pictures a class to keep; 0: all")
    option("--classes", type=int, default=0, help="classes to keep, drawn by the seed; 0: all")
    option("--seed", type=int, default=0, help="of the draw")
    option(
        "--allow-missing",
        action="store_true",
        help="leave out classes that do not match the released list or have too few pictures",
    )
    option("--image-column", default="", help="of the pictures, where there are several")
    option("--label-column", default="", help="of the class labels, where there are several")
    option("--train-splits", nargs="+", default=[], help="splits to draw training pictures from")
    option("--test-splits", nargs="+", default=[], help="splits to draw test pictures from")
    option("--config", default="", help="of a data set that has several")
    option(
        "--revision",
        default="",
        help="branch or commit; refs/convert/parquet is the hub's own conversion",
    )
    parser.set_defaults(main=run_fetch)


def run_fetch(args) -> None:
    from finer1_lite.data.hub import Wanted, fetch

    wanted = Wanted(
        args.source,
        args.origin,
        args.train,
        args.test,
        args.classes,
        args.seed,
        args.image_column,
        args.label_column,
        tuple(args.train_splits),
        tuple(args.test_splits),
        args.config,
        args.revision,
    )
    record = fetch(wanted, args.out, args.allow_missing)
    for what in ("broken", "copies_of_test_pictures", "two_labels", "left_out"):
        if record[what]:
            print(f"{what.replace('_', ' ')}: {len(record[what])} ({args.out}/fetch.json)")
    classes, kept = (
        ", ".join(f"{n} {name}" for name, n in record[part].items())
        for part in ("classes", "pictures")
    )
    coarse = f" --coarse {wanted.hubset.coarse}" if wanted.hubset else ""
    print(f"{args.out}: classes: {classes}; pictures: {kept}")
    print(f"use it with --photos {args.out}{coarse}")
    print(
        "lab and the table teacher want descriptions.csv (class,description) there; "
        "cot make --teacher local or endpoint and evaluate do without"
    )
