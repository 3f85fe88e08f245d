"""Ways to break losses.py, each of which tests/test_losses.py must notice."""

MUTANTS = [
    # the loss of tokens
    ("smoothing forgotten", "            if smoothing:\n", "            if False:\n"),
    (
        "smoothing forgotten on the way back",
        "            if ctx.smoothing:\n",
        "            if False:\n",
    ),
    ("smoothing added to the label's whole share", "(1 - smoothing) * surprise", "surprise"),
    ("smoothing summed, not averaged", "log_shares.mean(dim=-1)", "log_shares.sum(dim=-1)"),
    ("the even share asked for whole", "ctx.smoothing / gap.shape[-1]", "ctx.smoothing"),
    ("the label asked for whole", "ctx.smoothing - 1)", "-1)"),
    ("padding counted", "surprise.where(counts, 0)", "surprise"),
    (
        "padding pulls",
        "pull = (grad_loss * counted)[:, None]",
        "pull = grad_loss.expand(len(labels), 1)",
    ),
    (
        "the caller's factor forgotten",
        "pull = (grad_loss * counted)",
        "pull = (torch.ones_like(grad_loss) * counted)",
    ),
    (
        "only the last strip counts",
        "            loss = loss + surprise",
        "            loss = surprise",
    ),
    ("one strip for all", "2**19 // max(1, vocab_size) if on_cpu else n_rows", "n_rows"),
    (
        "token 0 never counts",
        "torch.ones_like(labels, dtype=torch.bool) if padding is None else labels != padding",
        "labels != (PAD if padding is None else padding)",
    ),
    (
        "sums in half precision",
        "wide = torch.promote_types(logits.dtype, torch.float32)  # long sums",
        "wide = logits.dtype  # long sums",
    ),
    (
        "float64 logits narrowed",
        "wide = torch.promote_types(logits.dtype, torch.float32)  # long sums",
        "wide = torch.float32  # long sums",
    ),
    (
        "softmax, then log",
        "z.to(wide).log_softmax(dim=-1)",
        "(z.to(wide).softmax(dim=-1) + 1e-9).log()",
    ),
    ("compiled: smoothing forgotten", "            label_smoothing=smoothing,\n", ""),
    ("compiled: mean for sum", 'reduction="sum"', 'reduction="mean"'),
    (
        "compiled: padding counted",
        "ignore_index=-100 if padding is None else padding",
        "ignore_index=-100",
    ),
    (
        "compiled: token 0 never counts",
        "ignore_index=-100 if padding is None else padding",
        "ignore_index=PAD if padding is None else padding",
    ),
    (
        "compiled: half precision",
        "            logits.to(torch.promote_types(logits.dtype, torch.float32)),\n",
        "            logits,\n",
    ),
    ("smoothing of one taken", "if not 0 <= smoothing < 1:", "if not 0 <= smoothing <= 1:"),
    ("negative smoothing taken", "if not 0 <= smoothing < 1:", "if not smoothing < 1:"),
    ("shapes not compared", "if logits.shape[:-1] != labels.shape:", "if False:"),
    ("labels not looked at", "_check_labels(labels, logits.shape[-1], padding)", "pass"),
    ("a label of V accepted", "high >= vocab_size", "high > vocab_size"),
    ("negative labels accepted", "low < 0 or ", ""),
    (
        "padding refused as a label",
        "counted = labels if padding is None else labels[labels != padding]",
        "counted = labels",
    ),
    # the loss of models
    ("the source's padding seen", "source_mask=batch.source_mask", "source_mask=None"),
    (
        "labels not shifted",
        "token_loss(logits, batch.labels, smoothing=smoothing)",
        "token_loss(logits, batch.inputs, smoothing=smoothing)",
    ),
    (
        "translations never smoothed",
        "token_loss(logits, batch.labels, smoothing=smoothing)",
        "token_loss(logits, batch.labels)",
    ),
    (
        "token 0 of a text skipped",
        "batch.labels, smoothing=smoothing, padding=None)",
        "batch.labels, smoothing=smoothing)",
    ),
    (
        "texts never smoothed",
        "batch.labels, smoothing=smoothing, padding=None)",
        "batch.labels, padding=None)",
    ),
]
