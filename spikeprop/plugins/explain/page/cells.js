// Choices, Einstein sums, interpolation, embedding, group normalisation, recurrent cells, and graded spikes.
"use strict";

const matrix = (rows_) => tensor([rows_.length, rows_[0].length], Float64Array.from(rows_.flat()));

const chosenBy = {
  forward: (inputs, s) => {
    const c = inputs[s.condition], [a, b] = operands(inputs, s), shape = broadcastShape(c.shape, broadcastShape(a.shape, b.shape));
    const [ic, ia, ib] = [c, a, b].map((x) => broadcastIndex(x.shape, shape)), out = tensor(shape);
    for (let k = 0; k < out.data.length; k++) out.data[k] = c.data[ic[k]] ? a.data[ia[k]] : b.data[ib[k]];
    return [out];
  },
  backward: ([up], inputs, out, s) => {
    const c = inputs[s.condition], index = broadcastIndex(c.shape, up.shape), shares = inputs.map(() => null);
    s.operands.forEach((o, i) => {
      if ("input" in o) shares[o.input] = reduceTo(map(up, (u, k) => (!c.data[index[k]] === (i === 1) ? u : 0)), inputs[o.input]);
    });
    return shares;
  },
};

// Calls visit(entry of the output, entries of the operands) for every product of an Einstein sum; returns the output's shape.
function eachEinsteinProduct(operands_, s, visit) {
  const size = {};
  s.terms.forEach((term, k) => [...term].forEach((letter, axis) => { size[letter] = operands_[k].shape[axis]; }));
  const letters = Object.keys(size), terms = [s.out, ...s.terms];
  const strides = terms.map((term) => {
    const found = {};
    [...term].reverse().reduce((step, letter) => { found[letter] = step; return step * size[letter]; }, 1);
    return letters.map((letter) => found[letter] ?? 0);
  });
  const at = letters.map(() => 0), total = letters.reduce((n, letter) => n * size[letter], 1);
  for (let k = 0; k < total; k++) {
    const [o, ...entries] = strides.map((stride) => stride.reduce((sum_, step, i) => sum_ + step * at[i], 0));
    visit(o, entries);
    for (let i = letters.length - 1; i >= 0 && ++at[i] === size[letters[i]]; i--) at[i] = 0;
  }
  return [...s.out].map((letter) => size[letter]);
}

const einsum = {
  forward: (inputs, s) => {
    const own = named(inputs, s), y = tensor(eachEinsteinProduct(own, s, () => {}));
    eachEinsteinProduct(own, s, (o, entries) => { y.data[o] += entries.reduce((p, e, k) => p * own[k].data[e], 1); });
    return [y];
  },
  backward: ([up], inputs, out, s) => {
    const own = named(inputs, s), shares = own.map((x) => like(x));
    eachEinsteinProduct(own, s, (o, entries) => shares.forEach((share, k) => {
      share.data[entries[k]] += entries.reduce((p, e, j) => (j === k ? p : p * own[j].data[e]), up.data[o]);
    }));
    return place(shares, inputs, s);
  },
};

const interpolate = {
  forward: ([x], s) => {
    const a = matrix(s.rows), b = matrix(s.columns), maps = tensor([x.data.length / (a.shape[1] * b.shape[1]), a.shape[1], b.shape[1]], x.data);
    return [tensor(s.shape, product(product(a, maps, false, false), b, false, true).data)];
  },
  backward: ([up], [x], out, s) => {
    const a = matrix(s.rows), b = matrix(s.columns), maps = tensor([up.data.length / (a.shape[0] * b.shape[0]), a.shape[0], b.shape[0]], up.data);
    return [like(x, product(product(a, maps, true, false), b, false, false).data)];
  },
};

const embedding = {
  forward: (inputs, s) => {
    const [tokens, table] = named(inputs, s), width = table.shape[1], y = tensor([...tokens.shape, width]);
    y.data.forEach((_, i) => { y.data[i] = table.data[tokens.data[Math.floor(i / width)] * width + (i % width)]; });
    return [y];
  },
  backward: ([up], inputs, out, s) => {
    const [tokens, table] = named(inputs, s), width = table.shape[1], g = like(table);
    up.data.forEach((v, i) => {
      const row = tokens.data[Math.floor(i / width)];
      if (row !== s.padding) g.data[row * width + (i % width)] += v;
    });
    return place([null, g], inputs, s);
  },
};

function channelGroups(x, s) {
  const inner = sizeOf(x.shape.slice(2)), channels = x.shape[1], per = (inner * channels) / s.groups;
  return [x.shape[0] * s.groups, (i) => Math.floor(i / per), (i) => Math.floor(i / inner) % channels];
}

// The gates of a recurrent cell: affine maps of the input and of the last output, (batch, gates * width).
function gates(inputs, s, states) {
  const own = named(inputs, s), [x, h] = own, [wx, wh, bx, bh] = own.slice(1 + states);
  const affine_ = (v, w, b) => { const y = product(v, w, false, true); return b ? combine(y, b, (p, q) => p + q) : y; };
  return [affine_(x, wx, bx), affine_(h, wh, bh)];
}

