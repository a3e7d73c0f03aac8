// Tables of class "sortable": a click on a heading sorts the first body's rows by that column,
// a second one the other way round. Numbers stand before all else, so that missing values ("–") and
// rows without that column (failed cases) are always last.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.querySelectorAll("thead th[data-column]")];
  const body = table.tBodies[0];
  const sort = (heading) => {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    const column = Number(heading.dataset.column);
    const rows = [...body.rows].map((row) => {
      const cell = row.cells[column];
      const text = cell && !cell.classList.contains("reason") ? cell.textContent.trim() : "";
      const number = column && text ? Number(text) : NaN; // the first column, names, is text
      return { row, text, number };
    });
    const compare = (a, b) => {
      const kind = Number.isNaN(a.number) - Number.isNaN(b.number);
      if (kind) return kind;
      const order = Number.isNaN(a.number)
        ? a.text.localeCompare(b.text, "en", { numeric: true })
        : a.number - b.number;
      return descending ? -order : order;
    };
    body.append(...rows.sort(compare).map((entry) => entry.row));
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  for (const heading of headings) {
    heading.querySelector("button").addEventListener("click", () => sort(heading));
  }
}
// What is folded away on the screen is printed too.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
