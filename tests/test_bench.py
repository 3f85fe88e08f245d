"""The harness of benchmarks/, on competitors with known times; the peers are not needed."""

import json
import time

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    attention,
    dropout,
    engine,
    generation,
    growth,
    harness,
    language,
    multihead,
    peers,
    start,
    translation,
)
from benchmarks.harness import Built, Case, Competitor, Row, Setting, measure, run_suite, standing
from benchmarks.peers import PlainAttention, PlainGPT, training_step
from transformer_lib.models import Transformer, TransformerConfig
from transformer_lib.translation import Translator

SUITES = (attention, engine, generation, growth, language, multihead, start, translation)


def sleeper(name, seconds, role="peer", calls=None, note=""):
    def run():
        time.sleep(seconds)
        if calls is not None:
            calls.append(name)

    return Competitor(name=name, make=lambda: Built(run=run), role=role, note=note)


def failing(name, error, role="peer"):
    def make():
        raise error

    return Competitor(name=name, make=make, role=role)


def case(*competitors, **changes):
    return Case(suite="sleep", name="a while", competitors=list(competitors), **changes)


def row(**changes):
    given = {
        "suite": "s", "case": "c", "name": "ours", "role": "ours", "note": "", "parameters": 0,
        "seconds": 1.0, "work": 0, "flops": 0, "ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0,
        "rounds": 3, "peak_bytes": 0,
    }  # fmt: skip
    return Row(**given | changes)


def test_ratio_is_the_competitors_time_divided_by_ours():
    # A sleep never ends early; that it takes 3 times as long as asked, in most of five rounds,
    # would need a machine that stands still.
    found, missing = measure(
        case(sleeper("ours", 0.02, role="ours"), sleeper("slow", 0.06)), rounds=5
    )
    ours, slow = found
    assert missing == {}
    assert (ours.ratio, ours.ratio_low, ours.ratio_high) == (1.0, 1.0, 1.0)
    assert 1.0 < slow.ratio and slow.ratio_low <= slow.ratio <= slow.ratio_high
    assert ours.seconds >= 0.02 and slow.seconds >= 0.06
    assert ours.rounds == slow.rounds == 5


def test_rounds_run_each_competitor_once_in_orders_that_repeat_with_the_seed():
    def order(seed):
        calls = []
        names = ["ours", "a", "b", "c", "d"]
        built = {name: Built(run=lambda name=name: calls.append(name)) for name in names}
        harness.take_turns(built, rounds=7, end=float("inf"), repeats=1, seed=seed)
        rounds = [tuple(calls[i : i + 5]) for i in range(0, len(calls), 5)]
        assert len(rounds) == 7 and all(sorted(one) == sorted(names) for one in rounds)
        return rounds

    assert order(0) == order(0) != order(1)
    assert len(set(order(0))) > 1


def test_measure_repeats_what_is_too_short_to_time():
    calls = []
    short = sleeper("ours", 0.001, role="ours", calls=calls)
    found, _ = measure(case(short), rounds=3)
    assert len(calls) > 2 + 3  # to warm up, to see how long it takes, and more than once a round
    assert found[0].seconds < harness.SHORTEST


def test_budget_ends_the_rounds_after_three_at_least():
    slow = case(sleeper("ours", 0.03, role="ours"))
    assert measure(slow, rounds=50, budget=0.0)[0][0].rounds == harness.MIN_ROUNDS == 3
    assert 3 <= measure(slow, rounds=50, budget=0.4)[0][0].rounds < 50
    assert measure(slow, rounds=2, budget=0.0)[0][0].rounds == 2


def test_budget_that_a_case_leaves_goes_to_later_ones(monkeypatch):
    budgets = []

    def at_once(case, *, rounds, budget, seed):
        budgets.append(budget)
        return [], {}

    monkeypatch.setattr(harness, "measure", at_once)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: 7.0)  # however busy the machine is
    list(run_suite([case(), case(), case()], rounds=1, budget=300.0))
    assert budgets == [100, 150, 300]


def test_missing_peer_is_named_and_the_others_run():
    found, missing = measure(
        case(
            sleeper("ours", 0.001, role="ours"),
            failing("absent", ImportError("no such package")),
            failing("broken", ValueError("check: causal, got a leak")),
        ),
        rounds=1,
    )
    assert [one.name for one in found] == ["ours"]
    assert missing == {
        "absent": "ImportError: no such package",
        "broken": "ValueError: check: causal, got a leak",
    }


def test_measure_fails_if_ours_cannot_be_built():
    with pytest.raises(ValueError, match="broken"):
        measure(case(failing("ours", ValueError("broken"), role="ours")))


@pytest.mark.parametrize("roles", [(), ("peer",), ("ours", "ours"), ("ours", "friend")])
def test_measure_refuses_unknown_roles_and_cases_without_ours(roles):
    competitors = [sleeper(f"{i}", 0.0, role=role) for i, role in enumerate(roles)]
    with pytest.raises(
        ValueError, match=r"measure: roles must be among .* with \"ours\" once, got"
    ):
        measure(case(*competitors))


