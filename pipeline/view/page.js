const data = parsed("data");

document.title = `${data.run.name}: run`;
byId("name").replaceChildren(data.run.name);
byId("status").replaceChildren(`${data.run.status}. This page was written ${data.run.written}.`);
byId("status").after(list(data.run.numbers.map(([name, value]) => [name.replaceAll("_", " "), shown(value)])),
  ...(data.run.error ? [element("pre", {}, data.run.error)] : []));
drawCurves(data.curves, data.validation);
drawEpisodes(data.episodes);
drawComparisons(data.comparisons);
byId("notes").append(data.run.notes.length
  ? element("ul", {}, data.run.notes.map((note) => element("li", {}, note)))
  : element("p", {}, "Everything that the run left for this page is on it."));
