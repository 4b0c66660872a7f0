"use strict";
// Lists features, searches and sorts them, and sets the one that is chosen. Text goes into the page as text only.
const data = JSON.parse(document.getElementById("data").textContent);
const strings = data.texts, features = data.features;
const [search, sort, count, value, rows, more, article] =
  ["search", "sort", "count", "value", "rows", "more", "feature"].map((id) => document.getElementById(id));
const EXPLAINED = "Balanced accuracy: the mean of the share of held-out texts with the feature that the label marks, and of the share without it that it leaves; a coin has one half. Confidence: how probable it is that this is three quarters or more on further text of the same kind.";
const PAGE = 200, FIRST = 3;
const byId = new Map(features.map((feature) => [feature.id, feature]));
const texts = new Map(features.map((f) => [f, [
  `f${f.id}`, f.label ?? "", f.description, f.status,
  ...[...f.tokens, ...f.promoted].map(([string]) => strings[string]),
].join("\n").toLowerCase()]));
let found = features, limit = PAGE;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function into(parent, ...children) {
  parent.append(...children.filter(Boolean));
  return parent;
}

function shown(word) {
  return word.trim() ? word.replaceAll("\n", "↵").replaceAll("\t", "⇥") :
    word.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

const COMPARE = {
  given: () => 0,
  id: (a, b) => a.id - b.id,
  label: (a, b) => (a.label === null) - (b.label === null) || (a.label ?? "").localeCompare(b.label ?? ""),
};
const descending = (key) => (a, b) => (b[key] ?? -1) - (a[key] ?? -1);

function chosen() {
  return byId.get(Number(location.hash.replace("#f", ""))) ?? found[0] ?? features[0];
}

function list() {
  const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const whole = (f) => wanted.length === 1 && /^f?\d+$/.test(wanted[0]) && f.id === Number(wanted[0].replace("f", ""));
  found = features.filter((f) => wanted.every((word) => texts.get(f).includes(word)));
  found.sort(COMPARE[sort.value] ?? descending(sort.value));
  found.sort((a, b) => whole(b) - whole(a));
  count.textContent = found.length === features.length ? "" : `${found.length} of ${features.length}`;
  draw();
}

function draw() {
  const key = ["density", "max", "accuracy"].includes(sort.value) ? sort.value : "confidence";
  const now = chosen(), focused = rows.contains(document.activeElement);
  value.textContent = `right: ${key}`;
  rows.replaceChildren(...found.slice(0, limit).map((f) => {
    const link = element("a", null, { href: `#f${f.id}` });
    if (f === now) link.setAttribute("aria-current", "true");
    into(link, element("span", `f${f.id}`, { class: "id" }),
      element("span", f.label ?? f.status, { class: f.label === null ? "none" : "label" }),
      element("span", f.shown[key] ?? "", { class: "value", title: key }));
    return into(document.createElement("li"), link);
  }));
  more.hidden = found.length <= limit;
  if (focused) rows.querySelector("[aria-current]")?.focus();
}

function excerpt([tokens, fired, peak, place], largest) {
  const line = element("p");
  if (place) into(line, element("span", place, { class: "place" }));
  const at = new Map(fired);
  tokens.forEach((word, i) => {
    const activation = at.get(i) ?? 0;
    const token = element("span", shown(strings[word]), { class: i === peak ? "token peak" : "token", title: activation });
    const strength = Math.min(1, 0.08 + 0.72 * activation / largest);
    if (activation > 0) token.style.backgroundColor = `rgb(43 120 208 / ${strength})`;
    into(line, token);
  });
  return line;
}

function table(title, head, lines, kind) {
  if (!lines.length) return null;
  const filled = head.map((_, i) => i).filter((i) => i === 0 || lines.some((cells) => cells[i] !== "" && cells[i] !== null));
  head = filled.map((i) => head[i]);
  lines = lines.map((cells) => filled.map((i) => cells[i]));
  const made = element("table", null, { class: kind });
  const top = into(document.createElement("tr"), ...head.map((name, i) => element("th", name, { scope: "col", class: i ? "number" : "" })));
  into(made, element("caption", title), into(document.createElement("thead"), top),
    into(document.createElement("tbody"), ...lines.map((cells) =>
      into(document.createElement("tr"), ...cells.map((cell, i) => i ? element("td", cell, { class: "number" }) : element("th", cell, { scope: "row" }))))));
  return made;
}

function histogram(feature) {
  if (!feature.counts.length) return null;
  const space = "http://www.w3.org/2000/svg", most = Math.max(...feature.counts), width = 100 / feature.counts.length;
  const alt = `Histogram of activations from 0 to ${feature.shown.max}, in ${feature.counts.length} parts: ${feature.counts.join(", ")}.`;
  const svg = document.createElementNS(space, "svg");
  for (const [key, value] of Object.entries({ class: "histogram", viewBox: "0 0 100 60", preserveAspectRatio: "none", role: "img", "aria-label": alt }))
    svg.setAttribute(key, value);
  feature.counts.forEach((many, i) => {
    const height = many ? Math.max(0.8, 58 * Math.log1p(many) / Math.log1p(most)) : 0;
    const bar = document.createElementNS(space, "rect"), title = document.createElementNS(space, "title");
    for (const [key, value] of Object.entries({ x: i * width + 0.15, y: 60 - height, width: width - 0.3, height })) bar.setAttribute(key, value);
    const [low, high] = [i, i + 1].map((edge) => Number((feature.max * edge / feature.counts.length).toPrecision(3)));
    title.textContent = `${low} to ${high}: ${many} tokens`;
    bar.append(title);
    svg.append(bar);
  });
  const ends = into(element("div", null, { class: "ends" }), element("span", "0"), element("span", "count, logarithmic"), element("span", feature.shown.max));
  return into(document.createElement("div"), element("h3", "Activations"), svg, ends);
}

function group([title, lines], largest) {
  if (!lines.length) return [];
  return [element("h3", title), into(element("div", null, { class: "texts" }), ...lines.map((line) => excerpt(line, largest)))];
}

function steering(feature) {
  const found = feature.steering;
  if (!found.length) return null;
  const start = Math.max(0, found.findIndex(([strength]) => strength === 0));
  const label = element("label", "Strength added: ");
  const slider = element("input", null, { type: "range", min: 0, max: found.length - 1, step: 1, value: start, "aria-label": "strength of steering" });
  const strength = element("output"), text = element("p", null, { class: "continuation" });
  const set = () => {
    const [amount, continuation] = found[slider.value];
    strength.textContent = amount === 0 ? "0, as the model goes on" : String(amount).replace("-", "−");
    slider.setAttribute("aria-valuetext", strength.textContent);
    text.replaceChildren(element("span", feature.prompt, { class: "prompt" }), element("span", continuation));
  };
  slider.addEventListener("input", set);
  set();
  return into(element("section", null, { class: "steering" }), element("h3", "Steering"), into(label, slider, strength), text);
}

function show() {
  const f = chosen();
  if (!f) return;
  const numbers = into(element("dl", null, { class: "numbers" }), ...f.numbers.map(([name, value]) =>
    into(document.createElement("div"), element("dt", name), element("dd", value))));
  const weights = (title, given, unit) => table(title, ["token", unit], given.map(([string, weight]) => [shown(strings[string]), String(weight).replace("-", "−")]), "weights");
  const tested = f.sensitivity || f.sensitivityDetails;
  const similar = f.neighbours.map((id) => byId.has(id) ? element("a", `f${id} ${byId.get(id).label ?? ""}`, { href: `#f${id}` }) : element("span", `f${id} `));
  article.replaceChildren();
  into(article,
    into(element("h2"), element("span", `f${f.id} `, { class: "id" }), element("span", f.label ?? f.status)),
    f.description && element("p", f.description),
    f.facts.length && element("p", f.facts.map(([name, value]) => `${name}: ${value}`).join(" · "), { class: "soft small" }),
    numbers,
    f.confidence !== null && element("p", EXPLAINED, { class: "soft small" }),
    ...f.examples.slice(0, 1).flatMap(([title, lines]) => group([title, lines.slice(0, FIRST)], f.max || 1)),
    steering(f),
    f.report && into(element("p"), element("a", `f${f.id} in the report`, { href: f.report })),
    similar.length && into(element("p", null, { class: "neighbours" }), element("b", "Similar directions: "), ...similar),
    table("Label against held-out text", ["score", "balanced accuracy", "interval", "AUROC"], f.accuracies, ""),
    tested && into(element("p"), element("b", `Sensitivity: ${f.sensitivity || "not decided"}. `), element("span", f.sensitivityDetails)),
    histogram(f),
    into(element("div", null, { class: "columns" }),
      weights("Fires at", f.tokens, "share"), weights("Raises the logit of", f.promoted, "logits"), weights("Lowers the logit of", f.suppressed, "logits")),
    ...f.examples.slice(0, 1).flatMap(([, lines]) => group(["Strong ones after these", lines.slice(FIRST)], f.max || 1)),
    ...f.examples.slice(1).flatMap((each) => group(each, f.max || 1)));
  document.title = `f${f.id} ${f.label ?? f.status}`;
  draw();
}

search.addEventListener("input", () => { limit = PAGE; list(); });
sort.addEventListener("change", list);
more.addEventListener("click", () => { limit += PAGE; draw(); });
addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  const typing = event.target === search || event.target === sort;
  if (event.key === "/" && !typing) { search.focus(); event.preventDefault(); return; }
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.target === sort || !event.target.closest(".list") || !found.length) return;
  const at = found.indexOf(chosen()) + (event.target === search && step > 0 && !found.includes(chosen()) ? 1 : step);
  const next = found[Math.max(0, Math.min(found.length - 1, at))];
  if (found.indexOf(next) >= limit) limit += PAGE;
  location.hash = `#f${next.id}`;
  show();
  rows.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  event.preventDefault();
});
list();
show();
