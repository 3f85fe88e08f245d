"""A figure is an API: orientation, scale, labels, color roles, and what helpers must not do."""

import subprocess
import sys
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb

from transformer_lib.plots import (
    COLORS,
    attention_heatmap,
    head_grid,
    matrix_plot,
    position_plot,
    results_folder,
    training_curves,
    use_book_style,
)

H, T, S = 3, 5, 7  # distinct primes: no axis can be mistaken for another
QUERIES, KEYS = list("abcde"), list("tuvwxyz")


@pytest.fixture(autouse=True)
def fresh_figures():
    with (
        matplotlib.rc_context(),
        np.printoptions(),
        pd.option_context("display.precision", 6),
    ):
        yield
    plt.close("all")


def weights(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).softmax(-1)


def causal(n):
    return torch.ones(n, n, dtype=torch.bool).tril()


def painted(ax, n_rows, n_columns):
    """Read the colors in the middle of each cell back from the rendered page."""
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    page = np.asarray(canvas.buffer_rgba())[::-1, :, :3] / 255
    where = [[ax.transData.transform((s, t)) for s in range(n_columns)] for t in range(n_rows)]
    x, y = np.array(where).astype(int).transpose(2, 0, 1)
    return page[y, x]


def labels(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def helpers():
    yield lambda: attention_heatmap(weights(T, S), mask=torch.ones(T, S, dtype=torch.bool))
    yield lambda: matrix_plot(weights(T, S), row_name="row", column_name="column", digits=1)
    yield lambda: position_plot(torch.randn(11, 6, generator=torch.Generator().manual_seed(0)))
    yield lambda: training_curves({"a": [[3.0, 2.0], [2.5, 1.0]]})
    yield lambda: head_grid(weights(H, T, S))


# Orientation --------------------------------------------------------------------------------------


def test_heatmap_puts_the_first_query_on_top_with_a_fixed_scale():
    ax = attention_heatmap(
        torch.tensor([[0.1, 0.9, 0.0], [0.3, 0.3, 0.4]]), ["a", "b"], ["x", "y", "z"]
    )
    image = ax.images[0]
    assert image.get_clim() == (0.0, 1.0) and image.get_array()[0, 1] == pytest.approx(0.9)
    assert ax.yaxis_inverted() and not ax.xaxis_inverted()
    assert labels(ax.yaxis) == ["a", "b"] and labels(ax.xaxis) == ["x", "y", "z"]


def test_heatmap_renders_each_weight_in_its_cell():
    table = weights(T, S)
    expected = plt.get_cmap("Blues")(table.double().numpy())[..., :3]
    np.testing.assert_allclose(painted(attention_heatmap(table), T, S), expected, atol=1.5 / 255)


def test_heatmap_row_holds_the_weights_of_its_query():
    ax = attention_heatmap(torch.eye(5).roll(1, 0), QUERIES, QUERIES)
    darkest = painted(ax, 5, 5).sum(-1).argmin(-1)
    assert [QUERIES[s] for s in darkest] == ["e", "a", "b", "c", "d"]


def test_heatmap_axes_are_named_and_colored_by_role():
    ax = attention_heatmap(weights(T, S))
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("query", "key")
    assert to_hex(ax.yaxis.label.get_color()).upper() == COLORS["query"] == "#0072B2"
    assert to_hex(ax.xaxis.label.get_color()).upper() == COLORS["key"] == "#D55E00"
    assert COLORS["value"] == "#009E73"


def test_matrix_plot_colors_no_other_axis_names():
    ax = matrix_plot(weights(T, S), row_name="output position", column_name="value position")
    assert ax.yaxis.label.get_color() == plt.rcParams["axes.labelcolor"]
    assert to_hex(ax.xaxis.label.get_color()).upper() == COLORS["value"]


def test_heatmap_without_labels_numbers_positions():
    ax = attention_heatmap(weights(T, S))
    ax.figure.canvas.draw()
    assert {"0", "1", "2", "3", "4"} <= set(labels(ax.yaxis))


def test_positions_are_numbered_by_integers_alone():
    ax = attention_heatmap(weights(2, 2))
    assert all(tick == round(tick) for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_ticklocs())


def test_long_names_of_keys_end_below_their_column():
    ax = attention_heatmap(weights(T, S), QUERIES, [f"{key} long" for key in KEYS])
    below = [(tick.get_rotation(), tick.get_horizontalalignment()) for tick in ax.get_xticklabels()]
    assert set(below) == {(45.0, "right")}


def test_heatmap_cells_are_square():
    assert attention_heatmap(weights(T, S)).get_aspect() == 1
    assert position_plot(weights(T, S)).get_aspect() == "auto"


# Scale --------------------------------------------------------------------------------------------


def test_heatmap_is_blue_with_zero_lightest():
    image = attention_heatmap(weights(T, S)).images[0]
    lightness = image.cmap(np.linspace(0, 1, 17))[:, :3].sum(-1)
    assert image.cmap.name == "Blues" and (np.diff(lightness) < 0).all()


def test_matrix_plot_centers_signed_scores_on_a_white_zero():
    scores = torch.tensor([[-1.0, 0.0], [3.0, 0.5]])
    image = attention_heatmap(scores, signed=True).images[0]
    assert image.get_clim() == (-3.0, 3.0) and image.cmap.name == "RdBu_r"
    assert min(image.to_rgba(0.0)[:3]) > 0.95
    red, _, blue, _ = image.to_rgba(3.0)
    assert red > blue


def test_matrix_plot_centers_scores_of_one_sign():
    assert attention_heatmap(torch.ones(2, 3), signed=True).images[0].get_clim() == (-1, 1)
    assert position_plot(torch.ones(2, 3) * 2).images[0].get_clim() == (-2, 2)


def test_matrix_plot_draws_a_constant_zero():
    assert attention_heatmap(torch.zeros(2, 3), signed=True).images[0].get_clim() == (-1, 1)
    ax = matrix_plot(torch.zeros(2, 3), row_name="a", column_name="b")
    assert ax.images[0].get_clim() == (0, 1)


def test_matrix_plot_of_nonnegative_numbers_starts_at_zero():
    ax = matrix_plot(torch.full((2, 3), 5.0), row_name="a", column_name="b")
    assert ax.images[0].get_clim() == (0, 5) and ax.images[0].cmap.name == "Blues"


def test_matrix_plot_limits_make_panels_comparable():
    ax = position_plot(torch.ones(2, 3), limits=(-4, 4))
    assert ax.images[0].get_clim() == (-4, 4)


def test_color_bar_has_a_label_and_is_optional():
    def bars(ax):
        return [a.get_ylabel() for a in ax.figure.axes if a is not ax]

    assert bars(attention_heatmap(weights(T, S))) == ["attention weight"]
    assert bars(attention_heatmap(weights(T, S), signed=True)) == ["score"]
    assert bars(attention_heatmap(weights(T, S), bar=False)) == []


def test_digits_are_written_into_their_cells_legibly():
    ax = attention_heatmap(torch.tensor([[0.0, 1.0], [0.25, 0.75]]), digits=2)
    found = {text.get_position(): text.get_text() for text in ax.texts}
    assert found == {(0, 0): "0.00", (1, 0): "1.00", (0, 1): "0.25", (1, 1): "0.75"}
    assert [text.get_color() for text in ax.texts][:2] == ["black", "white"]


# Masks --------------------------------------------------------------------------------------------


def is_gray(color):
    return np.ptp(color) < 0.02 and color.mean() < 0.95


def test_masked_cells_are_gray_and_hatched_and_small_weights_are_not():
    table = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    ax = attention_heatmap(table, mask=causal(3))
    drawn = painted(ax, 3, 3)
    for t in range(3):
        for s in range(3):
            assert is_gray(drawn[t, s]) == (s > t), (t, s)
    assert [c.get_hatch() for c in ax.collections] == ["////"]


def test_masked_cell_with_a_weight_keeps_its_color_under_the_hatching():
    ax = attention_heatmap(torch.full((3, 3), 1 / 3), mask=causal(3))
    assert not np.ma.getmaskarray(ax.images[0].get_array()).any()
    (hatching,) = ax.collections
    assert hatching.get_hatch() and len(hatching.get_facecolor()) == 0
    assert len(hatching.get_paths()) == 3


def test_masked_scores_are_gray_and_outside_the_scale():
    scores = torch.ones(3, 3).masked_fill(~causal(3), -1e9)
    ax = attention_heatmap(scores, mask=causal(3), signed=True)
    assert ax.images[0].get_clim() == (-1, 1)
    assert np.array_equal(np.ma.getmaskarray(ax.images[0].get_array()), ~causal(3).numpy())


def test_score_of_minus_infinity_is_drawn_as_masked():
    scores = torch.ones(3, 3).masked_fill(~causal(3), -torch.inf)
    image = attention_heatmap(scores, signed=True).images[0]
    assert np.array_equal(np.ma.getmaskarray(image.get_array()), ~causal(3).numpy())


def test_padding_mask_of_one_row_applies_to_all_queries():
    mask = torch.tensor([[True] * 4 + [False] * 3])
    table = torch.zeros(T, S)
    hidden = np.ma.getmaskarray(attention_heatmap(table, mask=mask).images[0].get_array())
    assert hidden[:, 4:].all() and not hidden[:, :4].any()


def test_empty_mask_leaves_only_gray():
    ax = attention_heatmap(torch.zeros(2, 3), mask=torch.zeros(2, 3, dtype=torch.bool))
    assert np.ma.getmaskarray(ax.images[0].get_array()).all()


# Heads --------------------------------------------------------------------------------------------


def test_head_grid_uses_one_scale_and_one_bar_in_reading_order():
    table = weights(H, T, S)
    axes = head_grid(table, QUERIES, KEYS, columns=2)
    assert len(axes) == H and all(isinstance(ax, Axes) for ax in axes)
    for h, ax in enumerate(axes):
        np.testing.assert_allclose(ax.images[0].get_array(), table[h])
        assert ax.images[0].get_clim() == (0, 1) and ax.get_title() == f"head {h}"
        assert ax.yaxis_inverted()
    others = [a for a in axes[0].figure.axes if a not in list(axes)]
    assert [a.get_ylabel() for a in others] == ["attention weight"]
    axes[0].figure.canvas.draw()
    assert axes[1].get_position().x0 > axes[0].get_position().x0
    assert axes[2].get_position().y0 < axes[0].get_position().y0


def test_head_grid_names_axes_on_outer_panels():
    axes = head_grid(weights(H, T, S), QUERIES, KEYS, columns=2)
    assert [ax.get_ylabel() for ax in axes] == ["query", "", "query"]
    assert [ax.get_xlabel() for ax in axes] == ["", "key", "key"]
    assert labels(axes[0].yaxis) == QUERIES and labels(axes[2].xaxis) == KEYS
    shown = [ax.yaxis.get_major_ticks()[0].label1.get_visible() for ax in axes]
    assert shown == [True, False, True]  # the words stand once in a row, and once in a column
    shown = [ax.xaxis.get_major_ticks()[0].label1.get_visible() for ax in axes]
    assert shown == [False, True, True]


def test_head_grid_accepts_a_mask_for_each_head():
    mask = torch.stack([causal(3), torch.ones(3, 3, dtype=torch.bool)])
    axes = head_grid(torch.zeros(2, 3, 3), mask=mask)
    hidden = [np.ma.getmaskarray(ax.images[0].get_array()).sum() for ax in axes]
    assert hidden == [3, 0]


# Curves -------------------------------------------------------------------------------------------


def test_training_curves_differ_without_color():
    runs = {f"run {i}": [3.0 - i, 2.0, 1.0] for i in range(6)}
    ax = training_curves(runs)
    lines = [line for line in ax.lines if len(line.get_xdata())]
    assert len({str(line._dash_pattern) for line in lines}) == 6
    assert len({to_hex(line.get_color()) for line in lines}) == 6
    assert labels_of_legend(ax) == list(runs)


def labels_of_legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_training_curves_avoid_the_role_colors():
    ax = training_curves({str(i): [1.0, 2.0] for i in range(6)})
    roles = {to_rgb(color) for color in COLORS.values()}
    assert roles.isdisjoint(to_rgb(line.get_color()) for line in ax.lines)


def test_training_curves_draw_the_mean_and_a_band_of_all_seeds():
    seeds = torch.tensor([[3.0, 2.0, 1.5], [3.2, 2.4, 1.2], [3.1, 1.9, 1.0]])
    ax = training_curves({"run": seeds}, steps=[10, 20, 30])
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [10, 20, 30])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), seeds.mean(0), rtol=1e-6)
    band = ax.collections[0].get_paths()[0].vertices
    for place, step in enumerate((10, 20, 30)):
        drawn = band[band[:, 0] == step, 1]
        assert drawn.min() == pytest.approx(seeds[:, place].min().item())
        assert drawn.max() == pytest.approx(seeds[:, place].max().item())


