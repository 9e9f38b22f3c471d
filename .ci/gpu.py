"""All that only a card can tell, in one call: `timeout 540 python .ci/gpu.py FILE.json`.

The tests of `pytest -m gpu`, among them those that measure as `bench --full` does. The file is
written anew after each test, and the bench's rows beside it (FILE.rows.json) after each row, so
that little is lost where time runs out.
`python .ci/gpu.py --table FILE.json` prints its rows in Markdown, for assets/results/README.md.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {  # heading -> (key, digits)
    "generate s": ("generate_s", 1),
    "score s": ("score_s", 1),
    "update s": ("update_s", 1),
    "step s": ("step_s", 1),
    "of TRL's": ("of_trl", 2),
    "tokens/s": ("rollout_tokens_per_s", 0),
    "peak MiB": ("peak_mb", 0),
    "planned MiB": ("peak_planned_mb", 0),
}


class Record:
    """Writes what became of each test, and the rows of the bench as far as they go."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, path.with_suffix(".rows.json")
        self.rows.unlink(missing_ok=True)
        self.tests: list[dict] = []
        self.write()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """What became of a test: pytest calls this after its set-up, itself and its end."""
        if report.when != "call" and report.passed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        row = dict(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 1))
        said = crash.message if crash else str(report.longrepr or "")
        self.tests.append(row | {"said": said, "printed": report.capstdout})
        self.write()

    def write(self) -> None:
        """All that is known so far."""
        found = {"tests": self.tests, "rows": rows_beside(self.path)}
        self.path.write_text(json.dumps(found, indent=1))


def rows_beside(path: Path) -> list[dict]:
    """What the bench has measured, also within a test that was stopped."""
    rows = path.with_suffix(".rows.json")
    return json.loads(rows.read_text()) if rows.exists() else []


def table(path: Path) -> str:
    """The tests that did not pass, and the rows; a number that was not measured is a dash."""
    found = json.loads(path.read_text())
    found["rows"] = rows_beside(path) or found["rows"]
    first = (found["rows"] or [{"device": "no row", "dtype": "-", "completion_tokens": 0}])[0]
    counts = {kind: 0 for kind in ("passed", "failed", "skipped")}
    for test in found["tests"]:
        counts[test["outcome"]] += 1
    lines = [", ".join(f"{count} {kind}" for kind, count in counts.items()) + " tests", ""]
    lines += [f"- {t['test']}: {t['said']}" for t in found["tests"] if t["outcome"] == "failed"]
    lines += [f"{first['device']}, {first['dtype']}, {first['completion_tokens']} tokens each:", ""]
    lines += ["| trainer | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for row in found["rows"]:
        cells = [(row.get(key), digits) for key, digits in COLUMNS.values()]
        cells = ["-" if value is None else f"{value:.{digits}f}" for value, digits in cells]
        lines.append(f"| {row['trainer']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the tests, or print a file's table: pytest's exit status, 2 for wrong arguments."""
    if len(arguments) == 2 and arguments[0] == "--table":
        print(table(Path(arguments[1])))
        return 0
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    import pytest

    record = Record(Path(arguments[0]).resolve())
    os.environ["FINER1_GPU_ROWS"] = str(record.rows)
    os.chdir(ROOT)
    files = ("tests/tools/test_gpu.py", "tests/students/test_selftest.py")
    code = pytest.main(["-m", "gpu", "-q", "-n0", *files], plugins=[record])
    print(table(record.path))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
