"""Ways to break optimization.py, each of which tests/test_optimization.py must notice."""

MUTANTS = [
    # schedules
    (
        "constant without warm-up",
        "return min(1.0, step / max(1, warmup))",
        "return 1.0",
    ),
    (
        "no square root",
        "math.sqrt(warmup / max(1, step))",
        "warmup / max(1, step)",
    ),
    ("step 0 divides by zero", "math.sqrt(warmup / max(1, step))", "math.sqrt(warmup / step)"),
    (
        "linear below zero after its end",
        "return max(0, n_steps - step) / max(1, n_steps - warmup)",
        "return (n_steps - step) / max(1, n_steps - warmup)",
    ),
    (
        "linear forgets that warm-up took steps",
        "return max(0, n_steps - step) / max(1, n_steps - warmup)",
        "return max(0, n_steps - step) / max(1, n_steps)",
    ),
    (
        "cosine rises again",
        "done = min(1.0, (step - warmup) / max(1, n_steps - warmup))",
        "done = (step - warmup) / max(1, n_steps - warmup)",
    ),
    ("a whole cosine", "math.cos(math.pi * done)", "math.cos(2 * math.pi * done)"),
    (
        "two schedules exchanged",
        "for schedule in (constant, inverse_sqrt, linear, cosine)",
        "for schedule in (constant, inverse_sqrt, linear)",
    ),
    (
        "the paper's rate without warm-up",
        "return (d_model * warmup) ** -0.5",
        "return d_model**-0.5",
    ),
    # moving averages
    ("the average is the model", "name: p.detach().clone().to(", "name: p.detach().to("),
    (
        "kept in half precision",
        "p.detach().clone().to(torch.promote_types(p.dtype, torch.float32))",
        "p.detach().clone()",
    ),
    (
        "weights of old and new exchanged",
        "average.lerp_(parameter.to(average.dtype), 1 - decay)",
        "average.lerp_(parameter.to(average.dtype), decay)",
    ),
    (
        "the start never forgotten",
        "decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))",
        "decay = self.decay",
    ),
    (
        "counted after use",
        "(1 + self.n_updates) / (10 + self.n_updates)",
        "self.n_updates / (9 + self.n_updates)",
    ),
    ("nothing given back", "parameter.copy_(before)", "pass"),
    ("nothing lent", "parameter.copy_(average)", "pass"),
    (
        "given back only if all went well",
        "            yield\n        finally:\n",
        "            yield\n        except ZeroDivisionError:\n            pass\n        else:\n",
    ),
    (
        "average and parameter exchanged",
        "                    parameter.copy_(average)\n",
        "                    now = parameter.clone()\n"
        "                    parameter.copy_(average)\n"
        "                    average.copy_(now)\n",
    ),
    ("any model taken", "if ours != theirs:", "if False:"),
    ("shapes of parameters not compared", "if ours != theirs:", "if ours.keys() != theirs.keys():"),
    ("a decay of one taken", "if not 0 <= decay < 1:", "if not 0 <= decay <= 1:"),
]
