// Tokens that are followed through the layers: their ranks in the cells, and as lines by layer.

const MOST_FOLLOWED = 6;

// A word that is followed: every token of the page that is just it; if it has no space before it, also with one.
function followed(word) {
  const tokens = new Set();
  PAGE.vocabulary.texts.forEach((text, i) => {
    if (text === word || text === ` ${word}`) tokens.add(i + 1);
  });
  return { word, tokens };
}

// What else is done when other words are followed: a page that can ask a model has their ranks measured.
const whenFollowed = [];

function follow(word) {
  if (!word || state.tracked.some((one) => one.word === word)) return;
  if (state.tracked.length === MOST_FOLLOWED) {
    say(`${MOST_FOLLOWED} tokens are followed at most; take one away first`);
    return;
  }
  state.tracked.push(followed(word));
  trackedChanged();
  for (const work of whenFollowed) work();
}

function unfollow(word) {
  state.tracked = state.tracked.filter((one) => one.word !== word);
  trackedChanged();
  say(`${visible(word)} is followed no more`);
}

function trackedChanged() {
  const chips = state.tracked.map(({ word, tokens }, i) => {
    const away = make("button", { type: "button", class: "close", "aria-label": `Follow ${visible(word)} no more`, text: "×" });
    away.addEventListener("click", () => {
      unfollow(word);
      byId("track").focus();
    });
    const known = tokens.size || isMeasured(word);
    const title = known ? "Followed in the grid and below it" : "No list of this page names such a token";
    return make("li", { class: `chip f${i}${known ? "" : " nowhere"}`, title }, make("span", { class: "swatch" }), tokenNode(word), away);
  });
  byId("tracked").replaceChildren(...chips);
  repaint();
  drawRanks();
  link.write(false);
}

// Whether the numbers of this prompt have the word at every layer, and not only where it is among the listed ones.
const isMeasured = (word) => shown.some(({ columns }) => columns.some((column) => column.block.tracked?.has(word)));

// Where a followed word stands: its rank wherever that was measured, else its place among the listed tokens; 0 outside,
// and where no rank may be shown. The rows' own rank is the word's only if they are judged by this very token.
function rankOfFollowed(column, { word, tokens }, layer) {
  if (!column.run.ranks) return 0;
  const measured = column.block.tracked?.get(word);
  if (measured) return measured[column.at(layer)];
  if (tokens.has(column.prompt.judged_token)) {
    const rank = column.value("rank", layer);
    if (!Number.isNaN(rank)) return rank;
  }
  return Column.prototype.rankOf.call(column, tokens, layer);
}

function followedMarks(column, layer) {
  if (column.entry) return [];
  const marks = state.tracked.flatMap((one, i) => {
    const rank = rankOfFollowed(column, one, layer);
    const near = rank && (rank <= column.block.k || rank <= 20);
    return near ? [make("span", { class: `followed f${i}`, text: rank })] : [];
  });
  return marks.length ? [make("span", { class: "marks" }, ...marks)] : [];
}

const RANKS = { height: 250, left: 58, right: 120, top: 14, bottom: 34, narrowest: 340, widest: 1060 };

// One line for each followed word at the last position: rank 1 at the top, logarithmic.
function drawRanks() {
  const host = byId("ranks");
  const sources = shown.filter((source) => source.prompt && source.columns.length && source.run.ranks);
  host.hidden = !state.tracked.length || !sources.length;
  if (host.hidden) return;
  const { lens } = sources[0];
  const lines = sources.flatMap((source, s) => rankLines(source, s));
  const most = (name) => Math.max(...sources.map(({ run }) => run[name]));
  byId("ranks-plot").replaceChildren(ranksPicture(lines, most("n_layers"), most("d_vocab")));
  const listed = Math.max(...sources.map(({ columns }) => columns[0].block.k));
  const other = sources.length > 1 ? ` Dashed: ${nameOf(sources[1])}.` : "";
  const exact = lines.every(({ exact }) => exact);
  const some = lines.some(({ exact: every }) => every) ? ", and everywhere where every layer has a dot" : "";
  const gaps = exact ? "" : ` Ranks are known among the ${listed} listed tokens${some}; elsewhere a line is interrupted.`;
  byId("ranks-note").textContent = `At the last position that was read, under lens ${lens}.${gaps}${other}`;
}

