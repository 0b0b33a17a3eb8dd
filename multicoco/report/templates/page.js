"use strict";
(() => {
  const list = document.getElementById("list");
  if (!list) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const groups = Object.keys(data.groups);
  const state = { text: "", conditions: [], groups: {}, page: 0, size: 20, open: new Set() };
  const STATES = {
    right: (a) => a && a.r === true,
    wrong: (a) => a && a.r === false,
    unparsed: (a) => a && a.x === null,
    "cut off": (a) => a && a.cut === true,
  };

  // all texts of data sets and models go through here, as text
  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) {
      element.textContent = text;
      element.dir = "auto";
    }
    return element;
  }

  const short = (text, most) => (text.length > most ? text.slice(0, most) + "…" : text);

  function haystack(q) {
    if (q.hay === undefined) {
      const texts = q.e.map((a) => (a ? a.t : ""));
      q.hay = [`#${q.no}`, q.id, q.q, ...q.c, ...texts].join("\n").toLowerCase();
    }
    return q.hay;
  }

  function matches(q) {
    for (const [place, value] of Object.entries(state.groups)) if (q.g[place] !== value) return false;
    for (const { evaluation, is } of state.conditions) {
      if (is === "changed") {
        if (new Set(q.e.filter((a) => a).map((a) => a.x)).size < 2) return false;
      } else if (is && evaluation !== "" && !STATES[is](q.e[evaluation])) return false;
      else if (is && evaluation === "" && !q.e.some(STATES[is])) return false;
    }
    if (/^#\d+$/.test(state.text)) return state.text === `#${q.no}`;
    return !state.text || haystack(q).includes(state.text);
  }

  function picture(number) {
    const image = document.createElement("img");
    image.src = data.pictures[number];
    image.alt = "picture of the question";
    return image;
  }

  function chip(answer, place) {
    return answerChip(answer, data.evaluations[place]);
  }

  function answerChip(answer, name) {
    const kind = answer.r === true ? "right" : answer.r === false ? "wrong" : "";
    const mark = answer.r === true ? "✓" : answer.x === null ? "?" : answer.r === false ? "✗" : "·";
    const element = make("span", `chip ${kind}`);
    element.append(`${mark} `, make("b", "", short(name, 40)), " ");
    element.append(make("span", "", answer.x === null ? "unparsed" : short(answer.x, 60)));
    element.title = `${name}: ${answer.x === null ? "no clear answer" : short(answer.x, 300)}`;
    return element;
  }

  // places of the evaluations in which something was done to the thoughts of that one
  function interventions(q, place) {
    return q.e.map((_, other) => other).filter((other) => q.e[other] && data.touched[other]?.of === place);
  }

  function questionElement(q) {
    const element = make("div", "question");
    const line = make("button", q.i.length ? "line" : "line plain");
    line.type = "button";
    line.setAttribute("aria-expanded", state.open.has(q));
    if (q.i.length) line.append(picture(q.i[0]));
    const main = make("div");
    main.append(make("div", "id", `#${q.no} ${q.id}`), make("div", "asked", short(q.q, 400)));
    const chips = make("div", "chips");
    q.e.forEach((answer, place) => {
      if (!answer || data.touched[place]) return;
      chips.append(chip(answer, place));
      const under = interventions(q, place);
      if (!under.length) return;
      const changed = under.filter((other) => q.e[other].x !== answer.x).length;
      chips.append(make("span", "chip", `${changed} of ${under.length} interventions change it`));
    });
    main.append(chips);
    line.append(main);
    line.addEventListener("click", () => {
      state.open.has(q) ? state.open.delete(q) : state.open.add(q);
      element.replaceWith(questionElement(q));
    });
    element.append(line);
    if (state.open.has(q)) element.append(whole(q));
    return element;
  }

  function whole(q) {
    const element = make("div", "whole");
    q.i.forEach((number) => element.append(picture(number)));
    element.append(make("h3", "", "Question"), make("div", "text", q.q));
    if (q.c.length) {
      const choices = make("ol");
      choices.start = 0;
      q.c.forEach((choice, place) => choices.append(make("li", place === q.a ? "gold" : "", choice)));
      element.append(make("h3", "", "Choices, the right one marked"), choices);
    } else if (q.a !== null) {
      element.append(make("h3", "", "Right answer"), make("div", "text gold", String(q.a)));
    }
    if (q.s.length) {
      const steps = make("ol");
      q.s.forEach((step) => steps.append(make("li", "step", step)));
      element.append(make("h3", "", "Written steps of the data"), steps);
    }
    const answers = make("div", "answers");
    q.e.forEach((answer, place) => {
      if (answer && !data.touched[place]) answers.append(answerElement(q, answer, place));
    });
    element.append(answers);
    return element;
  }

  function answerElement(q, answer, place) {
    const element = make("div", answer.h && answer.h.length ? "wide" : "");
    element.append(make("h3", "", data.evaluations[place]), chip(answer, place), make("pre", "", answer.t || "(nothing)"));
    const cost = [`${answer.n ?? "?"} tokens written`];
    if (answer.l) cost.push(`${answer.l} thoughts`);
    if (answer.cut) cost.push("cut off at its limit");
    element.append(make("p", "note", cost.join(", ")));
    if (answer.p) element.append(likelihoods(q, answer.p));
    if (answer.h && answer.h.length) element.append(thoughts(q, place));
    const under = interventions(q, place);
    if (under.length) element.append(underInterventions(q, place, under));
    return element;
  }

  function likelihoods(q, logprobs) {
    const most = Math.max(...logprobs.filter((p) => p !== null));
    const shares = logprobs.map((p) => (p === null ? 0 : Math.exp(p - most)));
    const sum = shares.reduce((a, b) => a + b, 0);
    const element = make("table");
    logprobs.forEach((logprob, place) => {
      const row = make("tr");
      const share = make("td");
      const bar = make("span", "bar");
      bar.style.width = `${(6 * shares[place]) / sum}rem`;
      share.append(bar, `${((100 * shares[place]) / sum).toFixed(1)} %`);
      row.append(make("td", place === q.a ? "gold" : "", short(q.c[place] ?? "", 60)), share);
      row.append(make("td", "note", logprob === null ? "" : `log p ${logprob.toFixed(2)}`));
      element.append(row);
    });
    return element;
  }

  function word(text, share, title) {
    const element = make("span", "word", text.trim() === "" ? JSON.stringify(text) : text);
    element.style.background = `color-mix(in srgb, var(--c0) ${Math.round(70 * share)}%, transparent)`;
    element.title = title;
    return element;
  }

  // what became of an answer, and of the likelihood of the right one
  function outcome(q, place, other, how) {
    const element = make("span");
    const before = q.e[place].gold;
    const after = q.e[other].gold;
    element.append(answerChip(q.e[other], how));
    if (before !== undefined && after !== undefined) {
      const change = after - before;
      element.append(make("span", "note", ` log p ${after.toFixed(2)} (${change < 0 ? "" : "+"}${change.toFixed(2)})`));
    }
    return element;
  }

  function underInterventions(q, place, under) {
    const element = make("div", "scroll");
    const table = make("table", "under");
    const head = make("tr");
    ["done to its thoughts", "the answer then; log p of the right one", "written then"].forEach((name) =>
      head.append(make("th", "", name)),
    );
    table.append(head);
    under.forEach((other) => {
      const row = make("tr");
      const cell = make("td");
      const { how } = data.touched[other];
      cell.append(outcome(q, place, other, how));
      row.append(make("td", "", how), cell, make("td", "long", short(q.e[other].t, 300)));
      table.append(row);
    });
    element.append(make("h3", "", "Does it matter?"), table);
    return element;
  }

  // each thought's likeliest words, their probability as colour, beside the written step that it stands for
  function thoughts(q, place) {
    const read = q.e[place].h;
    const norm = data.norms[place];
    const alone = interventions(q, place).filter((other) => data.touched[other].at !== null);
    const element = make("div", "scroll");
    const table = make("table", "thoughts");
    const head = make("tr");
    const names = ["thought", "reads like", "size", "stands for", "ranks of its words"];
    if (alone.length) names.push("this one alone replaced by");
    names.forEach((name) => head.append(make("th", "", name)));
    table.append(head);
    read.forEach((thought, number) => {
      const row = make("tr");
      const words = make("td");
      thought.w.forEach(([text, share]) => words.append(word(text, share, `${(100 * share).toFixed(1)} %`)));
      const gold = make("td", "long");
      thought.g.forEach(([text, rank]) => gold.append(word(`${text.trim()} ${rank}`, 1 / rank, `rank ${rank}`)));
      const step = thought.s === null ? "no step" : (q.s[thought.s - 1] ?? `step ${thought.s}`);
      row.append(make("td", "", String(number + 1)), words, make("td", "note", thought.n === null ? "" : String(thought.n)));
      row.append(make("td", "long", step), gold);
      const cell = make("td");
      alone
        .filter((other) => data.touched[other].at === number + 1)
        .forEach((other) => cell.append(outcome(q, place, other, data.touched[other].how.replace(/^only\(\d+, *|\)$/g, ""))));
      if (alone.length) row.append(cell);
      table.append(row);
    });
    const note = "Colour: the probability of a word, or how high the head ranks a word of the step (1: the likeliest). ";
    element.append(table, make("p", "note", note + (norm === null ? "" : `Words' embeddings have a mean size of ${norm}.`)));
    return element;
  }

  function show() {
    const found = data.questions.filter(matches);
    const pages = Math.max(1, Math.ceil(found.length / state.size));
    state.page = Math.min(state.page, pages - 1);
    const shown = found.slice(state.page * state.size, (state.page + 1) * state.size);
    document.getElementById("count").textContent = `${found.length} of ${data.questions.length} questions`;
    list.replaceChildren(...shown.map(questionElement));
    const turn = (label, by, possible) => {
      const button = make("button", "", label);
      button.type = "button";
      button.disabled = !possible;
      button.addEventListener("click", () => {
        state.page += by;
        show();
        document.getElementById("count").scrollIntoView({ block: "nearest" });
      });
      return button;
    };
    const where = make("span", "", `page ${state.page + 1} of ${pages}`);
    const next = state.page < pages - 1;
    document.getElementById("pages").replaceChildren(turn("Earlier", -1, state.page > 0), where, turn("Later", 1, next));
  }

  function again() {
    state.page = 0;
    show();
  }

  function select(label, options, changed) {
    const element = make("label", "", label);
    const box = make("select");
    for (const [value, text] of options) {
      const option = make("option", "", short(text, 60));
      option.value = value;
      box.append(option);
    }
    box.addEventListener("change", () => changed(box.value));
    element.append(box);
    element.box = box;
    return element;
  }

  const filters = document.getElementById("filters");
  filters.addEventListener("submit", (event) => event.preventDefault());
  const search = make("label", "search", "Text in question, choices or answers, or #number");
  const input = make("input");
  input.type = "search";
  let waiting;
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state.text = input.value.trim().toLowerCase();
      again();
    }, 150);
  });
  search.append(input);
  filters.append(search);
  const evaluations = [["", "any evaluation"], ...data.evaluations.map((name, place) => [String(place), name])];
  const kinds = ["", ...Object.keys(STATES)].map((kind) => [kind, kind || "whatever"]);
  const boxes = [0, 1].map((number) => {
    state.conditions.push({ evaluation: "", is: "" });
    const condition = state.conditions[number];
    const name = select(number ? "and" : "Where", evaluations, (value) => ((condition.evaluation = value), again()));
    const kind = select("is", number || data.evaluations.length < 2 ? kinds : [...kinds, ["changed", "differing"]], (value) => {
      condition.is = value;
      again();
    });
    if (number === 0 || data.evaluations.length > 1) filters.append(name, kind);
    return { name: name.box, kind: kind.box };
  });
  groups.forEach((group, place) => {
    const options = [["", "all"], ...data.groups[group].map((value) => [value, value])];
    filters.append(
      select(group, options, (value) => {
        value === "" ? delete state.groups[place] : (state.groups[place] = value);
        again();
      }),
    );
  });

  document.querySelectorAll("button[data-right]").forEach((button) =>
    button.addEventListener("click", () => {
      [
        [button.dataset.right, "right"],
        [button.dataset.wrong, "wrong"],
      ].forEach(([name, is], number) => {
        const place = String(data.evaluations.indexOf(name));
        Object.assign(state.conditions[number], { evaluation: place, is });
        boxes[number].name.value = place;
        boxes[number].kind.value = is;
      });
      again();
      filters.scrollIntoView();
    }),
  );
  show();
})();
