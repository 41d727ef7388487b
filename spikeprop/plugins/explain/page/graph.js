// The graph: calls, folded by module, from left to right, with their weights below and a picture of value and gradient in each.
// A simulation has one column for each time step. A map shows which part of a large graph is in view.
"use strict";

const BOX = { width: 146, height: 88, gapX: 34, gapY: 20 };
const LEAF = { width: 146, height: 54, gap: 8 };
const NUMBERED = { calls: 8, width: 184, gap: 24, box: 100, leaf: 68, columns: 3, row: 9.5, letter: 5.6 }; // a graph of few calls has room for numbers
const TOP = 52; // room for skip connections above the boxes
const short = (name) => name.replace(/^(stages\.|layers\.)/, "").replace(/\.synapses\.\d+\.ops\.\d+/, "").replace(/^layers?_/, "layer ");

class Graph {
  constructor(network, host, map, jump) {
    Object.assign(this, { network, host, map, jump });
    const { nodes, complete, spiking } = network.data;
    if (complete && !spiking && nodes.length <= NUMBERED.calls) {
      BOX.width = LEAF.width = NUMBERED.width;
      Object.assign(BOX, { height: NUMBERED.box, gapX: NUMBERED.gap });
      LEAF.height = NUMBERED.leaf;
    }
    this.open = new Set();
    this.depths = 1 + Math.max(...network.data.nodes.map((n) => (n.module ? n.module.split(".").length : 0)));
    this.depth = this.defaultDepth();
    this.uses = new Map(); // value -> nodes that read it
    network.data.nodes.forEach((n) => n.inputs.forEach((v) => { if (!this.uses.has(v)) this.uses.set(v, []); this.uses.get(v).push(n.id); }));
    host.addEventListener("scroll", () => this.view());
    window.addEventListener("resize", () => { this.fit(); this.view(); });
    map.addEventListener("click", (e) => this.travel(e));
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
    const found = [], { nodes, spiking } = this.network.data, begun = spiking ? nodes.find((n) => n.step !== null).id : 0;
    nodes.forEach((n) => {
      const key = depth === 0 ? "" : this.key(n, depth) || (n.id < begun ? "encoder" : ""), last = found[found.length - 1];
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
    this.at = at;
    this.leaves = this.leavesOf(items, at);
    const links = this.links(items, at);
    this.size = this.network.data.spiking ? this.inTime(items) : this.inRanks(items, links);
    this.boxes = new Map();
    this.lines = [...links, ...this.leaves.map((leaf) => [leaf, leaf.item])].map(([a, b]) => ({ a, b, line: svg("path", { class: "link", d: this.curve(a, b) }) }));
    const boxes = items.map((item) => this.box(item)), leaves = this.leaves.map((leaf) => this.leaf(leaf));
    const head = (id, kind) => svg("marker", { id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse" }, svg("path", { d: "M0 0 8 4 0 8z", class: `arrowhead ${kind}` }));
    const heads = svg("defs", {}, head("arrow", ""), head("arrow-down", "down"), head("arrow-up", "up"));
    this.root = svg("svg", { viewBox: `0 0 ${this.size[0]} ${this.size[1]}`, role: "group", "aria-label": "Graph of the network" }, heads, ...this.lines.map((l) => l.line), ...leaves, ...boxes);
    this.host.replaceChildren(this.root);
    this.fit();
    this.drawMap([...items, ...this.leaves]);
  }

  // Inputs, parameters and targets, each at its first reader.
  leavesOf(items, at) {
    const found = [], { values, nodes, spiking } = this.network.data;
    nodes.forEach((n) => n.inputs.forEach((id) => {
      const v = values[id], known = found.find((leaf) => leaf.value === id);
      if (known || this.network.source.has(id) || (v.role === "constant") || (spiking && v.role === "parameter" && v.shape.length < 2)) return;
      found.push({ value: id, item: at.get(n.id), leaf: true, entrance: v.role === "input" && v.name !== "target", id: n.id });
    }));
    return found;
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
    const into = new Map(items.map((item) => [item, []])), entrances = this.leaves.filter((leaf) => leaf.entrance);
    links.forEach(([a, b]) => into.get(b).push(a));
    items.forEach((item) => { item.rank = Math.max(entrances.length ? 1 : 0, ...into.get(item).map((a) => a.rank + 1)); });
    const columns = [];
    const put = (thing, rank, height) => {
      columns[rank] = columns[rank] === undefined ? TOP : columns[rank];
      Object.assign(thing, { x: 14 + rank * (BOX.width + BOX.gapX), y: columns[rank] });
      columns[rank] += height;
    };
    entrances.forEach((leaf) => put(leaf, 0, BOX.height + BOX.gapY));
    items.forEach((item) => {
      put(item, item.rank, BOX.height + LEAF.gap);
      this.leaves.filter((leaf) => leaf.item === item && !leaf.entrance).forEach((leaf) => put(leaf, item.rank, LEAF.height + LEAF.gap));
      columns[item.rank] += BOX.gapY - LEAF.gap;
    });
    return [14 + columns.length * (BOX.width + BOX.gapX), Math.max(...columns.filter((y) => y)) + 6];
  }

  inTime(items) {
    const rows_ = new Map(), used = new Map();
    const steps = Math.max(0, ...items.map((i) => (i.step === null ? 0 : i.step)));
    const begun = Math.min(...items.filter((i) => i.step !== null).map((i) => i.id));
    items.forEach((item) => {
      const base = `${item.key}/${item.inside === undefined && item.key ? "" : item.nodes[0].name}`;
      item.column = item.step === null ? (item.id < begun ? 1 : steps + 3) : item.step + 2;
      const place = `${item.column}:${base}`;
      used.set(place, (used.get(place) || 0) + 1);
      item.row = `${base}#${used.get(place)}`;
      if (!rows_.has(item.row)) rows_.set(item.row, rows_.size);
    });
    const at = (thing, column, row, extra = 0) => Object.assign(thing, { x: 14 + column * (BOX.width + BOX.gapX), y: 30 + row * (BOX.height + BOX.gapY) + extra });
    items.forEach((item) => at(item, item.column, rows_.get(item.row)));
    const stacked = new Map();
    this.leaves.forEach((leaf) => {
      const row = rows_.get(leaf.item.row), place = `${leaf.entrance}${row}${leaf.item.column > steps + 2}`, count = stacked.get(place) || 0;
      stacked.set(place, count + 1);
      if (leaf.item.column > steps + 2) at(leaf, leaf.item.column, row, BOX.height + LEAF.gap + count * (LEAF.height + LEAF.gap)); // the target, below the loss
      else at(leaf, leaf.entrance ? 0 : 1, row, leaf.entrance ? 0 : count * 12);
    });
    const low = Math.max(...items.map((i) => i.y + BOX.height), ...this.leaves.map((l) => l.y + (l.entrance ? BOX.height : LEAF.height)));
    return [14 + (steps + 4) * (BOX.width + BOX.gapX), low + 12];
  }

  heightOf(thing) { return thing.leaf && !thing.entrance ? LEAF.height : BOX.height; }

  curve(a, b) {
    const { width } = BOX, ha = this.heightOf(a), hb = this.heightOf(b);
    if (Math.abs(a.x - b.x) < 1) { // above one another
      const [up, low] = a.y < b.y ? [a, b] : [b, a], x = a.x + width / 2, from = `${x} ${up.y + this.heightOf(up)}`, to = `${x} ${low.y}`;
      return a === up ? `M${from}L${to}` : this.between(a, b) ? `M${x + width / 2} ${a.y + 14}c14 -8 14 ${b.y + BOX.height - a.y} 0 ${b.y + BOX.height - a.y - 20}` : `M${to}L${from}`;
    }
    const far = b.x - a.x > 1.5 * (width + BOX.gapX) && Math.abs(a.y - b.y) < 1;
    if (far) {
      const x1 = a.x + width - 24, x2 = b.x + 24, lift_ = this.network.data.spiking ? 20 : Math.min(44, 26 + (x2 - x1) / 40);
      return `M${x1} ${a.y}C${x1 + 30} ${a.y - lift_} ${x2 - 30} ${b.y - lift_} ${x2} ${b.y}`;
    }
    const x1 = a.x + width, y1 = a.y + ha / 2, x2 = b.x, y2 = b.y + hb / 2, bend = Math.max(14, (x2 - x1) / 2);
    return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
  }

  // Whether something stands between two things of a column.
  between(a, b) { return Math.abs(a.y - b.y) > this.heightOf(b) + LEAF.gap + 2; }

  box(item) {
    const n = item.nodes[0], flags = [...new Set(item.nodes.flatMap((x) => x.flags))];
    const single = item.nodes.length === 1, title = single ? n.name : short(item.key);
    const last = item.nodes[item.nodes.length - 1], output = last.outputs[0], shape = this.network.data.values[output].shape;
    const what = single ? `${n.module ? short(n.module) + " · " : ""}${shapeText(shape)}` : `${item.nodes.length} calls · ${shapeText(shape)}`;
    const time = item.step === null ? "" : ` t=${item.step}`;
    const label = `${title}${time}, ${what}${flags.length ? `, flagged ${flags.join(" and ")}` : ""}${item.folds ? ", folded: activate to open" : ""}`;
    item.output = output;
    const g = svg("g", { class: `box${item.folds ? " folded" : ""}`, transform: `translate(${item.x} ${item.y})`, role: "button", tabindex: "-1", "aria-label": label, "data-node": n.id },
      svg("rect", { width: BOX.width, height: BOX.height, rx: 7 }), svg("text", { x: 9, y: 18, class: "name" }), svg("text", { x: 9, y: 33, class: "what" }), svg("text", { x: BOX.width - 8, y: 18, class: "badge", "text-anchor": "end" }), svg("text", { x: BOX.width - 8, y: 34, class: "fold", "text-anchor": "end" }));
    const texts = g.querySelectorAll("text"), cut = (t, k) => (t.length > k ? `${t.slice(0, k - 1)}…` : t);
    texts[0].textContent = cut(title + time, 17);
    texts[1].textContent = cut(what, 24);
    texts[2].textContent = flags.length ? "⚠" : "";
    texts[3].textContent = item.folds ? "+" : "";
    item.pictures = this.pictures(g, 40, BOX.height - 48);
    g.append(svg("title", {}, document.createTextNode(label)));
    this.pressable(g, () => this.activate(item));
    this.boxes.set(item, g);
    return g;
  }

  leaf(leaf) {
    const v = this.network.data.values[leaf.value], tall = leaf.entrance, name = short(v.name);
    const label = `${v.name}, ${shapeText(v.shape)}`;
    const g = svg("g", { class: `leaf ${v.role}`, transform: `translate(${leaf.x} ${leaf.y})`, role: "button", tabindex: "-1", "aria-label": label, "data-value": leaf.value },
      svg("rect", { width: LEAF.width, height: tall ? BOX.height : LEAF.height, rx: 14 }), svg("text", { x: 11, y: 16, class: "what" }), svg("title", {}, document.createTextNode(label)));
    g.querySelector("text").textContent = `${name.length > 14 ? `…${name.slice(-13)}` : name} ${shapeText(v.shape)}`.slice(0, 26);
    leaf.pictures = this.pictures(g, tall ? 24 : 23, tall ? BOX.height - 32 : LEAF.height - 30);
    leaf.output = leaf.value;
    this.pressable(g, () => this.jump(leaf.id));
    this.boxes.set(leaf, g);
    return g;
  }

  pressable(g, act) {
    g.addEventListener("click", act);
    g.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); e.stopPropagation(); act(); } });
  }

