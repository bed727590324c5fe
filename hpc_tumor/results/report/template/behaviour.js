"use strict";
(() => {
  const root = document.documentElement;
  const number = /[-+−]?\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?/;
  const scale = { k: 1e3, M: 1e6, s: 1, min: 60, h: 3600 };

  // Sort key of a cell: its first number with its unit, else its text; empty cells come last.
  const value = (cell) => {
    const text = cell.textContent.trim();
    if (text === "–" || text === "") return null;
    const found = text.match(number);
    if (!found || cell.classList.contains("left")) return text.toLowerCase();
    const size = parseFloat(found[0].replace(/,/g, "").replace("−", "-"));
    const unit = text.slice(found.index + found[0].length).trim().split(" ")[0];
    const less = text.startsWith("<") ? -1e-9 : 0;
    return size * (scale[unit] || 1) + less;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));

  document.querySelectorAll("table").forEach((table) => {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, index) => {
      head.querySelector("button").addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const next = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        const sign = next === "descending" ? -1 : 1;
        const rows = next
          ? original.map((row) => [value(row.cells[index]), row]).sort(([a], [b]) => {
              if (a === null || b === null) return (a === null) - (b === null);
              return sign * compare(a, b);
            }).map(([, row]) => row)
          : original;
        body.append(...rows);
      });
    });
  });

  document.querySelectorAll("input[data-filters]").forEach((input) => {
    const table = document.getElementById(input.dataset.filters);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  });

  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  document.getElementById("theme").addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; });

  const large = document.getElementById("large");
  document.querySelectorAll(".zoom").forEach((button) => {
    button.addEventListener("click", () => {
      large.querySelector("div").replaceChildren(Object.assign(new Image(), { src: button.firstElementChild.src, alt: button.firstElementChild.alt }));
      large.showModal();
    });
  });
  large.addEventListener("click", () => large.close());

  const contents = document.querySelector("nav details");
  if (innerWidth < 1344) contents.open = false;
  addEventListener("beforeprint", () => document.querySelectorAll("main > section details, .origin").forEach((one) => { one.open = true; }));

  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
    links.get(target.id)?.classList.toggle("here", isIntersecting);
  }), { rootMargin: "-10% 0px -80% 0px" });
  document.querySelectorAll("section[id]").forEach((section) => links.has(section.id) && seen.observe(section));
})();
