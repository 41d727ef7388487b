// Panels below the graph: edits, neurons through time, learning rules, and checks.
"use strict";

function editPanel(net, changed) {
  const body = h("div", { class: "editors" });
  const fill = () => {
    const values = net.data.values.filter((v) => !net.source.has(v.id) && (v.role === "input" || v.role === "parameter"));
    body.replaceChildren(...values.map((v) => {
      if (sizeOf(v.shape) > 256) return tensorView(v.name, net.value(v.id));
      const edit = (entry, number) => { if (!valid(net, v, number)) return false; net.edit(v.id, entry, number); changed(); return true; };
      const view = tensorView(v.name, net.value(v.id), { edit, integer: v.integer, cells: 256 });
      return v.role === "input" || sizeOf(v.shape) <= 32 ? view : h("details", {}, h("summary", { text: `${v.name} ${shapeText(v.shape)}` }), view);
    }));
  };
  const reset = h("button", { type: "button", id: "reset", onclick: () => { net.reset(); fill(); changed(); }, text: "Reset all edits" });
  if (net.editable) fill();
  const reason = !net.data.complete ? "this page contains only a sample of each tensor" : `the page cannot compute ${net.unknown.join(", ")}`;
  const text = net.editable ? "Change an input, a weight or a target: the page recomputes all numbers in double precision." : `Not editable: ${reason}.`;
  return { fill, element: h("section", { id: "edits", "aria-labelledby": "edits-title" }, h("h2", { id: "edits-title", text: "Inputs, weights, targets" }), h("p", { text }), net.editable ? reset : null, body) };
}

// A label must be one of the classes.
function valid(net, v, number) {
  if (!v.integer) return true;
  const loss = net.data.nodes[net.data.nodes.length - 1], shape = net.data.values[loss.inputs[0]].shape;
  return number >= 0 && number < shape[shape.length - 1];
}

function neuronPanel(net, now) {
  if (!net.data.neurons.length) return null;
  const layers = net.data.neurons.map((layer) => {
    const plots = layer.neurons.map((neuron, i) => course(layer, neuron, i));
    return h("details", { open: true }, h("summary", {}, h("b", { text: layer.module.replace(/^layers\./, "").replace(/\.neuron$/, "") }), ` — ${layer.neurons.length} of ${layer.of} neurons, first sample; the layer fires in ${(100 * layer.rate).toFixed(1)} % of steps; surrogate ${layer.surrogate}`), h("div", { class: "courses" }, plots));
  });
  const note = net.edited ? "These courses are those of the original network, before your edits." : "Potential before the reset (line), threshold (dashed), spikes (ticks), surrogate derivative (area).";
  return h("section", { id: "neurons", "aria-labelledby": "neurons-title" }, h("h2", { id: "neurons-title", text: "Neurons through time" }), h("p", { text: note }), layers);
}

function course(layer, neuron, i) {
  const u = layer.u[i], spikes = layer.spikes[i], slopes = layer.slopes[i], theta = layer.theta[i], n = u.length, w = 190, tall = 84;
  const low = Math.min(0, ...u), high = Math.max(theta * 1.1, ...u), x = (t) => 8 + ((w - 16) * (t + 0.5)) / n, y = (v) => tall - 14 - ((tall - 30) * (v - low)) / (high - low || 1);
  const peak = Math.max(...slopes, 1e-12), area = slopes.map((s, t) => `L${x(t)} ${tall - 14 - (s / peak) * (tall - 40) * 0.6}`).join("");
  const label = `Neuron ${neuron}: spikes at steps ${layer.steps.filter((_, t) => spikes[t]).join(", ") || "none"}; potential from ${fmt(Math.min(...u), 3)} to ${fmt(Math.max(...u), 3)}, threshold ${fmt(theta, 3)}; surrogate up to ${fmt(Math.max(...slopes), 3)}`;
  return h("figure", { class: "course" }, svg("svg", { width: w, height: tall, viewBox: `0 0 ${w} ${tall}`, role: "img", "aria-label": label },
    svg("path", { class: "slope", d: `M${x(0)} ${tall - 14}${area}L${x(n - 1)} ${tall - 14}Z` }),
    svg("line", { class: "theta", x1: 4, x2: w - 4, y1: y(theta), y2: y(theta) }),
    svg("polyline", { class: "potential", points: u.map((v, t) => `${x(t)},${y(v)}`).join(" ") }),
    ...spikes.map((s, t) => (s ? svg("line", { class: "spike", x1: x(t), x2: x(t), y1: 3, y2: 13 }) : svg("g"))),
    ...u.map((v, t) => svg("rect", { class: "at", "data-step": layer.steps[t], x: x(t) - (w - 16) / n / 2, y: 0, width: (w - 16) / n, height: tall }))), h("figcaption", { text: `neuron ${neuron}` }));
}