function throughGates(byX, byH, inputs, s, states) {
  const own = named(inputs, s), [x, h] = own, [wx, wh, bx, bh] = own.slice(1 + states);
  const back = [product(byX, wx, false, false), product(byH, wh, false, false)];
  return [back, [product(byX, x, true, false), product(byH, h, true, false), bx && reduceTo(byX, bx), bh && reduceTo(byH, bh)]];
}

// Calls visit(entry, gates of x, gates of h) for every unit of every sample; the gates' entries are k * width apart.
function eachUnit([byX, byH], h, visit) {
  const width = h.shape[1], all = byX.shape[1];
  for (let i = 0; i < h.data.length; i++) {
    const start = Math.floor(i / width) * all + (i % width), at = (k) => start + k * width;
    visit(i, at, (k) => byX.data[at(k)], (k) => byH.data[at(k)]);
  }
}

const lstmCell = {
  forward: (inputs, s) => {
    const [, h, c] = named(inputs, s), hNew = like(h), cNew = like(c);
    eachUnit(gates(inputs, s, 2), h, (n, at, x, y) => {
      const a = (k) => x(k) + y(k);
      cNew.data[n] = logistic(a(1)) * c.data[n] + logistic(a(0)) * Math.tanh(a(2));
      hNew.data[n] = logistic(a(3)) * Math.tanh(cNew.data[n]);
    });
    return [hNew, cNew];
  },
  backward: ([uh, uc], inputs, out, s) => {
    const [, h, c] = named(inputs, s), both = gates(inputs, s, 2), g = like(both[0]), gc = like(c);
    eachUnit(both, h, (n, at, x, y) => {
      const a = (k) => x(k) + y(k), [i, f, o] = [0, 1, 3].map((k) => logistic(a(k))), candidate = Math.tanh(a(2));
      const t = Math.tanh(f * c.data[n] + i * candidate), m = uc.data[n] + uh.data[n] * o * (1 - t * t);
      g.data[at(0)] = m * candidate * i * (1 - i);
      g.data[at(1)] = m * c.data[n] * f * (1 - f);
      g.data[at(2)] = m * i * (1 - candidate * candidate);
      g.data[at(3)] = uh.data[n] * t * o * (1 - o);
      gc.data[n] = m * f;
    });
    const [[gx, gh], others] = throughGates(g, g, inputs, s, 2);
    return place([gx, gh, gc, ...others], inputs, s);
  },
};

const gruCell = {
  forward: (inputs, s) => {
    const h = named(inputs, s)[1], y = like(h);
    eachUnit(gates(inputs, s, 1), h, (i, at, x, u) => {
      const z = logistic(x(1) + u(1)), n = Math.tanh(x(2) + logistic(x(0) + u(0)) * u(2));
      y.data[i] = (1 - z) * n + z * h.data[i];
    });
    return [y];
  },
  backward: ([up], inputs, out, s) => {
    const h = named(inputs, s)[1], both = gates(inputs, s, 1), byX = like(both[0]), byH = like(both[1]), kept = like(h);
    eachUnit(both, h, (i, at, x, u) => {
      const r = logistic(x(0) + u(0)), z = logistic(x(1) + u(1)), n = Math.tanh(x(2) + r * u(2)), g = up.data[i];
      const candidate = g * (1 - z) * (1 - n * n);
      byX.data[at(0)] = byH.data[at(0)] = candidate * u(2) * r * (1 - r);
      byX.data[at(1)] = byH.data[at(1)] = g * (h.data[i] - n) * z * (1 - z);
      byX.data[at(2)] = candidate;
      byH.data[at(2)] = candidate * r;
      kept.data[i] = g * z;
    });
    const [[gx, gh], others] = throughGates(byX, byH, inputs, s, 1);
    return place([gx, map(gh, (v, i) => v + kept.data[i]), ...others], inputs, s);
  },
};

// Payloads: each level is tried on top of those taken already, up, and down by no more than was sent.
const grade = {
  forward: ([potential, sent, unit], s) => {
    const index = broadcastIndex(unit.shape, potential.shape);
    return [map(potential, (u, i) => {
      const q = unit.data[index[i]];
      let up = 0, down = 0;
      for (let level = (s.payload + 1) / 2; level >= 1; level /= 2) {
        if (u > (up + level) * q) up += level;
        if (u < (1 - (down + level)) * q && down + level <= sent.data[i]) down += level;
      }
      return up - down;
    })];
  },
  backward: ([up], [u, , unit], [k]) => { // straight through where the rest is in [0, q]
    const index = broadcastIndex(unit.shape, u.shape);
    return [map(u, (v, i) => {
      const q = unit.data[index[i]], rest = v - q * k.data[i];
      return rest >= 0 && rest <= q ? up.data[i] / q : 0;
    }), null, null];
  },
};

Object.assign(OPERATIONS, {
  where: chosenBy, einsum, interpolate, embedding, grade,
  silu: entrywise((v) => v * logistic(v), (v, y) => logistic(v) + y * (1 - logistic(v))),
  group_norm: norm(channelGroups),
  attention_dropout: attention,
  lstm_cell: lstmCell,
  gru_cell: gruCell,
});
