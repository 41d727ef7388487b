// Code it yourself: the NumPy program of this network, run by this page, with lines of the backward pass left blank as an exercise.
"use strict";

const CLOSE = 1e-7;

class CodePanel {
  constructor(net) {
    Object.assign(this, { net, program: net.data.program, blanks: new Set(), answers: new Map() });
    this.body = h("div", { class: "code-body" });
    this.status = h("p", { id: "code-status", role: "status", "aria-live": "polite" });
    this.element = h("section", { id: "code", "aria-labelledby": "code-title" }, h("h2", { id: "code-title", text: "Code it yourself" }), this.parts());
  }

  parts() {
    const { program: p } = this;
    if (p.reason) return [h("p", { text: `No program for this network: ${p.reason}.` })];
    const backward = p.backward.length, button = (id, text, act) => h("button", { type: "button", id, onclick: act, text });
    this.draw();
    return [
      h("p", { text: `The whole step in ${p.forward.length + backward} lines of NumPy, written for this network. The rule is always the same: h_bar is ∂L/∂h, how much the loss changes when h changes; each backward line takes the h_bar of a call's output (upstream), multiplies by the call's local derivative, and gives the h_bar of an input (downstream).` }),
      h("p", { class: "small", text: `What runs here: this page reads these lines itself and runs a small part of NumPy written in JavaScript${p.helpers.length ? `; the helper functions (${this.helpers().join(", ")}) run as their JavaScript twins` : ""}. When the page was made, the same lines ran in Python with NumPy and gave torch's gradients. “Copy as Python” copies them with all numbers.` }),
      h("p", { class: "tools" }, button("code-run", "Run", () => this.run()), button("code-exercise", "Blank some lines", () => this.exercise()), button("code-all", "Blank all backward lines", () => this.exercise(true)), button("code-show", "Show the solution", () => this.solve()), button("code-copy", "Copy as Python", () => this.copy())),
      this.status, this.body,
      h("details", {}, h("summary", { text: "Names: which array is which" }), h("ul", { class: "symbols" }, Object.entries(p.given).map(([name, g]) => h("li", {}, h("code", { text: name }), ` = ${typeof g === "number" ? `${this.net.data.values[g].name}, ${shapeText(this.net.data.values[g].shape)}` : "numbers of this call"}`)))),
      p.helpers.length ? h("details", {}, h("summary", { text: "Helper functions" }), h("pre", { class: "helpers", tabindex: "0" }, p.helpers.join("\n\n"))) : null,
    ];
  }

  helpers() { return this.program.helpers.map((text) => /def (\w+)/.exec(text)[1]); }

  draw() {
    const { program: p } = this, line = (l, i, part) => {
      const blank = part === "backward" && this.blanks.has(i), at = l.text.search(/\+?= /), head = l.text.slice(0, at + (l.text[at] === "+" ? 3 : 2));
      const content = blank ? [h("span", { text: head }), this.input(l, i)] : [h("span", { text: l.text })];
      return h("li", { "data-line": `${part}-${i}`, "data-call": l.node < 0 ? null : l.node }, h("code", {}, content));
    };
    const list = (part) => h("div", { class: "program", tabindex: "0", role: "region", "aria-label": `${part}, lines of code` }, h("ol", {}, p[part].map((l, i) => line(l, i, part))));
    this.body.replaceChildren(h("div", {}, h("h3", { text: "Forward" }), list("forward")), h("div", {}, h("h3", { text: "Backward" }), list("backward")));
  }

  input(l, i) {
    const input = h("input", { type: "text", class: "blank", "data-blank": i, spellcheck: "false", autocomplete: "off", "aria-label": `${l.blank} =`, value: this.answers.get(i) || "" });
    const verdict = h("span", { class: "verdict", role: "status" });
    input.addEventListener("change", () => this.answer(i, input, verdict));
    return [input, verdict].reduce((box, e) => { box.append(e); return box; }, h("span", { class: "blank-box" }));
  }

  // The lines, with answers in place of the solution for the blanks given.
  lines(replaced) {
    const { forward, backward } = this.program;
    return [...forward.map((l) => l.text), ...backward.map((l, i) => (replaced && replaced.has(i) ? l.text.replace(/(\+?= ).*$/, (_, sign) => sign + replaced.get(i)) : l.text))];
  }

  given() {
    const array = (x) => ({ shape: dims(x), data: Float64Array.from([x].flat(Infinity)) });
    return Object.fromEntries(Object.entries(this.program.given).map(([name, g]) => {
      if (typeof g !== "number") return [name, array(g)];
      const view = this.net.value(g);
      return [name, view.shape.length ? tensor(view.shape, Float64Array.from(view.all)) : view.all[0]];
    }));
  }

  // The gradients that differ from torch's, or from this page's own after an edit.
  differing(scope) {
    return Object.entries(this.program.gradients).filter(([name, id]) => compare(scope.get(name), this.net.cotangent(id)) !== null);
  }

