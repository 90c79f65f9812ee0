import assert from "node:assert/strict";
import test from "node:test";

import { JitterBuffer } from "./jitter.js";

const RATE = 24000;
const FRAME = 1920;
const PIECE = 240;
const frame = (value = 0.5) => new Float32Array(FRAME).fill(value);

/** Time goes on in pieces of 10 ms; `arrives(t)` says how many frames come in this one. */
function play(buffer, seconds, arrives) {
  const heard = [];
  for (let t = 0; t < seconds * 100; t++) {
    for (let i = arrives(t); i > 0; i--) buffer.push(frame());
    const piece = new Float32Array(PIECE);
    buffer.pull(piece);
    heard.push(...piece);
  }
  return heard;
}

test("it waits for what it wants to hold, then plays without a gap", () => {
  const buffer = new JitterBuffer(RATE);
  const heard = play(buffer, 4, (t) => (t % 8 === 0 ? 1 : 0));
  const first = heard.findIndex((x) => x !== 0);
  assert.equal(first, 8 * PIECE); // with the second frame
  assert.ok(heard.slice(first).every((x) => x > 0));
  assert.equal(buffer.underruns, 0);
});

const largestStep = (heard) => Math.max(...heard.slice(1).map((x, i) => Math.abs(x - heard[i])));

test("it begins and ends softly, wherever in a piece the audio ends", () => {
  for (const more of [0, 1, 100, 239]) {
    const buffer = new JitterBuffer(RATE);
    buffer.push(new Float32Array(2 * FRAME + more).fill(0.5));
    const heard = play(buffer, 1, () => 0);
    assert.ok(largestStep(heard) < 0.01, `${more} samples more`);
    assert.ok(heard.slice(2 * FRAME + more + PIECE).every((x) => x === 0));
  }
});

test("what is forgotten while it is played ends softly, too", () => {
  const buffer = new JitterBuffer(RATE);
  const before = play(buffer, 0.1, (t) => (t === 0 ? 3 : 0));
  buffer.clear();
  const heard = [...before, ...play(buffer, 0.1, () => 0)];
  assert.ok(largestStep(heard) < 0.01);
  assert.equal(heard.at(-1), 0);
});

test("an underrun is counted, and makes it hold more", () => {
  const buffer = new JitterBuffer(RATE);
  const before = buffer.start_s;
  play(buffer, 1, (t) => (t % 8 === 0 && !(t > 30 && t < 60) ? 1 : 0));
  assert.equal(buffer.underruns, 1);
  assert.ok(buffer.start_s > before);
});

test("silence is no underrun where no audio is expected, or none ever came", () => {
  const buffer = new JitterBuffer(RATE);
  play(buffer, 1, () => 0);
  buffer.expecting = false;
  play(buffer, 1, (t) => (t < 2 ? 1 : 0));
  assert.equal(buffer.underruns, 0);
});

test("it holds no more than half a second, however bad it gets", () => {
  const buffer = new JitterBuffer(RATE);
  play(buffer, 60, (t) => (t % 100 === 0 ? 7 : 0));
  assert.ok(buffer.underruns > 12);
  assert.ok(buffer.start_s <= 0.5);
});

test("what was never needed shrinks away in seconds", () => {
  const buffer = new JitterBuffer(RATE);
  const steady = (t) => (t % 8 === 0 ? 1 : 0);
  play(buffer, 0.5, (t) => (t === 0 ? 2 : 0)); // it has begun
  play(buffer, 1, (t) => (t === 0 ? 5 : steady(t))); // 320 ms too much
  const before = buffer.level;
  play(buffer, 25, steady);
  assert.ok(before - buffer.level > 0.2 * RATE, `${before} to ${buffer.level}`);
  assert.equal(buffer.dropped, 0);
  assert.ok(buffer.underruns <= 1);
});

test("what piles up before anything is heard is skipped, and counted", () => {
  const buffer = new JitterBuffer(RATE);
  play(buffer, 0.1, (t) => (t === 5 ? 6 : 0));
  assert.ok(buffer.level <= 0.2 * RATE);
  assert.equal(buffer.dropped, 6 * FRAME - 0.2 * RATE);
});

test("a backlog is skipped, and counted", () => {
  const buffer = new JitterBuffer(RATE);
  for (let i = 0; i < 20; i++) buffer.push(frame());
  assert.ok(buffer.level < RATE);
  assert.ok(buffer.level + buffer.dropped <= 20 * FRAME);
  assert.ok(buffer.dropped > 0);
});
