// Asking the server: one look at a time, the newest text first; how far it is, and what came of it.

const DELAY_MS = 250;
// A look that takes longer is waited for with its progress on the screen.
const AT_ONCE_S = 2;
const session = crypto.randomUUID();
let models = [];
let limits = {};
let wanted = 0;
let running = null;

async function api(path, options = {}) {
  const answer = await fetch(`/api${path}`, {
    ...options,
    // Without it the server refuses whatever changes anything: no form of another site can send it.
    headers: options.method ? { "Content-Type": "application/json" } : {},
  });
  const told = await answer.json();
  return { ok: answer.ok, status: answer.status, told };
}

const post = (path, body) => api(path, { method: "POST", body: JSON.stringify(body) });

const chosenModel = () => models.find(({ name }) => name === byId("choose-model").value);
const chosenLenses = () => all("#ask-lenses input:checked").map(({ value }) => value);

function askedNow() {
  const body = {
    model: chosenModel().name,
    text: byId("text").value,
    lenses: chosenLenses(),
    positions: byId("positions").value || null,
    layers: byId("layers").value.trim() || null,
    top: Math.min(Math.max(Math.round(Number(byId("top").value)) || 20, 1), limits.top),
    answer: byId("answer").value || null,
    track: state.tracked.map(({ word }) => word).slice(0, limits.tracked),
    session,
    supersede: true,
  };
  if (byId("chat").checked && chosenModel().chat) {
    body.chat = true;
    body.system = byId("system").value || null;
  }
  return body;
}

// Look at what stands in the fields; whatever was asked before and has not come is given up.
async function ask() {
  const turn = ++wanted;
  const body = askedNow();
  byId("grid").classList.add("is-old");
  if (!body.text) {
    told("");
    byId("said").textContent = "Type a text.";
    return null;
  }
  try {
    const { ok, told: job } = await post(`/looks?wait=${AT_ONCE_S}&result=page`, body);
    if (turn !== wanted) return null;
    const finished = ok && !job.page ? await later(job, () => turn === wanted) : job;
    if (turn !== wanted || !finished || finished.state === "cancelled") return null;
    if (!finished.page) throw new Error(finished.error ?? "the server gave no reason");
    told("");
    return finished;
  } catch (error) {
    if (turn === wanted) told(error instanceof TypeError ? "The server does not answer; see whether it still runs." : error.message);
    return null;
  } finally {
    if (turn === wanted) {
      progress(null);
      byId("grid").classList.remove("is-old");
    }
  }
}

// A look that was not done at once, with its result.
async function later(job, still) {
  const end = await untilItEnds(job, `/looks/${job.id}`, still);
  return end?.state === "done" ? (await api(`/looks/${job.id}?result=page`)).told : end;
}

// Follow a job by the server's events to its end; `path` is where it is, and `still` whether anybody waits for it.
function untilItEnds(job, path, still) {
  running = path;
  progress(job);
  return new Promise((done) => {
    const events = new EventSource(`/api${path}/events`);
    const end = (result) => {
      events.close();
      running = null;
      done(result);
    };
    const stateOf = (event) => JSON.parse(event.data);
    for (const name of ["queued", "running", "progress"]) events.addEventListener(name, (event) => (still() ? progress(stateOf(event)) : end(null)));
    for (const name of ["done", "failed", "cancelled"]) events.addEventListener(name, (event) => end(stateOf(event)));
    events.addEventListener("error", () => events.readyState === EventSource.CLOSED && end({ state: "failed", error: "The connection to the server was lost; change the text to try again." }));
  });
}

const STAGES = { opening: "opening the model", blocks: "block", vocabulary: "vocabulary" };

function progress(job) {
  byId("cancel").hidden = !job;
  let words = "";
  if (job?.state === "queued") words = job.position_in_queue ? `waiting behind ${job.position_in_queue}` : "waiting";
  else if (job?.progress) {
    const { stage, done, total } = job.progress;
    words = total > 1 ? `${STAGES[stage]} ${done.toLocaleString("en")} of ${total.toLocaleString("en")}` : STAGES[stage];
  } else if (job) words = "running";
  byId("progress").textContent = words;
}

function told(sentence) {
  byId("wrong").textContent = sentence;
  byId("wrong").hidden = !sentence;
}

async function cancel() {
  if (!running) return;
  await api(running, { method: "DELETE" });
}
