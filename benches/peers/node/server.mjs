// What one writes for cancelPayment with Node in an afternoon: fastify, node:crypto, better-sqlite3 or pg. It verifies the
// request, decides once for each payment, commits durably, and signs every answer. It has none of the other rules.
//
//   PRIVATE_KEY=wallet.pem PUBLIC_KEY=client.pem CLIENT=ID DATABASE=state.db|postgres://… node server.mjs
import { createPrivateKey, createPublicKey, sign, verify } from 'node:crypto'
import { readFileSync } from 'node:fs'
import Database from 'better-sqlite3'
import Fastify from 'fastify'
import pg from 'pg'

const privateKey = createPrivateKey(readFileSync(process.env.PRIVATE_KEY))
const publicKey = createPublicKey(readFileSync(process.env.PUBLIC_KEY))
const clientId = process.env.CLIENT
const PATH = '/aps/api/v1/payments/cancelPayment'

const SCHEMA = `
CREATE TABLE payment (psp_id TEXT, payment_request_id TEXT, acquirer_id TEXT, result TEXT, decided_at BIGINT,
  PRIMARY KEY (psp_id, payment_request_id));
CREATE TABLE event (position INTEGER PRIMARY KEY, psp_id TEXT, payment_request_id TEXT, kind TEXT, decided_at BIGINT);`

function sqlite(file) {
  const db = new Database(file)
  db.pragma('journal_mode = WAL')
  db.pragma('synchronous = FULL')
  db.exec(SCHEMA)
  const find = db.prepare('SELECT acquirer_id, result FROM payment WHERE psp_id = ? AND payment_request_id = ?')
  const insert = db.prepare('INSERT INTO payment VALUES (?, ?, ?, ?, ?)')
  const announce = db.prepare('INSERT INTO event (psp_id, payment_request_id, kind, decided_at) VALUES (?, ?, ?, ?)')
  return db.transaction((psp, id, acquirer) => {
    const known = find.get(psp, id)
    if (known) return known.acquirer_id === acquirer ? known.result : 'ACCESS_DENIED'
    const now = Date.now()
    insert.run(psp, id, acquirer, 'SUCCESS', now)
    announce.run(psp, id, 'CANCELLED', now)
    return 'SUCCESS'
  })
}

async function postgres(url) {
  const pool = new pg.Pool({ connectionString: url, max: 8 })
  await pool.query(SCHEMA.replace('INTEGER PRIMARY KEY', 'BIGSERIAL PRIMARY KEY'))
  return async (psp, id, acquirer) => {
    const client = await pool.connect()
    try {
      await client.query('BEGIN')
      const now = Date.now()
      const made = await client.query({
        name: 'insert',
        text: `INSERT INTO payment VALUES ($1, $2, $3, 'SUCCESS', $4) ON CONFLICT DO NOTHING`,
        values: [psp, id, acquirer, now],
      })
      let result = 'SUCCESS'
      if (made.rowCount === 1) {
        await client.query({
          name: 'announce',
          text: `INSERT INTO event (psp_id, payment_request_id, kind, decided_at) VALUES ($1, $2, 'CANCELLED', $3)`,
          values: [psp, id, now],
        })
      } else {
        const known = await client.query({
          name: 'find',
          text: 'SELECT acquirer_id, result FROM payment WHERE psp_id = $1 AND payment_request_id = $2',
          values: [psp, id],
        })
        result = known.rows[0].acquirer_id === acquirer ? known.rows[0].result : 'ACCESS_DENIED'
      }
      await client.query('COMMIT')
      return result
    } catch (error) {
      await client.query('ROLLBACK').catch(() => {})
      throw error
    } finally {
      client.release()
    }
  }
}

const url = process.env.DATABASE
const decide = url.startsWith('postgres') ? await postgres(url) : sqlite(url)

const app = Fastify()
app.removeAllContentTypeParsers()
app.addContentTypeParser('*', { parseAs: 'buffer' }, (_, body, done) => done(null, body))

const MESSAGES = { SUCCESS: ['S', 'Success'], ACCESS_DENIED: ['F', 'Access is denied.'] }
const FAILURES = {
  INVALID_CLIENT: ['F', 'Invalid client.'],
  INVALID_SIGNATURE: ['F', 'Invalid signature.'],
  PARAM_ILLEGAL: ['F', 'Illegal parameters.'],
  UNKNOWN_EXCEPTION: ['U', 'Unknown exception.'],
}

const time = () => new Date(Math.floor(Date.now() / 1000) * 1000).toISOString().replace('.000Z', '+00:00')

function answer(reply, code) {
  const [resultStatus, resultMessage] = MESSAGES[code] ?? FAILURES[code]
  const body = JSON.stringify({ result: { resultCode: code, resultStatus, resultMessage } })
  const responseTime = time()
  const signature = sign('sha256', Buffer.from(`POST ${PATH}\n${clientId}.${responseTime}.${body}`), privateKey)
  reply
    .header('content-type', 'application/json; charset=UTF-8')
    .header('client-id', clientId)
    .header('response-time', responseTime)
    .header('signature', `algorithm=RSA256,keyVersion=1,signature=${encodeURIComponent(signature.toString('base64'))}`)
    .send(body)
}

app.post(PATH, async (request, reply) => {
  if (request.headers['client-id'] !== clientId) return answer(reply, 'INVALID_CLIENT')
  const given = /signature=([^,]+)/.exec(request.headers.signature ?? '')
  const content = Buffer.concat([
    Buffer.from(`POST ${PATH}\n${clientId}.${request.headers['request-time']}.`),
    request.body,
  ])
  const bytes = given && Buffer.from(decodeURIComponent(given[1]), 'base64')
  if (!bytes || !verify('sha256', content, publicKey, bytes)) return answer(reply, 'INVALID_SIGNATURE')
  let asked
  try {
    asked = JSON.parse(request.body)
  } catch {
    return answer(reply, 'PARAM_ILLEGAL')
  }
  const { pspId, paymentRequestId, acquirerId } = asked
  for (const id of [pspId, paymentRequestId, acquirerId]) {
    if (typeof id !== 'string' || id.length === 0 || id.length > 64) return answer(reply, 'PARAM_ILLEGAL')
  }
  try {
    return answer(reply, await decide(pspId, paymentRequestId, acquirerId))
  } catch (error) {
    console.error(error)
    return answer(reply, 'UNKNOWN_EXCEPTION')
  }
})

await app.listen({ host: '127.0.0.1', port: 0 })
console.log(`${app.server.address().address}:${app.server.address().port}`)
