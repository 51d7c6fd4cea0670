// What the published libraries say: `standardwebhooks` and `svix`. One JSON object a line: {library, secret, headers, body}.
import readline from 'node:readline';
import { createRequire } from 'node:module';
import path from 'node:path';
const require = createRequire(path.join(process.cwd(), 'package.json'));
const { Webhook: Standard } = require('standardwebhooks');
const { Webhook: Svix } = require('svix');
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { library, secret, headers, body } = JSON.parse(line);
  const raw = Buffer.from(body, 'base64').toString('utf8');
  const told = new (library === 'svix' ? Svix : Standard)(secret).verify(raw, headers);
  if (JSON.stringify(told) !== JSON.stringify(JSON.parse(raw))) throw new Error('another body');
  let refused = false;
  try {
    new (library === 'svix' ? Svix : Standard)(secret).verify(raw + ' ', headers);
  } catch {
    refused = true;
  }
  console.log(refused ? 'ok' : 'a changed body is taken');
}
