"""Ways to break sampling.py, each of which tests/test_sampling.py must notice."""

MUTANTS = [
    # the filters
    ("one token too few", "topk(min(k, logits", "topk(min(max(k - 1, 1), logits"),
    ("k beyond the vocabulary fails", "min(k, logits.shape[-1])", "k"),
    ("ties with the k-th are dropped", "logits < least", "logits <= least"),
    ("the least probable are kept", "descending=True", "descending=False"),
    ("the token that reaches p is dropped", "cumsum(dim=-1) - shares >= p", "cumsum(dim=-1) >= p"),
    ("one token too many", "cumsum(dim=-1) - shares >= p", "cumsum(dim=-1) - shares > 1.2 * p"),
    ("p of one drops the tail", " >= p) & (p < 1)", " >= p)"),
    ("sums in half precision", "softmax(dim=-1, dtype=exact)", "softmax(dim=-1)"),
    ("nothing may be left", "    enough[..., 0] = False\n", "    enough[..., 0] = p < 0.01\n"),
    ("the order is not undone", ".scatter(-1, order.indices, enough)", " | enough"),
    ("min-p of the logits", "(math.log(p) if p else -math.inf)", "-1 / (p or 1e-9)"),
    ("min-p without its edge", "logits < floor, -math.inf", "logits <= floor, -math.inf"),
    ("min-p of nothing fails", "math.log(p) if p else -math.inf", "math.log(p)"),
    (
        "a penalty raises what is negative",
        "logits / penalty, logits * penalty)",
        "logits / penalty, logits / penalty)",
    ),
    ("a penalty without end", "<= number <= ends.max", "<= number"),
    ("a penalty of next to nothing", "ends.tiny <= number", "0 < number"),
    ("a penalty overflows", ".clamp(ends.min, ends.max)", ""),
    ("an impossible token is revived", "seen & logits.isfinite()", "seen"),
    ("a penalty for all", "torch.where(seen & logits.isfinite(), lower, logits)", "lower"),
    (
        "a penalty for what is new",
        "torch.where(seen & logits.isfinite(), lower, logits)",
        "torch.where(seen & logits.isfinite(), logits, lower)",
    ),
    # the sampler
    (
        "draws in half precision",
        "logits.to(torch.promote_types(logits.dtype, torch.float32))",
        "logits",
    ),
    ("no temperature", "/ self.temperature", "/ 1"),
    ("temperature overflows", "(logits - logits.amax(dim=-1, keepdim=True)) /", "logits /"),
    ("temperature upside down", "/ self.temperature", "* self.temperature"),
    (
        "temperature after top-k and top-p",
        "        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature"
        "  # may not overflow\n"
        "        if self.top_k is not None:\n"
        "            logits = keep_top_k(logits, self.top_k)\n"
        "        if self.top_p is not None:\n"
        "            logits = keep_top_p(logits, self.top_p)\n",
        "        if self.top_k is not None:\n"
        "            logits = keep_top_k(logits, self.top_k)\n"
        "        if self.top_p is not None:\n"
        "            logits = keep_top_p(logits, self.top_p)\n"
        "        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature"
        "  # may not overflow\n",
    ),
    (
        "top-p before top-k",
        "        if self.top_k is not None:\n"
        "            logits = keep_top_k(logits, self.top_k)\n"
        "        if self.top_p is not None:\n"
        "            logits = keep_top_p(logits, self.top_p)\n",
        "        if self.top_p is not None:\n"
        "            logits = keep_top_p(logits, self.top_p)\n"
        "        if self.top_k is not None:\n"
        "            logits = keep_top_k(logits, self.top_k)\n",
    ),
    ("no penalty", "if self.repetition_penalty != 1:", "if False:"),
    ("no top-k", "if self.top_k is not None:\n            logits", "if False:\n            logits"),
    ("no top-p", "if self.top_p is not None:", "if False:"),
    ("no min-p", "if self.min_p is not None:", "if False:"),
    ("the generator is forgotten", "1, generator=self.generator)", "1)"),
    (
        "the most probable is taken",
        "torch.multinomial(chances, 1, generator=self.generator)",
        "chances.argmax(-1, keepdim=True)",
    ),
    ("any temperature", '_require_normal("Sampler", "temperature", self.temperature)', "pass"),
    (
        "any penalty",
        '_require_normal("Sampler", "repetition_penalty", self.repetition_penalty)',
        "pass",
    ),
    ("top_k of nothing", '_require_whole("Sampler", "top_k", self.top_k)', "pass"),
    ("any top_p or min_p", '_require_probability("Sampler", name, p)', "pass"),
    ("a top_p of 0", "self.top_p != 0, ", "True, "),
    (
        "sample ignores its sampler",
        "pick = Sampler() if sampler is None else sampler",
        "pick = Sampler()",
    ),
    (
        "sample does not stop",
        "pick, max_len, begin, end, stop)",
        "pick, max_len, begin, end, None)",
    ),
    (
        "sample asks nothing",
        '_check("sample", model, source, source_mask, max_len, begin, end)',
        "pass",
    ),
    # guessing
    (
        "the prompt is not seen",
        "_seen(model, source, mask)  # (1, V)",
        "_seen(model, source[:, :0], None)  # (1, V)",
    ),
    (
        "padding is seen",
        "_seen(model, source, mask)  # (1, V)",
        "_seen(model, source, None)  # (1, V)",
    ),
    (
        "guesses come from torch's generator",
        "guesses.append(_draw(guessed[-1], generator))",
        "guesses.append(_draw(guessed[-1], None))",
    ),
    (
        "torch's generator decides what is kept",
        "torch.rand((), generator=generator, device=p.device)",
        "torch.rand((), device=p.device)",
    ),
    (
        "the last token comes from torch's generator",
        "_draw(wanted[-1], generator)",
        "_draw(wanted[-1], None)",
    ),
    ("no rest, no token", "rest if rest.any() else p", "rest"),
    ("both models are in training", "_evaluation(model), _evaluation(draft)", "model, draft"),
    ("no guesses at all", '_require_whole("speculative", "n_guesses", n_guesses)', "pass"),
    (
        "unread tokens are lost",
        "torch.tensor([self.unread + new]",
        "torch.tensor([(self.unread + new)[-1 - len(new) :]]",
    ),
    ("a wrong guess stays in the cache", "self.reader.forget(self.n_read - kept)", "pass"),
    (
        "all guesses are forgotten",
        "self.reader.forget(self.n_read - kept)",
        "self.reader.forget(self.n_read)",
    ),
    (
        "guesses are not seen",
        "            row[guesses[: before + i]] = True\n",
        "            pass\n",
    ),
    ("all guesses are seen at once", "guesses[: before + i]", "guesses"),
    ("what is settled is not seen", "self.seen[0, tokens] = True", "pass"),
    ("every guess is kept", ">= p[token]:", "> 2:"),
    ("no guess is kept", ">= p[token]:", ">= 0:"),
    ("kept whatever the draft thought", "* q[token] >= p[token]", ">= p[token]"),
    ("the rest is the model's own", "(p - q).clamp_min(0)", "p"),
    ("the rest is the draft's", "(p - q).clamp_min(0)", "(q - p).abs()"),
    (
        "the last token is the draft's",
        "_draw(wanted[-1], generator)",
        "_draw(guessed[-1] if guessed else wanted[-1], generator)",
    ),
    ("the draft may guess beyond the end", "max_len - len(line) - 1)", "max_len - len(line))"),
    ("rows share a mask that is not theirs", "source_mask[i % len(source_mask)]", "source_mask[0]"),
    ("nothing ends early", "and end not in line:", ":"),
    (
        "the end is handed out",
        "line[: line.index(end)] if end in line",
        "line[: line.index(end) + 1] if end in line",
    ),
    (
        "the draft is in training",
        "_evaluation(model), _evaluation(draft)",
        "_evaluation(model), draft",
    ),
    ("nan is overlooked", "if logits.isnan().any():", "if False:"),
    ("any two vocabularies", "sizes[0] == sizes[1], ", "True, "),
    ("any two kinds", '_require("speculative", alike,', '_require("speculative", True,'),
    (
        "the draft is not asked whether it can",
        "for one in (model, draft):\n        _check",
        "for one in (model,):\n        _check",
    ),
    ("guesses of the last round count", "kept + len(new) - 1", "kept + len(new)"),
]
