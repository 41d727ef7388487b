// Elements, numbers and tensors on the page.
"use strict";

function h(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
    else if (key === "text") e.textContent = value;
    else if (key === "html") e.innerHTML = value; // KaTeX's output alone
    else e.setAttribute(key, value === true ? "" : value);
  }
  children.flat().forEach((c) => c !== null && c !== undefined && e.append(c));
  return e;
}

function svg(tag, attributes, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes || {})) if (value !== null && value !== undefined) e.setAttribute(key, value);
  children.flat().forEach((c) => e.append(c));
  return e;
}

function fmt(x, digits = 5) {
  if (x === null || x === undefined) return "–";
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "nan" : x > 0 ? "inf" : "−inf";
  if (Number.isInteger(x) && Math.abs(x) < 1e6) return String(x).replace("-", "−");
  const a = Math.abs(x);
  const text = a !== 0 && (a < 1e-4 || a >= 1e6) ? x.toExponential(digits - 2) : String(Number(x.toPrecision(digits)));
  return text.replace(/-/g, "−");
}

const shapeText = (shape) => (shape.length ? shape.join("×") : "one number");
const bytesText = (n) => (n < 1024 ? `${n} B` : n < 1048576 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / 1048576).toFixed(1)} MiB`);
const tex = (latex) => katex.renderToString(latex, { throwOnError: true, displayMode: true, output: "htmlAndMathml" });

// Indices of an entry, as in [2, 0, 1].
function place_(entry, shape) {
  if (!shape.length) return "";
  const found = [];
  for (let axis = shape.length - 1; axis >= 0; axis--) { found.unshift(entry % shape[axis]); entry = Math.floor(entry / shape[axis]); }
  return `[${found.join(", ")}]`;
}

// The largest finite size among numbers, against which they are coloured.
const scaleOf = (entries) => entries.reduce((most, x) => (Number.isFinite(x) ? Math.max(most, Math.abs(x)) : most), 1e-300);

function tint(x, scale) {
  if (Number.isNaN(x)) return null;
  const a = scale > 0 ? Math.min(1, Math.abs(x) / scale) * 0.4 : 0;
  return x >= 0 ? `background:rgba(38,128,235,${a.toFixed(3)})` : `background:rgba(235,110,20,${a.toFixed(3)})`;
}

const CELLS = 72;

// A tensor as a table of numbers, or as a strip of colours with statistics where it is large or sampled.
function tensorView(title, view, options = {}) {
  if (!view) return null;
  const { shape, all } = view, total = sizeOf(shape);
  const head = h("p", { class: "tensor-title" }, h("b", { text: title }), ` ${shapeText(shape)}`);
  if (all && total <= (options.cells || CELLS)) return h("div", { class: "tensor" }, head, table(title, view, options));
  const entries = all || view.some, scale = scaleOf(entries);
  const strip = h("canvas", { width: Math.min(entries.length, 512), height: 1, class: "strip", role: "img", "aria-label": `${title}: ${summary(view)}` });
  paint(strip, entries, scale);
  const note = all ? "" : ` (${entries.length} of ${total} entries kept)`;
  const first = Array.from(entries.slice(0, 8), (x) => fmt(x, 4)).join(", ");
  return h("div", { class: "tensor" }, head, strip, h("p", { class: "small", text: `${summary(view)}${note}. First kept: ${first}${entries.length > 8 ? ", …" : ""}` }));
}

function summary(view) {
  const s = view.all ? statistics(view.all) : view;
  return `from ${fmt(s.least, 4)} to ${fmt(s.most, 4)}, mean ${fmt(s.mean, 4)}, rms ${fmt(s.rms, 4)}, ${(100 * s.zeros).toFixed(0)} % zeros`;
}

function statistics(data) {
  let least = Infinity, most = -Infinity, total = 0, squares = 0, zeros = 0;
  data.forEach((x) => { least = Math.min(least, x); most = Math.max(most, x); total += x; squares += x * x; zeros += x === 0; });
  const n = data.length || 1;
  return { least, most, mean: total / n, rms: Math.sqrt(squares / n), zeros: zeros / n };
}

function paint(canvas, entries, scale) {
  const context = canvas.getContext("2d"), width = canvas.width, image = context.createImageData(width, 1);
  for (let i = 0; i < width; i++) {
    const x = entries[Math.floor((i * entries.length) / width)], a = Math.sqrt(Math.min(1, Math.abs(x) / scale)) * 255;
    image.data.set(x >= 0 ? [38, 128, 235, a] : [235, 110, 20, a], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

function table(title, view, { edit = null, integer = false } = {}) {
  const { shape, all } = view, width = shape.length ? shape[shape.length - 1] : 1, scale = scaleOf(all);
  const rows_ = [];
  for (let r = 0; r < all.length; r += width) {
    const lead = shape.length > 1 ? place_(r / width, shape.slice(0, -1)) : "";
    const cells = Array.from(all.slice(r, r + width), (x, i) => {
      const content = edit && Number.isFinite(x) ? editor(`${title} ${place_(r + i, shape)}`, x, integer, (number) => edit(r + i, number)) : fmt(x, 4);
      return h("td", { style: tint(x, scale), title: edit ? null : String(x) }, content);
    });
    rows_.push(h("tr", {}, lead ? h("th", { scope: "row", text: lead }) : null, cells));
  }
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, table` }, h("table", { class: "numbers" }, h("caption", { class: "hidden", text: `${title}, ${shapeText(shape)}` }), h("tbody", {}, rows_)));
}

function editor(label, x, integer, change) {
  const input = h("input", { type: "number", step: integer ? "1" : "any", value: String(x), "aria-label": label });
  input.addEventListener("change", () => {
    const number = Number(input.value);
    const fits = input.value.trim() !== "" && Number.isFinite(number) && (!integer || Number.isInteger(number)) && change(number);
    if (fits) input.removeAttribute("aria-invalid"); else input.setAttribute("aria-invalid", "true");
  });
  return input;
}
