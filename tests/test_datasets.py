"""A loader returns the right bytes, or an error that says what to do: without a network."""

import gzip
import hashlib
import http.server
import inspect
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tokenize
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from transformer_lib import datasets
from transformer_lib.datasets import (
    docstring_pairs,
    multi30k,
    number_names,
    stdlib_source,
    tiny_shakespeare,
)

REAL_HASHES, REAL_PLACES = dict(datasets._SHA256), dict(datasets._PLACES)
FILES = {
    "multi30k/val.en.gz": gzip.compress(
        "A dog.\u2028Two\x85 cats.\n\n  Two spaces \n".encode(), mtime=0
    ),
    "multi30k/val.de.gz": gzip.compress("Ein Hund.\n\nZwei Räume\n".encode(), mtime=0),
    "multi30k/val.fr.gz": gzip.compress(b"Un chien.\n\n\n", mtime=0),
    "tinyshakespeare/input.txt": ("To be,\r\n or not — " * 20 + "12345678").encode(),
}
PAIRS = [("A dog.\u2028Two\x85 cats.", "Ein Hund."), ("", ""), ("  Two spaces ", "Zwei Räume")]


class Server(http.server.ThreadingHTTPServer):
    """Serves FILES from memory; `behave[path]` says how often to do what else."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.behave = [], {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = "/".join(self.path.split("/")[-2:])
        self.server.asked.append(self.path.lstrip("/"))
        data, plan = FILES[name], self.server.behave.get(self.path.lstrip("/"), [])
        how = plan.pop(0) if plan else "good"
        if isinstance(how, int):
            return self.send_error(how)
        self.send_response(200)
        if how != "cut, without a length":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if how == "corrupt":
            data = bytes([data[0] ^ 1]) + data[1:]
        if how == "empty":
            return None
        self.wfile.write(data if how in ("good", "corrupt") else data[: len(data) // 2])
        if how == "stall":
            self.wfile.flush()
            time.sleep(30)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that has FILES, known by their hashes, and an empty cache."""
    pooch = pytest.importorskip("pooch")
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name in ("HTTP_PROXY", "http_proxy", "TRANSFORMER_LIB_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets, "_SHA256", {n: sha256(data) for n, data in FILES.items()})
    places = {name: [f"{server.url}/{name}/"] for name in REAL_PLACES}
    monkeypatch.setattr(datasets, "_PLACES", places)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    server.cache = tmp_path / "cache" / "executable-transformer"
    yield server
    server.shutdown()
    server.server_close()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def cached(server):
    return sorted(str(p.relative_to(server.cache)) for p in server.cache.rglob("*") if p.is_file())


# Numbers in words


def test_number_names_follow_the_given_order_and_languages():
    assert number_names(numbers=[21, 7]) == [("twenty-one", "einundzwanzig"), ("seven", "sieben")]
    assert number_names("de", "fr", [97]) == [("siebenundneunzig", "quatre-vingt-dix-sept")]
    assert number_names("ja", "en", iter([4321])) == [
        ("四千三百二十一", "four thousand, three hundred and twenty-one")
    ]
    assert number_names(numbers=[]) == []


def test_number_names_default_to_english_and_german_below_ten_thousand():
    default = inspect.signature(number_names).parameters
    assert [default[name].default for name in default] == ["en", "de", range(10_000)]


@pytest.mark.slow
def test_number_names_repeat_on_neither_side():
    pairs = number_names()
    assert len(pairs) == 10_000 and pairs[0] == ("zero", "null") and pairs[-1][0].startswith("nine")
    assert len({s for s, _ in pairs}) == len({t for _, t in pairs}) == 10_000


def test_number_names_refuse_an_unknown_language_by_name():
    for languages in (("xx", "de"), ("en", "xx")):
        want = f"languages of num2words, got {languages[0]!r} and {languages[1]!r}"
        with pytest.raises(ValueError, match=f"number_names: .*{want}"):
            number_names(*languages, numbers=[1])


def test_number_names_accept_a_language_with_its_region():
    assert number_names("en_US", "de", [3]) == [("three", "drei")]
    for wrong in ("denmark", "DE", "", "e"):  # num2words itself takes "denmark" for German
        with pytest.raises(ValueError, match="languages of num2words, got "):
            number_names("en", wrong, [1])


@pytest.mark.bad_input
@pytest.mark.parametrize("bad", [None, float("nan"), 1.5, "12", True, b"1"], ids=repr)
def test_number_names_refuse_a_number_that_is_no_integer_with_its_index(bad):
    with pytest.raises(
        ValueError, match=rf"number_names: number 3 must be an integer, got {bad!r}"
    ):
        number_names(numbers=[1, 2, 3, bad])


@pytest.mark.bad_input
def test_number_names_refuse_a_language_that_is_no_string():
    with pytest.raises(ValueError, match="languages of num2words, got 'en' and None"):
        number_names("en", None)


@pytest.mark.parametrize("languages, number", [(("en", "cs"), 10**400), (("ce", "en"), -5)])
def test_number_names_refuse_a_number_that_a_language_cannot_write_with_its_index(
    languages, number
):
    want = f"cannot write number 1 in '{languages[0]}' and '{languages[1]}'"
    with pytest.raises(ValueError, match=want):
        number_names(*languages, numbers=[1, number])


@pytest.mark.bad_input  # beartype wants Python's own integers
def test_number_names_accept_an_array_or_an_iterator():
    expected = number_names(numbers=[1, 2])
    assert number_names(numbers=iter([1, 2])) == expected
    assert number_names(numbers=np.array([1, 2])) == expected


# Python's own source


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of a few files."""
    files = {
        "b.py": "b = 'ä'\n".encode(),
        "a.py": b"# -*- coding: latin-1 -*-\na = '\xe4'\r\n",
        "a/z.py": b"z = 1\n",
        "a-b.py": b"ab = 1\n",
        "notes.txt": b"no Python\n",
        "test/t.py": b"test\n",
        "a/tests/t.py": b"test\n",
        "site-packages/p/p.py": b"other\n",
        "encodings/e.py": b"table\n",
    }
    for name, data in files.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.setattr(datasets.sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    return "ab = 1\n# -*- coding: latin-1 -*-\na = 'ä'\nz = 1\nb = 'ä'\n"


def test_stdlib_source_reads_files_by_name_in_their_encoding(library):
    assert stdlib_source() == library


@pytest.mark.parametrize("n", [0, 1, 6, 7, 8, 38, 39, 40, 60, 1000])
def test_stdlib_source_is_cut_between_two_characters(library, n):
    part = stdlib_source(n)
    assert library.startswith(part) and len(part.encode()) <= n
    rest = library[len(part) :]
    assert not rest or len((part + rest[0]).encode()) > n


def test_stdlib_source_does_not_read_files_beyond_the_limit(library, monkeypatch):
    opened = []

    def counting(path, original=tokenize.open):
        opened.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(tokenize, "open", counting)
    assert stdlib_source(5) == "ab = " and opened == ["a-b.py"]


def test_stdlib_source_reports_missing_files_and_refuses_a_negative_size(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="stdlib_source: no Python source in .*none"):
        stdlib_source()
    with pytest.raises(ValueError, match="stdlib_source: max_bytes must not be negative, got -1"):
        stdlib_source(-1)


def test_stdlib_source_of_this_python_has_megabytes():
    text = stdlib_source(3_000_000)
    assert 2_999_990 < len(text.encode()) <= 3_000_000 and text == stdlib_source(3_000_000)
    assert "def " in text and "import " in text


# Downloads


def test_download_is_used_and_cached(server):
    assert multi30k(split="val") == PAIRS
    assert cached(server) == ["multi30k/val.de.gz", "multi30k/val.en.gz"]
    assert multi30k(split="val") == PAIRS
    assert server.asked == ["multi30k/val.en.gz", "multi30k/val.de.gz"]  # once each
    assert (server.cache / "multi30k/val.en.gz").read_bytes() == FILES["multi30k/val.en.gz"]


def test_multi30k_keeps_lines_exactly_and_pairs_them(server):
    assert multi30k("en", "fr", "val") == [
        (s, t) for (s, _), t in zip(PAIRS, ["Un chien.", "", ""], strict=True)
    ]
    assert multi30k("de", "en", "val") == [(t, s) for s, t in PAIRS]


def test_tiny_shakespeare_is_split_by_characters_after_nine_tenths(server):
    text = FILES["tinyshakespeare/input.txt"].decode()
    first, last = tiny_shakespeare()
    assert first + last == text and len(first) == len(text) * 9 // 10
    assert cached(server) == ["tinyshakespeare/input.txt"]


def test_download_that_is_corrupted_is_refused_and_not_cached(server):
    name = "multi30k/val.en.gz"
    server.behave[name] = ["corrupt", "corrupt"]
    bad = bytes([FILES[name][0] ^ 1]) + FILES[name][1:]
    for _ in range(2):
        with pytest.raises(ValueError) as refused:
            multi30k(split="val")
        for part in ("datasets: refused", f"{server.url}/{name}", sha256(FILES[name]), sha256(bad)):
            assert part in str(refused.value)
        assert cached(server) == []
    assert multi30k(split="val") == PAIRS  # the third is good


@pytest.mark.parametrize("how", ["cut", "cut, without a length", "empty", 500, 503])
def test_download_that_is_truncated_leaves_nothing_and_restarts_at_the_next_call(server, how):
    server.behave["multi30k/val.de.gz"] = [how]
    # Without a length nobody can know that something is missing, until the hash is computed.
    with pytest.raises(ValueError if how == "cut, without a length" else ConnectionError) as error:
        multi30k(split="val")
    assert "val.de.gz" in str(error.value)
    assert cached(server) == ["multi30k/val.en.gz"]
    assert multi30k(split="val") == PAIRS
    assert server.asked.count("multi30k/val.en.gz") == 1


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data + b" "]
)
def test_cache_with_a_corrupted_file_downloads_it_again(server, damage):
    multi30k(split="val")
    path = server.cache / "multi30k/val.en.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert multi30k(split="val") == PAIRS
    assert server.asked.count("multi30k/val.en.gz") == 2
    assert sha256(path.read_bytes()) == sha256(FILES["multi30k/val.en.gz"])


def test_download_without_a_network_says_what_to_do(server, monkeypatch):
    monkeypatch.setattr(datasets, "_SHA256", REAL_HASHES)
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        monkeypatch.setattr(datasets, "_PLACES", dict.fromkeys(REAL_PLACES, [nowhere, server.url]))
        names = {multi30k: "multi30k/train.en.gz", tiny_shakespeare: "tinyshakespeare/input.txt"}
        for load, name in names.items():
            with pytest.raises(ConnectionError) as error:
                load()
            for part in (f"cannot fetch {name}", "connect once", f"a folder that holds {name}"):
                assert part in str(error.value)
            assert "TRANSFORMER_LIB_DATA" in str(error.value)
    assert server.asked == []  # another place is for files that are not found


def test_cache_without_a_network_serves_valid_files_only(server, monkeypatch):
    multi30k(split="val")
    monkeypatch.setattr(datasets, "_PLACES", dict.fromkeys(REAL_PLACES, ["http://127.0.0.1:9/"]))
    assert multi30k(split="val") == PAIRS
    path = server.cache / "multi30k/val.de.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConnectionError, match=r"cannot fetch multi30k/val\.de\.gz"):
        multi30k(split="val")


def test_download_falls_back_to_the_branch_if_the_hash_matches(server):
    datasets._PLACES["multi30k"] = [f"{server.url}/{ref}/multi30k/" for ref in ("commit", "branch")]
    server.behave |= {f"commit/multi30k/val.{s}.gz": [404, 404] for s in ("en", "de")}
    server.behave["branch/multi30k/val.en.gz"] = ["corrupt"]
    with pytest.raises(ValueError, match="datasets: refused .*/branch/multi30k/val.en.gz"):
        multi30k(split="val")
    assert cached(server) == []
    assert multi30k(split="val") == PAIRS
    server.behave |= {f"{ref}/multi30k/val.fr.gz": [404] for ref in ("commit", "branch")}
    with pytest.raises(ConnectionError, match="cannot fetch multi30k/val.fr.gz: .*404"):
        multi30k("fr", "de", "val")


def test_download_shows_progress_and_no_log(server, capsys, monkeypatch):
    import pooch
    import tqdm

    class Shown(tqdm.tqdm):
        """A bar that is shown even where TQDM_DISABLE was set before tqdm was imported."""

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options | {"disable": False})

    monkeypatch.setattr(tqdm, "tqdm", Shown)
    logger, notes = pooch.get_logger(), []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", notes.append)
    logger.addHandler(handler)
    monkeypatch.setattr(logger, "level", logging.INFO)
    multi30k(split="val")
    shown = capsys.readouterr().err
    assert "multi30k/val.en.gz: 100%" in shown and "multi30k/val.de.gz: 100%" in shown
    multi30k(split="val")
    assert capsys.readouterr().err == "" and notes == [] and logger.level == logging.INFO
    logger.removeHandler(handler)


@pytest.mark.slow
def test_download_killed_midway_leaves_no_corpus(server):
    name = "multi30k/val.en.gz"
    server.behave[name] = ["stall"]
    code = f"""import pooch
from transformer_lib import datasets
pooch.os_cache = lambda project: {str(server.cache.parent)!r} + "/" + project
datasets._PLACES, datasets._SHA256 = {datasets._PLACES!r}, {datasets._SHA256!r}
datasets.multi30k(split="val")"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE) as process:
        try:
            while not (server.asked and any(p.is_file() for p in server.cache.rglob("*"))):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
    assert server.asked == [name] and not (server.cache / name).exists()
    assert multi30k(split="val") == PAIRS


OUT_OF_ROOM = OSError(28, "No space left on device", "some/file")


@pytest.mark.parametrize("problem", ["a file", "a file in the way", "no room", "not allowed"])
def test_cache_that_cannot_be_used_is_named_with_a_remedy(server, monkeypatch, problem):
    import pooch

    if problem == "a file":  # where the cache's folder should be
        server.cache.parent.parent.mkdir(exist_ok=True)
        server.cache.parent.write_text("a file")
    elif problem == "a file in the way":
        server.cache.mkdir(parents=True)
        (server.cache / "multi30k").write_text("a file")
    else:
        error = OUT_OF_ROOM if problem == "no room" else PermissionError(13, "denied", "some/file")
        monkeypatch.setattr(pooch, "retrieve", Mock(side_effect=error))
    with pytest.raises(OSError) as told:
        multi30k(split="val")
    for part in ("datasets: cannot read or write", "TRANSFORMER_LIB_DATA name a folder that holds "
                 "multi30k/val.en.gz"):  # fmt: skip
        assert part in str(told.value)
    assert "None" not in str(told.value)


def test_download_that_is_refused_says_what_to_do(server):
    server.behave["multi30k/val.en.gz"] = ["corrupt"]
    with pytest.raises(
        ValueError, match="another network, or let TRANSFORMER_LIB_DATA name a folder"
    ):
        multi30k(split="val")


# The reader's own folder


@pytest.fixture
def folder(server, tmp_path, monkeypatch):
    for name, data in FILES.items():
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.setenv("TRANSFORMER_LIB_DATA", str(tmp_path / "own"))
    yield tmp_path / "own"
    assert server.asked == [] and not server.cache.exists()  # neither network nor cache


def test_data_folder_of_the_user_is_used(folder):
    assert multi30k(split="val") == PAIRS
    assert "".join(tiny_shakespeare()) == FILES["tinyshakespeare/input.txt"].decode()


def test_data_folder_may_start_with_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("TRANSFORMER_LIB_DATA", "~/own")
    assert multi30k(split="val") == PAIRS


def test_data_folder_with_a_wrong_byte_is_refused_with_file_and_hashes(folder):
    for name, load in (
        ("multi30k/val.de.gz", lambda: multi30k(split="val")),
        ("tinyshakespeare/input.txt", tiny_shakespeare),
    ):
        path = folder / name
        path.write_bytes(path.read_bytes() + b"\n")
        with pytest.raises(ValueError) as refused:
            load()
        for part in (str(path), sha256(FILES[name]), sha256(path.read_bytes())):
            assert part in str(refused.value)


def test_data_folder_without_a_file_names_it(folder):
    (folder / "multi30k/val.de.gz").unlink()
    want = r"TRANSFORMER_LIB_DATA must hold multi30k/val\.de\.gz, not .*own/multi30k/val\.de\.gz"
    with pytest.raises(FileNotFoundError, match=want):
        multi30k(split="val")


# Refusals


@pytest.mark.parametrize("asked", [("en", "cs", "val"), ("xx", "de", "val"), ("en", "de", "test")])
def test_multi30k_refuses_an_unknown_language_or_split_before_any_download(server, asked):
    with pytest.raises(ValueError) as refused:
        multi30k(*asked)
    for part in (
        "multi30k: there are de, en, fr and train, val, test_2016_flickr",
        *map(repr, asked),
    ):
        assert part in str(refused.value)


@pytest.mark.parametrize("package", ["pooch", "requests", "num2words"])
def test_datasets_without_a_package_say_how_to_install_it(server, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    load = number_names if package == "num2words" else tiny_shakespeare
    with pytest.raises(
        ImportError, match=rf'{package} .*pip install "executable-transformer\[chap'
    ):
        load()


@pytest.mark.slow
def test_datasets_load_optional_packages_only_when_used():
    code = """import sys, torch, numpy, jaxtyping
before = set(sys.modules)
import transformer_lib.datasets
print(sorted({m.split(".")[0] for m in set(sys.modules) - before}))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tokenizers", "pooch", "num2words", "tqdm", "requests"} & set(eval(done.stdout))


# What is promised about the public files


def test_datasets_name_a_commit_first_and_a_hash_for_every_file():
    assert REAL_PLACES["multi30k"][0].endswith("/multi30k/dataset/a3d2e0d/data/task1/raw/")
    assert (
        "/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/" in REAL_PLACES["tinyshakespeare"][0]
    )
    assert all(
        p.startswith("https://") and p.endswith("/") for ps in REAL_PLACES.values() for p in ps
    )
    names = {
        f"multi30k/{s}.{x}.gz"
        for s in ("train", "val", "test_2016_flickr")
        for x in ("de", "en", "fr")
    }
    assert set(REAL_HASHES) == names | {"tinyshakespeare/input.txt"}
    assert all(len(value) == 64 and int(value, 16) for value in REAL_HASHES.values())
    assert len(set(REAL_HASHES.values())) == 10


@pytest.fixture
def real(monkeypatch):
    own = os.environ.get("TRANSFORMER_LIB_DATA")
    folder = Path(own) if own else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public files are not on this machine: TRANSFORMER_LIB_DATA is not set")
    monkeypatch.setenv("TRANSFORMER_LIB_DATA", str(folder))


@pytest.mark.parametrize(
    "split, n", [("train", 29_000), ("val", 1_014), ("test_2016_flickr", 1_000)]
)
def test_multi30k_has_its_known_sizes(real, split, n):
    sides = {side: multi30k(side, "de", split) for side in ("en", "fr", "de")}
    assert {len(pairs) for pairs in sides.values()} == {n}
    assert all(t == s for s, t in sides["de"])
    assert [t for _, t in sides["en"]] == [t for _, t in sides["fr"]]
    assert all("\n" not in line for pair in sides["en"] for line in pair)


def test_multi30k_starts_as_known(real):
    assert multi30k()[0] == (
        "Two young, White males are outside near many bushes.",
        "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    )


def test_tiny_shakespeare_has_its_known_sizes(real):
    train, validation = tiny_shakespeare()
    assert (len(train), len(validation)) == (1_003_854, 111_540)
    assert train.startswith("First Citizen:") and len(set(train + validation)) == 65


# Functions and what they do


@pytest.fixture
def some_functions(tmp_path, monkeypatch):
    """A standard library of a few files, whose names fall into all splits."""

    def write(name, *functions):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(functions), encoding="utf-8")

    def function(name, doc, body="return 1"):
        return f'def {name}(x):\n    """{doc}"""\n    {body}  # a comment\n'

    monkeypatch.setattr(
        datasets.sysconfig, "get_path", lambda name: {"stdlib": str(tmp_path)}[name]
    )
    datasets._documented.cache_clear()
    yield write, function
    datasets._documented.cache_clear()


def test_docstring_pairs_split_by_module_and_hide_the_target(some_functions):
    write, function = some_functions
    shares = {name: datasets.zlib.crc32(name.encode()) % 10 for name in ("a", "b", "c", "d", "e")}
    names = [f"m{i}" for i in range(40)]
    split_of = {
        n: {0: "val", 1: "test"}.get(datasets.zlib.crc32(n.encode()) % 10, "train") for n in names
    }
    some = {split: [n for n in names if split_of[n] == split] for split in ("train", "val", "test")}
    train, val, test = some["train"][0], some["val"][0], some["test"][0]
    write(
        f"{train}.py",
        function("f", "Give one to all.\n\n    More.\n    "),
        function("g", "Too short."),
        function("h", "Say it in the code.", "return 'say it in the code.'"),
    )
    write(f"{val}/deep/x.py", function("f", "Give one to all."), function("g", "Give two to all."))
    write(f"_py{test}.py", "class A:\n    async def f(self):\n        'Wait for the end.'\n")
    write(f"test/{train}.py", function("f", "Never look in here."))
    write(f"{train}2/site-packages/y.py", function("f", "Nor look in here."))
    assert docstring_pairs("train") == [("def f(x):\n    return 1", "Give one to all.")]
    assert docstring_pairs("val") == [("def g(x):\n    return 1", "Give two to all.")]
    assert docstring_pairs("test") == [("async def f(self):\n    pass", "Wait for the end.")]
    assert docstring_pairs() == docstring_pairs("train") is not docstring_pairs("train")
    assert shares


@pytest.mark.bad_input
def test_docstring_pairs_refuse_another_split():
    with pytest.raises(ValueError, match="split must be one of .*, got 'dev'"):
        docstring_pairs("dev")


@pytest.mark.slow
def test_docstring_pairs_of_this_python_are_thousands_without_leaks():
    datasets._documented.cache_clear()
    splits = {split: docstring_pairs(split) for split in ("train", "val", "test")}
    assert len(splits["train"]) > 2000 and min(map(len, splits.values())) > 100
    seen = {summary for _, summary in splits["train"]}
    for split, pairs in splits.items():
        assert len(set(pairs)) == len(pairs)
        for code, summary in pairs:
            assert summary.lower() not in code.lower() and 3 <= len(summary.split()) <= 20
            assert split == "train" or summary not in seen
