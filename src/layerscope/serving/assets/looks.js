// Looks as prompts of a page's runs: each look that arrives is one more prompt, its tokens put into one vocabulary.

const known = new Map();

// The page's own place of a token, which two looks may have in common.
function placeOf(id, text) {
  const key = `${id}\n${text}`;
  if (!known.has(key)) {
    PAGE.vocabulary.ids.push(id);
    PAGE.vocabulary.texts.push(text);
    known.set(key, PAGE.vocabulary.texts.length);
  }
  return known.get(key);
}

function runOfModel(model) {
  return {
    label: model.name,
    model: model.name,
    n_layers: model.n_layers,
    d_vocab: model.d_vocab,
    headline: "logit",
    lenses: [],
    every: null, // each text has positions of its own
    ranks: true,
    probabilities: true,
    suppressed: false,
    statuses: {},
    kl_bits: 1,
    missing: null,
    prompts: [],
  };
}

// A look as the server has it for a page, as one more prompt of its model's run. It takes the place of one that is not
// kept, and of one at the same text, which stays kept then; gives the look that it replaces so.
function receive(job) {
  const { page } = job;
  const run = PAGE.runs.find(({ label }) => label === job.model);
  const [prompt] = page.run.prompts;
  const { texts, ids } = page.vocabulary;
  const places = Uint32Array.from([0, ...texts.map((text, i) => placeOf(ids[i], text))]);
  for (const [lens, block] of Object.entries(prompt.blocks)) {
    const id = `${job.id}-${lens}`;
    packs.set(id, page.blocks[block.id]);
    const tracked = new Map(page.tracked.map(({ word, rank }) => [word, Uint32Array.from(rank[lens].flat(), (value) => value ?? 0)]));
    Object.assign(block, { id, places, tracked });
  }
  Object.assign(prompt, {
    prompt_id: JSON.stringify([job.asked.text, job.asked.chat ?? false, job.asked.system ?? null]), // one text, in any model
    fact_index: null,
    fact: shortened(prompt.fact),
    variant: "",
    answer_tokens: prompt.answer_tokens.map((token) => places[token]),
    look: { ...page, asked: job.asked, id: job.id, kept: false },
  });
  Object.assign(run, { statuses: { ...run.statuses, ...page.run.statuses }, probabilities: page.run.probabilities });
  run.lenses = [...new Set([...page.run.lenses, ...run.prompts.filter(({ look }) => look.kept).flatMap((one) => Object.keys(one.blocks))])];
  run.headline = page.run.headline;
  run.kl_bits = Math.max(...[...run.prompts, prompt].map((one) => one.look.run.kl_bits));
  const same = run.prompts.find(({ prompt_id }) => prompt_id === prompt.prompt_id);
  prompt.look.kept = same?.look.kept ?? false;
  for (const old of run.prompts.filter((one) => one === same || !one.look.kept)) forget(run, old);
  run.prompts.push(prompt);
  return { run, prompt, replaced: same };
}

function forget(run, prompt) {
  run.prompts.splice(run.prompts.indexOf(prompt), 1);
  for (const block of Object.values(prompt.blocks)) {
    packs.delete(block.id);
    unpacked.delete(block.id);
  }
  state.pins = state.pins.filter(({ column }) => column.prompt !== prompt);
}

function shortened(text) {
  const chars = [...text];
  return chars.length <= 48 ? text : `…${chars.slice(-47).join("")}`;
}
