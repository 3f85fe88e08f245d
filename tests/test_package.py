"""The package as users install it: a wheel, with the runtime dependencies only."""

import ast
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
import zipfile
from pathlib import Path

import pytest

import transformer_lib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = ["jaxtyping", "lazy-loader", "numpy", "safetensors", "torch", "tqdm"]
EXTRAS_ONLY = (
    "matplotlib",
    "seaborn",
    "pandas",
    "num2words",
    "tokenizers",
    "pooch",
    "requests",
    "sacrebleu",
    "sacremoses",
    "ctranslate2",
    "huggingface_hub",
    "sklearn",
    "nbdev",
    "fastcore",
    "beartype",
)
MODULES = sorted(
    p.stem for p in (ROOT / "transformer_lib").glob("*.py") if not p.stem.startswith("_")
)
BLOCK = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS_ONLY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy so that the checkout stays unchanged."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "transformer_lib", source / "transformer_lib", ignore=skipped)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    ]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """A folder with the installed wheel and nothing of the checkout."""
    target = tmp_path_factory.mktemp("target")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def python(code, path, *, options=()):
    """Run code in a new interpreter that finds the installed wheel first."""
    env = {
        **os.environ,
        "PYTHONPATH": str(path),
        "PYTHONDONTWRITEBYTECODE": "",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=path, env=env, capture_output=True, text=True
    )


def test_wheel_needs_only_the_runtime_dependencies(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(
            next(n for n in archive.namelist() if n.endswith("METADATA"))
        ).decode()
        files = archive.namelist()
    required = [
        line.split(": ", 1)[1]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert sorted(re.match(r"[\w-]+", r)[0] for r in required) == RUNTIME
    assert not [
        f for f in files if not f.startswith(("transformer_lib/", "executable_transformer-"))
    ]
    assert "transformer_lib/py.typed" in files
    assert {f"transformer_lib/{m}.py" for m in MODULES} <= set(files)


def test_import_works_without_the_extras(elsewhere):
    code = f"""{BLOCK}
import torch, transformer_lib
from transformer_lib import MultiHeadAttention
assert transformer_lib.__file__.startswith({str(elsewhere)!r}), transformer_lib.__file__
out = MultiHeadAttention(d_model=8, n_heads=2)(torch.randn(2, 5, 8))
assert out.shape == (2, 5, 8)
"""
    done = python(code, elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_import_of_plots_without_the_extra_says_how_to_install_it(elsewhere):
    done = python(f"{BLOCK}\nimport transformer_lib.plots", elsewhere)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    repository = PROJECT["urls"]["Repository"]
    assert last.startswith("ImportError") or "ImportError" in last
    assert f'pip install "executable-transformer[chapters] @ git+{repository}' in done.stderr


def test_import_loads_no_plotting_and_nothing_for_training(elsewhere):
    # torch and jaxtyping load what they find of these (torch.hub a progress bar): only what comes
    # on top is ours.
    code = """import json, sys, numpy, torch, jaxtyping
before = set(sys.modules)
import transformer_lib
print(json.dumps(sorted(set(sys.modules) - before)))"""
    loaded = {name.split(".")[0] for name in json.loads(python(code, elsewhere).stdout)}
    assert "transformer_lib" in loaded
    assert loaded.isdisjoint({*EXTRAS_ONLY, "safetensors", "tqdm"})


def test_import_costs_little_more_than_torch(elsewhere):
    # CPU time inside one process, from the moment torch is there: nothing else that runs on the
    # machine is in it. Noise only ever adds, so the smallest of five is the cost; the first run
    # also writes the bytecode.
    code = """import time, torch
