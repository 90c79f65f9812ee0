// @ts-check
/** One conversation: the sound, the connection, and what is known of both. */

import { chooseFormat, makeDecoder, makeEncoder } from "./codec.js";
import { Connection } from "./connection.js";
import { loudness } from "./pcm.js";
import { SAMPLE_RATE } from "./protocol.js";
import { Recording } from "./recording.js";
import { Sound, microphoneFailure } from "./sound.js";
import { Transcript } from "./transcript.js";

/**
 * @typedef {import("./protocol.js").Failure} Failure
 * @typedef {"starting" | "connecting" | "waiting" | "live" | "lost" | "over"} Phase
 * @typedef {object} Wishes
 * @property {"auto" | "ogg_opus" | "pcm_s16le"} audio
 * @property {boolean} echoCancellation
 * @property {Record<string, string | number>} parameters Of the query.
 *
 * @typedef {object} Events
 * @property {() => void} changed Anything but levels and text.
 * @property {(side: 0 | 1, loudness: number) => void} level 0 is the user; 0 to 1.
 * @property {(begins: boolean) => void} said The transcript grew.
 */

export class Conversation {
  /** @type {Phase} */
  phase = "starting";
  /** @type {Failure | null} */
  failure = null;
  muted = false;
  /** @type {{ position: number, waiting: number } | null} */
  queue = null;
  /** @type {Record<string, any> | null} */
  session = null;
  /** @type {{ reason: string, at_ms: number } | null} */
  ending = null;
  /** Of the network, of the server, and of what waits to be played, in ms. */
  delay = { network: NaN, server: NaN, playback: NaN };
  /** Frames that the server left out, seconds that the page did, and gaps that were heard. */
  lost = { frames: 0, seconds: 0, gaps: 0 };
  resumed = 0;
  transcript = new Transcript();
  recording = new Recording(SAMPLE_RATE);

  #wishes;
  #events;
  /** @type {Sound | null} */
  #sound = null;
  /** @type {Connection | null} */
  #connection = null;
  /** @type {import("./codec.js").Encoder | null} */
  #encoder = null;
  /** @type {import("./codec.js").Decoder | null} */
  #decoder = null;
  /** @type {import("./codec.js").Format} */
  #format = "pcm_s16le";
  #begun_ms = NaN;
  #ended_ms = NaN;
  #limit_ms = NaN;
  #lostUntil_ms = 0;

  /**
   * @param {Wishes} wishes
   * @param {Events} events
   */
  constructor(wishes, events) {
    this.#wishes = wishes;
    this.#events = events;
  }

