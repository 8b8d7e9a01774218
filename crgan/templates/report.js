"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = (root) => JSON.parse(root.querySelector("script").textContent);
const signed = (value, digits = 2) => value.toFixed(digits).replace("-", "−");

function element(name, text = "", children = []) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
}

// The traversals of a run. A sheet holds those around one base image: rows are codes, columns values.
async function explorer(root) {
  const { values, columns } = data(root);
  const sheets = all(".sheet", root), sliders = all("input[type=range]", root), outputs = all("output", root);
  const image = root.querySelector(".image"), strips = all(".strip canvas", root), play = root.querySelector(".play");
  await Promise.all(sheets.map((sheet) => sheet.decode()));
  const width = sheets[0].naturalWidth / values.length, height = sheets[0].naturalHeight / sliders.length;
  let base = 0, moving = 0, timer = null;

  function draw(canvas, sheet, code, column, x = 0) {
    const from = [column * width, code * height, width, height];
    canvas.getContext("2d").drawImage(sheets[sheet], ...from, x, 0, width, height);
  }
  function move(code, column) {
    moving = code;
    sliders.forEach((slider, k) => {
      const at = k === code ? column : columns[base][k];
      slider.value = at;
      outputs[k].textContent = signed(values[at]);
      slider.setAttribute("aria-valuetext", `code ${k + 1} at ${signed(values[at])}`);
    });
    draw(image, base, code, column);
    const text = root.querySelector(".state").textContent = `c${code + 1} = ${signed(values[column])}`;
    image.setAttribute("aria-label", `image generated from base image ${base + 1} with ${text}`);
  }
  function choose(number) {
    base = number;
    strips.forEach((strip, k) => values.forEach((_, v) => draw(strip, base, k, v, v * (width + gap) + gap / 2)));
    move(moving, columns[base][moving]);
  }
  function pause() {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶ Play";
  }
  function start() {  // each code goes to the end, to the start and back to its own value, then the next one does
    const last = values.length - 1;
    let at = columns[base][moving], direction = 1, turns = 0;
    play.textContent = "❚❚ Pause";
    timer = setInterval(() => {
      at += direction;
      if (at < 0 || at > last) {
        direction = -direction, turns += 1, at += 2 * direction;
      }
      if (turns === 2 && at === columns[base][moving]) {
        moving = (moving + 1) % sliders.length, at = columns[base][moving], direction = 1, turns = 0;
      }
      move(moving, at);
    }, 110);
  }

  const gap = 2 * Math.ceil(width / 32);
  root.style.setProperty("--n", values.length);
  root.style.setProperty("--ratio", height / (width + gap));
  Object.assign(image, { width, height });
  strips.forEach((strip) => Object.assign(strip, { width: values.length * (width + gap), height }));
  all("fieldset canvas", root).forEach((canvas, sheet) => {
    Object.assign(canvas, { width, height });
    draw(canvas, sheet, 0, columns[sheet][0]);
  });
  all("[name=base]", root).forEach((input) => input.addEventListener("change", () => choose(+input.value)));
  sliders.forEach((slider, k) => slider.addEventListener("input", () => { pause(); move(k, +slider.value); }));
  play.addEventListener("click", () => (timer === null ? start() : pause()));
  root.querySelector(".grid").addEventListener("change", ({ target }) => root.classList.toggle("plain", !target.checked));
  choose(0);
  root.dataset.ready = "";
}

// The similarity matrix: hover, focus and arrow keys show the scores and the votes of a pair.
function matrix(root) {
  const { names, pairs } = data(root), panel = root.querySelector(".pair");
  const cells = all("tbody tr", root).map((row) => all("td", row));

  function table(i, j) {
    const { score, votes: counts } = pairs[`${i},${j}`] ?? {};
    const made = [element("p", `Encoder of ${names[i]} on images of ${names[j]}: ${score?.toFixed(3) ?? "not measured"}`)];
    if (counts) {
      const total = Math.max(1, ...counts.flat());
      const head = element("tr", "", ["", ...counts[0].map((_, f) => `c${f + 1}`)].map((text) => element("th", text)));
      const body = counts.map((row, k) => element("tr", "", [
        element("th", k < counts.length - 1 ? `c${k + 1}` : "none"),
        ...row.map((count) => {
          const cell = element("td", count);
          cell.style.setProperty("--s", count / total);
          return cell;
        }),
      ]));
      const box = element("div", "", [element("table", "", [head, ...body])]);
      box.className = "scroll";
      made.push(box);
    }
    return made;
  }
  function show(cell) {
    const i = cell.parentNode.rowIndex - 1, j = cell.cellIndex - 1;
    const head = element("b", i === j ? `${names[i]} with itself` : `${names[i]} and ${names[j]}`);
    panel.replaceChildren(head, ...table(i, j), ...(i === j ? [] : table(j, i)));
  }
  for (const event of ["mouseover", "focusin"]) {
    root.querySelector("tbody").addEventListener(event, ({ target }) => target.matches("td") && show(target));
  }
  show(cells[0][Math.min(1, names.length - 1)]);
  root.querySelector("tbody").addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    const from = event.target, to = cells[from.parentNode.rowIndex - 1 + down]?.[from.cellIndex - 1 + right];
    if (to) {
      event.preventDefault();
      from.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    }
  });
}

function sortable(table) {
  const heads = all("thead th", table);
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  heads.filter((head) => head.textContent).forEach((head) => {
    const column = head.cellIndex;
    const button = element("button", head.textContent);
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      table.tBodies[0].append(...all("tbody tr", table).sort((a, b) => sign * compare(key(a, column), key(b, column))));
    });
  });
}

const compare = (a, b) => (isNaN(a - b) ? a.localeCompare(b) : a - b);

all(".explorer").forEach(explorer);
all(".matrix").forEach(matrix);
all("table.sortable").forEach(sortable);
