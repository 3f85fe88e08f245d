"""Ways to break beam_search.py, each of which tests/test_beam_search.py must notice."""

MUTANTS = [
    # the reader
    ("dropout stays on", "_evaluation(model)", "model"),
    (
        "the source is read without its mask",
        "_reader(_evaluation(model), source, source_mask, max_len, begin)",
        "_reader(_evaluation(model), source, None, max_len, begin)",
    ),
    (
        "prefixes change places and their caches do not",
        "(reader.reorder if lines.shape[:2] == before else reader.select)(parent.flatten())",
        "lines.shape[:2] == before or reader.select(parent.flatten())",
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
    ("an empty beam", '_require_whole("beam_search", "beam", beam)', "pass"),
    (
        "any length penalty",
        "usable = 0 <= length_penalty * math.log(max_len) < 700",
        "usable = True",
    ),
    ("no patience", '_require("beam_search", patience > 0,', '_require("beam_search", True,'),
]
