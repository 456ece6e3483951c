// What a reading leaves of its sections: a few numbers of each, and the memories as far as they fit.

import { wordCount } from "./words.js";

export const MOST_CHARACTERS = 8e6; // of memories that are held
const NEWEST = 100; // memories that are never dropped
const RECENT = 20; // sections that the speed is measured with

export class Sections {
  constructor() {
    this.read = new Map(); // by number: place, added, dropped (words), isCut, parts ([kind, text], or null: not held)
    this.total = null;
    this.isEstimate = true;
    this.latest = 0; // the section that was read last
    this.highest = 0;
    this.tokens = 0;
    this.characters = 0;
    this.step = 1; // of the older memories, those of every step-th section are held
    this.pause();
  }

  /** Adds the section of an event. */
  add({ section, sections, is_estimate, place, changes, is_cut, prompt_tokens, response_tokens }) {
    if (this.read.has(section)) return;
    const parts = changes.map(({ kind, text }) => [kind, text]);
    const count = (kind) => parts.reduce((sum, [of, text]) => sum + (of === kind ? wordCount(text) : 0), 0);
    this.read.set(section, { place, added: count("added"), dropped: count("dropped"), isCut: is_cut, parts });
    this.total = sections;
    this.isEstimate = is_estimate;
    this.latest = section;
    this.highest = Math.max(this.highest, section);
    this.tokens += prompt_tokens + response_tokens;
    this.characters += lengthOf(parts);
    this.times.push([performance.now(), this.tokens]);
    if (this.times.length > RECENT + 1) this.times.shift();
    this.drop(this.highest - NEWEST);
    this.fit(MOST_CHARACTERS);
  }

  /** Drops memories until they fit: every second of the older ones, so that each part of the document keeps some. */
  fit(most) {
    while (this.characters > most && this.step <= this.highest) {
      this.step *= 2;
      for (const number of this.read.keys()) if (number <= this.highest - NEWEST) this.drop(number);
    }
  }

  /** Drops the memory of a section that is not among every `step`-th. */
  drop(number) {
    const one = this.read.get(number);
    if (!one?.parts || number % this.step === 0) return;
    this.characters -= lengthOf(one.parts);
    one.parts = null;
  }

  /** The section nearest to another whose memory is held; null: there is none. */
  nearestHeld(number) {
    for (let away = 1; away <= this.highest; away++) {
      for (const near of [number - away, number + away]) if (this.read.get(near)?.parts) return near;
    }
    return null;
  }

  /** Time passed without sections coming in, such as a lost connection: the speed is measured from here. */
  pause() {
    this.times = [[performance.now(), this.tokens]];
  }

  /** Sections and tokens per second of late; null: not known yet. */
  speed() {
    if (this.times.length < 3) return null;
    const [[begin, tokens]] = this.times, [end, after] = this.times[this.times.length - 1];
    const seconds = Math.max((end - begin) / 1000, 1e-3);
    return { sections: (this.times.length - 1) / seconds, tokens: (after - tokens) / seconds };
  }

  get left() {
    return this.total === null ? null : Math.max(this.total - this.read.size, 0);
  }
}

const lengthOf = (parts) => parts.reduce((sum, [, text]) => sum + text.length, 0);
