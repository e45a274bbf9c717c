// What may be chosen: a prompt, a lens, a colour, and what the grid is held against.

// A list to choose from; `groups` are a name and their choices, and the first of them may have no name.
function options(select, groups, chosen) {
  const items = (choices) => choices.map(([value, text]) => make("option", { value, text }));
  const filled = groups.filter(([, choices]) => choices.length);
  select.replaceChildren(
    ...filled.flatMap(([label, choices]) => (label ? [make("optgroup", { label }, ...items(choices))] : items(choices))),
  );
  const values = filled.flatMap(([, choices]) => choices.map(([value]) => value));
  select.value = values.includes(chosen) ? chosen : (values[0] ?? "");
  select.disabled = values.length < 2;
  return select.value;
}

// A row of radio buttons that look like one control; they stay while their names do, and so does the focus on them.
function segments(host, name, choices, chosen, change) {
  const row = host.querySelector(".row");
  const names = choices.map(({ value }) => value).join("\n");
  if (row.names !== names) {
    row.replaceChildren(
      ...choices.map(({ value, text }) => make("label", {}, make("input", { type: "radio", name, value }), make("span", { text }))),
    );
    row.names = names;
  }
  all("input", row).forEach((input, i) => {
    const { value, off, why } = choices[i];
    input.checked = value === chosen;
    input.disabled = Boolean(off);
    input.onchange = () => change(value);
    input.parentElement.title = why ?? "";
  });
}

// What is shown of a run before anything is chosen.
function defaultsOf(run) {
  const primary = run.prompts.find(({ prompt_id }) => prompt_id === "pos") ?? run.prompts[0];
  return {
    fact: primary ? factOf(primary) : null,
    variant: primary?.variant ?? null,
    lens: run.headline,
    metric: run.probabilities ? "entropy" : "rank",
    against: "",
  };
}

function setRun(run) {
  Object.assign(state, { run, side: false, ...defaultsOf(run) });
}

// Let every list have what the run has, and the state only what the lists have.
function settle() {
  const { run } = state;
  const facts = [...new Map(run.prompts.map((prompt) => [factOf(prompt), prompt.fact])).entries()];
  if (facts.length > 1 && run.every) facts.push([EVERY, `${run.every}, last position`]);
  state.fact = options(byId("choose-fact"), [["", facts]], state.fact);
  const own = run.prompts.filter((prompt) => state.fact === EVERY || factOf(prompt) === state.fact);
  const variants = [...new Set(own.map((prompt) => prompt.variant))];
  state.variant = options(byId("choose-variant"), [["", variants.map((variant) => [variant, variant])]], state.variant);
  if (!run.lenses.includes(state.lens)) state.lens = run.headline;
}

// Against what the grid may be held: other lenses of the run, the same lens of other runs, other prompts of the run.
function rivals() {
  const lenses = state.run.lenses.filter((lens) => lens !== state.lens).map((lens) => [`lens:${lens}`, `lens ${lens}`]);
  const runs = PAGE.runs.flatMap((run, i) => (run === state.run || !run.prompts.length ? [] : [[`run:${i}`, run.label]]));
  const mine = prompt(state.run);
  const prompts = state.run.prompts.flatMap((one, i) =>
    !mine || one === mine || !one.blocks[state.lens] ? [] : [[`prompt:${i}`, promptName(one)]],
  );
  return [["", [["", "nothing"]]], ["Lenses", lenses], ["Runs", runs], ["Prompts", prompts]];
}

function rival() {
  const known = rivals().some(([, choices]) => choices.some(([value]) => value === state.against));
  if (!known) state.against = "";
  const at = state.against.indexOf(":");
  const [kind, rest] = [state.against.slice(0, at), state.against.slice(at + 1)];
  if (kind === "lens") return sourceOf(state.run, rest);
  if (kind === "prompt") return { ...sourceOf(state.run, state.lens), prompt: state.run.prompts[Number(rest)] };
  if (kind !== "run") return null;
  const run = PAGE.runs[Number(rest)];
  return sourceOf(run, run.lenses.includes(state.lens) ? state.lens : run.headline);
}