def test_training_curves_name_axes_and_leave_the_scale_to_the_caller():
    ax = training_curves({"a": [3.0, 1.0]}, x="epoch", y="nats per token", title="loss")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("epoch", "nats per token", "loss")
    assert ax.get_yscale() == "linear"
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 1])


def test_training_curves_accept_shorter_runs_with_steps():
    ax = training_curves({"long": [3.0, 2.0, 1.0], "short": [3.0, 2.0]})
    assert [len(line.get_xdata()) for line in ax.lines][:2] == [3, 2]


# What a helper must and must not do ---------------------------------------------------------------


@pytest.mark.parametrize("helper", list(helpers()))
def test_helpers_leave_globals_alone_return_axes_and_never_show(helper, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("show was called")

    monkeypatch.setattr(plt, "show", refuse)
    before = dict(matplotlib.rcParams)
    drawn = helper()
    assert dict(matplotlib.rcParams) == before
    assert isinstance(drawn, Axes) or all(isinstance(ax, Axes) for ax in drawn)


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: attention_heatmap(weights(T, S), ax=ax, title="here"),
        lambda ax: matrix_plot(weights(T, S), row_name="a", column_name="b", ax=ax, title="here"),
        lambda ax: position_plot(weights(T, S), ax=ax, title="here"),
        lambda ax: training_curves({"a": [1.0, 2.0]}, ax=ax, title="here"),
    ],
)
def test_helpers_draw_on_the_given_axes(draw):
    _, ax = plt.subplots()
    assert draw(ax) is ax and ax.get_title() == "here"
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_helpers_accept_tensors_of_any_precision_and_leave_them_unchanged(dtype):
    table = weights(T, S).to(dtype).requires_grad_()
    before = table.detach().clone()
    ax = attention_heatmap(table)
    np.testing.assert_allclose(ax.images[0].get_array(), before.double())
    assert torch.equal(table, before) and table.requires_grad


