"""Hold the style and the script of a contact sheet, beside the look of all pages."""

STYLE = """\
main { max-width: 1480px; }
h2 { margin-bottom: 10px; }
.keys { font-size: 0.85rem; margin-bottom: 16px; }
kbd { font: inherit; font-size: 0.8rem; padding: 0 5px; border: 1px solid var(--line);
  border-bottom-width: 2px; border-radius: 4px; background: var(--card); color: var(--ink); }
.images { grid-template-columns: repeat(auto-fill, minmax(var(--tile), 1fr)); }
.images li { position: relative; display: flex; flex-direction: column;
  background: var(--card); scroll-margin: 16px 0; }
.images li:focus-within { outline: 3px solid var(--right); outline-offset: 1px; }
.images a { flex: 1; color: inherit; text-decoration: none; outline: none; }
.images img, .missing { display: block; width: 100%; aspect-ratio: 5 / 4; object-fit: scale-down;
  background: var(--page); }
.missing { display: grid; place-content: center; padding: 12px; overflow: hidden;
  text-align: center; font-size: 0.8rem; color: var(--wrong); overflow-wrap: anywhere; }
.images .file { display: block; padding: 7px 9px 0; font-size: 0.8rem; overflow-wrap: anywhere; }
.images a:hover .file { color: var(--ink); text-decoration: underline; }
.facts { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 10px;
  padding: 3px 9px 7px; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
.facts i { font-style: normal; color: var(--quiet); }
.facts .best { color: var(--right); font-weight: 600; }
.images button { position: absolute; top: 6px; right: 6px; padding: 2px 8px; opacity: 0;
  font: inherit; font-size: 0.75rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; cursor: pointer; }
.images li:hover button, .images li:focus-within button { opacity: 1; }
.images button:focus-visible { outline: 2px solid var(--right); }
.copied { position: fixed; left: 50%; bottom: 16px; transform: translateX(-50%); margin: 0;
  max-width: calc(100vw - 32px); padding: 6px 14px; border-radius: 8px; font-size: 0.85rem;
  background: var(--ink); color: var(--page); overflow-wrap: anywhere; }
.copied:empty { display: none; }
@media (pointer: coarse) {
  .keys { display: none; }
  .images button { position: static; align-self: start; margin: 0 9px 9px; padding: 5px 9px;
    opacity: 1; }
}
@media (max-width: 480px) { .images { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media print { .keys, .images button { display: none; } }
"""

# One image at a time can be reached by Tab, so that Tab leads past them; arrows go from image to
# image, up and down to what stands there, over the ends of groups too. A link knows where its file
# is, wherever the page was moved to. Where it does not, and where the path has control characters,
# with which a paste into a shell would run commands, the path is copied as the page spells it.
SCRIPT = """\
const links = [...document.querySelectorAll(".images a")];
const message = document.querySelector(".copied");
let timer;

const reach = (link, isOn) => {
  link.tabIndex = link.closest("li").querySelector("button").tabIndex = isOn ? 0 : -1;
};

let current = links[0];
links.forEach(link => reach(link, link === current));

const choose = link => {
  reach(current, false);
  current = link;
  reach(current, true);
};

const go = link => {
  if (!link) return;
  choose(link);
  link.focus({ preventScroll: true });
  link.closest("li").scrollIntoView({ block: "nearest" });
  if (link === links[0]) scrollTo(0, 0);
};

const rowFrom = step => {
  const box = link => link.closest("li").getBoundingClientRect();
  const own = box(current);
  const beyond = links.map(link => [link, box(link)]).filter(
    ([, other]) => step > 0 ? other.top >= own.bottom : other.bottom <= own.top);
  if (!beyond.length) return null;
  const first = step > 0 ? beyond[0] : beyond[beyond.length - 1];
  const row = beyond.filter(([, other]) => Math.abs(other.top - first[1].top) < 1);
  const gap = ([, other]) => Math.abs(other.left - own.left);
  return row.reduce((best, one) => gap(one) < gap(best) ? one : best)[0];
};

const next = step => links[links.indexOf(current) + step];
const moves = {
  ArrowRight: () => next(1), ArrowLeft: () => next(-1),
  ArrowDown: () => rowFrom(1), ArrowUp: () => rowFrom(-1),
  Home: () => links[0], End: () => links[links.length - 1],
};

const pathOf = link => {
  if (link.protocol !== "file:") return link.title;
  let path = "";
  try {
    path = decodeURIComponent(link.pathname);
  } catch {}
  if (path === "" || /[\\x00-\\x1f\\x7f]/.test(path)) return link.title;
  return /^\\/[A-Za-z]:/.test(path) ? path.slice(1).replaceAll("/", "\\\\") : path;
};

const copyByHand = text => {
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  return isDone;
};

const copy = async link => {
  const path = pathOf(link), focused = document.activeElement;
  let isDone = true;
  try {
    await navigator.clipboard.writeText(path);
  } catch {
    isDone = copyByHand(path);
    focused.focus({ preventScroll: true });
  }
  message.textContent = `${isDone ? "Copied" : "This browser lets no page copy:"} ${path}`;
  clearTimeout(timer);
  timer = setTimeout(() => { message.textContent = ""; }, isDone ? 2500 : 15000);
};

document.addEventListener("focusin", event => {
  const tile = event.target.closest(".images li");
  if (tile) choose(tile.querySelector("a"));
});

document.addEventListener("click", event => {
  if (event.target.matches(".images button")) copy(event.target.closest("li").querySelector("a"));
});

document.addEventListener("keydown", event => {
  if (!current || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  const isInside = document.activeElement.closest(".images") !== null;
  if (!isInside && document.activeElement !== document.body) return;
  if (isInside && event.key === "Escape") document.querySelector("main").focus();
  else if (isInside && (event.key === "c" || event.code === "KeyC")) copy(current);
  else if (event.key in moves) go(isInside ? moves[event.key]() : current);
  else return;
  event.preventDefault();
});
"""
