// Clicking a column's head sorts its table by it, and the other way at the second click.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = text === "" || text === "–" ? NaN : Number(text);
    return { text, number };
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      const empty = ({ text, number }) => text === "" || text === "–";
      rows.sort(([a], [b]) => {
        if (empty(a) || empty(b)) return empty(a) - empty(b); // those without a value come last
        const order =
          isNaN(a.number) || isNaN(b.number)
            ? a.text.localeCompare(b.text, undefined, { numeric: true })
            : a.number - b.number;
        return down ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
