// A bar of chunks from fine to coarse: click, drag, or use the keyboard. Its value is text such as "10-20".
const count = props.cells.length;

function parse(text) {
  const chosen = new Set();
  for (const part of String(text || "").split(",")) {
    const match = part.trim().match(/^(\d+)(?:-(\d+))?$/);
    if (!match) continue;
    const low = Number(match[1]), high = Number(match[2] ?? match[1]);
    for (let chunk = low; chunk <= Math.min(high, count - 1); chunk++) chosen.add(chunk);
  }
  return chosen;
}

function spell(chosen) {
  const sorted = [...chosen].sort((a, b) => a - b), parts = [];
  for (let i = 0; i < sorted.length; ) {
    let j = i;
    while (sorted[j + 1] === sorted[j] + 1) j++;
    parts.push(i === j ? `${sorted[i]}` : `${sorted[i]}-${sorted[j]}`);
    i = j + 1;
  }
  return parts.join(",");
}

function cells() {
  return [...element.querySelectorAll("[data-chunk]")];
}

function paint(chosen) {
  for (const cell of cells()) {
    const on = chosen.has(Number(cell.dataset.chunk));
    cell.classList.toggle("on", on);
    cell.setAttribute("aria-pressed", on ? "true" : "false");
  }
}

function commit(chosen) {
  const text = spell(chosen);
  if (!text || text === props.value) return paint(parse(props.value));
  props.value = text;
  paint(chosen);
  trigger("input");
}

function range(from, to) {
  const chosen = new Set();
  for (let chunk = Math.min(from, to); chunk <= Math.max(from, to); chunk++) chosen.add(chunk);
  return chosen;
}

let anchor = null, kept = new Set(), dragged = null, extending = false;

function cellAt(event) {
  const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-chunk]");
  return cell && element.contains(cell) ? Number(cell.dataset.chunk) : null;
}

element.addEventListener("pointerdown", (event) => {
  const chunk = cellAt(event);
  if (chunk === null) return;
  event.preventDefault();
  cells()[chunk].focus();
  if (!(event.shiftKey && anchor !== null)) anchor = chunk;
  kept = event.ctrlKey || event.metaKey ? parse(props.value) : new Set();
  if (kept.has(chunk) && anchor === chunk) {
    kept.delete(chunk);
    dragged = kept;
  } else {
    dragged = new Set([...kept, ...range(anchor, chunk)]);
  }
  paint(dragged);
});

window.addEventListener("pointermove", (event) => {
  if (dragged === null) return;
  const chunk = cellAt(event);
  if (chunk === null) return;
  dragged = new Set([...kept, ...range(anchor, chunk)]);
  paint(dragged);
});

window.addEventListener("pointerup", () => {
  if (dragged === null) return;
  const chosen = dragged;
  dragged = null;
  commit(chosen);
});

element.addEventListener("keydown", (event) => {
  const cell = event.target.closest("[data-chunk]");
  if (!cell) return;
  const chunk = Number(cell.dataset.chunk);
  const to = { ArrowRight: chunk + 1, ArrowLeft: chunk - 1, Home: 0, End: count - 1 }[event.key];
  if (to !== undefined && to >= 0 && to < count) {
    event.preventDefault();
    if (event.shiftKey) {
      if (!extending) anchor = chunk;
      extending = true;
      commit(range(anchor, to));
    } else {
      extending = false;
    }
    cells()[to].focus();
  } else if (event.key === " " || event.key === "Enter") {
    event.preventDefault();
    const chosen = parse(props.value);
    chosen.has(chunk) ? chosen.delete(chunk) : chosen.add(chunk);
    anchor = chunk;
    commit(chosen);
    cells()[chunk].focus();
  }
});

element.addEventListener("keyup", (event) => {
  if (event.key === "Shift") extending = false;
});
