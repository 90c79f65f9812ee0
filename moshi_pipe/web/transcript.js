// @ts-check
/** What Moshi said: pieces become paragraphs, which silence parts. */

const PAUSE_S = 1.5;
const SENTENCE_PAUSE_S = 0.8; // after a full stop less is enough

/** @typedef {{ time_s: number, text: string }} Paragraph */

export class Transcript {
  /** @type {Paragraph[]} */
  paragraphs = [];
  #last_s = -Infinity;

  /**
   * @param {string} piece
   * @param {number} time_s Since the beginning of the conversation.
   * @returns {boolean} Whether a paragraph begins with it.
   */
  add(piece, time_s) {
    const pause_s = time_s - this.#last_s;
    const last = this.paragraphs.at(-1);
    const parted = pause_s > (/[.!?…]$/.test(last?.text ?? "") ? SENTENCE_PAUSE_S : PAUSE_S);
    const begins = !last || (parted && /^\s|^\p{Lu}/u.test(piece)); // never within a word
    this.#last_s = time_s;
    if (begins) this.paragraphs.push({ time_s, text: piece.trimStart() });
    else last.text += piece;
    return begins;
  }

  /** Whether the last paragraph is over by now. @param {number} time_s */
  isPaused(time_s) {
    return time_s - this.#last_s > PAUSE_S;
  }

  /** @param {string} title First line of the text. */
  toText(title) {
    const lines = this.paragraphs.map(({ time_s, text }) => `[${clock(time_s)}] ${text.trim()}`);
    return [title, "", ...lines, ""].join("\n");
  }
}

/** @param {number} time_s */
export function clock(time_s) {
  const s = Math.max(0, Math.floor(time_s));
  return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")}`;
}