function markTime(step) {
  document.querySelectorAll("#neurons .at").forEach((r) => r.classList.toggle("on", step !== null && r.dataset.step === String(step)));
}

function variantPanel(net) {
  const variants = net.data.variants || [];
  if (!variants.length) return null;
  return h("section", { id: "variants", "aria-labelledby": "variants-title" }, h("h2", { id: "variants-title", text: "Comparison of learning rules" }),
    h("p", { text: "The same network, samples and weights; the gradient of each rule compared with that of backpropagation, layer by layer: the angle between them and the ratio of their norms." }), variants.map(variantView));
}

function variantView(variant) {
  const frames = variant.frames || [], last = { at: null, layers: variant.layers };
  const host = h("div"), draw = (frame) => host.replaceChildren(layerTable(variant, frame));
  draw(last);
  const parts = [h("h3", { text: variant.name }), h("p", { class: "small", text: variant.about })];
  if (variant.segments) parts.push(segmentTable(variant.segments));
  if (frames.length > 1) parts.push(player(frames, variant.counts, draw));
  return h("div", { class: "variant" }, parts, host);
}

function layerTable(variant, frame) {
  const bar = (angle) => h("span", { class: "bar", style: `width:${angle === null ? 0 : Math.min(100, angle / 1.8)}%` });
  const rows_ = frame.layers.map((l) => h("tr", {}, h("th", { scope: "row", text: l.layer }), h("td", {}, bar(l.angle), ` ${l.angle === null ? "no gradient" : `${fmt(l.angle, 3)}°`}`), h("td", { text: fmt(l.ratio, 3) }), h("td", { text: fmt(l.norm, 3) })));
  const head = h("tr", {}, ["layer", "angle to backprop", "norm ratio", "norm"].map((t) => h("th", { scope: "col", text: t })));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${variant.name}, by layer` }, h("table", { class: "layers" }, h("thead", {}, head), h("tbody", {}, rows_)));
}

function segmentTable(segments) {
  return h("div", {}, h("p", { text: "Segments, and the loss that each follows:" }), h("ol", { class: "segments" }, segments.map((s) => h("li", {}, h("b", { text: s.name }), ` — follows ${s.follows}`))));
}

// The rule after 1, 2, ... iterations, as an animation.
function player(frames, counts, draw) {
  const slider = h("input", { type: "range", min: 0, max: frames.length - 1, value: frames.length - 1, "aria-label": counts });
  const output = h("output", {}), show = () => { const f = frames[Number(slider.value)]; output.textContent = `${counts}: ${f.at}`; slider.setAttribute("aria-valuetext", output.textContent); draw(f); };
  let timer = null;
  const button = h("button", { type: "button", class: "relax", text: "Play the relaxation" });
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play the relaxation"; };
  button.addEventListener("click", () => {
    if (timer) { stop(); return; }
    slider.value = 0; show(); button.textContent = "Stop";
    timer = setInterval(() => { slider.value = Number(slider.value) + 1; show(); if (Number(slider.value) === frames.length - 1) stop(); }, 400);
  });
  slider.addEventListener("input", show);
  show();
  return h("p", { class: "player" }, button, slider, output);
}

function checkPanel(net) {
  const c = net.data.checks, d = c.differences;
  const lines = [
    `${c.edges_with_numbers} of ${c.edges} backward edges have upstream, local and downstream as numbers; for ${c.edges_that_match} of them the products add up to the downstream.`,
    `At ${c.values_whose_edges_add_up} of ${c.values} values the edges add up to the cotangent of autograd's backward pass.`,
    `Finite differences: ${d.agrees} calls agree, ${d.differs} differ, ${d.kink} are at a kink, ${d.surrogate} are surrogates.`,
    `The forward pass keeps ${bytesText(net.data.nodes.reduce((t, n) => t + n.saved, 0))} for the backward pass, without parameters.`,
    net.data.complete ? "This page contains every entry of every tensor." : `Activations are sampled: of each tensor with more than ${net.data.sampled} entries, this page contains ${net.data.sampled} evenly spaced entries and statistics of all.`,
    "Computed in double precision on a copy of the network; bytes are given in the precision of the network.",
  ];
  const flags = Object.entries(net.data.meanings).map(([f, text]) => h("li", {}, h("b", { text: f }), `: ${text}`));
  return h("section", { id: "checks", "aria-labelledby": "checks-title" }, h("h2", { id: "checks-title", text: "Checks" }), h("ul", {}, lines.map((text) => h("li", { text }))), h("details", {}, h("summary", { text: "Meaning of the flags" }), h("ul", {}, flags)));
}
