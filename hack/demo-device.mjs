#!/usr/bin/env node
// A device that wants to use a gateway: it connects as an operator client would, with a key of its own, and
// tries again each second as long as it is refused. One line for each change of what happens to it.
//
//   demo-device.mjs identity --key FILE           prints the device's id and public key
//   demo-device.mjs approval --key FILE [--name NAME --namespace NAMESPACE --gateway NAME]
//                                                 prints the DeviceApproval that lets it in
//   demo-device.mjs connect --key FILE --url ws://HOST:PORT
//                                                 connects; the gateway token is read from OPENCLAW_GATEWAY_TOKEN
//
// Lines of "connect": refused CODE requestId=... | connected | closed CODE REASON | unreachable REASON

import crypto from 'node:crypto';
import fs from 'node:fs';
import {parseArgs} from 'node:util';

const ROLE = 'operator';
const SCOPES = ['operator.read', 'operator.write'];
const CLIENT = {id: 'cli', mode: 'cli', platform: 'linux'};

const {values: flags, positionals: [command]} = parseArgs({
  allowPositionals: true,
  options: {
    key: {type: 'string'}, url: {type: 'string'}, name: {type: 'string', default: 'demo-device'},
    namespace: {type: 'string', default: 'default'}, gateway: {type: 'string', default: 'quickstart'},
  },
});
if (!flags.key) usage('--key FILE is missing');

// The device's identity is its key; its id is the SHA-256 of the raw public key.
function identity(file) {
  if (!fs.existsSync(file)) {
    const pem = crypto.generateKeyPairSync('ed25519').privateKey.export({format: 'pem', type: 'pkcs8'});
    try { fs.writeFileSync(file, pem, {mode: 0o600, flag: 'wx'}); } catch (e) { if (e.code !== 'EEXIST') throw e; }
  }
  const privateKey = crypto.createPrivateKey(fs.readFileSync(file));
  const raw = crypto.createPublicKey(privateKey).export({format: 'der', type: 'spki'}).subarray(-32);
  return {privateKey, publicKey: raw.toString('base64url'), id: crypto.createHash('sha256').update(raw).digest('hex')};
}

const device = identity(flags.key);

// attempt resolves once the connection is over; tell() gets each outcome on the way.
function attempt(url, token, tell) {
  return new Promise(resolve => {
    const socket = new WebSocket(url);
    let open = false, refused = false;
    const timeout = setTimeout(() => socket.close(), 10_000);
    socket.onerror = () => {};
    socket.onclose = ({code, reason}) => {
      clearTimeout(timeout);
      if (open) tell(`closed ${code} ${reason}`.trim());
      else if (!refused) tell(`unreachable ${code} ${reason}`.trim());
      resolve();
    };
    socket.onmessage = ({data}) => {
      const frame = JSON.parse(data);
      if (frame.type === 'event' && frame.event === 'connect.challenge') {
        const {nonce, ts} = frame.payload;
        const signed = ['v3', device.id, CLIENT.id, CLIENT.mode, ROLE, SCOPES.join(','), ts, token, nonce, CLIENT.platform, ''].join('|');
        socket.send(JSON.stringify({type: 'req', id: 'connect', method: 'connect', params: {
          minProtocol: 4, maxProtocol: 4,
          client: {...CLIENT, version: '0.1.0', displayName: 'Demo device'},
          role: ROLE, scopes: SCOPES, caps: [], commands: [], permissions: {}, auth: {token},
          device: {
            id: device.id, publicKey: device.publicKey, signedAt: ts, nonce,
            signature: crypto.sign(null, Buffer.from(signed), device.privateKey).toString('base64url'),
          },
        }}));
      } else if (frame.type === 'res' && frame.id === 'connect') {
        clearTimeout(timeout);
        if (frame.ok) { open = true; tell('connected'); return; }
        refused = true;
        const details = frame.error?.details ?? {};
        tell(`refused ${details.code ?? frame.error?.code}` + (details.requestId ? ` requestId=${details.requestId}` : ''), details.code);
        socket.close();
      }
    };
  });
}

// Ten wrong tokens in a minute lock the address out for five: such a refusal is final.
const FINAL = ['AUTH_TOKEN_MISMATCH', 'AUTH_TOKEN_MISSING', 'AUTH_RATE_LIMITED', 'PROTOCOL_MISMATCH'];

async function connect(url, token) {
  let last, final = false;
  const tell = (line, code) => {
    if (line !== last) console.log(line);
    last = line;
    final ||= FINAL.includes(code);
  };
  while (!final) {
    await attempt(url, token, tell);
    await new Promise(resolve => setTimeout(resolve, 1000));
  }
  process.exit(1);
}

switch (command) {
  case 'identity':
    console.log(`id=${device.id} publicKey=${device.publicKey}`);
    break;
  case 'approval':
    console.log(`apiVersion: gatewaytrust.io/v1alpha1
kind: DeviceApproval
metadata: {name: ${flags.name}, namespace: ${flags.namespace}}
spec:
  gatewayTrustRef: {name: ${flags.gateway}}
  device: {id: "${device.id}", publicKey: "${device.publicKey}"}
  roles: [${ROLE}]
  scopes: [${SCOPES.join(', ')}]
  label: Demo device`);
    break;
  case 'connect':
    if (!flags.url) usage('--url ws://HOST:PORT is missing');
    if (!process.env.OPENCLAW_GATEWAY_TOKEN) usage('OPENCLAW_GATEWAY_TOKEN is not set');
    await connect(flags.url, process.env.OPENCLAW_GATEWAY_TOKEN);
    break;
  default:
    usage(command ? `'${command}' is not a command` : 'no command given');
}

function usage(what) {
  console.error(`demo-device.mjs: ${what}; use identity, approval or connect (see the head of the file)`);
  process.exit(2);
}
