"""The repository: dependencies, addresses, commands, workflows, mutants and the build."""

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib

import mutate
import mutations
import pytest
import words
import yaml
from notebooks import NOTEBOOKS, PROJECT, REPOSITORY, ROOT, build, contents, topic, tracked
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet


def test_conda_environment_holds_python_pip_and_this_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, ours = environment["dependencies"]
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip"
    assert list(ours) == ["pip"] and len(ours["pip"]) == 1
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", ours["pip"][0])[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert {"chapters", "book"} <= set(extras)


def colab():
    lines = (ROOT / "tests" / "colab-2026.08.txt").read_text().splitlines()
    pairs = [re.split(r"==| ", line) for line in lines if line and not line.startswith("#")]
    return {name: None if version == "absent" else version for name, version in pairs}


def colab_complaints(requirements, shipped):
    for text in requirements:
        requirement = Requirement(text)
        if requirement.name not in shipped:
            yield f"{requirement.name} is not in the list of what Colab ships"
        elif shipped[requirement.name] and not requirement.specifier.contains(
            shipped[requirement.name]
        ):
            yield f"{text} would replace Colab's {shipped[requirement.name]}"
        if any(s.operator not in {">="} for s in requirement.specifier):
            yield f"{text}: lower bounds only"


def test_requirements_keep_colabs_own_packages():
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["chapters"]]
    assert list(colab_complaints(requirements, colab())) == []
    assert SpecifierSet(PROJECT["requires-python"]).contains(colab()["python"])


@pytest.mark.parametrize("bad", ["torch>=2.12", "numpy>=2.0,<2.1", "numpy==2.1.3", "einops>=0.8"])
def test_requirements_against_colab_are_found(bad):
    assert list(colab_complaints([bad], colab()))


def pin_lines():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_pins_satisfy_the_ranges():
    pins = dict(line.lower().split("==") for line in pin_lines())
    assert not [name for name in pins if name.startswith("nvidia")]
    assert not [name for name, version in pins.items() if "+" in version]
    wanted = [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name == "executable-transformer":
            continue
        assert requirement.name.lower() in pins, f"{text} is not pinned"
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text


def foreign_addresses(text, repository):
    """Addresses of a repository of this name that differ from the one in pyproject.toml."""
    ours = repository.removeprefix("https://github.com/")
    name = ours.split("/")[1]
    for found in re.findall(rf"github(?:\.com)?/([\w.-]+/{re.escape(name)})(?![\w-])", text):
        if found.removesuffix(".git") != ours:
            yield found


def test_repository_has_one_address():
    wrong = {
        name: list(foreign_addresses(text, REPOSITORY))
        for name, text in tracked()
        if not name.startswith("tests/")
    }
    assert {name: found for name, found in wrong.items() if found} == {}
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["repository"] == {"url": REPOSITORY, "branch": "main", "path_to_book": ""}
    for name in ("README.md", "CITATION.cff"):
        assert REPOSITORY in (ROOT / name).read_text()


def test_foreign_addresses_are_found():
    other = REPOSITORY.replace("github.com/", "github.com/someone-")
    assert list(foreign_addresses(f"see {other}/issues", REPOSITORY))


def test_set_repo_rewrites_every_address(tmp_path):
    for name, _ in tracked():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    before = {
        name for name, text in tracked() if REPOSITORY in text and not name.startswith("tests/")
    }
    new = "https://github.com/a-reader/their-book"
    command = [sys.executable, "build.py", "set-repo", new]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
        == new
    )
    assert {"pyproject.toml", "_config.yml", "README.md", "CITATION.cff"} <= before
    for name in before:
        text = (tmp_path / name).read_text()
        assert REPOSITORY not in text and new in text, name
    # An install cell stays an install cell: only the address in it is another.
    for nb in NOTEBOOKS:
        changed = (tmp_path / f"{nb.page}.ipynb").read_text()
        assert changed == json_text(nb).replace(REPOSITORY, new), nb.page
    for form in (f"{new}/", f"{new}.git"):  # as a browser or a clone button gives it
        command[-1] = form
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and f"{new} is now written" in done.stdout
    refused = subprocess.run(
        [*command[:-1], "http://example.org"], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode != 0


def json_text(nb):
    return (ROOT / f"{nb.page}.ipynb").read_text()


HOSTS = (
    r"https?://[\w.-]*("
    + "|".join(
        ["pypi", "python" + "hosted", "npm" + r"js\b", r"deb" + "ian", r"download\.py" + "torch"]
    )
    + r")[\w.-]*"
)
MACHINE = r"(?<![\w.:/])/(?:work|farm|root|home|Users)/[\w.]"
STRANGER = r"pip install (?:-\w+ )*[\"']?transformer[-_]lib\b"


@pytest.mark.parametrize(
    "pattern",
    [HOSTS, MACHINE, STRANGER],
    ids=["an index host", "a path of one machine", "a stranger's package"],
)
def test_files_do_not_contain(pattern):
    found = {
        name: re.search(pattern, text)[0] for name, text in tracked() if re.search(pattern, text)
    }
    assert found == {}


def test_forbidden_patterns_find_examples():
    assert re.search(HOSTS, "https://" + "pypi" + ".org/simple")
    assert re.search(MACHINE, "see " + "/" + "root/x")
    assert re.search(STRANGER, "pip install " + "-q transformer" + "-lib")


BUILT = next(page for page in contents() if topic(page) == "built") + ".md"


def commands(text):
    """The `make ...` commands in code blocks and code spans."""
    return set(re.findall(r"(?:^|`)\s*make ([a-z][a-z-]*)", text, re.M))


def targets():
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "index.md", BUILT, ".ci/run"])
def test_documented_commands_exist(name):
    found = commands((ROOT / name).read_text())
    assert found and found <= targets()


