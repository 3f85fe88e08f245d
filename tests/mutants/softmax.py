"""Deliberate faults in transformer_lib/softmax.py; tests/test_softmax.py must catch each."""

MUTANTS = [
    (
        "temperature multiplied",
        "return (below_best / max(temperature, torch.finfo(torch.float32).tiny)).softmax(dim)",
        "return (below_best * max(temperature, torch.finfo(torch.float32).tiny)).softmax(dim)",
    ),
    (
        "maximum subtracted after dividing, too late for a cold softmax",
        "below_best = scores - scores.detach().amax(dim, keepdim=True)",
        "below_best = scores",
    ),
    (
        "maximum of the whole tensor",
        "below_best = scores - scores.detach().amax(dim, keepdim=True)",
        "below_best = scores - scores.detach().amin(dim, keepdim=True)",
    ),
    (
        "tiny temperatures divide by zero",
        "max(temperature, torch.finfo(torch.float32).tiny)",
        "temperature",
    ),
    (
        "temperature ignores dim",
        "max(temperature, torch.finfo(torch.float32).tiny)).softmax(dim)",
        "max(temperature, torch.finfo(torch.float32).tiny)).softmax(-1)",
    ),
    (
        "empty axis breaks with a temperature",
        "if temperature == 1 or scores.numel() == 0:",
        "if temperature == 1:",
    ),
    (
        "temperature 0 accepted",
        'temperature=(temperature, "a number above 0")',
        'temperature=(temperature, "a number at least 0")',
    ),
    (
        "NaN temperature accepted",
        'temperature=(temperature, "a number above 0")',
        'temperature=(max(1e-9, temperature), "a number above 0")',
    ),
    (
        "mask inverted",
        "scores = torch.where(mask, scores, -math.inf)",
        "scores = torch.where(mask, -math.inf, scores)",
    ),
    (
        "mask ignored",
        "scores = torch.where(mask, scores, -math.inf)",
        "scores = torch.where(mask, scores, scores)",
    ),
    (
        "-1e9 instead of minus infinity",
        "scores = torch.where(mask, scores, -math.inf)",
        "scores = torch.where(mask, scores, -1e9)",
    ),
    (
        "lowest finite number instead of minus infinity",
        "scores = torch.where(mask, scores, -math.inf)",
        "scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)",
    ),
    (
        "mask written into the caller's scores",
        "scores = torch.where(mask, scores, -math.inf)",
        "scores = scores.masked_fill_(~mask, -math.inf)",
    ),
    (
        "mask added as a number, so that hidden NaN comes through",
        "scores = torch.where(mask, scores, -math.inf)",
        "scores = scores + torch.where(mask, 0.0, -math.inf).to(scores)",
    ),
    (
        "empty rows stay NaN",
        "return torch.where(nothing, 0.0, scores.softmax(dim))",
        "return scores.softmax(dim)",
    ),
    (
        "empty rows uniform",
        "return torch.where(nothing, 0.0, scores.softmax(dim))",
        "return torch.where(nothing, 1 / scores.shape[dim], scores.softmax(dim))",
    ),
    (
        "every NaN swept away",
        "return torch.where(nothing, 0.0, scores.softmax(dim))",
        "return scores.softmax(dim).nan_to_num(0.0)",
    ),
    (
        "masked softmax over the wrong axis",
        "return torch.where(nothing, 0.0, scores.softmax(dim))",
        "return torch.where(nothing, 0.0, scores.softmax(-2 if scores.dim() > 1 else dim))",
    ),
    (
        "gradient without the average",
        "return shares * (grad - (shares * grad).sum(ctx.dim, keepdim=True)), None, None",
        "return shares * grad, None, None",
    ),
    (
        "gradient averaged over the wrong axis",
        "(shares * grad).sum(ctx.dim, keepdim=True)",
        "(shares * grad).sum(0, keepdim=True)",
    ),
    (
        "scores kept for the backward pass too",
        "ctx.save_for_backward(output)",
        "ctx.save_for_backward(output, inputs[0])",
    ),
    (
        "closed to vmap",
        "generate_vmap_rule = True",
        "generate_vmap_rule = False",
    ),
    (
        "float masks accepted",
        '"#...", bool',
        '"#...", float if mask is not None and mask.is_floating_point() else bool',
    ),
    (
        "masks that enlarge the scores accepted",
        'scores=(scores, "...", float), mask=(mask, "#...", bool)',
        'mask=(mask, "...", bool), scores=(scores, "#...", float)',
    ),
    (
        "misfitting masks left to torch",
        ', mask=(mask, "#...", bool))\n',
        ")\n",
    ),
    (
        "no keys break the masked softmax",
        "if scores.numel() == 0:\n        return scores.softmax(dim)\n    return _Masked",
        "return _Masked",
    ),
    (
        "dim off by one",
        'axis = f"an integer in [{-scores.dim()}, {scores.dim()})"',
        'axis = f"an integer in [{-scores.dim()}, {scores.dim()}]"',
    ),
    (
        "old total not rescaled",
        "total = total * (maximum - shift).exp() + (scores - shift).exp().sum(-1, keepdim=True)",
        "total = total + (scores - shift).exp().sum(-1, keepdim=True)",
    ),
    (
        "old total rescaled the wrong way",
        "total = total * (maximum - shift).exp()",
        "total = total * (shift - maximum).exp()",
    ),
    (
        "maximum forgotten between blocks",
        "higher = torch.maximum(maximum, scores.detach().amax(-1, keepdim=True))",
        "higher = scores.detach().amax(-1, keepdim=True)",
    ),
    (
        "NaN while a row has seen nothing",
        "shift = higher.masked_fill(higher == -math.inf, 0.0)",
        "shift = higher",
    ),
    (
        "maximum starts at 0",
        "maximum = scores.new_full((*scores.shape[:-1], 1), -math.inf)",
        "maximum = scores.new_full((*scores.shape[:-1], 1), 0.0)",
    ),
    (
        "totals of narrow scores kept narrow",
        "scores = block.to(torch.promote_types(block.dtype, torch.float32))",
        "scores = block",
    ),
    (
        "float64 narrowed",
        "scores = block.to(torch.promote_types(block.dtype, torch.float32))",
        "scores = block.float()",
    ),
    (
        "empty blocks break the maximum",
        "        if scores.shape[-1] == 0:\n            continue\n",
        "",
    ),
    (
        "blocks of other shapes broadcast in silence",
        'maximum=(maximum, "... 1"), block',
        'maximum=(None, "... 1"), block',
    ),
    (
        "no blocks give None",
        "    if maximum is None:\n        raise",
        "    if maximum is False:\n        raise",
    ),
    (
        "the running maximum carries a gradient",
        "higher = torch.maximum(maximum, scores.detach().amax(-1, keepdim=True))",
        "higher = torch.maximum(maximum, scores.amax(-1, keepdim=True))",
    ),
]
