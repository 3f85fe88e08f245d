"""A family of the test's own: its checkpoints have every irregularity of published ones."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from transformer_lib import checkpoints, hub
from transformer_lib.hub import FAMILIES, PretrainedModel, Weights, from_pretrained
from transformer_lib.multihead import MultiHeadAttention
from transformer_lib.positions import SinusoidalPositions, sinusoidal_positions
from transformer_lib.settings import Settings

V, D, H, G, K, T = 11, 30, 6, 2, 5, 7
CONFIG = {"model_type": "toy", "architectures": ["ToyModel"], "size": V, "tied": False}
HEADS = {"q": H * K, "k": G * K, "v": G * K}


class Toy(PretrainedModel):
    """Fused and transposed matrices, positions by a formula, a buffer, a head that may be tied."""

    model_types = ("toy", "toy2")
    base_prefix = "toy."
    renames = {r"\.gamma$": ".weight", r"\.beta$": ".bias"}
    unused = (r"attn\.mask$",)

    def __init__(self, size, tied):
        super().__init__()
        self.size, self.tied = size, tied
        self.embedding = nn.Embedding(size, D)
        self.positions = SinusoidalPositions(T, D)
        self.attention = MultiHeadAttention(D, H, n_kv_heads=G)
        self.gates = nn.Linear(D, 6)
        self.norm = nn.LayerNorm(D)
        self.output = nn.Linear(D, size, bias=False)
        self.output.weight.requires_grad_(False)
        if tied:
            self.output.weight = self.embedding.weight
        self.register_buffer("steps", torch.tensor(0))

    @classmethod
    def from_settings(cls, settings):
        settings.one_of("act", ("relu", "gelu"), "relu")
        return cls(settings.get("size", 13), settings.get("tied", True))

    def settings(self):
        kind = {"model_type": "toy", "architectures": ["ToyModel"]}
        return kind | {"size": self.size, "tied": self.tied}

    def weight_map(self):
        yield Weights("embedding.weight", ("toy.wte.weight",))
        for kind in ("weight", "bias"):
            yield Weights(f"attention.in_proj.{kind}", (*(f"toy.attn.{x}.{kind}" for x in HEADS),))
            yield Weights(f"norm.{kind}", (f"toy.ln.{kind}",))
        yield Weights("attention.out_proj.weight", ("toy.attn.out.weight",), transpose=True)
        yield Weights("attention.out_proj.bias", ("toy.attn.out.bias",))
        yield Weights("gates.weight", ("toy.up.weight", "toy.gate.weight"), transpose=True)
        yield Weights("gates.bias", ("toy.up.bias", "toy.gate.bias"))
        yield Weights("output.weight", ("head.weight",))
        yield Weights("steps", ("toy.steps",))

    def forward(self, tokens):
        x = self.positions(self.embedding(tokens))
        return self.output(self.norm(x + self.attention(x)))


def theirs(tied=False, dtype=torch.float32):
    """Random tensors as a file of the family holds them."""
    shapes = {"toy.wte.weight": (V, D), "toy.ln.weight": (D,), "toy.ln.bias": (D,)}
    for name, rows in HEADS.items():
        shapes |= {f"toy.attn.{name}.weight": (rows, D), f"toy.attn.{name}.bias": (rows,)}
    shapes |= {"toy.attn.out.weight": (D, D), "toy.attn.out.bias": (D,)}
    for name in ("up", "gate"):
        shapes |= {f"toy.{name}.weight": (D, 3), f"toy.{name}.bias": (3,)}
    shapes |= {} if tied else {"head.weight": (V, D)}
    tensors = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    return tensors | {"toy.steps": torch.tensor(17)}


def write(folder, tensors, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: x.contiguous() for k, x in tensors.items()}, folder / "model.safetensors")
    return folder


def shards(folder, tensors, config=CONFIG, n=3):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names, placed = sorted(tensors), {}
    for i in range(n):
        file = f"model-{i + 1:05d}-of-{n:05d}.safetensors"
        save_file({name: tensors[name] for name in names[i::n]}, folder / file)
        placed |= dict.fromkeys(names[i::n], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", f"{__name__}:Toy")


# Loading


def test_from_pretrained_puts_each_tensor_in_its_place(tmp_path):
    file = theirs()
    model = from_pretrained(write(tmp_path / "m", file))
    assert type(model) is Toy and not model.training
    q, k, v = (file[f"toy.attn.{x}.weight"] for x in HEADS)
    state = model.state_dict()
    assert torch.equal(state["attention.in_proj.weight"], torch.cat([q, k, v]))
    assert torch.equal(state["attention.out_proj.weight"], file["toy.attn.out.weight"].T)
    gates = torch.cat([file["toy.up.weight"].T, file["toy.gate.weight"].T])
    assert torch.equal(state["gates.weight"], gates)
    assert torch.equal(state["embedding.weight"], file["toy.wte.weight"])
    assert torch.equal(state["output.weight"], file["head.weight"])
    assert model.steps == 17 and model.steps.dtype == torch.int64
    assert model.norm.weight.requires_grad and not model.output.weight.requires_grad
    assert all(x.is_contiguous() for x in state.values())


def test_from_pretrained_computes_what_is_a_formula(tmp_path):
    model = Toy.from_pretrained(write(tmp_path / "m", theirs()))
    torch.testing.assert_close(model.positions.table, sinusoidal_positions(T, D))
    rebuilt = Toy(V, False)
    rebuilt.load_state_dict(model.state_dict())
    tokens = torch.randint(V, (3, 5))
    assert torch.equal(model(tokens), rebuilt.eval()(tokens))


def test_from_pretrained_refuses_a_buffer_that_nobody_computes(tmp_path, monkeypatch):
    made = Toy.__init__

    def make(self, *args):
        made(self, *args)
        self.register_buffer("places", torch.arange(5), persistent=False)

    monkeypatch.setattr(Toy, "__init__", make)
    with pytest.raises(AssertionError, match="must compute .'places'."):
        Toy.from_pretrained(write(tmp_path / "m", theirs()))


def test_from_pretrained_keeps_a_tie(tmp_path):
    folder = write(tmp_path / "m", theirs(tied=True), CONFIG | {"tied": True})
    model = Toy.from_pretrained(folder)
    assert model.output.weight is model.embedding.weight
    assert len(list(model.parameters())) == len(list(Toy(V, True).parameters()))


@pytest.mark.parametrize("dropped", ["head.weight", "toy.wte.weight"])
def test_from_pretrained_reads_a_tied_tensor_under_either_name(tmp_path, dropped):
    file = theirs()
    file["head.weight"] = file["toy.wte.weight"].clone()
    both = Toy.from_pretrained(write(tmp_path / "both", file, CONFIG | {"tied": True}))
    del file[dropped]
    one = Toy.from_pretrained(write(tmp_path / "one", file, CONFIG | {"tied": True}))
    assert_same(both.state_dict(), one.state_dict())


def test_from_pretrained_refuses_a_tie_that_the_file_does_not_keep(tmp_path):
    folder = write(tmp_path / "m", theirs(), CONFIG | {"tied": True})
    with pytest.raises(
        ValueError, match=r"same numbers in \['toy.wte.weight'\] and \['head.weight'\], which its"
    ):
        Toy.from_pretrained(folder)


def test_from_pretrained_knows_old_names_and_names_without_their_prefix(tmp_path):
    file = theirs()
    model = Toy.from_pretrained(write(tmp_path / "m", file))
    old = {name.removeprefix("toy."): x for name, x in file.items()}
    old |= {"ln.gamma": old.pop("ln.weight"), "ln.beta": old.pop("ln.bias")}
    old["attn.mask"] = torch.ones(T, T).tril()
    assert_same(Toy.from_pretrained(write(tmp_path / "o", old)).state_dict(), model.state_dict())


def test_from_pretrained_names_all_that_does_not_fit(tmp_path):
    file = theirs()
    del file["toy.attn.k.bias"], file["head.weight"]
    file["toy.attn.q.weight"] = torch.zeros(D + 1, D)
    file["toy.up.weight"] = torch.zeros(3, D)
    file["toy.ln.bias"] = torch.zeros(D, dtype=torch.int8)
    file |= {"toy.more.weight": torch.zeros(1), "toy.mask.attn": torch.zeros(1)}
    folder = write(tmp_path / "m", file)
    with pytest.raises(ValueError) as caught:
        Toy.from_pretrained(folder)
    first, *lines = str(caught.value).splitlines()
    assert first == f"Toy: {folder} does not hold the model of its config.json"
    missing, unexpected, wrong = (set(line.split(": ", 1)[1].split("; ")) for line in lines)
    assert missing == {"toy.attn.k.bias (10,)", "head.weight (11, 30)"}
    assert unexpected == {"toy.more.weight", "toy.mask.attn"}
    assert wrong == {
        "toy.attn.q.weight (31, 30), must be (30, 30)",
        "toy.up.weight (3, 30), must be (30, 3)",
        "toy.ln.bias I8, must be floating-point",
    }


def test_from_pretrained_refuses_a_tensor_that_comes_twice(tmp_path):
    file = theirs()
    file["wte.weight"] = file["toy.wte.weight"].clone()
    with pytest.raises(ValueError, match="unexpected: (toy.)?wte.weight$"):
        Toy.from_pretrained(write(tmp_path / "m", file))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_from_pretrained_keeps_the_dtype_of_the_file_or_takes_another(tmp_path, dtype):
    file = theirs(dtype=dtype)
    folder = write(tmp_path / "m", file)
    assert {p.dtype for p in Toy.from_pretrained(folder).parameters()} == {dtype}
    model = Toy.from_pretrained(folder, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.norm.bias, file["toy.ln.bias"].float()) and model.steps == 17


def test_from_pretrained_takes_the_widest_of_several_dtypes(tmp_path):
    file = theirs(dtype=torch.bfloat16)
    file["toy.ln.weight"] = file["toy.ln.weight"].half()
    model = Toy.from_pretrained(write(tmp_path / "m", file))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.bad_input
def test_from_pretrained_refuses_a_dtype_that_is_none_of_weights(tmp_path):
    with pytest.raises(ValueError, match="Toy: dtype must be one of .*, got torch.int8"):
        Toy.from_pretrained(write(tmp_path / "m", theirs()), dtype=torch.int8)


def test_from_pretrained_reads_shards(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hub, "tqdm", lambda x, *_, **options: shown.append(options) or x)
    shown, file = [], theirs()
    whole = Toy.from_pretrained(write(tmp_path / "w", file))
    assert_same(Toy.from_pretrained(shards(tmp_path / "s", file)).state_dict(), whole.state_dict())
    assert [options["disable"] for options in shown] == [True, None]


def test_from_pretrained_changes_no_file_when_weights_change(tmp_path):
    folder = write(tmp_path / "m", theirs())
    before = (folder / "model.safetensors").read_bytes()
    model = Toy.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


PEAK = """
import resource, sys, torch
from test_hub import Toy, D
from torch import nn
from transformer_lib.hub import Weights

