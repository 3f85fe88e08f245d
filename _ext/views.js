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

// The number translator of Section 2.2: a Transformer with post-norms, in double precision.
// Matrices are arrays of rows; a linear layer holds its weight as PyTorch does, (out, in).
function unpack(packed) {
  const bytes = typeof atob === "function" ? Uint8Array.from(atob(packed.weights), (c) => c.charCodeAt(0)) : Buffer.from(packed.weights, "base64");
  const halves = new DataView(bytes.buffer, bytes.byteOffset), weights = {};
  let place = 0;
  const half = () => {
    const bits = halves.getUint16(2 * place++, true), exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
    return (bits >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  };
  const row = (n) => Array.from({ length: n }, half);
  for (const [name, shape] of Object.entries(packed.shapes))
    weights[name] = shape.length === 1 ? row(shape[0]) : Array.from({ length: shape[0] }, () => row(shape[1]));
  return { weights, pieces: packed.pieces, heads: packed.n_heads };
}

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const add = (x, y) => x.map((row, t) => row.map((a, i) => a + y[t][i]));
const linear = (x, w, b) => x.map((row) => w.map((line, i) => dot(row, line) + b[i]));
function norm(x, w, b) {
  return x.map((row) => {
    const mean = row.reduce((s, a) => s + a, 0) / row.length;
    const variance = row.reduce((s, a) => s + (a - mean) ** 2, 0) / row.length;
    return row.map((a, i) => ((a - mean) / Math.sqrt(variance + 1e-5)) * w[i] + b[i]);
  });
}

function embed({ weights }, tokens) {
  const table = weights["embedding.weight"], D = table[0].length, speed = rates(D);
  return tokens.map((token, p) => table[token].map((a, i) =>
    a * Math.sqrt(D) + (i % 2 ? Math.cos : Math.sin)(p * speed[Math.floor(i / 2)])));
}

// Attention of the positions of x to those of memory; seen collects the weights (H, T, S).
function attention({ weights, heads }, name, x, memory, causal, seen) {
  const w = weights[`${name}.in_proj.weight`], b = weights[`${name}.in_proj.bias`], D = x[0].length, K = D / heads;
  const part = (i, from) => linear(from, w.slice(i * D, (i + 1) * D), b.slice(i * D, (i + 1) * D));
  const query = part(0, x), key = part(1, memory), value = part(2, memory);
  const mixed = x.map(() => []);
  seen[name] = Array.from({ length: heads }, (_, h) => query.map((q, t) => {
    const cut = (row) => row.slice(h * K, (h + 1) * K);
    const scores = key.map((k) => dot(cut(q), cut(k)) / Math.sqrt(K));
    const row = softmax(scores, 1, key.map((_, s) => !causal || s <= t));
    for (let i = h * K; i < (h + 1) * K; i++) mixed[t].push(row.reduce((sum, a, s) => sum + a * value[s][i], 0));
    return row;
  }));
  return linear(mixed, weights[`${name}.out_proj.weight`], weights[`${name}.out_proj.bias`]);
}

function layer(model, name, x, memory, seen) {
  const { weights } = model;
  const close = (sublayer, x, y) => norm(add(x, y), weights[`${name}.${sublayer}_residual.norm.weight`], weights[`${name}.${sublayer}_residual.norm.bias`]);
  const own = memory ? "self_attention" : "attention";
  x = close(own, x, attention(model, `${name}.${own}`, x, x, Boolean(memory), seen));
  if (memory) x = close("cross_attention", x, attention(model, `${name}.cross_attention`, x, memory, false, seen));
  const w = (part) => weights[`${name}.feed_forward.${part}`];
  const up = linear(x, w("up.weight"), w("up.bias")).map((row) => row.map((a) => Math.max(a, 0)));
  return close("feed_forward", x, linear(up, w("down.weight"), w("down.bias")));
}

function stack(model, kind, x, memory, seen) {
  for (let i = 0; `${kind}.${i}.feed_forward.up.weight` in model.weights; i++) x = layer(model, `${kind}.${i}`, x, memory, seen);
  return x;
}

// Logits of each next token, and all attention weights.
function forward(model, source, target) {
  const seen = {}, memory = stack(model, "encoder", embed(model, source), null, seen);
  const x = stack(model, "decoder", embed(model, target), memory, seen);
  return { logits: x.map((row) => model.weights["embedding.weight"].map((line) => dot(row, line))), seen };
}

const BOS = 1, EOS = 2;
function translate(model, source, maxLen = 12) {
  const target = [BOS];
  let found;
  while (target.length <= maxLen && target[target.length - 1] !== EOS) {
    found = forward(model, source, target);
    const last = found.logits[found.logits.length - 1];
    target.push(last.indexOf(Math.max(...last)));
  }
  return { tokens: target, seen: found.seen };
}

const UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(" ");
const TENS = "  twenty thirty forty fifty sixty seventy eighty ninety".split(" ");
// The English pieces of a number below 10,000, as num2words names it.
function pieces(n) {
  if (n < 20) return [UNITS[n]];
  if (n < 100) return [TENS[Math.floor(n / 10)], ...(n % 10 ? ["-", UNITS[n % 10]] : [])];
  const [size, name] = n < 1000 ? [100, " hundred"] : [1000, " thousand"], rest = n % size;
  const begin = [...pieces(Math.floor(n / size)), name];
  return rest ? [...begin, rest < 100 ? " and " : ", ", ...pieces(rest)] : begin;
}

function encode(model, n) {
  return [BOS, ...pieces(n).map((piece) => model.pieces.indexOf(piece)), EOS];
}

const SI = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
function short(number, unit = "") {
  const [size, prefix] = SI.find(([n]) => number >= n) || [1, ""];
  return `${Number((number / size).toPrecision(3))} ${prefix}${unit}`.trim();
}

if (typeof module !== "undefined") module.exports = { softmax, entropy, rates, rotaryScore, costs, short, unpack, forward, translate, pieces, encode };

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

  // The translator is loaded when a reader asks for it; its weights are a script, which works without a server, too.
  draw.translator = (view) => {
    if (!window.numberTranslator) return;
    const model = (draw.model = draw.model || unpack(window.numberTranslator));
    const field = view.querySelector("[name=number]"), n = Number(field.value), status = view.querySelector("[role=status]");
    if (!field.validity.valid || field.value === "") {
      status.textContent = "The number must be a whole number from 0 to 9999.";
      return;
    }
    const source = encode(model, n), { tokens, seen } = translate(model, source);
    const kind = view.querySelector("[name=kind]").value, head = view.querySelector("[name=head]").value;
    const grid = seen[kind], mean = head === "mean";
    const weights = grid[0].map((row, t) => row.map((_, s) => mean ? grid.reduce((sum, g) => sum + g[t][s], 0) / grid.length : grid[Number(head)][t][s]));
    const word = (token) => ["", "begin", "end"][token] || model.pieces[token].trim();
    const written = tokens.slice(1).map(word), read = tokens.slice(0, -1).map(word), english = source.map(word);
    const rows = kind.startsWith("encoder") ? english : kind.includes("cross") ? written : read;
    const columns = kind.startsWith("decoder") && !kind.includes("cross") ? read : english;
    const table = view.querySelector("table"), cell = (tag, text, scope) => {
      const made = document.createElement(tag);
      made.textContent = text;
      if (scope) made.scope = scope;
      return made;
    };
    const top = document.createElement("tr");
    top.append(cell("td", ""), ...columns.map((text) => cell("th", text, "col")));
    const lines = weights.map((row, t) => {
      const line = document.createElement("tr");
      line.append(cell("th", rows[t], "row"), ...row.map((a) => {
        const made = cell("td", a < 0.005 ? "0" : a.toFixed(2).replace("0.", "."));
        made.style.setProperty("--w", a.toFixed(3));
        if (a > 0.5) made.className = "strong";
        return made;
      }));
      return line;
    });
    table.replaceChildren(top, ...lines);
    table.parentElement.hidden = false;
    const german = tokens.slice(1).filter((token) => token !== EOS).map((token) => model.pieces[token]).join("");
    status.textContent = `${pieces(n).join("")} → ${german}`;
  };

  const load = (view, update) => {
    const script = document.createElement("script");
    script.src = view.dataset.weights;
    script.onload = () => {
      all(view, ".later").forEach((part) => part.removeAttribute("hidden"));
      view.querySelector(".load").remove();
      update();
      view.querySelector("[name=number]").focus();
    };
    script.onerror = () => (view.querySelector("[role=status]").textContent = "The weights could not be loaded.");
    document.head.append(script);
  };

  for (const view of all(document, ".view").filter((one) => one.dataset.view in draw)) {
    const update = () => draw[view.dataset.view](view);
    all(view, "[hidden]:not(.later)").forEach((part) => part.removeAttribute("hidden"));
    all(view, "[disabled]").forEach((part) => part.removeAttribute("disabled"));
    view.addEventListener("input", update);
    const loader = view.querySelector(".load");
    if (loader) loader.addEventListener("click", () => load(view, update));
    for (const button of all(view, "button[data-change]")) {
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