  // Places for a picture of the value, and of the gradient.
  pictures(g, y, height) {
    const width = (BOX.width - 24) / 2, place = (x, kind) => svg("image", { x, y, width, height, class: kind, preserveAspectRatio: "none" });
    const found = [place(9, "value"), place(15 + width, "gradient")];
    g.append(svg("g", {}, ...[9, 15 + width].map((x) => svg("rect", { x, y, width, height, class: "place" })), ...found));
    found.forEach((image) => { image.numbers = svg("g", { class: "numbers", "aria-hidden": "true" }); g.append(image.numbers); });
    return found;
  }

  // The numbers of a tensor over its picture, where each has room.
  number(image, view) {
    const [x, y, width, height] = ["x", "y", "width", "height"].map((a) => Number(image.getAttribute(a))), { shape, all } = view || {};
    const columns = shape && shape.length ? shape[shape.length - 1] : 1, rows_ = all ? all.length / columns : 0;
    const room = width / columns - 3, small = all && BOX.width === NUMBERED.width && shape.length < 3 && columns <= NUMBERED.columns && rows_ * NUMBERED.row <= height;
    const texts = small ? [2, 1].map((digits) => Array.from(all, (v) => inBrief(v, digits))).find((t) => t.every((x) => x.length * NUMBERED.letter <= room)) : null;
    image.classList.toggle("numbered", Boolean(texts));
    image.numbers.replaceChildren(...(texts || []).map((text, i) => svg("text", {
      x: x + (width * ((i % columns) + 0.5)) / columns, y: y + (height * (Math.floor(i / columns) + 0.5)) / rows_ + 3.5, "text-anchor": "middle",
    }, document.createTextNode(text))));
  }

