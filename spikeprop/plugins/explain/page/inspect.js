// One step of the timeline: forward, inputs and outputs of a call; backward, upstream times local at each of its edges.
"use strict";

const VERDICTS = {
  agrees: ["✓ finite differences agree", "good"],
  differs: ["✗ finite differences differ", "bad"],
  kink: ["∧ a kink: the backward pass lies between the one-sided derivatives", "fair"],
  surrogate: ["~ surrogate: replaces a derivative that is 0 almost everywhere", "fair"],
};

const WORDS = {
  forward: "Forward, the call computes its output from its inputs. A shape such as 2×3 counts the numbers along each axis; the first axis is the samples. What its backward step will need, the call keeps.",
  backward: "Backward, the call gets the upstream: how much the loss changes when its output changes. It multiplies it by its local derivative, how much its output changes when its input changes. The product is the downstream: how much the loss changes when its input changes, and the upstream of the call before.",
  list: [
    ["gradient, ∂L/∂h", "how much the loss L changes when h changes by a little, for every number in h; also called the cotangent of h, and written h with a bar, or h_bar in code"],
    ["upstream", "the gradient of a call's output; it arrives from the calls after it, which have already been passed backward"],
    ["local derivative", "how much one number of the output changes when one number of the input changes, in this call alone"],
    ["downstream", "the gradient of a call's input: for every number, the sum over the outputs it reaches of upstream × local"],
    ["fan-out", "a value that is read several times influences the loss in several ways, so what comes back from each is added"],
    ["keeps 16 B", "what the forward pass must remember for this call's backward step, in the network's own precision, beyond what earlier calls keep"],
    ["finite differences", "an independent check: all inputs of the call are moved a little to both sides, and the change of the output is compared with what the backward pass says"],
    ["kink", "a point such as 0 of a ReLU, or two equal numbers under a maximum, where the slopes to the left and to the right differ; the backward pass takes one between them"],
    ["surrogate", "the slope of a smoothed spike, used backward in place of the true derivative, which is zero almost everywhere"],
  ],
  keeps: "What the forward pass must remember for this call's backward step, in the network's own precision, without what earlier calls keep already.",
};

const FEW = 12; // entries of a weight whose edge is open from the start

const where = (n) => `${n.module ? ` in ${n.module}` : ""}${n.step === null ? "" : `, time step ${n.step}`}`;
const nameOf = (net, id) => {
  const v = net.data.values[id], from = net.source.get(id);
  return from === undefined ? v.name : `output of ${net.data.nodes[from].name} ${from}`;
};

function inspect(net, node, backward, host, openCard) {
  const parts = [h("h2", { id: "step-title", text: `${backward ? "Backward" : "Forward"} · ${node.name}${where(node)}` }), badges(net, node, openCard)];
  if (node.source) parts.push(h("p", { class: "source" }, h("span", { text: `${node.source[0]}:${node.source[1]}` }), h("code", { text: node.source[2] })));
  parts.push(h("p", { class: "small", text: backward ? WORDS.backward : WORDS.forward }));
  parts.push(h("details", { class: "words" }, h("summary", { text: "Words on this page" }), h("dl", {}, WORDS.list.flatMap(([word, means]) => [h("dt", { text: word }), h("dd", { text: means })]))));
  host.replaceChildren(...parts, ...(backward ? backwardParts(net, node) : forwardParts(net, node)));
}

function badges(net, node, openCard) {
  const d = net.difference(node), found = [];
  if (d) {
    const [text, mood] = VERDICTS[d.verdict];
    const numbers = d.verdict === "surrogate" ? "" : ` (${fmt(d.finite)} and ${fmt(d.backward)})`;
    found.push(h("span", { class: `badge ${mood}`, id: "difference", title: "Central difference of this call's output along a fixed direction, weighted by the upstream, compared with its backward pass", text: text + numbers }));
  }
  node.flags.forEach((f) => found.push(h("span", { class: "badge bad", title: net.data.meanings[f], text: `⚠ ${f}` })));
  found.push(h("span", { class: "badge", title: WORDS.keeps, text: `keeps ${bytesText(node.saved)} for backward` }));
  if (node.card) found.push(h("button", { type: "button", class: "card-button", "data-card": node.card, onclick: () => openCard(node.card, node), text: `Card: ${net.data.cards[node.card].title}` }));
  else found.push(h("span", { class: "badge fair", text: "no card: only numbers are shown" }));
  return h("p", { class: "badges" }, found);
}

