// The documents: files that are sent, listed, chosen and removed.

import { inWords, json, upload } from "./api.js";
import { button, byId, element, isolated, say, setText } from "./elements.js";
import { plural, size } from "./words.js";

export class Files {
  /** `changed()` is called when other files are chosen; `refused(error)` with what a request ended with. */
  constructor(changed, refused) {
    this.changed = changed;
    this.refused = refused;
    this.files = new Map(); // by id: name, box, item
    this.waiting = [];
    this.isSending = false;
    const choose = byId("choose");
    choose.addEventListener("change", () => {
      this.send([...choose.files]);
      choose.value = "";
    });
    this.listenToDrops();
  }

  get chosen() {
    return [...this.files].filter(([, file]) => file.box.checked).map(([id, file]) => ({ id, name: file.name }));
  }

  /** Shows the files on the server. Those that were chosen stay chosen. */
  async load() {
    const before = new Map(this.files);
    const listed = (await json("GET", "v1/files?order=asc")).data;
    for (const [id, { item }] of before) {
      item.remove();
      this.files.delete(id);
    }
    for (const file of listed) if (!this.files.has(file.id)) this.add(file, Boolean(before.get(file.id)?.box.checked));
    this.note();
  }

  add(file, isChosen) {
    const box = element("input", { type: "checkbox", change: () => this.note() });
    box.checked = isChosen;
    const item = element("li", {},
      element("label", {}, box, " ", isolated(file.filename)), element("span", { class: "note" }, size(file.bytes)),
      button("Remove", () => this.remove(file.id), { "aria-label": `Remove ${file.filename}` }));
    this.files.set(file.id, { name: file.filename, box, item });
    byId("files").append(item);
  }

  note() {
    const chosen = this.chosen.length, all = this.files.size;
    setText(byId("files-note"), all ? `${chosen} of ${plural(all, "document")} chosen for the next question.` : "No document yet.");
    this.changed();
  }

  async remove(id) {
    const { item, name } = this.files.get(id);
    setText(byId("files-trouble"), "");
    try {
      await json("DELETE", `v1/files/${encodeURIComponent(id)}`);
    } catch (error) {
      if (error.status !== 404) return this.failed(inWords(`${name} was not removed`, error), error);
    }
    const next = (item.nextElementSibling || item.previousElementSibling)?.querySelector("button") || byId("choose");
    this.files.delete(id);
    item.remove();
    next.focus();
    this.note();
    say(`${name} was removed.`);
  }

  failed(text, error) {
    setText(byId("files-trouble"), text);
    this.refused(error);
  }

  /** Sends files one after the other. */
  async send(files) {
    setText(byId("files-trouble"), "");
    this.waiting.push(...files.map((file) => this.waitingItem(file)));
    if (this.isSending) return;
    this.isSending = true;
    const before = this.files.size;
    while (this.waiting.length) await this.sendOne(this.waiting.shift());
    this.isSending = false;
    if (this.files.size > before) say(`${plural(this.files.size - before, "document")} added.`);
  }

  waitingItem(file) {
    const ended = new AbortController(), bar = element("progress", { max: 1, value: 0, "aria-label": `Sending ${file.name}` });
    const state = element("span", { class: "note" }, "waits");
    const item = element("li", {}, isolated(file.name), bar, state,
      button("Cancel", () => { ended.abort(); item.remove(); byId("choose").focus(); }, { "aria-label": `Do not send ${file.name}` }));
    byId("uploads").append(item);
    return { file, item, bar, state, signal: ended.signal };
  }

  async sendOne({ file, item, bar, state, signal }) {
    if (signal.aborted) return;
    try {
      const sent = await upload(file, (share) => {
        bar.value = share;
        // At the end the server still reads the file to check it.
        setText(state, share < 1 ? `${Math.floor(100 * share)}%` : "is being checked");
      }, signal);
      this.add(sent, true);
      this.note();
    } catch (error) {
      if (error.status !== -1) {
        const place = byId("files-trouble");
        place.append(element("p", {}, isolated(file.name), inWords(" was not added", error)));
        this.refused(error);
      }
    }
    item.remove();
  }

  listenToDrops() {
    const hasFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    const zone = byId("drop");
    document.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      zone.classList.add("over");
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget || zone.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      zone.classList.remove("over");
      if (!hasFiles(event)) return;
      event.preventDefault();
      if (byId("documents").hidden) return;
      const entries = [...event.dataTransfer.items].map((item) => [item.webkitGetAsEntry?.(), item.getAsFile()]);
      const files = entries.filter(([entry, file]) => file && !entry?.isDirectory).map(([, file]) => file);
      this.send(files);
      if (files.length < entries.length) setText(byId("files-trouble"), "Folders are not sent: drop the files in them.");
    });
  }
}
