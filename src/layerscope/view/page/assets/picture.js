// The grid as a picture and as a table of numbers.

const PICTURE = { narrow: 84, wide: 132, tall: 26, axis: 64, font: "12px system-ui, sans-serif" };

// Rectangles and texts of grids that stand side by side.
function drawing(panes, caption, scale) {
  const w = panes.some(({ grid }) => grid.columns.length > 6) ? PICTURE.narrow : PICTURE.wide;
  const h = PICTURE.tall;
  const found = [];
  let x = 16;
  let height = 0;
  const dark = isDark();
  const [paper, words] = dark ? ["#171b21", "#e8eaed"] : ["#ffffff", "#1b1f24"];
  for (const { grid, title } of panes) {
    const width = PICTURE.axis + grid.columns.length * w;
    found.push({ text: title, x, y: 44, anchor: "start", fill: words, bold: true });
    grid.columns.forEach((_, c) => {
      found.push({ text: clipped(grid.heads[c].firstChild.textContent, w), x: x + PICTURE.axis + (c + 0.5) * w, y: 66, fill: words });
    });
    for (let layer = 0; layer < grid.layers; layer++) {
      const y = 76 + (grid.layers - 1 - layer) * h;
      found.push({ text: String(layer), x: x + PICTURE.axis - 8, y: y + 17, anchor: "end", fill: words });
      grid.columns.forEach((_, c) => {
        const cell = grid.cell(c, layer);
        const left = x + PICTURE.axis + c * w;
        found.push({ rect: [left, y, w - 1, h - 1], fill: cell.style.backgroundColor || (dark ? "#232931" : "#eceef0") });
        found.push({ text: clipped((cell.querySelector(".tok") ?? cell).textContent, w), x: left + w / 2, y: y + 17, fill: cell.style.color || words });
      });
    }
    height = Math.max(height, 76 + grid.layers * h);
    x += width + 24;
  }
  for (let i = 0; i < 48; i++) found.push({ rect: [100 + i * 4, height + 12, 4, 11], fill: css(shade(scale.name, i / 47)) });
  found.push({ text: scale.ends[0], x: 92, y: height + 22, anchor: "end", fill: words });
  found.push({ text: scale.ends[1], x: 300, y: height + 22, anchor: "start", fill: words });
  const width = Math.max(x, 420);
  found.unshift({ rect: [0, 0, width, height + 36], fill: paper });
  found.push({ text: caption, x: 16, y: 22, anchor: "start", fill: words });
  return { width, height: height + 36, shapes: found };
}

const measured = document.createElement("canvas").getContext("2d");

function clipped(text, width) {
  measured.font = PICTURE.font;
  if (measured.measureText(text).width <= width - 8) return text;
  const chars = [...text];
  while (chars.length && measured.measureText(`${chars.join("")}…`).width > width - 8) chars.pop();
  return `${chars.join("")}…`;
}

function svgOf({ width, height, shapes }) {
  const NS = "http://www.w3.org/2000/svg";
  const node = (name, attributes, text = "") => {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const root = node("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "font-family": "system-ui, sans-serif", "font-size": 12 });
  for (const shape of shapes) {
    if (shape.rect) {
      const [x, y, w, h] = shape.rect;
      root.append(node("rect", { x, y, width: w, height: h, fill: shape.fill }));
    } else {
      const weight = shape.bold ? { "font-weight": 600 } : {};
      root.append(node("text", { x: shape.x, y: shape.y, fill: shape.fill, "text-anchor": shape.anchor ?? "middle", ...weight }, shape.text));
    }
  }
  return new XMLSerializer().serializeToString(root);
}

function pngOf({ width, height, shapes }) {
  const scale = Math.min(2, 16_000 / Math.max(width, height));
  const canvas = make("canvas", { width: Math.ceil(width * scale), height: Math.ceil(height * scale) });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  for (const shape of shapes) {
    pen.fillStyle = shape.fill;
    if (shape.rect) {
      pen.fillRect(...shape.rect);
      continue;
    }
    pen.font = shape.bold ? `600 ${PICTURE.font}` : PICTURE.font;
    pen.textAlign = shape.anchor ?? "center";
    pen.fillText(shape.text, shape.x, shape.y);
  }
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function gridCsv(panes) {
  const k = Math.max(...panes.flatMap(({ grid }) => grid.columns.map((column) => column.block.k)), 0);
  const head = ["model", "lens", "fact", "prompt_id", "prompt_variant", "layer", "position", "token", "entropy_bits", "kl_to_final_bits", "answer_rank", "p_answer", "p_top1"];
  for (let i = 1; i <= k; i++) head.push(`top${i}`, `prob${i}`);
  const rows = [head];
  for (const { grid } of panes) {
    for (let layer = 0; layer < grid.layers; layer++) {
      for (const column of grid.columns) {
        if (!column.state(layer) || column.entry) continue; // places of one list are one row
        const { prompt } = column;
        const row = [column.run.model, column.lens, prompt.fact, prompt.prompt_id, prompt.variant, layer, column.position, prompt.tokens[column.position]];
        row.push(...["entropy", "kl", "rank", "pAnswer", "pTop1"].map((name) => column.value(name, layer)));
        for (const entry of column.list(layer)) row.push(tokenText(entry.token), entry.p);
        rows.push(row);
      }
    }
  }
  return csv(rows);
}
