// Follows a session from Node and comes back until it has ended. Writes a line of JSON for each
// event it got, and for each connection it began.
//
//   node --experimental-websocket node_client.mjs fetch|websocket URL TOKEN

const [way, url, token] = process.argv.slice(2)
const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
let lastId = ''
let hasEnded = false
let retry = 300 // milliseconds

function take(text) {
  const event = JSON.parse(text)
  if (event.event_type === 'callbackkit.end') hasEnded = true
  else if (event.event_type !== 'callbackkit.heartbeat') say({ event })
  return event
}

// Server-sent events, as the standard has them, on what fetch() streams.
async function readStream() {
  const headers = { authorization: `Bearer ${token}`, accept: 'text/event-stream' }
  if (lastId) headers['last-event-id'] = lastId
  const response = await fetch(url + '/sse', { headers })
  if (response.status === 204) hasEnded = true
  if (response.status !== 200) return
  say({ connected: lastId })
  let rest = ''
  let data = []
  let id = lastId
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split(/\r\n|\n|\r/)
    rest = lines.pop()
    for (const line of lines) {
      const [, name, value] = /^([^:]*):? ?(.*)$/su.exec(line)
      if (name === 'data') data.push(value)
      else if (name === 'id') id = value
      else if (name === 'retry') retry = Number(value)
      else if (line === '') {
        lastId = id
        if (data.length) take(data.join('\n'))
        data = []
      }
    }
  }
}

function readSocket() {
  const address = url.replace('http', 'ws') + '/ws?after=' + lastId
  const socket = new WebSocket(address, ['callbackkit', 'callbackkit.token.' + token])
  socket.onopen = () => say({ connected: lastId, protocol: socket.protocol })
  socket.onmessage = (message) => { lastId = take(message.data).id ?? lastId }
  return new Promise((resolve) => {
    socket.onclose = (event) => { say({ closed: event.code }); resolve() }
    socket.onerror = resolve
  })
}

while (!hasEnded) {
  await (way === 'fetch' ? readStream() : readSocket()).catch(() => {})
  if (!hasEnded) await pause(retry)
}
