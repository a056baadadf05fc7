/* The panel of the open chapter in JupyterLab: a form that runs it, how far its run is, and its claims.

   Plain JavaScript, no build: JupyterLab loads this file as a federated extension. What it needs of JupyterLab comes from
   the scope that JupyterLab shares with extensions (at the end of the file). What a run wrote is shown as text alone.
   The server's side is vlws/lab/panel.py. */
(() => {
  "use strict";

  const EVERY = 1000; // milliseconds between two questions how far a run is
  const GOING = ["starting", "running"];
  const ENDED = {
    ok: "Finished",
    failed: "Failed",
    dead: "Died",
    timeout: "Stopped at its time limit",
    cancelled: "Cancelled",
  };
  const style = new URL("panel.css", document.currentScript.src).href;

  /** An element: its tag with classes ("p.vlws-muted"), its properties or attributes, and what is in it. */
  function h(tag, given, ...inside) {
    const [name, ...classes] = tag.split(".");
    const node = document.createElement(name);
    node.classList.add(...classes);
    for (const [key, value] of Object.entries(given || {})) {
      if (key in node && !key.startsWith("aria")) node[key] = value;
      else if (value !== null && value !== false) node.setAttribute(key, value);
    }
    return fill(node, ...inside.flat());
  }

  /** An element with other things in it; null and "" are nothing. */
  function fill(node, ...inside) {
    node.replaceChildren(...inside.filter((part) => part !== null && part !== ""));
    return node;
  }

  const duration = (seconds) =>
    seconds < 60
      ? `${Math.round(seconds)} s`
      : `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  const number = (x) =>
    x === 0 || (Math.abs(x) >= 0.01 && Math.abs(x) < 100) ? x.toFixed(3) : Number(x).toPrecision(3);
  const asText = (value) => (Array.isArray(value) ? `[${value.join(", ")}]` : String(value));
  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const later = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

  /** The panel, made of what JupyterLab shares. */
  function panelClass({ Widget }) {
    return class Panel extends Widget {
      constructor(ask, pageOf) {
        super();
        this.ask = ask; // (method, path, body) -> what the server said; an Error with its sentence where it refused
        this.pageOf = pageOf; // run id -> address of its page
        this.typed = new Map(); // slug -> {preset, values: {name: text}, open, force}: what was filled in
        this.watched = new Set(); // handles of runs that are followed
        this.busy = false; // a run was asked for, and the server has not answered yet
        this.addClass("vlws-panel");
        this.node.setAttribute("role", "region");
        this.node.setAttribute("aria-label", "Chapter");
        this.node.dataset.lmSuppressShortcuts = "true";
        this.say("Open a chapter to run it and to see its claims.");
      }

      say(sentence) {
        this.chapter = null;
        fill(this.node, h("p.vlws-muted", {}, sentence));
      }

      /** Show the document of a widget of the main area (null: there is none). */
      follow(widget) {
        const context = (widget && widget.context) || null;
        if (this.context === context && context) return;
        if (this.context) {
          this.context.fileChanged.disconnect(this.refresh, this);
          this.context.saveState.disconnect(this.saved, this);
        }
        this.context = context;
        if (!context) return this.say("Open a chapter to run it and to see its claims.");
        context.fileChanged.connect(this.refresh, this);
        context.saveState.connect(this.saved, this); // also where the file stayed as it was
        this.refresh();
      }

      saved(context, state) {
        if (state.startsWith("completed")) this.refresh();
      }

      /** Ask anew what the open document is; the form and the claims are drawn anew where the file has changed. */
      async refresh() {
        const context = this.context;
        let told;
        try {
          told = await this.ask("GET", `chapter?path=${encodeURIComponent(context.localPath)}`);
        } catch (error) {
          if (context === this.context) this.say(error.message);
          return;
        }
        if (context !== this.context) return;
        if (!told.chapter) return this.say(told.said);
        const same = this.chapter && this.chapter.slug === told.chapter.slug && this.written === told.written;
        this.chapter = told.chapter;
        this.written = told.written;
        if (!same) {
          this.draw();
          this.loadClaims();
        }
        this.drawOutputs(told.outputs);
        this.drawOthers(told.others);
        this.drawRun(told.run);
      }

      // --- the form ---

      draw() {
        const { id, title, slug } = this.chapter;
        const typed = this.typed.get(slug) || { preset: "cpu", values: {}, open: false, force: false };
        this.typed.set(slug, typed);
        if (!(typed.preset in this.chapter.presets)) typed.preset = "cpu";
        this.preset = h(
          "select",
          { id: "vlws-preset", onchange: () => this.choose(this.preset.value), "aria-describedby": "vlws-replaces" },
          Object.keys(this.chapter.presets).map((name) =>
            h("option", { value: name, selected: name === typed.preset }, name),
          ),
        );
        this.replaces = h("p.vlws-muted", { id: "vlws-replaces" });
        this.start = h("button.jp-mod-styled.jp-mod-accept", { type: "submit" }, "Run");
        this.stop = h(
          "button.jp-mod-styled.jp-mod-warn",
          { type: "button", hidden: true, onclick: () => this.cancel() },
          "Cancel",
        );
        this.error = h("p.vlws-error", { role: "alert", hidden: true });
        this.others = h("p.vlws-muted", { hidden: true });
        this.status = h("div.vlws-run", { hidden: true });
        this.spoken = h("p.vlws-spoken", { role: "status" });
        this.fields = new Map(this.chapter.parameters.map((one) => [one.name, this.field(one)]));
        this.force = h("input", {
          type: "checkbox",
          checked: typed.force,
          onchange: () => (typed.force = this.force.checked),
        });
        this.summary = h("summary", {});
        this.details = h(
          "details",
          { open: typed.open, ontoggle: () => (typed.open = this.details.open) },
          this.summary,
          [...this.fields.values()].map((field) => field.row),
          h("label.vlws-check", {}, this.force, "Run again where nothing has changed"),
        );
        this.claims = h("ul.vlws-claims", { "aria-labelledby": "vlws-claims-head" });
        this.tally = h("p.vlws-muted", {}, "Reading what was measured …");
        this.outputs = h("section", { hidden: true });
        fill(
          this.node,
          h("h2", {}, h("span.vlws-id", {}, id), " ", title),
          h(
            "form",
            { "aria-label": "Run this chapter", noValidate: true, onsubmit: (event) => this.run(event) },
            h(
              "div.vlws-line",
              {},
              h("label", { htmlFor: "vlws-preset" }, "Run this chapter at preset"),
              this.preset,
              this.start,
              this.stop,
            ),
            this.replaces,
            this.error,
            this.others,
            this.status,
            this.spoken,
            this.details,
          ),
          this.outputs,
          h("section", {}, h("h3", { id: "vlws-claims-head" }, "Claims"), this.tally, this.claims),
        );
        this.drawPreset();
      }

      /** The row of one parameter: {row, input, mark}. */
      field(one) {
        const id = `vlws-p-${one.name}`;
        const choices =
          one.type === "bool"
            ? ["true", "false"]
            : (one.accepts || "").includes(" or ")
              ? one.accepts.split(" or ")
              : null;
        const open = choices && choices.some((choice) => choice.includes(":N")); // cuda:N stands for many
        const given = { id, name: one.name, spellcheck: false, autocomplete: "off", "aria-describedby": `${id}-help` };
        const input =
          choices && !open
            ? h(
                "select",
                given,
                choices.map((choice) => h("option", { value: choice }, choice)),
              )
            : h(one.type === "str" && !choices ? "input.vlws-long" : "input", {
                ...given,
                type: "text",
                inputMode: one.type === "int" || one.type === "float" ? "decimal" : "text",
              });
        const mark = h(
          "button.vlws-reset",
          { type: "button", hidden: true, onclick: () => this.reset(one.name) },
          "changed, reset",
        );
        input.addEventListener("input", () => this.typing(one.name));
        const help = one.help.replace(/\s*\[[^[\]]*\]\s*$/, "");
        const row = h(
          "div.vlws-field",
          {},
          h("label", { htmlFor: id }, one.name, h("span.vlws-muted", {}, ` ${one.type}`)),
          input,
          mark,
          h(
            "p.vlws-muted",
            { id: `${id}-help` },
            [help, one.accepts && `accepts ${one.accepts}`].filter(Boolean).join("; "),
          ),
        );
        return { row, input, mark };
      }

      /** The text of a parameter at the preset that is chosen. */
      usual(name) {
        const at = this.chapter.presets[this.preset.value];
        return asText(name in at ? at[name] : this.chapter.parameters.find((one) => one.name === name).default);
      }

      choose(preset) {
        this.typed.get(this.chapter.slug).preset = preset;
        this.drawPreset();
      }

      typing(name) {
        const { values } = this.typed.get(this.chapter.slug);
        const text = this.fields.get(name).input.value;
        if (text === this.usual(name)) delete values[name];
        else values[name] = text;
        this.refuse("");
        this.drawPreset();
      }

      reset(name) {
        delete this.typed.get(this.chapter.slug).values[name];
        this.refuse("");
        this.drawPreset();
        this.fields.get(name).input.focus();
      }

      drawPreset() {
        const { values } = this.typed.get(this.chapter.slug);
        const at = Object.entries(this.chapter.presets[this.preset.value]);
        this.replaces.textContent = at.length
          ? `Replaces ${at.map(([name, value]) => `${name}=${asText(value)}`).join(", ")}.`
          : "The values of the notebook.";
        for (const [name, { input, mark }] of this.fields) {
          if (!(name in values)) input.value = this.usual(name);
          else if (input.value !== values[name]) input.value = values[name];
          mark.hidden = !(name in values);
          mark.setAttribute("aria-label", `${name} is changed; reset it to ${this.usual(name) || "empty"}`);
        }
        const changed = Object.keys(values).filter((name) => this.fields.has(name)).length;
        this.summary.textContent = `${plural(this.fields.size, "parameter")}${changed ? `, ${changed} changed` : ""}`;
      }

      /** Show why a run was refused, at the field that it speaks of; nothing where the sentence is empty. */
      refuse(sentence) {
        for (const { input } of this.fields.values()) input.removeAttribute("aria-invalid");
        const [, field] = [...this.fields].find(([name]) => sentence.startsWith(`${name}=`)) || [];
        if (field) {
          this.details.open = true;
          field.row.append(this.error);
          field.input.setAttribute("aria-invalid", "true");
          field.input.focus();
        } else this.replaces.after(this.error);
        this.error.textContent = sentence;
        this.error.hidden = !sentence;
      }

      // --- a run ---

      async run(event, force = this.force.checked) {
        event.preventDefault();
        if (this.busy || this.going) return;
        this.busy = true;
        const { slug } = this.chapter;
        const { preset, values } = this.typed.get(slug);
        const parameters = Object.fromEntries(Object.entries(values).filter(([name]) => this.fields.has(name)));
        this.refuse("");
        try {
          if (this.context.model.dirty) await this.context.save();
          const run = await this.ask("POST", "runs", { chapter: slug, preset, parameters, force });
          if (this.here(slug)) this.drawRun(run);
        } catch (error) {
          if (this.here(slug)) this.refuse(error.message);
        } finally {
          this.busy = false;
        }
      }

      async cancel() {
        const { slug, handle } = this.going;
        this.stop.textContent = "Cancelling …";
        try {
          const run = await this.ask("DELETE", `runs/${handle}`);
          if (this.here(slug)) this.drawRun(run);
        } catch (error) {
          if (this.here(slug)) this.refuse(error.message);
        }
      }

      here(slug) {
        return this.chapter !== null && this.chapter.slug === slug;
      }

      /** Ask once a second how far a run is, until it has ended; then ask for the claims. */
      async watch({ handle, slug }) {
        if (this.watched.has(handle)) return;
        this.watched.add(handle);
        try {
          for (let going = true; going;) {
            await later(EVERY);
            const run = await this.ask("GET", `runs/${handle}`);
            going = GOING.includes(run.status);
            if (this.here(slug)) this.drawRun(run);
          }
        } catch (error) {
          if (this.here(slug)) this.refuse(error.message);
        } finally {
          this.watched.delete(handle);
        }
        if (this.here(slug)) this.loadClaims();
        else if (this.context) this.refresh(); // the other chapter's form says which runs go on
      }

      drawRun(run) {
        this.status.hidden = !run;
        this.going = run && GOING.includes(run.status) ? run : null;
        this.swap(this.going ? this.start : this.stop, this.going ? this.stop : this.start);
        if (!run) return;
        const took = duration(run.elapsed_s || 0);
        if (this.going) {
          const cells = run.cells && `${run.cells.done} of ${plural(run.cells.total, "cell")}`;
          const bar = this.status.querySelector("progress") || h("progress", { "aria-label": "Cells done" });
          if (run.cells) Object.assign(bar, { max: run.cells.total, value: run.cells.done });
          fill(
            this.status,
            h("p", {}, `Running at preset ${run.preset}: ${[cells, took].filter(Boolean).join(", ")}`),
            bar,
            run.progress ? h("p.vlws-muted.vlws-newest", {}, run.progress) : null,
          );
          if (this.spoken.dataset.of !== run.handle) this.spoken.textContent = "The run has started.";
          this.spoken.dataset.of = run.handle;
          this.watch(run);
          return;
        }
        this.stop.textContent = "Cancel";
        const kept = run.status === "cancelled" ? "; what had finished is kept for the next run" : "";
        const said = run.skipped
          ? `Nothing has changed since this run at preset ${run.preset}; it was not run again.`
          : `${ENDED[run.status] || run.status} at preset ${run.preset} after ${took}${kept}.`;
        const again = run.skipped
          ? h("button.jp-mod-styled", { type: "button", onclick: (event) => this.run(event, true) }, "Run again")
          : null;
        const page = run.page
          ? h("a", { href: this.pageOf(run.run_id), target: "_blank", rel: "noopener" }, "Page of this run")
          : null;
        const uncounted =
          run.status === "ok" && !run.counts
            ? `It does not count as evidence: ${run.preset === "test" ? "its preset is test" : "parameters were changed"}.`
            : "";
        fill(
          this.status,
          h("p", {}, said),
          uncounted && h("p.vlws-muted", {}, uncounted),
          run.error && run.status !== "cancelled" ? h("p.vlws-error", {}, run.error) : null,
          page,
          again,
        );
        if (this.spoken.dataset.of === run.handle) this.spoken.textContent = said;
        delete this.spoken.dataset.of;
      }

      /** One button takes the place of another, and its focus. */
      swap(before, after) {
        const focused = document.activeElement === before;
        before.hidden = true;
        after.hidden = false;
        if (focused) after.focus();
      }

      drawOthers(others) {
        this.others.hidden = !others.length;
        this.others.textContent = others.length ? `Also going on: ${others.join(", ")}.` : "";
      }

      // --- claims ---

      async loadClaims() {
        const { slug } = this.chapter;
        let rows;
        try {
          ({ claims: rows } = await this.ask("GET", `claims/${slug}`));
        } catch (error) {
          if (this.here(slug)) this.tally.textContent = error.message;
          return;
        }
        if (!this.here(slug)) return;
        const counts = new Map();
        for (const row of rows)
          counts.set(row.verdict || "not measured", (counts.get(row.verdict || "not measured") || 0) + 1);
        this.tally.textContent = rows.length
          ? [...counts].map(([word, n]) => `${n} ${word}`).join(", ")
          : "This chapter has no claims.";
        fill(this.claims, ...rows.map((row) => this.claim(row)));
      }

      claim(row) {
        const verdict = h("span.vlws-verdict", {}, `${row.sign} ${row.verdict || "not measured"}`);
        verdict.style.background = row.colour;
        const interval = row.low === null ? "" : ` [${number(row.low)}, ${number(row.high)}]`;
        const over = row.n_seeds ? `, ${plural(row.n_seeds, row.per)}` : "";
        const holm = row.holm && row.holm !== row.verdict ? `after Holm: ${row.holm}` : "";
        return h(
          "li",
          {},
          h(
            "p.vlws-line",
            {},
            h("span.vlws-id", {}, row.id),
            verdict,
            row.stale ? h("span.vlws-stale", { title: "made with other code or data than today's" }, "stale") : null,
          ),
          h("p", {}, row.says),
          row.value === null
            ? null
            : h("p.vlws-figure", {}, h("b", {}, number(row.value)), `${interval} ${row.unit}, wanted ${row.criterion}`),
          row.value === null
            ? null
            : h("p.vlws-muted", {}, `preset ${row.preset || "unknown"}${over}${holm && `; ${holm}`}`),
          row.why && !["supported", "opposed", "undecided"].includes(row.verdict)
            ? h("p.vlws-muted", {}, row.why)
            : null,
          row.proof ? h("p.vlws-muted", {}, `proved: ${row.proof.said}`) : null,
        );
      }

      // --- outputs of the reader ---

      drawOutputs({ cells, file }) {
        this.outputs.hidden = !cells;
        if (!cells) return;
        const one = cells === 1;
        fill(
          this.outputs,
          h("h3", {}, "Your outputs"),
          h(
            "p",
            {},
            `${plural(cells, "cell")} ${one ? "shows" : "show"} what you executed; it is kept in ${file}. The committed notebook has its own outputs.`,
          ),
          h(
            "button.jp-mod-styled",
            { type: "button", onclick: (event) => this.asCommitted(event.currentTarget) },
            "Show as committed",
          ),
        );
      }

      /** Delete what the reader executed, and open the notebook anew; unsaved edits are saved first. */
      async asCommitted(button) {
        const {
          context,
          chapter: { slug },
        } = this;
        button.disabled = true;
        try {
          if (context.model.dirty) await context.save();
          const outputs = await this.ask("DELETE", `outputs/${slug}`);
          await context.revert();
          if (this.here(slug)) this.drawOutputs(outputs);
        } catch (error) {
          button.disabled = false;
          if (this.here(slug)) this.refuse(error.message);
        }
      }
    };
  }

  // --- the plugin ---

  const ICON =
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="16"><path class="jp-icon3 jp-icon-selectable" fill="#616161" ' +
    'd="M4 3h12a2 2 0 0 1 2 2v5h-2V5H4v14h6v2H4a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2zm2 4h8v2H6zm0 4h5v2H6zm7 2 9 4.5-9 4.5z"/></svg>';

  function plugin(shared) {
    const { application, apputils, coreutils, services, ui, widgets } = shared;
    return {
      id: "vlws:panel",
      description: "Runs the open chapter and shows its claims.",
      autoStart: true,
      requires: [application.ILabShell],
      optional: [apputils.ICommandPalette, application.ILayoutRestorer],
      activate: (app, shell, palette, restorer) => {
        const settings = app.serviceManager.serverSettings;
        const at = (path) => coreutils.URLExt.join(settings.baseUrl, "vlws", path);
        const ask = async (method, path, body) => {
          const init = { method, body: body === undefined ? undefined : JSON.stringify(body) };
          let response;
          try {
            response = await services.ServerConnection.makeRequest(at(path), init, settings);
          } catch (error) {
            throw new Error("The server does not answer; is `vlws lab` still running?");
          }
          const said = await response.json().catch(() => ({}));
          if (!response.ok) throw new Error(said.error || said.message || `The server answers ${response.status}.`);
          return said;
        };
        document.head.append(h("link", { rel: "stylesheet", href: style }));
        const panel = new (panelClass(widgets))(ask, (run) => at(`pages/${run}`));
        panel.id = "vlws-panel";
        panel.title.caption = "Chapter: run it, see its claims";
        panel.title.icon = new ui.LabIcon({ name: "vlws:chapter", svgstr: ICON });
        shell.add(panel, "right", { rank: 50 });
        if (restorer) restorer.add(panel, panel.id);
        shell.currentChanged.connect((_, { newValue }) => panel.follow(newValue));
        app.commands.addCommand("vlws:panel", {
          label: "Show the Chapter's Runs and Claims",
          execute: () => shell.activateById(panel.id),
        });
        if (palette) palette.addItem({ command: "vlws:panel", category: "vlws" });
        shell.restored.then(({ fresh }) => {
          panel.follow(shell.currentWidget);
          if (fresh) shell.activateById(panel.id); // where no layout was kept: the panel is seen once
        });
      },
    };
  }

  // --- the container that JupyterLab asks for: init(scope), then get("./extension") -> a factory of the module ---

  let scope = null;
  const NEEDED = {
    application: "@jupyterlab/application",
    apputils: "@jupyterlab/apputils",
    coreutils: "@jupyterlab/coreutils",
    services: "@jupyterlab/services",
    ui: "@jupyterlab/ui-components",
    widgets: "@lumino/widgets",
  };

  /** A module that JupyterLab shares; it shares one version of each of those that we need. */
  async function sharedModule(name) {
    const [one] = Object.values(scope[name] || {});
    if (!one) throw new Error(`JupyterLab shares no ${name}`);
    return (await one.get())();
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB.vlws = {
    init: (given) => void (scope = given),
    get: async () => {
      const loaded = await Promise.all(
        Object.entries(NEEDED).map(async ([key, name]) => [key, await sharedModule(name)]),
      );
      const module = { __esModule: true, default: plugin(Object.fromEntries(loaded)) };
      return () => module;
    },
  };
})();
