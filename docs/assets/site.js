// Families of a plot stand out when chosen, and tables of models sort by the column whose head is clicked.
for (const plots of document.querySelectorAll('.plots')) {
  const chosen = new Set();
  for (const button of plots.querySelectorAll('.legend button')) {
    button.setAttribute('aria-pressed', 'false');
    button.addEventListener('click', () => {
      const key = button.dataset.family;
      if (!chosen.delete(key)) chosen.add(key);
      button.setAttribute('aria-pressed', String(chosen.has(key)));
      plots.classList.toggle('chosen', chosen.size > 0);
      for (const group of plots.querySelectorAll('.family')) group.classList.toggle('on', chosen.has(group.dataset.family));
    });
  }
}

for (const table of document.querySelectorAll('.models table')) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  table.querySelectorAll('th').forEach((head, column) => {
    head.title = 'Sort';
    let down = false;
    head.addEventListener('click', () => {
      down = !down;
      const value = row => row.cells[column].textContent.trim();
      const numeric = original.some(row => value(row) && !isNaN(parseFloat(value(row))));
      const compare = (a, b) => (numeric ? parseFloat(a) - parseFloat(b) : a.localeCompare(b)) * (down ? -1 : 1);
      const [empty, full] = [original.filter(row => !value(row)), original.filter(value)];
      body.append(...full.sort((a, b) => compare(value(a), value(b))), ...empty); // empty cells stay at the end
    });
  });
}
