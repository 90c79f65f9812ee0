import assert from "node:assert/strict";
import test from "node:test";

import { fromBytes, loudness, toBytes } from "./pcm.js";
import { chatUrl, failureOf, metadataOf, textOf } from "./protocol.js";
import { Recording } from "./recording.js";
import { noticeOf } from "./texts.js";
import { Transcript, clock } from "./transcript.js";

const utf8 = (text) => new TextEncoder().encode(text);
const block = (value) => new Float32Array(480).fill(value);

test("a recording holds both sides in step, 16 bits, you on the left", () => {
  const recording = new Recording(24000);
  recording.add(0, 10, block(0.5));
  recording.add(0, 10.02, block(0.25));
  recording.add(1, 10.03, block(-0.5));
  const wav = recording.toWav();
  const view = new DataView(wav.buffer);
  const at = (i) => [view.getInt16(44 + 4 * i, true), view.getInt16(46 + 4 * i, true)];
  assert.equal(new TextDecoder().decode(wav.subarray(0, 4)), "RIFF");
  assert.equal(view.getUint32(4, true), wav.length - 8);
  assert.equal(view.getUint16(22, true), 2);
  assert.equal(view.getUint32(24, true), 24000);
  assert.equal(view.getUint32(40, true), wav.length - 44);
  assert.equal(wav.length, 44 + 4 * 1200);
  assert.deepEqual(at(0), [16384, 0]);
  assert.deepEqual(at(719), [8192, 0]);
  assert.deepEqual(at(720), [8192, -16383]);
  assert.deepEqual(at(1199), [0, -16383]);
});

test("blocks that nearly touch do touch, and what was before the beginning is left out", () => {
  const recording = new Recording(24000);
  recording.add(0, 1, block(0.5));
  recording.add(0, 1.0205, block(0.5));
  recording.add(1, 0.9, block(0.5));
  assert.equal(recording.toWav().length, 44 + 4 * 960);
});

test("a recording of an hour can be saved", () => {
  const recording = new Recording(24000);
  const [blocks, one] = [180_000, new Float32Array(1)]; // of 20 ms, cut short
  for (let i = 0; i < blocks; i++) recording.add(0, i / 24000, one);
  assert.equal(recording.toWav().length, 44 + 4 * blocks);
});

test("samples survive their bytes, and what is too loud is clipped", () => {
  assert.deepEqual([...fromBytes(toBytes(Float32Array.of(0, 2, -2)))], [0, 32767 / 32768, -32767 / 32768]);
  assert.equal(fromBytes(Uint8Array.of(0, 0x40, 1))[0], 0.5);
  assert.equal(loudness(new Float32Array(100)), 0);
  assert.equal(loudness(new Float32Array(100).fill(1)), 1);
});

test("silence parts paragraphs, but no word", () => {
  const transcript = new Transcript();
  for (const [piece, time_s] of [[" I", 0], [" th", 0.1], ["ink", 3], [" so.", 3.1], [" Yes", 4.2]]) {
    transcript.add(piece, time_s);
  }
  assert.deepEqual(transcript.paragraphs.map(({ text }) => text), ["I think so.", "Yes"]);
  assert.equal(transcript.toText("Moshi"), "Moshi\n\n[0:00] I think so.\n[0:04] Yes\n");
  assert.equal(clock(601.9), "10:01");
});

test("the address of a conversation follows that of the page", () => {
  const url = chatUrl("https://host:1/x/?token=a#b", { audio: "ogg_opus", seed: "", token: "a b&c" });
  assert.equal(url, "wss://host:1/x/api/chat?audio=ogg_opus&token=a+b%26c");
});

test("messages are read as the protocol has them", () => {
  assert.equal(textOf(utf8("▁hello")), " hello");
  assert.deepEqual(failureOf(utf8("at_capacity: all 4 slots: full")), {
    code: "at_capacity",
    sentence: "all 4 slots: full",
  });
  assert.deepEqual(failureOf(utf8("what?")), { code: "error", sentence: "what?" });
  assert.equal(metadataOf(utf8("{")), null);
  assert.equal(metadataOf(utf8("3")), null);
});

test("a failure that has no text of its own is still told", () => {
  const here = { hostname: "box", port: "81" };
  const textOf = (code, sentence) => noticeOf({ code, sentence }, here).text;
  assert.equal(textOf("nova", "the sun went out"), "The server says: the sun went out.");
  assert.equal(textOf("closed_4000", ""), "The connection closed (closed_4000).");
});

test("an insecure address says how to come by a secure one", () => {
  const notice = noticeOf({ code: "insecure", sentence: "" }, { hostname: "box", port: "81" });
  assert.ok(notice.text.includes("`ssh -L 81:localhost:81 box`"));
  assert.ok(notice.text.includes("`http://localhost:81`"));
  assert.equal(notice.again, false);
});
