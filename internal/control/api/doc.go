// Package api serves /v1: handlers translate a request, call one service and translate its
// answer. Rules live in the services; here are only the wire's own:
//
//   - every request but GET /health needs an API key
//   - an error is {"error":{"code","message","hint"}} with the status of its kind; one that
//     comes after the answer has begun breaks the connection, so that half a file never
//     looks whole
//   - JSON bodies are bounded in size and time and read before the handler runs; file bodies
//     are streams without a bound on their size, only on silence
//   - a handler's panic is a 500 and a log line; a client that has gone is not written to
package api