def test_measure_refuses_zero_rounds():
    with pytest.raises(ValueError, match="measure: rounds must be at least 1, got 0"):
        measure(case(sleeper("ours", 0.001, role="ours")), rounds=0)


def test_peak_bytes_counts_what_is_held_at_once_beyond_the_start():
    there = torch.zeros(1000)  # 4,000 bytes

    def run():
        first = there.clone()  # 4,000 more
        second = torch.cat([first, first])  # and 8,000
        del first
        return second.clone()  # 8,000 + 8,000

    assert harness.peak_bytes(run) == 16_000


def test_quartiles_of_few_values():
    assert harness.quartiles([2.0]) == (2.0, 2.0, 2.0)
    assert harness.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


def test_standing_names_the_fastest_peer_of_each_case_losing_cases_first():
    rows = [
        row(), row(name="fast", role="peer", ratio=1.2), row(name="slow", role="peer", ratio=2.0),
        row(name="bare", role="limit", ratio=0.5), row(name="variant", role="other", ratio=0.4),
        row(case="d"), row(case="d", name="faster", role="peer", ratio=0.9),
        row(case="alone"),
    ]  # fmt: skip
    assert standing(rows) == [(0.9, "s", "d", "faster"), (1.2, "s", "c", "fast")]


def test_table_has_a_line_for_each_competitor():
    rows = [
        row(seconds=0.5, work=100, flops=2_000, peak_bytes=2**20, parameters=1_500_000),
        row(name="bare", role="limit", ratio=0.5, seconds=0.25),
    ]
    bare, ours = command.table(rows, peak=8_000.0).splitlines()
    assert bare.split()[:3] == ["bare", "(limit)", "0.500"]
    for part in ("ours", "500.00 ms", "200 tok/s", "50 % of peak", "1.0 MiB", "1.50 M"):
        assert part in ours


@pytest.mark.parametrize("module", SUITES, ids=lambda module: module.__name__.split(".")[-1])
def test_suites_have_cases_with_ours_once_and_distinct_names(module):
    made = list(module.cases(Setting()))
    assert len({(one.suite, one.name) for one in made}) == len(made) >= 1
    for one in made:
        roles = [competitor.role for competitor in one.competitors]
        names = [competitor.name for competitor in one.competitors]
        assert roles.count("ours") == 1 and set(roles) <= set(harness.ROLES)
        assert len(set(names)) == len(names)


def test_suites_of_the_command_are_modules_with_seconds():
    names = [module.__name__.split(".")[-1] for module in SUITES]
    assert sorted(command.SUITES) == sorted(names)
    assert sum(command.SUITES.values()) <= 16 * 60  # a quarter of an hour, and a little


def test_plain_gpt_has_the_parameters_of_ours_and_is_causal():
    plain, ours = PlainGPT(11, 12, 2, 3, 7), language.DecoderOnly(
        language.TransformerConfig(
            vocab_size=11, d_model=12, n_heads=2, d_ff=48, n_decoder_layers=3, max_len=7,
            positions="learned", norm="pre", activation="gelu",
        )
    )  # fmt: skip
    assert harness.count_parameters(plain) == harness.count_parameters(ours)
    plain.eval()
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 4, 6]])
    torch.testing.assert_close(plain(tokens)[:, :4], plain(changed)[:, :4])


def test_plain_attention_agrees_with_ours():
    torch.manual_seed(0)
    ours = multihead.MultiHeadAttention(12, 3)
    for causal in (False, True):
        theirs = PlainAttention(12, 3, causal=causal)
        theirs.inward.load_state_dict(ours.in_proj.state_dict())
        theirs.outward.load_state_dict(ours.out_proj.state_dict())
        x = torch.randn(2, 5, 12)
        torch.testing.assert_close(theirs(x), ours(x, causal=causal))


def test_training_step_learns():
    torch.manual_seed(0)
    model = PlainGPT(11, 12, 2, 1, 7)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    step = training_step(model, lambda m: m(tokens[:, :-1]), tokens[:, 1:], Setting())

    def loss():
        return torch.nn.functional.cross_entropy(model(tokens[:, :-1])[0], tokens[0, 1:]).item()

    before = loss()
    for _ in range(20):
        step.run()
    assert loss() < before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert step.parameters == harness.count_parameters(model)


def test_losses_agree_with_and_without_chunks():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    labels[1, 3:] = -100
    torch.testing.assert_close(peers.in_chunks(logits, labels), peers.cross_entropy(logits, labels))


def test_dropout_command_trains_and_records_each_placement(monkeypatch, tmp_path):
    monkeypatch.setattr(dropout, "T", 8)
    monkeypatch.setattr(dropout, "BYTES", 3000)
    dropout.main(["--steps", "10", "--seeds", "2", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["seed"], row["place"]) for row in found["rows"]] == [
        (seed, place) for seed in range(2) for place in dropout.PLACES
    ]
    assert all(0 < row["validation_loss"] < 6 for row in found["rows"])
    assert len({row["validation_loss"] for row in found["rows"]}) == 6


