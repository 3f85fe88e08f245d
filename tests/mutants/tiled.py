"""Deliberate faults in transformer_lib/tiled.py; tests/test_tiled.py must catch each."""

MUTANTS = [
    (
        "no scale in the tiles",
        "scores = query @ keys.mT / scale",
        "scores = query @ keys.mT",
    ),
    (
        "tiles hide the visible",
        "scores.masked_fill(~mask[..., place], -math.inf)",
        "scores.masked_fill(mask[..., place], -math.inf)",
    ),
    (
        "tiles leak one position",
        "device=query.device) > own",
        "device=query.device) > own + 1",
    ),
    (
        "running sum not rescaled",
        "total = total * rescale + weights",
        "total = total + weights",
    ),
    (
        "running output not rescaled",
        "output = output * rescale + weights",
        "output = output + weights",
    ),
    (
        "running maximum not kept",
        "higher = torch.maximum(maximum, scores.amax(-1, keepdim=True))",
        "higher = scores.amax(-1, keepdim=True)",
    ),
    (
        "empty rows divide by zero",
        "output = output / total.masked_fill(nothing, 1.0)",
        "output = output / total",
    ),
    (
        "backward forgets the pull",
        "(grad @ values.mT - pull)",
        "(grad @ values.mT)",
    ),
    (
        "backward forgets the scale",
        "- pull) / math.sqrt(max(q.shape[-1], 1))",
        "- pull)",
    ),
    (
        "backward keeps one block for queries",
        "grad_query += grad_scores @ keys",
        "grad_query = grad_scores @ keys",
    ),
    (
        "half precision sums in half",
        "torch.promote_types(query.dtype, torch.float32)  # accumulate in float32\n        q =",
        "query.dtype\n        q =",
    ),
    (
        "tiles of width 0 divide by zero",
        "scale = math.sqrt(max(query.shape[-1], 1))",
        "scale = math.sqrt(query.shape[-1])",
    ),
]