def test_the_page_on_the_build_repeats_what_lighthouse_recorded():
    record = json.loads((ROOT / "results" / "lighthouse.json").read_text())
    text = (ROOT / BUILT).read_text()
    told = re.findall(r"^\| (.+) \| (\d+) \| (\d+) \|$", text, re.M)
    assert len(told) == 5 == len(record["rows"]) / 2
    for (name, *scores), phone, desktop in zip(
        told, record["rows"][::2], record["rows"][1::2], strict=True
    ):
        label = re.search(r"`(?:ch-)?(\w+)`|first page", name)[1] or "index"
        assert phone["page"] == desktop["page"] and phone["page"].endswith(label)
        assert (phone["device"], desktop["device"]) == ("mobile", "desktop")
        assert scores == [str(row["performance"]) for row in (phone, desktop)]
    others = ("accessibility", "best-practices", "seo")
    assert {row[key] for row in record["rows"] for key in others} == {100}
    said = f"On {record['date']}, version {record['versions']['lighthouse']} gave all five 100"
    assert said in text and f"at most {record['runs']} runs" in text
    spread = max(max(row["tried"]) - min(row["tried"]) for row in record["rows"])
    assert f"mean load was {record['load']}" in text and f"up to {spread} " in text
    lowest = {"mobile": 80, "desktop": 95}
    assert all(row["performance"] >= lowest[row["device"]] for row in record["rows"])


def test_readme_names_the_two_commands_and_ci_runs_them():
    assert {"book", "test"} <= commands((ROOT / "README.md").read_text())
    assert {"book", "test"} <= commands((ROOT / ".ci" / "run").read_text())


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_resolve(name):
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)\)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_contributing_describes_each_command_of_make_help():
    shown = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    assert shown - {"help"} <= commands((ROOT / "CONTRIBUTING.md").read_text())


