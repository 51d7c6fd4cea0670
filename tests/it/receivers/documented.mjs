// What follows the verification of docs/WEBHOOKS.md for Node: one JSON object a line, the verdict on each.
import readline from 'node:readline';
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { dialect, secret, headers, body } = JSON.parse(line);
  const raw = Buffer.from(body, 'base64');
  const changed = Buffer.concat([raw, Buffer.from(' ')]);
  console.log(verify(dialect, secret, headers, raw) && !verify(dialect, secret, headers, changed) ? 'ok' : 'wrong');
}
