"""The main job on a folder of photographs: the same command, the same files at the end."""

import json
from pathlib import Path

import pytest
from paths import SHARED
from photo_folders import DESCRIBED, four_classes

from finer1_lite.__main__ import main

PHOTOS = SHARED / "photos"
SHORT = ["--seeds", "0", "--sft-steps", "2", "--tapo-steps", "1", "--workers", "1"]
SMALL = ["--set", "warm_up_steps=2", "max_new_tokens=12", "tapo.groups=2", "tapo.draws=1"]


def check_report(folder: Path, classes: int) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    records = [json.loads(line) for line in (folder / "records.jsonl").open()]
    assert {"base", "sft", "tapo"} <= metrics.keys()
    assert len({r["label"] for r in records}) == classes
    assert (
        len(records)
        == 4 * 2 * metrics["tapo"]["seen"]["open"]["n"]
        + 4 * 2 * (metrics["tapo"]["unseen"]["open"]["n"])
    )
    assert "TAPO" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_small_folder_ends_with_a_report(tmp_path):
    root = four_classes(tmp_path / "owls")
    (root / "descriptions.csv").write_text(DESCRIBED)
    asked = ["lab", "--photos", str(root), "--out", str(tmp_path / "runs"), "--coarse", "bird"]
    assert main([*asked, *SHORT, *SMALL]) == 0
    check_report(tmp_path / "runs" / "owls", 4)


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="../shared/photos is not here")
def test_supermarket_photographs_end_with_a_report(tmp_path):
    asked = ["lab", "--photos", str(PHOTOS), "--out", str(tmp_path), "--coarse", "product"]
    assert main([*asked, *SHORT, *SMALL]) == 0
    check_report(tmp_path / "photos", 19)