def test_contributing_gives_a_reason_for_each_dependency():
    rows = re.findall(r"^\|(.*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    named = set(re.findall(r"[\w-]+", " ".join(row.split("|")[0] for row in rows).lower()))
    extras = [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    for text in [*PROJECT["dependencies"], *extras]:
        name = Requirement(text).name.lower()
        assert {name, name.replace("-", "_")} & named, f"{name} is not in CONTRIBUTING.md"


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.name
)
def test_workflows_parse_and_are_bounded(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow[True], "when does it run?"  # YAML reads the key `on` as a boolean
    assert workflow["permissions"] is not None and "write-all" not in str(workflow["permissions"])
    runs = []
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            runs.append(step.get("run", ""))
            assert "uses" not in step or re.fullmatch(
                r"actions/[\w-]+@(v\d+|[0-9a-f]{40})", step["uses"]
            )
    found = set().union(*(commands(run) for run in runs))
    assert found <= targets()


def test_workflows_run_the_commands_of_the_readme():
    texts = {p.stem: p.read_text() for p in (ROOT / ".github" / "workflows").glob("*.yml")}
    assert set(texts) == {"test", "pages", "scheduled"}
    assert (
        "make test" in texts["test"]
        and "make book" in texts["pages"]
        and "make test" in texts["scheduled"]
    )


def renamed(text):
    """The names of the library in the last column of the tables of changes."""
    cells = re.findall(r"^\|.*\| (.*) \|$", text, re.M)
    names = [x for cell in cells for x in re.findall(r"`([a-z]\w*\.\w+)[`(]", cell)]
    return [name for name in names if not name.endswith(".py")]


def test_changelog_names_what_exists_now():
    names = renamed((ROOT / "CHANGELOG.md").read_text())
    assert len(names) > 10
    for name in names:
        module, attribute = name.split(".")
        assert hasattr(importlib.import_module(f"transformer_lib.{module}"), attribute), name


def test_renamed_reads_the_last_column():
    table = "| before | now |\n|---|---|\n| `a.old` | `b.new(x)`, `c.d` |\n| `x` | `build.py` |\n"
    assert renamed(table) == ["b.new", "c.d"]


# Mutants (tests/mutate.py runs them)


CORE = {"shapes", "scores", "softmax", "attention", "multihead", "positions", "layers", "models"}
SMALL = """
def f(a, b=2):
    \"\"\"At most 3.\"\"\"
    if a <= b and a:
        raise ValueError(f"{a + 1} must be above {b}")
    a += 1
    g(a, b, end=True)
    return a
"""


@pytest.mark.parametrize("module, what, old, new", [
    (module, *mutant) for module in sorted(mutate.core()) for mutant in mutate.named(module)
])  # fmt: skip
def test_mutants_apply(module, what, old, new):
    assert mutate.source_of(module).count(old) == 1
    assert old != new and what


def test_mutants_of_a_core_module_are_at_least_eight():
    assert CORE <= mutate.core() <= set(mutate.modules())
    assert all(len(mutate.named(module)) >= 8 for module in mutate.core())


@pytest.mark.parametrize("module", sorted(set(mutate.modules()) - mutate.core()))
def test_mutations_of_every_other_module_are_enough(module):
    source = mutate.source_of(module)
    found = mutations.sample(source, 8)
    assert len({m.apply(source) for m in found} - {source}) == 8
    assert [m.key for m in mutations.sample(source, 9)][:8] == [m.key for m in found]
    assert (ROOT / mutate.own_tests(module)).exists()


def test_mutations_make_each_small_change_and_leave_strings_alone():
    found = {(m.kind, *m.diff(SMALL)[1:]) for m in mutations.sample(SMALL, 100)}
    condition = "-    if a <= b and a:"
    assert found == {
        ("constant", "-def f(a, b=2):", "+def f(a, b=3):"),
        ("comparison", condition, "+    if a > b and a:"),
        ("boundary", condition, "+    if a < b and a:"),
        ("boolean", condition, "+    if a <= b or a:"),
        ("boolean", condition, "+    if not (a <= b and a):"),
        ("statement", '-        raise ValueError(f"{a + 1} must be above {b}")', "+        pass"),
        ("statement", "-    a += 1", "+    pass"),
        ("arithmetic", "-    a += 1", "+    a -= 1"),
        ("constant", "-    a += 1", "+    a += 2"),
        ("statement", "-    g(a, b, end=True)", "+    pass"),
        ("arguments", "-    g(a, b, end=True)", "+    g(b, a, end=True)"),
        ("arguments", "-    g(a, b, end=True)", "+    g(a, b)"),
        ("constant", "-    g(a, b, end=True)", "+    g(a, b, end=False)"),
        ("return", "-    return a", "+    return None"),
    }


def test_mutations_keep_their_keys_when_another_function_changes():
    keys = {m.key for m in mutations.mutations(SMALL)}
    assert keys < {m.key for m in mutations.mutations("def before(x):\n    return -x\n" + SMALL)}


@pytest.mark.parametrize("body, verdict, by", [
    ("assert True", "alive", ""),
    ("assert False", "killed", "test_it.py::test_it"),
    ("import nothing_of_this_name", "killed", "test_it.py::test_it"),
    ("import os; os.abort()", "killed", "crash"),
    ("while True: pass", "killed", "CPU time"),
    ("import time; time.sleep(60)", "undecided", "the clock"),
    ("raise TimeoutError", "undecided", "a test's clock"),
])  # fmt: skip
def test_mutate_judges_by_cpu_time_and_not_by_the_clock(tmp_path, body, verdict, by):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    clock = 8 if "sleep" in body else 600  # a busy machine may give 5 s of CPU time slowly
    command = "from pathlib import Path; from mutate import run_tests; print(run_tests(" \
        f"Path({str(tmp_path)!r}), ['test_it.py', '-p', 'no:nbmake'], 5, {clock})[:2])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT / "tests",
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == f"{(verdict, by)}\n", done.stderr


def test_mutate_runs_every_test_file_that_uses_the_module():
    files = mutate.tests_using("trainer")
    assert files[0] == "tests/test_trainer.py"
    assert {"tests/test_record_scores.py", "tests/test_faults.py"} <= set(files)  # by train_tiny.py
    assert len(files) == len(set(files)) and "tests/test_softmax.py" not in files


def test_record_of_mutants_lists_each_survivor_with_its_diff():
    for entry in json.loads(mutate.RECORD.read_text())["modules"].values():
        alive = [row for row in entry["rows"] if not row["killed"]]
        assert entry["mutants"] == len(entry["rows"]) == entry["killed"] + len(alive)
        assert {"date", "commit", "dirty", "versions", "hardware"} <= set(entry)
        assert all(row["diff"] for row in alive)


# The build (build.py)


def python_complaints(distributions, pythons):
    """Distributions, as (name, Requires-Python), that refuse one of these Pythons."""
    for name, required in distributions:
        for python in pythons:
            if not SpecifierSet(required or "").contains(python):
                yield f"{name} needs Python {required}, and the project admits {python}"


def test_pins_install_on_every_python_of_the_project():
    lowest = min(s.version for s in SpecifierSet(PROJECT["requires-python"])) + ".0"
    pins = dict(line.split("==") for line in pin_lines())
    found = []
    for name, version in pins.items():  # the metadata of what is installed, so without a network
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed.version.partition("+")[0] == version:
            found.append((name, installed.metadata.get("Requires-Python")))
    assert len(found) > len(pins) / 2
    assert list(python_complaints(found, [lowest, "3.13.0"])) == []


def test_pins_that_refuse_a_python_are_found():
    assert list(python_complaints([("a", ">=3.11.5")], ["3.11.0"]))
    assert not list(python_complaints([("a", ">=3.9"), ("b", None)], ["3.11.0"]))


def test_constraints_name_the_oldest_releases_and_colabs(capsys):
    script = build()
    script.constraints("oldest")
    oldest = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in oldest)
    assert len(oldest) == len(PROJECT["dependencies"])
    script.constraints("colab")
    assert {Requirement(line).name for line in capsys.readouterr().out.splitlines()} == {
        name for name, version in colab().items() if version and name != "python"
    }


@pytest.fixture
def archive(tmp_path):
    """A copy of the project without .git, in a folder with a space, with what git ignores."""
    folder = tmp_path / "my folder"
    for name in build().project_files():
        if not name.startswith(("chapters/", "transformer_lib/weights", "results/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name in (".venv/x.py", "out/x.md", "tests/__pycache__/x.pyc", "a.egg-info/x"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("")
    return folder


def listed(folder, **environment):
    """The files of the project in this folder as build.py lists them, and its messages."""
    code = "import build; print('\\n'.join(build.project_files()))"
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("\n")) - {""}, done.stderr


@pytest.mark.parametrize("case", ["no repository", "ignored", "no program", "other owner"])
def test_project_files_are_listed_without_git(archive, case):
    wanted = {p.relative_to(archive).as_posix() for p in archive.rglob("*") if p.is_file()}
    wanted = {f for f in wanted if not re.match(r"\.venv/|out/|.*__pycache__/|.*\.egg-info/", f)}
    environment, said = {"GIT_CEILING_DIRECTORIES": str(archive.parent)}, "not a git repository"
    if case == "ignored":
        subprocess.run(["git", "init", "-q", archive.parent], check=True)
        (archive.parent / ".gitignore").write_text("*\n")
        environment, said = {}, "ignores this folder"
    elif case == "no program":
        environment, said = {"PATH": str(archive)}, "No such file or directory: 'git'"
    elif case == "other owner":
        subprocess.run(["git", "init", "-q", archive], check=True)
        wanted |= set()
        environment, said = {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}, "dubious ownership"
    files, told = listed(archive, **environment)
    assert files == wanted
    assert said in told and told.count("git cannot list") == 1


def test_project_files_of_a_repository_leave_out_the_ignored(archive):
    subprocess.run(["git", "init", "-q", archive], check=True)
    files, told = listed(archive)
    assert told == "" and "build.py" in files
    assert not [f for f in files if f.startswith((".venv", "out", ".git/"))]


def fake_environment(folder, *, works):
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {0 if works else 1}\n")
    python.chmod(0o755)


@pytest.mark.parametrize(
    "state, commands",
    [
        ("works", ["install", "compile"]),
        ("broken", ["venv", "install", "compile"]),
        ("absent", ["venv", "install", "compile"]),
    ],
)
def test_install_reuses_only_an_environment_that_works(tmp_path, monkeypatch, state, commands):
    script, ran = build(), []

    def run(log, *command, **options):
        ran.append(log)
        (tmp_path / ".venv").mkdir(exist_ok=True)
        return 0, "", 0.0

    if state != "absent":
        fake_environment(tmp_path, works=state == "works")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "run", run)
    script.install()
    assert ran == commands
    assert (tmp_path / ".venv" / "installed").exists()


def test_install_names_the_missing_system_package(tmp_path, monkeypatch):
    script = build()
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "run", lambda *a, **k: (1, "ensurepip is not available", 0.0))
    with pytest.raises(SystemExit, match="ensurepip(.|\n)*python3-venv"):
        script.install()
    assert not (tmp_path / ".venv" / "installed").exists()


