"use strict";
// A click on a heading sorts its table by that column; another click turns the order around.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const cells = [...body.rows].map((row) => row.cells[column]);
      const numeric = cells.every((cell) => "value" in cell.dataset);
      const before = heading.getAttribute("aria-sort");
      // Numbers: the largest first.
      const descending = before ? before === "ascending" : numeric;
      const compare = numeric
        ? (a, b) => Number(a.dataset.value) - Number(b.dataset.value)
        : (a, b) => a.textContent.localeCompare(b.textContent);
      cells.sort(descending ? (a, b) => compare(b, a) : compare);
      body.append(...cells.map((cell) => cell.parentElement));
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    });
  });
}
