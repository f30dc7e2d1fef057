"""Hold the style and the script of a report's page."""

# Colors of light and dark are told apart as one by those who see less color: blue and orange.
STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1d2430; --quiet: #5b6675; --line: #dfe3e9;
  --right: #1f6fb2; --wrong: #c2571a; --fill: #cfe2f3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1b212a; --ink: #e6eaf0; --quiet: #9aa6b5; --line: #323b47;
    --right: #6db3f0; --wrong: #f0975a; --fill: #23405c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 4px; }
p { margin: 0 0 12px; }
.quiet { color: var(--quiet); }
.how { max-width: 70ch; margin-bottom: 20px; }
section, .figure {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
section { padding: 16px 18px; margin-top: 16px; }
section > p { max-width: 75ch; font-size: 0.9rem; }
.figures { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.figure { padding: 12px 14px; }
.figure strong { display: block; font-size: 1.7rem; line-height: 1.3; font-weight: 650; }
.figure .name { color: var(--quiet); font-size: 0.82rem; }
.figure .more { font-size: 0.85rem; }
.wide { grid-column: span 2; }
.scale { position: relative; height: 10px; margin: 10px 0 6px; background: var(--line);
  border-radius: 5px; }
.scale span { position: absolute; top: 0; bottom: 0; background: var(--right); opacity: 0.45;
  border-radius: 5px; }
.scale i { position: absolute; top: -3px; width: 4px; height: 16px; margin-left: -2px;
  background: var(--right); border-radius: 2px; }
.pair { display: grid; gap: 0 16px; grid-template-columns: repeat(auto-fit, minmax(310px, 1fr)); }
.pair section { min-width: 0; }
.pair th button, .pair td { padding-left: 5px; padding-right: 5px; }
.scroll { overflow: auto; max-height: 34rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th { position: sticky; top: 0; background: var(--card); text-align: left; font-weight: 600;
  box-shadow: inset 0 -1px var(--line); padding: 0; white-space: nowrap; }
th > span, th button { display: block; width: 100%; padding: 6px 8px; }
th button { font: inherit; color: inherit; text-align: inherit; background: none; border: 0;
  cursor: pointer; }
th button::after { content: " \\2195"; color: var(--quiet); }
th[aria-sort=ascending] button::after { content: " \\2191"; color: inherit; }
th[aria-sort=descending] button::after { content: " \\2193"; color: inherit; }
td { padding: 5px 8px; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
td:not(.number) { min-width: 6.5em; }
tbody tr:first-child td { border-top: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.bar { background: linear-gradient(to right, var(--fill) var(--share), transparent 0)
  no-repeat 0 50% / 100% 74%; }
svg { display: block; width: 100%; max-width: 460px; height: auto; margin: 0 auto; }
svg text { fill: var(--quiet); font-size: 12px; }
svg .axis { stroke: var(--line); }
svg .ideal { stroke: var(--quiet); stroke-dasharray: 4 4; }
svg .whisker { stroke: var(--right); stroke-width: 1.5; opacity: 0.6; }
svg .dot { fill: var(--right); }
svg .count { fill: var(--fill); }
.images { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr));
  padding: 0; margin: 0; list-style: none; }
.images li { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; min-width: 0; }
.images img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain;
  background: var(--page); }
.images li > div { padding: 8px 10px 10px; font-size: 0.88rem; overflow-wrap: anywhere; }
.images .file { color: var(--quiet); font-size: 0.75rem; line-height: 1.3; margin-top: 6px; }
.said { display: flex; flex-wrap: wrap; gap: 0 8px; justify-content: space-between;
  align-items: baseline; }
.said i { flex-basis: 100%; color: var(--quiet); font-size: 0.75rem; font-style: normal; }
.said b { flex: 1; min-width: 0; }
.said b { font-weight: 600; }
.said span { white-space: nowrap; }
.wrong b, .wrong span { color: var(--wrong); }
footer { margin-top: 20px; font-size: 0.85rem; color: var(--quiet); }
@media (max-width: 480px) {
  main { padding: 16px 10px 32px; }
  section { padding: 14px 12px; }
  .images { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .figure { padding: 10px 12px; }
  .figure strong { font-size: 1.4rem; }
  th > span, th button, td { padding-left: 5px; padding-right: 5px; }
  table { font-size: 0.85rem; }
}
@media print { .scroll { max-height: none; } section { break-inside: avoid; } }
"""

# A click on the head of a column sorts the rows by it, numbers from high to low at first.
SCRIPT = """\
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex, isNumber = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const first = isNumber ? "descending" : "ascending";
    const second = isNumber ? "ascending" : "descending";
    const order = before === first ? second : first;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const value = row => {
      const cell = row.cells[column];
      return isNumber ? Number(cell.dataset.value) : cell.textContent;
    };
    const compare = (a, b) => isNumber ? value(a) - value(b) : value(a).localeCompare(value(b));
    const sign = order === "ascending" ? 1 : -1;
    body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
  });
}
"""
