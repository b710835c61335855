// A reporter for node:test: one JSON line per test that ended, for ../test_node.py to read.

// A suite is told of only if it has failed by itself, as one that cannot be loaded does.
const counts = ({ type, error }) => type !== "suite" || (error && error.failureType !== "subtestsFailed");
const said = (error) => error && String(error.cause?.stack ?? error.cause ?? error);

export default async function* lines(events) {
  let suite = null; // the suite whose tests are ending; suites take turns
  for await (const { type, data } of events) {
    if (type === "test:start" && data.nesting === 0) suite = data.name;
    if (!/^test:(pass|fail)$/.test(type) || !counts(data.details)) continue;
    const idle = data.skip !== undefined || data.todo !== undefined;
    const outcome = idle ? "not run" : type.slice("test:".length);
    yield `${JSON.stringify({ suite, name: data.name, outcome, error: said(data.details.error) })}\n`;
  }
}
