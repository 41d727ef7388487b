// The opening: the loss, one weight, what a nudge does, and the chain of local derivatives that answers.
"use strict";

class Story {
  constructor(net, jump) {
    Object.assign(this, { net, jump, story: net.data.story });
    this.element = h("section", { id: "story", "aria-labelledby": "story-title" });
    if (!this.story) { this.element.hidden = true; return; }
    const most = Math.max(...this.story.nudges.map((n) => n.by));
    this.slider = h("input", { type: "range", id: "nudge", min: -most, max: most, step: most / 50, value: most / 5, "aria-label": "Nudge of the weight" });
    this.points = [0, ...this.story.nudges.map((n) => n.by)].sort((a, b) => a - b);
    if (!net.editable) Object.entries({ min: 0, max: this.points.length - 1, step: 1, value: this.points.length - 2 }).forEach(([k, v]) => { this.slider[k] = v; });
    this.slider.addEventListener("input", () => this.nudge());
    this.draw();
  }

  get by() { return this.net.editable ? Number(this.slider.value) : this.points[Number(this.slider.value)]; }

  // Behind spikes a gradient is a surrogate and no slope of the loss: it promises no amount. That of a readout's weight is one.
  get jumps() { const { measured, gradient } = this.story; return this.net.data.spiking && Math.abs(measured - gradient) > 1e-4 * (Math.abs(measured) + Math.abs(gradient)); }

  name() { const v = this.net.data.values[this.story.value]; return `${v.name} ${place_(this.story.entry, v.shape)}`; }

  draw() {
    const { story: s, net } = this, { data } = net;
    this.answer = h("p", { id: "nudge-answer", role: "status", "aria-live": "off" });
    this.plot = h("div", { class: "nudge-plot" });
    const answer = this.jumps
      ? `Training uses the surrogate gradient, ∂L/∂w = ${fmt(s.gradient)}: computed as if every spike had the slope of a smoothed one. The loss of this network stays, or jumps by another amount than the gradient times the nudge.`
      : `The answer is its gradient, ∂L/∂w = ${fmt(s.gradient)}: the loss changes by about ${fmt(s.gradient, 3)} times the nudge. The network itself, run again with the weight moved by a hair, gives a slope of ${fmt(s.measured)}.`;
    this.element.replaceChildren(
      h("h2", { id: "story-title", text: "One weight, and the loss" }),
      h("div", { class: "story" },
        h("div", {},
          h("p", { text: `For ${data.samples === 1 ? "this sample" : `these ${data.samples} samples`} the network's loss is L = ${fmt(data.loss, 6)}. Training asks of each of its ${parameterCount(net)} parameters: if it is nudged, what happens to the loss? Take the weight ${this.name()} = ${fmt(s.weight)}.` }),
          h("p", { class: "nudger" }, h("label", { for: "nudge", text: "Nudge it " }), this.slider), this.answer,
          h("p", { text: `${answer} Backpropagation finds the gradients of all parameters at once, in one pass from the loss to the inputs; training then moves every parameter a little against its gradient: with a learning rate of 0.1, w becomes ${fmt(s.weight, 4)} − 0.1 × ${signed(s.gradient)} = ${fmt(s.weight - 0.1 * s.gradient, 4)}.` }),
          this.jumps ? h("p", { class: "aside", text: `A spiking network answers a nudge with nothing, or with a jump: a spike is there or not, so the true derivative is zero almost everywhere (measured here: ${fmt(s.measured)}). Its gradient uses a surrogate, the slope of a smoothed spike; it says in which direction a spike becomes more likely.` }) : null),
        this.plot),
      h("h3", { text: "The chain of numbers that answers" }),
      h("p", { text: `The weight acts on the loss through a chain of calls. Each factor below is a local derivative: how much one entry of a call's output (its place in brackets, the first number is the sample) changes when one entry of its input changes; where a weight is multiplied by an input, it is that input. Along a path they multiply; over all paths the products add up.` }),
      this.chain(),
    );
    this.nudge();
  }

