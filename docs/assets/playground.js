// Draws two scan orders side by side. What the orders are comes from walks/index.js and one file per order.
const WALKS = (() => {
  const root = document.getElementById('walks');
  const base = document.currentScript.src.replace(/[^/]*$/, 'walks/');
  const waiting = new Map(); // file: what to do with its text
  const loaded = new Map(); // file: promise of its tables
  const state = { height: 14, width: 14, a: 'cross', b: 'hilbert', step: Infinity, view: 'walk', speed: 1, playing: false };
  const panels = [];
  let index;

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };

  const load = order => {
    if (!loaded.has(order.file)) {
      loaded.set(order.file, new Promise((resolve, reject) => {
        waiting.set(order.file, text => resolve(unpack(text).then(s => readTables(s, index, order.directions))));
        document.head.append(make('script', { src: `${base}${order.file}.js`, onerror: reject }));
      }));
    }
    return loaded.get(order.file);
  };

  // Colours

  const dark = () => document.body.getAttribute('data-md-color-scheme') === 'slate';
  const css = name => getComputedStyle(document.body).getPropertyValue(name);
  const shade = (share, light = 0) => {
    const stops = index.colours;
    const mixed = stops[Math.round(share * (stops.length - 1))].map(value => Math.round(value + (255 - value) * light));
    return `rgb(${mixed})`;
  };
  const shadeOfLine = share => shade(share, dark() ? 0.35 * (1 - share) : 0);

  // Measures of a path

  /** The steps at which each token is visited. */
  const visits = (path, tokens) => {
    const found = Array.from({ length: tokens }, () => []);
    path.forEach((token, step) => token < tokens && found[token].push(step));
    return found;
  };

  /** For each token, the steps between it and each of its neighbours on the grid; none if one is never visited. */
  const distances = (path, height, width) => {
    const at = visits(path, height * width);
    return at.map((own, token) => {
      const row = Math.floor(token / width), column = token % width;
      const beside = [[row - 1, column], [row, column + 1], [row + 1, column], [row, column - 1]];
      return beside
        .filter(([r, c]) => r >= 0 && r < height && c >= 0 && c < width)
        .map(([r, c]) => Math.min(...own.flatMap(s => at[r * width + c].map(t => Math.abs(s - t)))))
        .filter(Number.isFinite);
    });
  };

  const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
  const number = value => (value < 10 ? value.toFixed(1) : Math.round(value)).toString();

  // Panels

  class Panel {
    constructor(slot) {
      this.slot = slot;
      this.direction = 0;
      this.choice = make('select', { 'aria-label': `Order ${slot.toUpperCase()}`, onchange: () => this.choose(this.choice.value) });
      for (const order of index.orders) this.choice.append(make('option', { value: order.file }, order.title));
      this.about = make('p', { class: 'about' });
      this.buttons = make('div', { class: 'directions', role: 'group', 'aria-label': 'Direction' });
      this.canvas = make('canvas', { role: 'img' });
      this.said = make('p', { class: 'said', 'aria-live': 'polite' });
      this.canvas.addEventListener('pointermove', event => this.point(event));
      this.canvas.addEventListener('pointerdown', event => this.point(event));
      this.canvas.addEventListener('pointerleave', event => {
        if (event.pointerType !== 'mouse') return; // a finger leaves whenever it is lifted
        this.pointed = null;
        this.draw();
      });
      this.node = make('section', {}, this.choice, this.about, this.buttons, this.canvas, this.said);
    }

    async choose(file) {
      this.order = index.orders.find(order => order.file === file);
      this.choice.value = file;
      state[this.slot] = this.order.file;
      this.direction = Math.min(this.direction, this.order.directions - 1);
      this.about.textContent = `${this.order.meaning}. Source: ${this.order.source || 'not stated'}.`;
      const order = this.order;
      const tables = await load(order);
      if (order !== this.order) return; // another one was chosen meanwhile
      this.tables = tables;
      this.buttons.replaceChildren(...Array.from({ length: order.directions }, (_, k) =>
        make('button', { type: 'button', 'aria-pressed': k === this.direction, onclick: () => this.turn(k) }, String(k + 1))));
      this.measure();
      refresh();
    }

    turn(direction) {
      this.direction = direction;
      [...this.buttons.children].forEach((button, k) => button.setAttribute('aria-pressed', k === direction));
      this.measure();
      refresh();
    }

    measure() {
      if (!this.tables) return;
      const { height, width } = state;
      const paths = this.tables.get(`${height}x${width}`);
      this.path = paths[this.direction];
      this.distances = distances(this.path, height, width);
      const all = this.distances.flat();
      const nearest = paths.length > 1 ? distancesOfAll(paths, height, width).flat() : all;
      this.summary = all.length ? `Neighbours on the map are ${number(mean(all))} steps apart on average, ${Math.max(...all)} at most` : 'No two neighbours are visited';
      if (nearest.length && paths.length > 1) this.summary += `; in the nearest of all directions ${number(mean(nearest))}, ${Math.max(...nearest)} at most`;
      this.summary += '.';
    }

    point(event) {
      const box = this.canvas.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left - this.left) / this.cell);
      const row = Math.floor((event.clientY - box.top - this.top) / this.cell);
      const inside = row >= 0 && row < state.height && column >= 0 && column < state.width;
      this.pointed = inside ? row * state.width + column : null;
      this.draw();
    }

    draw() {
      if (!this.path) return;
      const { height, width } = state, tokens = height * width;
      const side = this.node.clientWidth;
      const across = Math.min(side, 520);
      this.cell = Math.min(across / width, 520 / height);
      this.left = (side - this.cell * width) / 2;
      this.top = 2;
      const ratio = devicePixelRatio || 1;
      const tall = this.cell * height + 4;
      this.canvas.width = side * ratio;
      this.canvas.height = tall * ratio;
      this.canvas.style.height = `${tall}px`;
      const pen = this.canvas.getContext('2d');
      pen.scale(ratio, ratio);
      pen.translate(this.left, this.top);
      const shown = Math.min(this.path.length, state.step);
      if (state.view === 'walk') this.drawWalk(pen, shown, tokens);
      else this.drawDistances(pen, tokens);
      if (this.pointed !== null && this.pointed !== undefined) {
        pen.strokeStyle = css('--md-default-fg-color');
        pen.lineWidth = 2;
        pen.strokeRect((this.pointed % width) * this.cell, Math.floor(this.pointed / width) * this.cell, this.cell, this.cell);
      }
      this.said.textContent = this.pointed === null || this.pointed === undefined ? this.summary : this.describe(this.pointed);
      this.canvas.setAttribute('aria-label', `${this.order.title}, direction ${this.direction + 1}, ${height} by ${width}`);
    }

    describe(token) {
      const steps = visits(this.path, state.height * state.width)[token].map(step => step + 1);
      const where = `Row ${Math.floor(token / state.width) + 1}, column ${(token % state.width) + 1}`;
      if (!steps.length) return `${where}: not visited.`;
      const apart = this.distances[token];
      return `${where}: step ${steps.join(', ')} of ${this.path.length}; neighbours are ${apart.join(', ') || 'no'} steps away.`;
    }

    fillCells(pen, colour) {
      const gap = this.cell > 8 ? 1 : 0;
      for (let token = 0; token < state.height * state.width; token++) {
        const x = (token % state.width) * this.cell, y = Math.floor(token / state.width) * this.cell;
        pen.fillStyle = colour(token);
        pen.fillRect(x + gap / 2, y + gap / 2, this.cell - gap, this.cell - gap);
      }
    }

    drawWalk(pen, shown, tokens) {
      const { width } = state, path = this.path, last = Math.max(path.length - 1, 1);
      const faint = css('--md-default-fg-color--lightest');
      const step = new Map();
      for (let t = 0; t < shown; t++) step.set(path[t], t);
      pen.globalAlpha = 1;
      this.fillCells(pen, token => (step.has(token) ? this.tint(step.get(token) / last) : faint));
      const centre = token => [((token % width) + 0.5) * this.cell, (Math.floor(token / width) + 0.5) * this.cell];
      const touches = (p, q) => Math.abs((p % width) - (q % width)) <= 1 && Math.abs(Math.floor(p / width) - Math.floor(q / width)) <= 1;
      pen.lineCap = 'round';
      const onMap = [...path.slice(0, shown)].map((token, t) => [token, t]).filter(([token]) => token < tokens);
      for (let i = 1; i < onMap.length; i++) {
        const [p] = onMap[i - 1], [q, t] = onMap[i];
        const near = touches(p, q);
        pen.strokeStyle = shadeOfLine((t - 1) / last);
        pen.lineWidth = near ? Math.max(1.2, Math.min(this.cell / 5, 4)) : 0.8;
        pen.globalAlpha = near ? 1 : 0.5;
        pen.beginPath();
        pen.moveTo(...centre(p));
        pen.lineTo(...centre(q));
        pen.stroke();
      }
      pen.globalAlpha = 1;
      if (!onMap.length) return;
      const radius = Math.max(2.5, Math.min(this.cell / 4, 7));
      const ink = css('--md-typeset-color');
      pen.fillStyle = ink;
      pen.beginPath();
      pen.arc(...centre(onMap[0][0]), radius, 0, 2 * Math.PI);
      pen.fill();
      const [x, y] = centre(onMap[onMap.length - 1][0]);
      pen.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    }

    tint(share) {
      const background = dark() ? [30, 33, 41] : [255, 255, 255];
      const stop = index.colours[Math.round(share * (index.colours.length - 1))];
      return `rgb(${stop.map((value, i) => Math.round(background[i] + (value - background[i]) * 0.42))})`;
    }

    drawDistances(pen, tokens) {
      const most = Math.log(Math.max(tokens, 2));
      this.fillCells(pen, token => {
        const apart = this.distances[token];
        if (!apart.length) return css('--md-default-fg-color--lightest');
        return shade(Math.min(1, Math.log(mean(apart)) / most), 0.1);
      });
    }
  }

  /** As `distances`, in the direction in which each pair is nearest. */
  const distancesOfAll = (paths, height, width) => {
    const every = paths.map(path => distances(path, height, width));
    if (every.some(found => found.some((apart, token) => apart.length !== every[0][token].length))) {
      return every[0].map((_, token) => [Math.min(...every.flatMap(found => found[token]))].filter(Number.isFinite));
    }
    return every[0].map((apart, token) => apart.map((_, i) => Math.min(...every.map(found => found[token][i]))));
  };

  // Controls

  const longest = () => Math.max(1, ...panels.map(panel => panel.path?.length ?? 1));
  const controls = {};

  const refresh = () => {
    const most = longest();
    controls.step.max = most;
    controls.step.value = Math.min(state.step, most);
    controls.count.textContent = `step ${Math.min(Math.floor(state.step), most)} of ${most}`;
    controls.play.textContent = state.playing ? 'Pause' : 'Play';
    const walk = state.view === 'walk';
    controls.legend.replaceChildren(
      make('span', { class: 'bar', style: `background: linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(s => (walk ? shadeOfLine(s) : shade(s, 0.1))).join(',')})` }),
      walk ? 'first to last step; dot: start; square: end; thin: jump' : '1 step to all steps away, logarithmic; grey: not visited',
    );
    panels.forEach(panel => panel.draw());
    const place = new URLSearchParams({ a: panels[0]?.order?.title ?? '', b: panels[1]?.order?.title ?? '', h: state.height, w: state.width, view: state.view });
    history.replaceState(null, '', `#${place}`);
  };

  const resize = (side, text) => {
    const value = Math.round(Number(text));
    if (!(value >= 1 && value <= index.square)) return;
    const before = Math.max(state.height, state.width);
    state[side] = value;
    if (value > index.side || before > index.side) state.height = state.width = value; // large maps are square
    for (const one of ['height', 'width']) controls[one].forEach(input => { input.value = state[one]; });
    panels.forEach(panel => { panel.pointed = null; panel.measure(); });
    refresh();
  };

  let before;
  const tick = now => {
    if (!state.playing) return;
    state.step += ((now - (before ?? now)) / 1000) * 40 * state.speed;
    before = now;
    if (state.step >= longest()) { state.step = Infinity; state.playing = false; }
    refresh();
    requestAnimationFrame(tick);
  };
  const play = () => {
    state.playing = !state.playing;
    before = undefined;
    if (state.playing && state.step >= longest()) state.step = 1;
    if (state.playing) { show('walk'); requestAnimationFrame(tick); }
    refresh();
  };
  const show = view => {
    state.view = view;
    controls.views.forEach(input => { input.checked = input.value === view; });
  };

  const build = () => {
    const slider = (side, label) => {
      const shared = { min: 1, max: index.square, value: state[side], oninput: event => resize(side, event.target.value) };
      controls[side] = [make('input', { type: 'range', 'aria-label': label, ...shared }), make('input', { type: 'number', 'aria-label': label, ...shared })];
      return make('label', {}, `${label} `, ...controls[side]);
    };
    controls.play = make('button', { type: 'button', onclick: play });
    controls.step = make('input', { type: 'range', min: 1, 'aria-label': 'Step', oninput: event => { state.step = Number(event.target.value); state.playing = false; refresh(); } });
    controls.count = make('span', { class: 'count' });
    controls.legend = make('p', { class: 'legend' });
    const speed = make('select', { 'aria-label': 'Speed', onchange: event => { state.speed = Number(event.target.value); } });
    for (const factor of [0.25, 1, 4]) speed.append(make('option', { value: factor, ...(factor === 1 && { selected: '' }) }, `${factor}×`));
    controls.views = ['walk', 'distance'].map(view => make('input', { type: 'radio', name: 'view', value: view, onchange: () => { show(view); refresh(); } }));
    root.replaceChildren(
      make('div', { class: 'controls' },
        slider('height', 'Height'), slider('width', 'Width'),
        make('div', { class: 'time' }, controls.play, speed, controls.step, controls.count),
        make('div', { class: 'views' }, make('label', {}, controls.views[0], ' Walk'), make('label', {}, controls.views[1], " Neighbours' distance"))),
      controls.legend,
      make('div', { class: 'panels' }, ...panels.map(panel => panel.node)));
  };

  return {
    list(found) {
      index = found;
      const asked = new URLSearchParams(location.hash.slice(1));
      const size = key => Math.min(Math.max(1, Math.round(Number(asked.get(key))) || 14), index.square);
      Object.assign(state, { height: size('h'), width: size('w') });
      if (state.height !== state.width) for (const one of ['height', 'width']) state[one] = Math.min(state[one], index.side);
      panels.push(new Panel('a'), new Panel('b'));
      build();
      show(asked.get('view') === 'distance' ? 'distance' : 'walk');
      for (const panel of panels) {
        const order = index.orders.find(o => o.title === asked.get(panel.slot)) ?? index.orders.find(o => o.name === state[panel.slot]);
        panel.choose(order.file);
      }
      new ResizeObserver(() => panels.forEach(panel => panel.draw())).observe(root);
      new MutationObserver(refresh).observe(document.body, { attributes: true, attributeFilter: ['data-md-color-scheme'] });
    },
    take(file, text) { waiting.get(file)(text); },
  };
})();
