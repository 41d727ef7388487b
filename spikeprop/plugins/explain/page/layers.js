// Normalisation, attention, losses, reductions, rearrangements and spiking neurons; and the table of all operations.
"use strict";

// Normalisation over groups of entries: group(i) is the group of an entry, weight(i) its entry of gamma and beta.
function normalise(x, s, groups, group, weight, inputs) {
  const [, gamma, beta, mean, variance] = named(inputs, s), n = x.data.length / groups;
  const mu = new Float64Array(groups), spread = new Float64Array(groups), hat = like(x);
  if (s.training === false) { mu.set(mean.data); spread.set(variance.data); }
  else {
    x.data.forEach((v, i) => { mu[group(i)] += v / n; });
    x.data.forEach((v, i) => { spread[group(i)] += (v - mu[group(i)]) ** 2 / n; });
  }
  const scale = spread.map((v) => 1 / Math.sqrt(v + s.eps));
  x.data.forEach((v, i) => { hat.data[i] = (v - mu[group(i)]) * scale[group(i)]; });
  const g = (i) => (gamma ? gamma.data[weight(i)] : 1);
  return { hat, scale, g, n, y: map(hat, (v, i) => v * g(i) + (beta ? beta.data[weight(i)] : 0)) };
}

function normaliseBack(up, x, s, groups, group, weight, inputs) {
  const { hat, scale, g, n } = normalise(x, s, groups, group, weight, inputs), [, gamma, beta] = named(inputs, s);
  const first = new Float64Array(groups), second = new Float64Array(groups), gx = like(x);
  up.data.forEach((u, i) => { first[group(i)] += u * g(i) / n; second[group(i)] += u * g(i) * hat.data[i] / n; });
  const fixed = s.training === false;
  up.data.forEach((u, i) => {
    const k = group(i);
    gx.data[i] = scale[k] * (u * g(i) - (fixed ? 0 : first[k] + hat.data[i] * second[k]));
  });
  const gg = gamma ? like(gamma) : null, gb = beta ? like(beta) : null;
  up.data.forEach((u, i) => { if (gg) gg.data[weight(i)] += u * hat.data[i]; if (gb) gb.data[weight(i)] += u; });
  return place([gx, gg, gb, null, null].slice(0, s.slots.length), inputs, s);
}

function batchGroups(x) {
  const inner = sizeOf(x.shape.slice(2)), channels = x.shape[1], of = (i) => Math.floor(i / inner) % channels;
  return [channels, of, of];
}

function layerGroups(x, s) {
  const inner = sizeOf(x.shape.slice(x.shape.length - s.axes));
  return [x.data.length / inner, (i) => Math.floor(i / inner), (i) => i % inner];
}

function norm(groupsOf) {
  return {
    forward: (inputs, s) => { const x = inputs[s.slots[0]]; return [normalise(x, s, ...groupsOf(x, s), inputs).y]; },
    backward: ([up], inputs, out, s) => { const x = inputs[s.slots[0]]; return normaliseBack(up, x, s, ...groupsOf(x, s), inputs); },
  };
}

function weightsOfValues(inputs, s) {
  const [q, k] = named(inputs, s), [n, m] = [q.shape[q.shape.length - 2], k.shape[k.shape.length - 2]];
  const later = (i) => s.causal && i % m > Math.floor(i / m) % n; // no token attends to a later one
  return softmaxRows(map(product(q, k, false, true), (v, i) => (later(i) ? -Infinity : v * s.scale)));
}

// With dropout, s.factor has what each weight of a value is multiplied by.
const remaining = (p, s) => (s.factor ? map(p, (v, i) => v * s.factor[i]) : p);
const attention = {
  forward: (inputs, s) => [product(remaining(weightsOfValues(inputs, s), s), named(inputs, s)[2], false, false)],
  backward: ([up], inputs, out, s) => {
    const [q, k, v] = named(inputs, s), p = weightsOfValues(inputs, s);
    const scores = map(softmaxShare(p, remaining(product(up, v, false, true), s)), (x) => x * s.scale);
    return place([product(scores, k, false, false), product(scores, q, true, false), product(remaining(p, s), up, true, false)], inputs, s);
  },
};

