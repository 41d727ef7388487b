// The operations that this page can compute in double precision: forward, and the cotangent of each input.
// A tensor is {shape, data}. Each entry of OPERATIONS has forward(inputs, settings) -> outputs and
// backward(upstream, inputs, outputs, settings) -> cotangents of the inputs, null for inputs without one.
"use strict";

const sizeOf = (shape) => shape.reduce((a, b) => a * b, 1);
const tensor = (shape, data) => ({ shape, data: data || new Float64Array(sizeOf(shape)) });
const like = (x, data) => tensor(x.shape, data);
const map = (x, f) => like(x, Float64Array.from(x.data, (v, i) => f(v, i)));
const scalar = (v) => tensor([], Float64Array.of(v));
const sum = (data) => data.reduce((a, b) => a + b, 0);

// For each entry of `to`, the entry of `from` from which it is broadcast.
function broadcastIndex(from, to) {
  const lead = to.length - from.length, found = new Int32Array(sizeOf(to));
  for (let k = 0; k < found.length; k++) {
    let rest = k, place = 0, stride = 1;
    for (let axis = to.length - 1; axis >= 0; axis--) {
      const at = rest % to[axis];
      rest = (rest - at) / to[axis];
      if (axis >= lead) {
        if (from[axis - lead] !== 1) place += at * stride;
        stride *= from[axis - lead];
      }
    }
    found[k] = place;
  }
  return found;
}

function broadcastShape(a, b) {
  const rank = Math.max(a.length, b.length), found = [];
  for (let i = 0; i < rank; i++) {
    const x = a[a.length - rank + i] ?? 1, y = b[b.length - rank + i] ?? 1;
    found.push(x === 1 ? y : x);
  }
  return found;
}

function combine(a, b, f) {
  const shape = broadcastShape(a.shape, b.shape), out = tensor(shape);
  const ia = broadcastIndex(a.shape, shape), ib = broadcastIndex(b.shape, shape);
  for (let k = 0; k < out.data.length; k++) out.data[k] = f(a.data[ia[k]], b.data[ib[k]]);
  return out;
}

// Sums over broadcast axes, to the shape of `target`.
function reduceTo(x, target) {
  const index = broadcastIndex(target.shape, x.shape), out = like(target);
  for (let k = 0; k < x.data.length; k++) out.data[index[k]] += x.data[k];
  return out;
}

const addInto = (a, b) => (a === null || a === undefined ? like(b, b.data.slice()) : map(a, (v, i) => v + b.data[i]));

function entrywise(f, slope) {
  return {
    forward: ([x]) => [map(x, f)],
    backward: ([up], [x], [y]) => [map(x, (v, i) => up.data[i] * slope(v, y.data[i]))],
  };
}

function operands(inputs, settings) {
  return settings.operands.map((o) => ("input" in o ? inputs[o.input] : scalar(o.number)));
}

function binary(f, byFirst, bySecond) {
  return {
    forward: (inputs, s) => { const [a, b] = operands(inputs, s); return [combine(a, b, f)]; },
    backward: ([up], inputs, out, s) => {
      const pair = operands(inputs, s), shares = inputs.map(() => null);
      const local = [byFirst, bySecond].map((g) => combine(pair[0], pair[1], g));
      s.operands.forEach((o, i) => {
        if ("input" in o) shares[o.input] = addInto(shares[o.input], reduceTo(combine(up, local[i], (u, l) => u * l), pair[i]));
      });
      return shares;
    },
  };
}

// Products of batches of matrices: (.., n, k) times (.., k, m); the flags transpose a factor.
function product(a, b, ta, tb) {
  const [ar, ac] = a.shape.slice(-2), [br, bc] = b.shape.slice(-2);
  const n = ta ? ac : ar, inner = ta ? ar : ac, m = tb ? br : bc;
  const stack = broadcastShape(a.shape.slice(0, -2), b.shape.slice(0, -2)), out = tensor([...stack, n, m]);
  const ia = broadcastIndex(a.shape.slice(0, -2), stack), ib = broadcastIndex(b.shape.slice(0, -2), stack);
  for (let s = 0; s < sizeOf(stack); s++) {
    const pa = ia[s] * ar * ac, pb = ib[s] * br * bc;
    for (let i = 0; i < n; i++) for (let j = 0; j < m; j++) {
      let total = 0;
      for (let k = 0; k < inner; k++) total += a.data[pa + (ta ? k * ac + i : i * ac + k)] * b.data[pb + (tb ? j * bc + k : k * bc + j)];
      out.data[(s * n + i) * m + j] = total;
    }
  }
  return out;
}

const rows = (x, width) => tensor([x.data.length / width, width], x.data);
const named = (inputs, s) => s.slots.map((slot) => (slot === null ? null : inputs[slot]));

function place(shares, inputs, s) {
  const found = inputs.map(() => null);
  s.slots.forEach((slot, i) => { if (slot !== null && shares[i]) found[slot] = shares[i]; });
  return found;
}

const affine = {
  forward: (inputs, s) => {
    const [x, w, b] = named(inputs, s), [out, width] = w.shape;
    const y = product(rows(x, width), w, false, true);
    if (b) for (let i = 0; i < y.data.length; i++) y.data[i] += b.data[i % out];
    return [tensor([...x.shape.slice(0, -1), out], y.data)];
  },
  backward: ([up], inputs, o, s) => {
    const [x, w, b] = named(inputs, s), [out, width] = w.shape, u = rows(up, out);
    const shares = [like(x, product(u, w, false, false).data), product(u, rows(x, width), true, false), null];
    if (b) { shares[2] = like(b); u.data.forEach((v, i) => { shares[2].data[i % out] += v; }); }
    return place(shares, inputs, s);
  },
};

