"""Deliberate faults in transformer_lib/attention.py; tests/test_attention.py must catch each."""

MUTANTS = [
    (
        "causal mask off by one",
        "torch.arange(n_keys, device=device) <= query[:, None]",
        "torch.arange(n_keys, device=device) < query[:, None]",
    ),
    (
        "first query aligned with first key",
        "query = torch.arange(n_keys - n_queries, n_keys, device=device)",
        "query = torch.arange(n_queries, device=device)",
    ),
    (
        "padding shown, tokens hidden",
        "(keys < lengths[:, None])[:, None, None, :]",
        "(keys >= lengths[:, None])[:, None, None, :]",
    ),
    (
        "padding off by one",
        "(keys < lengths[:, None])",
        "(keys <= lengths[:, None])",
    ),
    (
        "causal forgets the mask",
        "return earlier if mask is None else mask & earlier",
        "return earlier",
    ),
    (
        "mask or causal instead of both",
        "earlier if mask is None else mask & earlier",
        "earlier if mask is None else mask | earlier",
    ),
    (
        "fused path trusts is_causal for T != S",
        "if causal and mask is None and bias is None and n_queries == n_keys:",
        "if causal and mask is None and bias is None:",
    ),
    (
        "fused path forgets the bias",
        "if causal and mask is None and bias is None and n_queries == n_keys:",
        "bias = None\n    if causal and mask is None and n_queries == n_keys:",
    ),
    (
        "bias hides what the mask shows",
        "bias.masked_fill(~visible, -math.inf)",
        "bias.masked_fill(visible, -math.inf)",
    ),
    (
        "weights returned are not those that mixed",
        "return weights @ value, weights",
        "return weights @ value, weights * 2",
    ),
    (
        "explicit path forgets scale",
        ", scale=scale)\n    else:",
        ")\n    else:",
    ),
    (
        "fused path forgets scale",
        "attn_mask=visible, scale=scale, dropout_p=dropout)",
        "attn_mask=visible, dropout_p=dropout)",
    ),
    (
        "fused path forgets dropout",
        "attn_mask=visible, scale=scale, dropout_p=dropout)",
        "attn_mask=visible, scale=scale)",
    ),
    (
        "few: half precision sums in half",
        "torch.promote_types(query.dtype, torch.float32)  # accumulate in float32\n    scale =",
        "query.dtype\n    scale =",
    ),
    (
        "few: scale forgotten",
        "if scale is None else scale\n    scores = (query",
        "\n    scores = (query",
    ),
    (
        "few: weights are not dropped",
        "    weights = F.dropout(weights, dropout) if dropout else weights\n    mixed",
        "    mixed",
    ),
    (
        "few: empty rows are NaN",
        "~(visible | empty)",
        "~visible",
    ),
    (
        "few: no row is ever empty",
        "empty if empty.any() else None",
        "None",
    ),
    (
        "few: the causal one off by one",
        "triu_(n_keys - n_queries + 1)",
        "triu_(n_keys - n_queries)",
    ),
    (
        "few: aligned at the first",
        "triu_(n_keys - n_queries + 1)",
        "triu_(1)",
    ),
    (
        "few: causal hides the mask",
        "if causal and mask is None and n_queries <= n_keys:",
        "if causal and n_queries <= n_keys:",
    ),
    (
        "few: more queries than keys",
        "mask is None and n_queries <= n_keys:",
        "mask is None:",
    ),
    (
        "few: causal alone is forgotten",
        "    elif causal or mask is not None:",
        "    elif mask is not None:",
    ),
    (
        "few: empty rows see everything",
        "value.to(wide)).to(query.dtype)\n"
        "    return mixed if nothing is None else mixed.masked_fill(nothing, "
        "0.0)",
        "value.to(wide)).to(query.dtype)\n    return mixed",
    ),
    (
        "few: hidden keys are seen",
        ".masked_fill_(hidden, -math.inf)",
        "",
    ),
    (
        "few: too many",
        "n_queries * n_keys <= _FEW",
        "n_queries <= _FEW",
    ),
    (
        "few: nearly too many",
        "n_queries * n_keys <= _FEW",
        "n_queries * n_keys < _FEW",
    ),
    (
        "few: one query",
        "1 < n_queries and ",
        "",
    ),
    (
        "few: the bias is forgotten",
        "and bias is None and not torch.compiler.is_compiling()",
        "and not torch.compiler.is_compiling()",
    ),
    (
        "explicit: float16 overflows",
        "wide = torch.promote_types(query.dtype, torch.float32)  # float16 overflows above 65,504",
        "wide = query.dtype",
    ),
    (
        "float16 autocast narrows scores",
        "narrow = autocast_dtype(device) == torch.float16",
        "narrow = False",
    ),
    (
        "mixed dtypes accepted",
        '"value": (value, "... S Kv")}',
        '"value": (value, "... S Kv", float)}',
    ),
    (
        "fused: hidden rows left to the kernel",
        "visible = visible | nothing",
        "visible = visible",
    ),
    (
        "fused: hidden rows are not zero",
        "dropout_p=dropout)\n"
        "    return mixed if nothing is None else mixed.masked_fill(nothing, "
        "0.0)",
        "dropout_p=dropout)\n    return mixed",
    ),
    (
        "fused: causal rows without a key forgotten",
        "rows_may_be_empty = mask is not None or n_queries > n_keys",
        "rows_may_be_empty = mask is not None",
    ),
    (
        "few: in mixed precision too",
        '        and not torch.is_autocast_enabled("cpu")\n',
        "",
    ),
    (
        "value width tied to the key width",
        '"value": (value, "... S Kv")',
        '"value": (value, "... S K")',
    ),
    (
        "a bias is not checked",
        '"bias": (bias, MASK, float)',
        '"bias": (None, MASK, float)',
    ),
]