FOUND = ["chapters/1_first/1_scores.ipynb", "chapters/1_first/2_softmax.ipynb",
         "chapters/2_second/1_text.ipynb", "chapters/appendix/a_shapes.ipynb"]  # fmt: skip


@pytest.mark.parametrize(
    "wanted, index",
    [("scores", 0), ("1.2", 1), ("1_text", 2), ("2_second/1", 2), ("shapes", 3), ("a_", 3)],
)
def test_chapter_finds_one_by_number_name_or_path(monkeypatch, wanted, index):
    script = build()
    monkeypatch.setattr(script, "notebooks", lambda: FOUND)
    assert script.find_chapter(wanted) == FOUND[index]


@pytest.mark.parametrize("wanted, named", [("1_", FOUND[:3]), ("", FOUND), ("none", ["none"])])
def test_chapter_lists_the_candidates(monkeypatch, wanted, named):
    script = build()
    monkeypatch.setattr(script, "notebooks", lambda: FOUND)
    with pytest.raises(SystemExit) as error:
        script.find_chapter(wanted)
    assert all(f"\n  {name}" in str(error.value) for name in named)


@pytest.fixture
def site(tmp_path, monkeypatch):
    script = build()
    monkeypatch.setattr(script, "OUT", tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("")
    return script


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", ""])
def test_serve_refuses_an_invalid_port(site, port):
    with pytest.raises(SystemExit, match="PORT must be a number from 1 to 65535, got"):
        site.serve(port)


def test_serve_refuses_a_port_in_use(site):
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(SystemExit, match="cannot serve on port .*: Address already in use"):
            site.serve(str(server.getsockname()[1]))


def test_interruption_is_reported_in_one_line():
    code = "import build\ndef stop(): raise KeyboardInterrupt\n"
    code += "build.COMMANDS['book'] = stop; build.main('book')"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 130
    assert done.stderr.decode().strip() == "interrupted; the same command continues"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """build.py on a project of two chapters, one of them nested, with a fake execution."""
    script, ran = build(), []
    for name in ("1_first/1_a", "plots"):
        (tmp_path / "chapters" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "chapters" / f"{name}.ipynb").write_text("{}")
    (tmp_path / "transformer_lib").mkdir()
    (tmp_path / "transformer_lib" / "a.py").write_text("")
    (tmp_path / "Makefile").write_text("")

    def run(log, *command, **options):
        ran.append(log)
        command[-1].write_text("executed")
        return 0, "", script.seconds

    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "OUT", tmp_path / "out")
    monkeypatch.setattr(script, "run", run)
    script.seconds, script.ran = 1.0, ran
    return script


