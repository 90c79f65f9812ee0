// @ts-check
/** Puts the page together: buttons and keys on one side, a conversation on the other. */

import { stayAwake } from "./awake.js";
import { Conversation } from "./conversation.js";
import { Meters } from "./meters.js";
import { save } from "./recording.js";
import { isTokenRight, keepToken, keptToken, readInfo, whyUnreachable } from "./server.js";
import { Settings } from "./settings.js";
import { obstacle } from "./sound.js";
import { offerThemes } from "./theme.js";
import { byId, clearWords, showModel, showNotice, showState, showTime, showWords } from "./view.js";

const CLOCK_MS = 250;

/** @type {import("./server.js").Info | null} */
let info = null;
/** @type {Conversation | null} */
let conversation = null;
let token = keptToken();

const settings = new Settings(byId("settings-form"));
const meters = new Meters([byId("disc-you"), byId("disc-moshi")]);

async function learn() {
  info = await readInfo();
  if (!info) return;
  showModel(info);
  settings.offer(info.settings ?? {});
}

async function talk() {
  showNotice(null);
  if (!info) await learn();
  if (!info) return showNotice({ code: "unreachable", sentence: "" });
  if (info.auth && !token) return byId("token-dialog").showModal();
  clearWords();
  const wishes = settings.wishes;
  if (token) wishes.parameters.token = token;
  const begun = new Conversation(wishes, {
    changed: () => conversation === begun && changed(begun),
    level: (side, loudness) => conversation === begun && meters.set(side, loudness),
    said: (begins) => {
      const last = begun.transcript.paragraphs.at(-1);
      if (conversation === begun && last) showWords(last, begins);
    },
  });
  conversation = begun;
  changed(begun);
  await begun.start(location.href, info.formats ?? []);
}

/** @param {Conversation} begun */
async function changed(begun) {
  showState(begun, info);
  void stayAwake(begun.isActive);
  const failure = begun.failure;
  if (!failure) return;
  if (failure.code !== "unreachable") return showNotice(failure);
  const code = await whyUnreachable(token);
  if (code === "token") return askToken("The server does not take this token.");
  showNotice({ code, sentence: "" });
}

/** @param {string} error */
function askToken(error) {
  keepToken((token = ""));
  byId("token-error").textContent = error;
  if (!byId("token-dialog").open) byId("token-dialog").showModal();
}

/** @param {SubmitEvent} event */
async function takeToken(event) {
  event.preventDefault();
  const wish = byId("token").value.trim();
  if (!(await isTokenRight(wish))) return askToken("The server does not take this token.");
  keepToken((token = wish));
  byId("token-error").textContent = "";
  byId("token-dialog").close();
  await talk();
}

function toggle() {
  if (conversation?.isActive) conversation.stop();
  else if (!byId("talk").disabled) void talk();
}

function toggleMute() {
  if (conversation?.isActive) conversation.mute(!conversation.muted);
}

function saveText() {
  if (!conversation) return;
  const title = `${info?.model.name ?? "Moshi"}, ${new Date().toLocaleString()}`;
  save(`${fileName()}.txt`, conversation.transcript.toText(title), "text/plain");
}

function saveAudio() {
  if (conversation) save(`${fileName()}.wav`, conversation.recording.toWav(), "audio/wav");
}

function fileName() {
  return `moshi-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}`;
}

/** @param {KeyboardEvent} event */
function press(event) {
  const target = /** @type {HTMLElement} */ (event.target);
  const taken = target.closest("button, input, select, textarea, a, dialog, summary");
  const modified = event.ctrlKey || event.altKey || event.metaKey || event.repeat;
  if (modified || document.querySelector("dialog[open]")) return;
  if (event.key.toLowerCase() === "m" && !target.matches("input, select, textarea")) toggleMute();
  else if ((event.key === " " || event.key === "Enter") && !taken) {
    event.preventDefault();
    toggle();
  }
}

byId("talk").addEventListener("click", toggle);
byId("mute").addEventListener("click", toggleMute);
byId("save-text").addEventListener("click", saveText);
byId("save-audio").addEventListener("click", saveAudio);
byId("open-settings").addEventListener("click", () => byId("settings").showModal());
byId("close-settings").addEventListener("click", () => byId("settings").close());
byId("reset").addEventListener("click", () => settings.reset());
byId("settings-form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  byId("settings").close();
});
byId("token-form").addEventListener("submit", takeToken);
byId("token-cancel").addEventListener("click", () => byId("token-dialog").close());
addEventListener("keydown", press);
addEventListener("pagehide", () => conversation?.stop());
setInterval(() => conversation?.isActive && showTime(conversation), CLOCK_MS);
setInterval(() => conversation?.phase === "live" && showState(conversation, info), 1000);

offerThemes(byId("theme"));
const missing = obstacle();
if (missing) showNotice({ code: missing, sentence: "" });
await learn();
byId("talk").dataset.ready = "true";
