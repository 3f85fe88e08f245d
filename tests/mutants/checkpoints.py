"""Ways to break checkpoints.py, each of which tests/test_checkpoints.py must notice."""

MUTANTS = [
    # whole or not at all
    ("written in place", "        write(draft)\n", "        write(path)\n"),
    (
        "content not forced to the disk",
        '        for part in (*sorted(draft.rglob("*")), draft):\n            _sync(part)\n',
        "",
    ),
    (
        "files of a folder not forced to the disk",
        '(*sorted(draft.rglob("*")), draft)',
        "(draft,)",
    ),
    ("the name not forced to the disk", "        _sync(path.parent)\n", ""),
    ("fsync forgotten", "        os.fsync(descriptor)\n", "        pass\n"),
    (
        "the old folder removed before the new one has its name",
        "            os.replace(path, aside)\n",
        "            _remove(path)\n",
    ),
    (
        "a file cannot become a folder",
        "(path.is_dir() or draft.is_dir())",
        "path.is_dir()",
    ),
    (
        "a folder cannot become a file",
        "(path.is_dir() or draft.is_dir())",
        "draft.is_dir()",
    ),
    (
        "what was set aside is lost by an error",
        "    finally:\n        _put_back(path)\n",
        "    finally:\n",
    ),
    ("drafts stay", "        for rest in (draft, aside):\n            _remove(rest)\n", ""),
    ("the replaced folder stays", "for rest in (draft, aside):", "for rest in (draft,):"),
    (
        "folders are not removed",
        "        shutil.rmtree(path, ignore_errors=True)\n",
        "        pass\n",
    ),
    ("killed drafts of one name stay", "    _sweep(path.parent, re.escape(path.name))\n", ""),
    ("killed drafts of other steps stay", '        _sweep(folder, r"step-\\d+")\n', ""),
    (
        "what was set aside is swept away",
        '            if match[2] == "old":\n                _put_back(path)\n'
        '            if match[2] != "old" or path.exists():\n                _remove(rest)\n',
        "            _remove(rest)\n",
    ),
    (
        "strangers are swept away",
        r'rf"\.({name})\.(\d+|old)"',
        r'rf"\.({name})\.(.+|old)"',
    ),
    (
        "another process that was faster is an error",
        "with contextlib.suppress(OSError):  # there",
        "if _aside(path).exists():  # there",
    ),
    # what is in a checkpoint
    (
        "shared memory not copied",
        "plain.clone() if plain.untyped_storage().data_ptr() in used else plain",
        "plain",
    ),
    ("conjugation lost", ".resolve_conj()", ""),
    ("negation lost", ".resolve_neg()", ""),
    ("strides refused", ".resolve_neg().contiguous()", ".resolve_neg()"),
    ("files for their owner alone", "        file.chmod(0o666 & draft.stat().st_mode)\n", ""),
    ("files for everybody", "file.chmod(0o666 & draft.stat().st_mode)", "file.chmod(0o666)"),
    (
        "no step in the record",
        'record = {"step": step, "files"',
        'record = {"files"',
    ),
    ("negative steps taken", "    if step < 0:\n", "    if False:\n"),
    (
        "files outside the folder",
        "        if not name or Path(name).name != name:\n            raise",
        "        if not name:\n            raise",
    ),
    (
        "the disk's refusal not translated",
        "    except (OSError, SafetensorError) as error:\n        found = newest_good(folder)",
        "    except ZeroDivisionError as error:\n        found = newest_good(folder)",
    ),
    (
        "errors of safetensors not translated",
        "    except (OSError, SafetensorError) as error:\n        found = newest_good(folder)",
        "    except OSError as error:\n        found = newest_good(folder)",
    ),
    # is it what was written
    (
        "the record's seal not compared",
        '    if seal != f"\\n{hashlib.sha256(text).hexdigest()}\\n".encode():',
        "    if False:",
    ),
    (
        "ends of lines translated",
        "sealed = file.read_bytes()",
        "sealed = file.read_text().encode()",
    ),
    (
        "hashes not compared",
        '    if hashlib.sha256(data).hexdigest() != made["sha256"]:',
        "    if False:",
    ),
    (
        "read again after the check",
        "            read = load(data)  #",
        "            read = load((path / name).read_bytes())  #",
    ),
    ("names in the order of the process", "dict(sorted(read.items()))", "read"),
    (
        "only small files hashed",
        'if hashlib.sha256(data).hexdigest() != made["sha256"]:',
        'if len(data) < 4096 and hashlib.sha256(data).hexdigest() != made["sha256"]:',
    ),
    (
        "names cut at their first dot",
        "name.removesuffix(_ENDING)",
        'name.split(".")[0]',
    ),
    (
        "forged names followed",
        'plain = all(Path(name).name == name for name in record["files"])',
        "plain = True",
    ),
    (
        "a record without entries taken",
        'if not (whole and plain and "state" in record):',
        "if not (whole and plain):",
    ),
    (
        "a missing record not translated",
        "        sealed = file.read_bytes()\n    except OSError as error:",
        "        sealed = file.read_bytes()\n    except ZeroDivisionError as error:",
    ),
    (
        "a missing file not translated",
        "        data = file.read_bytes()\n    except OSError as error:",
        "        data = file.read_bytes()\n    except ZeroDivisionError as error:",
    ),
    (
        "a file that is none not translated",
        "        except SafetensorError as error:\n            raise _refusal",
        "        except ZeroDivisionError as error:\n            raise _refusal",
    ),
    # the newest good one
    (
        "steps in the order of letters",
        "return sorted(steps, key=steps.__getitem__, reverse=True)",
        "return sorted(steps, reverse=True)",
    ),
    (
        "the oldest first",
        "return sorted(steps, key=steps.__getitem__, reverse=True)",
        "return sorted(steps, key=steps.__getitem__)",
    ),
    ("strangers listed", r're.fullmatch(r"step-(\d{8,})"', r're.match(r"step-(\d+)"'),
    (
        "what was set aside not put back by readers",
        "            _put_back(folder / match[1])\n",
        "            pass\n",
    ),
    (
        "damage passed over in silence",
        '            warnings.warn(f"{error}; the one before it is tried", stacklevel=2)\n',
        "            pass\n",
    ),
    (
        "only the record looked at",
        "        _content(path / name, made)\n\n\n",
        "        pass\n\n\n",
    ),
    ("prune keeps one less", "        if n_good < newest:\n", "        if n_good < newest - 1:\n"),
    (
        "prune counts bad ones",
        "                _verify(path)\n                n_good += 1\n",
        "                n_good += 1\n",
    ),
    (
        "prune forgets what to keep",
        "        if path.absolute() not in kept:\n",
        "        if True:\n",
    ),
    (
        "prune knows one spelling",
        "kept = {Path(path).absolute() for path in keep}",
        "kept = {Path(path) for path in keep}",
    ),
    ("prune may leave none", "    if newest < 1:\n", "    if False:\n"),
    # averages
    (
        "sums in the tensors' own dtype",
        "total[key] + tensor.double() if key in total else tensor.double()",
        "total[key] + tensor if key in total else tensor",
    ),
    ("a sum for a mean", "(total[key] / len(paths))", "total[key]"),
    ("means stay in float64", ".to(tensor.dtype) if key in total else tensor", ""),
    (
        "other tensors averaged",
        "if kinds is not None and found != kinds:",
        "if False:",
    ),
    (
        "shapes not compared",
        "key: (tuple(tensor.shape), tensor.dtype) for",
        "key: tensor.dtype for",
    ),
    (
        "integers averaged",
        "            if tensor.is_floating_point():\n",
        "            if True:\n",
    ),
    # logs
    (
        "a line that was cut off takes the next one along",
        '                file.write(b"\\n")\n',
        "                pass\n",
    ),
    (
        "a line that was cut off is an error",
        "        with contextlib.suppress(ValueError):\n            records",
        "        with contextlib.suppress(ZeroDivisionError):\n            records",
    ),
    (
        "one record too many forgotten",
        'record.get("step", after) <= after',
        'record.get("step", after) < after',
    ),
    (
        "records without a step forgotten",
        'record.get("step", after) <= after',
        'record.get("step", after + 1) <= after',
    ),
    ("forgetting makes a log", "    if Path(log).exists():\n", "    if True:\n"),
    (
        "the log's folder not made",
        "    log.parent.mkdir(parents=True, exist_ok=True)\n",
        "",
    ),
]
