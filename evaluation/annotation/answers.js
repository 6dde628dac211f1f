"use strict";
// Answers of one rater as plain data: what can be said, what is still open, what is saved, and the
// copy that the browser keeps. Nothing here touches the screen.

const study = JSON.parse(document.getElementById("study").textContent);
const isPair = study.kind === "gsb";
const CANNOT = "0";
const asked = study.items.reduce((sum, item) => sum + item.dimensions.length, 0);

// What can be answered: the key to press, the recorded score, the word that is shown.
const CHOICES = isPair
  ? [
      { keys: ["a", "1"], score: 1, word: "A is better" },
      { keys: ["s", "2"], score: 0, word: "Same" },
      { keys: ["b", "3"], score: -1, word: "B is better" },
    ]
  : study.tiers.map((word, i) => ({ keys: [String(i + 1)], score: i + 1, word }));

function blankAnswer() {
  return { marks: {}, comment: "", seconds: 0, plays: 0, watched: false };
}

function isAnswered(mark) {
  return mark !== undefined && (mark.score !== null || mark.reason.trim() !== "");
}

function openQuestions(item, answer) {
  return item.dimensions.filter((name) => !isAnswered(answer.marks[name]));
}

function setMark(answer, name, score) {
  const old = answer.marks[name];
  if (old !== undefined && old.score === score) return;
  answer.marks[name] = {
    score,
    reason: "",
    time: new Date().toISOString(),
    revision: old === undefined ? 0 : old.revision + 1,
  };
}

// The lines of the saved file: what `eval mos score` and `eval gsb score` read.
function toRecords(rater, answers, viewport) {
  const records = [];
  study.items.forEach((item, index) => {
    const answer = answers[item.id];
    if (answer === undefined) return;
    for (const name of item.dimensions) {
      const mark = answer.marks[name];
      if (!isAnswered(mark)) continue;
      const provenance = {
        study: study.study,
        page: study.page,
        format: study.format,
        longtake: study.longtake,
        asked,
        position: index + 1,
        seconds: Math.round(answer.seconds * 10) / 10,
        plays: answer.plays,
        revision: mark.revision,
        viewport,
      };
      if (isPair) provenance.shown = ["left", "right"];
      if (answer.comment.trim() !== "") provenance.comment = answer.comment.trim();
      const record = { sample: item.id, dimension: name, rater, score: mark.score };
      if (mark.score === null) record.reason = mark.reason.trim();
      records.push({ ...record, time: mark.time, provenance });
    }
  });
  return records;
}

// The copy that survives closing the page; private windows may refuse it.
const memory = {
  works: true,
  key: (rater) => `longtake ${study.study} ${study.page} ${rater}`,
  load(rater) {
    try {
      const kept = JSON.parse(localStorage.getItem(this.key(rater)));
      if (kept?.answers instanceof Object) return kept;
    } catch (error) {
      if (!(error instanceof SyntaxError)) this.works = false;
    }
    return { answers: {}, place: 0, saved: true };
  },
  store(rater, state) {
    try {
      localStorage.setItem(this.key(rater), JSON.stringify(state));
    } catch {
      this.works = false;
    }
  },
};