function forwardParts(net, node) {
  const inputs = node.inputs.map((id) => tensorView(nameOf(net, id), net.value(id)));
  const outputs = node.outputs.map((id, k) => tensorView(`output${node.outputs.length > 1 ? ` ${k}` : ""}`, net.value(id)));
  return [h("h3", { text: "Inputs" }), ...inputs, h("h3", { text: "Outputs" }), ...outputs];
}

function backwardParts(net, node) {
  const upstream = node.outputs.map((id, k) => h("div", {}, tensorView(`upstream ∂L/∂output${node.outputs.length > 1 ? ` ${k}` : ""}`, net.cotangent(id)), fanOut(net, id)));
  const edges = net.edgesOf[node.id].map((edge) => edgeView(net, node, edge));
  return [h("h3", { text: "Upstream" }), ...upstream, h("h3", { text: "Upstream × local = downstream" }), ...edges];
}

// The sum at a value with several uses.
function fanOut(net, id) {
  const uses = net.data.edges.filter((e) => e.value === id);
  if (uses.length < 2) return null;
  const total = net.cotangent(id), k = total.all ? largestOf(total.all) : 0, entry = total.all ? k : total.places[0];
  const read = (view) => (view.all ? view.all[k] : view.some[0]);
  const parts = uses.map((e) => `${fmt(read(net.downstream(e)))} (${net.data.nodes[e.node].name} ${e.node})`);
  const ok = net.data.values[id].sum_matches ? " ✓" : " ✗";
  return h("p", { class: "fan-out", text: `Fan-out: used ${uses.length} times, so what comes back is added. Entry ${place_(entry, total.shape)}: ${parts.join(" + ")} = ${fmt(read(total))}${ok}` });
}

const largestOf = (data) => data.reduce((best, x, i) => (Math.abs(x) > Math.abs(data[best]) ? i : best), 0);

function edgeView(net, node, edge) {
  const v = net.data.values[edge.value], out = net.data.values[node.outputs[0]].shape;
  const open = v.role === "value" || v.role === "input" || net.edgesOf[node.id].length < 3 || sizeOf(v.shape) <= FEW;
  const box = h("details", { class: "edge", open }, h("summary", {}, h("b", { text: `to ${nameOf(net, edge.value)}` }), ` — local derivatives: of ${shapeText(out)} outputs by ${shapeText(v.shape)} inputs`));
  const sums = h("div", { class: "sums" }, net.sums(edge).map((s) => sumView(net, node, edge, s)));
  box.append(sums, tensorView("downstream", net.downstream(edge)));
  if (net.computes && sizeOf(v.shape) > 1) box.append(chooser(net, node, edge, sums));
  const fan = v.role === "value" ? null : fanOut(net, edge.value);
  if (fan) box.append(fan);
  return box;
}

function chooser(net, node, edge, sums) {
  const shape = net.data.values[edge.value].shape, most = sizeOf(shape) - 1;
  const input = h("input", { type: "number", min: 0, max: most, value: 0, "aria-label": `entry 0 to ${most} whose sum is shown` });
  input.addEventListener("change", () => {
    const entry = Math.min(most, Math.max(0, Math.round(Number(input.value) || 0)));
    sums.replaceChildren(sumView(net, node, edge, net.sumAt(edge, entry, 8)));
  });
  return h("p", { class: "small" }, h("label", {}, "Sum of entry ", input));
}

// One entry of the downstream as the sum of its terms.
function sumView(net, node, edge, s) {
  const v = net.data.values[edge.value], many = node.outputs.length > 1;
  const terms = s.terms.map((t) => {
    const shape = net.data.values[node.outputs[t.output]].shape;
    return h("tr", {}, h("td", { text: `${many ? `output ${t.output} ` : ""}${place_(t.entry, shape)}` }), h("td", { text: fmt(t.upstream) }), h("td", { class: "sign", text: "×" }), h("td", { text: fmt(t.local) }), h("td", { class: "sign", text: "=" }), h("td", { text: fmt(t.upstream * t.local) }));
  });
  if (s.others > 0) terms.push(h("tr", {}, h("td", { colspan: 4, text: `${s.others} smaller terms` }), h("td", { class: "sign", text: "=" }), h("td", { text: fmt(s.rest) })));
  const total = h("tr", { class: "total" }, h("td", { colspan: 4, text: `downstream ${place_(s.entry, v.shape)}` }), h("td", { class: "sign", text: "=" }), h("td", { text: `${fmt(s.downstream)} ${s.matches ? "✓" : "✗"}` }));
  const head = h("tr", {}, ["output entry", "upstream", "", "local", "", "product"].map((t) => (t ? h("th", { scope: "col", text: t }) : h("td", {}))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `terms of downstream entry ${s.entry}` }, h("table", { class: "terms" }, h("thead", {}, head), h("tbody", {}, terms, total)));
}

