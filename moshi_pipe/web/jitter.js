// @ts-check
/** Holds what came until it is played: as little as the network allows. */

const FRAME_S = 0.08; // that come at once
const START_S = 0.12; // waits for one and a half
const LEAST_S = 0.1;
const MOST_S = 0.5;
const GROW_S = 0.04;
const SHRINK_S = 0.01;
const WINDOW_S = 5;
const SPARE_S = 0.05; // never touched for a whole window: more than is needed
const CUT_S = 0.02; // at least, of what is more
const CUT = 1 / 3;
const FADE_S = 0.005;
const BACKLOG_S = 0.6; // more than this beyond the start is not worth hearing late

/**
 * Plays once `start_s` are there. An underrun makes it wait for more the next time; what is never
 * needed is cut out again, a third of it in five seconds, in a crossfade.
 */
export class JitterBuffer {
  #rate;
  #ring;
  #read = 0; // samples since the beginning; the ring holds [read, written)
  #written = 0;
  #playing = false;
  #begins = true;
  #fadeIn = false;
  #tail = new Float32Array(0); // dies away after what broke off
  #low = Infinity;
  #window = 0;
  /** Seconds to hold before playing. */
  start_s = START_S;
  /** Whether audio should be coming: silence without a connection is no underrun. */
  expecting = true;
  underruns = 0;
  /** Samples that were cut out because too much had come at once. */
  dropped = 0;

  /** @param {number} rate Hz. */
  constructor(rate) {
    this.#rate = rate;
    this.#ring = new Float32Array(rate * 4);
  }

  /** Samples that wait. */
  get level() {
    return this.#written - this.#read;
  }

  /** @param {Float32Array} samples */
  push(samples) {
    const size = this.#ring.length;
    const fresh = samples.subarray(Math.max(0, samples.length - size / 2));
    if (this.level + fresh.length > size) this.clear();
    for (let i = 0; i < fresh.length; i++) this.#ring[(this.#written + i) % size] = fresh[i];
    this.#written += fresh.length;
    const excess = this.level - this.start_s * this.#rate;
    if (excess > BACKLOG_S * this.#rate) this.dropped += this.#cut(Math.round(excess));
  }

  /** Forget what waits. */
  clear() {
    if (this.#playing) this.#breakOff();
    this.#read = this.#written;
  }

  /**
   * Fill `out` with what is to be heard now.
   * @param {Float32Array} out
   */
  pull(out) {
    if (!this.#playing) {
      this.#playing = this.level >= Math.max(this.start_s * this.#rate, out.length);
      if (this.#playing && this.#begins) this.#begin();
      this.#fadeIn = this.#playing;
      this.#low = Infinity;
      this.#window = 0;
    }
    const count = this.#playing ? Math.min(out.length, this.level) : 0;
    for (let i = 0; i < count; i++) out[i] = this.#ring[(this.#read + i) % this.#ring.length];
    this.#read += count;
    out.fill(0, count);
    if (this.#fadeIn) fadeIn(out);
    this.#fadeIn = false;
    if (this.#playing && count < out.length) this.#underrun();
    else if (this.#playing) this.#watch(count);
    this.#dieAway(out.subarray(this.#playing ? 0 : count));
  }

  /** What piled up before anything was heard would make all of it late. */
  #begin() {
    const excess = this.level - (this.start_s + FRAME_S) * this.#rate;
    if (excess > 0) this.dropped += this.#cut(Math.round(excess));
    this.#begins = false;
  }

  #underrun() {
    this.#breakOff();
    if (!this.expecting) return;
    this.underruns++;
    this.start_s = Math.min(MOST_S, this.start_s + GROW_S);
  }

  /** No more of this is played: its last milliseconds go on backwards and die away, unclicked. */
  #breakOff() {
    const size = this.#ring.length;
    const length = Math.min(Math.round(FADE_S * this.#rate), this.#read);
    this.#playing = false;
    this.#tail = Float32Array.from({ length }, (_, i) => {
      return (this.#ring[(this.#read - 1 - i) % size] * (length - i)) / (length + 1);
    });
  }

  /** @param {Float32Array} out To which what is left of the tail is added. */
  #dieAway(out) {
    const now = this.#tail.subarray(0, out.length);
    now.forEach((x, i) => (out[i] += x));
    this.#tail = this.#tail.subarray(now.length);
  }

  /** @param {number} count Samples that were played. */
  #watch(count) {
    this.#low = Math.min(this.#low, this.level);
    this.#window += count;
    if (this.#window < WINDOW_S * this.#rate) return;
    if (this.#low > SPARE_S * this.#rate) {
      this.start_s = Math.max(LEAST_S, this.start_s - SHRINK_S);
      const excess = this.#low - (SPARE_S / 2) * this.#rate;
      this.#cut(Math.round(Math.min(excess, Math.max(CUT_S * this.#rate, excess * CUT))));
    }
    this.#low = Infinity;
    this.#window = 0;
  }

  /**
   * Leave out so many samples, in a crossfade.
   * @param {number} count
   */
  #cut(count) {
    const fade = Math.min(Math.round(FADE_S * this.#rate), this.level - count);
    const size = this.#ring.length;
    for (let i = 0; i < fade; i++) {
      const to = (this.#read + count + i) % size;
      const part = (i + 1) / (fade + 1);
      this.#ring[to] = (1 - part) * this.#ring[(this.#read + i) % size] + part * this.#ring[to];
    }
    this.#read += count;
    return count;
  }
}

/** @param {Float32Array} samples */
function fadeIn(samples) {
  samples.forEach((x, i) => {
    samples[i] = (x * (i + 1)) / (samples.length + 1);
  });
}
