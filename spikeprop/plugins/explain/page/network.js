// The network of this page: the data recorded from torch, and, if every operation is known, the same numbers computed here.
"use strict";

class Network {
  constructor(data) {
    this.data = data;
    this.source = new Map(); // value -> node that made it
    data.nodes.forEach((n) => n.outputs.forEach((v) => this.source.set(v, n.id)));
    this.edgesOf = data.nodes.map(() => []);
    data.edges.forEach((e) => this.edgesOf[e.node].push(e));
    this.unknown = [...new Set(data.nodes.filter((n) => !OPERATIONS[n.kind]).map((n) => n.name))];
    this.computes = data.complete && this.unknown.length === 0;
    this.editable = this.computes && data.fixed.length === 0; // what is fixed would stay as it was
    this.edits = new Map(); // value -> Map(entry -> number)
    this.edition = 0;
    if (this.computes) this.recompute();
  }

  get edited() { return this.edits.size > 0; }

  start(id) {
    const v = this.data.values[id], x = tensor(v.shape, Float64Array.from(v.data.all));
    x.integer = v.integer;
    (this.edits.get(id) || new Map()).forEach((number, entry) => { x.data[entry] = number; });
    return x;
  }

  edit(id, entry, number) {
    if (!this.edits.has(id)) this.edits.set(id, new Map());
    this.edits.get(id).set(entry, number);
    this.recompute();
  }

  reset() { this.edits.clear(); this.recompute(); }

  forward() {
    const now = this.data.values.map((v) => (this.source.has(v.id) ? null : this.start(v.id)));
    this.data.nodes.forEach((n) => {
      n.inputs.forEach((i) => this.follow(i, now));
      const found = OPERATIONS[n.kind].forward(n.inputs.map((i) => now[i]), n.settings);
      n.outputs.forEach((o, k) => { now[o] = found[k]; });
    });
    return now;
  }

  // A constant that the network computes from other values, as the spikes of a reset and the sum of payloads sent.
  follow(id, now) {
    const { by, inputs } = this.data.followed[id] || {};
    if (!by) return;
    inputs.forEach((i) => this.follow(i, now));
    const [x, spikes] = inputs.map((i) => now[i]);
    const next = by === "add_up" ? (v, o) => v + o : (v, o) => (o !== 0 ? 0 : v + 1);
    now[id] = by === "detach" ? x : map(x, (v, i) => next(v, spikes.data[i]));
  }

  // The loss of the original network with one other number.
  lossWith(id, entry, number) {
    const { edits } = this;
    this.edits = new Map([[id, new Map([[entry, number]])]]);
    const now = this.forward();
    this.edits = edits;
    return now[this.data.loss_value].data[0];
  }

  recompute() {
    const { nodes, values, loss_value } = this.data;
    this.edition += 1;
    this.now = this.forward();
    this.back = values.map(() => null);
    this.back[loss_value] = like(this.now[loss_value], Float64Array.of(1));
    this.shares = nodes.map(() => null);
    for (let k = nodes.length - 1; k >= 0; k--) this.backward(nodes[k]);
  }

  backward(n) {
    this.shares[n.id] = this.pull(n, this.upstream(n));
    n.inputs.forEach((i, slot) => {
      if (this.data.values[i].cotangent && this.shares[n.id][slot]) this.back[i] = addInto(this.back[i], this.shares[n.id][slot]);
    });
  }

  upstream(n) { return n.outputs.map((o) => this.back[o] || like(this.now[o])); }

  pull(n, upstream) {
    return OPERATIONS[n.kind].backward(upstream, n.inputs.map((i) => this.now[i]), n.outputs.map((o) => this.now[o]), n.settings);
  }

  loss() { return this.computes ? this.now[this.data.loss_value].data[0] : this.data.loss; }

  // A tensor for display: {shape, all} or {shape, places, some, least, most, mean, rms, zeros}.
  value(id) {
    const v = this.data.values[id];
    return this.computes ? { shape: v.shape, all: this.now[id].data } : { shape: v.shape, ...v.data };
  }

