// What an audio worklet has and TypeScript's own library lacks.
// Source: Web Audio API, AudioWorkletGlobalScope.
declare const sampleRate: number;
declare const currentTime: number;
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(name: string, processor: unknown): void;
