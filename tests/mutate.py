"""Put small faults (mutants) into the library, one at a time; the tests must notice each.

    make mutants                        the modules that changed since their last result
    .venv/bin/python tests/mutate.py scores losses      these two modules in any case
    .venv/bin/python tests/mutate.py --sample 4 --workers 1 trainer

A core module has mutants written by hand in tests/mutants/MODULE.py: (what is broken, old text,
new text), where the old text occurs once in the module. Every other module gets a fixed sample of
the mutations of tests/mutations.py.

The tests of the module run first. If they pass, all tests of every file that uses the module run,
with signatures enforced and without, as `make unit` runs them. Limits count CPU time, so a busy
machine kills no mutant. A run that takes too long by the clock, or fails by a test's own time
limit, is undecided and does not count as killed.

The result of each module is written into results/mutants.json at once, with the hash of the
module, its tests and its mutants, so a stopped run continues where it was, and a result whose files
have changed is removed. tests/mutants/equivalent.toml explains, by key, each generated mutant that
no test can notice. The exit status is 1 if any other survives.

mutmut and cosmic-ray are not used; CONTRIBUTING.md says why.
"""

import argparse
import ast
import datetime
import hashlib
import json
import multiprocessing
import os
import platform
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from mutations import sample

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "mutants.json"
SAMPLE = 15
CLOCK_SECONDS = 1800  # of all tests of a stage; only ends a hang
FORK = multiprocessing.get_context("fork")  # a child starts with torch and pytest in memory
OUT_OF_TIME = re.compile(r"from pytest-timeout|TimeoutExpired|TimeoutError")


@dataclass(frozen=True)
class Mutant:
    what: str
    source: str  # of the whole module
    key: str = ""
    diff: tuple = ()


def core():
    """The modules that have mutants of their own."""
    return {path.stem for path in (ROOT / "tests" / "mutants").glob("*.py")}


def modules():
    files = (ROOT / "transformer_lib").glob("*.py")
    return sorted(f.stem for f in files if f.stem not in ("__init__", "_modidx"))


def source_of(module):
    return (ROOT / "transformer_lib" / f"{module}.py").read_text()


def named(module):
    """The mutants in tests/mutants/MODULE.py, as (what is broken, old text, new text)."""
    return runpy.run_path(str(ROOT / "tests" / "mutants" / f"{module}.py"))["MUTANTS"]


def mutants(module, n):
    source = source_of(module)
    if module not in core():
        for m in sample(source, n):
            place = f" in {m.function}" if m.function else ""
            yield Mutant(m.kind + place, m.apply(source), m.key, tuple(m.diff(source)))
        return
    for what, old, new in named(module):
        if source.count(old) != 1:
            raise ValueError(f"{module}: must occur once, occurs {source.count(old)} times: {old}")
        diff = (*(f"-{line}" for line in old.splitlines()), *(f"+{x}" for x in new.splitlines()))
        yield Mutant(what, source.replace(old, new), diff=diff)


def equivalent():
    """Why no test can notice a generated mutant: {its key: the reason}."""
    return tomllib.loads((ROOT / "tests" / "mutants" / "equivalent.toml").read_text())


def own_tests(module):
    return f"tests/test_{module.strip('_')}.py"


def imported(path, public):
    """The modules of the library that a file imports, or imports a public name of."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformer_lib."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "transformer_lib":
            yield from (public.get(name.name, name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("transformer_lib."):
                    yield name.name.split(".")[1]


def tests_using(module):
    """The module's own tests, then those of each file that uses it or runs a file that does."""
    stub = ast.parse((ROOT / "transformer_lib" / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom) and node.module]
    public = {name.name: node.module for node in imports for name in node.names}
    files = sorted((ROOT / "tests").glob("*.py"))
    using = {f for f in files if module in imported(f, public)}
    helpers = {f.stem for f in using if not f.stem.startswith("test_")}
    found = [own_tests(module)]
    for f in files:
        runs_one = helpers & set(re.findall(r"\w+", f.read_text()))
        if (
            f.stem.startswith("test_")
            and f"tests/{f.name}" not in found
            and (f in using or runs_one)
        ):
            found.append(f"tests/{f.name}")
    return found