const crossEntropy = {
  forward: (inputs, s) => {
    const [z, y] = named(inputs, s), [n, width] = z.shape;
    let total = 0;
    for (let r = 0; r < n; r++) {
      const row = z.data.subarray(r * width, (r + 1) * width), top = Math.max(...row);
      total += Math.log(sum(row.map((v) => Math.exp(v - top)))) + top - row[y.data[r]];
    }
    return [scalar(total / n)];
  },
  backward: ([up], inputs, out, s) => {
    const [z, y] = named(inputs, s), [n, width] = z.shape;
    return place([map(softmaxRows(z), (p, i) => (up.data[0] * (p - (i % width === y.data[Math.floor(i / width)] ? 1 : 0))) / n)], inputs, s);
  },
};

const logistic = (v) => 1 / (1 + Math.exp(-v));
const binaryCrossEntropy = {
  forward: (inputs, s) => {
    const [z, y] = named(inputs, s);
    return [scalar(sum(z.data.map((v, i) => Math.max(v, 0) - v * y.data[i] + Math.log1p(Math.exp(-Math.abs(v))))) / z.data.length)];
  },
  backward: ([up], inputs, out, s) => {
    const [z, y] = named(inputs, s);
    return place([map(z, (v, i) => (up.data[0] * (logistic(v) - y.data[i])) / z.data.length)], inputs, s);
  },
};

const squaredError = {
  forward: (inputs, s) => { const [x, y] = named(inputs, s); return [scalar(sum(x.data.map((v, i) => (v - y.data[i]) ** 2)) / x.data.length)]; },
  backward: ([up], inputs, out, s) => {
    const [x, y] = named(inputs, s), g = map(x, (v, i) => (up.data[0] * 2 * (v - y.data[i])) / x.data.length);
    return place([g, map(g, (v) => -v)], inputs, s);
  },
};

// The entry of the result for each entry of x, and the shape of the result, with and without the reduced axes.
function reduction(x, s) {
  const kept = x.shape.map((n, axis) => (s.axes.includes(axis) ? 1 : n));
  const count = s.axes.reduce((n, axis) => n * x.shape[axis], 1);
  return { index: broadcastIndex(kept, x.shape), factor: s.mean ? 1 / count : 1, kept, shape: s.keep ? kept : x.shape.filter((_, a) => !s.axes.includes(a)) };
}

const reduce = {
  forward: ([x], s) => {
    const { index, factor, shape } = reduction(x, s), out = tensor(shape);
    x.data.forEach((v, i) => { out.data[index[i]] += v * factor; });
    return [out];
  },
  backward: ([up], [x], out, s) => { const { index, factor } = reduction(x, s); return [map(x, (_, i) => up.data[index[i]] * factor)]; },
};

const rearrange = {
  forward: (inputs, s) => {
    const floats = inputs.filter((x) => !x.integer);
    if (s.same) return [tensor(s.shapes[0], floats[0].data.slice())];
    const laid = floats.flatMap((x) => Array.from(x.data));
    return s.index.map((index, k) => tensor(s.shapes[k], Float64Array.from(index, (i) => (i < 0 ? 0 : laid[i]))));
  },
  backward: (ups, inputs, out, s) => {
    if (s.same) return inputs.map((x) => (x.integer ? null : like(x, ups[0].data.slice())));
    const shares = inputs.map((x) => (x.integer ? null : like(x))), starts = [];
    let start = 0;
    shares.forEach((x) => { starts.push(start); if (x) start += x.data.length; });
    const owner = (i) => { let k = shares.length - 1; while (!shares[k] || starts[k] > i) k--; return k; };
    s.index.forEach((index, k) => index.forEach((i, j) => { if (i >= 0) { const o = owner(i); shares[o].data[i - starts[o]] += ups[k].data[j]; } }));
    return shares;
  },
};

const SURROGATES = {
  STDB: (x, since, s) => (since === Infinity ? 0 : s.alpha * Math.exp(-since * s.beta)), // not fired yet
  Triangle: (x, since, s) => s.height * Math.max(0, 1 - Math.abs(x)),
  FastSigmoid: (x, since, s) => 1 / (Math.abs(x) * s.slope + 1) ** 2,
  ATan: (x, since, s) => s.alpha / 2 / (1 + ((Math.PI / 2) * s.alpha * x) ** 2),
};

