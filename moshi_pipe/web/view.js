// @ts-check
/** What is seen: the state of a conversation becomes texts, buttons and paragraphs. */

import { endingText, noticeOf } from "./texts.js";
import { clock } from "./transcript.js";

const FRAME_S = 0.08; // where the server does not say. Source: Mimi, 12.5 Hz

/**
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./server.js").Info} Info
 */

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** @param {Info} info */
export function showModel(info) {
  byId("model").hidden = false;
  byId("model-name").textContent = info.model.name;
  byId("random").hidden = !info.model.random;
  byId("random-note").hidden = !info.model.random;
  document.title = `${info.model.name} · moshi-pipe`;
}

/** @param {import("./protocol.js").Failure | null} failure */
export function showNotice(failure) {
  byId("notice").hidden = !failure;
  if (!failure) return;
  const { title, text, again } = noticeOf(failure, location);
  byId("notice-title").textContent = title;
  byId("notice-text").replaceChildren(
    ...text.split("`").map((part, i) => (i % 2 ? codeOf(part) : part)),
  );
  if (!again) byId("talk").disabled = true;
}

/**
 * @param {Conversation} conversation
 * @param {Info | null} info
 */
export function showState(conversation, info) {
  const { phase, muted, isActive } = conversation;
  document.body.dataset.phase = phase;
  document.body.dataset.muted = String(muted && isActive);
  setText("status", statusOf(conversation));
  byId("mute").disabled = !isActive;
  byId("mute").setAttribute("aria-pressed", String(muted && isActive));
  setText("name-you", muted && isActive ? "You, muted" : "You");
  byId("queue").hidden = phase !== "waiting";
  setText("queue", conversation.queue ? String(conversation.queue.position) : "");
  const begun = conversation.elapsed_s > 0;
  document.body.dataset.begun = String(begun);
  setText("talk-label", isActive ? "Stop" : begun ? "Talk again" : "Talk");
  byId("save-text").disabled = !conversation.transcript.paragraphs.length;
  byId("save-audio").disabled = !begun || conversation.recording.isEmpty;
  showTime(conversation);
  if (begun) showFacts(conversation, (info?.frame_ms ?? 1000 * FRAME_S) / 1000);
}

/** @param {Conversation} conversation */
export function showTime(conversation) {
  const { phase, left_s, elapsed_s, isActive } = conversation;
  setText("elapsed", clock(elapsed_s));
  setText("left", isActive && left_s >= 0 ? `${clock(left_s)} left` : "");
  if (phase === "lost" || conversation.ending) setText("status", statusOf(conversation));
  byId("log").setAttribute("aria-busy", String(isActive && !conversation.transcript.isPaused(elapsed_s)));
}

/**
 * @param {Conversation} conversation
 * @returns {string}
 */
function statusOf({ phase, failure, queue, muted, ending, hope_s, resumed, elapsed_s }) {
  if (phase === "starting") return "Waiting for the microphone";
  if (phase === "connecting") return "Connecting";
  if (phase === "waiting" && queue) {
    const { position, waiting } = queue;
    return position <= 1 ? "You are next" : `Place ${position} of ${waiting} in the queue`;
  }
  if (phase === "lost") return `Connection lost. Trying again for ${Math.ceil(hope_s)} s`;
  if (phase === "over") return failure ? "" : `Ended after ${clock(elapsed_s)}`;
  if (ending) return endingText(ending.reason, (ending.at_ms - performance.now()) / 1000);
  if (muted) return "Muted: Moshi does not hear you";
  return resumed ? "Reconnected. Go on" : "Listening. Speak whenever you like";
}

/**
 * @param {Conversation} conversation
 * @param {number} frame_s
 */
function showFacts({ delay, delay_ms, lost }, frame_s) {
  const dropped_s = lost.frames * frame_s + lost.seconds;
  setText("delay", Number.isNaN(delay_ms) ? "–" : `${Math.round(delay_ms)} ms`);
  setText("dropped", dropped_s ? `${dropped_s.toFixed(2)} s` : "none");
  setText("gaps", lost.gaps ? String(lost.gaps) : "none");
  const parts = [
    ["server", delay.server],
    ["network", delay.network],
    ["playback", delay.playback],
  ].map(([name, ms]) => `${name} ${Number.isNaN(ms) ? "–" : Math.round(Number(ms))}`);
  setText("parts", Number.isNaN(delay_ms) ? "" : `${parts.join(" + ")} ms`);
}

/** Forget the transcript of the last conversation. */
export function clearWords() {
  byId("log").replaceChildren(byId("empty"));
  byId("empty").hidden = false;
  for (const id of ["delay", "dropped", "gaps"]) setText(id, "–");
  setText("parts", "");
}

/**
 * @param {import("./transcript.js").Paragraph} paragraph The last one.
 * @param {boolean} begins Whether it is a new one.
 */
export function showWords({ time_s, text }, begins) {
  const log = byId("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  if (begins) {
    byId("empty").hidden = true;
    const paragraph = document.createElement("p");
    const time = document.createElement("time");
    time.dateTime = `PT${Math.floor(time_s)}S`;
    time.textContent = clock(time_s);
    paragraph.append(time, document.createElement("span"));
    log.append(paragraph);
  }
  log.lastElementChild.lastElementChild.textContent = text;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

/** @param {string} text */
function codeOf(text) {
  const code = document.createElement("code");
  code.textContent = text;
  return code;
}

/**
 * Only when it changes: screen readers read what is written.
 * @param {string} id
 * @param {string} text
 */
function setText(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}
