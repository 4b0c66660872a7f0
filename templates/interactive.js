"use strict";
// Shows the cell that is pointed at or reached by arrow keys. Text goes into the page as text only.
const data = JSON.parse(document.getElementById("data").textContent);
const maps = [...document.querySelectorAll("svg.map")];
const bar = document.querySelector(".readout");
const [tokens, output] = bar.children;
const side = data.side;
let current = null;

function reading(panel, row, column) {
  const place = `${panel.columnAxis} ${data.labels[panel.columns][column]}, ${panel.rowAxis} ${data.labels[panel.rows][row]}`;
  const detail = panel.details ? panel.details[row][column] : "";
  const value = panel.values[row].split(" ")[column];
  return `${panel.within ? panel.within + ", " : ""}${place}: ${value}${detail ? ` (${detail})` : ""}`;
}

function strength(panel, row, column) {
  const value = Number(panel.values[row].split(" ")[column].replace("−", "-").replaceAll(",", ""));
  return Number.isFinite(value) ? Math.max(-1, Math.min(1, value / panel.limit)) : 0;
}

function square(svg, kind, x, y, width, height) {
  let mark = svg.querySelector("." + kind);
  if (!mark) {
    mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    mark.setAttribute("class", kind);
    svg.append(mark);
  }
  for (const [name, value] of Object.entries({ x, y, width, height })) mark.setAttribute(name, value);
}

// The tokens, coloured by what they have to do with the cell: its row of sources, or its column of positions.
function colourWords(panel, row, column) {
  const across = panel.tokens === "columns";
  const labels = panel.tokens ? data.labels[across ? panel.columns : panel.rows] : [];
  tokens.replaceChildren(...labels.map((label, i) => {
    const word = document.createElement("span");
    const share = across ? strength(panel, row, i) : strength(panel, i, column);
    word.textContent = label.replace(/^\d+ (['"])(.*)\1$/s, "$2");
    word.style.backgroundColor = share < 0 ? `rgb(216 102 44 / ${-share})` : `rgb(43 120 208 / ${share})`;
    if (i === (across ? column : row)) word.className = "now";
    return word;
  }));
}

function show(i, row, column) {
  const panel = data.panels[i], svg = maps[i], left = Number(svg.dataset.left);
  const height = data.labels[panel.rows].length, width = data.labels[panel.columns].length;
  if (row < 0 || column < 0 || row >= height || column >= width) return;
  if (current && current.i === i && current.row === row && current.column === column) return;
  if (current && current.i !== i) maps[current.i].querySelectorAll(".cross, .here").forEach((mark) => mark.remove());
  current = { i, row, column };
  square(svg, "cross", left, row * side, width * side, side);
  square(svg, "here", left + column * side, row * side, side, side);
  colourWords(panel, row, column);
  output.textContent = reading(panel, row, column);
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

maps.forEach((svg, i) => {
  svg.setAttribute("role", "application");
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    show(i, Math.floor(at.y / side), Math.floor((at.x - Number(svg.dataset.left)) / side));
  });
  svg.addEventListener("focus", () => { if (!current || current.i !== i) show(i, 0, 0); });
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") svg.parentElement.classList.toggle("large");
    else if (STEPS[event.key]) show(i, current.row + STEPS[event.key][0], current.column + STEPS[event.key][1]);
    else return;
    event.preventDefault();
  });
});

const choose = document.querySelector(".choose");
if (choose && maps.length > 4) {
  const input = choose.querySelector("input"), count = choose.querySelector("output");
  choose.hidden = false;
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    maps.forEach((svg, i) => {
      const text = (data.panels[i].within + " " + svg.parentElement.textContent).toLowerCase();
      const keep = wanted.every((word) => text.includes(word));
      svg.parentElement.hidden = !keep;
      left += keep ? 1 : 0;
    });
    count.textContent = `${left} of ${maps.length}`;
  });
}
bar.hidden = maps.length === 0;
