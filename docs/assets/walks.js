// The tables of the scan orders, as tools/website/walks.py packs them.

/** The stream behind the base64 of one order. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0));
  const inflated = new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate')));
  return new Int16Array(await inflated.arrayBuffer());
}

/** All sizes that are packed: [height, width]. */
function* sizes({ side, square }) {
  for (let height = 1; height <= side; height++) for (let width = 1; width <= side; width++) yield [height, width];
  for (let both = side + 1; both <= square; both++) yield [both, both];
}

/** Positions in visiting order by `${height}x${width}`: an array per direction. */
function readTables(stream, index, directions) {
  const tables = new Map();
  let place = 0;
  for (const [height, width] of sizes(index)) {
    const paths = [];
    tables.set(`${height}x${width}`, paths);
    for (let k = 0; k < directions; k++) {
      const code = stream[place++];
      const from = (code - 1) >> 1;
      if (code === 0) {
        const path = new Int16Array(stream[place++]);
        for (let t = 0, position = 0; t < path.length; t++) path[t] = position += stream[place++];
        paths.push(path);
      } else if (code % 2) {
        paths.push(paths[from].slice().reverse());
      } else {
        const turned = p => (p < height * width ? (p % height) * width + Math.floor(p / height) : p);
        paths.push(tables.get(`${width}x${height}`)[from].map(turned));
      }
    }
  }
  return tables;
}

if (typeof module !== 'undefined') module.exports = { unpack, readTables };
