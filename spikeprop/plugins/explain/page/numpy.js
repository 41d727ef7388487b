// A small part of NumPy, read and run by this page: assignments, for loops over range, arithmetic, and the functions below.
// A number is a number, a tuple an array of numbers, an array a tensor {shape, data} as in operations.js.
"use strict";

const TOKEN = /\s*(?:(\d+\.?\d*(?:[eE][-+]?\d+)?)|([A-Za-z_]\w*)|"([^"]*)"|(\*\*|\+=|==|>=|<=|[-+*/@()[\],.=<>:]))/y;

function tokens(text) {
  const found = [];
  TOKEN.lastIndex = 0;
  for (let end = 0; text.slice(end).trim(); end = TOKEN.lastIndex) {
    TOKEN.lastIndex = end;
    const m = TOKEN.exec(text);
    if (!m) throw new Error(`cannot read "${text.slice(end).trim()}"`);
    if (m[1] !== undefined) found.push({ number: Number(m[1]) });
    else if (m[2] !== undefined) found.push({ name: m[2] });
    else if (m[3] !== undefined) found.push({ string: m[3] });
    else found.push({ sign: m[4] });
  }
  return found;
}

const isArray = (x) => x !== null && typeof x === "object" && x.data !== undefined;
const lift = (x) => (isArray(x) ? x : scalar(x));
const loose = (x) => (isArray(x) && x.shape.length === 0 ? x.data[0] : x);
const each = (f) => (x) => (typeof x === "number" ? f(x) : map(x, (v) => f(v)));
const pairwise = (f) => (a, b) => {
  if (typeof a === "number" && typeof b === "number") return f(a, b);
  const x = lift(a), y = lift(b), shape = broadcastShape(x.shape, y.shape);
  const fits = (t) => t.shape.every((n, i) => n === 1 || n === shape[i + shape.length - t.shape.length]);
  if (!fits(x) || !fits(y)) throw new Error(`shapes ${shapeText(x.shape)} and ${shapeText(y.shape)} do not go together`);
  return combine(x, y, f);
};

const SIGNS = {
  "+": pairwise((a, b) => a + b), "-": pairwise((a, b) => a - b), "*": pairwise((a, b) => a * b), "/": pairwise((a, b) => a / b),
  "**": pairwise((a, b) => a ** b), ">": pairwise((a, b) => Number(a > b)), "<": pairwise((a, b) => Number(a < b)),
  ">=": pairwise((a, b) => Number(a >= b)), "<=": pairwise((a, b) => Number(a <= b)), "==": pairwise((a, b) => Number(a === b)),
  "@": (a, b) => {
    if (!isArray(a) || !isArray(b) || a.shape.length < 2 || b.shape.length < 2) throw new Error("@ takes two matrices");
    const inner = a.shape[a.shape.length - 1], rows_ = b.shape[b.shape.length - 2];
    if (inner !== rows_) throw new Error(`${shapeText(a.shape)} @ ${shapeText(b.shape)}: ${inner} columns meet ${rows_} rows`);
    return product(a, b, false, false);
  },
};
const POWER = { "==": 1, ">": 1, "<": 1, ">=": 1, "<=": 1, "+": 2, "-": 2, "*": 3, "/": 3, "@": 3, "**": 5 };

function swap(x, a, b) {
  const rank = x.shape.length, order = x.shape.map((_, i) => i), [p, q] = [(a + rank) % rank, (b + rank) % rank];
  [order[p], order[q]] = [q, p];
  const strides = x.shape.map((_, i) => sizeOf(x.shape.slice(i + 1))), shape = order.map((i) => x.shape[i]), out = tensor(shape);
  out.data.forEach((_, k) => {
    let rest = k, at = 0;
    for (let axis = rank - 1; axis >= 0; axis--) { at += (rest % shape[axis]) * strides[order[axis]]; rest = Math.floor(rest / shape[axis]); }
    out.data[k] = x.data[at];
  });
  return out;
}

function reshape(x, shape) {
  const known = shape.reduce((n, s) => (s < 0 ? n : n * s), 1), full = shape.map((s) => (s < 0 ? x.data.length / known : s));
  if (sizeOf(full) !== x.data.length) throw new Error(`${x.data.length} numbers cannot be reshaped to ${shapeText(full)}`);
  return tensor(full, x.data);
}

