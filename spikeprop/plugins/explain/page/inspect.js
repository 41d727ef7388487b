// One step of the timeline: forward, inputs and outputs of a call; backward, upstream times local at each of its edges.
"use strict";

const VERDICTS = {
  agrees: ["✓ finite differences agree", "good"],
  differs: ["✗ finite differences differ", "bad"],
  kink: ["∧ a kink: the backward pass lies between the one-sided derivatives", "fair"],
  surrogate: ["~ surrogate: replaces a derivative that is 0 almost everywhere", "fair"],
};

const where = (n) => `${n.module ? ` in ${n.module}` : ""}${n.step === null ? "" : `, time step ${n.step}`}`;
const nameOf = (net, id) => {
  const v = net.data.values[id], from = net.source.get(id);
  return from === undefined ? v.name : `output of ${net.data.nodes[from].name} ${from}`;
};

function inspect(net, node, backward, host, openCard) {
  const parts = [h("h2", { id: "step-title", text: `${backward ? "Backward" : "Forward"} · ${node.name}${where(node)}` }), badges(net, node, openCard)];
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
  found.push(h("span", { class: "badge", title: "Bytes that this call keeps for its backward pass (not counting those kept by earlier calls), in the network's precision", text: `keeps ${bytesText(node.saved)}` }));
  if (node.card) found.push(h("button", { type: "button", class: "card-button", "data-card": node.card, onclick: () => openCard(node.card), text: `Card: ${net.data.cards[node.card].title}` }));
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
  return h("p", { class: "fan-out", text: `Fan-out: used ${uses.length} times, so the cotangents are summed. Entry ${place_(entry, total.shape)}: ${parts.join(" + ")} = ${fmt(read(total))}${ok}` });
}

const largestOf = (data) => data.reduce((best, x, i) => (Math.abs(x) > Math.abs(data[best]) ? i : best), 0);

function edgeView(net, node, edge) {
  const v = net.data.values[edge.value], out = net.data.values[node.outputs[0]].shape;
  const open = v.role === "value" || v.role === "input" || net.edgesOf[node.id].length < 3;
  const box = h("details", { class: "edge", open }, h("summary", {}, h("b", { text: `to ${nameOf(net, edge.value)}` }), ` — local: ${shapeText(out)} by ${shapeText(v.shape)}`));
  const sums = h("div", { class: "sums" }, net.sums(edge).map((s) => sumView(net, node, edge, s)));
  box.append(sums, tensorView("downstream", net.downstream(edge)));
  if (net.editable && sizeOf(v.shape) > 1) box.append(chooser(net, node, edge, sums));
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

// The derivation card in a dialog.
function showCard(net, key) {
  const card = net.data.cards[key], dialog = document.getElementById("card");
  const lines = (title, steps) => [h("h3", { text: title }), h("ol", { class: "lines" }, steps.map((s) => h("li", {}, h("div", { class: "math", html: tex(s.latex) }), s.why ? h("span", { class: "why", text: s.why }) : null)))];
  const symbols = h("ul", { class: "symbols" }, card.symbols.map((s) => h("li", {}, h("span", { html: katex.renderToString(s.latex, { output: "htmlAndMathml" }) }), ` ${s.means}`)));
  dialog.replaceChildren(
    h("form", { method: "dialog" }, h("button", { class: "close", "aria-label": "Close card", text: "×" })),
    h("h2", { id: "card-title", text: card.title }), h("p", { text: card.about }), h("p", { class: "small", text: "A bar denotes the derivative of the loss by the symbol below it. The tests evaluate every line and compare it with autograd." }), symbols,
    ...lines("Statement", card.statement), ...lines("Directly", card.direct), ...lines("By the chain rule", card.chain),
    card.source ? h("p", { class: "small", text: `Source: ${card.source}` }) : "",
  );
  dialog.showModal();
}
