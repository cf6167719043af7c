// What the page holds, unpacked where it is shown. selfrepair/explorer/packing.py has the format.

const DATA = JSON.parse(document.getElementById("content").textContent);

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Arrays of so many whole numbers each; NaN where there is none.
function unpack(bytes, size) {
  const arrays = [];
  for (let at = 0; at < bytes.length; ) {
    const planes = bytes[at];
    at += 1;
    const numbers = new Float64Array(size);
    for (let plane = 0; plane < planes; plane += 1, at += size) {
      for (let place = 0; place < size; place += 1) numbers[place] = numbers[place] * 256 + bytes[at + place];
    }
    for (let place = 0; place < size; place += 1) {
      const coded = numbers[place] - 1;
      numbers[place] = coded < 0 ? NaN : coded % 2 ? -(coded + 1) / 2 : coded / 2;
    }
    arrays.push(numbers);
  }
  return arrays;
}

function remembered(make) {
  const made = new Map();
  return (...key) => {
    const name = JSON.stringify(key);
    if (!made.has(name)) made.set(name, make(...key));
    return made.get(name);
  };
}

function asObjects(table) {
  return table.rows.map((row) => Object.fromEntries(table.columns.map((column, at) => [column, row[at]])));
}

const headName = (layer, head) => `L${layer}H${head}`;

class Run {
  constructor(content) {
    Object.assign(this, content);
    this.tables = remembered(async (kind) => {
      const bytes = await inflate(this.kinds[kind].tables);
      const found = JSON.parse(new TextDecoder().decode(bytes));
      return Object.fromEntries(Object.entries(found).map(([name, table]) => [name, asObjects(table)]));
    });
    this.tokens = remembered((kind, row) => this.#tokens(kind, row));
    this.best = remembered((kind) => this.#best(kind));
    this.pieces_of = remembered(() => this.#texts());
  }

  get mainKind() {
    return Object.keys(this.kinds)[0];
  }

  get whole() {
    return this.prompts.length === this.settings.n_prompts;
  }

  // Whether statistics count a position; places are [prompt * positions + pos].
  counts(pos) {
    return pos >= this.settings.first_position;
  }

  countsPlace(place) {
    return this.counts(place % this.positions);
  }

  quantities(kind) {
    return this.kinds[kind].stored.map(([name]) => name);
  }

  row(kind, head) {
    return this.kinds[kind].heads.findIndex(([layer, at]) => `${layer}.${at}` === head);
  }

  // Values of a head's tokens by quantity, in its unit, [prompt * positions + pos]; which of them are top tokens.
  async #tokens(kind, row) {
    const { stored, values } = this.kinds[kind];
    const arrays = unpack(await inflate(values[row]), this.prompts.length * this.positions);
    return { values: this.#restored(stored, arrays), top: arrays[stored.length] };
  }

  // The best tokens of each head: places, and values by quantity.
  async #best(kind) {
    const { stored, best, best_values: packed, heads } = this.kinds[kind];
    const each = best[0].length;
    const values = this.#restored(stored, unpack(await inflate(packed), heads.length * each));
    return best.map((places, row) =>
      places
        .map(([prompt, pos], at) => ({
          prompt,
          pos,
          rank: at + 1,
          ...Object.fromEntries(Object.entries(values).map(([name, of]) => [name, of[row * each + at]])),
        }))
        .filter(({ prompt }) => prompt >= 0),
    );
  }

  #restored(stored, arrays) {
    const steps = {};
    stored.forEach(([name, plus, minus], at) => {
      const parts = [...plus.map((part) => [steps[part], 1]), ...minus.map((part) => [steps[part], -1])];
      steps[name] = arrays[at].map((rest, place) => {
        let sum = 0;
        for (const [part, sign] of parts) sum += sign * part[place];
        return Number.isNaN(sum) ? rest : rest + sum;
      });
    });
    return Object.fromEntries(Object.entries(steps).map(([name, of]) => [name, of.map((step) => step / Math.round(1 / this.step))]));
  }

  async #texts() {
    const length = this.positions + 1;
    const [places] = unpack(await inflate(this.texts), this.prompts.length * length);
    return new Map(
      this.prompts.map((prompt, at) => [
        prompt,
        Array.from(places.subarray(at * length, (at + 1) * length), (place) => this.pieces[place]),
      ]),
    );
  }

  // Pieces around a token: those of its prompt, or those that are kept around it; and the position of the first.
  async around(kind, prompt, pos) {
    const pieces = (await this.pieces_of()).get(prompt);
    if (pieces) return { first: 0, pieces };
    const kept = this.kinds[kind].around[`${prompt}.${pos}`];
    return kept ? { first: kept[0], pieces: kept[1].map((place) => this.pieces[place]) } : null;
  }
}

const RUNS = DATA.runs.map((content) => new Run(content));
const PUBLISHED = Object.fromEntries(Object.entries(DATA.published).map(([model, table]) => [model, asObjects(table)]));
const QUANTITIES = {
  ...DATA.quantities,
  scale_ratio: {
    label: "clean / ablated final scale",
    unit: "",
    description: "scale of the final norm, clean run over ablated run: above 1 the scale has shrunk, and what is left counts for more",
  },
};
const PARTS = ["self_repair_from_heads", "self_repair_from_mlps", "self_repair_from_postnorms", "self_repair_from_layernorm"];

const withUnit = (name) => QUANTITIES[name].label + (QUANTITIES[name].unit ? ` (${QUANTITIES[name].unit})` : "");