const axesOf = (x, axis) => (axis === undefined || axis === null ? x.shape.map((_, i) => i) : [axis].flat().map((a) => (a + x.shape.length) % x.shape.length)).sort((a, b) => a - b);
const reduced = (mean) => (value, { axis, keepdims } = {}) => { const x = lift(value); return loose(reduce.forward([x], { mean, axes: axesOf(x, axis), keep: Boolean(keepdims) })[0]); };
const total = reduced(false), average = reduced(true);

function variance(x, options) {
  const centred = SIGNS["-"](x, average(x, { axis: options.axis, keepdims: true }));
  return average(SIGNS["*"](centred, centred), options);
}

function greatest(x, { axis, keepdims } = {}) {
  const { index, kept, shape } = reduction(x, { axes: axesOf(x, axis), keep: Boolean(keepdims) }), out = tensor(keepdims ? kept : shape);
  out.data.fill(-Infinity);
  x.data.forEach((v, i) => { out.data[index[i]] = Math.max(out.data[index[i]], v); });
  return loose(out);
}

// Sums of products over the letters that the result does not have.
function sumOfProducts(how, ...arrays) {
  const [left, out] = how.split("->"), names = left.split(","), size = {};
  names.forEach((letters, k) => [...letters].forEach((l, i) => { size[l] = arrays[k].shape[i]; }));
  const all = [...out, ...Object.keys(size).filter((l) => !out.includes(l))];
  const strides = (letters, shape) => all.map((l) => { const i = letters.indexOf(l); return i < 0 ? 0 : sizeOf(shape.slice(i + 1)); });
  const result = tensor([...out].map((l) => size[l])), steps = names.map((letters, k) => strides(letters, arrays[k].shape)), to = strides(out, result.shape);
  const count = all.reduce((n, l) => n * size[l], 1), at = all.map(() => 0), places = [...arrays.map(() => 0), 0], moves = [...steps, to];
  for (let n = 0; n < count; n++) {
    result.data[places[arrays.length]] += arrays.reduce((p, x, k) => p * x.data[places[k]], 1);
    for (let axis = all.length - 1; axis >= 0; axis--) {
      at[axis] += 1;
      moves.forEach((m, k) => { places[k] += m[axis]; });
      if (at[axis] < size[all[axis]]) break;
      moves.forEach((m, k) => { places[k] -= m[axis] * at[axis]; });
      at[axis] = 0;
    }
  }
  return result;
}

// Calls visit(place in the windows, place in the maps or -1 in the padding) for windows [b, c, h, w, u, v].
function eachPlace(shape, [kh, kw], [sh, sw], [ph, pw], visit) {
  const [b, c, h, w] = shape, oh = Math.floor((h + 2 * ph - kh) / sh) + 1, ow = Math.floor((w + 2 * pw - kw) / sw) + 1;
  let k = 0;
  for (let m = 0; m < b * c; m++) for (let i = 0; i < oh; i++) for (let j = 0; j < ow; j++) for (let u = 0; u < kh; u++) for (let v = 0; v < kw; v++) {
    const y = i * sh - ph + u, x = j * sw - pw + v;
    visit(k++, y >= 0 && y < h && x >= 0 && x < w ? (m * h + y) * w + x : -1);
  }
  return [b, c, oh, ow, kh, kw];
}

const HELPING = {
  softmax: softmaxRows,
  Phi: each((v) => 0.5 * (1 + erf(v / Math.SQRT2))),
  fold: (g, shape) => reduceTo(g, { shape, data: new Float64Array(sizeOf(shape)) }),
  windows: (x, kernel, stride, padding, fill = 0) => {
    const found = [], shape = eachPlace(x.shape, kernel, stride, padding, (k, i) => { found[k] = i < 0 ? fill : x.data[i]; });
    return tensor(shape, Float64Array.from(found));
  },
  unwindows: (w, shape, stride, padding) => {
    const out = tensor(shape);
    eachPlace(shape, w.shape.slice(4), stride, padding, (k, i) => { if (i >= 0) out.data[i] += w.data[k]; });
    return out;
  },
  largest: (w) => {
    const out = like(w), n = w.shape[4] * w.shape[5];
    for (let k = 0; k < w.data.length; k += n) { let best = k; for (let i = k; i < k + n; i++) if (w.data[i] > w.data[best]) best = i; out.data[best] = 1; }
    return out;
  },
  take: (x, index, shape) => tensor(shape, Float64Array.from(index.data, (i) => (i < 0 ? 0 : x.data[i]))),
  put: (g, index, shape) => { const out = tensor(shape); index.data.forEach((i, k) => { if (i >= 0) out.data[i] += g.data[k]; }); return out; },
};