def test_execute_runs_each_changed_notebook_once(small, tmp_path):
    book = tmp_path / "book"
    small.execute(folder=book)
    assert sorted(small.ran) == ["notebooks/1_first/1_a", "notebooks/plots"]
    small.ran.clear()
    small.execute(folder=book)
    assert small.ran == []
    assert (book / "chapters" / "1_first" / "1_a.ipynb").read_text() == "executed"
    (tmp_path / "chapters" / "plots.ipynb").write_text("{ }")
    small.execute(folder=book)
    assert small.ran == ["notebooks/plots"]
    small.ran.clear()
    (tmp_path / "transformer_lib" / "a.py").write_text("x = 1")
    small.execute(folder=book)
    assert len(small.ran) == 2


def test_execute_refuses_a_chapter_that_uses_too_much_cpu_time(small, tmp_path):
    small.seconds = small.FAIL_SECONDS + 1.0
    for _ in range(2):  # a second call still reports it
        with pytest.raises(SystemExit, match="plots.ipynb takes 121 s of CPU time"):
            small.execute(folder=tmp_path / "book")


def test_run_measures_cpu_time_and_not_waiting(tmp_path, monkeypatch):
    script = build()
    monkeypatch.setattr(script, "OUT", tmp_path)
    _, _, waiting = script.run("a", "sleep", "1")
    _, _, working = script.run("b", sys.executable, "-c",
        "import time\nwhile time.process_time() < 1: pass")  # fmt: skip
    assert waiting < 0.5 and working >= 1


