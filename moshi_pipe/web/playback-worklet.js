// @ts-check
/**
 * In the audio thread: what came at 24 kHz is heard at the context's rate, as even as it can be.
 * What is heard is reported with its time, silence included, for the meters and the recording.
 */

import { JitterBuffer } from "./jitter.js";
import { Resampler } from "./resampler.js";

const RATE = 24000;
const PIECE = 240; // 10 ms
const REPORT = 960; // 40 ms

class Playback extends AudioWorkletProcessor {
  #buffer = new JitterBuffer(RATE);
  #resampler = new Resampler(RATE, sampleRate);
  #ready = new Float32Array(0);
  #report = new Float32Array(REPORT);
  #reported = 0;
  #time_s = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => {
      if (data.pcm) this.#buffer.push(data.pcm);
      if (data.expecting !== undefined) this.#buffer.expecting = data.expecting;
      if (data.clear) this.#buffer.clear();
    };
  }

  /**
   * @param {Float32Array[][]} _inputs
   * @param {Float32Array[][]} outputs
   */
  process(_inputs, [channels]) {
    const wanted = channels[0].length;
    while (this.#ready.length < wanted) this.#pull();
    for (const channel of channels) channel.set(this.#ready.subarray(0, wanted));
    this.#ready = this.#ready.slice(wanted);
    return true;
  }

  #pull() {
    if (this.#reported === 0) this.#time_s = currentTime + this.#ready.length / sampleRate;
    const piece = this.#report.subarray(this.#reported, this.#reported + PIECE);
    this.#buffer.pull(piece);
    const more = this.#resampler.push(piece);
    const ready = new Float32Array(this.#ready.length + more.length);
    ready.set(this.#ready);
    ready.set(more, this.#ready.length);
    this.#ready = ready;
    this.#reported += PIECE;
    if (this.#reported === REPORT) this.#send();
  }

  #send() {
    const { level, underruns, dropped } = this.#buffer;
    const report = {
      pcm: this.#report,
      time_s: this.#time_s,
      buffered_s: level / RATE,
      underruns,
      dropped_s: dropped / RATE,
    };
    this.port.postMessage(report, [this.#report.buffer]);
    this.#report = new Float32Array(REPORT);
    this.#reported = 0;
  }
}

registerProcessor("playback", Playback);
