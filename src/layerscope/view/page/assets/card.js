// A cell looked at closely: what was most likely there, with bars.

function bars(column, layer, limit) {
  const answers = new Set(column.prompt.answer_tokens);
  const list = column.list(layer).slice(0, limit);
  const most = Math.max(...list.map((entry) => (Number.isNaN(entry.p) ? 0 : entry.p)), 1e-9);
  const items = list.map((entry, i) => {
    const bar = make("span", { class: "bar" });
    bar.style.inlineSize = `${Number.isNaN(entry.p) ? 0 : Math.max((entry.p / most) * 100, 0.5)}%`;
    const id = tokenId(entry.token);
    return make(
      "li",
      { class: answers.has(entry.token) ? "is-answer" : null, title: id < 0 ? null : `token id ${id}` },
      make("span", { class: "place", text: i + 1 }),
      make("span", { class: "name" }, limit === Infinity ? followButton(entry.token) : tokenNode(tokenText(entry.token))),
      Number.isNaN(entry.p) ? null : make("span", { class: "track", "aria-hidden": "true" }, bar),
      make("span", { class: "p", text: Number.isNaN(entry.p) ? "" : entry.below ? "< 6e-20" : number(entry.p) }),
    );
  });
  return make("ol", { class: "top" }, ...items);
}

// What the probabilities of a layer are; nothing where none may be quoted, which the legend says once.
// Median effects of patches at a layer: beside its number, and in words.
function carriedAt({ subject, next }, layer) {
  const both = [{ name: "at the subject", share: subject[layer] }, { name: "at the last token", share: next[layer] }];
  return both.filter(({ share }) => share !== undefined && share !== null);
}

function swatch(share) {
  const node = make("span");
  node.style.opacity = Math.min(Math.max(share, 0), 1);
  return make("span", { class: "effect" }, node);
}

function statusWords(run, lens, layer) {
  const status = run.statuses[lens]?.[layer];
  return run.probabilities && !run.suppressed && status ? PAGE.status_words[status] : null;
}

function measures(column, layer) {
  const { run } = column;
  const rank = column.value("rank", layer);
  const p = column.value("pAnswer", layer);
  // Layers are judged at the last position; only the last layer is the model at all of them.
  const here = column.position === column.prompt.last || layer === run.n_layers;
  const status = (v) => (here ? v : `${v.split(":")[0]}, at the last position`);
  const pairs = [
    ["entropy", column.value("entropy", layer), (v) => `${number(v)} bits`],
    ["KL to final", column.value("kl", layer), (v) => `${number(v)} bits`],
    ["probabilities", statusWords(run, column.lens, layer) ?? NaN, status],
    ["rank of answer", rank, (v) => v.toLocaleString("en") + (Number.isNaN(p) ? "" : ` · p ${number(p)}`)],
  ].filter(([, value]) => !Number.isNaN(value));
  const node = make("dl", { class: "measures" });
  for (const [name, value, form] of pairs) {
    node.append(make("div", {}, make("dt", { text: name }), make("dd", { text: form(value) })));
  }
  if (!run.probabilities) node.append(make("p", { class: "withheld", text: "Probabilities are withheld: the identity check failed." }));
  return pairs.length || !run.probabilities ? node : null;
}

function followButton(token) {
  const button = make("button", { type: "button", class: "follow", title: "Follow this token through the grid" }, tokenNode(tokenText(token)));
  button.addEventListener("click", () => follow(tokenText(token)));
  return button;
}

function cardTitle(column, layer) {
  const token = column.prompt.tokens[column.position];
  const where = make("span", { class: "where", text: `layer ${layer} · position ${column.position}` });
  const title = make("h4", {}, where);
  if (token !== undefined) title.append(" after ", tokenNode(token));
  const many = PAGE.runs.length > 1 ? `${column.run.label} · ` : "";
  return [title, make("p", { class: "from", text: many + [column.lens, column.prompt.fact, column.prompt.variant].filter(Boolean).join(" · ") })];
}

function cardBody(column, layer, limit) {
  const parts = cardTitle(column, layer);
  if (!column.state(layer)) return [...parts, make("p", { class: "none", text: "This lens has no row here." })];
  if (column.state(layer) & 2) return [...parts, make("p", { class: "none", text: "Not finite here: no number stands." })];
  parts.push(measures(column, layer), bars(column, layer, limit));
  const more = column.list(layer).length - limit;
  if (more > 0) parts.push(make("p", { class: "more", text: `and ${more} more; pin the cell to see them` }));
  return parts.filter(Boolean);
}

// The card beside a cell; on narrow windows it lies at the foot of the window.
const floating = {
  node: byId("cell-card"),
  cell: null,
  narrow: matchMedia("(max-width: 700px)"),
  show(cell, columns, layer) {
    const fresh = cell !== this.cell;
    const limit = this.narrow.matches ? (columns.length > 1 ? 3 : 6) : 10;
    this.node.classList.toggle("pair", columns.length > 1);
    this.node.replaceChildren(...columns.map((column) => make("div", {}, ...cardBody(column, layer, limit))));
    this.node.hidden = false;
    this.cell = cell;
    this.place();
    const over = cell.getBoundingClientRect().bottom + 12 - this.node.getBoundingClientRect().top;
    if (fresh && this.narrow.matches && over > 0) scrollBy({ top: over });
  },
  // Stay beside the cell when the page is scrolled, and go when the cell does.
  follow() {
    if (!this.cell) return;
    const cell = this.cell.getBoundingClientRect();
    const frame = this.cell.closest(".scroll").getBoundingClientRect();
    const seen = Math.min(innerHeight, frame.bottom) - 8;
    if (cell.top > seen || cell.bottom < Math.max(frame.top, 0) || cell.left > frame.right || cell.right < frame.left) this.hide();
    else this.place();
  },
  place() {
    if (!this.cell || this.node.hidden) return;
    if (this.narrow.matches) {
      this.node.style.inset = "";
      return;
    }
    const cell = this.cell.getBoundingClientRect();
    const own = this.node.getBoundingClientRect();
    const room = document.documentElement.clientWidth;
    const left = cell.right + 10 + own.width < room ? cell.right + 10 : Math.max(cell.left - own.width - 10, 8);
    const top = Math.min(Math.max(cell.top - 24, 8), Math.max(innerHeight - own.height - 8, 8));
    this.node.style.inset = `${top}px auto auto ${left}px`;
  },
  hide() {
    this.node.hidden = true;
    this.cell = null;
  },
};