// Calls visit(output entry, input entry, weight entry) for every product of a convolution.
function eachProduct(x, w, s, visit) {
  const [batch, , h, width] = x.shape, [out, per, kh, kw] = w.shape;
  const [sh, sw] = s.stride, [ph, pw] = s.padding, [dh, dw] = s.dilation;
  const oh = Math.floor((h + 2 * ph - dh * (kh - 1) - 1) / sh) + 1, ow = Math.floor((width + 2 * pw - dw * (kw - 1) - 1) / sw) + 1;
  for (let n = 0; n < batch; n++) for (let o = 0; o < out; o++) for (let i = 0; i < oh; i++) for (let j = 0; j < ow; j++) {
    const y = ((n * out + o) * oh + i) * ow + j, first = Math.floor(o / (out / s.groups)) * per;
    for (let c = 0; c < per; c++) for (let u = 0; u < kh; u++) for (let v = 0; v < kw; v++) {
      const a = i * sh - ph + u * dh, b = j * sw - pw + v * dw;
      if (a >= 0 && a < h && b >= 0 && b < width) visit(y, ((n * x.shape[1] + first + c) * h + a) * width + b, ((o * per + c) * kh + u) * kw + v);
    }
  }
  return [batch, out, oh, ow];
}

const conv2d = {
  forward: (inputs, s) => {
    const [x, w, b] = named(inputs, s), shape = eachProduct(like(x), w, { ...s, groups: s.groups }, () => {}), y = tensor(shape);
    eachProduct(x, w, s, (o, i, k) => { y.data[o] += x.data[i] * w.data[k]; });
    const map_ = shape[2] * shape[3];
    if (b) for (let i = 0; i < y.data.length; i++) y.data[i] += b.data[Math.floor(i / map_) % shape[1]];
    return [y];
  },
  backward: ([up], inputs, out, s) => {
    const [x, w, b] = named(inputs, s), gx = like(x), gw = like(w), gb = b ? like(b) : null;
    eachProduct(x, w, s, (o, i, k) => { gx.data[i] += up.data[o] * w.data[k]; gw.data[k] += up.data[o] * x.data[i]; });
    const map_ = up.shape[2] * up.shape[3];
    if (gb) up.data.forEach((v, i) => { gb.data[Math.floor(i / map_) % up.shape[1]] += v; });
    return place([gx, gw, gb], inputs, s);
  },
};

// Calls visit(output entry, input entries of its window).
function eachWindow(x, s, visit) {
  const [h, w] = x.shape.slice(-2), [kh, kw] = s.kernel, [sh, sw] = s.stride, [ph, pw] = s.padding;
  const oh = Math.floor((h + 2 * ph - kh) / sh) + 1, ow = Math.floor((w + 2 * pw - kw) / sw) + 1, maps = x.data.length / (h * w);
  for (let m = 0; m < maps; m++) for (let i = 0; i < oh; i++) for (let j = 0; j < ow; j++) {
    const inside = [];
    for (let u = 0; u < kh; u++) for (let v = 0; v < kw; v++) {
      const a = i * sh - ph + u, b = j * sw - pw + v;
      if (a >= 0 && a < h && b >= 0 && b < w) inside.push((m * h + a) * w + b);
    }
    visit((m * oh + i) * ow + j, inside);
  }
  return [...x.shape.slice(0, -2), oh, ow];
}

const largest = (x, inside) => inside.reduce((best, k) => (x.data[k] > x.data[best] ? k : best), inside[0]);

function pooling(value, share) {
  return {
    forward: ([x], s) => {
      const out = [], shape = eachWindow(x, s, (o, inside) => { out[o] = value(x, inside, s); });
      return [tensor(shape, Float64Array.from(out))];
    },
    backward: ([up], [x], o, s) => {
      const g = like(x);
      eachWindow(x, s, (out, inside) => share(x, inside, s, (k, part) => { g.data[k] += up.data[out] * part; }));
      return [g];
    },
  };
}

const area = (s) => s.kernel[0] * s.kernel[1];
const averagePool = pooling(
  (x, inside, s) => inside.reduce((t, k) => t + x.data[k], 0) / area(s),
  (x, inside, s, give) => inside.forEach((k) => give(k, 1 / area(s))),
);
const maximumPool = pooling((x, inside) => x.data[largest(x, inside)], (x, inside, s, give) => give(largest(x, inside), 1));

function softmaxRows(x) {
  const width = x.shape[x.shape.length - 1], out = like(x);
  for (let r = 0; r < x.data.length; r += width) {
    const row = x.data.subarray(r, r + width), top = Math.max(...row);
    let total = 0;
    for (let i = 0; i < width; i++) total += out.data[r + i] = Math.exp(row[i] - top);
    for (let i = 0; i < width; i++) out.data[r + i] /= total;
  }
  return out;
}

function softmaxShare(p, up) {
  const width = p.shape[p.shape.length - 1], out = like(p);
  for (let r = 0; r < p.data.length; r += width) {
    let mean = 0;
    for (let i = r; i < r + width; i++) mean += p.data[i] * up.data[i];
    for (let i = r; i < r + width; i++) out.data[i] = p.data[i] * (up.data[i] - mean);
  }
  return out;
}