  activate(item) {
    if (item.folds) { this.open.add(item.id); this.draw(); }
    else if (item.inside !== undefined && this.current === item.nodes[0].id) { this.open.delete(item.inside); this.draw(); }
    this.jump(item.nodes[0].id);
  }

  // Marks the present node and all earlier ones in this direction.
  show(node, backward) {
    this.current = node.id;
    const here = this.at.get(node.id);
    this.boxes.forEach((g, item) => {
      const ids = item.leaf ? this.uses.get(item.value) : item.nodes.map((n) => n.id), first = Math.min(...ids), end = Math.max(...ids);
      const reached = backward || (item.leaf ? true : first <= node.id), returned = backward && (item.leaf ? first >= node.id : end >= node.id);
      g.classList.toggle("now", item === here);
      g.classList.toggle("forward", reached);
      g.classList.toggle("backward", returned);
      this.paint(item, reached, returned);
      if (item.leaf) return;
      g.setAttribute("tabindex", item === here ? "0" : "-1");
      if (item === here) g.setAttribute("aria-current", "step"); else g.removeAttribute("aria-current");
    });
    this.lines.forEach(({ a, b, line }) => {
      const done = backward && this.network.data.nodes.length && (b.nodes || []).some((n) => n.id >= node.id); // stays as it was
      const now = b === here, kind = done ? "up" : now && !backward ? "down" : "", moves = !a.leaf || this.network.data.values[a.value].cotangent;
      const up = done && moves;
      line.setAttribute("class", `link ${up || kind === "down" ? kind : ""}${now ? " now" : ""}`);
      line.setAttribute(up ? "marker-start" : "marker-end", `url(#arrow${up ? "-up" : kind === "down" ? "-down" : ""})`);
      line.removeAttribute(up ? "marker-end" : "marker-start");
    });
    this.reveal(here);
    this.view();
  }

