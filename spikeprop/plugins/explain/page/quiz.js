// Quiz: questions about the numbers of this network, answered by mouse or keyboard (1 to 4, then N for the next question).
"use strict";

class Quiz {
  constructor(net, host, jump) {
    Object.assign(this, { net, host, jump, answered: 0, correct: 0, seed: 7 });
  }

  random() { // mulberry32: the same questions on every visit
    this.seed = (this.seed + 0x6d2b79f5) | 0;
    let t = Math.imul(this.seed ^ (this.seed >>> 15), 1 | this.seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }

  pick(list) { return list[Math.floor(this.random() * list.length)]; }

  question() {
    const { net } = this, edges = net.data.edges.filter((e) => e.sums.some((s) => s.terms.length && s.downstream !== 0));
    const edge = this.pick(edges), node = net.data.nodes[edge.node], s = this.pick(net.sums(edge).filter((x) => x.terms.length)), t = s.terms[0];
    const kind = this.pick(node.card ? ["product", "sum", "card"] : ["product", "sum"]);
    if (kind === "product") return this.numeric(node, `${node.name}${where(node)}: upstream ${fmt(t.upstream)}, local derivative ${fmt(t.local)}. What is the downstream of this path?`, t.upstream * t.local, [t.upstream + t.local, -t.upstream * t.local, t.local === 0 ? 1 : t.upstream / t.local], "Multiply upstream by local.");
    if (kind === "sum") {
      const parts = [...s.terms.map((x) => fmt(x.upstream * x.local)), ...(s.others ? [fmt(s.rest)] : [])];
      return this.numeric(node, `${node.name}${where(node)}: the paths from one entry of ${nameOf(net, edge.value)} contribute ${parts.join(", ")}. What is its derivative?`, s.downstream, [s.terms[0].upstream * s.terms[0].local * 2, -s.downstream, s.downstream / 2], "Sum over all paths.");
    }
    return this.cardQuestion(node);
  }

  numeric(node, text, answer, wrong, why) {
    const choices = [fmt(answer)];
    [...wrong, answer * 1.5, answer * 10, answer + 1].forEach((x) => { if (choices.length < 4 && !choices.includes(fmt(x))) choices.push(fmt(x)); });
    return { node, text, why, answer: choices[0], choices: this.shuffled(choices) };
  }

  cardQuestion(node) {
    const last = (card) => card.chain[card.chain.length - 1].latex, cards = Object.values(this.net.data.cards), answer = last(this.net.data.cards[node.card]);
    const choices = [answer];
    cards.forEach((c) => { const l = last(c); if (choices.length < 4 && !choices.includes(l)) choices.push(l); });
    ["\\bar{x} = \\bar{y} + x", "\\bar{x} = x \\odot x", "\\bar{x} = -\\bar{y}"].forEach((l) => { if (choices.length < 4) choices.push(l); });
    return { node, math: true, text: `Which equation is on the card of ${node.name}${where(node)}?`, why: "See the derivation on the card.", answer, choices: this.shuffled(choices) };
  }

  shuffled(list) {
    const found = [...list];
    for (let i = found.length - 1; i > 0; i--) { const j = Math.floor(this.random() * (i + 1)); [found[i], found[j]] = [found[j], found[i]]; }
    return found;
  }

  start() { this.host.hidden = false; this.ask(); }

  stop() { this.host.hidden = true; }

  ask() {
    this.now = this.question();
    this.done = false;
    this.jump(this.now.node.id);
    const buttons = this.now.choices.map((c, i) => h("button", { type: "button", class: "choice", "data-correct": c === this.now.answer ? "yes" : "no", onclick: () => this.answer(i) }, h("b", { text: `${i + 1} ` }), h("span", this.now.math ? { html: katex.renderToString(c, { output: "htmlAndMathml" }) } : { text: c })));
    this.status = h("p", { role: "status", "aria-live": "polite", id: "quiz-status", text: `${this.correct} of ${this.answered} correct so far` });
    this.host.replaceChildren(h("h2", { id: "quiz-title", text: "Quiz" }), h("p", { id: "quiz-text", text: this.now.text }), h("div", { class: "choices", role: "group", "aria-labelledby": "quiz-text" }, buttons), this.status, h("p", {}, h("button", { type: "button", id: "quiz-next", onclick: () => this.ask(), text: "Next question (N)" }), h("button", { type: "button", onclick: () => this.stop(), text: "End" })));
    buttons[0].focus();
  }

  answer(i) {
    if (this.done || !this.now.choices[i]) return;
    this.done = true;
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
    if (e.key === "Escape") { this.stop(); return true; }
    return false;
  }
}
