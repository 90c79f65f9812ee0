// @ts-check
/** Ogg Opus by the browser's own codec (WebCodecs): no codec is shipped. */

import { PageReader, PageWriter } from "./ogg.js";
import { SAMPLE_RATE } from "./protocol.js";
import { Resampler } from "./resampler.js";

const GRANULES_PER_S = 48000; // Source: RFC 7845, section 4
const BITRATE = 32000;
const FRAME_US = 20000;

const ENCODER = {
  codec: "opus",
  sampleRate: SAMPLE_RATE,
  numberOfChannels: 1,
  bitrate: BITRATE,
  opus: { frameDuration: FRAME_US },
};

/** Whether this browser can write and read Opus. */
export async function canOpus() {
  try {
    const decoder = { codec: "opus", sampleRate: SAMPLE_RATE, numberOfChannels: 1 };
    const answers = await Promise.all([
      AudioEncoder.isConfigSupported(/** @type {any} */ (ENCODER)),
      AudioDecoder.isConfigSupported(decoder),
    ]);
    return answers.every((answer) => answer.supported);
  } catch {
    return false; // no WebCodecs at all, or none for audio
  }
}

/** Makes one Ogg Opus stream. */
export class OpusEncoder {
  #encoder;
  #writer = new PageWriter(crypto.getRandomValues(new Uint32Array(1))[0]);
  #begun = false;
  #samples = 0;
  #granule = 0;

  /**
   * @param {(bytes: Uint8Array) => void} send Takes pages.
   * @param {(error: Error) => void} fail
   */
  constructor(send, fail) {
    this.#encoder = new AudioEncoder({
      error: fail,
      output: (chunk, metadata) => {
        if (!this.#begun) {
          send(this.#writer.headers(headOf(metadata), "moshi-pipe"));
          this.#begun = true;
        }
        const packet = new Uint8Array(chunk.byteLength);
        chunk.copyTo(packet);
        this.#granule += ((chunk.duration ?? FRAME_US) * GRANULES_PER_S) / 1e6;
        send(this.#writer.page(packet, Math.round(this.#granule)));
      },
    });
    this.#encoder.configure(/** @type {any} */ (ENCODER));
  }

  /** @param {Float32Array<ArrayBuffer>} pcm At 24 kHz. */
  push(pcm) {
    if (this.#encoder.state !== "configured") return;
    const data = new AudioData({
      format: "f32-planar",
      sampleRate: SAMPLE_RATE,
      numberOfChannels: 1,
      numberOfFrames: pcm.length,
      timestamp: Math.round((this.#samples * 1e6) / SAMPLE_RATE),
      data: pcm,
    });
    this.#samples += pcm.length;
    this.#encoder.encode(data);
    data.close();
  }

  close() {
    if (this.#encoder.state !== "closed") this.#encoder.close();
  }
}

/**
 * The packet OpusHead: what the encoder says, or what is true of every mono stream at 24 kHz.
 * @param {EncodedAudioChunkMetadata | undefined} metadata
 */
function headOf(metadata) {
  const description = metadata?.decoderConfig?.description;
  if (description && ArrayBuffer.isView(description)) {
    return new Uint8Array(description.buffer, description.byteOffset, description.byteLength);
  }
  if (description) return new Uint8Array(description);
  const head = new Uint8Array(19); // Source: RFC 7845, section 5.1
  head.set(new TextEncoder().encode("OpusHead"));
  head.set([1, 1, 0x38, 0x01], 8); // version, channels, 312 samples of pre-skip
  new DataView(head.buffer).setUint32(12, SAMPLE_RATE, true);
  return head;
}

/** Reads Ogg Opus, one stream after another. */
export class OpusDecoder {
  #decoder;
  #reader = new PageReader();
  /** @type {Resampler | null} */
  #resampler = null;
  #rate = 0;
  #skip_s = 0;
  #packets = 0;

  /**
   * @param {(pcm: Float32Array<ArrayBuffer>) => void} hear Takes audio at 24 kHz.
   * @param {(error: Error) => void} fail
   */
  constructor(hear, fail) {
    this.#decoder = new AudioDecoder({ error: fail, output: (data) => hear(this.#take(data)) });
    this.#decoder.configure({ codec: "opus", sampleRate: SAMPLE_RATE, numberOfChannels: 1 });
  }

  /** @param {Uint8Array} bytes Any part of the stream. */
  push(bytes) {
    for (const packet of this.#reader.push(bytes)) {
      const name = String.fromCharCode(...packet.subarray(0, 8));
      if (name === "OpusHead") {
        this.#skip_s = (packet[10] + 256 * packet[11]) / GRANULES_PER_S;
      } else if (name !== "OpusTags" && this.#decoder.state === "configured") {
        const timestamp = this.#packets++ * FRAME_US;
        this.#decoder.decode(new EncodedAudioChunk({ type: "key", timestamp, data: packet }));
      }
    }
  }

  /** @param {AudioData} data */
  #take(data) {
    const samples = new Float32Array(data.numberOfFrames);
    data.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
    if (this.#rate !== data.sampleRate) {
      this.#rate = data.sampleRate;
      this.#resampler = new Resampler(this.#rate, SAMPLE_RATE);
    }
    data.close();
    const skip = Math.min(samples.length, Math.round(this.#skip_s * this.#rate));
    this.#skip_s -= skip / this.#rate;
    return /** @type {Resampler} */ (this.#resampler).push(samples.subarray(skip));
  }

  close() {
    if (this.#decoder.state !== "closed") this.#decoder.close();
  }
}
