"""Compare the speed of the library with its peers, in turns and in one process.

make bench                          all suites; writes results/bench-cpu.json
make bench ARGS="--suite start"     one suite; prints its table and writes no file
python -m benchmarks --suite generation --rounds 5 --threads 1 --json out/generation.json
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler, which counts memory
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402  (reads the environment)

from benchmarks.harness import Row, Setting, as_dicts, run_suite, standing  # noqa: E402
from transformer_lib.devices import PRECISIONS, measured_peak  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SUITES = {  # seconds for each, a quarter of an hour in all
    "attention": 110,
    "growth": 30,
    "multihead": 40,
    "translation": 90,
    "language": 330,
    "generation": 90,
    "engine": 200,
    "start": 30,
}
PACKAGES = (
    "torch", "executable-transformer", "transformers", "x-transformers", "litgpt", "ctranslate2",
    "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "transformer_lib", "benchmarks")
    return (git("rev-parse", "HEAD") or "unknown") + (" and changes" if changed else "")


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    told = Path("/proc/cpuinfo")  # on Linux
    lines = told.read_text().splitlines() if told.exists() else []
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")
    parts = (name, f"{os.cpu_count()} CPU cores", platform.machine())
    return ", ".join(filter(None, (*parts, torch.backends.cpu.get_cpu_capability())))


def table(rows: list[Row], peak: float) -> str:
    """One line per competitor, the fastest first; the ratio is its time divided by ours."""
    lines = []
    for row in sorted(rows, key=lambda row: row.ratio):
        name = {"peer": "", "ours": ""}.get(row.role, f" ({row.role})")
        cells = [
            f"  {row.name + name:<40}",
            f"{row.ratio:7.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]",
            f"{1e3 * row.seconds:10.2f} ms",
            f"{row.work / row.seconds:9,.0f} tok/s" if row.work else "",
            f"{100 * row.flops / row.seconds / peak:4.0f} % of peak" if row.flops else "",
            f"{row.peak_bytes / 2**20:7,.1f} MiB" if row.peak_bytes else "",
            f"{row.parameters / 1e6:6.2f} M" if row.parameters else "",
        ]
        lines.append("  ".join(filter(None, cells)))
    return "\n".join(lines)


def write(report: dict[str, Any], target: Path) -> None:
    """Write the report atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(target)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--suite", choices=SUITES, action="append", help="run only this suite; may be repeated"
    )
    parser.add_argument(
        "--rounds", type=int, default=25, help="largest number of rounds (default: 25)"
    )
    parser.add_argument(
        "--budget", type=float, default=1.0, help="factor on the seconds of each suite (default: 1)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="CPU threads (default: at most 2)",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    parser.add_argument("--dtype", default="fp32", choices=PRECISIONS, help="default: fp32")
    parser.add_argument(
        "--compile", action="store_true", help="compile the trained models with torch.compile"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the order in each round (default: 0)"
    )
    parser.add_argument(
        "--json", type=Path,
        help="file for the rows (default: results/bench-DEVICE.json if all suites run, else none)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    dtype = PRECISIONS[options.dtype]
    setting = Setting(device=options.device, dtype=dtype, compile=options.compile)
    device, peaks = torch.device(options.device), []
    began = time.perf_counter()
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for suite in options.suite or SUITES:
        peaks.append(measured_peak(device, options.dtype))
        made = importlib.import_module(f"benchmarks.{suite}").cases(setting)
        budget = SUITES[suite] * options.budget
        pace = {"rounds": options.rounds, "budget": budget, "seed": options.seed}
        for case, found, why in run_suite(made, **pace):
            print(f"\n{case.suite}: {case.name} ({found[0].rounds} rounds)", flush=True)
            print(table(found, max(peak.flops for peak in peaks)), flush=True)
            rows += found
            for name, reason in why.items():
                missing[f"{case.suite}: {case.name}: {name}"] = reason
                print(f"  {name} is missing: {reason}", flush=True)
    print(
        "\nTime of the fastest peer divided by ours, losing cases first (above 1, ours is faster):"
    )
    for ratio, suite, case, peer in standing(rows):
        print(f"  {ratio:6.3f}  {suite}: {case}; against {peer}")
    name = f"bench-{options.device}{'-compiled' if options.compile else ''}.json"
    target = options.json or (None if options.suite else ROOT / "results" / name)
    if target is None:
        return
    report = {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "hardware": hardware(options.device),
        "device": options.device,
        "dtype": options.dtype,
        "compiled": options.compile,
        "threads": options.threads,
        "versions": versions(),
        "seed": options.seed,
        "seconds": round(time.perf_counter() - began),
        "peak_flops": max(peak.flops for peak in peaks),
        "peak_bandwidth": max(peak.bandwidth for peak in peaks),
        "missing": missing,
        "rows": as_dicts(rows),
    }
    write(report, target)
    print(f"\nwritten to {target}")


if __name__ == "__main__":
    main()