def test_helpers_accept_arrays_and_copy_them():
    table = weights(T, S).numpy()
    ax = attention_heatmap(table, mask=np.ones((T, S), dtype=bool))
    table[:] = 0
    assert ax.images[0].get_array().sum() == pytest.approx(T)


def test_book_style_is_opaque_legible_and_idempotent():
    use_book_style()
    once = dict(matplotlib.rcParams)
    use_book_style()
    assert dict(matplotlib.rcParams) == once
    assert once["figure.facecolor"] == once["savefig.facecolor"] == "white"
    assert not once["savefig.transparent"] and once["figure.dpi"] >= 120
    figure, ax = plt.subplots()
    sizes = [ax.xaxis.label.get_size(), ax.title.get_size()]
    sizes += [tick.get_size() for tick in ax.get_xticklabels()]
    assert min(sizes) >= 10 and figure.get_figwidth() <= 6.4
    lines = [ax.plot([0, 1], [i, i])[0] for i in range(6)]
    assert len({str(line._dash_pattern) for line in lines}) == 6


@pytest.mark.parametrize(
    "value, text",
    [
        (0.1234567, "0.1235"), (-2 / 3, "-0.6667"), (1.0000000475, "1.0"),
        (709.8000000000001, "709.8"),
        (1410.38241, "1410.4"), (2.2250738585e-308, "2.225e-308"), (3.4028234e38, "3.403e+38"),
        (123456.789, "123456.8"), (1 / 1024**2, "9.537e-07"),
        # six digits or less were chosen by the author
        (1.0977, "1.0977"), (0.693147, "0.693147"), (1e6, "1000000.0"), (0.0, "0.0"),
        (-1e-16, "-1e-16"),
        (float("nan"), "nan"), (float("-inf"), "-inf"),
    ],
)  # fmt: skip
def test_book_style_shows_short_floats(value, text, monkeypatch):
    formatter = DisplayFormatter()
    shell = SimpleNamespace(display_formatter=formatter)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    use_book_style()
    shown = formatter.format({"a": [value], "b": np.float64(value)})[0]["text/plain"]
    assert shown == f"{{'a': [{text}], 'b': {text}}}"
    assert str(np.array([1 / 3])) == "[0.3333]"
    assert pd.Series([1 / 3]).to_string().split() == ["0", "0.3333"]