start = time.process_time()
import transformer_lib
print(time.process_time() - start)"""
    costs = [float(python(code, elsewhere).stdout) for _ in range(5)]
    assert min(costs) < 0.1, costs


def public_names(module):
    tree = ast.parse((ROOT / "transformer_lib" / f"{module}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def stub():
    """What the stub lists: {public name: the module it comes from}, and the modules."""
    names, listed = {}, set()
    for node in ast.parse((ROOT / "transformer_lib" / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.name == alias.asname, "a stub exports what it imports `as` itself"
                if node.module is None:
                    listed.add(alias.name)
                else:
                    names[alias.name] = node.module
    return names, listed


def test_stub_names_are_about_fifty_and_those_of_their_modules():
    names, _ = stub()
    assert len(names) <= 50
    for name, module in names.items():
        loaded = importlib.import_module(f"transformer_lib.{module}")
        assert name in public_names(module)
        assert getattr(transformer_lib, name) is getattr(loaded, name)
    assert set(transformer_lib.__all__) == {*names, *MODULES}
    assert re.fullmatch(r"\d+\.\d+\.\d+", transformer_lib.__version__)


def test_no_field_of_a_dataclass_can_be_set():
    """A config or record that one part of a program changes would change for all others."""
    modules = [importlib.import_module(f"transformer_lib.{name}") for name in MODULES]
    found = {one for module in modules for one in vars(module).values() if isinstance(one, type)}
    ours = [one for one in found if one.__module__.startswith("transformer_lib.")]
    records = [one for one in ours if dataclasses.is_dataclass(one)]
    assert len(records) > 10
    assert not [one for one in records if not one.__dataclass_params__.frozen]


def test_stub_lists_every_module_and_no_name_shadows_one(elsewhere):
    names, listed = stub()
    assert listed == set(MODULES)
    assert not listed & set(names)
    code = "import transformer_lib\n" + "".join(
        f"transformer_lib.{m}\nassert transformer_lib.{m}.__name__ == 'transformer_lib.{m}'\n"
        for m in [*MODULES, *MODULES]
    )
    code += "import transformer_lib.softmax as m\nm.masked_softmax\n"
    done = python(code, elsewhere)
    assert done.returncode == 0, done.stderr


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        transformer_lib.no_such_name  # noqa: B018


def documented():
    for module in MODULES:
        loaded = importlib.import_module(f"transformer_lib.{module}")
        for name in public_names(module):
            yield f"{module}.{name}", getattr(loaded, name)


@pytest.mark.parametrize("name, thing", list(documented()), ids=[name for name, _ in documented()])
def test_public_names_have_docstrings(name, thing):
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return
    text = inspect.getdoc(thing)
    assert text and thing.__doc__, f"{name} has no docstring"
    assert len(text.splitlines()) <= 15, (
        f"{name}: {len(text.splitlines())} lines; the rest belongs into the chapter"
    )
    assert len(text.splitlines()[0]) <= 88
    if inspect.isfunction(thing):
        missing = [
            p.name for p in inspect.signature(thing).parameters.values() if p.annotation is p.empty
        ]
        assert not missing, f"{name}: no annotation of {missing}"


def lines_of_code(source):
    """The lines of code, without docstrings, comments, blank lines and nbdev's marks."""
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if (
            token.type not in {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE}
            and token.string.strip()
        ):
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(code)


def test_lines_of_code_are_counted_without_docstrings_and_comments():
    assert (
        lines_of_code(
            '"""Doc."""\n\n# why\nx = (\n    1\n)\n\n\ndef f():\n    """Doc\n    more."""\n'
        )
        == 4
    )


