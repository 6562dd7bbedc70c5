"""How fast, and in how much memory: W by hushtune, by a plain loop, by Flower and by pfl-research.

    python benchmarks/w.py [--repetitions 3] [--peer-repetitions 1] [--switch-off]
        [--contenders hushtune bare ...] [--page docs/speed.md] [--out runs/w] [--again]
    python benchmarks/w.py --setup-pfl      # pfl-research, in an environment of its own

Every contender is a process of its own, on one core, with one thread, on the same rows (see
w_work.py), and all of them take turns, so that a busy machine is not to one's disadvantage alone. A
run is a line of ``results.jsonl``; what is there is not run again. ``--switch-off`` adds hushtune
without each of its optimisations in turn. Three repetitions take about 20 minutes on an idle core,
with ``--switch-off`` half an hour more. With ``--page`` the tables replace what stands between
their markers there, and the picture beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markers import put_between
from w_processes import measured
from w_table import BEGIN, END, as_markdown, plot
from w_work import write_work

from hushtune.common.files import write_text
from hushtune.common.self_test import kept_precision
from hushtune.common.version import source_commit

HERE = Path(__file__).parent
TOP = ("adapter.layers=2",)
"""The variant of W that adapts the top two layers alone."""
PFL = ("pfl==0.6.0", "prv-accountant==0.2.0", "multiprocess>=0.70.15,<0.71")
"""What pfl-research needs beyond what is there. Without its dependencies: it asks for an older
dp-accounting, of which it uses nothing that changed."""


@dataclass(frozen=True)
class Contender:
    """One way to do W. ``floor``: what its seconds are divided by."""

    title: str
    program: str
    settings: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    floor: str = "bare"
    peer: bool = False


def contenders(precision: str) -> dict[str, Contender]:
    """All of them, in the order of the table; ``precision``: what this machine is fast with."""
    fast = (f"model.precision={precision}",)
    ours = {"hushtune": Contender(f"hushtune, {precision}", "hushtune", fast)}
    floor = {"bare": Contender("plain loop, PyTorch + Opacus", "bare")}
    if precision != "float32":
        exact = ("model.precision=float32",)
        ours["hushtune-float32"] = Contender("hushtune, float32", "hushtune", exact)
        floor["bare-fast"] = Contender(f"plain loop, autocast to {precision}", "bare", fast)
    return {
        **ours,
        **floor,
        "flower": Contender("Flower app on Ray", "flower", peer=True),
        "pfl": Contender("pfl-research, central DP", "pfl", peer=True),
        "hushtune-top": Contender(
            "hushtune, top two layers", "hushtune", (*fast, *TOP), floor="bare-top"
        ),
        "bare-top": Contender("plain loop, top two layers", "bare", TOP, floor="bare-top"),
    }


def switched_off(precision: str) -> dict[str, Contender]:
    """hushtune without each optimisation; ``floor`` is hushtune with all of them."""
    fast = (f"model.precision={precision}",)

    def one(title: str, *settings: str, without: str = "", of: str = "hushtune") -> Contender:
        top = TOP if of == "hushtune-top" else ()
        gone = (without,) if without else ()
        return Contender(title, "hushtune", (*fast, *top, *settings), gone, floor=of)

    found = {
        "off-together": one("one site after the other", "speed.together=1"),
        "off-fused": one(
            "one after the other, gradients by Opacus' hooks",
            "speed.together=1",
            "speed.gradients=hooks",
        ),
        "off-pack": one("texts of one width by themselves", "speed.pack=false"),
        "off-pad": one("all texts padded to 128 tokens", "speed.pad=max_tokens"),
        "off-eager": one("fused attention, texts of one width by themselves", without="eager"),
        "off-kept-weights": one("frozen weights rounded anew each time", without="kept-weights"),
        "off-side-by-side": one("rows judged in shapes of their own", without="side-by-side"),
        "off-page-out": one("frozen weights never paged out", without="page-out"),
        "off-allocator": one("glibc gives freed memory back", "speed.keep_freed_memory=false"),
        "off-cache": one(
            "top two layers, nothing kept of the frozen ones",
            "train.cache_megabytes=0",
            of="hushtune-top",
        ),
    }
    if precision != "float32":
        found["off-bfloat16"] = one("float32 in place of bfloat16", "model.precision=float32")
    return found


def main() -> None:
    """Run what is not there yet, print the tables, and put them where they belong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, choices=range(1, 100), default=3, metavar="N")
    parser.add_argument("--peer-repetitions", type=int, default=1, help="of Flower and pfl")
    parser.add_argument("--contenders", nargs="+", metavar="NAME")
    parser.add_argument("--switch-off", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of all of them")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--core", type=int, help="the core to run on; default: the last one")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/w"))
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--setup-pfl", action="store_true")
    parser.add_argument("--pfl", type=Path, default=Path("runs/pfl"), help="its environment")
    options = parser.parse_args()
    if options.setup_pfl:
        set_up_pfl(options.pfl)
        return
    if options.again:
        (options.out / "results.jsonl").unlink(missing_ok=True)
    about = machine(options)
    everyone = contenders(about["precision"])
    if options.switch_off:
        everyone |= switched_off(about["precision"])
    wanted = options.contenders or list(everyone)
    if unknown := set(wanted) - set(everyone):
        raise SystemExit(f"no such contender: {', '.join(sorted(unknown))}; of {list(everyone)}")
    if "pfl" in wanted and not pfl_python(options.pfl).exists():
        once = "pfl-research needs an environment of its own: python benchmarks/w.py --setup-pfl"
        if options.contenders:
            raise SystemExit(once)
        print(f"{once}; without it meanwhile", flush=True)
        wanted.remove("pfl")
    rows = run_all({name: everyone[name] for name in wanted}, options, about)
    table = as_markdown(rows, everyone, about)
    print(table)
    plot(rows, everyone, options.out / "speed.png")
    if options.page is not None:
        put_between(options.page, BEGIN, END, table)
        shutil.copy(options.out / "speed.png", options.page.with_suffix(".png"))


