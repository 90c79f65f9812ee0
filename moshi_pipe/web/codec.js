// @ts-check
/** What is in an audio message: Opus where the browser has it, plain samples otherwise. */

import { OpusDecoder, OpusEncoder, canOpus } from "./opus.js";
import { fromBytes, toBytes } from "./pcm.js";

/**
 * @typedef {"ogg_opus" | "pcm_s16le"} Format
 * @typedef {{ push(pcm: Float32Array<ArrayBuffer>): void, close(): void }} Encoder
 * @typedef {{ push(bytes: Uint8Array): void, close(): void }} Decoder
 */

/**
 * @param {"auto" | Format} wish
 * @param {string[]} offered Formats that the server knows.
 * @returns {Promise<Format>}
 */
export async function chooseFormat(wish, offered) {
  if (wish === "pcm_s16le" || !offered.includes("ogg_opus")) return "pcm_s16le";
  return (await canOpus()) ? "ogg_opus" : "pcm_s16le";
}

/**
 * @param {Format} format
 * @param {(bytes: Uint8Array) => void} send
 * @param {(error: Error) => void} fail
 * @returns {Encoder}
 */
export function makeEncoder(format, send, fail) {
  if (format === "ogg_opus") return new OpusEncoder(send, fail);
  return { push: (pcm) => send(toBytes(pcm)), close() {} };
}

/**
 * @param {Format} format
 * @param {(pcm: Float32Array<ArrayBuffer>) => void} hear
 * @param {(error: Error) => void} fail
 * @returns {Decoder}
 */
export function makeDecoder(format, hear, fail) {
  if (format === "ogg_opus") return new OpusDecoder(hear, fail);
  return { push: (bytes) => hear(fromBytes(bytes)), close() {} };
}
