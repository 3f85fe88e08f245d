"""Ways to break training.py, each of which tests/test_training.py must notice."""

MUTANTS = [
    (
        "tokens learned from the validation too",
        "for pair in train for text in pair",
        "for pair in train + val for text in pair",
    ),
    ("training in one order", "cut(train, True)", "cut(train, False)"),
    ("validation shuffled", "list(cut(val, False))", "list(cut(val, True))"),
    ("the seed does not reach the data", "seed = self.training.seed", "seed = 0"),
    ("the model has other tokens", "vocab_size=tokenizer.vocab_size,", "vocab_size=280,"),
    (
        "validates on what was learned",
        'learned if split == "train" else held)',
        "learned)",
    ),
    (
        "the languages exchanged",
        "partial(_datasets.multi30k, source, target)",
        "partial(_datasets.multi30k, target, source)",
    ),
    (
        "validated more often than saved",
        "warmup=600, validate_every=500",
        "warmup=600, validate_every=375",
    ),
    (
        "the last exported, not the best",
        "load_checkpoint(best if best.exists() else checkpoints(trainer.folder)[0])",
        "load_checkpoint(checkpoints(trainer.folder)[0])",
    ),
    ("the average not exported", 'tensors.get("average", tensors["model"])', 'tensors["model"]'),
    ("exported in full precision", "x.half().contiguous()", "x.contiguous()"),
    (
        "weights drawn before the seed is set",
        "torch.manual_seed(recipe.training.seed)",
        "torch.manual_seed(0)",
    ),
    ("never goes on", "if trainer.resume() and place.is_first:", "if False:"),
    ("an option of 0 is not given", "if value is not None}", "if value}"),
    ("options not taken", "dataclasses.replace(recipe.training, **given)", "recipe.training"),
    ("a traceback for a wrong option", "parser.error(str(error))", "raise"),
    ("not told to TensorBoard", "log=log,", "log=None,"),
    ("an export without checkpoints", "if trainer.folder is None:", "if False:"),
]
