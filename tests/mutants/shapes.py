"""Deliberate faults in transformer_lib/shapes.py; tests/test_shapes.py must catch each."""

MUTANTS = [
    (
        "leading axes may differ",
        "            shape = (lead, *shape[n:])\n",
        '            shape = (known.setdefault("...", lead), *shape[n:])\n',
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
        "known: dict[str, Any] = dict(sizes)",
        "known: dict[str, Any] = {}",
    ),
    (
        "letters are compared within one tensor only",
        "        first = x if first is None else first\n",
        "        first, known = x if first is None else first, dict(sizes)\n",
    ),
    (
        "an open end is closed",
        '(value > first or low[0] == "[")',
        "True",
    ),
    (
        "a closed end is open",
        '(value > first or low[0] == "[")',
        "value > first",
    ),
    (
        "an upper end is always included",
        '(value < last or high[-1] == "]")',
        "True",
    ),
    (
        "booleans are numbers",
        " and not isinstance(value, bool)\n",
        "\n",
    ),
    (
        "booleans are integers",
        " and not isinstance(value, bool)\n",
        " and not (isinstance(value, bool) and not step)\n",
    ),
    (
        "indices of any type",
        'int: ("int32 or int64", (torch.int32, torch.int64))',
        'int: ("int32 or int64", (torch.int8, torch.int32, torch.int64))',
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
        "        if x is None:\n            continue\n",
        "",
    ),
    (
        "a missing extra names no remedy",
        "executable-transformer[{extra}] @",
        "executable-transformer @",
    ),
    (
        "another package is imported",
        "return import_module(package)",
        "return import_module('os')",
    ),
    (
        "indices of any rank",
        "if differ or len(shape) != len(letters):",
        "if differ or (len(shape) != len(letters) and len(more) < 2):",
    ),
    (
        "another device accepted",
        " or (x is not first and x.device != first.device)",
        "",
    ),
    (
        "mixed dtypes accepted",
        " and autocast_dtype(x.device) is not None:",
        ":",
    ),
    (
        "integers pass in mixed precision",
        "dtypes = _FLOATS  #",
        "dtypes = (*_FLOATS, torch.int64)  #",
    ),
    (
        "mask on another device",
        "(x is not first and x",
        "(not more and x",
    ),
    (
        "a mask of numbers",
        "if not more and x.dtype not in dtypes",
        "if x.dtype not in dtypes",
    ),
    (
        "a bias of booleans",
        'float: ("floating-point", _FLOATS)',
        'float: ("floating-point", (*_FLOATS, torch.bool))',
    ),
    (
        "key axis of a mask may be 1",
        'MASK = "T S|#... #T S"',
        'MASK = "T S|#... #T #S"',
    ),
    (
        "a mask of fewer axes",
        'if axes == "#..." else lead',
        'if axes[0] == "#" else lead',
    ),
    (
        "leading axes of a mask may differ",
        "tuple(k if i == 1 else i for i, k in",
        "tuple(k for i, k in",
    ),
    (
        "a mask of two axes may have one row",
        'axes = axes.split("|")[-1 if x.dim() > 2 else 0]',
        'axes = axes.split("|")[1].replace("#... ", "") if x.dim() < 3 else axes.split("|")[1]',
    ),
    ("any letter may be 1", 'not (n == 1 and f"#{a}" in axes)', "n != 1"),
    ("multiples are any integers", "and not (step and value % step)\n", "\n"),
    (
        "every value of the right type is allowed",
        "value in rule or type(value) in rule",
        "type(value) in [*map(type, rule), *rule]",
    ),
]
