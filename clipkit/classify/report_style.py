"""Hold the style and the script of a report's page, beside the look of all pages."""

STYLE = """\
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
.images li > div { padding: 8px 10px 10px; font-size: 0.88rem; overflow-wrap: anywhere; }
.images .file { margin-top: 6px; }
.said { display: flex; flex-wrap: wrap; gap: 0 8px; justify-content: space-between;
  align-items: baseline; }
.said i { flex-basis: 100%; color: var(--quiet); font-size: 0.75rem; font-style: normal; }
.said b { flex: 1; min-width: 0; }
.said b { font-weight: 600; }
.said span { white-space: nowrap; }
.wrong b, .wrong span { color: var(--wrong); }
@media (max-width: 480px) {
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; }
  .figure { padding: 10px 12px; }
  .figure strong { font-size: 1.4rem; }
  th > span, th button, td { padding-left: 5px; padding-right: 5px; }
  table { font-size: 0.85rem; }
}
@media print { .scroll { max-height: none; } }
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
