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
  const reason = !net.data.complete ? "this page contains only a sample of each tensor" : net.data.fixed.length ? net.data.fixed.join("; ") : `the page cannot compute ${net.unknown.join(", ")}`;
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
  const note = net.edited ? "These courses are those of the original network, before your edits." : "Above: the potential u (in units of the network’s weights) climbs with each input, leaks, and where it passes the threshold θ (dashed) the neuron spikes (tick at the top) and is reset (arrow down). The orange bars are the surrogate: the slope that the backward pass uses at that step in place of the derivative of the spike, which is 0 almost everywhere. Below: the neuron’s responsibility, ∂L/∂u at each step; it goes back through time by the leak and the reset, and through a spike by the surrogate.";
  return h("section", { id: "neurons", "aria-labelledby": "neurons-title" }, h("h2", { id: "neurons-title", text: "Neurons through time" }), h("p", { text: note }), layers);
}

// One neuron through time: the potential with the threshold and the surrogate at each step, and below the neuron's responsibility,
// the derivative of the loss by its potential, through each step.
function course(layer, neuron, i) {
  const u = layer.u[i], spikes = layer.spikes[i], slopes = layer.slopes[i], theta = layer.theta[i], back = layer.cotangents[i], n = u.length;
  const w = Math.max(250, 62 + 26 * n), left = 58, right = 8, top = 32, tall = 112, base = top + tall, gap = 20, low = base + gap, deep = 54, full = low + deep + 34;
  const least = Math.min(0, ...u), most = Math.max(theta * 1.15, ...u), width = (w - left - right) / n, x = (t) => left + width * (t + 0.5), y = (v) => base - (tall * (v - least)) / (most - least || 1);
  const peak = Math.max(...layer.slopes.flat(), 1e-12), size = Math.max(...back.map(Math.abs)), z = (g) => low + deep / 2 - ((deep / 2) * g) / (size || 1);
  const text = (px, py, t, anchor = "middle") => svg("text", { x: px, y: py, "text-anchor": anchor, class: "axis" }, document.createTextNode(t));
  const fired = layer.steps.filter((_, t) => spikes[t]).join(", ") || "none";
  const label = `Neuron ${neuron}: spikes at steps ${fired}; potential from ${fmt(Math.min(...u), 3)} to ${fmt(Math.max(...u), 3)}, threshold ${fmt(theta, 3)}; surrogate up to ${fmt(Math.max(...slopes), 3)}; derivative of the loss by its potential up to ${fmt(size, 3)} in size`;
  // the surrogate of each step as a bar beside the potential: as wide as its slope
  const slopeBars = slopes.map((s, t) => svg("rect", { class: `slope${spikes[t] ? " fired" : ""}`, x: x(t) - width * 0.32, width: width * 0.64, y: base - (tall * 0.45 * s) / peak, height: (tall * 0.45 * s) / peak }));
  const jumps = u.map((v, t) => (spikes[t] ? svg("path", { class: "jump", d: `M${x(t)} ${y(v)}V${y(layer.after[i][t])}` }) : svg("g")));
  const lines = u.map((v, t) => (t + 1 < n ? svg("line", { class: "potential", x1: x(t), y1: y(layer.after[i][t]), x2: x(t + 1), y2: y(u[t + 1]) }) : svg("g")));
  const silent = layer.surrogate === "STDB" ? Math.max(0, spikes.findIndex((s) => s > 0) < 0 ? n : spikes.findIndex((s) => s > 0)) : 0;
  const unfired = silent ? [svg("rect", { class: "unfired", x: left, y: top, width: width * silent, height: tall }), text(left + (width * silent) / 2, top + 11, "no spike yet: 0")] : [];
  const bars = back.map((g, t) => svg("rect", { class: g >= 0 ? "plus" : "minus", x: x(t) - width * 0.28, width: width * 0.56, y: Math.min(z(g), z(0)), height: Math.max(0.5, Math.abs(z(g) - z(0))) }));
  const every = Math.max(1, Math.ceil(n / 8));
  return h("figure", { class: "course" }, svg("svg", { width: w, height: full, viewBox: `0 0 ${w} ${full}`, role: "img", "aria-label": label },
    ...unfired, ...slopeBars, svg("path", { class: "frame", d: `M${left} ${top}V${base}H${w - right}M${left} ${low}V${low + deep}M${left} ${z(0)}H${w - right}` }),
    svg("line", { class: "theta", x1: left, x2: w - right, y1: y(theta), y2: y(theta) }), text(left - 4, y(theta) + 4, `θ ${fmt(theta, 3)}`, "end"), text(left - 4, base + 3, fmt(least, 2), "end"), text(4, 11, "potential u", "start"),
    ...lines, ...jumps, ...u.map((v, t) => svg("circle", { class: "point", cx: x(t), cy: y(v), r: 2.6 })),
    ...spikes.map((s, t) => (s ? svg("line", { class: "spike", x1: x(t), x2: x(t), y1: 17, y2: 29 }) : svg("g"))),
    ...bars, text(4, low - 5, "∂L/∂u", "start"), ...(size ? [text(left - 4, low + 8, fmt(size, 2), "end"), text(left - 4, low + deep, fmt(-size, 2), "end")] : [text(left - 4, z(0) + 4, "0", "end")]),
    ...layer.steps.map((t, k) => (k % every ? svg("g") : text(x(k), low + deep + 13, String(t)))), text((left + w) / 2, full - 4, "time step"),
    ...u.map((v, t) => svg("rect", { class: "at", "data-step": layer.steps[t], x: x(t) - width / 2, y: 0, width, height: full }))), h("figcaption", { text: `neuron ${neuron}` }));
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
