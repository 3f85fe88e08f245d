"""What `make` does, step by step; `make help` lists the targets.

Only the standard library is imported, because `install` runs before there is an environment.
Everything that is made goes to out/:

    out/executed/   each chapter with its outputs, and the key of what it was computed from
    out/book/       the sources that the site is built from: the checkout, with executed chapters
    out/site/       the site
    out/logs/       the whole output of every step
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OUT = ROOT / "out"
BIN = ROOT / ".venv" / "bin"
KERNEL_LOST = re.compile(r"DeadKernel|Kernel died|Kernel didn't respond|Address already in use")
WARN_SECONDS, FAIL_SECONDS = 60, 120  # a chapter should take less, and must take less

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # two notebooks, or two test workers, share two cores
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",  # a chapter that needs the network fails here, not at the reader's
    "PYTHONHASHSEED": "0",
    "XDG_CONFIG_HOME": str(OUT / "no-config"),  # nbdev would read a personal config from there
    "PYTHONDONTWRITEBYTECODE": "1",
}
SOURCES = (  # what the site is built from, beside the installed library
    "_config.yml", "_toc.yml", "index.md", "chapters", "results", "_ext", "_static",
)  # fmt: skip


class StepFailed(Exception):
    """A step did not pass; the message says what to look at."""


# Running things and telling about them


def shell(log, *command, env=None, cwd=ROOT):
    """Run a command, keep its output in out/logs, and return (exit status, output)."""
    (OUT / "logs").mkdir(parents=True, exist_ok=True)
    (OUT / "no-config").mkdir(exist_ok=True)
    full = {
        **os.environ,
        **ENVIRONMENT,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        **(env or {}),
    }
    full.pop("MPLBACKEND", None)  # notebooks choose the inline backend themselves
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=full,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with (OUT / "logs" / f"{log}.log").open("a") as file:
        file.write(f"$ {' '.join(str(c) for c in command)}\n{done.stdout}\n")
    return done.returncode, done.stdout


def must(log, *command, **options):
    """Run a command that has to succeed, and return its output."""
    status, output = shell(log, *command, **options)
    if status:
        raise StepFailed(output.strip())
    return output


def clock(seconds):
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def step(name, action, *arguments):
    """Do one step; print its name before, its verdict and time after; return them."""
    print(f"{name:<44}", end="", flush=True)
    start = time.perf_counter()
    try:
        note, failure = action(*arguments), None
    except StepFailed as error:
        note, failure = None, str(error)
    except Exception:  # a step that breaks does not keep the others from being tried
        note, failure = None, traceback.format_exc()
    seconds = time.perf_counter() - start
    print(f" {'FAILED' if failure is not None else 'ok':<6} {clock(seconds):>12}", flush=True)
    for text in (note, failure):
        if text:
            text = re.sub(r"\x1b\[[0-9;]*m", "", text)
            indent = "" if text.startswith("===") else "    "  # pytest's closing line as it is
            print("\n".join(indent + line for line in text.splitlines()), flush=True)
    return name, failure is None, seconds


# The files of the checkout, and keys of their content


def checkout(*below):
    """The files that git has, or would add, as paths relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *below]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise StepFailed(
            "the steps ask git which files belong to the book: run them in a git checkout"
        )
    return sorted({f for f in done.stdout.split("\0") if f and (ROOT / f).is_file()})


def digest(*parts):
    total = hashlib.sha256()
    for part in parts:
        total.update(
            hashlib.sha256(part if isinstance(part, bytes) else str(part).encode()).digest()
        )
    return total.hexdigest()


def files_digest(files):
    return digest(*(part for f in files for part in (f, (ROOT / f).read_bytes())))