  paint(item, reached, returned) {
    const [value, gradient] = item.pictures, { network } = this;
    const set = (place, view, picture, wanted, key) => {
      const mark = wanted && view ? `${key}${network.edited ? network.edition : ""}` : "";
      if (place.dataset.mark === mark) return;
      place.dataset.mark = mark;
      if (!mark) place.removeAttribute("href"); else place.setAttribute("href", pictureOf(view, picture));
      this.number(place, mark ? view : null);
    };
    set(value, network.value(item.output), network.edited ? null : network.data.values[item.output].picture, reached, "v");
    set(gradient, network.cotangent(item.output), null, returned, "g");
  }

  fit() {
    if (!this.root) return;
    const room = this.host.clientWidth - 2;
    this.scale = Math.min(1.35, Math.max(1, room / this.size[0]));
    this.root.setAttribute("width", Math.floor(this.size[0] * this.scale));
    this.root.setAttribute("height", Math.floor(this.size[1] * this.scale));
  }

  reveal(item) {
    const { host, scale } = this, x = item.x * scale, y = item.y * scale, w = BOX.width * scale, tall = BOX.height * scale;
    if (x < host.scrollLeft || x + w > host.scrollLeft + host.clientWidth - 30) host.scrollLeft = x - host.clientWidth / 2 + w / 2;
    if (y < host.scrollTop || y + tall > host.scrollTop + host.clientHeight - 20) host.scrollTop = y - host.clientHeight / 2;
  }

