// @ts-check
/** The form of settings: its ranges are the server's, what is chosen stays in this browser. */

const KEPT = "moshi-pipe.settings";

/**
 * @typedef {{ min: number, max: number, default: number }} Range
 * @typedef {{ label: string, hint: string, step: number, unit?: string }} Look
 */

/** @type {Record<string, Look>} */
const RANGES = {
  audio_temperature: {
    label: "Temperature of the voice",
    hint: "Lower is steadier, higher is livelier.",
    step: 0.05,
  },
  text_temperature: {
    label: "Temperature of the words",
    hint: "Lower is more predictable.",
    step: 0.05,
  },
  audio_topk: { label: "Choices for the voice", hint: "Top-k of each codebook.", step: 1 },
  text_topk: { label: "Choices for the words", hint: "Top-k of the text.", step: 1 },
  repetition_penalty: {
    label: "Repetition penalty",
    hint: "Above 1, words said lately become less likely.",
    step: 0.05,
  },
  max_s: { label: "Longest conversation", hint: "The server ends it then.", step: 1, unit: "s" },
};

export class Settings {
  #form;
  #sampling;
  /** @type {Record<string, Range>} */
  #ranges = {};

  /** @param {HTMLFormElement} form */
  constructor(form) {
    this.#form = form;
    this.#sampling = /** @type {HTMLElement} */ (form.querySelector("#sampling"));
    form.addEventListener("input", () => this.#keep());
    this.#restore();
  }

  /** @param {Record<string, any>} settings Of `/api/info`. */
  offer(settings) {
    this.#ranges = settings;
    const known = Object.entries(RANGES).filter(([name]) => settings[name]);
    this.#sampling.replaceChildren(
      ...known.map(([name, look]) => makeRange(name, look, settings[name])),
    );
    const recording = /** @type {HTMLElement} */ (this.#form.querySelector("#recording"));
    recording.hidden = !settings.recording?.offered;
    this.#restore();
  }

  /** Back to what the server does unasked. */
  reset() {
    this.#form.reset();
    localStorage.removeItem(KEPT);
    this.#show();
  }

  /** @returns {import("./conversation.js").Wishes} */
  get wishes() {
    /** @type {Record<string, string | number>} */
    const parameters = {};
    for (const [name, { default: usual }] of Object.entries(this.#ranges)) {
      const field = this.#field(name);
      if (field?.value && Number(field.value) !== usual) parameters[name] = Number(field.value);
    }
    const seed = this.#field("seed")?.value.trim();
    if (seed) parameters.seed = seed; // a string: it may have more digits than a number holds
    if (this.#field("record")?.checked) parameters.record = 1;
    return {
      audio: /** @type {"auto"} */ (this.#field("audio")?.value),
      echoCancellation: this.#field("echo")?.checked ?? true,
      parameters,
    };
  }

  /** @param {string} name @returns {HTMLInputElement | null} */
  #field(name) {
    return /** @type {any} */ (this.#form.elements.namedItem(name));
  }

  #keep() {
    /** @type {Record<string, string | boolean>} */
    const values = {};
    for (const field of this.#fields()) {
      // Consent is given for one visit, not for good.
      if (field.name !== "record") values[field.name] = isBox(field) ? field.checked : field.value;
    }
    localStorage.setItem(KEPT, JSON.stringify(values));
    this.#show();
  }

  #restore() {
    /** @type {Record<string, string | boolean>} */
    let values = {};
    try {
      values = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    } catch {
      localStorage.removeItem(KEPT);
    }
    for (const field of this.#fields()) {
      const value = values[field.name];
      if (typeof value === "boolean") field.checked = value;
      else if (value !== undefined) field.value = value;
    }
    this.#show();
  }

  #show() {
    for (const output of this.#form.querySelectorAll("output")) {
      const field = this.#field(output.htmlFor.value);
      const unit = output.dataset.unit ? ` ${output.dataset.unit}` : "";
      if (field) output.value = `${Number(field.value)}${unit}`;
    }
  }

  #fields() {
    const fields = /** @type {Iterable<HTMLInputElement>} */ (/** @type {any} */ (this.#form.elements));
    return [...fields].filter((field) => field.name);
  }
}

/** @param {HTMLInputElement} field */
function isBox(field) {
  return field.type === "checkbox";
}

/**
 * @param {string} name
 * @param {Look} look
 * @param {Range} range
 */
function makeRange(name, { label, hint, step, unit }, { min, max, default: usual }) {
  const row = document.createElement("div");
  row.className = "field";
  const title = document.createElement("label");
  title.htmlFor = name;
  title.textContent = label;
  const output = document.createElement("output");
  output.htmlFor.value = name;
  output.dataset.unit = unit ?? "";
  const input = document.createElement("input");
  Object.assign(input, { type: "range", id: name, name, min, max, step });
  input.defaultValue = String(usual);
  input.setAttribute("aria-describedby", `${name}-hint`);
  const note = document.createElement("p");
  note.id = `${name}-hint`;
  note.className = "hint";
  note.textContent = hint;
  row.append(title, output, input, note);
  return row;
}
