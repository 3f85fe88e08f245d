"""Execute the chapters, build the site, and do the other steps of the Makefile that no tool offers.

`make help` lists the commands. Only the standard library is imported, because `install` runs before
there is an environment. Everything is written below out/:

    out/executed/   each chapter with its outputs, and the key of what they were computed from
    out/book/       the sources of the site: the project with its executed chapters
    out/site/       the site, the project as a zip file, and the EPUB if `make epub` built it
    out/logs/       the output of pip, of each notebook and of Sphinx
"""

import fnmatch
import functools
import hashlib
import http.server
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OUT = ROOT / "out"
BIN = Path(sys.executable).parent
WORKERS = 2
WARN_SECONDS, FAIL_SECONDS = (
    60,
    120,
)  # CPU time of a chapter, so that a busy machine changes nothing
HANG_SECONDS = 1200  # wall-clock time of one cell
KERNEL_LOST = re.compile(r"DeadKernel|Kernel died|Kernel didn't respond|Address already in use")

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # two notebooks run side by side on two cores
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",  # a chapter that needs the network must fail here
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # a notebook needs nbmake, not a second to load the rest
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
SOURCES = (  # what the site is built from, besides the installed library
    "_config.yml", "_toc.yml", "index.md", "chapters", "results", "_ext", "_static",
)  # fmt: skip