  // The map: all boxes in small, and a frame around what is in view.
  drawMap(things) {
    const [w, tall] = this.size, rect = (t) => svg("rect", { x: t.x, y: t.y, width: BOX.width, height: this.heightOf(t), class: `map-${t.leaf ? "leaf" : "box"}`, "data-map": t.id });
    this.frame = svg("rect", { class: "map-frame" });
    this.mapped = things.map((t) => [t, rect(t)]);
    this.map.replaceChildren(svg("svg", { viewBox: `0 0 ${w} ${tall}`, width: Math.min(320, (46 * w) / tall), height: Math.min(46, (320 * tall) / w), "aria-hidden": "true" }, ...this.mapped.map(([, r]) => r), this.frame));
    this.view();
  }

  view() {
    const { host, scale, frame } = this;
    if (!frame) return;
    this.map.hidden = host.scrollWidth <= host.clientWidth + 4 && host.scrollHeight <= host.clientHeight + 4;
    const box = { x: host.scrollLeft / scale, y: host.scrollTop / scale, width: host.clientWidth / scale, height: host.clientHeight / scale };
    Object.entries(box).forEach(([key, value]) => frame.setAttribute(key, value));
    this.mapped.forEach(([t, r]) => r.classList.toggle("now", !t.leaf && this.at.get(this.current) === t));
  }

  travel(e) {
    const box = this.map.firstChild.getBoundingClientRect(), { host } = this;
    host.scrollLeft = ((e.clientX - box.left) / box.width) * host.scrollWidth - host.clientWidth / 2;
    host.scrollTop = ((e.clientY - box.top) / box.height) * host.scrollHeight - host.clientHeight / 2;
  }
}

// A number in few characters: one or two decimals, or its size where these would say little.
const inBrief = (x, digits) => {
  if (!Number.isFinite(x) || (Number.isInteger(x) && Math.abs(x) < 1e4)) return fmt(x);
  const a = Math.abs(x);
  return (a >= (digits === 2 ? 0.0095 : 0.095) && a < 99.5 ? x.toFixed(digits) : a >= 99.5 && a < 9999.5 ? x.toFixed(0) : x.toExponential(0)).replace("e+", "e").replace(/-/g, "−");
};

// A tensor as a picture: rows and columns of a matrix, maps of the first sample side by side, an image in its own colours.
function pictureOf(view, picture) {
  const canvas = document.createElement("canvas"), image = picture ? asImage(picture) : null;
  if (image) return drawn(canvas, image.width, image.height, (x, y) => image.pixel(x, y));
  const data = view.all || view.some, shape = view.all ? view.shape : [1, data.length], scale = scaleOf(Array.from(data));
  const columns = shape.length ? shape[shape.length - 1] : 1, high = shape.length > 1 ? shape[shape.length - 2] : 1;
  const maps = shape.length > 2 ? Math.min(8, shape[shape.length - 3]) : 1, gap = maps > 1 ? 1 : 0, width = maps * (columns + gap) - gap;
  return drawn(canvas, Math.min(256, width), Math.min(64, high), (x, y) => {
    const px = Math.floor((x * width) / Math.min(256, width)), py = Math.floor((y * high) / Math.min(64, high)), map_ = Math.floor(px / (columns + gap)), column = px % (columns + gap);
    if (column >= columns) return [0, 0, 0, 0];
    const v = data[(map_ * high + py) * columns + column], a = Math.sqrt(Math.min(1, Math.abs(v) / scale)) * 255;
    return v >= 0 ? [38, 128, 235, a] : [235, 110, 20, a];
  });
}

function drawn(canvas, width, height, pixel) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) image.data.set(pixel(x, y), 4 * (y * width + x));
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

// The first image of a batch, kept by the page in small: {shape: [channels, rows, columns], pixels: 0 to 255}.
function asImage({ shape: [channels, height, width], pixels }) {
  const at = (c, x, y) => pixels[((channels === 1 ? 0 : c) * height + y) * width + x];
  return { width, height, pixel: (x, y) => [at(0, x, y), at(1, x, y), at(2, x, y), 255] };
}
