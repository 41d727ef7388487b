// Quiz beside the graph: questions about the numbers of this network, by mouse or keyboard (1 to 4, then N for the next question).
"use strict";

const TRIES = 10; // for each kind of question

class Quiz {
  constructor(net, host, jump) {
    Object.assign(this, { net, host, jump, answered: 0, correct: 0, seed: 7, asked: 0 });
  }

  random() { // mulberry32: the same questions on every visit
    this.seed = (this.seed + 0x6d2b79f5) | 0;
    let t = Math.imul(this.seed ^ (this.seed >>> 15), 1 | this.seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }

  pick(list) { return list[Math.floor(this.random() * list.length)]; }

  // The kinds of questions in turn; those that this network cannot answer are left out. Null if nothing goes back through it.
  question() {
    const kinds = [() => this.product(), () => this.nudge(), () => this.sum(), () => this.unit(), () => this.stop()];
    for (let tried = 0; tried < TRIES * kinds.length; tried++) { // a kind may fail at one place and not at another
      const found = kinds[this.asked++ % kinds.length]();
      if (found) return found;
    }
    return null;
  }

  edge() {
    const edges = this.net.data.edges.filter((e) => e.sums.some((s) => s.terms.length && s.downstream !== 0)), edge = this.pick(edges);
    const s = edge && this.pick(this.net.sums(edge).filter((x) => x.terms.length));
    return s ? { edge, node: this.net.data.nodes[edge.node], s } : null; // after an edit perhaps nothing comes back
  }

  product() {
    const found = this.edge();
    if (!found) return null;
    const { node, s } = found, t = s.terms[0];
    return this.numeric(node, `${node.name}${where(node)}: the upstream is ${fmt(t.upstream)} and the local derivative ${fmt(t.local)}. What goes back along this path?`, t.upstream * t.local, [t.upstream + t.local, -t.upstream * t.local, t.local === 0 ? 1 : t.upstream / t.local], "Multiply upstream by local.");
  }

  sum() {
    const found = this.edge();
    if (!found) return null;
    const { edge, node, s } = found;
    if (s.terms.length + (s.others ? 1 : 0) < 2) return null;
    const parts = [...s.terms.map((x) => fmt(x.upstream * x.local)), ...(s.others ? [fmt(s.rest)] : [])];
    return this.numeric(node, `${node.name}${where(node)}: the paths from one entry of ${nameOf(this.net, edge.value)} bring back ${parts.join(", ")}. What is its derivative?`, s.downstream, [s.terms[0].upstream * s.terms[0].local, -s.downstream, s.downstream / 2], "Add over all paths.");
  }

  nudge() {
    const { net } = this, weights = net.data.values.filter((v) => v.role === "parameter" && v.cotangent && net.cotangent(v.id));
    if (!weights.length) return null;
    const v = this.pick(weights), view = net.cotangent(v.id), data = Array.from(view.all || view.some), k = largestOf(data), entry = view.all ? k : view.places[k];
    const node = net.data.nodes.find((n) => n.inputs.includes(v.id)), answer = 0.01 * data[k];
    if (!answer) return null;
    return this.numeric(node, `The gradient of ${v.name} ${place_(entry, v.shape)} is ${fmt(data[k])}. The weight is raised by 0.01. By how much does the loss change, about?`, answer, [data[k], -answer, 0.01 / data[k]], "The change of the loss is about the gradient times the nudge; to lower the loss, move against the gradient.");
  }

  // Which unit is dead: zero for all samples shown, so that nothing goes back through it.
  unit() {
    const { net } = this;
    if (!net.computes) return null;
    const found = net.data.nodes.filter((n) => n.kind === "relu").flatMap((n) => {
      const { shape, all } = net.value(n.outputs[0]), axis = n.settings.units;
      if (shape.length < 2) return [];
      const inner = sizeOf(shape.slice(axis + 1)), units = Array.from({ length: shape[axis] }, (_, u) => all.every((v, i) => Math.floor(i / inner) % shape[axis] !== u || v <= 0));
      return units.filter((dead) => !dead).length >= 2 && units.includes(true) ? [{ n, units }] : [];
    });
    if (!found.length) return null;
    const { n, units } = this.pick(found), dead = units.indexOf(true), alive = this.shuffled(units.map((d, i) => (d ? -1 : i)).filter((i) => i >= 0)).slice(0, 3);
    return { node: n, forward: true, text: `Which unit of ${n.name}${where(n)} is dead for these samples?`, why: "It is zero for every sample; the slope of ReLU is 0 there, so nothing goes back and its weights do not learn.", answer: `unit ${dead}`, choices: this.shuffled([dead, ...alive]).map((i) => `unit ${i}`) };
  }

  // Where the gradient is largest.
  stop() {
    const { net } = this, sizes = net.data.values.filter((v) => v.role === "parameter" && v.cotangent).map((v) => ({ v, size: rms(net.cotangent(v.id)) })), chosen = this.shuffled(sizes).slice(0, 4).sort((a, b) => b.size - a.size);
    if (chosen.length < 3 || chosen[0].size <= 1.05 * chosen[1].size) return null;
    return { node: net.data.nodes[net.data.nodes.length - 1], text: `Which of these parameters has the largest gradient (root mean square), so that one step of plain gradient descent moves it most?`, why: chosen.map((c) => `${c.v.name} ${fmt(c.size, 3)}`).join(", ") + ".", answer: chosen[0].v.name, choices: this.shuffled(chosen.map((c) => c.v.name)) };
  }

  numeric(node, text, answer, wrong, why) {
    const choices = [fmt(answer)];
    [...wrong, answer * 1.5, answer * 10, answer + 1].forEach((x) => { if (choices.length < 4 && !choices.includes(fmt(x))) choices.push(fmt(x)); });
    return { node, text, why, hides: true, answer: choices[0], choices: this.shuffled(choices) };
  }

  shuffled(list) {
    const found = [...list];
    for (let i = found.length - 1; i > 0; i--) { const j = Math.floor(this.random() * (i + 1)); [found[i], found[j]] = [found[j], found[i]]; }
    return found;
  }

  start() { this.host.hidden = false; this.host.parentElement.classList.add("asking"); this.ask(); }

  end() { this.host.hidden = true; this.host.parentElement.classList.remove("asking"); this.cover(false); }

  // While a question is open that gives all numbers it needs, the numbers of the call, which have the answer, are covered.
  cover(on) { document.body.classList.toggle("guessing", on); }

  ask() {
    this.now = this.question();
    if (!this.now) {
      this.done = true;
      this.cover(false);
      this.host.replaceChildren(h("h2", { id: "quiz-title", text: "Quiz" }), h("p", { role: "status", id: "quiz-text", text: "There is nothing to ask: no gradient of this network is other than zero." }), h("p", {}, h("button", { type: "button", onclick: () => this.end(), text: "End" })));
      this.host.querySelector("button").focus();
      return;
    }
    this.done = false;
    this.jump(this.now.node.id, Boolean(this.now.forward));
    this.cover(Boolean(this.now.hides));
    const buttons = this.now.choices.map((c, i) => h("button", { type: "button", class: "choice", "data-correct": c === this.now.answer ? "yes" : "no", onclick: () => this.answer(i) }, h("b", { text: `${i + 1} ` }), h("span", { text: c })));
    const covered = this.now.hides ? "The numbers of this call are covered until you answer. " : "";
    this.status = h("p", { role: "status", "aria-live": "polite", id: "quiz-status", text: `${covered}${this.correct} of ${this.answered} correct so far` });
    this.host.replaceChildren(h("h2", { id: "quiz-title", text: "Quiz" }), h("p", { id: "quiz-text", text: this.now.text }), h("div", { class: "choices", role: "group", "aria-labelledby": "quiz-text" }, buttons), this.status, h("p", {}, h("button", { type: "button", id: "quiz-next", onclick: () => this.ask(), text: "Next question (N)" }), " ", h("button", { type: "button", onclick: () => this.end(), text: "End" })));
    buttons[0].focus();
  }

  answer(i) {
    if (this.done || !this.now.choices[i]) return;
    this.done = true;
    this.cover(false);
    this.answered += 1;
    const correct = this.now.choices[i] === this.now.answer;
    this.correct += correct;
    this.host.querySelectorAll(".choice").forEach((b, k) => b.classList.add(b.dataset.correct === "yes" ? "is-correct" : k === i ? "is-wrong" : "is-other"));
    this.status.textContent = `${correct ? "Correct." : `Wrong: number ${this.now.choices.indexOf(this.now.answer) + 1} is correct.`} ${this.now.why} ${this.correct} of ${this.answered} correct.`;
  }

  key(e) {
    if (this.host.hidden) return false;
    if (/^[1-4]$/.test(e.key)) { this.answer(Number(e.key) - 1); return true; }
    if (e.key === "n" || e.key === "N") { this.ask(); return true; }
    if (e.key === "Escape") { this.end(); return true; }
    return false;
  }
}

const rms = (view) => (view.all ? statistics(view.all).rms : view.rms);
