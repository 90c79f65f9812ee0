// @ts-check
/** In the audio thread: the microphone at the context's rate becomes blocks of 20 ms at 24 kHz. */

import { Resampler } from "./resampler.js";

const RATE = 24000;
const BLOCK = 480;
const QUANTUM = 128; // samples of a call. Source: Web Audio API, render quantum

class Capture extends AudioWorkletProcessor {
  #resampler = new Resampler(sampleRate, RATE);
  #block = new Float32Array(BLOCK);
  #filled = 0;
  #begin_s = currentTime;
  #sent = 0;

  /** @param {Float32Array[][]} inputs */
  process([channels]) {
    const mono = new Float32Array(channels[0]?.length ?? QUANTUM);
    for (const channel of channels) {
      for (let i = 0; i < mono.length; i++) mono[i] += channel[i] / channels.length;
    }
    for (const x of this.#resampler.push(mono)) {
      this.#block[this.#filled++] = x;
      if (this.#filled === BLOCK) this.#send();
    }
    return true;
  }

  #send() {
    const time_s = this.#begin_s + this.#sent / RATE;
    this.port.postMessage({ pcm: this.#block, time_s }, [this.#block.buffer]);
    this.#block = new Float32Array(BLOCK);
    this.#filled = 0;
    this.#sent += BLOCK;
  }
}

registerProcessor("capture", Capture);
