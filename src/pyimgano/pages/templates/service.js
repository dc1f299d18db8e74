(() => {
  const MOST_SHOWN = 20;
  const get = (id) => document.getElementById(id);
  const answers = get("answers");
  const waiting = [];
  let working = false;

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const pause = (seconds) => new Promise((done) => { setTimeout(done, 1000 * seconds); });
  const number = (value) => (value === null ? "–" : Number(value.toPrecision(4)).toString());

  // never rounded across the threshold
  const multiple = (ratio) => {
    const text = ratio.toFixed(2);
    if ((Number(text) >= 1) === (ratio >= 1)) return text;
    return ratio >= 1 ? "1.00" : "0.99";
  };

  const facts = (pairs) => {
    const list = element("dl", "facts");
    for (const [name, value] of pairs) {
      const pair = element("div");
      pair.append(element("dt", "", name), element("dd", "", value));
      list.append(pair);
    }
    return list;
  };

  const picture = (source, alt) => {
    const image = new Image();
    image.alt = alt;
    image.src = source;
    return image;
  };

  const showAnswer = (file, answer) => {
    const card = element("article", `answer is-${answer.decision}`);
    card.dataset.decision = answer.decision;
    card.dataset.score = answer.score;
    const head = element("p", "answer-head");
    const ratio = answer.score_ratio === null ? number(answer.score) : `${multiple(answer.score_ratio)} ×`;
    head.append(element("span", "ratio", ratio), element("span", "call", answer.decision), element("span", "kind", file.name));
    const shown = element("div", "answer-pictures");
    const own = URL.createObjectURL(file);
    const original = picture(own, `${file.name}: the image`);
    original.addEventListener("load", () => URL.revokeObjectURL(own));
    original.addEventListener("error", () => { URL.revokeObjectURL(own); original.remove(); }); // a TIFF, say
    shown.append(original);
    if (answer.overlay_png !== null) {
      const overlay = picture(`data:image/png;base64,${answer.overlay_png}`, `${file.name}: the anomaly map and the regions that reach the threshold`);
      overlay.className = "overlay";
      shown.append(overlay);
    }
    const pairs = [
      ["Score", number(answer.score)],
      ["Threshold", number(answer.threshold)],
      ["p-value", number(answer.p_value)],
      ["Regions", answer.regions === null ? "–" : String(answer.regions.length)],
      ["Detector", `${answer.detector}, version ${answer.version}`],
      ["Image", `${answer.original_size[1]} × ${answer.original_size[0]} pixels`],
      ["Time", `${Math.round(1000 * answer.seconds)} ms`],
    ];
    if (answer.context_share !== null && answer.context_share >= 0.005) {
      pairs.push(["Context", `${Math.round(100 * answer.context_share)} % of the score, which the map does not show`]);
    }
    if (answer.remark !== null) pairs.push(["Remark", answer.remark]);
    card.append(head, shown, facts(pairs));
    return card;
  };

  const showProblem = (file, line) => {
    const card = element("article", "answer is-undecided");
    card.dataset.decision = "none";
    const head = element("p", "answer-head");
    head.append(element("span", "ratio", "No decision"), element("span", "kind", file.name));
    card.append(head, element("p", "problem", line));
    return card;
  };

  const judge = async (file) => {
    const headers = { "Content-Type": "application/octet-stream" };
    const key = get("key");
    if (key !== null && key.value) headers["X-API-Key"] = key.value;
    const address = `v1/models/${encodeURIComponent(get("detector").value)}/predict?overlay=true`;
    for (;;) {
      const response = await fetch(address, { method: "POST", headers, body: file });
      if (response.status === 429) {
        await pause(Number(response.headers.get("Retry-After")) || 1);
        continue;
      }
      const answer = await response.json();
      return response.ok ? showAnswer(file, answer) : showProblem(file, answer.error);
    }
  };

  const work = async () => {
    if (working) return;
    working = true;
    while (waiting.length) {
      const file = waiting.shift();
      get("status").textContent = `Asking about ${file.name}${waiting.length ? `, ${waiting.length} more wait` : ""} …`;
      let card;
      try {
        card = await judge(file);
      } catch (error) {
        card = showProblem(file, `the service does not answer (${error.message})`);
      }
      answers.prepend(card);
      while (answers.children.length > MOST_SHOWN) answers.lastChild.remove();
    }
    get("status").textContent = "";
    working = false;
  };

  const take = (files) => { waiting.push(...files); work(); };
  get("file").addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = "";
  });
  const drop = get("drop");
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (event.relatedTarget === null) drop.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
})();