def fingerprint(module, n):
    """The hash of the files that decide a module's result, without the modules that it uses."""
    names = [f"transformer_lib/{module}.py", own_tests(module)]
    names += [f"tests/mutants/{module}.py"] if module in core() else ["tests/mutations.py"]
    parts = [(ROOT / name).read_bytes() for name in names if (ROOT / name).exists()]
    return hashlib.sha256(b"\0".join([*parts, str(n).encode()])).hexdigest()


# One run of tests


def preload():
    """Import once what every run needs: none of our modules, and no plugin that pytest rewrites."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    import beartype  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import pytest  # noqa: F401
    import seaborn  # noqa: F401
    import torch

    torch.set_num_threads(1)


def copy_project(folder, module=None, source=None):
    """Copy the project into `folder`, with another source of one module."""
    for path in ROOT.iterdir():
        if path.name in ("tests", "transformer_lib"):
            shutil.copytree(path, folder / path.name,
                            ignore=shutil.ignore_patterns("__pycache__", "weights"))  # fmt: skip
        elif path.name not in (".git", ".venv", "out"):
            (folder / path.name).symlink_to(path)
    (folder / "transformer_lib" / "weights").symlink_to(ROOT / "transformer_lib" / "weights")
    if module:
        (folder / "transformer_lib" / f"{module}.py").write_text(source)


def child(folder, arguments, cpu_seconds):
    """Run pytest on the copy in `folder`; the exit status is pytest's."""
    import pytest

    os.setsid()
    output = (folder / "output").open("w")
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    elsewhere = [p for p in sys.path if not Path(p or ".").resolve().is_relative_to(ROOT)
                 or ".venv" in p]  # fmt: skip
    sys.path[:] = [str(folder), *elsewhere]
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 10))
    status = pytest.main(["-x", "-q", "-rfE", "-p", "no:cacheprovider", *arguments])
    used = sys.modules.get("transformer_lib")  # none, if the mutant cannot be imported
    if used and Path(used.__file__).parent.parent != folder:
        status = 99
    print(f"\ncpu seconds {time.process_time():.1f}", flush=True)
    os._exit(int(status))


def run_tests(folder, arguments, cpu_seconds, clock_seconds=CLOCK_SECONDS):
    """(verdict, by what, the output): the verdict is alive, killed or undecided."""
    folder = Path(folder).resolve()
    process = FORK.Process(target=child, args=(folder, arguments, cpu_seconds))
    process.start()
    process.join(clock_seconds)
    if hangs := process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    status, output = process.exitcode, (folder / "output").read_text(errors="replace")
    if hangs:
        return "undecided", "the clock", output
    if status in (4, 99):
        reason = {4: "pytest was called wrongly", 99: "the tests imported another library"}[status]
        raise RuntimeError(f"{reason}:\n{output[-2000:]}")
    if status in (0, 5):  # 5: none of the tests is of this kind
        return "alive", "", output
    if status == -signal.SIGXCPU:
        return "killed", "CPU time", output
    if status == -signal.SIGKILL:  # out of memory, or by hand
        return "undecided", "SIGKILL", output
    if status not in (1, 2):
        return "killed", "crash", output
    failed = re.findall(r"^(?:FAILED|ERROR) ([\w/.:]+)", output, re.MULTILINE)
    if OUT_OF_TIME.search(output):
        return "undecided", "a test's clock", output
    return "killed", failed[0] if failed else "import", output


# One mutant

TYPED = "--jaxtyping-packages=transformer_lib,beartype.beartype"
QUICK = ["-m", "not slow"]
SUITE = (  # as `make unit` runs them
    ["-m", "not bad_input and not plain", TYPED],
    ["-m", "bad_input or plain"],
)


def on_copy(arguments, cpu_seconds, module=None, source=None):
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder), module, source)
        return run_tests(folder, arguments, cpu_seconds)


