// A player of one clip, or of two in step, with common controls.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

const SPEEDS = [1, 0.5, 0.25];
const DRIFT_S = 0.08; // two clips further apart than this are brought together
const PAUSE_MS = 500; // between two rounds
const COVERED = 0.9; // of a clip must have been played to count as watched

function playedSeconds(video) {
  let sum = 0;
  for (let i = 0; i < video.played.length; i++) sum += video.played.end(i) - video.played.start(i);
  return sum;
}

// The longest leads; a shorter one waits at its last frame.
class Player {
  constructor(sources, labels, { onWatched, onBroken }) {
    this.broken = false;
    this.closed = false;
    this.videos = sources.map((src, i) =>
      make("video", { src, muted: true, playsinline: true, preload: "auto", "aria-label": labels[i] })
    );
    this.button = make("button", { type: "button", class: "play", onclick: () => this.toggle() });
    this.bar = make("input", {
      type: "range", min: 0, max: 1, step: "any", value: 0, "aria-label": "Position",
      oninput: () => this.seek(Number(this.bar.value) * this.length),
      onchange: () => this.bar.blur(), // the keys go back to the questions
    });
    this.clock = make("span", { class: "clock" });
    this.speed = make("select", { "aria-label": "Speed", onchange: () => this.setSpeed() },
      ...SPEEDS.map((s) => make("option", { value: s }, `${s}\u00d7`)));
    this.controls = make("div", { class: "controls" },
      this.button, this.bar, this.clock, this.speed);
    for (const video of this.videos) {
      video.muted = true; // the attribute alone does not mute a video that a script made
      video.addEventListener("timeupdate", () => this.tick());
      video.addEventListener("play", () => this.tick());
      video.addEventListener("pause", () => this.tick());
      video.addEventListener("loadedmetadata", () => this.tick());
      video.addEventListener("ended", () => this.ended(onWatched));
      video.addEventListener("error", () => {
        if (this.closed) return;
        this.broken = true;
        onBroken();
      });
    }
    this.tick();
  }

  get leader() {
    return this.videos.reduce((a, b) => ((b.duration || 0) > (a.duration || 0) ? b : a));
  }

  get length() {
    return this.leader.duration || 0;
  }

  get playing() {
    return this.videos.some((video) => !video.paused && !video.ended);
  }

  play() {
    if (this.length > 0 && this.leader.ended) this.seek(0);
    for (const video of this.videos) if (!video.ended) video.play().catch(() => this.tick());
  }

  pause() {
    clearTimeout(this.again);
    for (const video of this.videos) video.pause();
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  replay() {
    this.pause();
    this.seek(0);
    this.play();
  }

  seek(time) {
    for (const video of this.videos) {
      video.currentTime = Math.min(Math.max(time, 0), video.duration || 0);
    }
    this.tick();
  }

  setSpeed() {
    this.speed.blur();
    for (const video of this.videos) video.playbackRate = Number(this.speed.value);
  }

  // Only the leader corrects the others, or two corrections would chase each other.
  tick() {
    const leader = this.leader;
    if (!leader.paused && !leader.seeking) {
      for (const video of this.videos) {
        const end = video.duration || 0;
        const apart = Math.abs(video.currentTime - leader.currentTime);
        if (video !== leader && leader.currentTime < end && apart > DRIFT_S) {
          video.currentTime = leader.currentTime;
        }
      }
    }
    if (this.length > 0) this.bar.value = leader.currentTime / this.length;
    this.clock.textContent = `${leader.currentTime.toFixed(1)} / ${this.length.toFixed(1)} s`;
    this.button.textContent = this.playing ? "Pause" : "Play";
  }

  ended(onWatched) {
    this.tick();
    if (this.closed || !this.videos.every((video) => video.ended)) return;
    if (this.videos.every((video) => playedSeconds(video) >= COVERED * video.duration)) onWatched();
    clearTimeout(this.again);
    this.again = setTimeout(() => this.play(), PAUSE_MS);
  }

  close() {
    this.closed = true;
    this.pause();
    for (const video of this.videos) video.removeAttribute("src");
  }
}
