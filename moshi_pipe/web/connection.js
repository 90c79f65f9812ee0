// @ts-check
/** The websocket of one conversation: opened, measured, lost, opened again. */

import { Kind, build, chatUrl, failureOf, metadataOf, parse, textOf } from "./protocol.js";

const PING_MS = 2000;
const SILENT_MS = 8000; // without even an answer to a ping, the line is dead
const OPEN_MS = 8000;
const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 5000;
const RESTART = 1012; // Source: IANA, WebSocket close codes

/**
 * @typedef {import("./protocol.js").Failure} Failure
 * @typedef {object} Events
 * @property {() => void} live The server listens now; also after each time it came back.
 * @property {(bytes: Uint8Array) => void} audio
 * @property {(piece: string) => void} text
 * @property {(values: Record<string, any>) => void} metadata
 * @property {(failure: Failure) => void} error The server complains, but goes on.
 * @property {(rtt_ms: number) => void} rtt
 * @property {(left_s: number) => void} lost It will be tried again, for so long.
 * @property {(failure: Failure | null) => void} over For good; null is as it should be.
 */

export class Connection {
  #page;
  #parameters;
  #events;
  /** @type {WebSocket | null} */
  #socket = null;
  #live = false;
  #everLive = false;
  /** @type {{ token: string, s: number } | null} */
  #resume = null;
  /** @type {Failure | null} */
  #failure = null;
  #lostAt = 0;
  #tries = 0;
  #heardAt = 0;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #watch;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #wait;
  #again = () => this.#retry();

  /**
   * @param {string} page Address of the page.
   * @param {Record<string, string | number | boolean | null | undefined>} parameters Of the query.
   * @param {Events} events
   */
  constructor(page, parameters, events) {
    this.#page = page;
    this.#parameters = parameters;
    this.#events = events;
    this.#open();
  }

  /** Whether audio is wanted. */
  get live() {
    return this.#live;
  }

  /** @param {Uint8Array} bytes */
  sendAudio(bytes) {
    if (this.#live) this.#send(Kind.AUDIO, bytes);
  }

  /**
   * @param {number} kind
   * @param {Uint8Array} payload
   */
  #send(kind, payload) {
    // The server may have closed it, which is told later than it is done.
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(build(kind, payload));
  }

  /** End the conversation, from this side. */
  close() {
    this.#forget(1000);
  }

  #open() {
    const socket = new WebSocket(
      chatUrl(this.#page, { ...this.#parameters, resume: this.#resume?.token }),
    );
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#opened(socket);
    socket.onmessage = ({ data }) => this.#take(data);
    socket.onclose = ({ code, reason }) => this.#closed(code, reason);
    this.#socket = socket;
    this.#failure = null;
    this.#wait = setTimeout(() => this.#giveUpOn(socket), OPEN_MS);
  }

  /** @param {WebSocket} socket */
  #opened(socket) {
    clearTimeout(this.#wait);
    this.#heardAt = performance.now();
    const look = () => {
      const now = performance.now();
      if (now - this.#heardAt > SILENT_MS) this.#giveUpOn(socket);
      else this.#send(Kind.PING, new Uint8Array(new Float64Array([now]).buffer));
    };
    this.#watch = setInterval(look, PING_MS);
    look();
  }

  /** @param {WebSocket} socket A close of a dead line can take a minute: do not wait for it. */
  #giveUpOn(socket) {
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    this.#closed(1006, "");
  }

  /** @param {ArrayBuffer} data */
  #take(data) {
    this.#heardAt = performance.now();
    const message = parse(data);
    if (!message) return;
    const { kind, payload } = message;
    this.#failure = null; // an error is why it closes only if nothing came after it
    if (kind === Kind.HANDSHAKE) this.#begin();
    else if (kind === Kind.AUDIO) this.#events.audio(payload);
    else if (kind === Kind.TEXT) this.#events.text(textOf(payload));
    else if (kind === Kind.METADATA) this.#learn(metadataOf(payload));
    else if (kind === Kind.PING && payload.length === 8) {
      const [sent] = new Float64Array(payload.slice().buffer);
      this.#events.rtt(this.#heardAt - sent);
    } else if (kind === Kind.ERROR) {
      this.#failure = failureOf(payload);
      this.#events.error(this.#failure);
    }
  }

  #begin() {
    this.#live = this.#everLive = true;
    this.#tries = 0;
    this.#lostAt = 0;
    this.#events.live();
  }

  /** @param {Record<string, any> | null} values */
  #learn(values) {
    if (!values) return;
    if (values.type === "session") this.#resume = values.resume ?? null;
    this.#events.metadata(values);
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  #closed(code, reason) {
    this.#forget();
    const [, word, rest] = /^(\w*):? ?(.*)$/.exec(reason) ?? [null, "", reason];
    if (code === 1000) {
      const asItShould = !word || word === "done";
      return this.#events.over(asItShould ? null : { code: word, sentence: rest ?? "" });
    }
    // Who was too slow for what was sent comes back with the token, like who lost the line.
    if (code !== 1006 && word !== "too_slow") {
      const known = code === RESTART ? "engine_failed" : word || `closed_${code}`;
      const failure = this.#failure ?? { code: known, sentence: rest ?? "" };
      return this.#events.over(failure);
    }
    this.#lostAt ||= performance.now();
    const left_s = (this.#resume?.s ?? 0) - (performance.now() - this.#lostAt) / 1000;
    if (!this.#everLive || left_s <= 0) {
      const lost = this.#everLive ? "lost" : "unreachable";
      return this.#events.over(this.#failure ?? { code: lost, sentence: "" });
    }
    this.#events.lost(left_s);
    const wait_ms = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.#tries++);
    this.#wait = setTimeout(this.#again, wait_ms * (0.8 + 0.4 * Math.random()));
    addEventListener("online", this.#again, { once: true });
  }

  #retry() {
    clearTimeout(this.#wait);
    removeEventListener("online", this.#again);
    this.#open();
  }

  /** @param {number} [code] Of the close that is sent. */
  #forget(code) {
    clearInterval(this.#watch);
    clearTimeout(this.#wait);
    removeEventListener("online", this.#again);
    this.#live = false;
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (code) socket.close(code, "done");
  }
}