  run() {
    try {
      const scope = runLines(this.lines(this.answers), this.given()), wrong = this.differing(scope), count = Object.keys(this.program.gradients).length;
      const whose = this.net.edited ? "this page's own, after your edits" : "torch's";
      this.status.textContent = `L = ${fmt(loose(scope.get("L")), 8)}. ${count - wrong.length} of ${count} gradients equal ${whose}${wrong.length ? `; not equal: ${wrong.map(([name]) => name).join(", ")}` : " ✓"}`;
      return wrong.length === 0;
    } catch (error) {
      const n = this.program.forward.length, text = error.line < n ? `forward line ${error.line + 1}` : `backward line ${error.line - n + 1}`;
      this.status.textContent = `${text}: ${error.message}`;
      return false;
    }
  }

  exercise(all = false) {
    const able = this.program.backward.map((l, i) => (l.blank ? i : -1)).filter((i) => i >= 0);
    this.blanks = new Set(all ? able : able.filter((_, k) => k % 3 === 1 || able.length < 3));
    this.answers.clear();
    this.draw();
    this.status.textContent = `${this.blanks.size} lines are blank. Write the right side and press Enter; its numbers are checked. @ is the matrix product, .T the transpose.`;
    const first = this.body.querySelector(".blank");
    if (first) first.focus();
  }

  solve() { this.blanks.clear(); this.answers.clear(); this.draw(); this.status.textContent = "The lines of this network, complete."; }

  answer(i, input, verdict) {
    const say = (text, good) => { verdict.textContent = text; verdict.className = `verdict ${good ? "good" : "bad"}`; };
    const text = input.value.trim();
    this.answers.delete(i);
    if (!text) { say("", false); return; }
    const name = this.program.backward[i].blank;
    try {
      const given = this.given(), right = runLines(this.lines(null), given), mine = runLines(this.lines(new Map([[i, text]])), this.given());
      const wrong = compare(mine.get(name), lift(right.get(name)));
      if (wrong !== null) { say(`✗ ${wrong}`, false); return; }
      this.answers.set(i, text);
      const left = [...this.blanks].filter((k) => !this.answers.has(k)).length;
      say("✓ the numbers agree", true);
      if (left) this.status.textContent = `${left} of ${this.blanks.size} blanks left.`;
      else this.run();
    } catch (error) {
      const later = error.line !== undefined && error.line !== this.program.forward.length + i; // it stopped a line that follows
      const wrong = later && compare(error.scope.get(name), lift(runLines(this.lines(null), this.given()).get(name)));
      say(`✗ ${wrong || error.message}`, false);
    }
  }

  async copy() {
    const numbers = (x) => (Array.isArray(x) ? `[${x.map(numbers).join(", ")}]` : Number.isFinite(x) ? String(x) : Number.isNaN(x) ? "np.nan" : x > 0 ? "np.inf" : "-np.inf");
    const nested = (data, shape) => (shape.length ? Array.from({ length: shape[0] }, (_, i) => nested(data.slice((i * data.length) / shape[0], ((i + 1) * data.length) / shape[0]), shape.slice(1))) : data[0]);
    const given = Object.entries(this.given()).map(([name, x]) => {
      const id = this.program.given[name], whole = typeof id === "number" ? this.net.data.values[id].integer : name.startsWith("index");
      return `${name} = ${isArray(x) ? `np.array(${numbers(nested(Array.from(x.data), x.shape))}${whole ? ", dtype=int" : ""})` : numbers(x)}`;
    });
    const n = this.program.forward.length, lines = this.lines(this.answers);
    const text = ["import math", "", "import numpy as np", "", ...this.program.helpers.flatMap((t) => [t, ""]), ...given, "", "# forward", ...lines.slice(0, n), "", "# backward", ...lines.slice(n), ""].join("\n");
    this.copied = text;
    try { await navigator.clipboard.writeText(text); this.status.textContent = "Copied."; }
    catch { this.status.replaceChildren("This browser does not let the page copy; select it here: ", h("textarea", { class: "copied", readonly: true, "aria-label": "The program in Python" }, text)); }
  }

  // Marks the lines of a call.
  mark(node) { this.body.querySelectorAll("li").forEach((li) => li.classList.toggle("now", li.dataset.call === String(node.id))); }
}

const dims = (x) => (Array.isArray(x) ? [x.length, ...dims(x[0])] : []);

// Where two arrays differ, in words; null where they agree.
function compare(mine, right) {
  const a = lift(mine === undefined ? NaN : mine), data = right.all || right.data, shape = right.shape;
  if (!isArray(a)) return "this is not an array of numbers";
  if (a.shape.join() !== shape.join()) return `shape ${shapeText(a.shape)}, and it should be ${shapeText(shape)}`;
  const scale = Math.max(1e-3, scaleOf(Array.from(data)));
  const k = Array.from(data).findIndex((v, i) => !(Math.abs(v - a.data[i]) <= CLOSE * scale));
  return k < 0 ? null : `${shape.length ? `entry ${place_(k, shape)} is` : "it is"} ${fmt(a.data[k])}, and it should be ${fmt(data[k])}`;
}
