"""Deliberate faults in transformer_lib/positions.py; tests/test_positions.py must catch each."""

MUTANTS = [
    (
        "sinusoids: the exponent without its factor two",
        "torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)",
        "torch.arange(0, width, 2, dtype=torch.float64, device=device) / (2 * width))",
    ),
    (
        "sinusoids: cosine first",
        "torch.stack([angle.sin(), angle.cos()], dim=-1)",
        "torch.stack([angle.cos(), angle.sin()], dim=-1)",
    ),
    (
        "sinusoids: halves instead of interleaved pairs",
        "torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()",
        "torch.cat([angle.sin(), angle.cos()], dim=-1).float()",
    ),
    (
        "sinusoids: angles in single precision",
        "angle = torch.outer(torch.arange(n_positions, dtype=torch.float64), rates)",
        "angle = torch.outer(torch.arange(n_positions, dtype=torch.float32), rates.float())",
    ),
    (
        "sinusoids: odd width accepted",
        'sizes = {"d_model": (d_model, EVEN)',
        '"an integer above 0"',
    ),
    (
        "sinusoids: table saved with the weights",
        'self.register_buffer("table", self._values(), persistent=False)',
        'self.register_buffer("table", self._values())',
    ),
    (
        "tables: every piece starts at position 0",
        "self.table[first : last + 1].to(x.dtype)",
        "self.table[: last + 1 - first].to(x.dtype)",
    ),
    (
        "tables: one position too many",
        "if first < 0 or last >= max_len:",
        "if first < 0 or last > max_len:",
    ),
    (
        "tables: negative positions wrap round",
        "if first < 0 or last >= max_len:",
        "if last >= max_len:",
    ),
    (
        "tables: a wrong width is broadcast",
        'require_shapes(name, {"D": d_model}, x=(x, "... T D"))',
        'require_shapes(name, x=(x, "... T D"))',
    ),
    (
        "tables: the input is changed in place",
        "return x + self.table[first : last + 1].to(x.dtype)",
        "return x.add_(self.table[first : last + 1].to(x.dtype))",
    ),
    (
        "tables: half-precision input comes back as float32",
        "return x + self.table[first : last + 1].to(x.dtype)",
        "return x + self.table[first : last + 1]",
    ),
    (
        "learned: initial deviation of 1",
        "torch.randn(max_len, d_model) * 0.02",
        "torch.randn(max_len, d_model)",
    ),
    (
        "rotary: turned the other way",
        "[left * cos - right * sin, right * cos + left * sin]",
        "[left * cos + right * sin, right * cos - left * sin]",
    ),
    (
        "rotary: one sign wrong, so a reflection",
        "[left * cos - right * sin, right * cos + left * sin]",
        "[left * cos - right * sin, right * cos - left * sin]",
    ),
    (
        "rotary: the start is forgotten",
        "cos, sin = cos[first:end], sin[first:end]",
        "cos, sin = cos[: end - first], sin[: end - first]",
    ),
    (
        "rotary: adjacent features paired, halves joined",
        "left, right = x.chunk(2, dim=-1)",
        "left, right = x[..., ::2], x[..., 1::2]",
    ),
    (
        "rotary: table in the precision of the input",
        "dtype = torch.promote_types(x.dtype, torch.float32)",
        "dtype = x.dtype",
    ),
    (
        "rotary: angles in single precision",
        "angle = torch.outer(torch.arange(n_positions, dtype=torch.float64, device=home), rates)",
        "angle = torch.outer(torch.arange(n_positions, device=home).float(), rates.float())",
    ),
    (
        "rotary: half-precision input comes back as float32",
        "return turned.to(x.dtype)",
        "return turned",
    ),
    (
        "rotary: table born in inference mode",
        "with torch.inference_mode(False):",
        "with torch.inference_mode(torch.is_inference_mode_enabled()):",
    ),
    (
        "rotary: the cache keeps what a trace made",
        "if torch.compiler.is_compiling() or type(x) is not Tensor:",
        "if False:",
    ),
    (
        "rotary: a new table for every length",
        "n_positions = 1 << max(end - 1, 0).bit_length()",
        "n_positions = end",
    ),
    (
        "rotary: the table is made on the default device",
        'home = torch.device("cpu") if device.type == "mps" else device',
        "home = None",
    ),
    (
        "rotary: scaling ignored",
        "rates = rates if scaling is None else scaling(rates)",
        "rates = rates",
    ),
    (
        "rotary: negative positions accepted",
        '        if first < 0:\n            raise ValueError(f"RotaryPositions: first',
        '        if False:\n            raise ValueError(f"RotaryPositions: first',
    ),
    (
        "linear scaling the wrong way",
        "return rates / self.factor\n",
        "return rates * self.factor\n",
    ),
    (
        "NTK scaling counts one pair too many",
        "share = torch.arange(len(rates)).to(rates) / max(len(rates) - 1, 1)",
        "share = torch.arange(len(rates)).to(rates) / len(rates)",
    ),
    (
        "scaling: factors below 1 accepted",
        '"a number at least 1"))\n\n',
        '"a number above 0"))\n\n',
    ),
    (
        "YaRN: fast and slow exchanged in effect",
        "return rates.lerp(rates / self.factor, slowed.clamp(0, 1))",
        "return rates.lerp(rates / self.factor, 1 - slowed.clamp(0, 1))",
    ),
    (
        "YaRN: magnitude missing",
        "return 1 + 0.1 * math.log(self.factor)",
        "return 1.0",
    ),
    (
        "YaRN: limits not rounded to whole pairs",
        "low = ((turns[0] / self.fast).log() / step).floor().clamp_min(0)",
        "low = ((turns[0] / self.fast).log() / step).clamp_min(0)",
    ),
    (
        "YaRN: periods counted in radians",
        "turns = rates * self.trained_length / (2 * math.pi)",
        "turns = rates * self.trained_length",
    ),
    (
        "biases: the first query stands where the first key does",
        "return windows.flip(-2)[:, :n_queries, :n_keys]",
        "return windows.flip(-2)[:, :n_queries, :n_keys].roll(n_keys - n_queries, -1)",
    ),
    (
        "biases: rows in reverse order",
        "return windows.flip(-2)[:, :n_queries, :n_keys]",
        "return windows[:, :n_queries, :n_keys]",
    ),
    (
        "biases: query minus key",
        "torch.arange(1 - max(n_keys, 1), max(n_queries, 1), device=device)",
        "-torch.arange(1 - max(n_keys, 1), max(n_queries, 1), device=device)",
    ),
    (
        "ALiBi: far keys preferred",
        "_along_diagonals(-slopes[:, None] * distance, n_queries, n_keys)",
        "_along_diagonals(slopes[:, None] * distance, n_queries, n_keys)",
    ),
    (
        "ALiBi: heads counted from 0, so that the first has slope 1",
        "slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]",
        "slopes = [2 ** (-8 * h / power) for h in range(power)]",
    ),
    (
        "ALiBi: formula for powers of two used for every number of heads",
        "power = 1 << (n_heads.bit_length() - 1)",
        "power = n_heads",
    ),
    (
        "ALiBi: every slope of the next power instead of every other",
        "for h in range(1, 2 * (n_heads - power), 2)]",
        "for h in range(1, n_heads - power + 1)]",
    ),
    (
        "ALiBi: distances multiplied in half precision",
        "slopes = self.slopes.to(torch.promote_types(self.slopes.dtype, torch.float32))",
        "slopes = self.slopes",
    ),
    (
        "T5: buckets of later keys and earlier keys exchanged",
        "per_side * (distance > 0)",
        "per_side * (distance < 0)",
    ),
    (
        "T5: all buckets on each side",
        "per_side = len(self.table) // 2 if self.bidirectional else len(self.table)",
        "per_side = len(self.table)",
    ),
    (
        "T5: causal attention looks at later keys",
        "away = distance.abs() if self.bidirectional else (-distance).clamp_min(0)",
        "away = distance.abs()",
    ),
    (
        "T5: logarithm to the wrong end",
        "math.log(self.max_distance / exact)",
        "math.log(self.max_distance)",
    ),
    (
        "T5: far distances not shared",
        ".clamp_max(per_side - 1)",
        ".clamp_max(10**9)",
    ),
    (
        "T5: one distance too few with a bucket of its own",
        "torch.where(away < exact, away, far)",
        "torch.where(away < exact - 1, away, far)",
    ),
    (
        "T5: odd number of buckets accepted for two sides",
        'f"a multiple of {sides} at least {2 * sides}"',
        'f"an integer at least {2 * sides}"',
    ),
    (
        "T5: max_distance within the exact buckets accepted",
        'f"a number above {exact}"',
        'f"a number at least {exact}"',
    ),
    (
        "rows at places of their own stand at the first row's",
        "return x + self.table[places].to(x.dtype)",
        "return x + self.table[places[:1]].to(x.dtype)",
    ),
    (
        "a place beyond the table",
        "int, len(self.table)))",
        "int, len(self.table) + 1))",
    ),
    (
        "a place before the table",
        'positions=(places, "...", int',
        'positions=(places.abs(), "...", int',
    ),
    ("places change the type", "self.table[places].to(x.dtype)", "self.table[places]"),
    (
        "new memory keeps what it holds",
        "if after is not before and not after.is_meta:",
        "if False:",
    ),
    ("a table stays on meta", "if getattr(self, self._buffer).is_meta:", "if False:"),
]
