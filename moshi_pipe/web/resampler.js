// @ts-check
/** Changes the rate of audio that comes piece by piece. */

const PHASES = 256;
const WIDTH = 16; // zero crossings on each side; 32 cost twice for 0.2 kHz more of the band
const BETA = 8; // of the Kaiser window: what would alias is 80 dB down
const PASS = 0.92; // of the lower Nyquist rate; the rest is for the slope

/** @param {number} x Modified Bessel function of order 0. */
function bessel(x) {
  let sum = 1;
  let term = 1;
  for (let k = 1; term > 1e-12 * sum; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

/**
 * Windowed sinc, band limited to the lower of both rates. Output `k` is the input at `k / rateOut`
 * exactly: nothing is shifted; it is only late by `WIDTH` samples of the lower rate.
 */
export class Resampler {
  #rateIn;
  #rateOut;
  #half; // taps on each side
  #table; // [PHASES + 1, 2 half]
  #kept; // input that is still needed
  #at; // of the next output in `kept`, in 1/rateOut of a sample: whole numbers do not drift

  /**
   * @param {number} rateIn Hz.
   * @param {number} rateOut Hz.
   */
  constructor(rateIn, rateOut) {
    this.#rateIn = rateIn;
    this.#rateOut = rateOut;
    const band = Math.min(1, rateOut / rateIn);
    const half = Math.ceil(WIDTH / band);
    this.#half = half;
    this.#table = new Float32Array((PHASES + 1) * 2 * half);
    for (let phase = 0; phase <= PHASES; phase++) {
      for (let tap = 0; tap < 2 * half; tap++) {
        const x = tap - half + 1 - phase / PHASES;
        const y = Math.PI * x * band * PASS;
        const window = bessel(BETA * Math.sqrt(Math.max(0, 1 - (x / half) ** 2))) / bessel(BETA);
        this.#table[phase * 2 * half + tap] = (y ? Math.sin(y) / y : 1) * band * PASS * window;
      }
    }
    this.#kept = new Float32Array(half - 1);
    this.#at = (half - 1) * rateOut;
  }

  /**
   * @param {Float32Array} input Any number of samples.
   * @returns {Float32Array<ArrayBuffer>} The output that is complete with them.
   */
  push(input) {
    if (this.#rateIn === this.#rateOut) return Float32Array.from(input);
    const half = this.#half;
    const data = new Float32Array(this.#kept.length + input.length);
    data.set(this.#kept);
    data.set(input, this.#kept.length);
    const end = (data.length - half) * this.#rateOut; // the last tap must be inside
    const output = new Float32Array(Math.max(0, Math.ceil((end - this.#at) / this.#rateIn)));
    for (let k = 0; k < output.length; k++, this.#at += this.#rateIn) {
      const first = Math.floor(this.#at / this.#rateOut);
      const phase = ((this.#at - first * this.#rateOut) / this.#rateOut) * PHASES;
      output[k] = this.#tap(data, first - half + 1, Math.floor(phase), phase % 1);
    }
    const done = Math.min(data.length, Math.floor(this.#at / this.#rateOut) - half + 1);
    this.#kept = data.slice(done);
    this.#at -= done * this.#rateOut;
    return output;
  }

  /**
   * @param {Float32Array} data
   * @param {number} from
   * @param {number} phase
   * @param {number} part Of the way to the next phase.
   */
  #tap(data, from, phase, part) {
    const taps = 2 * this.#half;
    const row = phase * taps;
    let here = 0;
    let next = 0;
    for (let tap = 0; tap < taps; tap++) {
      here += data[from + tap] * this.#table[row + tap];
      next += data[from + tap] * this.#table[row + taps + tap];
    }
    return here + part * (next - here);
  }
}
