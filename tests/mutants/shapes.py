"""Deliberate faults in transformer_lib/shapes.py; tests/test_shapes.py must catch each."""

MUTANTS = [
    (
        "leading axes may differ",
        "        for letter, size in zip(letters, shape, strict=False):\n",
        "        for letter, size in zip(letters[1:], shape[1:], strict=False):\n",
    ),
    (
        "extra axes are taken",
        "if differ or len(shape) != len(letters):",
        "if differ or len(shape) < len(letters):",
    ),
    (
        "missing axes are taken",
        "if differ or len(shape) != len(letters):",
        "if differ or len(shape) > len(letters):",
    ),
    (
        "fixed sizes are not compared",
        "for letter, size in fixed:",
        "for letter, size in ():",
    ),
    (
        "letters are compared within one tensor only",
        "        letters, fixed = parse(axes)\n",
        "        sizes, (letters, fixed) = {}, parse(axes)\n",
    ),
    (
        "an open end is closed",
        '(interval[0] == "[" and low == number)',
        "low == number",
    ),
    (
        "a closed end is open",
        '(interval[0] == "[" and low == number)',
        "False",
    ),
    (
        "an upper end is always included",
        '(interval[-1] == "]" and number == high)',
        "number == high",
    ),
    (
        "booleans are numbers",
        "isinstance(number, Real) and not isinstance(number, bool)",
        "isinstance(number, Real)",
    ),
    (
        "booleans are integers",
        "isinstance(number, Integral) and not isinstance(number, bool)",
        "isinstance(number, Integral)",
    ),
    (
        "indices of any type",
        'if not fits or tensor.dtype not in _DTYPES["int32 or int64"]:',
        "if not fits:",
    ),
    (
        "the index n is taken",
        "if low < 0 or high >= n:",
        "if low < 0 or high > n:",
    ),
    (
        "negative indices are taken",
        "if low < 0 or high >= n:",
        "if high >= n:",
    ),
    (
        "None is not skipped",
        "        if tensor is None:\n            continue\n",
        "",
    ),
    (
        "a missing extra names no remedy",
        "executable-transformer[chapters] @",
        "executable-transformer @",
    ),
    (
        "another package is imported",
        "return import_module(package)",
        "return import_module('os')",
    ),
    (
        "indices of any rank",
        'fits = axes == "..." or tensor.dim() == axes.count(" ") + 1',
        "fits = True",
    ),
    (
        "another device accepted",
        "if x is None or (x.dtype == like.dtype and x.device == like.device):",
        "if x is None or x.dtype == like.dtype:",
    ),
    (
        "mixed dtypes accepted",
        'if not x.is_floating_point() or kind == "meta" or not torch.is_autocast_enabled(kind):',
        "if not x.is_floating_point():",
    ),
    (
        "integers pass in mixed precision",
        'if not x.is_floating_point() or kind == "meta" or',
        'if kind == "meta" or',
    ),
    (
        "mask on another device",
        "if x.device != query.device:",
        "if x is bias and x.device != query.device:",
    ),
    (
        "a mask of numbers",
        "if x is mask and x.dtype != torch.bool:",
        "if False:",
    ),
    (
        "a bias of booleans",
        "if x is bias and not x.is_floating_point():",
        "if False:",
    ),
    (
        "key axis of a mask may be 1",
        "            and shape[-1] == n_keys\n",
        "",
    ),
    (
        "a mask of fewer axes",
        "            len(shape) == len(scores)\n            and",
        "            True\n            and",
    ),
    (
        "leading axes of a mask may differ",
        "all(n in (1, size) for",
        "all(n for",
    ),
]
