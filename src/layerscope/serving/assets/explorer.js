// The explorer: a text and what is asked of it, the grid below, texts that are kept and compared.

let current = null;
let baseline = null;
let timer;

function soon() {
  clearTimeout(timer);
  timer = setTimeout(() => show(ask()), DELAY_MS);
}

async function show(asking) {
  const job = await asking;
  if (!job) return;
  const { run, prompt: fresh, replaced } = receive(job);
  if (baseline && baseline === replaced) baseline = fresh;
  const first = current === null;
  current = fresh;
  byId("grid").hidden = false;
  if (first || state.run !== run) {
    const { metric } = state;
    setRun(run);
    if (!first) state.metric = metric;
  }
  if (!run.lenses.includes(state.lens) || !fresh.blocks[state.lens]) state.lens = run.headline;
  state.against = against(run, fresh);
  state.fact = factOf(fresh);
  state.variant = "";
  settle();
  state.tracked = state.tracked.map(({ word }) => followed(word)); // by the vocabulary as it is now
  tellOutput(fresh.look);
  listKept();
  await refresh();
  trackedChanged();
  if (byId("pin-list").children.length !== state.pins.length) pins(); // those of a look that is gone are gone
  if (baseline && baseline !== fresh) tellDifference(fresh);
  document.documentElement.dataset.looks = String(Number(document.documentElement.dataset.looks ?? 0) + 1);
}

// What the grid is held against: the text that is compared with, be it in another model; else what was chosen, as far as
// it is not about a text.
function against(run, fresh) {
  if (baseline && baseline !== fresh) {
    if (run.prompts.includes(baseline)) return `prompt:${run.prompts.indexOf(baseline)}`;
    if (factOf(baseline) === factOf(fresh)) return `run:${PAGE.runs.findIndex(({ prompts }) => prompts.includes(baseline))}`;
  }
  return state.against.startsWith("lens:") ? state.against : "";
}

function tellOutput(look) {
  const words = (look.output?.top ?? []).slice(0, 5).map(({ token, p }) =>
    make("span", { class: "word" }, make("b", {}, tokenNode(token)), " ", make("span", { class: "p", text: number(p) })),
  );
  const none = make("span", { text: "the model's output is not finite" });
  byId("said").replaceChildren(make("span", { class: "next", text: "next" }), ...(words.length ? words : [none]));
  const { identity } = look;
  const check = identity.ok ? "passed" : "failed";
  const marks = [
    [`Identity check ${check}`, identity.ok ? "ok" : "failed", `${identity.note} KL ${identity.kl_bits === null ? "not finite" : identity.kl_bits.toExponential(1)} bits`],
    [look.chat ? "As a chat, by the model's template" : look.bos, "plain", look.run.prompts[0].text],
    ...look.tracked.filter(({ reason }) => reason).map(({ word, reason }) => [`${visible(word)} cannot be followed`, "careful", reason]),
    [`${look.seconds.toFixed(2)} s`, "plain", "How long the look took on the server"],
  ];
  byId("marks").replaceChildren(...marks.map(([text, look_, title]) => make("li", {}, make("span", { class: `badge ${look_}`, title, text }))));
}

async function tellDifference(fresh) {
  const { ok, told: difference } = await post("/differences", { a: baseline.look.id, b: fresh.look.id });
  const last = ok ? difference.layers.at(-1) : null;
  if (fresh !== current || !last || last.js_bits === null) return;
  const text = `Outputs differ by ${last.js_bits.toFixed(3)} bits`;
  const title = `Jensen-Shannon divergence, from 0 to 1, from the kept text at layer ${last.layer} under lens ${difference.lenses[0]}`;
  byId("marks").append(make("li", {}, make("span", { class: "badge plain", title, text })));
}

// Texts that are kept

function keep(compare) {
  if (!current) return;
  current.look.kept = true;
  baseline = compare ? current : baseline;
  listKept();
  say(compare ? "kept; what follows is compared with it" : "kept");
  byId("text").focus();
}

function listKept() {
  const kept = PAGE.runs.flatMap((run) => run.prompts.filter(({ look }) => look.kept).map((one) => ({ run, one })));
  byId("kept").hidden = !kept.length;
  byId("kept-list").replaceChildren(...kept.map(({ run, one }) => keptLine(run, one)));
}

