// The page: one timeline through the forward and the backward pass, keyboard control, the URL of a step, and the export.
"use strict";

class App {
  constructor(data) {
    this.net = new Network(data);
    this.count = data.nodes.length;
    this.position = 0;
    this.timer = null;
    this.find = (id) => document.getElementById(id);
    this.graph = new Graph(this.net, this.find("graph"), this.find("minimap"), (node) => this.jump(node));
    const toBackward = (node) => { this.pause(); this.go(2 * this.count - 1 - node); };
    this.story = new Story(this.net, toBackward);
    this.code = new CodePanel(this.net);
    this.edits = editPanel(this.net, () => this.changed());
    this.quiz = new Quiz(this.net, this.find("quiz"), (node, forward) => this.go(forward ? node : 2 * this.count - 1 - node, false));
    this.controls();
    this.panels();
    this.read();
    this.graph.draw();
    this.changed();
    document.documentElement.dataset.ready = "yes";
  }

  get backward() { return this.position >= this.count; }

  get node() { return this.net.data.nodes[this.backward ? 2 * this.count - 1 - this.position : this.position]; }

  // From the box of a call to its step in the present direction.
  jump(id) { this.pause(); this.go(this.backward ? 2 * this.count - 1 - id : id); }

  go(position, write = true) {
    this.position = Math.min(2 * this.count - 1, Math.max(0, position));
    const scrub = this.find("scrub"), n = this.node;
    scrub.value = this.position;
    const text = `${this.backward ? "backward" : "forward"} ${this.backward ? this.position - this.count + 1 : this.position + 1} of ${this.count}: ${n.name}${where(n)}`;
    scrub.setAttribute("aria-valuetext", text);
    this.find("where").textContent = text;
    this.graph.show(n, this.backward);
    inspect(this.net, n, this.backward, this.find("inspector"), (key, from) => showCard(this.net, key, from));
    this.code.mark(n);
    markTime(n.step);
    if (write) this.write();
  }

  changed() {
    this.find("loss").textContent = `loss ${fmt(this.net.loss(), 8)}${this.net.edited ? " (edited)" : ""}`;
    this.find("loss").dataset.value = String(this.net.loss());
    this.go(this.position);
  }

  play() {
    if (this.timer) { this.pause(); return; }
    if (this.position === 2 * this.count - 1) this.go(0);
    this.find("play").textContent = "Pause";
    this.timer = setInterval(() => {
      if (this.position === 2 * this.count - 1) this.pause();
      else this.go(this.position + 1);
    }, Number(this.find("speed").value));
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.find("play").textContent = "Play";
  }

  step(by) { this.pause(); this.go(this.position + by); }

  controls() {
    const on = (id, event, act) => this.find(id).addEventListener(event, act);
    this.find("scrub").max = 2 * this.count - 1;
    on("play", "click", () => this.play());
    on("first", "click", () => { this.pause(); this.go(0); });
    on("last", "click", () => { this.pause(); this.go(2 * this.count - 1); });
    on("back", "click", () => this.step(-1));
    on("next", "click", () => this.step(1));
    on("scrub", "input", () => { this.pause(); this.go(Number(this.find("scrub").value)); });
    on("theme", "click", () => this.theme());
    on("export", "click", () => this.save());
    on("quiz-start", "click", () => this.quiz.start());
    on("help", "click", () => this.find("keys").showModal());
    const fold = this.find("fold");
    for (let d = 0; d < this.graph.depths; d++) fold.append(h("option", { value: d, selected: d === this.graph.depth, text: d === 0 ? "every call" : `modules, depth ${d}` }));
    fold.addEventListener("change", () => { this.graph.depth = Number(fold.value); this.graph.open.clear(); this.graph.draw(); this.go(this.position); });
    document.addEventListener("keydown", (e) => this.key(e));
    window.addEventListener("hashchange", () => { if (location.hash !== this.hash()) { this.read(); this.edits.fill && this.net.editable && this.edits.fill(); this.changed(); } });
  }

  panels() {
    this.find("story-host").replaceWith(this.story.element);
    const panels = [this.code.element, variantPanel(this.net), neuronPanel(this.net), this.edits.element, checkPanel(this.net)];
    this.find("panels").append(...panels.filter(Boolean));
    const { data } = this.net;
    const mode = data.training ? "training mode" : "evaluation mode", time = data.timesteps ? `, ${data.timesteps} steps of time` : "";
    this.find("about").textContent = `${data.samples} ${data.samples === 1 ? "sample" : "samples"}, ${mode}${time}, ${this.count} calls, ${data.edges.length} backward edges. ${data.complete ? "" : "Activations are sampled."}`;
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || document.querySelector("dialog[open]")) return;
    const inField = /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName), pressable = /^(BUTTON|SUMMARY)$/.test(e.target.tagName);
    if (inField && e.target.id !== "scrub") return;
    if (this.quiz.key(e)) { e.preventDefault(); return; }
    const keys = {
      ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1), Home: () => this.step(-Infinity), End: () => this.step(Infinity),
      " ": pressable ? null : () => this.play(), c: () => this.node.card && showCard(this.net, this.node.card, this.node), q: () => this.quiz.start(),
      t: () => this.theme(), e: () => this.firstEditor(), "?": () => this.find("keys").showModal(),
    };
    if (keys[e.key]) { e.preventDefault(); keys[e.key](); }
  }

  firstEditor() { const input = this.find("edits").querySelector("input"); if (input) input.focus(); }

  theme() {
    const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    this.find("theme").setAttribute("aria-pressed", String(!dark));
  }

  // The URL contains the step and the edits: #step=12&edit=3.0:0.5,4.1:2
  hash() {
    const edits = [...this.net.edits].flatMap(([id, entries]) => [...entries].map(([entry, number]) => `${id}.${entry}:${number}`));
    return `#step=${this.position}${edits.length ? `&edit=${edits.join(",")}` : ""}`;
  }

  write() { history.replaceState(null, "", this.hash()); }

  read() {
    const given = new URLSearchParams(location.hash.slice(1)), step = Number(given.get("step"));
    if (Number.isInteger(step)) this.position = Math.min(2 * this.count - 1, Math.max(0, step));
    if (!this.net.editable) return;
    this.net.edits.clear();
    (given.get("edit") || "").split(",").forEach((text) => {
      const match = /^(\d+)\.(\d+):(-?[\d.eE+-]+)$/.exec(text), v = match && this.net.data.values[Number(match[1])];
      if (!v || this.net.source.has(v.id) || Number(match[2]) >= sizeOf(v.shape) || !Number.isFinite(Number(match[3])) || !valid(this.net, v, Number(match[3]))) return;
      if (!this.net.edits.has(v.id)) this.net.edits.set(v.id, new Map());
      this.net.edits.get(v.id).set(Number(match[2]), Number(match[3]));
    });
    this.net.recompute();
    this.edits.fill();
  }

  save() {
    const blob = new Blob([JSON.stringify(this.net.exported(), (_, x) => (typeof x === "number" && !Number.isFinite(x) ? { number: String(x) } : x))], { type: "application/json" }), link = h("a", { href: URL.createObjectURL(blob), download: `${this.net.data.name.replace(/[^\w-]+/g, "_")}.json` });
    link.click();
    URL.revokeObjectURL(link.href);
  }
}

// JSON has no non-finite numbers; they are objects with their name.
const isNumber = (x) => x !== null && typeof x === "object" && typeof x.number === "string" && Object.keys(x).length === 1;
const app = new App(JSON.parse(document.getElementById("data").textContent, (_, x) => (isNumber(x) ? Number(x.number) : x)));
