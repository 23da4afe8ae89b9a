"use strict";
const { study, trials } = "FACTS";
const element = (id) => document.getElementById(id);
const answers = [];
let reader = "";
let shown = 0;

const file = (trial, side) => `${String(trial).padStart(4, "0")}_${side}.png`;

function show(section) {
  for (const id of ["start", "trial", "end"]) element(id).hidden = id !== section;
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
  next();
}

function finish() {
  const text = ["study,reader,trial,answer,seconds", ...answers, ""].join("\n");
  element("save").href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  element("save").download = `answers_${reader}.csv`;
  show("end");
  element("save").focus();
}

element("number").textContent = trials;
element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  reader = element("reader").value;
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
  if (answers.length && element("end").hidden) event.preventDefault();
});