function keptLine(run, one) {
  const best = one.look.output?.top[0];
  const next = best ? make("span", { class: "next" }, " → ", tokenNode(best.token), ` ${number(best.p)}`) : null;
  const many = PAGE.runs.length > 1 ? `${run.label} · ` : "";
  const words = make("span", { class: "words", title: one.look.asked.text }, many, make("bdi", { text: one.look.asked.text }), next);
  const again = make("button", { type: "button", class: "small", text: "Edit" });
  again.addEventListener("click", () => fill(one));
  const against = make("button", { type: "button", class: "small", "aria-pressed": String(one === baseline), text: one === baseline ? "Compared" : "Compare" });
  against.addEventListener("click", () => {
    baseline = one === baseline ? null : one;
    state.against = "";
    listKept();
    soon();
  });
  const away = make("button", { type: "button", class: "small", text: "Forget" });
  away.addEventListener("click", () => {
    one.look.kept = false;
    if (baseline === one) baseline = null;
    if (one !== current) forget(run, one);
    state.against = "";
    listKept();
    soon();
  });
  return make("li", {}, words, make("span", { class: "tools" }, again, against, away));
}

// Put a kept text back into the fields.
function fill(one) {
  const { asked } = one.look;
  byId("choose-model").value = asked.model;
  modelChanged();
  byId("text").value = asked.text;
  byId("answer").value = asked.answer ?? "";
  byId("chat").checked = Boolean(asked.chat);
  byId("system").value = asked.system ?? "";
  byId("system").hidden = !asked.chat;
  byId("text").focus();
  soon();
}

// Files

// The text measured in full, as `look --save` does.
async function runFolder() {
  const button = byId("get-run");
  const { id } = current.look;
  button.disabled = true;
  try {
    const { ok, told: job } = await post(`/looks/${id}/run`, {});
    if (!ok) return told(job.error);
    const end = job.state === "done" ? job : await untilItEnds(job, `/looks/${id}/run`, () => true);
    if (end.error) return told(end.error);
    const answer = await fetch(`/api/looks/${id}/run.zip`);
    if (!answer.ok) return told((await answer.json()).error);
    download(`${fileName("run", current.look.run.label)}.zip`, await answer.blob());
  } finally {
    button.disabled = false;
    progress(null);
  }
}

async function table() {
  const answer = await fetch(`/api/looks/${current.look.id}/grid.csv`);
  if (answer.ok) download(`${fileName("look", current.look.run.label)}.csv`, await answer.blob());
  else told((await answer.json()).error);
}

async function code() {
  const { ok, told: found } = await api(`/looks/${current.look.id}/code`);
  if (!ok) return told(found.error);
  byId("python").textContent = found.python;
  byId("shell").textContent = found.shell ?? "";
  byId("shell-part").hidden = !found.shell;
  byId("code-note").textContent = found.note ?? "";
  byId("code").showModal();
}

// The fields

function modelChanged() {
  const model = chosenModel();
  lensBoxes(model.lenses);
  byId("chat-control").hidden = !model.chat;
}

// Lenses to read through: several may be chosen, one at least.
function lensBoxes(lenses) {
  const row = byId("ask-lenses").querySelector(".row");
  const before = new Set(chosenLenses());
  const chosen = lenses.filter((lens) => before.has(lens));
  const first = new Set(chosen.length ? chosen : ["logit"]);
  row.replaceChildren(
    ...lenses.map((lens) => {
      const input = make("input", { type: "checkbox", value: lens });
      input.checked = first.has(lens);
      input.addEventListener("change", () => {
        if (!chosenLenses().length) input.checked = true;
        else soon();
      });
      return make("label", {}, input, make("span", { text: lens }));
    }),
  );
}

function bindFields() {
  for (const id of ["text", "answer", "layers", "top", "system"]) byId(id).addEventListener("input", soon);
  byId("positions").addEventListener("change", soon);
  byId("chat").addEventListener("change", (event) => {
    byId("system").hidden = !event.target.checked;
    soon();
  });
  byId("choose-model").addEventListener("change", () => {
    modelChanged();
    soon();
  });
  byId("cancel").addEventListener("click", cancel);
  byId("keep").addEventListener("click", () => keep(false));
  byId("compare").addEventListener("click", () => keep(true));
  byId("get-code").addEventListener("click", code);
  byId("get-csv").addEventListener("click", table);
  byId("get-run").addEventListener("click", runFolder);
}

document.querySelector('label[for="choose-fact"]').textContent = "Text";
link.usable = false; // a look lives as long as the page, so its address would lead nowhere
byId("grid-link").hidden = true;
whenFollowed.push(soon);
bindGrid();
bindTracking();
bindFields();
bindCopy();
const { told: served } = await api("/models");
({ models, limits } = served);
PAGE.runs.push(...models.map(runOfModel));
state.run = PAGE.runs[0];
byId("choose-model").replaceChildren(...models.map(({ name }) => make("option", { value: name, text: name })));
modelChanged();
bindTheme(() => repaint());
addEventListener("resize", () => floating.follow(), { passive: true });
addEventListener("scroll", () => floating.follow(), { passive: true });
await show(ask());
document.documentElement.dataset.ready = "true";
