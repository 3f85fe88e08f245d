"""Ask Lighthouse how good the pages of the site are, on a phone and on a desktop.

python -m benchmarks.lighthouse results/lighthouse.json

`make lighthouse` builds the site, installs Lighthouse into out/browser and runs this. The scores
for performance depend on how busy the machine is, so a page is opened up to three times, until one
run reaches 95, and the best run counts; the other scores are the worst of the runs.
"""

import argparse
import datetime
import functools
import gzip
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.__main__ import commit, hardware, write

ROOT = Path(__file__).resolve().parent.parent
SITE, TOOLS = ROOT / "out" / "site", ROOT / "out" / "browser" / "node_modules"
PAGES = (  # patterns of one page each
    "index.html",
    "chapters/[0-9]_*/*_attention.html",
    "chapters/[0-9]_*/*_gpu.html",
    "chapters/appendix/*_speed.html",
    "chapters/appendix/*_glossary.html",
)
DEVICES = {"mobile": [], "desktop": ["--preset=desktop"]}
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
TEXTS = {".html", ".css", ".js", ".svg", ".json"}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, texts compressed, as GitHub Pages and other hosts send them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if path.suffix not in TEXTS or not path.is_file():
            super().do_GET()
            return
        body = gzip.compress(path.read_bytes())
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=600")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROME_PATH") or next(filter(None, map(shutil.which, names)), None)
    return found or sys.exit("there is no Chromium: install it, or name it in CHROME_PATH")


def version(*command: str) -> str:
    """The number in what a program says of its version."""
    said = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    return next((w for w in said.split() if w.lstrip("v")[:1].isdigit()), "").lstrip("v")


def measure(program: Path, address: str, device: str) -> dict[str, Any]:
    """One run of Lighthouse: its scores, the times behind the first, and what fell short."""
    flags = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-component-update"
    command = [program, address, "--output=json", "--output-path=stdout", "--quiet",
               f"--chrome-flags={flags}", *DEVICES[device]]  # fmt: skip
    environment = {**os.environ, "CHROME_PATH": chromium()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    report = json.loads(done.stdout)
    audits = report["audits"]
    times = {
        "first paint, s": "first-contentful-paint",
        "largest paint, s": "largest-contentful-paint",
        "blocked, s": "total-blocking-time",
    }
    missed = {
        ref["id"]
        for name in CATEGORIES[1:]
        for ref in report["categories"][name]["auditRefs"]
        if ref["weight"] and audits[ref["id"]]["score"] not in (None, 1)
    }
    return {
        **{name: round(100 * report["categories"][name]["score"]) for name in CATEGORIES},
        **{label: round(audits[name]["numericValue"] / 1000, 2) for label, name in times.items()},
        "layout shift": round(audits["cumulative-layout-shift"]["numericValue"], 3),
        "kB": round(audits["total-byte-weight"]["numericValue"] / 1000),
        "missed": sorted(missed),
    }


def summarize(page: str, device: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the best performance, with the worst of the other scores."""
    best = max(runs, key=lambda run: run["performance"])
    worst = {name: min(run[name] for run in runs) for name in CATEGORIES[1:]}
    missed = sorted(set().union(*(run["missed"] for run in runs)))
    tried = [run["performance"] for run in runs]
    return {"page": page, "device": device, **best, **worst, "missed": missed, "tried": tried}


def paths(site: Path) -> list[str]:
    """The pages that are measured, without their endings."""
    found = [path for pattern in PAGES for path in site.glob(pattern)]
    assert len(found) == len(PAGES), found
    return [path.relative_to(site).with_suffix("").as_posix() for path in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--site", type=Path, default=SITE)
    parser.add_argument("--program", type=Path, default=TOOLS / ".bin" / "lighthouse")
    options = parser.parse_args()
    handler = functools.partial(Handler, directory=str(options.site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    partial = options.record.with_suffix(".rows")  # an interrupted run continues from here
    rows = (
        [json.loads(line) for line in partial.read_text().splitlines()] if partial.exists() else []
    )
    done = {(row["page"], row["device"]) for row in rows}
    for page in paths(options.site):
        for device in DEVICES:
            if (page, device) in done:
                continue
            address = f"http://127.0.0.1:{server.server_port}/{page}.html"
            runs = [measure(options.program, address, device)]
            while len(runs) < options.runs and runs[-1]["performance"] < 95:
                runs.append(measure(options.program, address, device))
            rows.append(summarize(page, device, runs))
            with partial.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    server.shutdown()
    record = {
        "command": "python -m benchmarks.lighthouse results/lighthouse.json",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "hardware": hardware("cpu"),
        "versions": {
            "lighthouse": version(str(options.program)),
            "chromium": version(chromium()),
            "node": version("node"),
        },
        "served": "by this program on the same machine, texts compressed with gzip",
        "load": round(os.getloadavg()[2], 1),  # programs that were running, mean of 15 minutes
        "runs": options.runs,
        "rows": rows,
    }
    write(record, options.record)
    partial.unlink()


if __name__ == "__main__":
    main()
