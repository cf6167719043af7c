// Files of what is shown: CSV of its numbers, SVG and PNG of its picture.

function save(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function csv(columns, rows) {
  const cell = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    const text = String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns, ...rows.map((row) => columns.map((column) => row[column]))];
  return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
}

async function toPng(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = el("canvas", { width: 2 * image.width, height: 2 * image.height });
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.drawImage(image, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

const escaped = (text) =>
  text.replace(/[&<>"]/g, (letter) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[letter]);

// Text and shades of a part of the page as SVG, line by line where the browser has put them.
function painted(element, ground) {
  const frame = element.getBoundingClientRect();
  const [width, height] = [Math.ceil(element.scrollWidth), Math.ceil(element.scrollHeight)];
  const [left, top] = [frame.left - element.scrollLeft, frame.top - element.scrollTop];
  const parts = [`<rect width="${width}" height="${height}" fill="${ground}"/>`];
  for (const inner of element.querySelectorAll("*")) {
    const style = getComputedStyle(inner);
    const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
    const below = parseFloat(style.borderBottomWidth) > 0 && style.borderBottomStyle !== "none";
    const filled = style.backgroundColor !== "rgba(0, 0, 0, 0)";
    if (!(filled || outlined || below)) continue;
    for (const box of inner.getClientRects()) {
      const [x, y] = [(box.left - left).toFixed(1), (box.top - top).toFixed(1)];
      const size = `width="${box.width.toFixed(1)}" height="${box.height.toFixed(1)}"`;
      if (filled || outlined) {
        const stroke = outlined ? ` stroke="${style.outlineColor}" stroke-width="2"` : "";
        parts.push(`<rect x="${x}" y="${y}" ${size} fill="${filled ? style.backgroundColor : "none"}"${stroke}/>`);
      }
      if (below) {
        const line = (box.bottom - top - 1).toFixed(1);
        parts.push(`<path d="M${x} ${line}h${box.width.toFixed(1)}" stroke="${style.borderBottomColor}" stroke-width="${style.borderBottomWidth}"/>`);
      }
    }
  }
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const style = getComputedStyle(node.parentElement);
    if (node.parentElement.closest(".unseen") || !node.textContent.trim()) continue;
    const size = parseFloat(style.fontSize);
    for (const [text, box] of linesOf(node, range)) {
      const [x, y] = [(box.left - left).toFixed(1), (box.bottom - top - 0.24 * size).toFixed(1)];
      const weight = style.fontWeight === "400" ? "" : ` font-weight="${style.fontWeight}"`;
      const font = `font-family="${escaped(style.fontFamily.replaceAll('"', "'"))}" font-size="${size}"${weight}`;
      parts.push(`<text x="${x}" y="${y}" ${font} fill="${style.color}" xml:space="preserve">${escaped(text)}</text>`);
    }
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">${parts.join("")}</svg>`;
}

function* linesOf(node, range) {
  const content = node.textContent;
  range.selectNodeContents(node);
  const whole = [...range.getClientRects()];
  if (whole.length === 1) {
    yield [content.replace(/\n/g, ""), whole[0]];
    return;
  }
  let line = null;
  for (let at = 0; at < content.length; at += 1) {
    range.setStart(node, at);
    range.setEnd(node, at + 1);
    const box = range.getBoundingClientRect();
    if (!box.width) continue;
    if (line && Math.abs(line[1].top - box.top) < 2) line[0] += content[at];
    else {
      if (line) yield line;
      line = [content[at], box];
    }
  }
  if (line) yield line;
}

// Buttons that save what a card shows; `picture` gives its SVG, and `png` its PNG where that is made in another way.
function saveButtons({ name, what, picture, png, columns, rows }) {
  const of = (ending, make) =>
    el(
      "button",
      {
        type: "button",
        class: "quiet save",
        "aria-label": `Save ${what} as ${ending.toUpperCase()}`,
        onclick: async () => {
          save(await make(), `${name}.${ending}`);
          say(`Saved ${name}.${ending}`);
        },
      },
      ending.toUpperCase(),
    );
  return el(
    "div",
    { class: "tools" },
    picture && of("png", async () => (png ? png() : toPng(await picture()))),
    picture && of("svg", async () => new Blob([await picture()], { type: "image/svg+xml" })),
    of("csv", async () => new Blob([csv(columns, rows())], { type: "text/csv" })),
  );
}
