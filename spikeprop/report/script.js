"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (name, text, attributes = {}) => {
  const found = Object.assign(document.createElement(name), { textContent: text });
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  return found;
};

// Runs that are not ticked are hidden in the charts that compare runs.
for (const box of all("[data-shows]"))
  box.addEventListener("change", () => {
    for (const part of all(`main > :not(section) [data-run="${box.dataset.shows}"]`)) part.style.display = box.checked ? "" : "none";
  });

// A link into a folded part unfolds it.
function unfold() {
  let part = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const inner = part && part.parentElement && part.parentElement.querySelector(":scope > details");
  if (part && part.tagName === "H2" && inner) inner.open = true;
  for (let outer = part; outer; outer = outer.parentElement) if (outer.tagName === "DETAILS") outer.open = true;
  if (part && part.tagName === "DETAILS") part.scrollIntoView({ block: "nearest" });
}
addEventListener("hashchange", unfold);
unfold();

// Files: the text of a CSV cell is quoted where it must be, and never a formula.
function save(name, kind, text) {
  const link = make("a", "", { href: URL.createObjectURL(new Blob([text], { type: kind })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
const isNumber = text => /^[-+]?[\d,]*\.?\d+(e[-+]?\d+)?$/i.test(text);
function cell(value) {
  let text = String(value).trim();
  if (isNumber(text)) return text.replaceAll(",", "");
  if (/^[=+\-@]/.test(text) && text !== "-") text = `'${text}`;
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
const csv = rows => rows.map(row => row.map(cell).join(",")).join("\n") + "\n";
const fileName = text => text.replace(/[^\w.-]+/g, "-").replace(/^-|-$/g, "").slice(0, 80);
const button = (text, label, action) => {
  const found = make("button", text, { type: "button", "aria-label": label });
  found.addEventListener("click", action);
  return found;
};

// Tables: sorted by a click on a head, heads repeated for cards on a phone, saved as CSV.
const sortKey = text => {
  const number = parseFloat(text.replaceAll(",", ""));
  return Number.isNaN(number) ? null : number;
};
function sortBy(table, column) {
  const head = table.tHead.rows[0].cells[column], down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map(row => [row, row.cells[column].textContent.trim()]);
  const numbers = rows.every(([, text]) => text === "-" || text === "" || sortKey(text) !== null);
  const order = ([, a], [, b]) => numbers ? (sortKey(a) ?? -Infinity) - (sortKey(b) ?? -Infinity) : a.localeCompare(b);
  rows.sort((a, b) => down ? order(b, a) : order(a, b));
  table.tBodies[0].append(...rows.map(([row]) => row));
}
function equip(table, saved = true) {
  const heads = [...table.tHead.rows[0].cells], names = heads.map(head => head.textContent), title = table.caption.textContent;
  heads.forEach((head, i) => head.replaceChildren(button(names[i], `Sort by ${names[i] || "name"}`, () => sortBy(table, i))));
  for (const row of table.tBodies[0].rows) names.forEach((name, i) => {
    if (i) row.cells[i].dataset.head = name;
    row.cells[i].classList.toggle("none", ["", "-"].includes(row.cells[i].textContent));
  });
  if (!saved) return;
  const rows = () => [names, ...[...table.tBodies[0].rows].map(row => [...row.cells].map(c => c.textContent))];
  const tools = make("p", "", { class: "tools" });
  tools.append(button("CSV", `Save table "${title}" as CSV`, () => save(`${fileName(title)}.csv`, "text/csv", csv(rows()))));
  (table.parentElement.classList.contains("wide") ? table.parentElement : table).after(tools);
}
all("table").forEach(table => equip(table));

// The numbers of a chart, from what its elements say of themselves.
const series = picture => all("g[data-points]", picture).map(g => ({
  g, label: g.dataset.label, names: (g.dataset.names || "").split("|"),
  points: g.dataset.points.split(" ").map(p => p.split(",")),
}));
function numbers(picture) {
  const heads = picture.dataset.heads.split("|"), lines = series(picture);
  if (lines.length) {
    const band = lines.some(line => line.points.some(p => p.length > 2)), named = lines.some(line => line.names.some(Boolean));
    const more = [...(named ? ["T"] : []), ...(band ? ["low", "high"] : [])];
    return [["series", ...heads, ...more], ...lines.flatMap(line => line.points.map((p, i) =>
      [line.label, p[0], p[1], ...(named ? [line.names[i] || ""] : []), ...(band ? [p[2] || "", p[3] || ""] : [])]))];
  }
  const bars = all("[data-value]", picture);
  if (bars.length) return [["name", "series", heads[1]], ...bars.map(b => [b.dataset.row, b.dataset.series, b.dataset.value])];
  const cells = all("[data-count]", picture);
  if (cells.length) return [heads, ...cells.map(c => [c.dataset.row, c.dataset.column, c.dataset.count])];
  const layers = all("a[data-layer]", picture);
  if (layers.length) return [heads, ...layers.map(a => [a.dataset.layer, a.dataset.rate || "-"])];
  return [heads, ...all("[data-layer]", picture).flatMap(band => {
    const neurons = band.dataset.neurons.split(" ");
    const same = all("[data-share]", band).map(path => [band.dataset.layer, neurons[path.dataset.row], "every", path.dataset.share]);
    return [...same, ...all("[data-payload]", band).flatMap(path => [...path.getAttribute("d").matchAll(/M(\d+) (\d+)/g)].map(
      m => [band.dataset.layer, neurons[m[2]], m[1], path.dataset.payload]))];
  })];
}

// A chart as a file of its own: the style sheet's colours are written into its elements.
const KEPT = ["fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "font-size", "font-family",
  "font-weight", "vector-effect"];
function picture(svg) {
  const copy = svg.cloneNode(true), from = [svg, ...all("*", svg)], box = svg.viewBox.baseVal;
  [copy, ...all("*", copy)].forEach((part, i) => {
    const style = getComputedStyle(from[i]);
    if (style.display === "none") return part.setAttribute("display", "none");
    for (const key of KEPT) part.style.setProperty(key, style.getPropertyValue(key));
  });
  all("[display=none]", copy).forEach(part => part.remove());
  const paper = document.createElementNS(svg.namespaceURI, "rect");
  for (const [key, value] of Object.entries({ width: box.width, height: box.height, fill: getComputedStyle(document.body).backgroundColor })) paper.setAttribute(key, value);
  copy.prepend(paper);
  copy.setAttribute("width", box.width);
  copy.setAttribute("height", box.height);
  copy.removeAttribute("class");
  return new XMLSerializer().serializeToString(copy);
}
function table(rows, title) {
  const found = make("table", ""), [heads, ...body] = rows;
  found.createCaption().textContent = title;
  const head = found.createTHead().insertRow();
  heads.forEach(text => head.append(make("th", text, { scope: "col" })));
  const inside = found.createTBody();
  for (const row of body) {
    const line = inside.insertRow();
    row.forEach((value, i) => line.append(make(i ? "td" : "th", isNumber(value) ? String(+(+value).toPrecision(6)) : value, i ? {} : { scope: "row" })));
  }
  return found;
}
for (const svg of all("svg[data-heads]")) {
  const title = svg.dataset.title, tools = make("p", "", { class: "tools" }), folded = make("details", "");
  folded.append(make("summary", "Numbers"));
  folded.addEventListener("toggle", () => {
    if (folded.childElementCount > 1) return;
    const wide = make("div", "", { class: "wide", tabindex: 0, role: "region", "aria-label": `Numbers of ${title}` });
    wide.append(table(numbers(svg), title));
    folded.append(wide);
    equip(wide.firstChild, false); // the chart's own CSV has every digit
  });
  tools.append(folded, button("SVG", `Save "${title}" as SVG`, () => save(`${fileName(title)}.svg`, "image/svg+xml", picture(svg))),
    button("CSV", `Save the numbers of "${title}" as CSV`, () => save(`${fileName(title)}.csv`, "text/csv", csv(numbers(svg)))));
  const figure = svg.closest("figure"), alone = figure && all("svg[data-heads]", figure).length === 1;
  (alone ? figure.querySelector("figcaption") : svg.closest(".drawing")).after(tools);
  if (svg.dataset.across) equipChart(svg);
}
for (const block of all("pre[data-file]")) {
  const tools = make("p", "", { class: "tools" });
  tools.append(button("Save", `Save ${block.dataset.file}`, () => save(block.dataset.file, "text/yaml", block.textContent)));
  block.after(tools);
}

// The values nearest to the pointer.
function equipChart(svg) {
  const [low, high, start, end, log] = svg.dataset.across.split(",").map(Number), near = make("p", "", { class: "near", hidden: "" });
  const place = x => start + (end - start) * (log ? Math.log(x / low) / Math.log(high / low) : (x - low) / (high - low));
  svg.closest(".drawing").append(near);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const found = series(svg).filter(line => line.g.style.display !== "none").map(line => {
      const best = line.points.reduce((a, b) => Math.abs(place(+a[0]) - at) <= Math.abs(place(+b[0]) - at) ? a : b);
      return `${line.label}: ${line.names[line.points.indexOf(best)] || +(+best[0]).toPrecision(4)}, ${+(+best[1]).toPrecision(5)}`;
    });
    near.textContent = found.slice(0, 8).join("; ");
    near.hidden = false;
  });
  svg.addEventListener("pointerleave", () => { near.hidden = true; });
}
