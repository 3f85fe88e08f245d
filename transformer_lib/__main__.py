"""The commands: `python -m transformer_lib train | translate | generate | check`."""

import argparse
import dataclasses
import importlib
import importlib.util
import os
import random
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

PROG = "python -m transformer_lib"
SIZES = {  # of the recipes: the first two for translation, the others for a language model
    "vocab_size": "tokens of the byte-pair encoding",
    "max_tokens": "tokens of a batch, padding included",
    "block": "tokens that a language model reads at once",
    "batch_size": "blocks in a batch",
}
HELP = {
    "n_steps": "weight updates",
    "learning_rate": "highest learning rate",
    "schedule": "constant, cosine, inverse_sqrt, linear or wsd",
    "warmup": "steps until the highest learning rate",
    "min_lr_ratio": "fraction of the highest learning rate that the schedule falls to",
    "label_smoothing": "probability that the target spreads over all tokens",
    "max_grad_norm": "largest gradient norm; larger gradients are scaled down; or none",
    "ema_decay": "of a moving average of the weights, which is exported; or none",
    "accumulate": "micro-batches per batch, to save memory",
    "precision": "fp32, bf16, fp16 or auto",
    "compile": "compile the model with torch.compile",
    "recompute": "recompute activations in the backward pass, to save memory",
    "validate_every": "steps between validations",
    "patience": "validations without improvement before the run ends early",
    "save_every": "steps between checkpoints",
    "seed": "of the initial weights, the order of batches and dropout",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an expected failure is one message on stderr and exit status 1."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser(arguments).parse_args(arguments)
    from .checkpoints import CheckpointError
    from .trainer import NonFiniteLoss

    try:
        status = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt as stopped:
        told = str(stopped) or "interrupted; run the same command again"
        print(told, file=sys.stderr)
        sys.exit(130)  # what a shell expects after Ctrl-C
    except BrokenPipeError:  # for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except torch.OutOfMemoryError:
        _fail("out of memory: lower --max-tokens or --batch-size, or raise --accumulate")
    except (OSError, ValueError, ImportError, CheckpointError, NonFiniteLoss) as error:
        _fail(str(error))
    if status:
        sys.exit(status)


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


def parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Make the parser; where the arguments name a recipe, its help shows that recipe's settings."""
    top = argparse.ArgumentParser(prog=PROG, description="Train, translate, generate text, or check your code.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands, arguments)
    _add_translate(commands)
    _add_generate(commands)
    _add_check(commands)
    return top


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


def _add_machine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best available)")
    command.add_argument("--threads", type=_positive, help="CPU threads (default: PyTorch's)")


def _use_machine(options: argparse.Namespace) -> None:
    """Set the number of threads, and refuse a device that cannot be used."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device is not None:
        try:
            torch.zeros(1, device=options.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"device {options.device!r} is not available; use --device cpu ({reason})"
            ) from error


# train


def _add_train(commands: Any, arguments: Sequence[str]) -> None:
    from .models import TransformerConfig
    from .trainer import TrainingConfig
    from .recipes import RECIPES

    about = "\n".join(
        f"  {name:<16} {recipe.about}" + (f"\n{'':<19}{recipe.time}" if recipe.time else "")
        for name, recipe in RECIPES.items()
    )
    command = commands.add_parser(
        "train",
        help="train a model by a recipe",
        description="Train a model by a recipe. Ctrl-C saves; the same command resumes.",
        epilog=f"recipes:\n{about}\n\n`{PROG} train RECIPE --help` shows the recipe's settings. "
        f"On several GPUs:\n  torchrun --nproc-per-node N -m transformer_lib train RECIPE",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_train)
    command.add_argument("recipe", choices=RECIPES, metavar="RECIPE", help="see the list below")
    command.add_argument("--folder", help="for checkpoints and log (default: runs/RECIPE)")
    command.add_argument("--source", metavar="FILE", help="your own pairs: one text a line")
    command.add_argument("--target", metavar="FILE", help="its translations, line by line")
    command.add_argument("--text", metavar="FILE", help="your own text, for a language model")
    _add_machine(command)
    command.add_argument(
        "--sharding", choices=("ddp", "fsdp"), default="ddp",
        help="replicate or shard the weights over processes (default: ddp)",
    )  # fmt: skip
    command.add_argument("--tensorboard", action="store_true", help="log for TensorBoard too")
    recipe = next((RECIPES[word] for word in arguments if word in RECIPES), None)
    for name, about in SIZES.items():
        default = getattr(recipe, name, "none") if recipe else "the recipe's"
        command.add_argument(_flag(name), type=_positive, help=f"{about} (default: {default})")
    for field in dataclasses.fields(TrainingConfig):
        default = getattr(recipe.training, field.name) if recipe else "the recipe's"
        names = [_flag(field.name), f"--training.{field.name}"]
        _add_setting(command, names, f"training.{field.name}", field, default)
    for field in dataclasses.fields(TransformerConfig):
        if field.name != "vocab_size":
            default = recipe.model.get(field.name, field.default) if recipe else "the recipe's"
            _add_setting(command, [f"--model.{field.name}"], f"model.{field.name}", field, default)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_setting(
    command: argparse.ArgumentParser, flags: list[str], dest: str, field: Any, default: Any
) -> None:
    about = f"{HELP.get(field.name, '')} (default: {default})".strip()
    if field.type is bool:
        action = argparse.BooleanOptionalAction
        command.add_argument(
            *flags, dest=dest, action=action, default=argparse.SUPPRESS, help=about
        )
        return
    kind = _value(field.type)
    metavar = field.name.upper()
    command.add_argument(
        *flags, dest=dest, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=about
    )


def _value(kind: Any) -> Callable[[str], Any]:
    """Make a reader of a setting's value: of an int, float, str, bool, None, tuple or word."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    choices = typing.get_args(kind) if is_union else (kind,)

    def read(text: str) -> Any:
        if type(None) in choices and text.lower() == "none":
            return None
        wanted = next(choice for choice in choices if choice is not type(None))
        if typing.get_origin(wanted) is tuple:
            return tuple(float(part) for part in text.split(","))
        if typing.get_origin(wanted) is typing.Literal:
            return text  # the config names its words
        if wanted is bool:
            return {"true": True, "false": False}[text.lower()]
        return wanted(text)

    def checked(text: str) -> Any:
        try:
            return read(text)
        except (ValueError, KeyError) as error:
            raise argparse.ArgumentTypeError(f"got {text!r}") from error

    return checked


def _chosen(options: argparse.Namespace) -> Any:
    """Give the recipe with the settings of the command line."""
    from .recipes import RECIPES

    recipe = RECIPES[options.recipe]
    given: dict[str, dict[str, Any]] = {"training": {}, "model": {}}
    for name, value in vars(options).items():
        part, _, field = name.partition(".")
        if field:
            given[part][field] = value
    training = given["training"]
    if "n_steps" in training and "warmup" not in training:
        training["warmup"] = min(recipe.training.warmup, max(training["n_steps"], 0))
    sizes = {k: v for k in SIZES if (v := getattr(options, k)) is not None}
    if (options.source is None) != (options.target is None):
        raise ValueError("--source and --target must be given together")
    if options.source is not None:
        pairs = parallel_lines(options.source, options.target)
        sizes["pairs"] = dict(zip(("train", "val"), pairs, strict=True)).__getitem__
    if options.text is not None:
        sizes["text"] = dict(zip(("train", "val"), split_text(options.text), strict=True)).__getitem__
    other = sorted(sizes.keys() - {field.name for field in dataclasses.fields(recipe)})
    if other:
        flag = {"pairs": "--source"}.get(other[0], _flag(other[0]))
        raise ValueError(f"{flag} is no setting of the recipe {options.recipe}; see train --help")
    return dataclasses.replace(
        recipe,
        training=dataclasses.replace(recipe.training, **training),
        model={**recipe.model, **given["model"]},
        **sizes,
    )


def split_text(file: str) -> tuple[str, str]:
    """Read a text; its last tenth is held out."""
    text = Path(file).read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def parallel_lines(source: str, target: str) -> tuple[list, list]:
    """Read two files with one text a line; hold out one pair in 20, at most 1,000, at random."""
    texts = [Path(file).read_text(encoding="utf-8") for file in (source, target)]
    sides = [text.removesuffix("\n").split("\n") for text in texts]  # splitlines cuts at U+2028
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"{source} and {target} must have as many lines, got {len(sides[0])} and {len(sides[1])}"
        )
    pairs = list(zip(*sides, strict=True))
    for number, pair in enumerate(pairs, 1):
        if not all(text.strip() for text in pair):
            raise ValueError(f"{source} and {target} must have no empty line, got one at {number}")
    unique = list(dict.fromkeys(pairs))
    if len(unique) < 2:
        raise ValueError(f"{source} must have at least 2 different pairs, got {len(unique)}")
    held = random.Random(0).sample(unique, min(1000, max(1, len(unique) // 20)))
    seen = set(held)
    return [pair for pair in pairs if pair not in seen], held


def _train(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .distributed import process_group
    from .trainer import Trainer
    from .recipes import LanguageRecipe, check_export_folder, export_model, load_export
    from .runs import tensorboard_log
    from .translation import Translator

    recipe = _chosen(options)
    name = options.recipe
    if options.source is not None:
        name = f"{Path(options.source).name}-{Path(options.target).name}"
    if options.text is not None:
        name = Path(options.text).name
    folder = Path(options.folder or f"runs/{name}")
    check_export_folder(folder / "export")
    _use_machine(options)
    with process_group(options.device) as worker:
        tokenizer, data, validation = recipe.batches()
        torch.manual_seed(recipe.training.seed)
        board = tensorboard_log(folder / "tensorboard") if options.tensorboard else None

        def log(record: dict[str, Any]) -> None:
            if "validation_loss" in record and sys.stderr.isatty():  # else Progress writes a line
                loss = record["validation_loss"]
                tqdm.write(f"step {record['step']}: validation loss {loss:.4f} nats per token")
            if board is not None:
                board(record)

        trainer = Trainer(
            recipe.make(tokenizer),
            data,
            recipe.training,
            loss=recipe.loss,
            validation=validation,
            folder=folder,
            worker=worker,
            sharding=options.sharding,
            log=log,
        )
        if trainer.resume() and worker.is_first:
            tqdm.write(f"resuming after step {trainer.step}, from {folder}")
        trainer.fit()
        if worker.is_first:
            export = export_model(trainer, tokenizer, folder / "export")
            tqdm.write(f"exported to {export}")
            if isinstance(recipe, LanguageRecipe):
                model, tokenizer = load_export(export)
                model.to(worker.device)
                tqdm.write(f"\na sample:\n{generated(model, tokenizer, n_tokens=300)}")
                return
            pairs = recipe.pairs("val")[:3]
            found = Translator.load(export)([source for source, _ in pairs])
            for (source, target), output in zip(pairs, found, strict=True):
                tqdm.write(f"\nsource     {source}\noutput     {output}\nreference  {target}")


# translate


def _add_translate(commands: Any) -> None:
    command = commands.add_parser(
        "translate",
        help="translate texts with a trained model",
        description="Translate texts, given as arguments or one a line on standard input.",
    )
    command.set_defaults(run=_translate)
    command.add_argument(
        "model", metavar="MODEL",
        help="a shipped model (multi30k-de-en, multi30k-en-de), an export, or the folder of a run",
    )  # fmt: skip
    command.add_argument("texts", nargs="*", metavar="TEXT", help="texts to translate")
    command.add_argument(
        "--beam", type=_positive, default=5, help="beam size; 1 is greedy (default: 5)"
    )
    command.add_argument("--length-penalty", type=float, default=1.0, help="(default: 1.0)")
    _add_machine(command)


def _translate(options: argparse.Namespace) -> None:
    from . import cpu
    from .translation import Translator

    _use_machine(options)
    inside = Path(options.model, "export")
    translator = Translator.load(inside if inside.is_dir() else options.model)
    if options.device:
        translator.model.to(options.device)
    if next(translator.model.parameters()).device.type == "cpu":
        translator.model = cpu.pack_for_decoding(translator.model)
    for text in options.texts or sys.stdin:
        line = text.rstrip("\r\n")
        found = translator([line], beam=options.beam, length_penalty=options.length_penalty)
        print(found[0].replace("\n", " "), flush=True)


# generate


def _add_generate(commands: Any) -> None:
    command = commands.add_parser(
        "generate",
        help="continue a text with a trained language model",
        description="Continue a text with a language model that `train` made.",
    )
    command.set_defaults(run=_generate)
    command.add_argument("model", metavar="MODEL", help="an export, or the folder of a run")
    command.add_argument("prompt", nargs="?", help="the text (default: a new line)")
    command.add_argument("--n-tokens", type=_positive, default=500, help="to add (default: 500)")
    command.add_argument("--temperature", type=float, default=0.8, help="(default: 0.8)")
    command.add_argument("--top-k", type=_positive, help="choose among so many (default: all)")
    command.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    _add_machine(command)


def _generate(options: argparse.Namespace) -> None:
    from .models import DecoderOnly
    from .recipes import load_export
    from .sampling import Sampler

    _use_machine(options)
    inside = Path(options.model, "export")
    folder = inside if inside.is_dir() else Path(options.model)
    model, tokenizer = load_export(folder)
    if not isinstance(model, DecoderOnly):
        raise ValueError(f"{folder} holds no language model; use `{PROG} translate` with it")
    model.to(options.device or "cpu")
    torch.manual_seed(options.seed)
    sampler = Sampler(temperature=options.temperature, top_k=options.top_k)
    prompt, n_tokens = options.prompt, options.n_tokens
    print(generated(model, tokenizer, prompt, n_tokens=n_tokens, sampler=sampler))


def generated(
    model: Any, tokenizer: Any, prompt: str | None = None, *, n_tokens: int, sampler: Any = None
) -> str:
    """Continue a text by so many tokens; the model reads half its context and fills the rest.

    Without a prompt it starts after a new line, or the first character of the vocabulary.
    """
    from .sampling import Sampler, sample
    from .tokenizer import UNKNOWN

    device, room = next(model.parameters()).device, model.config.max_len
    given = tokenizer.encode(prompt or "\n")
    if prompt is None and UNKNOWN in given:
        given = [UNKNOWN + 1]
    if UNKNOWN in given:
        raise ValueError("the prompt must hold only characters that the model was trained on")
    ids = list(given)
    end, context = len(ids) + n_tokens, max(1, room // 2)
    while len(ids) < end:
        source = torch.tensor([ids[-context:]], device=device)
        n_new = min(end - len(ids), room - source.shape[1])
        pick = sampler or Sampler(temperature=0.8)
        drawn = sample(model, source, max_len=n_new, sampler=pick, end=None)[0]
        ids += [i for i in drawn if i > UNKNOWN] or drawn  # no PAD, BEGIN, END in a text
    return tokenizer.decode(ids if prompt else ids[len(given) :])


# check


def _add_check(commands: Any) -> None:
    command = commands.add_parser(
        "check",
        help="check your own attention or model",
        description="Check the laws of attention on your own function, module or model; the exit "
        "status is 1 if one is broken.",
    )
    command.set_defaults(run=_check)
    command.add_argument(
        "object", metavar="MODULE:NAME",
        help="my_module:my_attention or path/to/file.py:my_attention; NAME() calls it first",
    )  # fmt: skip
    command.add_argument("--d-model", type=_positive, help="input width of a module on (B, T, D) "
                         "(default: its own d_model; none means a function on heads)")  # fmt: skip
    command.add_argument("--vocab-size", type=_positive, help="check a model with so many tokens "
                         "(default: its config's, if it has one)")  # fmt: skip
    command.add_argument("--decoder-only", action="store_true", help="the model reads no source")
    command.add_argument("--adapter", metavar="MODULE:NAME", help="calls an object that is called "
                         "otherwise: transformer_lib.testing:call_with_mask")  # fmt: skip
    command.add_argument("--skip", action="append", default=[], metavar="LAW=REASON",
                         help="leave out a law that does not apply; may be given again")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of the inputs (default: 0)")


def _named(text: str) -> Any:
    """Import MODULE:NAME, where MODULE may be a file."""
    place, colon, name = text.rpartition(":")
    if not (place and colon and name):
        raise ValueError(f"name the object as MODULE:NAME, got {text!r}")
    try:
        if place.endswith(".py"):
            sys.path.insert(0, str(Path(place).resolve().parent))
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(place)
        found: Any = module
        for part in name.removesuffix("()").split("."):
            found = getattr(found, part)
        return found() if name.endswith("()") else found
    except Exception as error:  # code of the user's may raise anything
        raise ImportError(f"cannot import {text}: {type(error).__name__}: {error}") from error


def _check(options: argparse.Namespace) -> int:
    from .testing import check_attention, check_model

    candidate = _named(options.object)
    if isinstance(candidate, type):
        raise ValueError(f"{options.object} is a class; name an instance, or add () to make one")
    known: dict[str, Any] = {"seed": options.seed}
    known["skip"] = dict(rule.partition("=")[::2] for rule in options.skip)
    if options.adapter:
        known["adapter"] = _named(options.adapter)
    vocab_size = options.vocab_size or getattr(getattr(candidate, "config", 0), "vocab_size", None)
    if vocab_size:
        only = options.decoder_only or type(candidate).__name__ == "DecoderOnly"
        report = check_model(candidate, vocab_size=vocab_size, decoder_only=only, **known)
    else:
        d_model = options.d_model or getattr(candidate, "d_model", None)
        report = check_attention(candidate, d_model=d_model, **known)
    print(report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    main()