const fire = {
  forward: ([u, theta]) => [combine(u, theta, (a, b) => (a > b ? 1 : 0))],
  backward: ([up], [u, theta, since], out, s) => {
    const index = broadcastIndex(theta.shape, u.shape);
    const byU = map(u, (v, i) => {
      const t = theta.data[index[i]], after = v > t ? 0 : since.data[i] + 1;
      return (up.data[i] * SURROGATES[s.surrogate](v / t - 1, after, s)) / t;
    });
    return [byU, reduceTo(map(byU, (g, i) => (-g * u.data[i]) / theta.data[index[i]]), theta), null];
  },
};

const integrate = {
  forward: ([v, current, leak]) => [combine(combine(v, leak, (a, b) => a * b), current, (a, b) => a + b)],
  backward: ([up], [v, current, leak]) => [combine(up, leak, (a, b) => a * b), up, reduceTo(combine(up, v, (a, b) => a * b), leak)],
};

const reset = {
  forward: ([u, spikes, theta], s) => [s.to_zero ? combine(u, spikes, (a, o) => a * (1 - o)) : combine(u, combine(theta, spikes, (t, o) => t * o), (a, b) => a - b)],
  backward: ([up], [u, spikes, theta], out, s) =>
    s.to_zero
      ? [combine(up, spikes, (g, o) => g * (1 - o)), null, null]
      : [up, null, reduceTo(combine(up, spikes, (g, o) => -g * o), theta)],
};

// erf by its series, and by a continued fraction of erfc where the series would lose digits.
function erf(x) {
  const a = Math.abs(x);
  if (a > 6) return Math.sign(x);
  if (a < 2.5) {
    let term = a, total = a;
    for (let n = 1; Math.abs(term) > 1e-17 * total; n++) { term *= (-a * a) / n; total += term / (2 * n + 1); if (term === 0) break; }
    return (Math.sign(x) * 2 * total) / Math.sqrt(Math.PI);
  }
  let f = 0;
  for (let k = 80; k >= 1; k--) f = k / 2 / (a + f);
  return Math.sign(x) * (1 - Math.exp(-a * a) / Math.sqrt(Math.PI) / (a + f));
}

const density = (v) => Math.exp(-v * v / 2) / Math.sqrt(2 * Math.PI);
const OPERATIONS = {
  affine, conv2d, attention, reduce, rearrange, integrate, fire, reset,
  relu: entrywise((v) => (v > 0 ? v : 0), (v) => (v > 0 ? 1 : 0)),
  tanh: entrywise(Math.tanh, (v, y) => 1 - y * y),
  sigmoid: entrywise(logistic, (v, y) => y * (1 - y)),
  gelu: entrywise((v) => (v * (1 + erf(v / Math.SQRT2))) / 2, (v) => (1 + erf(v / Math.SQRT2)) / 2 + v * density(v)),
  add: binary((a, b) => a + b, () => 1, () => 1),
  sub: binary((a, b) => a - b, () => 1, () => -1),
  rsub: binary((a, b) => b - a, () => -1, () => 1),
  mul: binary((a, b) => a * b, (a, b) => b, (a) => a),
  div: binary((a, b) => a / b, (a, b) => 1 / b, (a, b) => -a / (b * b)),
  factor: {
    forward: ([x], s) => [map(x, (v, i) => v * s.factor[i])],
    backward: ([up], [x], out, s) => [map(x, (_, i) => up.data[i] * s.factor[i])],
  },
  matmul: {
    forward: ([a, b]) => [product(a, b, false, false)],
    backward: ([up], [a, b]) => [reduceTo(product(up, b, false, true), a), reduceTo(product(a, up, true, false), b)],
  },
  softmax: { forward: ([x]) => [softmaxRows(x)], backward: ([up], x, [p]) => [softmaxShare(p, up)] },
  avg_pool2d: averagePool,
  max_pool2d: maximumPool,
  batch_norm: norm(batchGroups),
  layer_norm: norm(layerGroups),
  cross_entropy: crossEntropy,
  bce_with_logits: binaryCrossEntropy,
  squared_error: squaredError,
};
