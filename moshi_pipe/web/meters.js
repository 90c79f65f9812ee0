// @ts-check
/** Two discs that breathe with both voices. Where they overlap, both may speak at once. */

const RISE = 0.5; // part of the way to a louder level in a picture
const FALL = 0.12;
const WAKE = 0.06; // the halo follows slowly, so that it shows what was
const CALM_MS = 400; // with less motion, levels change by steps, this often

export class Meters {
  #discs;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");
  #wanted = [0, 0];
  #shown = [0, 0];
  #halo = [0, 0];
  #moving = false;
  #drawn_ms = 0;

  /** @param {HTMLElement[]} discs The user's, Moshi's. */
  constructor(discs) {
    this.#discs = discs;
  }

  /**
   * @param {0 | 1} side
   * @param {number} level 0 to 1.
   */
  set(side, level) {
    this.#wanted[side] = level;
    if (this.#moving) return;
    this.#moving = true;
    requestAnimationFrame((now) => this.#draw(now));
  }

  /** @param {number} now_ms */
  #draw(now_ms) {
    if (!this.#calm.matches || now_ms - this.#drawn_ms > CALM_MS) {
      this.#drawn_ms = now_ms;
      this.#discs.forEach((disc, side) => this.#step(disc, side));
    }
    const still = [...this.#wanted, ...this.#halo].every((level) => level < 0.005);
    this.#moving = !still;
    if (!still) requestAnimationFrame((now) => this.#draw(now));
  }

  /**
   * @param {HTMLElement} disc
   * @param {number} side
   */
  #step(disc, side) {
    const wanted = this.#wanted[side];
    const change = wanted - this.#shown[side];
    this.#shown[side] += (this.#calm.matches ? 1 : change > 0 ? RISE : FALL) * change;
    const shown = this.#shown[side];
    this.#halo[side] = Math.max(shown, this.#halo[side] + WAKE * (shown - this.#halo[side]));
    disc.style.setProperty("--level", shown.toFixed(3));
    disc.style.setProperty("--halo", this.#halo[side].toFixed(3));
  }
}
