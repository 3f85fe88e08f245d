"""Ways to break decoding.py, each of which tests/test_decoding.py must notice."""

MUTANTS = [
    # the reader
    ("dropout stays on", "    model.eval()\n", ""),
    (
        "the model is left in evaluation mode",
        "        for module, mode in modes:\n            module.training = mode\n",
        "        pass\n",
    ),
    (
        "every module gets the mode of the model",
        "            module.training = mode",
        "            module.training = modes[0][1]",
    ),
    (
        "the encoder does not see the mask",
        "model.encode(source, self.mask)",
        "model.encode(source)",
    ),
    (
        "the decoder does not see the mask",
        "self.memory, self.mask, cache=self.cache",
        "self.memory, None, cache=self.cache",
    ),
    (
        "the mask stays when rows leave",
        "self.mask = None if self.mask is None else self.mask[rows]",
        "self.mask = None if self.mask is None else self.mask[: len(rows)]",
    ),
    (
        "what was read stays when rows leave",
        "            layer.select(rows)",
        "            layer.self_attention.select(rows)\n"
        "            layer.cross_attention.select(torch.arange(len(rows)) % len(self.memory))",
    ),
    (
        "what was written stays when prefixes change places",
        "            layer.self_attention.select(rows)",
        "            pass",
    ),
    ("no room for the last token", "model.make_cache(max_len)", "model.make_cache(max_len - 1)"),
    # greedy
    ("greedy takes the least probable token", ".max(dim=-1)", ".min(dim=-1)"),
    ("greedy overlooks nan", "if logit.isnan().any():", "if False:"),
    (
        "greedy never lets a row leave",
        "if len(going) < len(rows):",
        "if len(going) < 0:",
    ),
    ("greedy writes into the wrong rows", "rows, last = rows[going]", "rows, last = going"),
    (
        "greedy keeps the end",
        "line[: line.index(end)] if end in line",
        "line[: line.index(end) + 1] if end in line",
    ),
    # one step of a beam
    (
        "sums in half precision",
        "exact = torch.promote_types(logits.dtype, torch.float32)",
        "exact = logits.dtype",
    ),
    ("scores are not normalised", ".log_softmax(dim=-1).topk(", ".topk("),
    ("too few extensions of a prefix", "topk(min(beam + 1, ", "topk(min(beam, "),
    ("too few extensions of a source", "min(beam + W, W * C)", "min(beam, W * C)"),
    ("the past counts for nothing", "(log_p[..., None] + step", "(0 * log_p[..., None] + step"),
    ("prefixes of the first source for all", "first + place // C", "place // C"),
    ("a beam overlooks nan", "if best.isnan().any():", "if False:"),
    # what is found
    (
        "the end is not counted",
        "divisors[n], finished=True",
        "divisors[n - 1] or 1.0, finished=True",
    ),
    ("the score is not divided", "score=p / divisor", "score=p"),
    ("the score is multiplied", "score=p / divisor", "score=p * divisor"),
    (
        "an end counts wherever it stands",
        "ended = ((token == end) & (best > -math.inf))[:, :beam]",
        "ended = (token == end) & (best > -math.inf)\n            beam, kept_beam = 99, beam",
    ),
    ("impossible ends are found", "(token == end) & (best > -math.inf)", "(token == end) & True"),
    ("the begin stays in front", "[ended][:, 1:-1]", "[ended][:, :-1]"),
    ("worst first", "key=lambda one: -one.score", "key=lambda one: one.score"),
    (
        "found under the wrong source",
        "insort(found[rows[i]], hypothesis",
        "insort(found[i], hypothesis",
    ),
    ("what has ended goes on", "best.masked_fill(token == end, -math.inf)", "best"),
    # when to stop
    ("hope without the divisor", "p / divisors[max_len] for p", "p for p"),
    ("hope of a shorter line", "p / divisors[max_len] for p", "p / divisors[n] for p"),
    (
        "left when as many have finished as the beam is wide",
        "hope > done[beam - 1].score",
        "False",
    ),
    ("left when the best cannot change", "done[beam - 1].score", "done[0].score"),
    ("never left", "hope > done[beam - 1].score", "True"),
    ("patience has no effect", "and len(done) < patience * beam", ""),
    ("patience without the width", "len(done) < patience * beam", "len(done) < patience"),
    ("searched on without hope", "if hope > -math.inf\n        and", "if"),
    # what is cut short
    (
        "the unfinished are lost",
        "    for row, line, p in zip(rows, lines, log_p, strict=True):",
        "    for row, line, p in ():",
    ),
    (
        "the unfinished say they have ended",
        "divisors[max_len], finished=False",
        "divisors[max_len], finished=True",
    ),
    ("more than the beam", "hypotheses[:beam] for hypotheses", "hypotheses for hypotheses"),
    ("impossible prefixes are returned", "real = p > -math.inf", "real = p >= -math.inf"),
    # refusals
    ("a longer line than there are positions", "max_len <= room", "max_len <= room + 1"),
    ("positions limited without a table", "model.positions is None or ", ""),
    ("begin and end may lie beyond the vocabulary", "0 <= token <= last", "0 <= token <= last + 1"),
    ("any mask", "source_mask.dtype == torch.bool", "True"),
]
