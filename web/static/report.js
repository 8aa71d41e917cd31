// The report's table: sorted, filtered and paged in the browser; without this all rows are there.
"use strict";
(() => {
  const [body, ...more] = document.querySelectorAll("#rows tbody");
  const rows = [...document.querySelectorAll("#rows tbody tr")].map((row) => ({
    row,
    verdict: row.dataset.verdict,
    score: parseFloat(row.dataset.score),
    probability: parseFloat(row.dataset.probability),
    pixels: parseFloat(row.dataset.pixels),
    path: row.querySelector(".path").textContent,
    text: (row.querySelector(".path").textContent + " " + row.querySelector(".remarks").textContent).toLowerCase(),
  }));
  const by = (id) => document.getElementById(id);
  const form = by("filter"), find = by("find"), many = by("many");
  let order = { name: "score", down: true }, page = 0;

  function compare(a, b) {
    const [x, y] = [a[order.name], b[order.name]];
    if (typeof x === "string") return (order.down ? -1 : 1) * x.localeCompare(y);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // none last
    return (order.down ? -1 : 1) * (x - y);
  }
  function show() {
    const verdicts = new Set([...form.querySelectorAll("[name=verdict]:checked")].map((b) => b.value));
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows
      .filter((r) => (verdicts.has(r.verdict) || r.verdict === "none") && words.every((w) => r.text.includes(w)))
      .sort(compare);
    const size = parseInt(many.value), pages = Math.max(1, Math.ceil(found.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    body.replaceChildren(...found.slice(page * size, (page + 1) * size).map((r) => r.row));
    by("shown").textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} pictures`;
    by("pages").hidden = pages < 2;
    by("place").textContent = `page ${page + 1} of ${pages}`;
    by("before").disabled = page === 0;
    by("after").disabled = page === pages - 1;
    for (const head of document.querySelectorAll("th[data-by]")) {
      head.setAttribute("aria-sort", head.dataset.by !== order.name ? "none" : order.down ? "descending" : "ascending");
    }
  }
  for (const head of document.querySelectorAll("th[data-by]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const name = head.dataset.by;
      order = { name, down: order.name === name ? !order.down : name !== "path" && name !== "verdict" };
      page = 0;
      show();
    });
  }
  form.addEventListener("input", () => { page = 0; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  by("before").addEventListener("click", () => { page -= 1; show(); });
  by("after").addEventListener("click", () => { page += 1; show(); });
  for (const one of more) one.remove();
  form.hidden = false;
  show();
})();
