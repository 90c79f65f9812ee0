// @ts-check
/**
 * Messages between this page and a server, byte for byte; see docs/protocol.md.
 * A message is binary; its first byte is its kind.
 */

export const Kind = Object.freeze({
  HANDSHAKE: 0,
  AUDIO: 1,
  TEXT: 2,
  CONTROL: 3,
  METADATA: 4,
  ERROR: 5,
  PING: 6,
});

export const Control = Object.freeze({ START: 0, END_TURN: 1, PAUSE: 2 });

/** Hz of the audio that goes out and comes in. */
export const SAMPLE_RATE = 24000;

/**
 * @typedef {{ kind: number, payload: Uint8Array }} Message
 * @typedef {{ code: string, sentence: string }} Failure
 */

/**
 * Take a message apart; null if it is empty.
 * @param {ArrayBuffer} data
 * @returns {Message | null}
 */
export function parse(data) {
  const bytes = new Uint8Array(data);
  return bytes.length ? { kind: bytes[0], payload: bytes.subarray(1) } : null;
}

/**
 * Put a message together.
 * @param {number} kind
 * @param {Uint8Array | number[]} payload
 */
export function build(kind, payload = []) {
  const message = new Uint8Array(1 + payload.length);
  message[0] = kind;
  message.set(payload, 1);
  return message;
}

const utf8 = new TextDecoder();

/**
 * A piece of text; spaces are spaces, whatever the tokenizer writes for them.
 * @param {Uint8Array} payload
 */
export function textOf(payload) {
  return utf8.decode(payload).replaceAll("▁", " ");
}

/**
 * The object of a metadata message; null if it is none.
 * @param {Uint8Array} payload
 * @returns {Record<string, any> | null}
 */
export function metadataOf(payload) {
  try {
    const value = JSON.parse(utf8.decode(payload));
    return value && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

/**
 * An error message: a word for programs, a sentence for people.
 * @param {Uint8Array} payload
 * @returns {Failure}
 */
export function failureOf(payload) {
  const text = utf8.decode(payload);
  const [, code, sentence] = /^(\w+): ([^]*)$/.exec(text) ?? [null, "error", text];
  return { code: code ?? "error", sentence: sentence ?? text };
}

/**
 * Address of the conversation, beside this page.
 * @param {string} page Address of the page.
 * @param {Record<string, string | number | boolean | null | undefined>} parameters Those without
 *     a value are left out.
 */
export function chatUrl(page, parameters) {
  const url = new URL("api/chat", page);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") {
      url.searchParams.set(name, String(value));
    }
  }
  return url.href;
}