def execution_key(notebook):
    """Equal keys mean equal outputs: of the same notebook, library, results and packages."""
    installed = sorted(f"{d.name}=={d.version}" for d in importlib.metadata.distributions())
    text = (ROOT / notebook).read_text(encoding="utf-8")
    shown = checkout("results") if ".json" in text else []  # only some chapters plot a stored run
    shared = files_digest([*checkout("transformer_lib"), *shown])
    settings = {k: v for k, v in ENVIRONMENT.items() if k != "XDG_CONFIG_HOME"}
    if "multi30k" in text:  # shown where it is there
        settings["corpora"] = os.environ.get("TRANSFORMER_LIB_DATA", "")
    return digest(text, shared, installed, settings, sys.version)


def mirror(contents, folder):
    """Make `folder` hold exactly these files; Sphinx skips those whose dates stay."""
    for old in [p for p in folder.rglob("*") if p.is_file()] if folder.is_dir() else []:
        if old.relative_to(folder).as_posix() not in contents:
            old.unlink()
    for name, data in contents.items():
        target = folder / name
        if not target.is_file() or target.read_bytes() != data:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


# Install


def install():
    """Create .venv and install the book's environment from constraints.txt."""
    if sys.version_info < (3, 11):  # noqa: UP036  (this runs in whatever python3 is)
        sys.exit(
            f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}: "
            "name another one, `make PYTHON=python3.12 book`"
        )
    python = BIN / "python"

    def environment():
        if python.exists():
            return f"reusing .venv, Python {must('install', python, '-V').split()[1]}"
        must("install", sys.executable, "-m", "venv", ROOT / ".venv")
        return f".venv, Python {sys.version.split()[0]}"

    def packages():
        must("install", python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "-c", "constraints.txt", "-e", ".[chapters,book,test]")  # fmt: skip
        (ROOT / ".venv" / "installed").touch()

    report([step("environment", environment)])
    report([step("packages, as constraints.txt pins them", packages)])


# Chapters


def record(notebook):
    """What is known of a chapter's last execution: key, seconds, was the machine busy."""
    file = (OUT / "executed" / Path(notebook).name).with_suffix(".json")
    nothing = {"key": None, "seconds": 0.0, "busy": False}
    return json.loads(file.read_text()) if file.exists() else nothing


def keep(executed, **entry):
    shutil.copy(executed, OUT / "executed" / executed.name)
    (OUT / "executed" / executed.name).with_suffix(".json").write_text(json.dumps(entry))


def execute(only=None, folder=OUT / "book"):
    """Execute each notebook that changed, once, in a copy of the book's sources."""
    kept = OUT / "executed"
    kept.mkdir(parents=True, exist_ok=True)
    sources = checkout(*SOURCES)
    contents = {f: (ROOT / f).read_bytes() for f in sources}
    notebooks = [f for f in sources if re.fullmatch(r"chapters/[^/]+\.ipynb", f)]
    keys = {f: execution_key(f) for f in notebooks}
    wanted = notebooks if only is None else only
    stale = [f for f in wanted if record(f)["key"] != keys[f]]
    for f in set(notebooks) - set(stale):
        if (kept / Path(f).name).exists():  # a preview takes the other chapters as they last were
            contents[f] = (kept / Path(f).name).read_bytes()
    mirror(contents, folder)

    # The later a chapter, the more it trains: long ones first, so that two workers end together.
    queue = sorted(stale, key=lambda f: (f.split("/")[1][0].isdigit(), f), reverse=True)
    passed, failed, output = nbmake(folder, queue)
    lost = [f for f in failed if KERNEL_LOST.search(failed[f])]
    if lost:  # two kernels may reach for one port: these once more
        again, failed_again, output = nbmake(folder, lost)
        passed |= again
        failed = {f: failed[f] for f in failed if f not in lost} | failed_again
    busy = os.getloadavg()[1] > os.cpu_count() + 1
    for f, seconds in passed.items():
        keep(folder / f, key=keys[f], seconds=seconds, busy=busy)

    lines, late = [], []
    for f in wanted:
        r = record(f)
        if r["key"] != keys[f]:
            continue
        words = [] if f in stale else ["unchanged"]
        words += [f"over {WARN_SECONDS} s"] if r["seconds"] > WARN_SECONDS else []
        if r["seconds"] > FAIL_SECONDS and r["busy"]:
            words.append("not judged, the machine was busy with other things as well")
        elif r["seconds"] > FAIL_SECONDS:
            late.append(f"{f} takes {r['seconds']:.0f} s; the limit is {FAIL_SECONDS} s")
        lines.append(f"{Path(f).stem:<20} {r['seconds']:>7.1f} s  {', '.join(words)}".rstrip())
    if failed or late or len(lines) < len(wanted):
        raise StepFailed("\n".join([*lines, output, *late]))
    return "\n".join(lines)


