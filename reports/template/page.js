"use strict";
// Tables sort by the button in a column's head; numbers as numbers, empty cells last either way.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      return up ? order : -order;
    });
    body.append(...rows.map(([, row]) => row));
  }));
}

// The claims filter: text, chapter and verdict, all at once; what is chosen stands in the address, after #claims.
const form = document.querySelector("form.filters");
if (form) {
  const names = ["text", "chapter", "verdict"];
  const rows = [...document.querySelectorAll("#claims-table tbody tr")];
  const filter = () => {
    const want = Object.fromEntries(new FormData(form));
    const words = want.text.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(words.every((w) => text.includes(w)) &&
        ["chapter", "verdict"].every((k) => !want[k] || row.dataset[k] === want[k]));
      shown += !row.hidden;
    }
    form.querySelector("output").textContent = shown === rows.length ? `${rows.length} claims` : `${shown} of ${rows.length} claims`;
    document.querySelector("p.none").hidden = shown > 0;
  };
  const remember = () => {
    filter();
    const chosen = names.filter((k) => form.elements[k].value).map((k) => `${k}=${encodeURIComponent(form.elements[k].value)}`);
    history.replaceState(null, "", chosen.length ? `#claims?${chosen.join("&")}` : "#claims");
  };
  const recall = () => {
    if (!location.hash.startsWith("#claims?")) return;
    const given = new URLSearchParams(location.hash.slice("#claims?".length));
    for (const k of names) form.elements[k].value = given.get(k) ?? "";
    filter();
    document.getElementById("claims").scrollIntoView();
  };
  form.addEventListener("input", remember);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(remember));
  for (const button of document.querySelectorAll(".counts button")) button.addEventListener("click", () => {
    for (const k of names) form.elements[k].value = "";
    form.elements.verdict.value = button.dataset.verdict;
    remember();
    document.getElementById("claims").scrollIntoView();
  });
  addEventListener("hashchange", recall);
  filter();
  recall();
}

// A chapter's code: folded, opened one by one or all together; paper shows what the screen shows.
const all = document.getElementById("all-code");
if (all) all.addEventListener("click", () => {
  const open = all.getAttribute("aria-pressed") !== "true";
  all.setAttribute("aria-pressed", open);
  all.textContent = open ? "Hide all code" : "Show all code";
  document.querySelectorAll("details.code").forEach((d) => { d.open = open; });
});

// Formulas: KaTeX stands in the page where there are any; one that it cannot read stays as it was written, marked.
for (const element of document.querySelectorAll(".math")) {
  katex.render(element.textContent, element, { displayMode: element.classList.contains("display"), throwOnError: false });
}
