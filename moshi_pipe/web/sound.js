// @ts-check
/** Microphone and speaker, both through worklets of one audio context: they share its clock. */

/**
 * @typedef {{ pcm: Float32Array<ArrayBuffer>, time_s: number }} Heard Of the microphone, at 24 kHz.
 * @typedef {Heard & { buffered_s: number, underruns: number, dropped_s: number }} Played
 * @typedef {object} Events
 * @property {(block: Heard) => void} heard
 * @property {(block: Played) => void} played
 * @property {() => void} ended The microphone is gone.
 */

/** Why the microphone cannot be had; null if nothing is known to be in the way. */
export function obstacle() {
  if (!isSecureContext) return "insecure";
  const here = "mediaDevices" in navigator && "AudioWorkletNode" in globalThis;
  return here ? null : "unsupported";
}

/**
 * What `getUserMedia` throws, as a word.
 * @param {unknown} error
 */
export function microphoneFailure(error) {
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError" || name === "SecurityError") return "microphone_refused";
  if (name === "NotFoundError" || name === "OverconstrainedError") return "microphone_missing";
  if (name === "NotReadableError" || name === "AbortError") return "microphone_busy";
  return "audio_failed";
}

export class Sound {
  #context;
  #stream;
  #playback;
  #latency_s;

  /**
   * @param {AudioContext} context
   * @param {MediaStream} stream
   * @param {Events} events
   */
  constructor(context, stream, events) {
    this.#context = context;
    this.#stream = stream;
    const capture = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    this.#playback = new AudioWorkletNode(context, "playback", { numberOfInputs: 0 });
    // What is played now is heard a little later; the recording should show it then.
    this.#latency_s = context.outputLatency || context.baseLatency || 0;
    capture.port.onmessage = ({ data }) => events.heard(data);
    this.#playback.port.onmessage = ({ data }) =>
      events.played({ ...data, time_s: data.time_s + this.#latency_s });
    context.createMediaStreamSource(stream).connect(capture);
    this.#playback.connect(context.destination);
    stream.getAudioTracks()[0].onended = () => events.ended();
  }

  /**
   * Ask for the microphone, and start. Throws what `getUserMedia` throws.
   * @param {{ echoCancellation: boolean }} wishes
   * @param {Events} events
   */
  static async start({ echoCancellation }, events) {
    // Made before anything is awaited, in the user's gesture: browsers let it sound then.
    const context = new AudioContext({ latencyHint: "interactive" });
    /** @type {MediaStream | undefined} */
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        audio: {
          echoCancellation,
          noiseSuppression: echoCancellation,
          autoGainControl: true,
          channelCount: 1,
        },
      });
      await Promise.all(
        ["capture-worklet.js", "playback-worklet.js"].map((file) =>
          context.audioWorklet.addModule(new URL(file, import.meta.url)),
        ),
      );
      await context.resume();
      return new Sound(context, stream, events);
    } catch (error) {
      stream?.getTracks().forEach((track) => track.stop());
      await context.close();
      throw error;
    }
  }

  /** @param {Float32Array<ArrayBuffer>} pcm At 24 kHz. */
  play(pcm) {
    this.#playback.port.postMessage({ pcm }, [pcm.buffer]);
  }

  /** @param {boolean} yes Whether audio should be coming: if not, its lack is no underrun. */
  expect(yes) {
    this.#playback.port.postMessage({ expecting: yes });
  }

  /** @param {boolean} yes The track itself is off, so that the browser's own sign says it, too. */
  mute(yes) {
    for (const track of this.#stream.getAudioTracks()) track.enabled = !yes;
  }

  stop() {
    for (const track of this.#stream.getTracks()) track.stop();
    void this.#context.close();
  }
}
