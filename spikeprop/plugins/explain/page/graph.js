// The graph: calls, folded by module, in rows (for a simulation with one column per time step).
"use strict";

const BOX = { width: 150, height: 40, gapX: 26, gapY: 26 };

class Graph {
  constructor(network, host, jump) {
    this.network = network;
    this.host = host;
    this.jump = jump;
    this.open = new Set();
    this.depths = 1 + Math.max(...network.data.nodes.map((n) => (n.module ? n.module.split(".").length : 0)));
    this.depth = this.defaultDepth();
  }

  defaultDepth() {
    const { nodes, spiking } = this.network.data;
    if (spiking) return 2;
    if (nodes.length <= 16) return 0;
    for (let depth = this.depths; depth >= 1; depth--) if (this.items(depth).length <= 24) return depth;
    return 1;
  }

  key(n, depth) { return n.module ? n.module.split(".").slice(0, depth).join(".") : ""; }

  // Groups of consecutive calls with the same module (to a depth) and the same time step.
  items(depth) {
    const found = [];
    this.network.data.nodes.forEach((n) => {
      const key = depth === 0 ? "" : this.key(n, depth), last = found[found.length - 1];
      if (key && last && last.key === key && last.step === n.step) last.nodes.push(n);
      else found.push({ key, step: n.step, nodes: [n] });
    });
    return found.flatMap((item) => {
      item.id = item.nodes[0].id;
      item.folds = item.nodes.length > 1;
      if (!item.folds || !this.open.has(item.id)) return [item];
      return item.nodes.map((n, i) => ({ key: item.key, step: n.step, nodes: [n], id: n.id, inside: item.id, order: i }));
    });
  }