def test_book_style_keeps_figures_narrow_enough_for_a_phone():
    for helper in helpers():
        drawn = helper()
        ax = drawn if isinstance(drawn, Axes) else drawn[0]
        assert ax.figure.get_figwidth() <= 7


def test_plots_without_the_extra_say_how_to_install_it():
    program = "import sys\nsys.modules['seaborn'] = None\nimport transformer_lib.plots"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    message = 'pip install "executable-transformer[chapters] @ git+https://github.com/'
    assert message in done.stderr and "seaborn" in done.stderr


# Errors -------------------------------------------------------------------------------------------


ODD = ["$$", "$x_1^{2}$", "a_b", "\\frac{", "{}", "_mine", "$", "^"]


def shown_by(draw):
    """The text of every label that a helper draws; drawing must not fail."""
    axes = np.atleast_1d(draw())
    axes[0].figure.canvas.draw()
    return [t.get_text() for ax in axes for t in [*ax.get_yticklabels(), *ax.get_xticklabels()]]


@pytest.mark.parametrize(
    "form", [list, tuple, pytest.param(np.array, marks=pytest.mark.bad_input, id="array")]
)
def test_helpers_show_labels_literally(form):
    names, square = form(ODD), torch.eye(len(ODD))
    axis = {"row_name": "row", "column_name": "column"}
    for draw in (
        lambda: attention_heatmap(square, names, names),
        lambda: matrix_plot(square, names, names, **axis),
        lambda: head_grid(square[None], names, names),
    ):
        assert shown_by(draw) == ODD * 2
    ticks = attention_heatmap(square, names, names).get_yticklabels()
    assert not any(tick.get_parse_math() for tick in ticks)