  chain() {
    const { story: s, net } = this, at = (id, entry) => place_(entry, net.data.values[id].shape);
    const long = s.paths.some((path) => path.steps.length > 6); // then factors of 1 are left out
    const row = (path) => {
      const factors = path.steps.filter((step) => !long || step.local !== 1).flatMap((step, i) => {
        const n = net.data.nodes[step.node], title = `${n.name}${where(n)}: entry ${at(step.output, step.to)} of its output`;
        return [i ? h("span", { class: "times", text: "×" }) : null, h("button", { type: "button", class: "factor", title, "data-call": step.node, onclick: () => this.jump(step.node) }, h("b", { text: fmt(step.local, 4) }), h("span", { text: `${n.name}${n.step === null ? "" : ` t=${n.step}`}` }), at(step.output, step.to) ? h("span", { text: at(step.output, step.to) }) : null)];
      });
      return h("li", { class: "path" }, h("span", { class: "times start", text: "w →" }), factors, h("span", { class: "times", text: "=" }), h("b", { class: "product", text: fmt(path.product, 4) }));
    };
    const shown = s.paths.reduce((t, p) => t + p.product, 0), many = s.paths.length > 1 || s.others !== null;
    const rest = s.others === null ? "" : ` ${s.others < 0 ? "−" : "+"} ${fmt(Math.abs(s.others), 4)} over all other paths`;
    const sum_ = many ? `${added(s.paths.map((p) => p.product))}${rest} = ` : "";
    return h("div", {}, h("ol", { class: "paths" }, s.paths.map(row)),
      h("p", { class: "chain-sum", id: "chain-sum", "data-sum": shown + (s.others || 0), text: `${many ? "Sum: " : ""}${sum_}${fmt(s.gradient)}, the gradient from torch ${s.matches ? "✓" : "✗"}` }),
      h("p", { class: "small", text: `The factors come from torch, one call at a time.${s.others === null ? " These are all paths from this weight to the loss that are not zero." : ` ${s.paths.length} paths with large products are shown; the others are what remains of the gradient. The ✓ says that the first factors of all paths, each times the gradient where it leads, add up to it.`} Backpropagation does not follow paths one by one: it goes back call by call, and at each it adds up what returns, so every local derivative is used once.${long ? " Calls with the factor 1, which add or only move numbers, are left out above." : ""} Activate a factor to see its call; the timeline below plays the pass.` }));
  }

  lossAt(by) {
    const { story: s, net } = this;
    if (by === 0) return net.data.loss;
    if (!net.editable) return s.nudges.find((n) => n.by === by).loss;
    return net.lossWith(s.value, s.entry, s.weight + by);
  }

  nudge() {
    const { by, story: s, net } = this, L = net.data.loss, now = this.lossAt(by), line = L + s.gradient * by, sign = (x) => (x >= 0 ? `+${fmt(x, 4)}` : fmt(x, 4));
    this.slider.setAttribute("aria-valuetext", sign(by));
    this.answer.dataset.loss = now;
    this.answer.replaceChildren(`w ${sign(by)}: the loss goes from ${fmt(L, 5)} to `, h("b", { text: fmt(now, 5) }), ` (${sign(now - L)}). ${this.jumps ? "The surrogate gradient says" : "The gradient says"} ${fmt(s.gradient, 4)} × ${fmt(by, 3)} = ${sign(line - L)}.`);
    this.plot.replaceChildren(this.curve(by, now));
  }

  // The measured loss against the nudge, with the line whose slope is the gradient.
  curve(by, now) {
    const { story: s, net } = this, L = net.data.loss, w = 330, tall = 190, left = 54, low = 34;
    this.curvePoints = this.curvePoints || (net.editable ? Array.from({ length: 41 }, (_, i) => ((i - 20) / 20) * Math.max(...this.points)) : this.points).map((d) => [d, this.lossAt(d)]);
    const points = this.curvePoints, span = Math.max(...this.points), lines = [-span, span].map((d) => L + s.gradient * d), all = [...points.map((p) => p[1]), ...lines, now];
    const least = Math.min(...all), most = Math.max(...all), x = (d) => left + ((d + span) / (2 * span)) * (w - left - 10), y = (v) => tall - low - ((v - least) / (most - least || 1)) * (tall - low - 12);
    const text = (px, py, t, anchor) => svg("text", { x: px, y: py, "text-anchor": anchor || "middle", class: "axis" }, document.createTextNode(t));
    return svg("svg", { viewBox: `0 0 ${w} ${tall}`, width: w, height: tall, role: "img", "aria-label": `Loss against the nudge: measured from ${fmt(points[0][1], 4)} to ${fmt(points[points.length - 1][1], 4)}, and the straight line of the gradient` },
      svg("path", { class: "frame", d: `M${left} 6V${tall - low}H${w - 8}` }),
      svg("line", { class: "tangent", x1: x(-span), x2: x(span), y1: y(lines[0]), y2: y(lines[1]) }),
      svg("polyline", { class: "measured", points: points.map(([d, v]) => `${x(d)},${y(v)}`).join(" ") }),
      svg("line", { class: "now", x1: x(by), x2: x(by), y1: 8, y2: tall - low }),
      svg("circle", { class: "dot", cx: x(by), cy: y(now), r: 5 }),
      text(x(-span), tall - low + 15, fmt(-span, 3), "start"), text(x(0), tall - low + 15, "0"), text(x(span), tall - low + 15, `+${fmt(span, 3)}`, "end"), text((w + left) / 2, tall - 4, "nudge of the weight"),
      text(left - 5, y(most) + 9, fmt(most, 3), "end"), text(left - 5, y(least), fmt(least, 3), "end"), text(left - 5, (y(most) + y(least)) / 2, "loss", "end"));
  }
}

const signed = (x) => (x < 0 ? `(${fmt(x, 4)})` : fmt(x, 4));
const added = (numbers) => numbers.map((x, i) => (i ? `${x < 0 ? "−" : "+"} ${fmt(Math.abs(x), 4)}` : fmt(x, 4))).join(" ");
const parameterCount = (net) => net.data.values.filter((v) => v.role === "parameter" && v.cotangent).reduce((t, v) => t + sizeOf(v.shape), 0).toLocaleString("en");
