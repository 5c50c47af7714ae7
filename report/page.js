"use strict";
// Tables can be sorted by a click on a heading and searched; without scripts they are
// as they were written.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((th, column) => {
    th.querySelector("button").addEventListener("click", () => {
      const down = th.classList.contains("n") ? th.ariaSort !== "descending" : th.ariaSort === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.ariaSort = "none";
      th.ariaSort = down ? "descending" : "ascending";
      const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const order = (x, y) => {
        const a = key(x), b = key(y), m = Number(a), n = Number(b);
        const less = Number.isNaN(m) || Number.isNaN(n) ? a.localeCompare(b, "en", { numeric: true }) : m - n;
        return down ? -less : less;
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
for (const box of document.querySelectorAll("input[type=search]")) {
  box.hidden = false;
  box.addEventListener("input", () => {
    const want = box.value.toLowerCase();
    for (const row of document.getElementById(box.dataset.table).tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(want);
    }
  });
}
