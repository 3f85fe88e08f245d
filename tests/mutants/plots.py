MUTANTS = [
    ("the picture is upside down", 'origin="upper"', 'origin="lower"'),
    (
        "each panel takes its scale from its own data",
        "plt.Normalize(*limits), aspect",
        "plt.Normalize(), aspect",
    ),
    ("weights are drawn in reverse blues", 'else "Blues"', 'else "Blues_r"'),
    ("signed values are red below zero", '"RdBu_r" if signed', '"RdBu" if signed'),
    (
        "queries and keys trade names",
        '"query", "key", digits, label',
        '"key", "query", digits, label',
    ),
    (
        "row labels are written on columns",
        "((ax.yaxis, rows), (ax.xaxis, columns))",
        "((ax.yaxis, columns), (ax.xaxis, rows))",
    ),
    (
        "the colours of query and key are exchanged",
        '"query": "#0072B2", "key": "#D55E00"',
        '"query": "#D55E00", "key": "#0072B2"',
    ),
    (
        "the mask is read as True = hidden",
        "allowed = np.broadcast_to(mask, values.shape)",
        "allowed = np.broadcast_to(~mask, values.shape)",
    ),
    ("forbidden cells lose their hatching", '"hatch": "////"', '"hatch": None'),
    (
        "forbidden cells are transposed",
        "for t, s in np.argwhere(cells)]",
        "for s, t in np.argwhere(cells)]",
    ),
    ("grey paint hides a leak", "(signed | (values == 0) |", "(signed | (values == values) |"),
    (
        "the scale of scores is not centred",
        "-reach if signed or low < 0 else 0.0",
        "low if signed or low < 0 else 0.0",
    ),
    (
        "scores under a mask stretch the scale",
        "seen = values[allowed] if allowed.any()",
        "seen = values[np.isfinite(values)] if allowed.any()",
    ),
    ("weights off the scale are clipped in silence", "high > limits[1] + slack", "False"),
    ("numbers that are not finite are accepted", "if not np.isfinite(seen).all():", "if False:"),
    ("a dollar sign begins a formula", "names, parse_math=False)", "names)"),
    ("a formula in the legend", '.removeprefix(" "), parse_math=False)', '.removeprefix(" "))'),
    ("a name is hidden", '"run": f" {name}"', '"run": f"{name}"'),
    ("labels are not counted", "if labels and counts != sizes:", "if False:"),
    (
        "each helper sets the style",
        "    ax.grid(False)\n",
        "    ax.grid(False)\n"
        '    plt.rcParams["axes.grid"] = False\n    plt.rcParams["image.cmap"] = "Blues"\n',
    ),
    (
        "a helper shows its figure",
        '    ax.set_title(title or "")\n',
        '    ax.set_title(title or "")\n    plt.show()\n',
    ),
    (
        "figures are transparent",
        '("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white"',
        '("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"',
    ),
    ("curves differ by colour only", "dashes=_DASHES[: len(runs)]", "dashes=False"),
    ("the band is a standard deviation", 'errorbar=("pi", 100)', 'errorbar="sd"'),
    (
        "steps are ignored",
        "if steps is None else _to_array(steps)",
        "if True else _to_array(steps)",
    ),
    (
        "heads are drawn in reverse order",
        "_draw(ax, weights[h], allowed[h], limits)",
        "_draw(ax, weights[-1 - h], allowed[h], limits)",
    ),
    (
        "every head gets the first head's mask",
        "_draw(ax, weights[h], allowed[h], limits)",
        "_draw(ax, weights[h], allowed[0], limits)",
    ),
    ("numbers are written into the wrong cells", "ax.text(s, t, f", "ax.text(t, s, f"),
    ("numbers are dark on dark", '"white" if dark else "black"', '"black" if dark else "white"'),
    (
        "a missing extra names no remedy",
        "executable-transformer[chapters] @",
        "executable-transformer @",
    ),
    (
        "the caller's Axes are ignored by curves",
        "if ax is None else ax\n    sns",
        "if True else ax\n    sns",
    ),
]
