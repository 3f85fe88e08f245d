"""Ways to break testing.py, each of which tests/test_testing.py must notice."""

MUTANTS = [
    (
        "a failure counts as a pass",
        "worst <= rule.limit else",
        "worst <= math.inf else",
    ),
    (
        "nan counts as no deviation",
        "nan_to_num(math.inf, math.inf,",
        "nan_to_num(0.0, math.inf,",
    ),
    (
        "exceptions go uncaught",
        "except Exception as error:",
        "except ZeroDivisionError as error:",
    ),
    (
        "the best place is named",
        "index = torch.unravel_index(values.argmax()",
        "index = torch.unravel_index(values.argmin()",
    ),
    (
        "what is skipped is examined",
        "if name in skip:",
        "if name in ():",
    ),
    (
        "the candidate itself is switched to eval",
        "_copy(target).cpu()",
        "target.cpu()",
    ),
    (
        "stored tensors keep their history",
        "{id(x): x.detach() for x in left}",
        "{}",
    ),
    (
        "dropout disturbs the caller's random state",
        "torch.set_rng_state(state)",
        "pass",
    ),
    (
        "two evaluations share a seed",
        "default_generator.manual_seed(seed)",
        "default_generator.manual_seed(0)",
    ),
    (
        "influence sums features",
        "(position * probe).sum()",
        "position.sum()",
    ),
    (
        "influence of the last input alone",
        "torch.stack(felt).amax(0)",
        "felt[-1]",
    ),
    (
        "leaks are sought in the past",
        "yield seen.triu(1),",
        "yield seen.tril(-1) * 0,",
    ),
    (
        "the future is left as it is",
        "c.change(inputs, c.own, places >= cut)",
        "c.change(inputs, c.own, places < 0)",
    ),
    (
        "the past need not matter",
        "torch.ones_like(seen).tril() > 0",
        "torch.ones_like(seen).tril() > 1",
    ),
    (
        "tokens of the past need not matter",
        ".where(places[0] >= j, -math.inf)",
        ".where(places[0] > 99, -math.inf)",
    ),
    (
        "aligned at the first key",
        "torch.ones(_T, _S).tril(_S - _T) > 0",
        "torch.ones(_T, _S).tril() > 0",
    ),
    (
        "blind keys go unnoticed",
        "torch.where(visible, (seen == 0).to(seen.dtype), seen)",
        "torch.where(visible, 0 * seen, seen)",
    ),
    (
        "empty rows may hold anything",
        "yield torch.where(_at(~mask[:, 0].any(-1), out), moved.abs(), out * 0)",
        "yield torch.where(_at(~mask[:, 0].any(-1), out), out * 0, out * 0)",
    ),
    (
        "gradients may be nan",
        "(~grad.isfinite()).double().amax()[None]",
        "(~grad.isfinite()).double().amax()[None] * 0",
    ),
    (
        "queries keep their order",
        "yield _gap(c([query[..., order, :], *rest]), before)",
        "yield _gap(before, before)",
    ),
    (
        "batch compared with itself",
        "yield _gap(torch.cat(alone), c(inputs, mask))",
        "yield _gap(torch.cat(alone), torch.cat(alone))",
    ),
    (
        "the cache is never split",
        "for sizes in [[cut, n - cut] for cut in range(1, n)] + [[1] * n]:",
        "for sizes in [[n]]:",
    ),
    (
        "any dtype will do",
        "if out.dtype != dtype:",
        "if out.dtype is None:",
    ),
    (
        "gradcheck is forgotten",
        "torch.autograd.gradcheck(lambda *inputs: c(inputs, mask), inputs, fast_mode=True)",
        "pass",
    ),
    (
        "a changed input passes",
        "kept = [x.clone() for x in given]",
        "kept = given",
    ),
    (
        "only the values of torch count",
        "pair = c(inputs, *arguments), theirs",
        "pair = theirs, theirs",
    ),
    (
        "training is evaluation",
        "_quiet(module).train())",
        "_quiet(module).eval())",
    ),
    (
        "source order is not asked",
        'yield -_gap(c([x.flip(-2), target]), before).amax(-1), "source reversed"',
        "continue",
    ),
    (
        "surplus loss is forgiven",
        "(F.cross_entropy(logits, labels) - math.log(c.vocab_size))[None]",
        "F.cross_entropy(logits, labels)[None] * 0",
    ),
    (
        "unused parameters are forgiven",
        "learns = grad is not None and",
        "learns = grad is None or",
    ),
    (
        "torch's masks are not inverted",
        "else ~mask.broadcast_to",
        "else mask.broadcast_to",
    ),
    (
        "the adapter aligns the first key",
        ".tril(n_keys - n_queries)",
        ".tril()",
    ),
    (
        "html is not escaped",
        "<td>{html.escape(cell)}</td>",
        "<td>{cell}</td>",
    ),
    (
        "an unknown name in skip is accepted",
        "if unknown := sorted(set(skip or {}) - known):",
        "if unknown := []:",
    ),
    (
        "limit too high: cache equals no cache",
        '@_property("cache equals no cache", 1e-5, _ATTENTION, _MODEL, needs=("cache"',
        '@_property("cache equals no cache", 1e-4, _ATTENTION, _MODEL, needs=("cache"',
    ),
    (
        "limit too high: initial loss near ln V",
        '@_property("initial loss near ln V", 1.5',
        '@_property("initial loss near ln V", 3.0',
    ),
    (
        "limit too high: initial loss not below ln V",
        '@_property("initial loss not below ln V", 0.2',
        '@_property("initial loss not below ln V", 0.4',
    ),
    (
        "limit too high: weights sum to one",
        '@_property("weights sum to one", 1e-5',
        '@_property("weights sum to one", 1e-4',
    ),
    (
        "limit too high: head independence",
        '@_property("head independence", 1e-5',
        '@_property("head independence", 1e-4',
    ),
    (
        "limit too high: batch independence",
        '@_property("batch independence", 1e-5',
        '@_property("batch independence", 1e-4',
    ),
    (
        "limit too high: order of keys",
        '@_property("order of keys", 1e-5',
        '@_property("order of keys", 1e-4',
    ),
    (
        "limit too high: order of queries",
        '@_property("order of queries", 1e-5',
        '@_property("order of queries", 1e-4',
    ),
    (
        "limit too high: padding does not matter",
        '@_property("padding does not matter", 1e-5',
        '@_property("padding does not matter", 1e-4',
    ),
    (
        "limit too high: same in training and evaluation",
        '@_property("same in training and evaluation", 1e-5',
        '@_property("same in training and evaluation", 1e-4',
    ),
    (
        "limit too high: empty rows are silent",
        '@_property("empty rows are silent", 1e-6',
        '@_property("empty rows are silent", 1e-5',
    ),
    (
        "limit too high: agrees with torch",
        '@_property("agrees with torch", 1e-9',
        '@_property("agrees with torch", 1e-8',
    ),
    (
        "limit too low: every source token matters",
        '@_property("every source token matters", -1e-5, _MODEL',
        '@_property("every source token matters", -1e-6, _MODEL',
    ),
    (
        "limit too low: order matters",
        '@_property("order matters", -1e-5, _MODEL',
        '@_property("order matters", -1e-6, _MODEL',
    ),
    (
        "limit too low: the past matters",
        '@_property("the past matters", -1e-5, _MODEL',
        '@_property("the past matters", -1e-6, _MODEL',
    ),
]