function rankLines(source, place) {
  const column = source.columns.find((one) => one.entry === 0) ?? source.columns.at(-1);
  const wanted = state.tracked.map((one, i) => ({ name: visible(one.word), colour: `f${i}`, at: (layer) => rankOfFollowed(column, one, layer), one }));
  return wanted.map(({ name, colour, at, one }) => {
    const ranks = Array.from({ length: source.run.n_layers + 1 }, (_, layer) => (column.state(layer) === 1 ? at(layer) : 0));
    const exact = Boolean(column.block.tracked?.get(one.word)) || ranks.every(Boolean);
    return { name, of: nameOf(source), colour, ranks, exact, dashed: place > 0 };
  });
}

function ranksPicture(lines, n_layers, d_vocab) {
  const NS = "http://www.w3.org/2000/svg";
  const { height, left, right, top, bottom, narrowest, widest } = RANKS;
  const width = Math.min(Math.max(byId("ranks-plot").clientWidth, narrowest), widest);
  const node = (name, attributes, text) => {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const x = (layer) => left + (layer / n_layers) * (width - left - right);
  const y = (rank) => top + (Math.log(rank) / Math.log(d_vocab)) * (height - top - bottom);
  const several = lines.some(({ dashed }) => dashed);
  const said = lines.map(({ name, of, ranks }) => `${name}${several ? `, ${of}` : ""}: ${coursed(ranks)}`).join("; ");
  const root = node("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Ranks by layer. ${said}` });
  for (let rank = 1; rank <= d_vocab; rank *= 10) {
    root.append(node("line", { class: "rule", x1: left, x2: width - right, y1: y(rank), y2: y(rank) }));
    root.append(node("text", { x: left - 8, y: y(rank) + 4, "text-anchor": "end" }, rank.toLocaleString("en")));
  }
  const step = Math.max(1, Math.ceil(n_layers / ((width - left - right) / 40)));
  for (let layer = 0; layer <= n_layers; layer += step) {
    root.append(node("text", { x: x(layer), y: height - bottom + 18, "text-anchor": "middle" }, layer));
  }
  root.append(node("text", { x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle" }, "layer"));
  const ends = [];
  for (const { name, colour, ranks, dashed } of lines) {
    const group = node("g", { class: colour });
    let path = "";
    ranks.forEach((rank, layer) => {
      if (!rank) return;
      path += `${ranks[layer - 1] ? "L" : "M"}${x(layer).toFixed(1)} ${y(rank).toFixed(1)}`;
      const dot = node("circle", { cx: x(layer), cy: y(rank), r: 2.6 });
      dot.append(node("title", {}, `${name}: rank ${rank.toLocaleString("en")} at layer ${layer}`));
      group.append(dot);
    });
    group.prepend(node("path", { class: dashed ? "line dashed" : "line", d: path || "M0 0" }));
    root.append(group);
    const last = ranks.findLastIndex(Boolean);
    // A line that is interrupted before the end has its name there, and not where it would have no rank.
    if (!dashed && last >= 0) ends.push({ colour, x: x(last) + 10, y: y(ranks[last]) - (last < n_layers ? 10 : 0), text: name });
    if (!dashed && last < 0) ends.push({ colour, x: width - right + 10, y: height - bottom, text: `${name}: in no list` });
  }
  const near = (a, b) => Math.abs(a.x - b.x) < 90 && Math.abs(a.y - b.y) < 15;
  ends.sort((a, b) => a.y - b.y).forEach((end, i) => {
    for (const before of ends.slice(0, i)) if (near(end, before)) end.y = before.y + 15;
    root.append(node("text", { class: `name ${end.colour}`, x: end.x, y: end.y + 4 }, end.text));
  });
  return root;
}

// A rank's course in words, for those who do not see the line.
function coursed(ranks) {
  const known = ranks.flatMap((rank, layer) => (rank ? [{ rank, layer }] : []));
  if (!known.length) return "among the listed tokens of no layer";
  const best = known.reduce((a, b) => (b.rank < a.rank ? b : a));
  return `best rank ${best.rank.toLocaleString("en")}, first at layer ${best.layer}; rank ${known.at(-1).rank.toLocaleString("en")} at layer ${known.at(-1).layer}`;
}

function bindTracking() {
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width !== innerWidth && !byId("ranks").hidden) drawRanks();
    width = innerWidth;
  });
  const field = byId("track");
  const take = () => {
    for (const word of field.value.split(",")) follow(word.trim());
    field.value = "";
  };
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== ",") return;
    event.preventDefault();
    take();
  });
  field.addEventListener("change", take);
}
