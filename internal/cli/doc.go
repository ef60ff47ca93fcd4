// Package cli is the roost command: one file a subcommand, each a thin caller of the HTTP API
// in api/openapi/roost.yaml.
//
// What every command keeps to:
//
//   - Results go to stdout, everything else (progress, questions, errors) to stderr, so that
//     ID=$(roost create) works. Progress is drawn only on a terminal.
//   - --json makes stdout one JSON document, or JSON lines where output streams, and errors on
//     stderr become {"error":{code,message,hint}}.
//   - Errors are two lines: "roost: COMMAND OBJECT: cause" and "hint: what to do".
//   - Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. exec and shell return the
//     remote command's code (128+n for a signal) and 125 when Roost itself failed.
//   - Text that came from a sandbox or server is stripped of control characters before it is
//     shown in tables, progress, errors, and logs on a terminal. exec, shell, cp and logs into
//     a file pass bytes untouched.
//
// Credentials are a URL and a key. Flags win over environment, environment over files; a key
// that a file holds for one server is never sent to another one.
package cli
