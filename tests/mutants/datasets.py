"""Ways to break datasets.py, each of which tests/test_datasets.py must notice."""

MUTANTS = [
    # numbers and source
    (
        "languages exchanged",
        "write(n, lang=source), write(n, lang=target)",
        "write(n, lang=target), write(n, lang=source)",
    ),
    ("another default language", 'target: str = "de", numbers', 'target: str = "fr", numbers'),
    ("fewer numbers by default", "range(10_000)", "range(1_000)"),
    (
        "an unknown language falls through",
        "if not all({s,",
        "if not any({s,",
    ),
    (
        "files in the order of the disk",
        "return sorted(files, key=lambda path: path.relative_to(root).as_posix())",
        "return files[::-1]",
    ),
    (
        "files in the order of their parts",
        "key=lambda path: path.relative_to(root).as_posix()",
        "key=lambda path: path.parts",
    ),
    ("tests read too", '_LEFT_OUT |= {"test", "tests"}', ""),
    ("installed packages read too", '"site-packages"', '"sitepackages"'),
    ("not only Python", 'if name.endswith(".py")', "if name"),
    (
        "declared encodings ignored",
        "with tokenize.open(path) as file:",
        'with path.open(encoding="utf-8", errors="replace") as file:',
    ),
    (
        "all files read for a beginning",
        "if max_bytes is not None and size >= max_bytes:",
        "if False:",
    ),
    (
        "one file too few",
        "if max_bytes is not None and size >= max_bytes:",
        "if max_bytes is not None and size >= max_bytes - 3:",
    ),
    ("half a character at the end", '.decode(errors="ignore")', '.decode(errors="replace")'),
    (
        "cut by characters, not bytes",
        'b"".join(parts)[:max_bytes].decode(errors="ignore")',
        'b"".join(parts).decode()[:max_bytes]',
    ),
    ("no source, no word", "if not files:", "if False:"),
    (
        "a negative size counts from the end",
        "if max_bytes is not None and max_bytes < 0:",
        "if False:",
    ),
    (
        "a number of another kind",
        "if not isinstance(n, int | np.integer) or",
        "if",
    ),
    ("a cache that cannot be written", "if error.errno is None:", "if True:"),
    # addresses and hashes
    (
        "a branch instead of a commit",
        'for commit in ("a3d2e0d", "master")',
        'for commit in ("master",)',
    ),
    ("one hash wrong", "726e39b2", "726e39b3"),
    (
        "hashes exchanged",
        "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a multi30k/val.de.gz",
        "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28 multi30k/val.de.gz",
    ),
    # downloads
    (
        "the hash not checked on arrival",
        "_SHA256[name], path.name, path.parent",
        "None, path.name, path.parent",
    ),
    (
        "the hash checked nowhere",
        "if (found := _sha256(path)) != _SHA256[name]:",
        "if (found := _sha256(path)) is None:",
    ),
    (
        "the cache trusted",
        "if not path.is_file() or _sha256(path) != _SHA256[name]:",
        "if not path.is_file():",
    ),
    (
        "fetched every time",
        "if not path.is_file() or _sha256(path) != _SHA256[name]:",
        "if path.unlink(missing_ok=True) is None:",
    ),
    (
        "the error of the package let through",
        "except requests.RequestException as error:",
        "except requests.Timeout as error:",
    ),
    (
        "a refused file not named",
        "except ValueError as error:\n            raise ValueError(\n",
        "except KeyError as error:\n            raise ValueError(\n",
    ),
    (
        "the next place asked whatever went wrong",
        "!= 404:\n                break",
        "!= 404:\n                continue",
    ),
    ("no second place", "!= 404:\n                break", "!= 0:\n                break"),
    ("notes of the package shown", 'logger.setLevel("WARNING")', "pass"),
    ("notes of the package off for ever", "            logger.setLevel(level)", "            pass"),
    ("no progress", "bar.update(file.write(part))", "file.write(part)"),
    ("no name on the bar", "tqdm(desc=name, ", "tqdm("),
    (
        "no advice offline",
        "connect once, or let TRANSFORMER_LIB_DATA name a folder ",
        "no network",
    ),
    ("errors of the server taken for the file", "            answer.raise_for_status()\n", ""),
    # the reader's folder
    (
        "the reader's folder ignored",
        'os.environ.get("TRANSFORMER_LIB_DATA")',
        'os.environ.get("NO_SUCH_NAME")',
    ),
    ("a tilde taken for a name", "Path(folder).expanduser() / name", "Path(folder) / name"),
    (
        "a missing file not named",
        "if not path.is_file():\n            raise",
        "if False:\n            raise",
    ),
    # multi30k and shakespeare
    (
        "split at every kind of line end",
        'text.removesuffix("\\n").split("\\n")',
        "text.splitlines()",
    ),
    ("empty lines at the end lost", 'text.removesuffix("\\n")', 'text.rstrip("\\n")'),
    ("an empty line too many", 'text.removesuffix("\\n").split', "text.split"),
    ("spaces stripped", "list(zip(*(text.removesuffix", "list(zip(*(text.strip().removesuffix"),
    ("the same side twice", "for language in (source, target)", "for language in (source, source)"),
    ("sides exchanged", "for language in (source, target)", "for language in (target, source)"),
    (
        "unknown languages fall through",
        "if not _SHA256.keys() >= set(names):",
        "if False:",
    ),
    ("another split by default", 'split: str = "train"', 'split: str = "val"'),
    ("another cut", "cut = len(text) * 9 // 10", "cut = len(text) * 8 // 10"),
    ("cut by bytes", "cut = len(text) * 9 // 10", "cut = len(text.encode()) * 9 // 10"),
    (
        "the last characters lost",
        "return text[:cut], text[cut:]",
        "return text[:cut], text[cut:-1]",
    ),
]