# One idea fits 250 lines of code. The conformance kit is one idea with a check for each of many
# properties; the trainer is one loop, with all that lets it be stopped anywhere; batches and
# checkpoints serve all models and all that is written.
LONGER = {
    "testing": 500, "trainer": 600,
    "attention": 265, "batches": 270, "checkpoints": 300, "models": 270,
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_modules_stay_within_the_limits_of_size(module):
    source = (ROOT / "transformer_lib" / f"{module}.py").read_text()
    assert lines_of_code(source) <= LONGER.get(module, 250)
    assert ast.get_docstring(ast.parse(source)), "the chapter's thesis became no docstring"


README, LANDING = ((ROOT / name).read_text() for name in ("README.md", "index.md"))
CODE = re.compile(r"```(?:python|\{failing-check\})\n(.*?)```", re.S)
EXAMPLES = [CODE.findall(text) for text in (README, LANDING)]


@pytest.mark.parametrize(
    "code, blocked", [(code, code == EXAMPLES[0][1]) for code in [*EXAMPLES[0], *EXAMPLES[1]]]
)
def test_readme_and_landing_page_examples_print_what_they_say(elsewhere, code, blocked):
    """One block needs torch alone; the translators need the extra `chapters`."""
    expected = re.findall(r"^(?:print\(.*\)\s+)?# (.*)$", code, re.M)
    assert [len(examples) for examples in EXAMPLES] == [2, 2]
    assert len(code.splitlines()) <= 12 and expected
    done = python(BLOCK * blocked + code, elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


def test_readme_and_landing_page_results_are_recorded():
    """Scores, losses and texts are those of the records, rounded."""
    score, loss = {}, json.loads((ROOT / "results" / "gpu-shakespeare.json").read_text())
    for name in ("multi30k-en-de", "multi30k-de-en"):
        record = json.loads((ROOT / "results" / name / "scores.json").read_text())
        assert record["machine"].startswith("2 cores") and record["steps"]
        seconds = record["target_tokens"] / record["tokens_per_second"]
        assert seconds < 1.5 * 3600 and "about an hour and a half" in README
        score[name] = f"{record['scores']['hypotheses']['13a']['bleu']:.1f}"
    written = f"{loss['best_validation_loss']:.3f}", str(loss["published"]["best_validation_loss"])
    assert re.findall(r"\b\d\.\d{3,}\b", README) == [*written]
    assert re.findall(r"\b\d\d\.\d\b", README) == [*score.values()]
    assert re.findall(r"\b\d\.\d{3,}\b", LANDING) == [*written]
    assert re.findall(r"\b\d\d\.\d\b", LANDING) == [*score.values()]
    assert f"*{loss['sample']['text'].splitlines()[0]}*" in LANDING


def test_landing_page_translates_as_the_shipped_model_and_the_chapter_do():
    rows = re.findall(r"^- \*\*A (\w+ \w+)\*\* .*?: \*(.*?)\* → \*(.*?)\*", LANDING, re.M)
    (_, *number), (_, *caption) = rows
    assert [kind for kind, *_ in rows] == ["number translator", "caption translator"]
    translate = transformer_lib.Translator.load("multi30k-en-de")
    assert translate([caption[0]]) == [caption[1]]
    chapter = next((ROOT / "chapters").rglob("*_models.ipynb")).read_text()
    assert f'assert vocabulary.decode(tokens) == [\\"{number[1]}\\"]' in chapter
    assert f"*{number[0]}*" in chapter
    assert "assert fraction >= 0.99" in chapter and "at least 99 %" in LANDING


def test_picture_shows_the_weights_that_its_descriptions_name(tmp_path):
    """The alt text names three weights of the drawn sentence."""
    done = subprocess.run(
        [sys.executable, ROOT / "_ext" / "picture.py", tmp_path],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn, shown = ({p.name for p in f.glob("*.svg")} for f in (tmp_path, ROOT / "_static"))
    assert drawn == shown - {"logo.svg"}
    translation = done.stdout.strip()
    source = re.search('of "(Ein [^"]*)" a column', README)[1]
    translator = transformer_lib.Translator.load("multi30k-de-en")
    weights, *labels = translator.alignment(source, translation, layer=-2)
    rows, columns = ([word.strip() for word in words] for words in labels)
    assert f'of "{translation}" is a row and each word of "{source}" a column' in README
    named = re.findall(r"(0\.\d\d) from (\w+) to (\w+)", README)
    assert len(named) == 3
    for weight, row, column in named:
        found = weights[rows.index(row)]
        assert found.argmax() == columns.index(column) and f"{found.max():.2f}" == weight
    largest = weights[:-1].flatten().sort(descending=True).values[:3]
    assert sorted(f"{x:.2f}" for x in largest) == sorted(weight for weight, *_ in named)


FUNCTIONS = [
    (module, node)
    for module in MODULES
    for node in ast.walk(ast.parse((ROOT / "transformer_lib" / f"{module}.py").read_text()))
    if isinstance(node, ast.ClassDef)
    and any(ast.unparse(base).endswith("autograd.Function") for base in node.bases)
]


def written_in_place(node):
    """The name that a statement or call changes in place, "" where it has none, None for no."""
    if isinstance(node, ast.AugAssign):
        return ast.unparse(node.target)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        method = node.func.attr
        if method.endswith("_") and not method.endswith("__"):
            return ast.unparse(node.func.value) if isinstance(node.func.value, ast.Name) else ""
    return None


def test_autograd_functions_are_found():
    assert len(FUNCTIONS) >= 4


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda pair: pair[1].name)
def test_autograd_functions_return_nothing_written_in_place(function):
    """Of such a result torch.compile loses the gradient, silently, in torch 2.11."""
    forward = next(n for n in function[1].body if getattr(n, "name", "") == "forward")
    written = {written_in_place(node) for node in ast.walk(forward)}
    returned = [node.value for node in ast.walk(forward) if isinstance(node, ast.Return)]
    assert returned
    for value in returned:
        assert not isinstance(value, ast.Call) or written_in_place(value) is None
        assert ast.unparse(value) not in written
