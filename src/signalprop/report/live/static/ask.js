// Questions to the server, one at a time for each figure: the last one counts.

export async function get(path, asked, signal) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(asked || {})) {
    if (value !== null && value !== undefined && value !== "") query.set(key, String(value));
  }
  const tail = query.toString();
  const reply = await fetch(tail ? `${path}?${tail}` : path, { signal });
  const answer = await reply.json();
  if (answer.error) throw new Error(answer.error);
  return answer;
}

// Runs a task again and again, never twice at a time; what is asked meanwhile is done once after.
export function queue(task, pause) {
  let running = false, again = false, control = null;
  async function run() {
    if (running) { again = true; return; }
    running = true;
    try {
      do {
        again = false;
        const start = performance.now();
        control = new AbortController();
        try { await task(control.signal); } catch (error) {
          if (error.name !== "AbortError") throw error;
        }
        // a large picture must not keep a browser busy for more than a third of the time
        const rest = Math.min(5000, 2 * (performance.now() - start));
        if (again && pause && !run.urgent) await new Promise((done) => { run.wake = done; setTimeout(done, rest); });
        run.urgent = false;
      } while (again);
    } finally { running = false; }
  }
  const ask = (urgent) => {
    if (urgent && running) { run.urgent = again = true; control.abort(); if (run.wake) run.wake(); }
    return run();
  };
  return ask;
}