def run_all(
    wanted: Mapping[str, Contender], options: argparse.Namespace, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The results of all repetitions, those that were there among them."""
    path = options.out / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for repetition in range(options.repetitions):
        for name, contender in wanted.items():
            if contender.peer and repetition >= options.peer_repetitions:
                continue
            key = {"contender": name, "repetition": repetition, "set": options.set}
            if any(key.items() <= row.items() for row in rows):
                continue
            load = os.getloadavg()[0]
            clock = time.strftime("%H:%M:%S")
            print(f"{clock} {name}, {repetition + 1}, load {load:.1f} ...", end=" ", flush=True)
            found = measured(
                command(name, contender, options),
                options.out / name,
                core=about["core"],
                timeout=1800,
            )
            print(f"{found['wall']:.0f} s, {found['memory_mb']:.0f} MB", flush=True)
            rows.append({**key, **found, "load": load, "commit": source_commit()})
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return [row for row in rows if row["set"] == options.set]


def command(name: str, contender: Contender, options: argparse.Namespace) -> list[str]:
    """What to start; the rows are written for those that are not hushtune."""
    settings = [*contender.settings, *options.set]
    if contender.program != "hushtune":
        work = options.out / f"{name}.json"
        write_work(work, settings)
        python = str(pfl_python(options.pfl)) if contender.program == "pfl" else sys.executable
        return [python, str(HERE / f"w_{contender.program}.py"), str(work)]
    run = options.out / name / "run"
    shutil.rmtree(run, ignore_errors=True)
    start = [sys.executable, str(HERE / "w_hushtune.py"), "--without", *contender.without, "--"]
    asked = [word for setting in settings for word in ("--set", setting)]
    return [*start, "simulate", "--preset", "bench-w", "--out", str(run), *asked]


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures are of."""
    import torch

    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    core = options.core if options.core is not None else (cores[-1] if cores else None)
    return {
        "precision": options.precision or kept_precision(),
        "core": core,
        "processor": processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """Of which kind it is, with what makes it fast or slow here."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(
        (key.strip(), value.strip())
        for key, found, value in (line.partition(":") for line in text.splitlines())
        if found
    )
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    flags = [flag for flag in known if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(flags)})"


def pfl_python(folder: Path) -> Path:
    """The interpreter of pfl-research's own environment."""
    return (folder / "bin" / "python").absolute()


def set_up_pfl(folder: Path) -> None:
    """Make that environment, on top of the one that runs this: torch is not fetched again."""
    venv.create(folder, with_pip=True, clear=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    inside = folder / "lib" / version / "site-packages"
    shared = sorted({path for path in sys.path if path.endswith("site-packages")})
    (inside / "shared.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
    pip = [str(pfl_python(folder)), "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*pip, *PFL], check=True)
    subprocess.run([str(pfl_python(folder)), "-c", "import pfl.privacy"], check=True)


if __name__ == "__main__":
    main()
