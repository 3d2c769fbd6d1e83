"use strict";
const find = (id) => document.getElementById(id);
const { points, images } = JSON.parse(find("data").textContent);

// ---- the viewer: one image at one point -------------------------------------------------------------------------

function show(image, point) {
  const shown = images[image];
  const view = shown.views[point];
  find("image").value = image;
  find("point").value = point;
  find("viewer").hidden = !view;
  find("numbers").textContent = view ? view.text : "This image could not be evaluated at this point.";
  for (const row of find("images").tBodies[0].rows)
    row.toggleAttribute("aria-current", +row.dataset.image === image && +row.dataset.point === point);
  if (!view) return;
  place("original", shown.original, `original of ${shown.name}`, shown);
  place("decoded", view.decoded, `reconstruction of ${shown.name}, ${points[point]}`, shown);
  place("bits", view.bits, `map of the bits spent on ${shown.name}, ${points[point]}`, view.map);
  find("top").textContent = `${view.top} bits`;
  find("map-numbers").textContent = view.mapText;
  const [left, top, width, height] = view.box;
  Object.assign(find("outline").style, { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` });
}

function place(id, source, text, size) {
  Object.assign(find(id), { src: source, alt: text, width: size.width, height: size.height });
}

function choose(step = 0) {
  const count = images.length;
  show((+find("image").value + step + count) % count, +find("point").value);
}

function fill(select, texts) {
  texts.forEach((text, index) => select.add(new Option(text, index)));
}

fill(find("image"), images.map((image) => image.name));
fill(find("point"), points);
find("image").addEventListener("change", () => choose());
find("point").addEventListener("change", () => choose());
find("previous").addEventListener("click", () => choose(-1));
find("next").addEventListener("click", () => choose(1));
find("pixels").addEventListener("change", (event) => find("viewer").classList.toggle("pixels", event.target.checked));

// ---- the line between original and reconstruction ---------------------------------------------------------------

const stage = find("stage");
const slider = find("slider");

function divide(percent) {
  slider.value = percent;
  stage.style.setProperty("--at", `${slider.value}%`);
}

function follow(event) {
  const box = stage.getBoundingClientRect();
  divide((100 * (event.clientX - box.left)) / box.width);
}

slider.addEventListener("input", () => divide(slider.value));
stage.addEventListener("pointerdown", (event) => {
  stage.setPointerCapture(event.pointerId);
  follow(event);
});
stage.addEventListener("pointermove", (event) => {
  if (stage.hasPointerCapture(event.pointerId)) follow(event);
});

// ---- the table --------------------------------------------------------------------------------------------------

const table = find("images");
const headings = [...table.tHead.rows[0].cells];
const byName = new Intl.Collator("en", { numeric: true });

function compare(a, b, column, sign) {
  const [first, second] = [a, b].map((row) => row.cells[column].dataset.value);
  if (first === undefined) return byName.compare(a.cells[column].textContent, b.cells[column].textContent) * sign;
  if (first === "" || second === "") return (first === "") - (second === ""); // what has no value comes last
  return (first - second) * sign;
}

function sortBy(column) {
  const ascending = headings[column].getAttribute("aria-sort") !== "ascending";
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  table.tBodies[0].append(...rows.sort((a, b) => compare(a, b, column, ascending ? 1 : -1)));
}

headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => sortBy(column)));
table.tBodies[0].addEventListener("click", (event) => {
  if (!event.target.closest("button")) return;
  const row = event.target.closest("tr");
  show(+row.dataset.image, +row.dataset.point);
  find("viewer-heading").scrollIntoView({ behavior: "smooth" });
});

const first = table.tBodies[0].rows[0];
show(+first.dataset.image, +first.dataset.point);
