"""Ways to break scores.py, each of which tests/test_scores.py must notice."""

MUTANTS = [
    (
        "default scale is the width, not its square root",
        "scale = 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale",
        "scale = 1 / max(query.shape[-1], 1) if scale is None else scale",
    ),
    (
        "scale multiplied where it should divide",
        "scale = 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale",
        "scale = math.sqrt(max(query.shape[-1], 1)) if scale is None else scale",
    ),
    (
        "a scale of 0 taken for no scale",
        "if scale is None else scale",
        "if not scale else scale",
    ),
    (
        "a given scale applied on top of the default",
        "if scale is None else scale",
        "if scale is None else scale / math.sqrt(query.shape[-1])",
    ),
    (
        "product before scale: half precision overflows",
        "return (query * scale) @ key.mT",
        "return (query @ key.mT) * scale",
    ),
    (
        "width 0 divides by zero",
        "math.sqrt(max(query.shape[-1], 1))",
        "math.sqrt(query.shape[-1])",
    ),
    (
        "dot score scaled as well",
        "    return query @ key.mT  # (*batch, T, S)",
        "    return query @ key.mT / math.sqrt(query.shape[-1])  # (*batch, T, S)",
    ),
    (
        "keys not transposed within each batch",
        "    return query @ key.mT  # (*batch, T, S)",
        "    return (key @ query.mT).reshape(*query.shape[:-1], key.shape[-2])",
    ),
    (
        "query scaled in place",
        "return (query * scale) @ key.mT",
        "return query.mul_(scale) @ key.mT",
    ),
    (
        "bilinear matrix starts too large",
        "std=1 / math.sqrt(d_query * d_key)",
        "std=1 / math.sqrt(d_query)",
    ),
    (
        "bilinear matrix is no parameter",
        "self.weight = nn.Parameter(torch.empty(d_query, d_key))",
        'self.register_buffer("weight", torch.empty(d_query, d_key))',
    ),
    (
        "bilinear score squashed",
        "return query @ self.weight @ key.mT",
        "return (query @ self.weight).tanh() @ key.mT",
    ),
    (
        "additive score without its tanh",
        "self.to_score(pairs.tanh())",
        "self.to_score(pairs)",
    ),
    (
        "sigmoid instead of tanh",
        "self.to_score(pairs.tanh())",
        "self.to_score(pairs.sigmoid())",
    ),
    (
        "additive score without its bias",
        "self.from_key = nn.Linear(d_key, d_hidden)  # U and c",
        "self.from_key = nn.Linear(d_key, d_hidden, bias=False)  # U and c",
    ),
    (
        "a second bias on the score",
        "self.to_score = nn.Linear(d_hidden, 1, bias=False)  # w",
        "self.to_score = nn.Linear(d_hidden, 1)  # w",
    ),
    (
        "pairs laid out keys first",
        "asked.unsqueeze(-2) + offered.unsqueeze(-3)",
        "asked.unsqueeze(-3) + offered.unsqueeze(-2)",
    ),
    (
        "products of pairs instead of sums",
        "asked.unsqueeze(-2) + offered.unsqueeze(-3)",
        "asked.unsqueeze(-2) * offered.unsqueeze(-3)",
    ),
    (
        "leading axes broadcast in silence",
        'require_shapes("dot_score", query=(query, "... T K"), key=(key, "... S K"))',
        'require_shapes("dot_score", query=(query, "... T K"), key=(key[None], "B ... S K"))',
    ),
    (
        "a single vector let through",
        'require_shapes("dot_score", query=(query, "... T K"), key=(key, "... S K"))',
        'require_shapes("dot_score", query=(query, "... K"), key=(key, "... K"))',
    ),
    (
        "only the key's width checked",
        'sizes = dict(zip(("Kq", "Kk"), self.weight.shape, strict=True))',
        'sizes = {"Kk": self.weight.shape[1]}',
    ),
    (
        "message names the wrong number",
        '("Kq", "Kk"), self.weight.shape',
        '("Kk", "Kq"), self.weight.shape',
    ),
    (
        "hidden width 0 accepted",
        'require("AdditiveScore", **widths, d_hidden=(d_hidden, SIZE))',
        'require("AdditiveScore", **widths)',
    ),
    (
        "bilinear matrix transposed where the widths are equal",
        "return query @ self.weight @ key.mT",
        "w = self.weight\n        return query @ (w.T if w.shape[0] == w.shape[1] else w) @ key.mT",
    ),
]