class Big(Toy):
    def __init__(self, size, tied):
        super().__init__(size, tied)
        self.wide = nn.ModuleList(nn.Linear(1600, 4800) for _ in range(7))
    def weight_map(self):
        yield from super().weight_map()
        for i in range(7):
            names = [f"toy.{i}.weight"] if FUSED else [f"toy.{i}.{x}.weight" for x in "qkv"]
            yield Weights(f"wide.{i}.weight", (*names,))
            yield Weights(f"wide.{i}.bias", (f"toy.{i}.bias",))

def resident(kind):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(x for x in lines if x.startswith(kind)).split()[1]) / 1024

FUSED = sys.argv[2] == "fused"
if sys.argv[1] == "write":
    Big(11, False).save_pretrained(sys.argv[3])
else:
    model = Big.from_pretrained(sys.argv[3], **eval(sys.argv[4]))
    loaded = resident("VmHWM")
    total = sum(float(p.sum()) for p in model.parameters())
    print(loaded, resident("VmHWM"))
"""


def peaks(*arguments, program=PEAK):
    """What the program prints: MiB of memory after loading, and after using the model."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [float(x) for x in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_from_pretrained_needs_the_memory_of_the_weights_once(tmp_path):
    size = 7 * 4801 * 1600 * 4 / 2**20  # MiB
    assert size > 200
    tiny = str(write(tmp_path / "tiny", theirs()))
    without = peaks("read", "fused", tiny, "{}", program=PEAK.replace("Big.f", "Toy.f"))[1]
    for layout, dtype in [("fused", None), ("parts", None), ("fused", "bfloat16")]:
        here = tmp_path / layout
        if not here.exists():
            peaks("write", layout, str(here))
        options = "{}" if dtype is None else "{'dtype': torch." + dtype + "}"
        loaded, used = (x - without for x in peaks("read", layout, str(here), options))
        if layout == "fused" and dtype is None:  # mapped: nothing is read before it is used
            assert loaded < 0.1 * size
        assert used < 1.35 * size, (layout, dtype)