const filled = (value) => (shape) => tensor([shape].flat(), new Float64Array(sizeOf([shape].flat())).fill(value));
const NUMPY = {
  exp: each(Math.exp), log: each(Math.log), log1p: each(Math.log1p), tanh: each(Math.tanh), sqrt: each(Math.sqrt), abs: each(Math.abs),
  maximum: pairwise(Math.max), minimum: pairwise(Math.min), sum: total, mean: average, zeros: filled(0), ones: filled(1),
  full: (shape, value) => filled(value)(shape), swapaxes: swap, einsum: sumOfProducts, inf: Infinity, pi: Math.PI,
  transpose: (x) => swap(x, 0, 1), dot: SIGNS["@"], matmul: SIGNS["@"], square: each((v) => v * v), sign: each(Math.sign),
  zeros_like: (x) => like(x), ones_like: (x) => map(x, () => 1), multiply: SIGNS["*"],
  where: (test, a, b) => { const mixed = pairwise((t, v) => (t ? v : 0)), other = pairwise((t, v) => (t ? 0 : v)); return SIGNS["+"](mixed(test, a), other(test, b)); },
  eye: (n) => { const out = tensor([n, n]); for (let i = 0; i < n; i++) out.data[i * n + i] = 1; return out; },
};
const METHODS = {
  reshape: (x, ...shape) => reshape(x, shape.flat()), sum: total, mean: average, max: greatest, var: variance,
  T: (x) => swap(x, 0, 1), shape: (x) => x.shape, size: (x) => x.data.length, transpose: (x) => swap(x, 0, 1),
};

function rowsOf(x, index) {
  const inner = x.shape.slice(1), n = sizeOf(inner);
  if (isArray(index)) return tensor([...index.shape, ...inner], Float64Array.from({ length: index.data.length * n }, (_, k) => x.data[index.data[Math.floor(k / n)] * n + (k % n)]));
  const at = index < 0 ? index + x.shape[0] : index;
  if (!(at >= 0 && at < x.shape[0])) throw new Error(`there is no entry ${index}`);
  return tensor(inner, x.data.subarray(at * n, (at + 1) * n));
}

class Reader {
  constructor(text) { this.list = tokens(text); this.at = 0; }

  peek(sign) { const t = this.list[this.at]; return t !== undefined && t.sign === sign; }

  take(sign) { if (!this.peek(sign)) return false; this.at += 1; return true; }

  need(sign) { if (!this.take(sign)) throw new Error(`expected "${sign}"`); }

  // The value of an expression, as a function of the names.
  expression(least = 1) {
    let left = this.unary();
    for (let t = this.list[this.at]; t && POWER[t.sign] >= least; t = this.list[this.at]) {
      this.at += 1;
      const a = left, right = this.expression(t.sign === "**" ? 4 : POWER[t.sign] + 1), compute = SIGNS[t.sign];
      left = (scope) => compute(loose(a(scope)), loose(right(scope)));
    }
    return left;
  }

  unary() {
    if (this.take("-")) { const x = this.expression(5); return (scope) => SIGNS["*"](x(scope), -1); }
    return this.after(this.atom());
  }

  atom() {
    const t = this.list[this.at++];
    if (!t) throw new Error("something is missing at the end");
    if (t.number !== undefined) return () => t.number;
    if (t.string !== undefined) return () => t.string;
    if (t.name === "np") { this.need("."); return this.numpy(this.list[this.at++]); }
    if (t.name !== undefined) return this.variable(t.name);
    if (t.sign !== "(") throw new Error(`did not expect "${t.sign}"`);
    const parts = [];
    let tuple = false;
    while (!this.peek(")")) { parts.push(this.expression()); if (this.take(",")) tuple = true; else break; }
    this.need(")");
    return tuple || !parts.length ? (scope) => parts.map((p) => loose(p(scope))) : parts[0];
  }

  numpy(token) {
    const name = token ? token.name : "", found = NUMPY[name];
    if (found === undefined) throw new Error(`this page does not have np.${name}`);
    return () => found;
  }

  variable(name) {
    if (name === "True" || name === "False") return () => name === "True";
    return (scope) => {
      if (scope.has(name)) return scope.get(name);
      if (HELPING[name]) return HELPING[name];
      throw new Error(`${name} is not known here`);
    };
  }