def test_training_curves_show_run_names_literally():
    ax = training_curves({name: [1.0, 2.0] for name in ODD[:6]})
    ax.figure.canvas.draw()
    assert labels_of_legend(ax) == ODD[:6]
    assert not any(text.get_parse_math() for text in ax.get_legend().get_texts())


def test_training_curves_extend_an_existing_legend():
    ax = training_curves({"_first": [1.0, 2.0]})
    training_curves({"second": [2.0, 1.0]}, ax=ax)
    assert labels_of_legend(ax) == ["_first", "second"]


def test_helpers_refuse_labels_that_do_not_fit_with_both_numbers():
    with pytest.raises(
        ValueError,
        match="attention_heatmap: weights have 2 queries and 3 keys, "
        "but there are 3 query labels and 2 key labels",
    ):
        attention_heatmap(torch.full((2, 3), 1 / 3), list("xyz"), list("ab"))
    with pytest.raises(ValueError, match="head_grid: weights have 5 queries and 7 keys, .* 5 .* 6"):
        head_grid(weights(H, T, S), keys=list("uvwxyz"))
    with pytest.raises(ValueError, match="matrix_plot: values have 5 rows .* 4 row labels"):
        matrix_plot(weights(T, S), list("abcd"), row_name="a", column_name="b")


