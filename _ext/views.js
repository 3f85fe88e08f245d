// Views that move, without a kernel: _ext/views.py writes their first state, this script changes it.
// The functions at the top compute; tests/test_views.py compares them with transformer_lib under Node.
"use strict";

// Softmax of the scores that are not hidden; zeros where all are, as masked_softmax gives.
function softmax(scores, temperature, seen) {
  const best = Math.max(...scores.filter((_, i) => seen[i]));
  const powers = scores.map((score, i) => (seen[i] ? Math.exp((score - best) / temperature) : 0));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => (sum > 0 ? power / sum : 0));
}

function entropy(weights) {
  return weights.reduce((sum, a) => sum - (a > 0 ? a * Math.log(a) : 0), 0);
}

// Radians per position of each pair of features.
function rates(width, base = 10000) {
  return Array.from({ length: width / 2 }, (_, i) => base ** ((-2 * i) / width));
}

// Dot product of a rotated query and key that point in one direction, of length 1 in each pair.
function rotaryScore(width, query, key) {
  return rates(width).reduce((sum, rate) => sum + Math.cos(rate * (query - key)), 0);
}

// transformer_lib.cost: the same sums, field by field.
function costs(c) {
  const { d_model: D, d_ff: F, n_layers: L, vocab_size: V, batch_size: B, length: T } = c;
  const bias = c.bias ? 1 : 0, kv = c.n_kv_heads * (D / c.n_heads), inner = c.gated ? 2 * F : F;
  const norm = c.rms ? D : 2 * D;
  const attention = 2 * D * D + 2 * D * kv + bias * 2 * (D + kv);
  const feedForward = D * inner + F * D + bias * (inner + D);
  const ends = (stacks) => V * D * (c.tied ? 1 : 2) + (c.pre ? stacks * norm : 0);
  const two = c.kind === "encoder-decoder", S = T;
  const parameters = two
    ? L * (attention + feedForward + 2 * norm) + L * (2 * attention + feedForward + 3 * norm) + ends(2)
    : L * (attention + feedForward + 2 * norm) + ends(1);
  const queries = two ? L * S + L * 2 * T : L * T, keys = two ? L * S + L * (T + S) : L * T;
  const pairs = two ? L * S * S + L * (T * T + T * S) : L * T * T;
  const tokens = two ? L * S + L * T : L * T, cached = two ? L * (T + S) : L * T;
  const flops = 2 * B * (queries * 2 * D * D + keys * 2 * D * kv + pairs * 2 * D + tokens * (D * inner + F * D) + T * D * V);
  return {
    parameters, forward_flops: flops, training_flops: 3 * flops,
    weight_bytes: parameters * c.bytes, cache_bytes: 2 * B * cached * kv * c.bytes,
    training_bytes: 16 * parameters,
  };
}

const SI = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
function short(number, unit = "") {
  const [size, prefix] = SI.find(([n]) => number >= n) || [1, ""];
  return `${Number((number / size).toPrecision(3))} ${prefix}${unit}`.trim();
}

if (typeof module !== "undefined") module.exports = { softmax, entropy, rates, rotaryScore, costs, short };

