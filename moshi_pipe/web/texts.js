// @ts-check
/** What people read when something is in the way: what it is, and what to do about it. */

/**
 * @typedef {{ title: string, text: string, again: boolean }} Notice `again`: trying again may help.
 * @typedef {import("./protocol.js").Failure} Failure
 */

/** @type {Record<string, [title: string, text: string, again?: boolean]>} */
const NOTICES = {
  insecure: [
    "The microphone needs a secure address",
    "Browsers give a page the microphone only over https, or on this same computer. Open the " +
      "server by https, or bring its port to this computer with " +
      "`ssh -L PORT:localhost:PORT HOST` and open `http://localhost:PORT`.",
    false,
  ],
  unsupported: [
    "This browser cannot talk",
    "It lacks the audio functions that this page needs. A current Firefox, Chrome, Edge or " +
      "Safari has them.",
    false,
  ],
  microphone_refused: [
    "The microphone is not permitted",
    "Allow it beside the address of this page, in the browser's settings for the site, and " +
      "press Talk again.",
  ],
  microphone_missing: ["There is no microphone", "Connect one, and press Talk again."],
  microphone_busy: [
    "The microphone cannot be used",
    "Another program may hold it. Close that, and press Talk again.",
  ],
  microphone_ended: ["The microphone is gone", "It was unplugged or taken away."],
  audio_failed: ["The sound could not be started", "Reload the page, and press Talk again."],
  codec_failed: [
    "The browser's Opus codec failed",
    "Choose “Uncompressed” under Settings, Audio, and press Talk again.",
  ],
  at_capacity: ["All places are taken", "The server holds as many conversations as it can. Try again in a while."],
  too_many_connections: ["Too many connections", "The server takes no more of them for now."],
  unreachable: ["The server does not answer", "It may be starting, or it is not there any more."],
  not_ready: ["The server is not ready yet", "It is still loading, or it is about to stop."],
  refused: [
    "The server does not let this page in",
    "There may be too many connections from your address, or it does not know this page's address.",
  ],
  lost: ["The connection was lost", "It did not come back in time, so the conversation is over."],
  resume_failed: [
    "The conversation could not be continued",
    "It was kept for a while, and that is over. A new one can begin.",
  ],
  taken_over: ["Continued elsewhere", "This conversation goes on in another window."],
  shutdown: ["The server is stopping", "It said goodbye to all conversations."],
  time_limit: ["Time is up", "The conversation reached its longest length."],
  idle: ["Ended in silence", "Nothing was heard for a while."],
  too_slow: ["The connection is too slow", "What Moshi said could not be delivered in time."],
  too_fast: ["The server has had enough", "This page sent more than the server takes at once."],
  engine_failed: ["The model failed", "The server starts it anew. Try again in a moment."],
  internal: ["The server failed", "Its log says why. A new conversation may well work."],
  token: ["The token is wrong", "The server does not know it."],
};

/** @type {Record<string, string>} */
const ENDINGS = {
  time_limit: "The longest length is reached",
  idle: "Nothing is heard",
  shutdown: "The server stops",
};

/**
 * @param {Failure} failure
 * @param {{ hostname: string, port: string }} place Of the page.
 * @returns {Notice} In its text, what is between backticks is code.
 */
export function noticeOf({ code, sentence }, { hostname, port }) {
  const known = NOTICES[code];
  if (known) {
    const text = known[1].replaceAll("PORT", port || "80").replaceAll("HOST", hostname);
    return { title: known[0], text, again: known[2] ?? true };
  }
  const title = code === "bad_request" ? "The settings are not accepted" : "Something went wrong";
  const text = sentence ? `The server says: ${sentence}.` : `The connection closed (${code}).`;
  return { title, text, again: true };
}

/**
 * @param {string} reason
 * @param {number} left_s
 */
export function endingText(reason, left_s) {
  const what = ENDINGS[reason] ?? "The server ends it";
  return `${what}: the conversation ends in ${Math.max(0, Math.ceil(left_s))} s.`;
}