// Why two sets of columns cannot be taken from one another cell by cell; empty where they can.
function unlike(a, b) {
  if (!b.every && !b.prompt) return `${b.run.label} does not ask this.`;
  if (a.run.n_layers !== b.run.n_layers) {
    return `The models have ${a.run.n_layers} and ${b.run.n_layers} layers, so no cell answers another: they stand side by side.`;
  }
  if ([...a.columns, ...b.columns].some(({ entry }) => entry !== undefined)) {
    return "One position alone was decoded: its most likely tokens stand side by side. A probe with --positions all is compared cell by cell.";
  }
  if (a.prompt !== b.prompt && a.run === b.run) return "";
  const places = (columns) => columns.map((c) => `${factOf(c.prompt)}@${c.position}`).join();
  if (places(a.columns) !== places(b.columns)) return "They were decoded at different positions: they stand side by side.";
  const inputs = (columns) => JSON.stringify(columns.map((c) => [c.prompt.text, c.prompt.tokens[c.position]]));
  if (a.run !== b.run && inputs(a.columns) !== inputs(b.columns)) return "The prompts differ: they stand side by side.";
  return "";
}

function nameOf(source) {
  const parts = [];
  if (PAGE.runs.length > 1) parts.push(source.run.label);
  if (source.prompt && source.prompt !== prompt(source.run)) parts.push(promptName(source.prompt));
  else if (state.against.startsWith("prompt:")) parts.push(promptName(source.prompt));
  parts.push(parts.length ? source.lens : `lens ${source.lens}`);
  return parts.join(" · ");
}

function controls(own, other, why) {
  const { run } = state;
  const held = (lens) => (state.fact === EVERY ? run.prompts.some((p) => p.blocks[lens]) : Boolean(prompt(run)?.blocks[lens]));
  segments(
    byId("choose-lens"), "lens",
    run.lenses.map((lens) => ({ value: lens, text: lens, off: !held(lens), why: held(lens) ? null : "This prompt was not read through it." })),
    state.lens,
    (lens) => {
      state.lens = lens;
      if (state.against === `lens:${lens}`) state.against = "";
      refresh(true);
    },
  );
  chooseColour(own);
  state.against = options(byId("choose-against"), rivals(), state.against);
  const mode = byId("choose-mode");
  mode.hidden = !other;
  segments(
    mode, "mode",
    [
      { value: "difference", text: "difference", off: Boolean(why) && !shown.difference, why: why || null },
      { value: "side", text: "side by side" },
    ],
    shown.difference ? "difference" : "side",
    (value) => {
      state.side = value === "side";
      refresh(true);
    },
  );
  const withheld = run.probabilities ? "" : `The identity check failed: ${run.ranks ? "probabilities are withheld, ranks stand" : "neither probabilities nor ranks stand, and tokens alone are shown"}.`;
  const notes = [withheld, why, prompt(run) && run.missing].filter(Boolean);
  byId("grid-note").textContent = notes.join(" ");
  byId("grid-note").hidden = notes.length === 0;
  promptText();
}

function chooseColour(own) {
  const { run } = state;
  const listed = own.columns[0]?.entry !== undefined;
  const colours = Object.entries(METRICS).map(([value, metric]) => {
    const withheld = metric.probability ? !run.probabilities : !run.ranks;
    const absent = !withheld && !own.columns.some((column) => has(column, metric.field));
    let reason = null;
    if (listed) reason = "One position was decoded: colour is the probability of each token.";
    else if (withheld) reason = "Withheld: the identity check failed.";
    else if (absent) reason = "Not recorded for these rows.";
    return { value, text: metric.label, off: listed || withheld || absent, why: reason };
  });
  const usable = colours.filter(({ off }) => !off).map(({ value }) => value);
  if (!usable.includes(state.metric)) state.metric = usable[0] ?? defaultsOf(run).metric;
  segments(byId("choose-colour"), "colour", colours, listed ? null : state.metric, (metric) => {
    state.metric = metric;
    repaint();
    link.write(true);
  });
}

const has = (column, field) => {
  for (let layer = 0; layer <= column.run.n_layers; layer++) if (!Number.isNaN(column.value(field, layer))) return true;
  return false;
};

function promptText() {
  const own = prompt(state.run);
  const node = byId("prompt-text");
  if (!own) {
    node.replaceChildren("Each column is one prompt at its last position.");
    return;
  }
  const answer = own.answers.length ? make("span", { class: "answer" }, " → ", make("bdi", { text: own.answers.join(" / ") })) : null;
  node.replaceChildren(make("bdi", { text: own.text ?? "" }), answer ?? "");
}
