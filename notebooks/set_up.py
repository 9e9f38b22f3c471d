"""The first cell of every notebook imports this: packages in Colab, paths, what it all runs on."""

import importlib.metadata
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
# Colab's own: its torch fits its driver, its kernel is running; the tests are not run there
LEFT_ALONE = "torch jupyterlab ipywidgets traitlets nbclient pytest pytest-xdist hypothesis ruff"


def lacking(requirements: str) -> list[str]:
    """Lines of a requirements file that this Python does not meet; those left alone never."""
    from packaging.requirements import Requirement

    wanted = []
    for line in requirements.splitlines():
        text = line.partition("#")[0].strip()
        need = Requirement(text) if text else None
        if need is None or need.name in LEFT_ALONE.split():
            continue
        try:
            met = need.specifier.contains(importlib.metadata.version(need.name), prereleases=True)
        except importlib.metadata.PackageNotFoundError:
            met = False
        wanted += [] if met else [text]
    return wanted


def install() -> None:
    """The packages of requirements.txt that are not here; a second call finds nothing to do."""
    wanted = lacking((root / "requirements.txt").read_text(encoding="utf-8"))
    if not wanted:
        return
    print(f"installing {len(wanted)} packages, two to four minutes ...")
    loaded = {line.split("=")[0].split(">")[0] for line in wanted} & sys.modules.keys()
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)
    if loaded:
        print(
            f"{', '.join(sorted(loaded))}: an older version is loaded in this session. Now choose"
        )
        print("Runtime > Restart session, then run this cell again (nothing is installed twice).")


def describe(number: str, preset: object) -> None:
    """Print where it computes and why, the memory there, the preset, and how long it takes.

    number: of the notebook, as in its name ("04"); preset: a finer1_lite.presets.Preset.
    """
    import psutil
    import torch

    from finer1_lite.runtime import console, devices

    console.quiet()
    device = devices.choose_device()  # these two print their reasons
    devices.choose_dtype(device)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        print(f"{torch.cuda.get_device_name(device)}: {memory / 2**30:.0f} GiB of GPU memory")
    else:
        memory = psutil.virtual_memory().total
        print(f"{os.cpu_count()} CPU cores, {memory / 2**30:.0f} GiB of memory")
    if not preset.name.startswith("lab"):
        command = f"python -m finer1_lite plan --preset {preset.name}"
        print(f"preset {preset.name}: `{command}` says what it takes of memory and minutes")
        return
    print(f"preset {preset.name}: about {minutes(number)} minutes on two CPU cores")
    if device.type == "cuda":
        print("(The stored numbers are a CPU's: a GPU rounds otherwise, and completions differ.)")


def minutes(number: str) -> float:
    """Minutes of a notebook on two CPU cores, as measured for its header."""
    course = json.loads((root / "notebooks" / "course.json").read_text(encoding="utf-8"))
    return next(n["minutes"] for n in course["notebooks"] if n["file"].startswith(number))


def alt_text(figure: object) -> str:
    """What a figure shows, in words for those who do not see it: from its titles and labels."""
    panels = []
    for axes in figure.axes:
        title = axes.get_title() or axes.get_title("left") or axes.get_title("right")
        along, up = axes.get_xlabel(), axes.get_ylabel()
        kind = "picture" if axes.images and not (along or up) else "chart"
        words = [kind + (f" {title}" if title else "")]
        words += [f"{up or 'value'} against {along}"] if along and kind == "chart" else []
        words += [up] if up and not along else []
        legend = axes.get_legend()
        if legend:
            words.append("with " + ", ".join(text.get_text() for text in legend.get_texts()))
        if words != ["chart"]:  # colour bars and empty corners say nothing
            panels.append(", ".join(words))
    said = figure.get_suptitle() or ""
    return " ".join(": ".join(filter(None, (said, "; ".join(panels) or "a figure"))).split())


def describe_figures() -> None:
    """Every figure that a notebook shows from now on carries its alt text."""
    from IPython import get_ipython
    from matplotlib.figure import Figure

    def described(figure: Figure, **_: object) -> tuple[dict, dict]:
        return {}, dict.fromkeys(("image/png", "image/jpeg"), {"alt": alt_text(figure)})

    shell = get_ipython()
    if shell:
        shell.run_line_magic("matplotlib", "inline")
        shell.display_formatter.mimebundle_formatter.for_type(Figure, described)


sys.path[:0] = [str(root)] * (str(root) not in sys.path)
os.environ["PYTHONPATH"] = str(root)  # for `!python -m finer1_lite ...` from any folder
logging.basicConfig(stream=sys.stdout, format="%(message)s")  # what the project decides
if "google.colab" in sys.modules:
    install()
describe_figures()
