"""Deliberate faults in transformer_lib/interop.py; tests/test_interop.py must catch each."""

MUTANTS = [
    (
        "converter drops dropout",
        '"dropout": module.dropout}',
        '"dropout": 0.0}',
    ),
    (
        "converter drops the mode",
        "return ours.train(module.training)",
        "return ours",
    ),
    (
        "converter keeps float32",
        "**options).to(module.in_proj_weight)",
        "**options)",
    ),
    (
        "converter back is not batch first",
        "batch_first=True, **options",
        "**options",
    ),
    (
        "add_zero_attn accepted",
        ', "add_zero_attn": False}',
        "}",
    ),
    (
        "shared heads accepted by to_torch",
        '"n_kv_heads": n_heads, ',
        "",
    ),
    (
        "eps not copied",
        'for setting in {"eps", "p"}',
        'for setting in {"p"}',
    ),
    (
        "dropout rates not copied",
        'for setting in {"eps", "p"}',
        'for setting in {"eps"}',
    ),
    (
        "pre and post exchanged on the way from torch",
        '"pre" if layer.norm_first else "post"',
        '"post" if layer.norm_first else "pre"',
    ),
    (
        "any activation taken for the first",
        "activation = next(same, layer.activation)",
        'activation = next(same, "relu")',
    ),
    (
        "any layer accepted",
        "layer=(type(layer), (kind,))",
        "layer=(type(layer), (type(layer),))",
    ),
    ("from_torch keeps its own epsilon", "mine.eps = stack.norm.eps", "pass"),
    (
        "from_torch leaves the final norms as they were born",
        "mine.load_state_dict(stack.norm.state_dict(), strict=stack.norm.bias is not None)",
        "pass",
    ),
    ("from_torch always trains", "return ours.train(model.training)", "return ours"),
    (
        "any module accepted",
        "module=(type(module), (nn.MultiheadAttention, *_LAYERS))",
        "module=(type(module), (type(module),))",
    ),
    (
        "an embedding of another width accepted",
        '{"D": told[0]["d_model"]}, embedding',
        "{}, embedding",
    ),
    ("layers that differ accepted", "require(own, layer=(options, told[:1]))", "pass"),
    (
        "positions that PyTorch's layers lack accepted",
        'positions=(positions, ("sinusoidal", "learned", "none"))',
        "positions=(positions, (positions,))",
    ),
    (
        "the embedding is not copied",
        "(embedding.weight).embedding.load_state_dict(embedding.state_dict())",
        "(embedding.weight)",
    ),
    ("the way back drops the mode", "return theirs.train(attention.training)", "return theirs"),
    (
        "a bias on some projections alone accepted",
        "bias=(attention.out_proj.bias is not None, (bias,))",
        "bias=(bias, (bias,))",
    ),
]
