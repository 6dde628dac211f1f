// What is on the screen: the start, one clip or pair with its questions, the overview; and the keys.

const root = document.getElementById("annotate");
const noun = isPair ? "pairs" : "clips";
let rater = study.rater;
let state = null; // {answers, place, saved}
let view = null; // {item, answer, player, questions, active, since} while a clip is shown

function keep(changed = true) {
  if (changed) state.saved = false;
  memory.store(rater, state);
  showProgress();
}

function answerOf(item) {
  return (state.answers[item.id] ??= blankAnswer());
}

function countDone() {
  return study.items.filter((item) => openQuestions(item, state.answers[item.id] ?? blankAnswer()).length === 0).length;
}

// Time counts while the page is visible.
function countTime() {
  if (view === null) return;
  const now = performance.now();
  if (!document.hidden) view.answer.seconds += (now - view.since) / 1000;
  view.since = now;
}

function leave() {
  if (view === null) return;
  countTime();
  view.player.close();
  view = null;
  keep(false);
}

const header = {
  text: make("span", { class: "count" }),
  bar: make("progress", { max: study.items.length, value: 0, "aria-label": "Progress" }),
  save: make("button", { type: "button", class: "save", onclick: save }, "Save to file"),
};

function showProgress() {
  const done = countDone();
  const place = view === null ? "" : `${study.items.indexOf(view.item) + 1} of ${study.items.length}, `;
  header.text.textContent = `${place}${done} done`;
  header.bar.value = done;
  header.save.classList.toggle("due", !state.saved);
}

function screen(...content) {
  const warning = memory.works ? null : make("p", { class: "warning" },
    "This browser keeps nothing when the page is closed. Save to a file before you leave.");
  root.replaceChildren(
    make("header", {}, make("span", { class: "who" }, rater), header.bar, header.text,
      make("button", { type: "button", onclick: showEnd }, "Overview"), header.save),
    ...(warning === null ? [] : [warning]), ...content);
  showProgress();
  scrollTo(0, 0);
}

