// Receivers as each platform's document describes them, for Node. They take secrets as JSON in the first argument, print
// the port that they listen on, verify every post as the document says, and tell at /results what they made of it.
import crypto from 'node:crypto';
import http from 'node:http';

const secrets = JSON.parse(process.argv[2]);
const results = {};

// SecureSMTP: the Svix scheme, as its page spells it out; and no stamp further than five minutes away.
function securesmtp(body, headers, secret) {
  const id = headers['svix-id'], stamp = headers['svix-timestamp'];
  if (Math.abs(Date.now() / 1000 - Number(stamp)) > 300) return false;
  const key = Buffer.from(secret.replace(/^whsec_/, ''), 'base64');
  const wanted = crypto.createHmac('sha256', key).update(`${id}.${stamp}.${body}`).digest('base64');
  return headers['svix-signature'].split(' ').some((part) => {
    const [version, signature] = part.split(',');
    if (version !== 'v1') return false;
    const given = Buffer.from(signature, 'base64'), own = Buffer.from(wanted, 'base64');
    return given.length === own.length && crypto.timingSafeEqual(given, own);
  });
}

// NexusProMail: bare hexadecimal digits over the raw body.
function nexuspromail(body, headers, secret) {
  const wanted = crypto.createHmac('sha256', secret).update(body, 'utf8').digest('hex');
  return crypto.timingSafeEqual(Buffer.from(wanted, 'hex'), Buffer.from(headers['x-nexuspromail-signature'], 'hex'));
}

// Splashify Pro: the raw bytes, and the header with its prefix compared as text.
function splashify(body, headers, secret, raw) {
  const wanted = 'sha256=' + crypto.createHmac('sha256', secret).update(raw).digest('hex');
  return crypto.timingSafeEqual(Buffer.from(headers['x-splashify-signature'] ?? ''), Buffer.from(wanted));
}

// SendComms: what JSON.stringify makes of the parsed body, not the body itself.
function sendcomms(body, headers, secret) {
  const again = JSON.stringify(JSON.parse(body));
  return headers['x-sendcomms-signature'] === 'sha256=' + crypto.createHmac('sha256', secret).update(again).digest('hex');
}

// zMailer: time and signature from one header, of which the last of each name is kept.
function zmailer(body, headers, secret) {
  const parts = Object.fromEntries(headers['x-zmailer-signature'].split(',').map((part) => part.split('=')));
  const stamp = parseInt(parts.t, 10);
  const wanted = crypto.createHmac('sha256', secret).update(`${stamp}.${body}`).digest('hex');
  return wanted === parts.v1 && Math.abs(Date.now() / 1000 - stamp) <= 300;
}

const verify = { securesmtp, nexuspromail, splashify, sendcomms, zmailer };

const server = http.createServer((request, response) => {
  if (request.url === '/results') return response.end(JSON.stringify(results));
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    const name = request.url.slice(1), raw = Buffer.concat(chunks), told = (results[name] ??= { good: 0, bad: 0, events: {} });
    let good = false;
    try {
      good = verify[name](raw.toString('utf8'), request.headers, secrets[name], raw);
    } catch (error) {
      told.error = String(error);
    }
    told[good ? 'good' : 'bad'] += 1;
    const body = JSON.parse(raw);
    const event = body.type ?? body.event ?? body.eventType;
    told.events[event] = (told.events[event] ?? 0) + 1;
    response.writeHead(good ? 200 : 401).end();
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
process.stdin.on('end', () => process.exit()).resume();