# Words (tests/words.py)


def test_words_finds_private_words_and_passes_plain_ones():
    assert words.FOUND and all(list(words.find(text)) for text in words.FOUND)
    assert words.PASSED and not any(list(words.find(text)) for text in words.PASSED)


def test_words_reads_the_library_the_tests_the_pages_and_rewritten_chapters():
    places = [where for where, _ in words.texts()]
    for place in ("transformer_lib/layers.py", "tests/mutants/layers.py", "build.py", "README.md"):
        assert place in places
    cells = {where.split(":")[0] for where in places if ".ipynb:" in where}
    left = {f"chapters/{name}.ipynb" for name in words.TO_REWRITE}
    assert cells == {f"{nb.page}.ipynb" for nb in NOTEBOOKS} - left


def test_words_finds_nothing():
    done = subprocess.run([sys.executable, words.__file__], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)


# The limits of a test (tests/conftest.py)


def test_time_limit_of_a_test_counts_cpu_time(tmp_path):
    limited = (ROOT / "tests" / "conftest.py").read_text()
    limited = re.sub(r"^CPU_SECONDS = \d+", "CPU_SECONDS = 1", limited, flags=re.M)
    (tmp_path / "conftest.py").write_text(limited)
    (tmp_path / "test_two.py").write_text(
        "import time\n\n\n"
        "def test_waits():\n    time.sleep(2)\n\n\n"
        "def test_spins():\n    start = time.process_time()\n"
        "    while time.process_time() < start + 20:\n        pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 1 passed" in done.stdout
    assert "used more than 1 s of CPU time" in done.stdout