  // Calls, attributes and indices.
  after(start) {
    let value = start;
    for (;;) {
      const inner = value;
      if (this.take("(")) { const given = this.given(); value = (scope) => apply(inner(scope), given, scope); }
      else if (this.take(".")) value = this.attribute(inner);
      else if (this.take("[")) { const index = this.expression(); this.need("]"); value = (scope) => loose(pickRow(inner(scope), loose(index(scope)))); }
      else return value;
    }
  }

  attribute(inner) {
    const { name } = this.list[this.at++] || {}, method = METHODS[name];
    if (!method) throw new Error(`this page does not have .${name}`);
    if (["T", "shape", "size"].includes(name)) return (scope) => method(lift(inner(scope)));
    return (scope) => { const x = lift(inner(scope)); return (...more) => method(x, ...more); };
  }

  given() {
    const plain = [], named_ = {};
    while (!this.peek(")")) {
      const t = this.list[this.at], next = this.list[this.at + 1];
      if (t && t.name && next && next.sign === "=") { this.at += 2; named_[t.name] = this.expression(); } else plain.push(this.expression());
      if (!this.take(",")) break;
    }
    this.need(")");
    return { plain, named: named_ };
  }

  end() { if (this.at < this.list.length) throw new Error("there is more than one expression"); }
}

function apply(f, given, scope) {
  if (typeof f !== "function") throw new Error("this is not a function");
  const more = Object.entries(given.named).map(([key, value]) => [key, value(scope)]);
  return f(...given.plain.map((p) => p(scope)), ...(more.length ? [Object.fromEntries(more)] : []));
}

const pickRow = (x, index) => (Array.isArray(x) ? x[index < 0 ? x.length + index : index] : rowsOf(x, index));

function statement(text) {
  const at = text.search(/(?<![=<>!+(,])\+?=(?!=)/), sign = text[at] === "+" ? "+=" : "=";
  if (at < 0) throw new Error("a line assigns a value: name = expression");
  const reader = new Reader(text.slice(at + sign.length)), value = reader.expression();
  reader.end();
  const targets = text.slice(0, at).split(/,(?![^[]*\])/).map((part) => {
    const m = /^\s*([A-Za-z_]\w*)(?:\[(.+)\])?\s*$/.exec(part);
    if (!m) throw new Error(`cannot assign to "${part.trim()}"`);
    return { name: m[1], index: m[2] ? new Reader(m[2]).expression() : null };
  });
  return (scope) => {
    const found = value(scope);
    targets.forEach((t, k) => assign(scope, t, sign, targets.length > 1 ? rowsOf(found, k) : found));
  };
}

function assign(scope, { name, index }, sign, value) {
  if (!index) { scope.set(name, sign === "+=" ? SIGNS["+"](scope.get(name), value) : isArray(value) ? tensor(value.shape, value.data.slice()) : value); return; }
  const row = rowsOf(scope.get(name), loose(index(scope))), x = lift(value);
  if (broadcastShape(x.shape, row.shape).join() !== row.shape.join()) throw new Error(`shape ${shapeText(x.shape)} does not fit ${shapeText(row.shape)}`);
  const spread = combine(x, like(row), (a) => a);
  spread.data.forEach((v, i) => { row.data[i] = sign === "+=" ? row.data[i] + v : v; });
}

// Runs lines on given arrays; returns all names. Throws an error with the number of the line and the names so far.
function runLines(lines, given) {
  const scope = new Map(Object.entries(given));
  const at = (i, act) => { try { act(); } catch (error) { if (error.line === undefined) Object.assign(error, { line: i, scope }); throw error; } };
  for (let i = 0; i < lines.length; i++) {
    const loop = /^for (\w+) in (reversed\()?range\((\d+)\)\)?:$/.exec(lines[i]);
    if (!loop) { at(i, () => statement(lines[i])(scope)); continue; }
    const first = i + 1, body = [];
    while (i + 1 < lines.length && lines[i + 1].startsWith("    ")) { i += 1; at(i, () => body.push(statement(lines[i].trim()))); }
    const count = Number(loop[3]);
    for (let k = 0; k < count; k++) {
      scope.set(loop[1], loop[2] ? count - 1 - k : k);
      body.forEach((act, j) => at(first + j, () => act(scope)));
    }
  }
  return scope;
}
