"""Ways to break generation.py, each of which tests/test_generation.py must notice."""

MUTANTS = [
    # what is refused
    ("a longer line than there are positions", "+ max_len <= room", "+ max_len <= room + 1"),
    ("a position is left unused", "+ max_len <= room", "+ max_len < room"),
    ("positions limited without a table", "if model.positions is not None:", "if True:"),
    ("the prompt takes no position", "taken, asked = length - 1, f", "taken, asked = 0, f"),
    ("the last token takes a position", "taken, asked = length - 1, f", "taken, asked = length, f"),
    ("padding takes positions", "length = int(mask.sum(dim=-1).max())", "pass"),
    ("a source may have any length", "length <= room, must, length", "True, must, length"),
    ("a source may not fill the table", "length <= room, must, length", "length < room, must, 6"),
    ("tokens beyond the vocabulary", "0 <= low and high <= last,", "0 <= low,"),
    ("negative tokens", "0 <= low and high <= last,", "high <= last,"),
    ("begin and end may lie beyond the vocabulary", "and 0 <= token <= last)", "and 0 <= token)"),
    ("begin and end may be negative", "and 0 <= token <= last)", "and token <= last)"),
    ("no end is refused", "token is None or (_whole(token)", "(_whole(token)"),
    ("any mask", "and source_mask.dtype == torch.bool", ""),
    ("a mask of any shape", "shape in ((B, 1, 1, S), (1, 1, 1, S)) and", ""),
    ("nothing may be written", "_whole(number) and number >= 1 ", "_whole(number) "),
    ("any number of tokens", "_whole(number) and number >= 1 ", "number >= 1 "),
    ("an empty prompt", "length >= 1, ", "True, "),
    ("padding on the right", "bool(mask[..., -1].all())", "True"),
    ("a pick of any shape", "tuple(chosen.shape) == (R,) and chosen", "chosen"),
    ("a pick of any type", "(R,) and chosen.dtype in (torch.int32, torch.int64)", "(R,)"),
    ("a pick beyond the vocabulary", "0 <= low and high < V,", "0 <= low,"),
    ("a pick below zero", "0 <= low and high < V,", "high < V,"),
    # the mode of the model
    ("dropout stays on", '"training": False, ', ""),
    ("the copy of a compiled model is compiled in training", '"_compiled_call_impl": None', ""),
    (
        "a prompt may be split by padding",
        "_require(function, not parted, must,",
        "_require(function, True, must,",
    ),
    (
        "the mode of the beginning counts",
        "reader.model = _evaluation(model)",
        "reader.model = reader.model",
    ),
    (
        "the model is in evaluation between two tokens",
        "        last = _choose(function, pick, logits, seen)\n",
        "        last = _choose(function, pick, logits, seen)\n        model.eval()\n",
    ),
    # the reader of sources
    (
        "the encoder does not see the mask",
        "model.encode(source, self.mask)",
        "model.encode(source)",
    ),
    (
        "the decoder does not see the mask",
        "self.memory, self.mask, cache=",
        "self.memory, None, cache=",
    ),
    ("begin is always 1", "torch.full((len(source),), begin,", "torch.full((len(source),), 1,"),
    (
        "a translator has no room for the last token",
        "self.mask), model.make_cache(max_len)",
        "self.mask), model.make_cache(max_len - 1)",
    ),
    (
        "what was read stays when rows leave",
        "self.memory = self.memory[rows]",
        "self.memory = self.memory[: len(rows)]",
    ),
    (
        "one mask for all stays one",
        "mask.expand(len(source), -1, -1, -1)\n        self.memory",
        "mask\n        self.memory",
    ),
    (
        "lines do not change places",
        "            layer.self_attention.select(rows)",
        "            pass",
    ),
    (
        "a translator forgets nothing",
        "layer.self_attention.cut(layer.self_attention.length - n)",
        "pass",
    ),
    ("a translator forgets all", "layer.self_attention.length - n)", "0)"),
    # the reader of prompts
    ("the first token is the first of the prompt", "prompt[:, -1]", "prompt[:, 0]"),
    ("the last token is read twice", "self._read(prompt[:, :-1])", "self._read(prompt)"),
    ("room is taken twice", "prompt.shape[1] - 1 + max_len", "prompt.shape[1] + max_len"),
    (
        "what is written cannot be seen",
        "(0, max_len - 1), value=True",
        "(0, max_len - 1), value=False",
    ),
    ("a prompt is read without its mask", "self.mask[..., :seen]", "None"),
    (
        "a mask stays when rows leave",
        "self.mask[rows]\n        for layer in self.cache:\n"
        "            layer.select(rows)\n\n    re",
        "self.mask[: len(rows)]\n        for layer in self.cache:\n"
        "            layer.select(rows)\n\n    re",
    ),
    ("a writer forgets nothing", "            layer.cut(layer.length - n)", "            pass"),
    # the loop
    ("the least probable token", "logits.argmax(dim=-1)", "logits.argmin(dim=-1)"),
    ("nan is overlooked", "not logits.isnan().any()", "True"),
    (
        "a prompt is not seen",
        "    if isinstance(model, DecoderOnly):\n        real",
        "    if False:\n        real",
    ),
    (
        "a source is seen",
        "    if isinstance(model, DecoderOnly):\n        real",
        "    if True:\n        real",
    ),
    (
        "padding is seen",
        "real = torch.ones_like(source, dtype=torch.bool) if mask is None else mask[:, 0, 0]",
        "real = torch.ones_like(source, dtype=torch.bool)",
    ),
    ("what is written is not seen", "    seen.scatter_(1, chosen[:, None], True)\n", ""),
    (
        "the end is handed out",
        "                if token != end:\n                    step[row] = token",
        "                step[row] = token\n                if token != end:",
    ),
    ("stop is not asked", "if stop is None or not stop(lines[row]):", "if True:"),
    ("stop sees one token", "not stop(lines[row])", "not stop(lines[row][-1:])"),
    ("a row never leaves", "if 0 < len(on) < len(going):", "if False:"),
    (
        "rows are mixed up when one leaves",
        "going, last, seen = [going[i] for i in on]",
        "going, last, seen = going[: len(on)]",
    ),
    (
        "what was seen stays when rows leave",
        "last[rows], seen[rows]",
        "last[rows], seen[: len(on)]",
    ),
    ("the loop goes on for nobody", "        if not on:\n            return\n", ""),
    ("the model is asked for nobody", "    if not going:\n        return\n", ""),
    (
        "a stream thinks of everything first",
        'return _write("stream", model, source, source_mask, pick, max_len, begin, end, stop)',
        "rest = (max_len, begin, end, stop)\n"
        '    return iter([*_write("stream", model, source, source_mask, pick, *rest)])',
    ),
    (
        "a stream refuses late",
        '    _check("stream", model',
        '    yield from ()\n    _check("stream", model',
    ),
    (
        "greedy never stops",
        "source_mask, _most_probable, *rest)",
        "source_mask, _most_probable, *rest[:3], None)",
    ),
]
