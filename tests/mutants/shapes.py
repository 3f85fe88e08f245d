"""Ways to break shapes.py, each of which tests/test_shapes.py must notice."""

MUTANTS = [
    ("leading axes may differ", 'if leading and sizes.get("...", shape[:extra]) != shape[:extra]:',
     "if False:"),
    ("extra axes are taken", "if extra < 0 or (extra and not leading):", "if extra < 0:"),
    ("missing axes are taken", "if extra < 0 or (extra and not leading):",
     "if extra and not leading:"),
    ("fixed sizes are not compared", "if shape[extra + i] != size:", "if False:"),
    ("letters are compared within one tensor only", "        sizes |= named\n", ""),
    ("an open end is closed", "(from_low and low == number)", "low == number"),
    ("a closed end is open", "(from_low and low == number)", "False"),
    ("an upper end is always included", "(to_high and number == high)", "number == high"),
    ("booleans are numbers", "isinstance(number, (int, float)) and not isinstance(number, bool)",
     "isinstance(number, (int, float))"),
    ("booleans are integers", "not isinstance(number, (bool, Tensor))",
     "not isinstance(number, Tensor)"),
    ("indices of any type", "if tensor.dtype not in (torch.int32, torch.int64):", "if False:"),
    ("the index n is taken", "if low < 0 or high >= n:", "if low < 0 or high > n:"),
    ("negative indices are taken", "if low < 0 or high >= n:", "if high >= n:"),
    ("None is not skipped", "        if tensor is None:\n            continue\n", ""),
]  # fmt: skip