def judge(module, mutant, cpu_seconds):
    """Run its own tests and, if they pass, all tests of all files that use the module."""
    verdict, by, _ = on_copy([own_tests(module), *QUICK], cpu_seconds, module, mutant.source)
    for kind in SUITE if verdict == "alive" else ():
        verdict, by, _ = on_copy([*tests_using(module), *kind], 3600, module, mutant.source)
        if verdict == "killed" and "::" in by:  # unless it fails on the unchanged library, too
            unchanged, *_ = on_copy([by, *kind], 3600)
            verdict = "killed" if unchanged == "alive" else "undecided"
        if verdict != "alive":
            return verdict, by
    return verdict, by


def run(module, cpu_seconds, mutant):
    start = time.perf_counter()
    verdict, by = judge(module, mutant, cpu_seconds)
    seconds = time.perf_counter() - start
    print(f"{module:<12} {verdict:<9} {seconds:6.1f} s  {mutant.what}  {by}", flush=True)
    row = {"what": mutant.what, "killed": verdict == "killed", "by": by or "no test"}
    if mutant.key:
        row["key"] = mutant.key
    if verdict != "killed":
        row |= {"verdict": verdict, "diff": list(mutant.diff)}
        print("".join(f"    {line}\n" for line in mutant.diff), end="", flush=True)
    return row


# The record


def git(*arguments):
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if not done.returncode else ""


def examine(module, n, pool):
    """Run every mutant of the module and return its entry of the record."""
    before, todo = fingerprint(module, n), list(mutants(module, n))
    commit = git("rev-parse", "HEAD") or "none"
    dirty = bool(git("status", "--porcelain", "transformer_lib", "tests"))
    # a mutant is killed by its change only if the tests pass without it
    verdict, by, output = on_copy([own_tests(module), *QUICK], 3600)
    if verdict != "alive":
        sys.exit(f"{output[-3000:]}\n{own_tests(module)} fails on the library as it is: {by}")
    used = float(re.findall(r"^cpu seconds ([\d.]+)", output, re.MULTILINE)[-1])
    rows = list(pool.map(partial(run, module, int(30 + 5 * used)), todo))
    reasons = equivalent().get(module, {})
    for row in rows:
        if not row["killed"] and row.get("key") in reasons:
            row["equivalent"] = reasons[row["key"]]
    return {
        "sha256": before,
        "sample": "all named" if module in core() else n,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(),
                     **{name: version(name) for name in ("torch", "pytest")}},
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "mutants": len(rows),
        "killed": sum(row["killed"] for row in rows),
        "equivalent": sum("equivalent" in row for row in rows),
        "rows": rows,
    }  # fmt: skip


def current(record):
    """The entries of the record whose files are still those that were judged."""
    return {
        name: entry
        for name, entry in record.items()
        if name in modules() and entry["sha256"] == fingerprint(name, entry.get("sample"))
    }


def write(record):
    RECORD.parent.mkdir(exist_ok=True)
    report = {"command": "make mutants", "modules": dict(sorted(record.items()))}
    RECORD.with_suffix(".tmp").write_text(json.dumps(report, indent=1) + "\n")
    RECORD.with_suffix(".tmp").replace(RECORD)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Put small faults into the library; the tests must notice each."
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="default: those that changed")
    parser.add_argument("--sample", type=int, default=SAMPLE, metavar="N",
                        help=f"mutants of a module without its own ({SAMPLE})")  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.modules) - set(modules()):
        parser.error(f"unknown module {', '.join(sorted(unknown))}; known: {', '.join(modules())}")

    preload()
    record = current(json.loads(RECORD.read_text())["modules"] if RECORD.exists() else {})
    with ThreadPoolExecutor(chosen.workers) as pool:
        for module in chosen.modules or [m for m in modules() if m not in record]:
            n = "all named" if module in core() else chosen.sample
            record[module] = examine(module, n, pool)
            write(record)
    for module, entry in sorted(record.items()):
        print(f"{module:<16} {entry['killed']:>3} of {entry['mutants']:>3} killed")
    rows = [row for entry in record.values() for row in entry["rows"]]
    return 0 if all(row["killed"] or "equivalent" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