// The derivation card in a dialog, with the settings of the call from which it was opened.
function showCard(net, key, node) {
  const card = net.data.cards[key], dialog = document.getElementById("card");
  const lines = (title, steps) => [h("h3", { text: title }), h("ol", { class: "lines" }, steps.map((s) => h("li", {}, h("div", { class: "math", html: tex(s.latex) }), s.why ? h("span", { class: "why", text: s.why }) : null)))];
  const symbols = h("ul", { class: "symbols" }, card.symbols.map((s) => h("li", {}, h("span", { html: katex.renderToString(s.latex, { output: "htmlAndMathml" }) }), ` ${s.means}`)));
  dialog.replaceChildren(
    h("form", { method: "dialog" }, h("button", { class: "close", "aria-label": "Close card", text: "×" })),
    h("h2", { id: "card-title", text: card.title }), node ? ownCall(net, node) : "",
    h("p", { text: card.about }), h("p", { class: "small", text: "A bar denotes the derivative of the loss by the symbol below it. The tests evaluate every line and compare it with autograd." }), symbols,
    ...lines("Statement", card.statement), ...lines("Directly", card.direct), ...lines("By the chain rule", card.chain),
    card.source ? h("p", { class: "small", text: `Source: ${card.source}` }) : "",
  );
  dialog.showModal();
}

// What the card's symbols are in this call: shapes, stride, padding, whether there is a bias.
function ownCall(net, node) {
  const s = node.settings, shape = (id) => shapeText(net.data.values[id].shape), slot = (k) => (s.slots && s.slots[k] !== null && s.slots[k] !== undefined ? node.inputs[s.slots[k]] : null);
  const facts = [`input ${shape(slot(0) ?? node.inputs[0])}`, `output ${shape(node.outputs[0])}`], lines = [];
  if (node.kind === "affine" || node.kind === "conv2d") facts.push(`weights ${shape(slot(1))}`, slot(2) === null ? "no bias: the lines with b do not apply" : `bias ${shape(slot(2))}`);
  if (s.stride) facts.push(`stride ${s.stride.join("×")}`, `padding ${s.padding.join("×")}`);
  if (s.kernel) facts.push(`window ${s.kernel.join("×")}`);
  if (s.dilation && s.dilation.some((d) => d !== 1)) facts.push(`dilation ${s.dilation.join("×")}`);
  if (s.groups > 1) facts.push(`${s.groups} groups, each with its own channels`);
  if (s.eps) facts.push(`ε = ${fmt(s.eps)}`, s.training === false ? "evaluation mode: mean and variance are constants" : "mean and variance of this batch or sample");
  if (s.scale) facts.push(`scores times ${fmt(s.scale)}`, s.causal ? "causal: no token attends to a later one" : "every token attends to all");
  if (s.surrogate) facts.push(`surrogate ${s.surrogate}`, ...["alpha", "beta", "height", "slope"].filter((k) => s[k] !== undefined).map((k) => `${k} ${fmt(s[k])}`));
  if (node.kind === "conv2d") lines.push(convolutionLine(s, slot(2) !== null));
  if (s.kernel && s.stride) lines.push(poolLine(node.kind, s));
  return h("div", { class: "own-call" }, h("h3", { text: "In this call" }), h("p", { text: `${facts.join("; ")}.` }), lines.map((l) => h("div", { class: "math", html: tex(l) })));
}

// i times stride minus padding plus u times dilation, in LaTeX.
function position(i, u, stride, padding, dilation = 1) {
  const first = stride === 1 ? i : `${stride} ${i}`, second = dilation === 1 ? u : `${dilation} ${u}`;
  return `${first} + ${second}${padding ? ` - ${padding}` : ""}`;
}

function convolutionLine(s, bias) {
  const place = ["i", "j"].map((i, axis) => position(i, ["u", "v"][axis], s.stride[axis], s.padding[axis], s.dilation[axis]));
  return `y_{o,i,j} = \\sum_{c,u,v} W_{o,c,u,v}\\, x_{${s.groups > 1 ? "g(o)+c" : "c"},\\,${place.join(",\\,")}}${bias ? " + b_o" : ""}`;
}

function poolLine(kind, s) {
  const place = ["i", "j"].map((i, axis) => position(i, ["u", "v"][axis], s.stride[axis], s.padding[axis])), x = `x_{${place.join(",\\,")}}`;
  return kind === "max_pool2d" ? `y_{i,j} = \\max_{u,v}\\, ${x}` : `y_{i,j} = \\frac{1}{${s.kernel[0] * s.kernel[1]}} \\sum_{u,v} ${x}`;
}
