"""`merge` an adapter into a plain model, which transformers loads without this project."""

import logging
import shutil
from pathlib import Path

from finer1_lite.runtime.files import DataError, near, require_none
from finer1_lite.students import families
from finer1_lite.students.card import adapter_of, moved, read_card, write_card

log = logging.getLogger("finer1_lite")


def merge(adapter: Path, out: Path, base: str | None = None, dtype: str = "auto") -> Path:
    """Write the base with the adapter added to its weights, and its card; returns `out`.

    adapter: its folder, or that of a run (`adapter_of`).
    The base is read anew in 16 or 32 bits, also for an adapter that was trained on 4-bit
    weights: it was fitted to their rounded values, so a merged model's completions differ a
    little from the adapter's on 4 bits. Rounding the sum to 16 bits is a second small
    difference; `dtype="float32"` avoids it. The processor names the stock classes, which want
    torchvision. Raises DataError listing every problem, then ValueError for bases that cannot be
    students; nothing half-written stays.
    """
    import torch
    from transformers import AutoConfig

    from finer1_lite import models

    problems = []
    try:
        adapter = adapter_of(adapter)
        named = models.base_of(adapter, base)
    except DataError as error:
        problems += error.problems
    part = out.with_name(f"{out.name}.part")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"{out}: is there already; name a new folder")
    if part.exists():
        problems.append(f"{part}: is there; remove it if a merge was killed, or name another OUT")
    require_none(problems, "nothing to merge:")
    families.check_family(named)
    said = "merged into %s as it is saved; an adapter trained on 4 bits may answer a bit otherwise"
    log.info(said, near(Path(named)))
    try:
        kept = "auto" if dtype == "auto" else getattr(torch, dtype)
        if getattr(AutoConfig.from_pretrained(named), "quantization_config", None):
            what = f"{named}: is saved quantised, and a sum would be rounded again"
            raise DataError([f"{what}; give the model that it was made from"], "nothing to merge:")
        model = models.read_weights(named, torch.device("cpu"), kept)
        model = models.load_adapter_on(model, adapter).merge_and_unload(safe_merge=True)
        model.save_pretrained(part)  # with its generation config
        own = (adapter / "processor_config.json").is_file()  # the pixel budget of the training
        family = model.config.model_type
        models.load_processor(adapter if own else named, family=family).save_pretrained(part)
        if card := read_card(adapter):
            settings = card.settings | {"quantize": "none"}
            here = moved(card, adapter, part).model_copy(update={"settings": settings})
            write_card(part, here)
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out
