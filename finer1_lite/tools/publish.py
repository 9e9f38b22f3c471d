"""`merge` an adapter into a plain model; `push` a model or an adapter to the hub, on request."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from pathlib import Path

from finer1_lite.runtime.files import DataError
from finer1_lite.students import families

log = logging.getLogger("finer1_lite")

MODEL_FILE = re.compile(
    r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|(adapter_|generation_|processor_|preprocessor_|video_preprocessor_|tokenizer_)?config\.json"
    r"|tokenizer\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt"
    r"|chat_template\.(json|jinja)"
)
STAYS = ("log.jsonl", "done")  # what a training leaves beside its adapter: not uploaded


# --- merge ---------------------------------------------------------------------------------


def merge(adapter: Path, out: Path, base: str | None = None, dtype: str = "auto") -> Path:
    """Write the base with the adapter added to its weights; returns `out`.

    The base is read anew in 16 or 32 bits, also for an adapter that was trained on 4-bit
    weights: it was fitted to their rounded values, so a merged model's completions differ a
    little from the adapter's on 4 bits. Rounding the sum to 16 bits is a second small
    difference; `dtype="float32"` avoids it. The processor is the one that this machine can
    load: without torchvision, pictures and text alone. Raises DataError listing every problem,
    then ValueError for bases that are no Qwen-VL; nothing half-written stays.
    """
    from finer1_lite import models

    named = models.base_of(adapter, base) if (adapter / "adapter_config.json").is_file() else None
    _check_merge(adapter, out, named)
    families.check_family(named)
    log.info(
        "merged into %s as it is saved, not into 4 bits: completions may differ a little from "
        "those of an adapter trained on 4 bits",
        named,
    )
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _write_merged(adapter, named, dtype, part)
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _check_merge(adapter: Path, out: Path, base: str | None) -> None:
    """DataError listing every problem; base: "" where none is named, None without an adapter."""
    problems = []
    if base is None:
        problems.append(f"{adapter}: holds no adapter (adapter_config.json)")
    elif not base:
        problems.append(f"{adapter}: names no base model; give --base")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"{out}: is there already; name a new folder")
    if problems:
        raise DataError(problems, "nothing to merge:")


def _write_merged(adapter: Path, base: str, dtype: str, part: Path) -> None:
    """Model, generation config and processor into the folder `part`."""
    import torch

    from finer1_lite import models

    kept = "auto" if dtype == "auto" else getattr(torch, dtype)
    model = models.read_weights(base, torch.device("cpu"), kept)
    model = models.load_adapter_on(model, adapter).merge_and_unload(safe_merge=True)
    model.save_pretrained(part)  # with its generation config
    own = (adapter / "processor_config.json").is_file()  # the pixel budget of the training
    models.load_processor(adapter if own else base).save_pretrained(part)


# --- push ----------------------------------------------------------------------------------


def push(folder: Path, name: str, private: bool = False, yes: bool = False) -> str:
    """Upload the model files of a folder; returns the page's address.

    name: OWNER/NAME; yes: without asking. Only files that a model consists of go up
    (`MODEL_FILE`); any other file stops the upload: pictures, records and pickles have no place
    there. Raises DataError listing every problem before the hub is asked anything, ValueError
    for a bad name, without a login, without a yes, and for private weights where the
    repository is public.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    files = model_files(folder)
    validate_repo_id(name)
    if get_token() is None:
        raise ValueError("no hub login: set HF_TOKEN or run `hf auth login`")
    print(f"to {name} ({'private' if private else 'public, unless it is private already'}):")
    for file in files:
        print(f"  {file.name}  {file.stat().st_size:,} bytes")
    if not yes and not _agreed():
        raise ValueError("nothing was uploaded: it wants a yes, or --yes")
    hub = HfApi()
    repository = hub.create_repo(name, private=private or None, exist_ok=True)
    if private and not hub.repo_info(repository.repo_id).private:
        raise ValueError(f"{repository.repo_id} is there already and public: nothing was uploaded")
    hub.upload_folder(
        repo_id=repository.repo_id,
        folder_path=folder,
        allow_patterns=[file.name for file in files],
        commit_message="Model files",
    )
    return str(repository)


def _agreed() -> bool:
    return sys.stdin.isatty() and input("upload? [y/N] ").strip().lower() in ("y", "yes")


def model_files(folder: Path) -> list[Path]:
    """The files that may go up, sorted; DataError naming whatever else lies there.

    Also where there is no model in it. What `STAYS` names is left out silently.
    """
    if not folder.is_dir():
        raise DataError([f"{folder}: is no folder"], "nothing to upload:")
    found = sorted(path for path in folder.iterdir() if path.name not in STAYS)
    problems = [f"{path.name}: {problem}" for path in found if (problem := _unfit(path))]
    names = {path.name for path in found}
    configured = names & {"config.json", "adapter_config.json"}
    if not configured or not any(name.endswith(".safetensors") for name in names):
        problems.append("no model: config.json or adapter_config.json, and safetensors, are wanted")
    if problems:
        raise DataError(problems, f"{folder} holds what must not go up; move it away:")
    return found


def _unfit(path: Path) -> str:
    """Why a file must not be uploaded; "" for a model's file."""
    from safetensors import SafetensorError, safe_open

    if path.is_symlink() or not path.is_file() or not MODEL_FILE.fullmatch(path.name):
        return "is no model file"
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                weights.keys()
        if path.suffix == ".json":
            base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
            if base and Path(base).is_absolute():
                return f"names a folder of this machine ({base}); write the base's hub name there"
    except (SafetensorError, ValueError, AttributeError) as error:
        return f"cannot be read ({str(error).splitlines()[0]})"
    return ""