if (typeof document !== "undefined") {
  const all = (root, selector) => [...root.querySelectorAll(selector)];
  const value = (root, name) => Number(root.querySelector(`[name="${name}"]`).value);

  const draw = {
    softmax(view) {
      const rows = all(view, "tbody tr");
      const scores = rows.map((row) => Number(row.querySelector("[name=score]").value) || 0);
      const seen = rows.map((row) => row.querySelector("[name=seen]").checked);
      const temperature = 10 ** value(view, "temperature");
      const weights = softmax(scores, temperature, seen);
      rows.forEach((row, i) => {
        row.classList.toggle("hidden-key", !seen[i]);
        row.querySelector(".bar").style.width = `${100 * weights[i]}%`;
        row.querySelector(".number").textContent = weights[i].toFixed(2);
      });
      view.querySelector("[data-out=temperature]").textContent = temperature.toFixed(2);
      const most = weights.indexOf(Math.max(...weights)), word = rows[most].querySelector("th").textContent;
      view.querySelector("[role=status]").textContent = seen.includes(true)
        ? `The largest weight is ${weights[most].toFixed(2)}, for ${word}. The entropy is ${entropy(weights).toFixed(2)} nats, at most ln ${seen.filter(Boolean).length} = ${Math.log(seen.filter(Boolean).length).toFixed(2)}.`
        : "All keys are hidden, so all weights are 0.";
    },

    clocks(view) {
      const query = value(view, "query"), key = value(view, "key"), width = 8;
      view.querySelector("[data-out=query]").textContent = query;
      view.querySelector("[data-out=key]").textContent = key;
      rates(width).forEach((rate, i) => {
        const clock = all(view, "svg.clock")[i];
        for (const [name, place] of [["query", query], ["key", key]])
          clock.querySelector(`.${name}`).setAttribute("transform", `rotate(${((rate * place * 180) / Math.PI) % 360})`);
        all(view, ".angle")[i].textContent = `cos(${Number((rate * Math.abs(query - key)).toPrecision(3))}) = ${Math.cos(rate * (query - key)).toFixed(2)}`;
      });
      const distance = Math.abs(query - key);
      view.querySelector("[role=status]").textContent =
        `Distance ${distance}: the sum of the four cosines, the score, is ${rotaryScore(width, query, key).toFixed(2)}.`;
    },

    cost(view) {
      const form = Object.fromEntries(all(view, "input, select").map((field) => [field.name, field.type === "checkbox" ? field.checked : field.type === "number" ? Number(field.value) : field.value]));
      form.bytes = Number(form.bytes);
      const whole = all(view, "input[type=number]").every((field) => field.validity.valid);
      const fits = whole && form.d_model % form.n_heads === 0 && form.n_heads % form.n_kv_heads === 0;
      const status = view.querySelector("[role=status]");
      if (!fits) {
        status.textContent = whole ? "The width must be a multiple of the heads, and the heads a multiple of the key heads." : "Each size must be a whole number of at least 1.";
        return;
      }
      const found = costs(form);
      const shown = {
        parameters: found.parameters.toLocaleString("en-US"), forward_flops: short(found.forward_flops, "FLOP"),
        training_flops: short(found.training_flops, "FLOP"), weight_bytes: short(found.weight_bytes, "B"),
        cache_bytes: short(found.cache_bytes, "B"), training_bytes: short(found.training_bytes, "B"),
      };
      for (const [name, text] of Object.entries(shown)) view.querySelector(`[data-out=${name}]`).textContent = text;
      const fitting = (bytes) => [8, 16, 24, 80, 141].find((gb) => bytes <= gb * 1e9);
      const use = fitting(found.weight_bytes + found.cache_bytes), train = fitting(found.training_bytes);
      const say = (gb) => (gb ? `a device with ${gb} GB` : "no single device with 141 GB or less");
      status.textContent = `Weights and cache fit on ${say(use)}; weights, gradients and AdamW's state, before activations, on ${say(train)}.`;
    },
  };

  for (const view of all(document, ".view")) {
    const update = () => draw[view.dataset.view](view);
    all(view, "[hidden]").forEach((part) => part.removeAttribute("hidden"));
    all(view, "[disabled]").forEach((part) => part.removeAttribute("disabled"));
    view.addEventListener("input", update);
    for (const button of all(view, "button")) {
      button.addEventListener("click", () => {
        const change = JSON.parse(button.dataset.change);
        for (const [name, step] of Object.entries(change.add || {})) {
          const field = view.querySelector(`[name="${name}"]`);
          field.value = Number(field.value) + step;
        }
        for (const [name, to] of Object.entries(change.set || {})) {
          const field = view.querySelector(`[name="${name}"]`);
          if (field.type === "checkbox") field.checked = to; else field.value = to;
        }
        update();
      });
    }
    update();
  }
}