def run(log, *command, cwd=ROOT):
    """Run a command with its output in out/logs: (exit status, output, seconds of CPU time)."""
    file = OUT / "logs" / f"{log}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, **ENVIRONMENT, "PATH": path}
    environment.pop("MPLBACKEND", None)  # notebooks choose the inline backend themselves
    with file.open("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return process.returncode, output.read(), used.ru_utime + used.ru_stime


# The files of the project


@functools.cache
def tell(message):
    print(message, file=sys.stderr)


def project_files():
    """The files that git tracks or would add; without git's answer, all but those ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        files, problem = done.stdout.split("\0"), done.stderr.strip()
    except OSError as error:
        files, problem = [], str(error)
    if "Makefile" not in files:  # no answer, or a repository around this folder that ignores it
        problem = problem or "it ignores this folder"
        tell(f"git cannot list the files of the project, so all are used. git: {problem}")
        files = walk()
    return sorted({f for f in files if f and (ROOT / f).is_file()})


def walk():
    """Every file below the root, except environments, outputs and caches."""
    ignored = [".git", ".venv", "out"]
    if (ROOT / ".gitignore").exists():
        ignored += [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    for folder, below, names in os.walk(ROOT):
        below[:] = [n for n in below if not any(fnmatch.fnmatch(n, i) for i in ignored)]
        yield from ((Path(folder) / name).relative_to(ROOT).as_posix() for name in names)


def select(files, *places):
    """Those of the files that are, or lie below, one of the places."""
    return [f for f in files if f.startswith(tuple(f"{p}/" for p in places)) or f in places]


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hashes(files, folder=None):
    return {f: hashlib.sha256(((folder or ROOT) / f).read_bytes()).hexdigest() for f in files}


# Install


def install(folder=".venv", constraints="constraints.txt"):
    """Create an environment, unless a working one is there, and install what the book needs."""
    python = ROOT / folder / "bin" / "python"
    broken = True
    if python.exists():
        check = [python, "-m", "pip", "--version"]
        broken = subprocess.run(check, capture_output=True).returncode != 0
    if broken:
        print(f"creating {folder} with Python {sys.version.split()[0]}", flush=True)
        status, output, _ = run("venv", sys.executable, "-m", "venv", "--clear", ROOT / folder)
        if status:
            advice = "install the system's package for venv (Debian and Ubuntu: python3-venv)"
            sys.exit(f"{output.strip()}\n\ncannot create {folder}: {advice}, then try again")
    print(f"installing packages into {folder}, pinned by {constraints}: minutes", flush=True)
    status, output, _ = run(
        "install", python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile",
        "-c", constraints, "-e", ".[chapters,book,test]",
    )  # fmt: skip
    if status:
        tail = "\n".join(output.strip().splitlines()[-25:])
        sys.exit(f"{tail}\n\ncannot install: the whole output is in out/logs/install.log")
    # pip would compile one file after the other, and the tests of every package, too.
    compiled = [python, "-m", "compileall", "-q", "-j", "0", "-x", r"[/\\]tests?[/\\]"]
    packages = sorted((ROOT / folder / "lib").glob("python3*/site-packages"))
    run("compile", *compiled, *packages)  # a file that it refuses is not one that Python runs
    (ROOT / folder / "installed").touch()


def constraints(kind):
    """Print constraints for pip: the oldest releases that the library allows, or Colab's."""
    if kind == "colab":
        lines = (ROOT / "tests" / "colab-2026.08.txt").read_text().splitlines()
        pins = [line for line in lines if "==" in line and not line.startswith("python==")]
    else:
        import tomllib  # here, because `main` must be able to say that a Python is too old

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        pins = [text.replace(">=", "==") for text in project["dependencies"]]
    print("\n".join(pins))


# Chapters


def notebooks():
    return [f for f in select(project_files(), "chapters") if f.endswith(".ipynb")]


def execution_keys(chosen):
    """Equal keys mean equal outputs: the same notebook, library, results and packages."""
    files = project_files()
    library, results = (hashes(select(files, f)) for f in ("transformer_lib", "results"))
    packages = sorted(f"{d.name}=={d.version}" for d in importlib.metadata.distributions())
    keys = {}
    for f in chosen:
        text = (ROOT / f).read_text(encoding="utf-8")
        shown = results if ".json" in text else {}  # only some chapters plot a recorded run
        corpora = os.environ.get("TRANSFORMER_LIB_DATA", "") if "multi30k" in text else ""
        keys[f] = digest([text, library, shown, packages, ENVIRONMENT, corpora, sys.version])
    return keys


def record(notebook):
    """What is known about the last execution of a chapter: its key and its CPU time."""
    file = OUT / "executed" / f"{notebook}.json"
    return json.loads(file.read_text()) if file.exists() else {"key": None, "seconds": 0.0}


def execute(chosen=None, folder=OUT / "book"):
    """Execute each notebook whose key changed, once, in a copy of the book's sources."""
    every = notebooks()
    chosen = every if chosen is None else chosen
    keys = execution_keys(chosen)
    stale = [f for f in chosen if record(f)["key"] != keys[f]]
    shutil.rmtree(folder, ignore_errors=True)
    for f in select(project_files(), *SOURCES):
        kept = OUT / "executed" / f
        (folder / f).parent.mkdir(parents=True, exist_ok=True)
        fresh = f in every and f not in stale and kept.exists()
        shutil.copyfile(kept if fresh else ROOT / f, folder / f)
    # The longest first, so that the workers end together; a later chapter is usually longer.
    stale = sorted(sorted(stale, reverse=True), key=lambda f: -record(f)["seconds"])
    with ThreadPoolExecutor(WORKERS) as pool:
        failed = [problem for problem in pool.map(functools.partial(
            execute_one, folder, keys), stale) if problem]  # fmt: skip
    for f in chosen:
        if record(f)["key"] == keys[f] and record(f)["seconds"] > FAIL_SECONDS:
            used = f"{record(f)['seconds']:.0f} s of CPU time"
            failed.append(f"{f} takes {used}, the limit is {FAIL_SECONDS} s")
    if failed:
        sys.exit("\n".join(failed))
    print(f"{len(stale)} chapters executed, {len(chosen) - len(stale)} unchanged", flush=True)


def execute_one(folder, keys, notebook):
    """Run one notebook in place and keep its outputs; what to say if it fails."""
    command = [
        BIN / "python", "-m", "pytest", "-p", "nbmake.pytest_plugin", "--nbmake", "--overwrite",
        f"--nbmake-timeout={HANG_SECONDS}", "--nbmake-kernel=python3", "-p", "no:cacheprovider",
        "-c", os.devnull, f"--rootdir={folder}", folder / notebook,
    ]  # fmt: skip
    name = Path(notebook).relative_to("chapters").with_suffix("").as_posix()
    for _ in range(2):
        status, output, seconds = run(f"notebooks/{name}", *command, cwd=folder)
        if not status or not KERNEL_LOST.search(output):  # two kernels can want the same port
            break
    slow = f", more than {WARN_SECONDS} s" if seconds > WARN_SECONDS else ""
    print(f"{name:<40} {'FAILED' if status else 'ok':<6} {seconds:6.1f} s{slow}", flush=True)
    if status:
        return "\n".join(output.strip().splitlines()[-60:])
    kept = OUT / "executed" / notebook
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / notebook, kept)
    Path(f"{kept}.json").write_text(json.dumps({"key": keys[notebook], "seconds": seconds}))


