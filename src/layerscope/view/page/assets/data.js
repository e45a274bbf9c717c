// The page's data. Numbers of a prompt under a lens are packed, and unpacked when they are first shown.

const PAGE = JSON.parse(byId("page-data").textContent);
const STEPS_PER_BIT = 1024;
const FLOOR = 65534;
const ABSENT = 65535;
const unpacked = new Map();
// Packed numbers that came later than the page, by their id.
const packs = new Map();

async function inflate(id) {
  const binary = atob(packs.get(id) ?? JSON.parse(byId(id).textContent));
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const inflateText = async (id) => new TextDecoder().decode(await inflate(id));

function readBlock(buffer, layers, columns, k) {
  const n = layers * columns;
  let offset = 0;
  const take = (Kind, length) => {
    const part = new Kind(buffer, offset, length);
    offset += part.byteLength;
    return part;
  };
  const floats = () => take(Float32Array, n);
  return {
    columns,
    k,
    entropy: floats(),
    kl: floats(),
    pTop1: floats(),
    pAnswer: floats(),
    rank: take(Uint32Array, n),
    tokens: take(Uint32Array, n * k),
    codes: take(Uint16Array, n * k),
    state: take(Uint8Array, n),
  };
}

function blockOf(run, data) {
  if (!unpacked.has(data.id)) {
    unpacked.set(
      data.id,
      inflate(data.id).then((buffer) => {
        const block = readBlock(buffer, run.n_layers + 1, data.positions.length, data.top_k);
        // Of numbers that came later: their tokens by the page's own vocabulary, and ranks that were measured for words.
        if (data.places) block.tokens = block.tokens.map((token) => data.places[token]);
        block.tracked = data.tracked;
        return block;
      }),
    );
  }
  return unpacked.get(data.id);
}

const tokenText = (token) => PAGE.vocabulary.texts[token - 1];
const tokenId = (token) => PAGE.vocabulary.ids[token - 1];

// A column of a grid: one position of one prompt under one lens, all layers.
class Column {
  constructor(run, prompt, lens, block, place, position) {
    Object.assign(this, { run, prompt, lens, block, place, position });
  }
  at(layer) {
    return layer * this.block.columns + this.place;
  }
  state(layer) {
    return this.block.state[this.at(layer)];
  }
  top(layer) {
    return this.block.k ? this.block.tokens[this.at(layer) * this.block.k] : 0;
  }
  // The probability of the token that the cell shows.
  p(layer) {
    return this.value("pTop1", layer);
  }
  value(name, layer) {
    if (name === "shown") return this.p(layer);
    const found = this.block[name][this.at(layer)];
    if (name === "rank") return found === 0 ? NaN : found;
    return found;
  }
  // The most likely tokens: number in the vocabulary, probability (NaN where absent), whether it is below what is kept.
  list(layer) {
    const { k, tokens, codes } = this.block;
    const start = this.at(layer) * k;
    const found = [];
    for (let i = start; i < start + k; i++) {
      if (!tokens[i]) break;
      const code = codes[i];
      const first = i === start ? this.value("pTop1", layer) : NaN;
      const p = Number.isNaN(first) ? (code === ABSENT ? NaN : 2 ** (-code / STEPS_PER_BIT)) : first;
      found.push({ token: tokens[i], p, below: code === FLOOR });
    }
    return found;
  }
  rankOf(wanted, layer) {
    const { k, tokens } = this.block;
    const start = this.at(layer) * k;
    for (let i = 0; i < k; i++) if (wanted.has(tokens[start + i])) return i + 1;
    return 0;
  }
}

// A place in the list of the most likely tokens at one position: what is shown where there is one position alone.
const PLACES = ["most likely", "2nd", "3rd", "4th", "5th"];

class PlaceColumn extends Column {
  constructor(column, entry, places) {
    super(column.run, column.prompt, column.lens, column.block, column.place, column.position);
    Object.assign(this, { entry, places });
  }
  top(layer) {
    return this.block.tokens[this.at(layer) * this.block.k + this.entry];
  }
  p(layer) {
    return this.list(layer)[this.entry]?.p ?? NaN;
  }
  // Found where it stands; further down the list, in the last place that is shown.
  rankOf(wanted, layer) {
    const rank = super.rankOf(wanted, layer);
    return rank && Math.min(rank, this.places) === this.entry + 1 ? rank : 0;
  }
}

function placesOf(columns) {
  if (columns.length !== 1 || columns[0].block.k < 2) return columns;
  const places = Math.min(PLACES.length, columns[0].block.k);
  return Array.from({ length: places }, (_, entry) => new PlaceColumn(columns[0], entry, places));
}

// The columns of a source: one prompt at all its positions, or every prompt of a wording at its last.
async function columnsOf(source) {
  const { run, lens } = source;
  const prompts = source.every ? run.prompts.filter((p) => p.variant === source.variant) : [source.prompt].filter(Boolean);
  const held = prompts.filter((prompt) => prompt.blocks[lens]);
  const blocks = await Promise.all(held.map((prompt) => blockOf(run, prompt.blocks[lens])));
  return held.flatMap((prompt, i) => {
    const places = prompt.blocks[lens].positions.map((position, place) => [position, place]);
    const shown = source.every ? places.filter(([position]) => position === prompt.last) : places;
    return shown.map(([position, place]) => new Column(run, prompt, lens, blocks[i], place, position));
  });
}

// Two prompts end at the same place and may differ in length: their columns are paired from the last one on. Says which
// are left out.
function pairedFromTheEnd(own, other) {
  const n = Math.min(own.columns.length, other.columns.length);
  const left = own.columns.length + other.columns.length - 2 * n;
  const whose = own.columns.length > n ? own : other;
  for (const source of [own, other]) source.columns = source.columns.slice(source.columns.length - n);
  if (!left) return "";
  return `Paired from the last position on: the first ${left === 1 ? "position" : `${left} positions`} of ${promptName(whose.prompt)} ${left === 1 ? "has" : "have"} no partner.`;
}
