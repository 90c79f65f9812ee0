// @ts-check
/** Samples as bytes, and how loud they are. */

/**
 * @param {Float32Array} samples -1 to 1; beyond, they are clipped.
 * @returns {Int16Array<ArrayBuffer>}
 */
export function toInt16(samples) {
  return Int16Array.from(samples, (x) => Math.round(Math.max(-1, Math.min(1, x)) * 32767));
}

/**
 * Little-endian bytes of 16-bit samples.
 * @param {Float32Array} samples
 */
export function toBytes(samples) {
  const bytes = new Uint8Array(2 * samples.length);
  const view = new DataView(bytes.buffer);
  toInt16(samples).forEach((x, i) => view.setInt16(2 * i, x, true));
  return bytes;
}

/**
 * Samples of little-endian bytes; a byte too many is left out.
 * @param {Uint8Array} bytes
 * @returns {Float32Array<ArrayBuffer>}
 */
export function fromBytes(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const samples = new Float32Array(bytes.length >> 1);
  for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true) / 32768;
  return samples;
}

/**
 * How loud it is to the eye: 0 at -50 dBFS and below, 1 at -10 dBFS and above.
 * @param {Float32Array} samples
 */
export function loudness(samples) {
  if (!samples.length) return 0;
  const power = samples.reduce((sum, x) => sum + x * x, 0) / samples.length;
  return Math.max(0, Math.min(1, (10 * Math.log10(power + 1e-12) + 50) / 40));
}