# The site


def complaints(output):
    """Sphinx's warnings and errors, without the paths of this machine."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    plain = plain.replace(f"{OUT / 'book'}/", "").replace(f"{ROOT}/", "")
    lines = [line for line in plain.splitlines() if re.search(r"WARNING|ERROR|SEVERE|Exc", line)]
    return "\n".join(dict.fromkeys(lines)) or "\n".join(plain.strip().splitlines()[-30:])


SOURCE = "executable-transformer.zip"  # which the first page of the site offers


def book():
    """Execute what changed and build out/site with warnings as errors, if its sources changed."""
    execute()
    sources, site, stamp = OUT / "book", OUT / "site", OUT / "site.key"
    files = [p.relative_to(sources).as_posix() for p in sorted(sources.rglob("*")) if p.is_file()]
    library = hashes(select(project_files(), "transformer_lib"))
    key = digest([library, hashes(files, sources)])
    if not (stamp.exists() and stamp.read_text() == key and (site / "index.html").exists()):
        stamp.unlink(missing_ok=True)
        for folder in (OUT / "build", site):
            shutil.rmtree(folder, ignore_errors=True)
        command = [BIN / "jupyter-book", "build", sources, "--path-output", OUT / "build"]
        status, output, _ = run("book", *command, "-W", "-n", "--keep-going")
        if status:
            sys.exit(complaints(output))
        shutil.move(OUT / "build" / "_build" / "html", site)
        (site / ".nojekyll").touch()
        stamp.write_text(key)
    with zipfile.ZipFile(site / SOURCE, "w", zipfile.ZIP_DEFLATED) as packed:
        for f in project_files():
            packed.write(ROOT / f, f"{Path(SOURCE).stem}/{f}")
    print("\nThe book is in out/site: open out/site/index.html,")
    print("or run `make serve` and open http://localhost:8000/")


EPUB = "executable-transformer.epub"
NO_EPUB = "<!-- epub -->"  # where index.md will name the EPUB


def epub():
    """Build the book, and the same pages as one file for readers of EPUBs."""
    book()
    folder, target = OUT / "build" / "_build", OUT / "site" / EPUB
    command = [BIN / "jupyter-book", "build", OUT / "book", "--path-output", OUT / "build"]
    command += ["--builder", "custom", "--custom-builder", "epub"]
    status, output, _ = run("epub", *command, "-W", "-n", "--keep-going")
    if status:
        sys.exit(complaints(output))
    (built,) = (folder / "epub").glob("*.epub")
    shutil.copyfile(built, target)
    index = OUT / "site" / "index.html"
    size = f"{target.stat().st_size / 1e6:.0f} MB"
    link = f'<p><a href="{EPUB}" download>The book as an EPUB</a>, {size}, to read offline.</p>'
    text = index.read_text(encoding="utf-8").replace(NO_EPUB, link)
    index.write_text(text, encoding="utf-8")
    print(f"The EPUB is out/site/{EPUB}; the first page of the site links to it")


def find_chapter(wanted):
    """The one notebook of that number (1.3), name (attention) or beginning of a path."""
    every = notebooks()
    numbers = {
        f: ".".join(re.findall(r"(?:^|/)(\d+)_", f.removeprefix("chapters/"))) for f in every
    }
    names = {f: re.sub(r"^(\d+|[a-z])_", "", Path(f).stem) for f in every}
    begins = [f for f in every if f.startswith(f"chapters/{wanted}") or
              Path(f).stem.startswith(wanted)]  # fmt: skip
    exact = [f for f in every if wanted in (numbers[f], names[f], Path(f).stem)]
    found = exact if len(exact) == 1 else begins
    if not wanted or len(found) != 1:
        several = "".join(f"\n  {f}" for f in (found if wanted else every)) or "\n  none"
        sys.exit(
            f"make chapter N=NAME: N must name one chapter, got {wanted!r}, which names{several}"
        )
    return found[0]


def chapter(wanted=""):
    """Execute one chapter and build a preview of its page."""
    found, preview = find_chapter(wanted), OUT / "preview"
    execute([found], preview / "book")
    command = [BIN / "jupyter-book", "build", preview / "book", "--path-output", preview]
    status, output, _ = run("preview", *command)
    if status:
        sys.exit(complaints(output))
    print("\n".join(line for line in complaints(output).splitlines() if Path(found).stem in line))
    page = preview / "_build" / "html" / Path(found).with_suffix(".html")
    print(f"open {page.relative_to(ROOT)} (other chapters may lack their outputs)")


def serve(port="8000"):
    """Serve out/site on this machine until Ctrl-C."""
    if not (OUT / "site" / "index.html").exists():
        sys.exit("there is no site yet: run `make book` first")
    if not port.isdigit() or not 0 < int(port) < 65536:
        sys.exit(f"make serve: PORT must be a number from 1 to 65535, got {port!r}")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=OUT / "site")
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), handler)
    except OSError as error:
        sys.exit(f"cannot serve on port {port}: {error.strerror}; try another, PORT=8080")
    print(f"http://localhost:{port}/ until you press Ctrl-C", flush=True)
    server.serve_forever()


# The repository's address


def set_repo(url=""):
    """Write another repository address everywhere: links, launch buttons, install cells."""
    import tomllib

    target = url.rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", target):
        form = "https://github.com/NAME/REPOSITORY, the form that Colab's links need"
        sys.exit(f"make set-repo: URL must have the form {form}, got {url!r}")
    text = (ROOT / "pyproject.toml").read_text()
    address = tomllib.loads(text)["project"]["urls"]["Repository"]
    old, new = (a.removeprefix("https://github.com/") for a in (address, target))
    changed = 0
    for f in project_files():
        try:
            text = (ROOT / f).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        # also the form github/NAME/REPOSITORY of Colab's links
        other = re.sub(rf"(github(?:\.com)?/){re.escape(old)}(?![\w-])", rf"\g<1>{new}", text)
        if other != text:
            (ROOT / f).write_text(other, encoding="utf-8")
            changed += 1
    installed = ROOT / ".venv" / "installed"
    if installed.exists():  # an address is no reason to install again
        installed.touch()
    print(f"{target} is now written in {changed} files")


COMMANDS = {
    "install": install, "constraints": constraints, "book": book, "epub": epub, "chapter": chapter,
    "serve": serve, "set-repo": set_repo,
}  # fmt: skip


def main(command, *arguments):
    if sys.version_info < (3, 11):  # noqa: UP036  (this runs in whatever python3 is)
        sys.exit(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: "
            "name another one, for example `make PYTHON=python3.12 book`"
        )
    try:
        COMMANDS[command](*arguments)
    except KeyboardInterrupt:
        os.write(2, b"\ninterrupted; the same command continues\n")
        os._exit(130)  # without waiting for the other worker


if __name__ == "__main__":
    main(*sys.argv[1:])
