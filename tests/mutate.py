"""Break the library in many small ways, one at a time: the tests of that module must notice each.

    make mutants                        the modules that changed since they were last broken
    .venv/bin/python tests/mutate.py scores softmax     these two modules, changed or not

Each module's result goes into results/mutants.json as soon as it is there, with the hash of the
module, its tests and its mutants: a run that is stopped goes on where it was. A mutant is (what
is broken, old text, new text) in tests/mutants/MODULE.py; the old text occurs once in the module.
"""

import datetime
import hashlib
import json
import multiprocessing
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parent.parent
WORKERS, SECONDS = 2, 180
FORK = multiprocessing.get_context("fork")  # a child starts with torch and pytest in memory


def mutants(module):
    path = ROOT / "tests" / "mutants" / f"{module}.py"
    return [(module, *mutant) for mutant in runpy.run_path(str(path))["MUTANTS"]]


def fingerprint(module):
    """The hash of all that decides this module's result, but for the modules that it uses."""
    names = (
        f"transformer_lib/{module}.py",
        f"tests/test_{module}.py",
        f"tests/mutants/{module}.py",
    )
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in names)).hexdigest()


def preload():
    """Import once what every run needs: nothing of ours, and no plugin that pytest rewrites."""
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import pytest  # noqa: F401
    import seaborn  # noqa: F401
    import torch

    torch.set_num_threads(1)


def child(folder, module):
    """Run the tests of `module` with the library in `folder`; the exit status is pytest's."""
    import pytest

    os.chdir(ROOT)
    output = (Path(folder) / "output").open("w")
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.path[:] = [folder, *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    test = str(ROOT / "tests" / f"test_{module}.py")
    status = pytest.main([test, "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"])
    used = sys.modules.get("transformer_lib")  # none, if the mutant cannot be imported
    if used and Path(used.__file__).parent.parent != Path(folder):
        status = 99
    output.flush()
    os._exit(int(status))


def tests_notice(module, old, new):
    """Whether the tests fail on a copy of the library where `old` became `new`, and how."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "transformer_lib"
        shutil.copytree(
            ROOT / "transformer_lib", library, ignore=shutil.ignore_patterns("__pycache__")
        )
        file = library / f"{module}.py"
        source = file.read_text()
        if source.count(old) != 1:
            raise ValueError(
                f"{module}: this must occur once, and does {source.count(old)} times: {old!r}"
            )
        file.write_text(source.replace(old, new))
        process = FORK.Process(target=child, args=(str(Path(folder).resolve()), module))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return True, "timeout"
        status, output = process.exitcode, (Path(folder) / "output").read_text()
    if status == 99:
        raise RuntimeError("the tests imported another transformer_lib than the mutant's")
    if status not in (0, 1, 2, 4):
        return True, "crash"
    if status == 4:
        raise RuntimeError(f"pytest was called wrongly:\n{output[-2000:]}")
    if old == new and status:
        print(output[-3000:], flush=True)
    return (False, "survived") if status == 0 else (True, "test" if status == 1 else "import")


def run(mutant):
    module, what, old, new = mutant
    start = time.perf_counter()
    killed, how = tests_notice(module, old, new)
    seconds = time.perf_counter() - start
    print(
        f"{module:<12} {'killed' if killed else 'SURVIVED':<9} {how:<9} {seconds:6.1f} s  {what}",
        flush=True,
    )
    return {"what": what, "killed": killed, "by": how, "seconds": round(seconds, 1)}


def commit():
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    changed = subprocess.run(
        ["git", "status", "--porcelain", "transformer_lib", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return (done.stdout.strip() or "none") + (
        "" if done.returncode or not changed.stdout else " and changes"
    )


def examine(module, pool):
    """Run every mutant of the module: its entry of the record."""
    before, todo = fingerprint(module), mutants(module)
    # a mutant is killed by its change only if the tests pass without it
    clean = todo[0][2]
    if tests_notice(module, clean, clean)[0]:
        sys.exit(f"tests/test_{module}.py fails on the library as it is")
    rows = list(pool.map(run, todo))
    return {
        "sha256": before,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "pytest": version("pytest"),
        },
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "mutants": len(rows),
        "killed": sum(row["killed"] for row in rows),
        "rows": rows,
    }


def main(modules):
    preload()
    every = sorted(path.stem for path in (ROOT / "tests" / "mutants").glob("*.py"))
    target = ROOT / "results" / "mutants.json"
    record = json.loads(target.read_text())["modules"] if target.exists() else {}
    record = {name: entry for name, entry in record.items() if name in every}
    changed = [m for m in every if record.get(m, {}).get("sha256") != fingerprint(m)]
    with ThreadPoolExecutor(WORKERS) as pool:
        for module in modules or changed:
            record[module] = examine(module, pool)
            report = {"command": "make mutants", "modules": dict(sorted(record.items()))}
            target.parent.mkdir(exist_ok=True)
            target.with_suffix(".tmp").write_text(json.dumps(report, indent=1) + "\n")
            target.with_suffix(".tmp").replace(target)
    killed = sum(entry["killed"] for entry in record.values())
    total = sum(entry["mutants"] for entry in record.values())
    print(f"\n{killed} of {total} mutants killed")
    return 1 if killed < total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
