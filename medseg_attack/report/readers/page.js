"use strict";
const { study, trials, pauses } = "FACTS";
const element = (id) => document.getElementById(id);
const answers = [];
let reader = "";
let shown = 0;
let stored = false;

const file = (trial, side) => `${String(trial).padStart(4, "0")}_${side}.png`;

// answers stay in this browser: the same reader goes on here after the page was closed
// a browser that stores nothing throws: then the first pair is the next one, and closing the page asks first
async function remember() {
  const stores = async () => localStorage.setItem(`${study}/${reader}`, JSON.stringify(answers));
  await stores().then(() => { stored = true; }, () => { stored = false; });
}

async function recall() {
  const reads = async () => JSON.parse(localStorage.getItem(`${study}/${reader}`) ?? "[]");
  const known = await reads().then((lines) => lines, () => []);
  if (known.length <= trials && known.every((line) => typeof line === "string")) answers.push(...known);
}

function show(section) {
  for (const id of ["start", "trial", "pause", "end"]) element(id).hidden = id !== section;
}

// the next pair appears when both of its pictures are there: no answer to a picture that was not seen
async function next() {
  const trial = answers.length + 1;
  if (trial > trials) return finish();
  shown = 0;
  for (const side of ["left", "right"]) element(side).firstElementChild.src = file(trial, side);
  await Promise.all(["left", "right"].map((side) => element(side).firstElementChild.decode()));
  element("progress").textContent = `${trial} of ${trials}.`;
  shown = performance.now();
}

function answer(side) {
  if (element("trial").hidden || !shown) return;
  answers.push([study, reader, answers.length + 1, side, ((performance.now() - shown) / 1000).toFixed(2)].join(","));
  remember();
  if (!pauses.includes(answers.length)) return next();
  element("block").textContent = `${pauses.indexOf(answers.length) + 1} of ${pauses.length + 1}`;
  show("pause");
  element("continue").focus();
}

function finish() {
  const text = ["study,reader,trial,answer,seconds", ...answers, ""].join("\n");
  element("save").href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  element("save").download = `answers_${reader}.csv`;
  show("end");
  element("save").focus();
}

element("number").textContent = trials;
element("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  reader = element("reader").value;
  await recall();
  show("trial");
  next();
});
element("continue").addEventListener("click", () => {
  show("trial");
  next();
});
for (const side of ["left", "right"]) element(side).addEventListener("click", () => answer(side));
document.addEventListener("keydown", (event) => {
  if (event.repeat) return;
  if (event.key === "ArrowLeft") answer("left");
  if (event.key === "ArrowRight") answer("right");
});
window.addEventListener("beforeunload", (event) => {
  if (answers.length && !stored && element("end").hidden) event.preventDefault();
});