  /**
   * Ask for the microphone, then for the server. Nothing is thrown: see `failure`.
   * @param {string} page Address of the page.
   * @param {string[]} formats That the server offers.
   */
  async start(page, formats) {
    try {
      const sound = await Sound.start(this.#wishes, {
        heard: (block) => this.#heard(block),
        played: (block) => this.#played(block),
        ended: () => this.#over({ code: "microphone_ended", sentence: "" }),
      });
      if (this.phase === "over") return sound.stop(); // stopped while the browser asked
      this.#sound = sound;
      sound.expect(false);
      sound.mute(this.muted);
      this.#format = await chooseFormat(this.#wishes.audio, formats);
      if (this.phase !== "starting") return;
    } catch (error) {
      return this.#over({ code: microphoneFailure(error), sentence: "" });
    }
    this.#go("connecting");
    const parameters = { audio: this.#format, ...this.#wishes.parameters };
    this.#connection = new Connection(page, parameters, {
      live: () => this.#live(),
      audio: (bytes) => this.#decoder?.push(bytes),
      text: (piece) => this.#events.said(this.transcript.add(piece, this.elapsed_s)),
      metadata: (values) => this.#learn(values),
      error: ({ code, sentence }) => console.info(`${code}: ${sentence}`),
      rtt: (rtt_ms) => (this.delay.network = rtt_ms),
      lost: (left_s) => this.#lose(left_s),
      over: (failure) => this.#over(failure),
    });
  }

  /** End it, from this side. */
  stop() {
    this.#over(null);
  }

  /** @param {boolean} yes */
  mute(yes) {
    this.muted = yes;
    this.#sound?.mute(yes);
    this.#events.changed();
  }

  /** Whether it goes on, in one way or another. */
  get isActive() {
    return this.phase !== "over";
  }

  /** Seconds since the server first listened. */
  get elapsed_s() {
    const now = Number.isNaN(this.#ended_ms) ? performance.now() : this.#ended_ms;
    return Number.isNaN(this.#begun_ms) ? 0 : (now - this.#begun_ms) / 1000;
  }

  /** Seconds until the longest length is reached; NaN if it is not known. */
  get left_s() {
    return Math.max(0, (this.#limit_ms - performance.now()) / 1000);
  }

  /** Seconds in which the lost connection may come back. */
  get hope_s() {
    return Math.max(0, (this.#lostUntil_ms - performance.now()) / 1000);
  }

  /** From your mouth to Moshi's answer to it, in ms: the parts that are measured. */
  get delay_ms() {
    return this.delay.network + this.delay.server + this.delay.playback;
  }

  #live() {
    const fail = () => this.#over({ code: "codec_failed", sentence: "" });
    this.#closeCodecs(); // streams begin anew with each connection
    const send = (/** @type {Uint8Array} */ bytes) => this.#connection?.sendAudio(bytes);
    this.#encoder = makeEncoder(this.#format, send, fail);
    this.#decoder = makeDecoder(this.#format, (pcm) => this.#sound?.play(pcm), fail);
    if (Number.isNaN(this.#begun_ms)) this.#begun_ms = performance.now();
    this.queue = null;
    this.#sound?.expect(true);
    this.#go("live");
  }

  /** @param {Record<string, any>} values */
  #learn(values) {
    if (values.type === "session") {
      this.session = values;
      this.#limit_ms = performance.now() + 1000 * values.limits.left_s;
      if (values.resumed) this.resumed++;
    } else if (values.type === "queue") {
      this.queue = { position: values.position, waiting: values.waiting };
      this.phase = "waiting";
    } else if (values.type === "stats") {
      this.delay.server = values.latency_ms;
      this.lost.frames = values.dropped_frames + values.skipped_frames;
    } else if (values.type === "ending") {
      this.ending = { reason: values.reason, at_ms: performance.now() + 1000 * values.in_s };
    }
    this.#events.changed();
  }

  /** @param {number} left_s */
  #lose(left_s) {
    this.#closeCodecs();
    this.#sound?.expect(false);
    this.delay = { network: NaN, server: NaN, playback: NaN };
    this.#lostUntil_ms = performance.now() + 1000 * left_s;
    this.#events.level(1, 0);
    this.#go("lost");
  }

  /** @param {Failure | null} failure */
  #over(failure) {
    if (this.phase === "over") return;
    this.#ended_ms = performance.now();
    this.failure = failure;
    this.#connection?.close();
    this.#closeCodecs();
    this.#sound?.stop();
    this.#events.level(0, 0);
    this.#events.level(1, 0);
    this.#go("over");
  }

  #closeCodecs() {
    this.#encoder?.close();
    this.#decoder?.close();
    this.#encoder = this.#decoder = null;
  }

  /** @param {import("./sound.js").Heard} block */
  #heard({ pcm, time_s }) {
    if (this.phase === "over") return;
    this.#events.level(0, this.muted ? 0 : loudness(pcm));
    if (!Number.isNaN(this.#begun_ms)) this.recording.add(0, time_s, pcm);
    this.#encoder?.push(pcm);
  }

  /** @param {import("./sound.js").Played} block */
  #played({ pcm, time_s, buffered_s, underruns, dropped_s }) {
    if (this.phase === "over" || Number.isNaN(this.#begun_ms)) return;
    this.#events.level(1, loudness(pcm));
    this.recording.add(1, time_s, pcm);
    if (this.phase === "live") this.#measure(1000 * buffered_s);
    this.lost.gaps = underruns;
    this.lost.seconds = dropped_s;
  }

  /** @param {number} buffered_ms It saws up and down by a frame: what counts is its middle. */
  #measure(buffered_ms) {
    const { playback } = this.delay;
    if (Number.isNaN(playback) && !buffered_ms) return; // nothing came yet
    this.delay.playback = Number.isNaN(playback)
      ? buffered_ms
      : playback + 0.05 * (buffered_ms - playback);
  }

  /** @param {Phase} phase */
  #go(phase) {
    this.phase = phase;
    this.#events.changed();
  }
}