  draw() {
    const items = this.items(this.depth), at = new Map();
    items.forEach((item) => item.nodes.forEach((n) => at.set(n.id, item)));
    const links = this.links(items, at), size = this.network.data.spiking ? this.inTime(items) : this.inRanks(items, links);
    this.at = at;
    this.boxes = new Map();
    this.lines = links.map(([a, b]) => ({ a, b, line: svg("path", { class: "link", d: this.curve(a, b), "marker-end": "url(#arrow)" }) }));
    const boxes = items.map((item) => this.box(item));
    const head = svg("defs", {}, svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 10, markerHeight: 10, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse" }, svg("path", { d: "M0 0 8 4 0 8z", class: "arrowhead" })));
    const root = svg("svg", { width: size[0], height: size[1], viewBox: `0 0 ${size[0]} ${size[1]}`, role: "group", "aria-label": "Graph of the network" }, head, ...this.lines.map((l) => l.line), ...boxes);
    this.host.replaceChildren(root);
  }

  links(items, at) {
    const seen = new Set(), found = [];
    this.network.data.nodes.forEach((n) => n.inputs.forEach((v) => {
      const from = this.network.source.get(v);
      if (from === undefined) return;
      const a = at.get(from), b = at.get(n.id), name = `${a.id}-${b.id}`;
      if (a !== b && !seen.has(name)) { seen.add(name); found.push([a, b]); }
    }));
    return found;
  }

  inRanks(items, links) {
    items.forEach((item) => { item.rank = 0; });
    const into = new Map(items.map((item) => [item, []]));
    links.forEach(([a, b]) => into.get(b).push(a));
    items.forEach((item) => { item.rank = Math.max(0, ...into.get(item).map((a) => a.rank + 1)); });
    const lanes = new Map();
    items.forEach((item) => { const lane = lanes.get(item.rank) || 0; lanes.set(item.rank, lane + 1); item.lane = lane; });
    const widest = Math.max(...lanes.values());
    items.forEach((item) => this.put(item, item.lane + (widest - lanes.get(item.rank)) / 2, item.rank));
    return [30 + widest * (BOX.width + BOX.gapX) + 40, 20 + (1 + Math.max(...items.map((i) => i.rank))) * (BOX.height + BOX.gapY)];
  }

  inTime(items) {
    const rows_ = new Map(), used = new Map();
    const steps = Math.max(0, ...items.map((i) => (i.step === null ? 0 : i.step)));
    const begun = Math.min(...items.filter((i) => i.step !== null).map((i) => i.id));
    const order = items.map((item) => {
      const base = `${item.key}/${item.inside === undefined ? (item.key ? "" : item.nodes[0].name) : `${item.nodes[0].name}`}`;
      const column = item.step === null ? (item.id < begun ? 0 : steps + 2) : item.step + 1, place = `${column}:${base}`;
      used.set(place, (used.get(place) || 0) + 1);
      item.row = `${base}#${used.get(place)}`;
      item.column = column;
      return item;
    });
    order.forEach((item) => { if (!rows_.has(item.row)) rows_.set(item.row, rows_.size); });
    order.forEach((item) => this.put(item, item.column, rows_.get(item.row)));
    return [30 + (steps + 3) * (BOX.width + BOX.gapX), 20 + rows_.size * (BOX.height + BOX.gapY)];
  }

  put(item, column, row) { item.x = 12 + column * (BOX.width + BOX.gapX); item.y = 10 + row * (BOX.height + BOX.gapY); }

  curve(a, b) {
    const { width, height } = BOX;
    if (b.y > a.y) {
      const far = b.y - a.y > 1.5 * (height + BOX.gapY) && Math.abs(a.x - b.x) < width, side = far ? width * 0.95 : 0;
      const x1 = a.x + width / 2, y1 = a.y + height, x2 = b.x + width / 2, y2 = b.y, bend = Math.max(14, (y2 - y1) / 2.5);
      return `M${x1} ${y1}C${x1 + side} ${y1 + bend} ${x2 + side} ${y2 - bend} ${x2} ${y2}`;
    }
    const x1 = a.x + width, y1 = a.y + height / 2, x2 = b.x, y2 = b.y + height / 2, bend = Math.max(14, (x2 - x1) / 2);
    return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
  }

  box(item) {
    const n = item.nodes[0], flags = [...new Set(item.nodes.flatMap((x) => x.flags))];
    const single = item.nodes.length === 1, title = single ? n.name : item.key.replace(/^layers\./, "");
    const last = item.nodes[item.nodes.length - 1], shape = this.network.data.values[last.outputs[0]].shape;
    const what = single ? `${n.module ? n.module.replace(/^layers\./, "") + " · " : ""}${shapeText(shape)}` : `${item.nodes.length} calls · ${shapeText(shape)}`;
    const time = item.step === null ? "" : ` t=${item.step}`;
    const label = `${title}${time}, ${what}${flags.length ? `, flagged ${flags.join(" and ")}` : ""}${item.folds ? ", folded: activate to open" : ""}`;
    const g = svg("g", { class: `box${item.folds ? " folded" : ""}`, transform: `translate(${item.x} ${item.y})`, role: "button", tabindex: "-1", "aria-label": label, "data-node": n.id },
      svg("rect", { width: BOX.width, height: BOX.height, rx: 6 }), svg("text", { x: 9, y: 17, class: "name" }), svg("text", { x: 9, y: 32, class: "what" }), svg("text", { x: BOX.width - 8, y: 17, class: "badge", "text-anchor": "end" }), svg("text", { x: BOX.width - 8, y: 33, class: "fold", "text-anchor": "end" }));
    const texts = g.querySelectorAll("text"), cut = (t, k) => (t.length > k ? `${t.slice(0, k - 1)}…` : t);
    texts[0].textContent = cut(title + time, 17);
    texts[1].textContent = cut(what, 25);
    texts[2].textContent = flags.length ? "⚠" : "";
    texts[3].textContent = item.folds ? "+" : "";
    g.append(svg("title", {}, document.createTextNode(label)));
    const act = () => this.activate(item);
    g.addEventListener("click", act);
    g.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); e.stopPropagation(); act(); } });
    this.boxes.set(item, g);
    return g;
  }

  activate(item) {
    if (item.folds) { this.open.add(item.id); this.draw(); }
    else if (item.inside !== undefined && this.current === item.nodes[0].id) { this.open.delete(item.inside); this.draw(); }
    this.jump(item.nodes[0].id);
  }

  // Marks the present node and all earlier ones in this direction.
  show(node, backward) {
    this.current = node.id;
    const here = this.at.get(node.id), count = this.network.data.nodes.length;
    this.boxes.forEach((g, item) => {
      const first = item.nodes[0].id, end = item.nodes[item.nodes.length - 1].id;
      g.classList.toggle("now", item === here);
      g.classList.toggle("forward", backward ? true : first <= node.id);
      g.classList.toggle("backward", backward && end >= node.id && end < count);
      g.setAttribute("tabindex", item === here ? "0" : "-1");
      if (item === here) g.setAttribute("aria-current", "step"); else g.removeAttribute("aria-current");
    });
    this.lines.forEach(({ a, b, line }) => {
      const up = backward && b === here; // backward edges have the opposite direction
      line.setAttribute("class", `link${b === here ? (backward ? " up" : " down") : ""}`);
      line.setAttribute(up ? "marker-start" : "marker-end", "url(#arrow)");
      line.removeAttribute(up ? "marker-end" : "marker-start");
    });
    this.reveal(here);
  }

  reveal(item) {
    const { host } = this, margin = 40;
    if (item.x < host.scrollLeft || item.x + BOX.width > host.scrollLeft + host.clientWidth - margin) host.scrollLeft = item.x - host.clientWidth / 2 + BOX.width / 2;
    if (item.y < host.scrollTop || item.y + BOX.height > host.scrollTop + host.clientHeight - margin) host.scrollTop = item.y - host.clientHeight / 2;
  }
}