def test_check_refuses_a_model_that_sees_what_it_predicts():
    class Seeing(torch.nn.Module):
        def forward(self, tokens):
            return tokens.float().sum(dim=1)[:, None, None].expand(-1, tokens.shape[1], 65)

    tokens = torch.zeros(2, language.T, dtype=torch.long)
    with pytest.raises(ValueError, match="check: a model must not see what it predicts, got"):
        language.check(Seeing(), tokens, 65)


def test_check_refuses_a_model_that_reads_padding():
    def call(model, source, target, real):
        return source.float().sum().expand(translation.B, translation.L, translation.V)

    shape = (translation.B, translation.L)
    source, target = torch.zeros(2, *shape, dtype=torch.long)
    real = torch.arange(translation.L) < torch.full((translation.B, 1), 5)
    with pytest.raises(ValueError, match="check: padding and later words must not be read, got"):
        translation.check(torch.nn.Identity(), call, source, target, real)


def test_check_refuses_tokens_that_are_not_the_most_probable():
    class Certain(torch.nn.Linear):
        def forward(self, tokens):
            return torch.nn.functional.one_hot((tokens + 1) % generation.V, generation.V).float()

    prompt = torch.zeros(2, generation.PROMPT, dtype=torch.long)
    ones = torch.arange(generation.NEW).expand(2, -1) % generation.V
    generation.check(Certain(1, 1), torch.cat([prompt, (ones + 1) % generation.V], dim=1), prompt)
    with pytest.raises(ValueError, match="check: each token must be the most probable, got"):
        generation.check(Certain(1, 1), torch.cat([prompt, ones], dim=1), prompt)
    with pytest.raises(ValueError, match="check: prompt and 256 tokens must be generated, got"):
        generation.check(Certain(1, 1), prompt, prompt)


def test_pegasus_with_our_weights_computes_what_our_model_computes():
    model = Transformer(TransformerConfig.tiny(29, norm="pre", n_decoder_layers=3)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    theirs = engine.pegasus(model)
    assert harness.count_parameters(theirs) == harness.count_parameters(model) + 2 * 64 * 64
    source, target = torch.randint(4, 29, (2, 3, 7))
    real = torch.arange(7) < torch.tensor([[7], [5], [1]])
    with torch.no_grad():
        ours = model(source, target, source_mask=real[:, None, None])
        found = theirs(source, attention_mask=real.long(), decoder_input_ids=target).logits
    torch.testing.assert_close(found, ours, rtol=1e-4, atol=1e-4)  # float32
    with pytest.raises(ValueError, match="pegasus: all weights must be copied, got"):
        engine.pegasus(Transformer(TransformerConfig.tiny(29)))  # post-norm has no last norm


@pytest.mark.parametrize("beam", [1, 5])
def test_engine_suite_runs_peers_that_write_our_texts(beam):
    texts = engine.CAPTIONS.read_text(encoding="utf-8").splitlines()[:5]
    wanted = Translator.load(engine.MODEL)(texts, beam=beam)
    found = engine.by_pegasus(beam)(texts)
    engine.check(found, wanted, rounded=False)
    with pytest.raises(ValueError, match="check: the same texts must come out, got 80% of them"):
        engine.check(["", *found[1:]], wanted, rounded=False)
    engine.check(["", *found[1:]], wanted, rounded=True)


def test_write_is_atomic(tmp_path):
    target = tmp_path / "results" / "bench-cpu.json"
    command.write({"rows": [1]}, target)
    with pytest.raises(TypeError):
        command.write({"rows": object()}, target)
    assert json.loads(target.read_text()) == {"rows": [1]}
    assert [file.name for file in target.parent.iterdir()] == ["bench-cpu.json"]


@pytest.fixture
def tiny(monkeypatch):
    made = [case(sleeper("ours", 0.001, role="ours"), sleeper("peer", 0.003))]
    monkeypatch.setattr(start, "cases", lambda setting: made)
    monkeypatch.setattr(command, "SUITES", {"start": 1})
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    command.main()


def test_command_writes_hardware_date_commit_versions_and_rows(tiny, monkeypatch, tmp_path):
    target = tmp_path / "one.json"
    run_command(monkeypatch, "--rounds", "2", "--threads", "1", "--json", str(target))
    report = json.loads(target.read_text())
    assert report["command"] == f"python -m benchmarks --rounds 2 --threads 1 --json {target}"
    assert (report["threads"], report["seed"], report["device"]) == (1, 0, "cpu")
    assert (report["dtype"], report["compiled"], report["missing"]) == ("fp32", False, {})
    assert report["versions"]["torch"] and report["hardware"] and report["commit"]
    assert report["peak_flops"] > 0 and len(report["date"]) == 10
    assert [(one["name"], one["rounds"]) for one in report["rows"]] == [("ours", 2), ("peer", 2)]


def test_command_writes_to_results_for_all_suites_only(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "ROOT", tmp_path)
    run_command(monkeypatch, "--suite", "start", "--rounds", "1", "--threads", "1")
    assert "sleep: a while; against peer" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.json"))
    run_command(monkeypatch, "--rounds", "1", "--threads", "1")
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["bench-cpu.json"]