  cotangent(id) {
    const v = this.data.values[id];
    if (!v.cotangent) return null;
    if (!this.computes) return { shape: v.shape, ...v.cotangent };
    return { shape: v.shape, all: (this.back[id] || like(this.now[id])).data };
  }

  downstream(edge) {
    const v = this.data.values[edge.value];
    if (this.computes) return { shape: v.shape, all: (this.shares[edge.node][edge.slot] || like(this.now[edge.value])).data };
    return { shape: v.shape, ...(edge.downstream || v.cotangent) };
  }

  // The sum of one entry of an edge's downstream, computed with every unit vector as upstream.
  sumAt(edge, entry, count) {
    const n = this.data.nodes[edge.node], upstream = this.upstream(n), terms = [];
    let total = 0;
    upstream.forEach((up, output) => up.data.forEach((u, j) => {
      const units = upstream.map((other) => like(other));
      units[output].data[j] = 1;
      const share = this.pull(n, units)[edge.slot], local = share ? share.data[entry] : 0;
      if (local !== 0) { terms.push({ output, entry: j, upstream: u, local }); total += u * local; }
    }));
    terms.sort((a, b) => Math.abs(b.upstream * b.local) - Math.abs(a.upstream * a.local));
    const kept = terms.slice(0, count), downstream = this.downstream(edge).all[entry];
    const rest = terms.slice(count).reduce((t, x) => t + x.upstream * x.local, 0);
    const matches = Math.abs(total - downstream) <= 1e-9 * (terms.reduce((t, x) => t + Math.abs(x.upstream * x.local), 0) + Math.abs(downstream)) + 1e-300;
    return { entry, terms: kept, others: terms.length - kept.length, rest, downstream, matches };
  }

  sums(edge) {
    return this.edited ? edge.sums.map((s) => this.sumAt(edge, s.entry, 6)) : edge.sums;
  }

  // Backward pass and finite differences as in local.py: entry k of a value v moves by sin(k + 1) (1 + |v|).
  difference(n) {
    if (!this.edited || !n.difference || n.difference.verdict === "surrogate") return n.difference;
    const up = this.upstream(n), edges = this.edgesOf[n.id], inputs = n.inputs.map((i) => this.now[i]), h = 1e-6;
    const moves = edges.map((e) => map(inputs[e.slot], (v, k) => (Number.isFinite(v) ? Math.sin(k + 1) * (1 + Math.abs(v)) : 0)));
    const over = (f) => edges.reduce((t, e, i) => t + sum(this.shares[n.id][e.slot].data.map((g, k) => f(g * moves[i].data[k]))), 0);
    const at = (sign) => {
      const moved = inputs.slice();
      edges.forEach((e, i) => { moved[e.slot] = map(inputs[e.slot], (v, k) => v + sign * h * moves[i].data[k]); });
      return OPERATIONS[n.kind].forward(moved, n.settings);
    };
    const backward = over((x) => x), allowed = 1e-5 * over(Math.abs) + 1e-9, above = at(1), here = at(0), below = at(-1);
    let finite = 0, least = 0, most = 0;
    here.forEach((y, k) => y.data.forEach((v, i) => {
      const u = up[k].data[i];
      if (u === 0) return;
      const right = (u * (above[k].data[i] - v)) / h, left = (u * (v - below[k].data[i])) / h;
      finite += (right + left) / 2; least += Math.min(right, left); most += Math.max(right, left);
    }));
    const bracketed = least - allowed <= backward && backward <= most + allowed;
    return { backward, finite, verdict: Math.abs(finite - backward) <= allowed ? "agrees" : bracketed ? "kink" : "differs" };
  }

  exported() {
    if (!this.computes) return this.data;
    const found = structuredClone(this.data);
    found.loss = this.loss();
    found.values.forEach((v) => {
      v.data = { all: Array.from(this.now[v.id].data) };
      if (v.cotangent) v.cotangent = { all: Array.from(this.cotangent(v.id).all) };
    });
    found.edges.forEach((e) => {
      if (e.downstream) e.downstream = { all: Array.from(this.downstream(e).all) };
      e.sums = this.sums(e);
    });
    found.nodes.forEach((n) => { n.difference = this.difference(n); });
    return found;
  }
}
