// @ts-check
/** Both sides of a conversation in step: the microphone left, what was heard of Moshi right. */

import { toInt16 } from "./pcm.js";

const SNAP = 48; // samples, 2 ms: blocks that nearly touch do touch
const HEADER = 44;

export class Recording {
  #rate;
  #origin_s = NaN;
  /** @type {{ at: number, pcm: Int16Array }[][]} */
  #sides = [[], []];

  /** @param {number} rate Hz. */
  constructor(rate) {
    this.#rate = rate;
  }

  get isEmpty() {
    return this.#sides.every((side) => !side.length);
  }

  /**
   * @param {0 | 1} side 0 is left.
   * @param {number} time_s On a clock that both sides share.
   * @param {Float32Array} samples
   */
  add(side, time_s, samples) {
    if (Number.isNaN(this.#origin_s)) this.#origin_s = time_s;
    const last = this.#sides[side].at(-1);
    const end = last ? last.at + last.pcm.length : 0;
    const exact = Math.round((time_s - this.#origin_s) * this.#rate);
    const at = Math.abs(exact - end) <= SNAP ? end : exact;
    if (at >= 0) this.#sides[side].push({ at, pcm: toInt16(samples) });
  }

  /** The bytes of a stereo WAV file of 16 bits. */
  toWav() {
    let length = 0; // not by one call of max: it takes some ten thousand arguments at most
    for (const { at, pcm } of this.#sides.flat()) length = Math.max(length, at + pcm.length);
    const bytes = new Uint8Array(HEADER + 4 * length);
    const view = new DataView(bytes.buffer);
    writeHeader(view, this.#rate, 2, 4 * length);
    this.#sides.forEach((blocks, side) => {
      for (const { at, pcm } of blocks) {
        pcm.forEach((x, i) => view.setInt16(HEADER + 4 * (at + i) + 2 * side, x, true));
      }
    });
    return bytes;
  }
}

/**
 * @param {DataView} view
 * @param {number} rate
 * @param {number} channels
 * @param {number} size Bytes of the samples.
 */
function writeHeader(view, rate, channels, size) {
  /** @param {number} at @param {string} text */
  const word = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, HEADER - 8 + size, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, channels, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * channels * 2, true);
  view.setUint16(32, channels * 2, true);
  view.setUint16(34, 16, true);
  word(36, "data");
  view.setUint32(40, size, true);
}

/**
 * Hand a file to the user.
 * @param {string} name
 * @param {BlobPart} content
 * @param {string} type
 */
export function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
