"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// the table: chosen by organ, model and attack, sorted by a column
const rows = all("#runs tbody tr");
const cellValue = (row, column) => {
  const { value } = row.cells[column].dataset;
  return value === undefined ? row.cells[column].textContent.trim() : Number(value);
};
function compare(one, other) {
  if (typeof one === "string") return one.localeCompare(other, undefined, { numeric: true });
  return Number.isNaN(one) - Number.isNaN(other) || one - other;
}
function sortBy(head) {
  const descending = head.getAttribute("aria-sort") === "ascending";
  all("#runs thead th").forEach((each) => each.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const column = head.cellIndex;
  const isLast = (row) => Number.isNaN(cellValue(row, column)); // what has no number stays at the end
  rows.sort((a, b) => isLast(a) - isLast(b) || compare(cellValue(a, column), cellValue(b, column)) * (descending ? -1 : 1));
  $("runs").tBodies[0].append(...rows);
}
function choose() {
  const chosen = ["organ", "model", "attack"].map((name) => [name, $(name).value]);
  rows.forEach((row) => { row.hidden = chosen.some(([name, value]) => value !== "" && row.dataset[name] !== value); });
  const shown = rows.filter((row) => !row.hidden).length;
  $("count").textContent = `${shown} of ${rows.length} rows`;
  const overall = $("organ").value === "" || $("organ").value === "0";
  const heads = all("#runs thead th");
  heads.forEach((head, column) => {
    if (page.overall.includes(head.dataset.name)) {
      head.hidden = !overall;
      rows.forEach((row) => { row.cells[column].hidden = !overall; });
    }
  });
  fit();
}
// columns that say less are folded away where the screen is too narrow for all
const FOLDS = ["fold-least", "fold-lesser", "fold-narrow"];
const frame = $("runs").parentElement, columns = $("columns");
function fit() {
  frame.classList.remove(...FOLDS);
  frame.classList.toggle("all-organs", $("organ").value === "");
  const isWide = () => frame.scrollWidth > frame.clientWidth + 1;
  columns.hidden = !isWide();
  if (columns.querySelector("input").checked) return;
  FOLDS.forEach((fold) => { if (isWide()) frame.classList.add(fold); });
}
columns.addEventListener("change", fit);
addEventListener("resize", fit);
all("#runs thead th").forEach((head) => head.querySelector("button").addEventListener("click", () => sortBy(head)));

// the charts: drawn one after the other, and again when another model, attack or run is chosen
const worstFirst = (lines) => [...lines].sort((a, b) => a.least - b.least);
function chosenLines(points) {
  const lines = new Map();
  points.filter((point) => point.organ === page.organs[0]).forEach((point) => {
    const key = JSON.stringify([point.model, point.line]);
    const line = lines.get(key) || { key, model: point.model, role: point.role, attack: page.runs[point.run].attack, least: 1, line: point.line };
    if (point.adv !== null) line.least = Math.min(line.least, point.adv);
    lines.set(key, line);
  });
  const model = $("model").value, attack = $("attack").value;
  let kept = [...lines.values()].filter((line) => model === "" || line.model === page.models[model]);
  if (attack !== "") return kept.filter((line) => line.attack === page.attacks[attack]);
  const attacks = kept.filter((line) => line.role === "attack");
  kept = worstFirst(attacks.length ? attacks : kept);
  return kept.filter((line, i) => kept.findIndex((other) => other.model === line.model) === i);
}
function curvePoints(panel, organ) {
  const points = page.panels[panel].points;
  const keys = new Set(chosenLines(points).map((line) => line.key));
  const model = $("model").value;
  return points
    .filter((point) => point.organ === page.organs[organ] && (model === "" || point.model === page.models[model]))
    .map((point) => ({ ...point, chosen: keys.has(JSON.stringify([point.model, point.line])) }));
}
const patientsOf = (organ) => {
  const places = page.each.runs[$("run").value][page.organs[organ]];
  if (!places) return [];
  const [clean, attacked] = places.map((place) => page.each.lists[place]);
  return page.each.patients.map((patient, i) => ({ patient, clean: clean[i], attacked: attacked[i] })).filter((one) => one.attacked !== null);
};
function pairedPoints(organ) {
  return patientsOf(organ).flatMap(({ patient, clean, attacked }) =>
    [["clean", clean], ["attacked", attacked]].map(([when, dice]) => ({ organ: page.organs[organ], patient, when, dice, change: attacked - clean })));
}
function profilePoints() {
  return page.organs.flatMap((organ, place) => ["clean", "attacked"].flatMap((when) => {
    const values = patientsOf(place).map((one) => one[when]).filter((value) => value !== null).sort((a, b) => a - b);
    if (!values.length) return [];
    const points = values.map((t) => ({ t, share: values.filter((value) => value >= t).length / values.length }));
    const most = values[values.length - 1], end = most < 1 ? [{ t: most, share: 0 }, { t: 1, share: 0 }] : [];
    return [{ t: 0, share: 1 }, ...points, ...end].map((point) => ({ ...point, organ, when }));
  }));
}
const pointsOf = {
  curve: (place) => curvePoints(place.panel, place.organ),
  paired: (place) => pairedPoints(place.organ),
  profile: () => profilePoints(),
  ...Object.fromEntries(["certified", "alarms", "worth"].map((name) => [name, (place) => page.results[place.place].points])),
};
const dark = matchMedia("(prefers-color-scheme: dark)");
const charts = all(".chart");
const drawn = new Map(); // the promise of the view of each chart, so that no chart is drawn twice at a time
function draw(element) {
  const { chart } = element.dataset;
  const view = (drawn.get(element) || Promise.resolve()).then(async (before) => {
    if (before) before.finalize();
    const values = pointsOf[chart](element.dataset);
    element.closest("figure").hidden = !values.length; // an organ that the run does not have
    if (!values.length) return null;
    const spec = { ...page.charts[chart], data: { name: "points", values } };
    const options = { ast: true, actions: false, logLevel: 1, renderer: "svg", tooltip: { theme: dark.matches ? "dark" : "light" } };
    const result = await vegaEmbed(element, spec, options);
    element.querySelector("svg").setAttribute("aria-hidden", "true"); // the element itself says what it shows
    return result;
  });
  drawn.set(element, view);
  return view;
}
const redraw = (...kinds) => charts.filter((element) => drawn.has(element) && kinds.includes(element.dataset.chart)).forEach(draw);
dark.addEventListener("change", () => redraw(...Object.keys(pointsOf)));
addEventListener("load", async () => {
  for (const element of charts) {
    if (!drawn.has(element)) await draw(element);
    await new Promise((resume) => { setTimeout(resume); }); // clicks come first
  }
});

// a line may end between the parts of a long word, as in `breakable` of templates.py
const joint = /(?<=\S[_(,=/:|])(?=[\p{L}'"])|(?<=\S_)(?=\d)/gu;
function write(element, text) {
  const parts = text.replace(/\S{15,}/g, (word) => word.replace(joint, "\u200b")).split("\u200b");
  element.replaceChildren(...parts.flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part])));
}
function nameChosen() {
  if (!$("chosen")) return;
  const several = page.models.length > 1;
  const names = page.panels.flatMap((panel) => chosenLines(panel.points).map((line) => (several ? `${line.model}: ` : "") + line.line));
  write($("chosen"), `Coloured: ${[...new Set(names)].join("; ") || "nothing"}.`);
}
function listPatients() {
  const heads = ["patient", ...page.organs.flatMap((organ) => [`${page.names[organ]}, clean`, "attacked"])];
  const cell = (tag, text, scope) => {
    const element = document.createElement(tag);
    write(element, text);
    if (scope) element.scope = scope; else element.className = "n";
    return element;
  };
  const row = (cells) => { const element = document.createElement("tr"); element.append(...cells); return element; };
  const number = (value) => (value === null || value === undefined ? "-" : value.toFixed(3));
  write($("run-name"), `${$("run").selectedOptions[0].textContent}.`); // also on paper, where nothing is chosen
  const table = $("each"), places = page.each.runs[$("run").value];
  table.tHead.replaceChildren(row(heads.map((head) => cell("th", head, "col"))));
  table.tBodies[0].replaceChildren(...page.each.patients.map((patient, i) => row([
    cell("th", patient, "row"),
    ...page.organs.flatMap((organ) => (places[organ] || [null, null]).map((place) => cell("td", number(place === null ? null : page.each.lists[place][i])))),
  ])));
}
["organ", "model", "attack"].forEach((name) => $(name).addEventListener("change", () => { choose(); nameChosen(); redraw("curve"); }));
$("run").addEventListener("change", () => { listPatients(); redraw("paired", "profile"); });
choose();
nameChosen();
listPatients();

// the pictures: a slice is chosen by the slider; blinking puts the untouched scan in the place of the attacked one
const still = matchMedia("(prefers-reduced-motion: reduce)");
all(".case").forEach((element) => {
  const picture = page.pictures[element.dataset.case];
  const slider = element.querySelector("input[type=range]"), button = element.querySelector(".blink");
  const caption = element.querySelector(".attacked figcaption"), name = caption.textContent;
  let timer = 0, isUntouched = false;
  const show = () => {
    const slice = picture.slices[slider ? slider.value : picture.first];
    const put = (view, from) => {
      const figure = element.querySelector(`.${view}`);
      figure.querySelector("img").src = slice[from];
      [["truth", `truth_${from}`], ["prediction", from]].forEach(([kind, outlines]) => all(`path.${kind}`, figure).forEach((path, i) =>
        path.setAttribute("d", slice.outlines[outlines][page.organs[i + 1]] || "")));
    };
    put("clean", "clean");
    put("attacked", isUntouched ? "clean" : "attacked");
    put("difference", "difference");
    caption.textContent = isUntouched ? "untouched" : name;
    element.querySelector("output").textContent = slice.name;
    if (slider) slider.setAttribute("aria-valuetext", slice.name);
  };
  if (slider) slider.addEventListener("input", show);
  button.addEventListener("click", () => {
    const isPressed = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(isPressed));
    clearInterval(timer);
    isUntouched = isPressed;
    // who asked for less motion sees the other picture until the next press
    if (isPressed && !still.matches) timer = setInterval(() => { isUntouched = !isUntouched; show(); }, 700);
    show();
  });
});
document.documentElement.dataset.ready = "true";