function save() {
  countTime();
  const records = toRecords(rater, state.answers, `${innerWidth}x${innerHeight}`);
  const lines = records.map((record) => JSON.stringify(record) + "\n").join("");
  const link = make("a", {
    href: URL.createObjectURL(new Blob([lines], { type: "application/x-ndjson" })),
    download: `${isPair ? "answers" : "ratings"}-${rater.replace(/[^\p{L}\p{N}_-]/gu, "_")}-${study.page}.jsonl`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  state.saved = true;
  keep(false);
}

function keyTable() {
  const rows = [
    [isPair ? "A  S  B" : "1 \u2013 5", "answer the marked question"],
    ["0", "cannot judge, with a reason"],
    ["\u2191 \u2193", "question before, after"],
    ["Enter", `next ${noun.slice(0, -1)}, when all is answered`],
    ["\u2190 \u2192", `${noun.slice(0, -1)} before, after`],
    ["Space", "play, pause"],
    ["R", "from the start"],
  ];
  return make("dl", { class: "keys" },
    ...rows.flatMap(([key, what]) => [make("dt", {}, key), make("dd", {}, what)]));
}

function showStart() {
  const name = make("input", { type: "text", required: true, autocomplete: "off", id: "name" });
  const ask = rater === "" ? make("p", {}, make("label", { for: "name" }, "Your name or code "), name) : null;
  const known = ask === null ? Object.keys(memory.load(rater).answers).length : 0;
  const form = make("form", { class: "intro", onsubmit: (event) => {
    event.preventDefault();
    rater = rater || name.value.trim();
    if (rater !== "") begin();
  } },
    make("h1", {}, isPair ? "Which clip is better?" : "How good are these clips?"),
    make("p", {}, isPair
      ? "You see two clips of the same text, A and B, side by side. Say for each question which is better, or that they are the same."
      : "You see one clip at a time with the text it was made from. Give each question a score from 1 to 5; what each score means is written beside it."),
    make("p", {}, "A clip can be answered when it has been played to its end once. What you answer is kept in this browser: you can close the page and go on later, and go back and correct."),
    make("p", {}, `${study.items.length} ${noun}, ${asked} questions in all. At the end, or at any time, save your answers to a file and send it back.`),
    keyTable(), ask,
    make("button", { class: "go" }, known > 0 ? "Continue" : "Begin"));
  root.replaceChildren(form);
}

function begin() {
  state = memory.load(rater);
  memory.store(rater, state); // a browser that refuses is told of on the first clip
  const place = Math.min(Math.max(state.place, 0), study.items.length - 1);
  if (countDone() === study.items.length) showEnd();
  else showItem(place);
}

function showEnd() {
  leave();
  const done = countDone();
  const all = done === study.items.length;
  const cells = study.items.map((item, index) => {
    const answer = state.answers[item.id] ?? blankAnswer();
    const open = openQuestions(item, answer).length;
    const how = open === 0 ? "done" : open < item.dimensions.length ? "part" : "todo";
    return make("button", { type: "button", class: how, onclick: () => showItem(index),
      title: open === 0 ? "answered" : `${open} questions left` }, String(index + 1));
  });
  screen(make("section", { class: "intro" },
    make("h1", {}, all ? "All answered. Thank you!" : `${done} of ${study.items.length} answered`),
    make("p", {}, all
      ? "Save your answers to a file and send it to the person who gave you this page."
      : "You can save what you have and go on later: saving again replaces the file as a whole."),
    make("p", {}, make("button", { type: "button", class: "go", onclick: save }, "Save to file")),
    make("div", { class: "grid" }, ...cells)));
}

function showItem(index) {
  leave();
  const item = study.items[index];
  const answer = answerOf(item);
  state.place = index;
  const labels = isPair ? ["A", "B"] : ["Clip"];
  const player = new Player(item.videos, labels, { onWatched: watched, onBroken: broken });
  view = { item, answer, player, since: performance.now(), active: 0, questions: [] };
  view.questions = item.dimensions.map(question);
  view.notice = make("p", { class: "notice", role: "status" });
  const screens = player.videos.map((video, i) =>
    make("figure", { class: "clip" }, video, isPair ? make("figcaption", {}, labels[i]) : ""));
  const comment = make("textarea", { rows: 2, placeholder: "Comment (optional)", "aria-label": "Comment",
    oninput: () => { answer.comment = comment.value; keep(); } });
  comment.value = answer.comment;
  screen(make("div", { class: `item ${study.kind}` },
    make("div", { class: "stage" },
      make("div", { class: "clips" }, ...screens), player.controls,
      make("div", { class: "task" },
        item.image === "" ? "" : make("figure", { class: "reference" },
          make("img", { src: item.image, alt: "Reference image" }), make("figcaption", {}, "Reference image")),
        make("div", {}, make("h2", {}, "Text"), make("p", { class: "prompt" }, item.caption || "(none)")))),
    make("div", { class: "questions" },
      view.notice, ...view.questions.map((q) => q.element), comment,
      make("nav", {},
        make("button", { type: "button", onclick: () => move(-1), disabled: index === 0 }, "Back"),
        make("button", { type: "button", class: "go", onclick: next }, "Next")))));
  const first = openQuestions(item, answer)[0];
  activate(first === undefined ? 0 : item.dimensions.indexOf(first));
  refresh();
  keep(false);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) player.play();
}

function question(name, place) {
  const about = study.dimensions.find((dimension) => dimension.name === name);
  const choices = CHOICES.map((choice, i) => make("button",
    { type: "button", role: "radio", class: "choice", onclick: () => mark(place, choice.score) },
    make("kbd", {}, choice.keys[0].toUpperCase()),
    make("span", {}, make("b", {}, choice.word),
      about.tiers.length > 0 && !isPair ? make("small", {}, about.tiers[i]) : "")));
  const cannot = make("button", { type: "button", role: "radio", class: "choice cannot",
    onclick: () => mark(place, null) }, make("kbd", {}, CANNOT), make("span", {}, "Cannot judge"));
  const reason = make("input", { type: "text", placeholder: "Why? (needed)", list: "reasons",
    "aria-label": "Reason", oninput: () => {
      view.answer.marks[name].reason = reason.value;
      refresh();
      keep();
    } });
  const given = make("span", { class: "given" });
  const element = make("section", { class: "question" },
    make("h3", { onclick: () => activate(place) }, about.title, given),
    make("div", { class: "body" },
      make("div", { class: "about" },
        about.question === "" ? "" : make("p", {}, about.question),
        about.aspects.length === 0 ? "" : make("p", { class: "faint" }, about.aspects.join("; "))),
      make("div", { role: "radiogroup", "aria-label": about.title, class: "choices" }, ...choices, cannot),
      reason));
  return { name, element, choices, cannot, reason, given };
}

function activate(place) {
  view.active = place;
  view.questions.forEach((q, i) => q.element.classList.toggle("active", i === place));
}

// With keys the marked question may be out of sight.
function goTo(place) {
  activate(Math.min(Math.max(place, 0), view.questions.length - 1));
  view.questions[view.active].element.scrollIntoView({ block: "nearest" });
}

// What the answers and the player allow now; nothing is built anew, so the focus stays.
function refresh() {
  const { answer, item, player, questions, notice } = view;
  for (const q of questions) {
    const given = answer.marks[q.name];
    const withdrawn = given !== undefined && given.score === null;
    q.choices.forEach((button, i) => {
      const chosen = given !== undefined && given.score === CHOICES[i].score;
      button.setAttribute("aria-checked", chosen);
      button.disabled = !answer.watched;
      if (chosen) q.given.textContent = isPair ? CHOICES[i].word : `${CHOICES[i].score} ${CHOICES[i].word}`;
    });
    q.cannot.setAttribute("aria-checked", withdrawn);
    q.reason.hidden = !withdrawn;
    if (withdrawn && q.reason.value !== given.reason) q.reason.value = given.reason;
    if (withdrawn) q.given.textContent = "cannot judge";
    if (given === undefined) q.given.textContent = "";
    q.element.classList.toggle("answered", isAnswered(given));
  }
  const open = openQuestions(item, answer).length;
  if (player.broken) notice.textContent = "This browser cannot play the clip: choose \u201cCannot judge\u201d.";
  else if (!answer.watched) notice.textContent = `Watch ${isPair ? "both clips" : "the clip"} to the end once, then answer.`;
  else if (open > 0) notice.textContent = `${open} question${open === 1 ? "" : "s"} left.`;
  else notice.textContent = "All answered. Enter: next.";
  notice.classList.toggle("ready", open === 0);
}

function watched() {
  view.answer.plays += 1;
  view.answer.watched = true;
  refresh();
  keep();
}

function broken() {
  if (view !== null) refresh();
}

function mark(place, score) {
  const { name, reason } = view.questions[place];
  if (score !== null && !view.answer.watched) return;
  countTime();
  setMark(view.answer, name, score);
  if (score === null) {
    if (view.player.broken) view.answer.marks[name].reason ||= "the clip does not play";
    activate(place);
  } else {
    const after = view.item.dimensions.findIndex((d, i) => i > place && !isAnswered(view.answer.marks[d]));
    goTo(after === -1 ? place : after);
  }
  refresh();
  if (score === null && !view.player.broken) reason.focus();
  keep();
}

function move(by) {
  const index = study.items.indexOf(view.item) + by;
  if (index >= study.items.length) showEnd();
  else if (index >= 0) showItem(index);
}

function next() {
  const open = openQuestions(view.item, view.answer);
  if (open.length === 0) return move(1);
  goTo(view.item.dimensions.indexOf(open[0]));
  view.notice.classList.remove("alert");
  requestAnimationFrame(() => view?.notice.classList.add("alert"));
}

document.addEventListener("keydown", (event) => {
  if (view === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("textarea, input, select");
  if (typing) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.matches("input"))) event.target.blur();
    return;
  }
  // A button that was reached with the Tab key keeps its own Enter and Space.
  if ((event.key === "Enter" || event.key === " ") && event.target.matches("button:focus-visible")) return;
  const key = event.key.toLowerCase();
  const choice = CHOICES.find((c) => c.keys.includes(key));
  const actions = {
    [CANNOT]: () => mark(view.active, null),
    enter: next,
    arrowleft: () => move(-1),
    arrowright: () => move(1),
    arrowup: () => goTo(view.active - 1),
    arrowdown: () => goTo(view.active + 1),
    " ": () => view.player.toggle(),
    r: () => view.player.replay(),
  };
  const act = choice === undefined ? actions[key] : () => mark(view.active, choice.score);
  if (act === undefined) return;
  event.preventDefault();
  act();
});

document.addEventListener("visibilitychange", () => {
  if (view === null) return;
  if (document.hidden) {
    view.answer.seconds += (performance.now() - view.since) / 1000;
    keep(false);
  }
  view.since = performance.now();
});

// Two tabs would overwrite each other's answers: the one that was opened last goes on.
addEventListener("storage", (event) => {
  if (state === null || event.key !== memory.key(rater)) return;
  view?.player.close();
  view = state = null;
  root.replaceChildren(make("p", { class: "warning" },
    "This page was opened in another tab. Go on there; nothing is lost."));
});

addEventListener("beforeunload", (event) => {
  if (state === null) return;
  countTime();
  memory.store(rater, state);
  if (!memory.works && !state.saved) event.preventDefault();
});

showStart();
