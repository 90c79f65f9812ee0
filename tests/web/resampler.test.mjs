import assert from "node:assert/strict";
import test from "node:test";

import { Resampler } from "./resampler.js";

const sine = (hz, rate, length) =>
  Float32Array.from({ length }, (_, i) => Math.sin((2 * Math.PI * hz * i) / rate));
const rms = (x) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length);

function run(rateIn, rateOut, input, piece) {
  const resampler = new Resampler(rateIn, rateOut);
  const output = [];
  for (let at = 0; at < input.length; at += piece) {
    output.push(...resampler.push(input.subarray(at, at + piece)));
  }
  return Float32Array.from(output);
}

for (const [from, to] of [[44100, 24000], [48000, 24000], [16000, 24000], [24000, 44100], [24000, 48000]]) {
  test(`${from} to ${to} Hz: a tone keeps its time and loudness`, () => {
    const output = run(from, to, sine(1000, from, from), 128);
    const wanted = sine(1000, to, output.length);
    assert.ok(output.length > to - 40 && output.length <= to, `${output.length} samples`);
    const error = output.map((x, i) => x - wanted[i]).subarray(200);
    assert.ok(rms(error) < 1e-3, `error ${rms(error)}`);
  });
}

test("what the lower rate cannot hold is 60 dB down, not folded back", () => {
  for (const hz of [13000, 15000, 20000]) {
    assert.ok(rms(run(48000, 24000, sine(hz, 48000, 48000), 128).subarray(200)) < 1e-3, `${hz}`);
  }
  const images = run(24000, 48000, sine(9000, 24000, 24000), 240).subarray(200);
  const wanted = sine(9000, 48000, images.length + 200).subarray(200);
  assert.ok(rms(images.map((x, i) => x - wanted[i])) < 2e-3);
});

test("the pieces do not matter", () => {
  const input = sine(440, 44100, 10000);
  const whole = run(44100, 24000, input, input.length);
  for (const piece of [1, 7, 128, 1023]) assert.deepEqual(run(44100, 24000, input, piece), whole);
});

test("equal rates are a copy", () => {
  const input = sine(440, 24000, 100);
  assert.deepEqual(run(24000, 24000, input, 30), input);
});