def test_heatmap_refuses_weights_outside_0_to_1_with_their_range():
    with pytest.raises(ValueError, match=r"must lie in 0 to 1, got -1 to 2"):
        attention_heatmap(torch.tensor([[-1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"position_plot: values must lie in -1 to 1, got 2 to 2"):
        position_plot(torch.full((2, 3), 2.0), limits=(-1, 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_helpers_refuse_numbers_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="attention_heatmap: allowed cells must be finite"):
        attention_heatmap(torch.tensor([[bad, 0.5]]))
    with pytest.raises(ValueError, match="allowed cells must be finite"):
        attention_heatmap(torch.tensor([[bad, 0.5]]), signed=True)
    with pytest.raises(ValueError, match="'a' must have 2 finite values per seed.* 1 not finite"):
        training_curves({"a": [1.0, bad]})


def test_head_grid_checks_titles_and_columns():
    with pytest.raises(ValueError, match="3 heads need as many titles .* 2 titles and 4 columns"):
        head_grid(weights(H, T, S), titles=["a", "b"])
    with pytest.raises(ValueError, match="0 columns"):
        head_grid(weights(H, T, S), columns=0)


def test_training_curves_check_runs_against_steps():
    with pytest.raises(ValueError, match="runs must number 1 to 6, got 0"):
        training_curves({})
    with pytest.raises(ValueError, match="runs must number 1 to 6, got 7"):
        training_curves({str(i): [1.0] for i in range(7)})
    with pytest.raises(ValueError, match="'a' must have 3 finite values per seed, got shape"):
        training_curves({"a": [1.0, 2.0]}, steps=[1, 2, 3])


@pytest.mark.bad_input
def test_helpers_refuse_wrong_axes_and_masks_with_shapes():
    with pytest.raises(ValueError, match=r"attention_heatmap: there must be 2 axes.*\(3, 5, 7\)"):
        attention_heatmap(weights(H, T, S))
    with pytest.raises(ValueError, match=r"head_grid: there must be 3 axes.*\(5, 7\)"):
        head_grid(weights(T, S))
    with pytest.raises(ValueError, match=r"none empty, got shape \(0, 7\)"):
        attention_heatmap(torch.zeros(0, S))
    with pytest.raises(ValueError, match=r"mask must fit shape \(5, 7\), got \(7, 5\)"):
        attention_heatmap(weights(T, S), mask=torch.ones(S, T, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must be boolean .True = may attend., got float32"):
        attention_heatmap(weights(T, S), mask=torch.ones(T, S))


# Recorded runs


def test_results_folder_is_found_or_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "chapters").mkdir()
    monkeypatch.chdir(tmp_path / "chapters")
    with pytest.raises(FileNotFoundError, match=r"`!git clone https://\S+` and `%cd \S+/chapters`"):
        results_folder()
    (tmp_path / "results").mkdir()  # of something else: without a record
    with pytest.raises(FileNotFoundError, match="the recorded runs are in the repository"):
        results_folder()
    (tmp_path / "results" / "bench.json").write_text("{}")
    assert results_folder().resolve() == tmp_path / "results"