def nbmake(folder, notebooks):
    """Run notebooks in place: seconds of those that passed, why others failed, the output."""
    if not notebooks:
        return {}, {}, ""
    report = OUT / "nbmake.xml"
    report.unlink(missing_ok=True)
    status, output = shell(
        "notebooks", BIN / "python", "-m", "pytest", "--nbmake", "--overwrite",
        "-n", min(2, len(notebooks)), "--nbmake-timeout=120", "--nbmake-kernel=python3",
        f"--junitxml={report}", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={folder}",
        *(folder / f for f in notebooks), cwd=folder,
    )  # fmt: skip
    passed, failed = {}, {}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        notebook = f"chapters/{case.get('name')}"
        problems = [*case.iter("failure"), *case.iter("error")]
        if problems:
            failed[notebook] = "".join((p.get("message") or "") + (p.text or "") for p in problems)
        else:
            passed[notebook] = float(case.get("time", 0))
    return passed, failed, "\n".join(output.strip().splitlines()[-60:]) if status else ""


# The site


def build():
    """Build out/site from out/book, warnings as errors; nothing to do where nothing changed."""
    book = OUT / "book"
    files = sorted(p for p in book.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    library = files_digest(checkout("transformer_lib"))
    key = digest(library, *(part for p in files for part in (p.relative_to(book), p.read_bytes())))
    stamp = OUT / "site.key"
    if stamp.exists() and stamp.read_text() == key and (OUT / "site" / "index.html").exists():
        return "unchanged"
    stamp.unlink(missing_ok=True)
    for folder in (OUT / "build", OUT / "site"):
        shutil.rmtree(folder, ignore_errors=True)
    status, output = shell(
        "book",
        BIN / "jupyter-book",
        "build",
        book,
        "--path-output",
        OUT / "build",
        "-W",
        "-n",
        "--keep-going",
    )
    if status:
        raise StepFailed(complaints(output))
    shutil.move(OUT / "build" / "_build" / "html", OUT / "site")
    (OUT / "site" / ".nojekyll").touch()
    stamp.write_text(key)
    return f"{sum('_static' not in page.parts for page in (OUT / 'site').rglob('*.html'))} pages"


def complaints(output):
    """Sphinx's warnings and errors, without the machine's paths."""
    plain = (
        re.sub(r"\x1b\[[0-9;]*m", "", output)
        .replace(f"{OUT / 'book'}/", "")
        .replace(f"{ROOT}/", "")
    )
    lines = [
        line for line in plain.splitlines() if re.search(r"WARNING|ERROR|SEVERE|Exception", line)
    ]
    return "\n".join(dict.fromkeys(lines)) or "\n".join(plain.strip().splitlines()[-30:])


# Checks


def in_sync():
    """Export and clean a copy: the checkout must already be what comes out."""
    contents = {
        f: (ROOT / f).read_bytes()
        for f in checkout("chapters", "transformer_lib", "pyproject.toml", "README.md")
    }
    copy = OUT / "sync"
    shutil.rmtree(copy, ignore_errors=True)
    mirror(contents, copy)
    write_library("in-sync", copy)
    after = {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    after = {f: data for f, data in after.items() if "__pycache__" not in f}
    different = sorted(f for f in contents.keys() | after.keys() if contents.get(f) != after.get(f))
    if different:
        raise StepFailed(
            "run `make export`; it would change\n" + "\n".join(f"  {f}" for f in different)
        )


def write_library(log, folder):
    """nbdev's export and clean, and no outputs, in `folder`."""
    notebooks = sorted(str(p) for p in (folder / "chapters").glob("*.ipynb"))
    must(log, BIN / "nbdev-export", cwd=folder)
    must(log, BIN / "nbdev-clean", cwd=folder)
    if notebooks:
        must(
            log,
            BIN / "nbstripout",
            "--keep-id",
            "--extra-keys",
            "metadata.language_info",
            *notebooks,
            cwd=folder,
        )


def style():
    must(
        "style",
        BIN / "ruff",
        "check",
        "--quiet",
        "--output-format=concise",
        "transformer_lib",
        "tests",
        "benchmarks",
        "chapters",
        "_ext",
        "tasks.py",
    )


def spelling():
    text = [
        f
        for f in checkout()
        if f.endswith((".md", ".ipynb", ".py", ".toml", ".yml", ".cff")) and f != "constraints.txt"
    ]
    must("spelling", BIN / "codespell", *text)


def types():
    must("types", BIN / "mypy")


def pytest(log, *arguments, env=None):
    """Run pytest; its closing line is the note."""
    (OUT / "logs").mkdir(parents=True, exist_ok=True)
    status, output = shell(
        log,
        BIN / "python",
        "-m",
        "pytest",
        "--timeout=120",
        "-rs",
        "-p",
        "no:cacheprovider",
        *arguments,
        env=env,
    )
    lines = output.splitlines()
    closing = next((line for line in reversed(lines) if line.startswith("=")), "")
    skipped = [line for line in lines if line.startswith("SKIPPED")]  # nothing is skipped unseen
    if status:
        shown = output[output.find("= FAILURES =") :] if "= FAILURES =" in output else output
        raise StepFailed("\n".join(shown.strip().splitlines()[-150:]))
    return "\n".join([closing, *skipped])


# Every test in one of two disjoint runs: with signatures enforced, and, for tests that break them
# on purpose, without.
UNIT = ("tests", "--ignore=tests/test_site.py", "-n", "2", "--no-header")


def typed():
    return pytest(
        "unit",
        *UNIT,
        "-m",
        "not bad_input and not plain",
        "--jaxtyping-packages=transformer_lib,beartype.beartype",
    )


def bad_input():
    return pytest("bad-input", *UNIT, "-m", "bad_input or plain")


def pages():
    return pytest("pages", "tests/test_site.py", "-n", "2", "--no-header")


# The targets


def report(rows, summary=False):
    """Print the summary, and leave with an error if a step failed."""
    if summary:
        print("\n" + "-" * 64)
        for name, passed, seconds in rows:
            print(f"{name:<44} {'ok' if passed else 'FAILED':<6} {clock(seconds):>12}")
        print("-" * 64)
        failed = sum(not passed for _, passed, _ in rows)
        verdict = f"{failed} of {len(rows)} steps FAILED" if failed else "all steps passed"
        print(f"{verdict:<51} {clock(sum(seconds for _, _, seconds in rows)):>12}")
        if failed:
            print("the whole output of each step is in out/logs/")
    if not all(passed for _, passed, _ in rows):
        sys.exit(1)


def make_site():
    """The steps that lead to the site; the second waits for the first to pass."""
    rows = [step("chapters, executed", execute)]
    if rows[0][1]:
        rows.append(step("site, warnings as errors", build))
    return rows


def checks():
    return [
        step("export in sync", in_sync),
        step("style (ruff)", style),
        step("spelling (codespell)", spelling),
        step("types (mypy)", types),
    ]


def units():
    return [
        step("unit tests, signatures checked", typed),
        step("unit tests, signatures not checked", bad_input),
    ]


def book():
    report(make_site())
    index = (OUT / "site" / "index.html").relative_to(ROOT)
    print(
        f"\nThe book is in {index.parent}/: open {index},\n"
        "or run `make serve` and open http://localhost:8000/"
    )


def test():
    rows = checks() + units()
    site = make_site()
    if all(passed for _, passed, _ in site):
        site.append(step("built pages", pages))
    report(rows + site, summary=True)


def lint():
    report(checks())


def unit():
    report(units())


def export():
    report([step("transformer_lib, from the chapters", write_library, "export", ROOT)])


def chapter(wanted=""):
    found = [
        f
        for f in checkout("chapters")
        if f.endswith(".ipynb") and Path(f).stem.startswith(wanted or "?")
    ]
    if len(found) != 1:
        sys.exit(f"make chapter N=...: how one file of chapters/ begins, like 04; got {wanted!r}")
    export()
    preview = OUT / "preview"
    report([step(f"{Path(found[0]).stem}, executed", execute, found, preview / "book")])

    def quick():
        status, output = shell(
            "preview", BIN / "jupyter-book", "build", preview / "book", "--path-output", preview
        )
        if status:
            raise StepFailed(complaints(output))
        mine = [line for line in complaints(output).splitlines() if Path(found[0]).stem in line]
        return "\n".join(mine)

    report([step("preview (other chapters may lack outputs)", quick)])
    page = preview / "_build" / "html" / Path(found[0]).with_suffix(".html")
    print(f"open {page.relative_to(ROOT)}")


def format_files():
    written = ("tests", "benchmarks", "_ext", "tasks.py")
    report([step("formatted", must, "format", BIN / "ruff", "format", *written)])


def serve(port="8000"):
    if not (OUT / "site" / "index.html").exists():
        sys.exit("there is no site yet: run `make book` first")
    print(f"http://localhost:{port}/ until you press Ctrl-C")
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(
            [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1", "-d", OUT / "site"]
        )


def mutants():
    sys.exit(subprocess.run([sys.executable, "tests/mutate.py"], cwd=ROOT).returncode)


def bench(*arguments):
    """Measure the library against its peers; those that the environment lacks go into out/peers."""
    peers, wanted = OUT / "peers", ROOT / "benchmarks" / "requirements.txt"
    stamp = peers / "installed.txt"

    def install_peers():
        if stamp.exists() and stamp.read_text() == wanted.read_text():
            return "as they were"
        shutil.rmtree(peers, ignore_errors=True)
        must("peers", BIN / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--target",
             peers, "--disable-pip-version-check", "-r", wanted)  # fmt: skip
        stamp.write_text(wanted.read_text())

    report([step("peers", install_peers)])
    environment = os.environ | {"PYTHONPATH": str(peers)}
    run = [sys.executable, "-m", "benchmarks", *arguments]
    sys.exit(subprocess.run(run, cwd=ROOT, env=environment).returncode)


def gpu(*arguments):
    """Run everything that needs a GPU, or all of it at a tiny size on the CPU."""
    run = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    sys.exit(subprocess.run(run, cwd=ROOT).returncode)


def repository():
    """The address of the repository, from the one place where it is written."""
    import tomllib  # here, because `install` should be able to say that a Python is too old

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def set_repo(url=""):
    """Write another repository address everywhere: links, launch buttons, install cells."""
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url) or url.endswith(".git"):
        sys.exit(f"make set-repo URL=https://github.com/NAME/REPOSITORY, got {url!r}")
    old, new = (address.removeprefix("https://github.com/") for address in (repository(), url))
    changed = 0
    for f in checkout():
        try:
            text = (ROOT / f).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        # also the form github/NAME/REPOSITORY of Colab's links
        other = re.sub(rf"(github(?:\.com)?/){re.escape(old)}(?![\w-])", rf"\g<1>{new}", text)
        if other != text:
            (ROOT / f).write_text(other, encoding="utf-8")
            changed += 1
    print(f"{repository()} is now written in {changed} files")


TARGETS = {
    "install": install, "book": book, "test": test, "lint": lint, "unit": unit, "export": export,
    "chapter": chapter, "format": format_files, "serve": serve, "mutants": mutants,
    "bench": bench, "gpu": gpu, "set-repo": set_repo,
}  # fmt: skip

if __name__ == "__main__":
    os.chdir(ROOT)
    shutil.rmtree(OUT / "logs", ignore_errors=True)
    TARGETS[sys.argv[1]](*sys.argv[2:])