# Settings


def test_from_pretrained_refuses_settings_by_name(tmp_path):
    folder = write(tmp_path / "m", theirs(), CONFIG | {"window": 5, "act": "silu"})
    with pytest.raises(ValueError, match="Toy: act must be one of .*, got 'silu'"):
        from_pretrained(folder)
    write(folder, theirs(), CONFIG | {"window": 5, "pad_token_id": 0})
    with pytest.raises(ValueError, match="Toy: .*'window': 5"):
        from_pretrained(folder)
    assert from_pretrained(folder, ignore=("window",)).size == V


# Settings as published

SPECIALS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "transformers_version": "4.0"}
LLAMA = SPECIALS | {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 5632, "max_position_embeddings": 2048, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 2,
    "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": None,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
BERT = SPECIALS | {
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 2, "pad_token_id": 0,
    "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": True,
    "vocab_size": 30522,
}  # fmt: skip
T5 = SPECIALS | {
    "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
    "is_encoder_decoder": True, "layer_norm_epsilon": 1e-6, "model_type": "t5", "n_positions": 512,
    "num_heads": 8, "num_layers": 2, "output_past": True, "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"prefix": "summarize: "}}, "vocab_size": 32128,
}  # fmt: skip
VIT = {
    "architectures": ["ViTForImageClassification"], "attention_probs_dropout_prob": 0.0,
    "encoder_stride": 16, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 768,
    "id2label": {"0": "tench", "1": "goldfish"}, "image_size": 224, "initializer_range": 0.02,
    "intermediate_size": 3072, "label2id": {"tench": "0", "goldfish": "1"},
    "layer_norm_eps": 1e-12, "model_type": "vit", "num_attention_heads": 12, "num_channels": 3,
    "num_hidden_layers": 2, "patch_size": 16, "qkv_bias": True, "transformers_version": "4.0",
}  # fmt: skip
CONFIGS = {
    "gpt2": SPECIALS | {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "embd_pdrop": 0.1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5,
        "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 2,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    },
    "llama": LLAMA,
    "mistral": LLAMA | {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "rope_theta": 1e6,
        "sliding_window": None,
    },
    "qwen2": LLAMA | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "max_window_layers": 24,
        "rope_theta": 1e6, "sliding_window": 32768, "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    "qwen3": LLAMA | {
        "architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "max_window_layers": 28,
        "model_type": "qwen3", "sliding_window": None, "use_sliding_window": False,
    },
    "bert": BERT,
    "roberta": BERT | {
        "architectures": ["RobertaForMaskedLM"], "layer_norm_eps": 1e-5,
        "max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1,
        "type_vocab_size": 1, "vocab_size": 50265,
    },
    "t5": T5,
    "flan-t5": T5 | {
        "d_ff": 1024, "feed_forward_proj": "gated-gelu", "is_gated_act": True,
        "dense_act_fn": "gelu_new", "num_decoder_layers": 2, "num_heads": 6,
        "relative_attention_max_distance": 128, "tie_word_embeddings": False,
        "use_cache": True,
    },
    "vit": VIT,
    "deit": VIT | {
        "architectures": ["DeiTForImageClassificationWithTeacher"], "model_type": "deit",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_families_know_the_settings_of_published_checkpoints(name):
    config = CONFIGS[name]
    module, family = FAMILIES[config["model_type"]].split(":")
    settings = Settings(config, family)
    with torch.device("meta"):
        model = getattr(import_module(module), family).from_settings(settings)
    settings.refuse_unread()
    written = model.settings()
    assert written["model_type"] == config["model_type"]
    again = Settings(written, family)
    with torch.device("meta"):
        copy = getattr(import_module(module), family).from_settings(again)
    again.refuse_unread()
    assert copy.settings() == written


# Saving


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_pretrained_writes_the_file_that_was_read(tmp_path, tied, dtype):
    file, config = theirs(tied, dtype), CONFIG | {"tied": tied}
    model = Toy.from_pretrained(write(tmp_path / "m", file, config))
    target = model.save_pretrained(tmp_path / "deep" / "saved")
    assert_same(load_file(target / "model.safetensors"), file)
    name = str(dtype).removeprefix("torch.")
    assert json.loads((target / "config.json").read_text()) == config | {"torch_dtype": name}
    with safe_open(target / "model.safetensors", framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"  # which transformers asks for
    mode = (target / "model.safetensors").stat().st_mode
    assert mode & 0o777 == (target / "config.json").stat().st_mode & 0o777


def test_save_pretrained_writes_a_new_model_and_replaces_its_own_files(tmp_path):
    model = Toy(V, False).eval()
    model.save_pretrained(tmp_path)  # an empty folder
    loaded = from_pretrained(tmp_path)
    assert_same(loaded.state_dict(), model.state_dict())
    with torch.no_grad():
        loaded.norm.bias.add_(1)
    loaded.save_pretrained(tmp_path)  # over the file that it is mapped from
    assert_same(from_pretrained(tmp_path).state_dict(), loaded.state_dict())


@pytest.mark.parametrize("kind", ["theirs", "tokenizer", "other", "half"])
def test_save_pretrained_leaves_other_files_alone(tmp_path, kind):
    folder = tmp_path / "m"
    if kind == "theirs":
        write(folder, theirs())
    else:
        Toy(V, False).save_pretrained(folder)
        (folder / {"tokenizer": "tokenizer.json", "other": "x"}.get(kind, "config.json")).touch()
    if kind == "half":
        (folder / "model.safetensors").write_bytes(b"12345678")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"holds files that save_pretrained did not write \(\w+"):
        Toy(V, False).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_save_pretrained_refuses_a_file_in_its_place(tmp_path):
    (tmp_path / "m").touch()
    with pytest.raises(ValueError, match="m is a file; choose another folder"):
        Toy(V, False).save_pretrained(tmp_path / "m")


def test_save_pretrained_keeps_the_old_files_if_it_fails(tmp_path, monkeypatch):
    folder = Toy(V, False).save_pretrained(tmp_path / "m")
    before = from_pretrained(folder).state_dict()

    def fail(self, *_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(pathlib.Path, "write_text", fail)
    with pytest.raises(checkpoints.CheckpointError, match="cannot write .*m: disk full"):
        Toy(V, False).save_pretrained(folder)
    monkeypatch.undo()
    assert_same(Toy.from_pretrained(folder).state_dict(), before)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


class Tabled(PretrainedModel):
    """Eleven layers, an output tied to the embedding, and a parameter without a module."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(D))
        self.embedding = nn.Embedding(V, D)
        layer = [nn.ModuleDict({"attention": MultiHeadAttention(D, H)}) for _ in range(11)]
        self.layers, self.head = nn.ModuleList(layer), nn.Sequential(nn.Linear(D, D))
        self.output = nn.Linear(D, V, bias=False)
        self.output.weight = self.embedding.weight

    def weight_names(self):
        return {
            "start": "cls", "embedding": "wte shared", "head.0": "head.dense",
            "layers.*.attention.in_proj": "h.*.{q,k,v}_proj",
            "layers.*.attention.out_proj": "h.*.out",
        }  # fmt: skip


def test_weight_map_reads_a_table_of_names():
    found = list(Tabled().weight_map())
    parts = ("h.10.q_proj.bias", "h.10.k_proj.bias", "h.10.v_proj.bias")
    expected = [
        Weights("start", ("cls",)), Weights("embedding.weight", ("wte.weight",)),
        Weights("embedding.weight", ("shared.weight",)),
        Weights("head.0.bias", ("head.dense.bias",)),
        Weights("layers.10.attention.in_proj.bias", parts),
        Weights("layers.1.attention.out_proj.weight", ("h.1.out.weight",)),
    ]  # fmt: skip
    assert all(found.count(weights) == 1 for weights in expected)
    assert len(found) == 3 + 11 * 4 + 2


def test_weight_map_by_a_table_must_name_every_tensor(tmp_path, monkeypatch):
    names = Tabled().weight_names()
    monkeypatch.setattr(Tabled, "weight_names", lambda self: {**names, "head.0": ""})
    with pytest.raises(AssertionError, match="leaves out .'head.0.weight', 'head.0.bias'."):
        Tabled().save_pretrained(tmp_path)


def test_weight_map_must_name_every_tensor(tmp_path, monkeypatch):
    every = Toy.weight_map
    monkeypatch.setattr(Toy, "weight_map", lambda self: list(every(self))[:-1])
    with pytest.raises(AssertionError, match="Toy.weight_map leaves out .'steps'."):
        Toy(V, False).save_pretrained(tmp_path)


# What is no checkpoint


def test_from_pretrained_refuses_a_pickle_with_a_command_that_converts_it(tmp_path):
    file, folder = theirs(), tmp_path / "m"
    whole = Toy.from_pretrained(write(folder, file))
    (folder / "model.safetensors").unlink()
    halves = sorted(file)[::2], sorted(file)[1::2]
    for i, names in enumerate(halves):
        torch.save({k: file[k] for k in names}, folder / f"pytorch_model-0000{i + 1}-of-00002.bin")
    with pytest.raises(ValueError, match="a pickle, which may execute") as caught:
        from_pretrained(folder)
    command = re.search(r"python (-c .*)", str(caught.value), re.S)[1]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, cwd=folder)
    assert_same(from_pretrained(folder).state_dict(), whole.state_dict())


def test_from_pretrained_refuses_files_that_are_not_what_they_should_be(tmp_path):
    folder = shards(tmp_path / "m", theirs())
    shard = folder / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="model-00002-of-00003.safetensors is corrupted: .*again"):
        from_pretrained(folder)
    shard.unlink()
    with pytest.raises(ValueError, match="m is incomplete: model-00002-of-00003.safetensors not"):
        from_pretrained(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(ValueError, match="corrupted: it must name files beside it, got .'../"):
        from_pretrained(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="index.json is corrupted"):
        from_pretrained(folder)
    for text, why in (("{", "Expecting"), ("[1]", "it holds a list, not an object")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=f"config.json is corrupted: {why}"):
            from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="m is not a checkpoint: it has no config.json"):
        from_pretrained(folder)
    with pytest.raises(ValueError, match="from_pretrained: .*/nothing is not a folder"):
        from_pretrained(tmp_path / "nothing")


def test_from_pretrained_refuses_other_families(tmp_path):
    folder = write(tmp_path / "m", theirs(), {"model_type": "x"})
    with pytest.raises(ValueError, match="PretrainedModel: model_type must be one of .*, got 'x'"):
        from_pretrained(folder)
    with pytest.raises(ValueError, match=r"Toy: model_type must be one of \('toy', 'toy2'\), got"):
        Toy.from_pretrained(folder)


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_know_their_model_types(kind):
    module, name = FAMILIES[kind].split(":")
    family = getattr(import_module(module), name)
    assert issubclass(family, PretrainedModel) and kind in family.model_types


def test_hub_imports_a_family_when_it_is_asked_for():
    code = "import sys, transformer_lib.hub as h; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith("transformer_lib.")}
    needed = ("hub", "checkpoint_files", "checkpoints", "settings", "shapes")
    assert loaded == {f"transformer_lib.{name}" for name in needed}


# The hub's cache, without a network

CACHED = """
import json, sys
from transformer_lib.hub import FAMILIES, from_pretrained
FAMILIES["toy"] = "test_hub:Toy"
told = []
for name, revision in json.loads(sys.argv[1]):
    try:
        told.append(float(from_pretrained(name, revision=revision).norm.bias.sum()))
    except ValueError as error:
        told.append(str(error))
print(json.dumps(told))
"""
COMMITS = {"main": "1" * 40, "v2": "2" * 40}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Laid out as huggingface_hub does: refs name commits, snapshots hold their files."""
    root = tmp_path_factory.mktemp("hf")
    repository = root / "hub" / "models--some--toy"
    file = theirs()
    for i, (name, commit) in enumerate(COMMITS.items()):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(commit)
        (repository / "snapshots").mkdir(exist_ok=True)
        file["toy.ln.bias"] = torch.full((D,), float(i + 1))
        write(repository / "snapshots" / commit, file)
    shutil.copytree(repository, root / "hub" / "models--sharded")
    for commit in COMMITS.values():
        shutil.rmtree(root / "hub" / "models--sharded" / "snapshots" / commit)
    shards(root / "hub" / "models--sharded" / "snapshots" / COMMITS["main"], file)
    shutil.copytree(repository, root / "hub" / "models--empty")
    for file in root.glob("hub/models--empty/snapshots/*/*.safetensors"):
        file.unlink()
    return root


def test_from_pretrained_reads_the_hubs_cache_offline(cache):
    told = {
        ("some/toy", None): 30.0,
        ("some/toy", "v2"): 60.0,
        ("some/toy", "2" * 40): 60.0,
        ("sharded", None): 60.0,
        (
            "some/other",
            None,
        ): "some/other is not a folder, and config.json of some/other is neither",
        ("some/toy", "v3"): "some/toy is not a folder, and config.json of some/toy is neither",
        ("empty", None): "empty has no model.safetensors. If it has a pytorch_model.bin, that is a",
        ("a/b/c", None): "a/b/c is not a folder",
    }
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", CACHED, json.dumps([*told])], capture_output=True, text=True,
        env=os.environ | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for got, expected in zip(json.loads(done.stdout), told.values(), strict=True):
        if isinstance(expected, str):
            assert expected in got
        else:
            assert got == expected


def test_from_pretrained_says_what_to_install_for_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"executable-transformer\[hub\]"):
        from_pretrained("gpt2")
